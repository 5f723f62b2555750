"""How fast it is: the demo and a model of the paper's size against their dense models, and what explains it."""

import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from analysis.commands import efficiency as efficiency_command
from analysis.cost.benchmark_text import NEW_TOKENS, prompt_of
from analysis.cost.calibration import this_machine
from analysis.cost.comparison import Comparison, compare, dense_structure
from analysis.cost.measure import timed
from analysis.cost.paper import STRUCTURE, paper_config
from analysis.cost.roofline import Scenario
from analysis.cost.sizes import without_levels
from analysis.cost.sweep import from_parquet, machine, report, save, settings_of
from subllm import SubllmCache, SubllmConfig, SubllmForCausalLM
from subllm.checkpoints.config import read_config
from subllm.checkpoints.dense import routing_off

from .checks import checkpoint_folder, loaded
from .runner import Found, Where

_RETENTION = 0.64  # of the paper's model
_LAUNCHES = ("LaunchKernel", "GraphLaunch")  # parts of the names of CUDA's calls


def efficiency(where: Where) -> Found:
    """`subllm efficiency` of the demo, lengths by rows."""
    lengths, batches = where.sized(([512, 2048, 8192], [1, 4, 16]), ([16], [1]))
    folder = where.folder
    arguments = ["--checkpoint", checkpoint_folder(where), "--device", where.device, "--dtype", "bfloat16"]
    arguments += ["--lengths", *lengths, "--batches", *batches, "--repeats", where.sized(5, 1)]
    code = efficiency_command.main([*map(str, arguments), "--out", str(folder), "--resume"])
    file = next(folder.glob("*.parquet"), None)
    if file is None:
        raise RuntimeError(f"subllm efficiency ended with {code}; log.txt has its message")
    about, rows = from_parquet(file.read_bytes())
    return Found({"settings": len(rows), **_numbers(rows)}, report(about, rows))  # a small card has no room for all


def paper(where: Where) -> Found:
    """A random model of the paper's 1.3B parameters and structure, made to keep 64% at every level."""
    config = _paper_config(where)
    torch.manual_seed(0)
    with torch.device(where.device):
        model: Any = SubllmForCausalLM._from_config(config, dtype=torch.bfloat16)
    model = model.eval()
    dense, rows = routing_off(model), []
    about = machine(where.device) | {"dtype": "bfloat16", "structure": STRUCTURE, "weights": "random"}
    for setting in settings_of(where.sized([4096, 8192], [32, 48])):
        ids = torch.randint(3, config.vocab_size, (1, setting.tokens + NEW_TOKENS), device=where.device)
        rows.append(compare(model, dense, ids, where.sized(5, 1), retention=_RETENTION))
        save(where.folder, "paper", about, rows)
    return Found(_numbers(rows), report(about, rows))


def _paper_config(where: Where) -> SubllmConfig:
    config = paper_config()
    if where.dry:
        small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}
        config = SubllmConfig.from_dict(config.to_dict() | small | {"head_dim": 8, "vocab_size": 97})
    return config


def _numbers(rows: list[Comparison]) -> dict[str, Any]:
    """The figures that are compared with expectations, by setting."""
    found: dict[str, Any] = {}
    for row in rows:
        name = row.setting.words.partition(" at ")[0]
        found[f"prefill ms, {name}"] = 1000 * row.time("subllm")
        found[f"prefill speed-up, {name}"] = row.ratio("dense", "subllm")
        found[f"prefill limit, {name}"] = row.prefill_limit
        found[f"decode tokens/s, {name}"] = row.throughput("subllm decode")
        found[f"decode speed-up, {name}"] = row.ratio("dense decode", "subllm decode")
        found[f"decode limit, {name}"] = row.decode_limit
        found[f"peak MiB, {name}"] = row.peak_bytes[0] / 2**20
        joules = [sum(row.joules.get(each, [])) for each in ("subllm", "dense")]
        if all(joules):
            found[f"energy, dense over subllm, {name}"] = joules[1] / joules[0]
    return found


def calibration(where: Where) -> Found:
    """The card's rates, and predictions by them over what the parts `efficiency` and `paper` measured."""
    dtype = "bfloat16"
    hardware = this_machine(where.device, dtype)
    found: dict[str, Any] = {"TFLOP/s": hardware.operations[dtype] / 1e12, "TB/s": hardware.bandwidth / 1e12}
    found |= {key: value for key, value in vars(hardware).items() if isinstance(value, float) and "launch" in key}
    models = {"efficiency": read_config(checkpoint_folder(where)), "paper": _paper_config(where)}
    lines = ["| model | tokens | pass | predicted, ms | measured, ms | predicted over measured |"]
    lines += ["| --- | ---: | --- | ---: | ---: | ---: |"]
    for name, config in models.items():
        for file in (where.results / name).glob("*.parquet"):
            for row in from_parquet(file.read_bytes())[1]:
                scenario = Scenario(hardware, row.tokens, row.batch, dtype, tuple(row.retention), graphs=row.graphs)
                passes = {
                    "prefill": (config, "prefill", "subllm"),
                    "dense prefill": (without_levels(config), "prefill", "dense"),
                    "decode": (config, "decode", "subllm decode"),
                    "dense decode": (without_levels(config), "decode", "dense decode"),
                }
                words = row.setting.words.partition(" at ")[0]
                for what, (each, phase, measured) in passes.items():
                    predicted, took = scenario.seconds(each, phase), row.time(measured)
                    found[f"predicted over measured {what}, {name} {words}"] = predicted / took
                    cells = (name, words, what, f"{1e3 * predicted:,.2f}", f"{1e3 * took:,.2f}")
                    lines.append(f"| {' | '.join(cells)} | {predicted / took:.2f} |")
    return Found(found, "\n".join(lines) if len(lines) > 2 else "Nothing was measured to compare with.")


def _difference(model: SubllmForCausalLM, ids: Tensor, start: int) -> float:
    """Largest difference of the log-probability of the likeliest token, with graphs and without, nats."""
    likeliest: list[Tensor] = []
    for allowed in (True, False):
        cache = SubllmCache(model.config)
        cache.graphs.allowed = allowed
        model(ids[:, :start], past_key_values=cache)
        steps = [model(ids[:, at, None], past_key_values=cache).logits for at in range(start, ids.shape[1])]
        likeliest.append(torch.cat(steps, 1).float().log_softmax(-1))
    best = likeliest[1].argmax(-1, keepdim=True)
    return float((likeliest[0].gather(-1, best) - likeliest[1].gather(-1, best)).abs().max())


@torch.inference_mode()
def profile(where: Where) -> Found:
    """Decoded tokens in torch's profiler: launches, and the share of the time in which the card is idle."""
    checkpoint = loaded(where, "bfloat16")
    model, tokens = checkpoint.model, where.sized(20, 2)
    cuda = where.device.startswith("cuda")
    ids = prompt_of(checkpoint, where.sized(512, 24))
    dense, plain = dense_structure(routing_off(model), model.config), SubllmCache(model.config)
    plain.graphs.allowed = False
    found: dict[str, Any] = {}
    lines = ["| model | ms a token | launches | kernels | idle | most frequent |", f"| --- {'| ---: ' * 4}| --- |"]
    written: dict[str, tuple[Any, Any]] = {
        "": (model, SubllmCache(model.config)),
        ", without graphs": (model, plain),
        ", dense": (dense, SubllmCache(dense.config)),
    }
    for name, (each, cache) in written.items():

        def write(first: int, last: int, each: Any = each, cache: Any = cache) -> None:
            for index in range(first, last):
                each(ids[:, index, None], past_key_values=cache)

        start = ids.shape[1] - NEW_TOKENS
        each(ids[:, :start], past_key_values=cache)
        write(start, start + 4)
        seconds = timed(lambda write=write, s=start: write(s + 4, s + 4 + tokens), model.device).seconds
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profiler(activities=activities) as profiled:
            write(start + 4 + tokens, start + 4 + 2 * tokens)
            if cuda:
                torch.cuda.synchronize()
        if cuda:
            kernels = [event for event in profiled.events() if str(event.device_type).endswith("CUDA")]
            launches = sum(any(word in event.name for word in _LAUNCHES) for event in profiled.events())
        else:  # operations that no other one called
            kernels = [event for event in profiled.events() if event.cpu_parent is None]
            launches = len(kernels)
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        idle = max(0.0, 1 - busy / seconds) if cuda else 0.0
        found |= {f"launches per token{name}": launches / tokens, f"kernels per token{name}": len(kernels) / tokens}
        found |= {f"ms per token{name}": 1e3 * seconds / tokens} | ({f"idle share{name}": idle} if cuda else {})
        often = Counter(event.name[:60] for event in kernels).most_common(5)
        words = ", ".join(f"{count // tokens} {kernel}" for kernel, count in often).replace("|", "/")
        lines.append(
            f"| {'dense' if each is dense else f'subllm{name}'} "
            f"| {1e3 * seconds / tokens:.2f} | {launches / tokens:,.0f} | {len(kernels) / tokens:,.0f} "
            f"| {f'{idle:.0%}' if cuda else '–'} | {words} |"
        )
        print(profiled.key_averages().table(row_limit=25), file=sys.stderr)  # noqa: T201
    graphs = written[""][1].graphs
    found |= {"why graphs were refused": graphs.refusal or "they were not", "runs launched as graphs": graphs.replays}
    found["largest difference of a log-probability with graphs"] = _difference(model, ids[:, : start + 12], start)
    return Found(found, "\n".join(lines))
