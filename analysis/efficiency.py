"""Time and memory of a SUBLLM against transformers' LlamaForCausalLM: same weights, dtype and attention kernel.

    python -m analysis.efficiency --out assets/benchmarks

The dense model is the checkpoint's own weights with routing off. Both models read the same text, in turn. The limit
beside each speed-up is the ratio of their operations (`analysis.operations`), with the tokens that this run kept.
"""

import argparse
import json
import os
import platform
import pydoc_data.topics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from subllm import SubllmCache, SubllmConfig, SubllmError, SubllmForCausalLM
from subllm.checkpoints import Checkpoint, load_checkpoint, pick_device, pick_dtype, routing_off
from subllm.demo import build_demo
from subllm.structure import BLOCK

from . import record
from .errors import AnalysisError
from .measure import alternate, device_name, peak_bytes, step_seconds
from .operations import decode_operations, prefill_operations
from .record import Progress, out_of_memory_said, silent
from .roofline import block_tokens
from .roofline import dense as dense_config

LENGTHS = (512, 2048, 4096, 8192)
DISTURBED = 1.5  # slowest pass over the fastest, beyond which a measurement says that it was disturbed
_NEW_TOKENS = 48


@dataclass(frozen=True)
class Comparison:
    """One prompt length.

    Attributes:
        structure: of the model.
        tokens: of the prompt.
        retention: share that each subsampling module kept.
        seconds: of every timed pass, by what ran: "subllm", "dense", "recording" (the SUBLLM recording its routing),
            "trace" (recording all that a trace holds), "dense structure" (our model with a structure without
            brackets), "subllm decode" and "dense decode" (per new token).
        prefill_limit: dense operations over the SUBLLM's, reading the prompt.
        decode_limit: the same for the new tokens.
        cache_bytes: keys and values of the prompt, SUBLLM and dense.
        peak_bytes: most memory of tensors at once while reading, SUBLLM and dense.
        step_seconds: median for each character of the structure while reading; the rest (embedding, norm, head) last.
        decode_blocks: blocks that processed each timed new token, in the order of "subllm decode".
    """

    structure: str
    tokens: int
    retention: list[float]
    seconds: dict[str, list[float]]
    prefill_limit: float
    decode_limit: float
    cache_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]
    step_seconds: list[float]
    decode_blocks: list[int]

    @property
    def routing_share(self) -> float:
        """Share of the time of reading that goes into entering and leaving spans."""
        inside = zip(self.structure, self.step_seconds, strict=False)
        return sum(seconds for symbol, seconds in inside if symbol != BLOCK) / sum(self.step_seconds)

    def decode_by_blocks(self) -> dict[int, tuple[float, float]]:
        """For every number of blocks that processed a new token: its time over the dense one's, and its blocks' share.

        Times are medians of the ratios of tokens decoded in turn.
        """
        blocks = self.structure.count(BLOCK)
        pairs = zip(self.decode_blocks, self.seconds["subllm decode"], self.seconds["dense decode"], strict=True)
        ratios: dict[int, list[float]] = {}
        for count, ours, dense in pairs:
            ratios.setdefault(count, []).append(ours / dense)
        return {count: (median(ratios[count]), count / blocks) for count in sorted(ratios)}

    def ratio(self, slow: str, fast: str) -> float:
        """Median ratio of passes that ran in turn."""
        return median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def spread(self, name: str) -> float:
        """Slowest pass over the fastest."""
        return max(self.seconds[name]) / min(self.seconds[name])

    @property
    def disturbed(self) -> bool:
        """Whether passes of the same thing differ so much that something else must have run."""
        return max(self.spread("subllm"), self.spread("dense")) > DISTURBED


@torch.inference_mode()
def compare(
    model: SubllmForCausalLM, dense: LlamaForCausalLM, ids: Tensor, repeats: int, progress: Progress = silent
) -> Comparison:
    """Measure one prompt.

    Args:
        model: in evaluation mode.
        dense: of the same weights.
        ids: (1, T + new tokens): prompt, and what follows it.
        repeats: timed passes of each.
        progress: told how many passes are done.
    """
    device, config = model.device, model.config
    prompt, rest = ids[:, :-_NEW_TOKENS], ids[:, -_NEW_TOKENS:]
    plain = _dense_structure(dense, config)

    def read(which: Any, cache: Any, **options: Any) -> Any:
        return which(prompt, past_key_values=cache, logits_to_keep=1, **options)

    passes = {
        "subllm": lambda: read(model, SubllmCache(config)),
        "dense": lambda: read(dense, DynamicCache(config=dense.config)),
        "recording": lambda: read(model, SubllmCache(config), output_routing=True),
        "trace": lambda: record.read(model, prompt),
        "dense structure": lambda: read(plain, SubllmCache(plain.config)),
    }
    total = 3 + len(passes) * repeats

    def before(done: int) -> None:
        progress(done / total, "passes", done=done, total=total, tokens=f"{prompt.shape[1]:,}")

    with out_of_memory_said(prompt.shape[1]):
        before(0)
        peak = peak_bytes(passes["subllm"], device)
        before(1)
        peaks = peak, peak_bytes(passes["dense"], device)
        before(2)
        passes["dense structure"]()
        seconds = alternate(passes, repeats, device, lambda done: before(3 + done))
        steps = [step_seconds(lambda observer: read(model, SubllmCache(config), observer=observer), device)
                 for _ in range(repeats)]  # fmt: skip
    cache, dense_cache = SubllmCache(config), DynamicCache(config=dense.config)
    records = read(model, cache, output_routing=True).routing
    read(dense, dense_cache)
    levels = [prompt.shape[1], *(record.kept.shape[1] for record in records)]
    ours = [int(n) for n in block_tokens(config, levels)]
    sizes = cache.used_bytes, sum(_bytes(layer) for layer in dense_cache.layers)
    theirs = [prompt.shape[1]] * len(ours)
    decode, decode_blocks, limit = _decode(model, dense, cache, dense_cache, rest)
    return Comparison(
        structure=config.parsed_structure.text,
        tokens=prompt.shape[1],
        retention=[record.kept.shape[1] / max(record.scores.shape[1], 1) for record in records],
        seconds=seconds | decode,
        prefill_limit=prefill_operations(config, theirs) / prefill_operations(config, ours),
        decode_limit=limit,
        cache_bytes=sizes,
        peak_bytes=peaks,
        step_seconds=[median(times) for times in zip(*steps, strict=True)],
        decode_blocks=decode_blocks,
    )


def _decode(
    model: SubllmForCausalLM, dense: LlamaForCausalLM, cache: SubllmCache, dense_cache: DynamicCache, rest: Tensor
) -> tuple[dict[str, list[float]], list[int], float]:
    """Seconds per new token, both models in turn, the same tokens fed to both; blocks used; limit of their ratio."""
    config, owners = model.config, model.config.parsed_structure.block_spans
    operations = [0, 0]
    seconds: dict[str, list[float]] = {"subllm decode": [], "dense decode": []}
    blocks: list[int] = []
    for index in range(rest.shape[1]):
        token = rest[:, index, None]
        before = [level.lengths[0] for level in cache.levels]
        passes = {
            "subllm decode": lambda token=token: model(token, past_key_values=cache),
            "dense decode": lambda token=token: dense(token, past_key_values=dense_cache),
        }
        for name, times in alternate(passes, 1, model.device).items():
            seconds[name] += times
        after = [level.lengths[0] for level in cache.levels]
        levels = [0 if span is None else span + 1 for span in owners]
        keys = [after[n] for n in levels if after[n] > before[n]]
        blocks.append(len(keys))
        operations[0] += decode_operations(config, keys)
        operations[1] += decode_operations(config, [after[0]] * len(levels))
    first = rest.shape[1] // 4  # those before grow the buffers
    return {name: times[first:] for name, times in seconds.items()}, blocks[first:], operations[1] / operations[0]


def _dense_structure(dense: LlamaForCausalLM, config: SubllmConfig) -> SubllmForCausalLM:
    """Our model with a structure without brackets, sharing the dense model's weights."""
    plain_config = dense_config(config)
    plain_config._attn_implementation = config._attn_implementation
    with torch.device("meta"):
        model = SubllmForCausalLM(plain_config)
    model.load_state_dict(dense.state_dict(), strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = dense.model.rotary_emb
    return model.eval()


def _bytes(layer: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (layer.keys, layer.values))


def benchmark_text() -> str:
    """Technical English that every Python carries: the reference manual's topics."""
    return "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))


def prompt_of(checkpoint: Checkpoint, length: int) -> Tensor:
    """(1, length + new tokens) ids of technical English.

    Args:
        checkpoint: whose tokenizer and positions count.
        length: of the prompt, in tokens.

    Raises:
        AnalysisError: if the length is not positive, or longer than the model's positions or the text.
    """
    ids = checkpoint.tokenizer(benchmark_text(), verbose=False, return_tensors="pt")["input_ids"]
    longest = min(checkpoint.model.config.max_position_embeddings, ids.shape[1] - _NEW_TOKENS)
    if not 0 < length <= longest:
        raise AnalysisError(f"A prompt of {length:,} tokens cannot be measured; allowed are 1 to {longest:,}.")
    start = min(1000, ids.shape[1] - length - _NEW_TOKENS)
    return ids[:, start : start + length + _NEW_TOKENS].to(checkpoint.model.device)


def table(rows: list[Comparison]) -> str:
    """Markdown table of comparisons; every ratio is measured but for the limits, which are counted."""
    lines = [
        "| prompt tokens | kept per level | prefill speed-up (spread) | limit | reached | decode speed-up | limit "
        "| cache | peak memory | recording costs | trace costs | dense structure costs | routing "
        "| new token by blocks: time (share) |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        speed = row.ratio("dense", "subllm")
        lines.append(
            f"| {row.tokens:,} | {', '.join(f'{share:.0%}' for share in row.retention)} "
            f"| {speed:.2f}× ({row.spread('dense'):.2f}, {row.spread('subllm'):.2f}) | {row.prefill_limit:.2f}× "
            f"| {speed / row.prefill_limit:.0%} | {row.ratio('dense decode', 'subllm decode'):.2f}× "
            f"| {row.decode_limit:.2f}× | {row.cache_bytes[0] / row.cache_bytes[1]:.2f}× "
            f"| {row.peak_bytes[0] / row.peak_bytes[1]:.2f}× | {row.ratio('recording', 'subllm') - 1:+.1%} "
            f"| {row.ratio('trace', 'subllm') - 1:+.1%} | {row.ratio('dense structure', 'dense') - 1:+.1%} "
            f"| {row.routing_share:.1%} | {_decode_cell(row)} |"
        )
    return "\n".join(lines)


def _decode_cell(row: Comparison) -> str:
    cells = row.decode_by_blocks().items()
    return ", ".join(f"{blocks}: {time:.2f} ({share:.2f})" for blocks, (time, share) in cells)


def machine(device: torch.device | str) -> dict[str, str]:
    """What a measurement ran on."""
    processor = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "device": device_name(torch.device(device)),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m analysis.efficiency", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="folder of a checkpoint; the demo if left out")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="prompt lengths, in tokens")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each model per length")
    parser.add_argument("--device", help="such as cpu or cuda; the best one if left out")
    parser.add_argument("--dtype", help="such as float32 or bfloat16; the device's default if left out")
    parser.add_argument("--out", type=Path, help="folder for the table and the JSON file")
    parser.add_argument("--resume", action="store_true", help="keep the lengths that the file in --out has already")
    arguments = parser.parse_args()
    device = arguments.device or pick_device()
    try:
        folder = arguments.checkpoint or build_demo()
        checkpoint = load_checkpoint(folder, device, arguments.dtype or pick_dtype(device))
        prompts = {length: prompt_of(checkpoint, length) for length in arguments.lengths}
        facts = _facts(checkpoint, arguments.repeats)
        file = arguments.out / f"{checkpoint.model.device.type}-{facts['dtype']}.json" if arguments.out else None
        rows = {row.tokens: row for row in load_rows(file, facts)} if file and arguments.resume else {}
        dense = routing_off(checkpoint.model)
        for length, ids in prompts.items():
            if length in rows:
                continue
            rows[length] = compare(checkpoint.model, dense, ids, arguments.repeats)
            print(f"{length} tokens: {rows[length].ratio('dense', 'subllm'):.2f}×", file=sys.stderr)  # noqa: T201
            if file:
                _save(file, facts, [rows[n] for n in sorted(rows)])
    except (SubllmError, AnalysisError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(_report(facts, [rows[n] for n in sorted(rows)]))  # noqa: T201
    return 0


def load_rows(file: Path, facts: dict[str, str]) -> list[Comparison]:
    """What an earlier run measured.

    Args:
        file: that it wrote; none need be there.
        facts: about this machine, checkpoint and run, which must be the same.

    Raises:
        AnalysisError: if the file is of another machine, checkpoint or version, or cannot be read.
    """
    if not file.exists():
        return []
    try:
        data = json.loads(file.read_text())
        rows = [Comparison(**row) for row in data["rows"]]
        found = dict(data["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(f"{file} cannot be gone on with ({error}); leave out --resume to measure anew.") from error
    differing = [key for key in sorted({*facts, *found}) if facts.get(key) != found.get(key)]
    if differing:
        raise AnalysisError(
            f"{file} was measured with another {', '.join(differing)}; leave out --resume to measure anew."
        )
    return rows


def _facts(checkpoint: Checkpoint, repeats: int) -> dict[str, str]:
    model = checkpoint.model
    return machine(model.device) | {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.config._attn_implementation),
        "structure": str(model.config.structure),
        "checkpoint": checkpoint.digest,
        "repeats": str(repeats),
    }


def _save(file: Path, facts: dict[str, str], rows: list[Comparison]) -> None:
    """Write after every length, so that a run that is stopped loses one at most."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".md").write_text(_report(facts, rows))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    partial.replace(file)


def _report(facts: dict[str, str], rows: list[Comparison]) -> str:
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return f"""# SUBLLM against LlamaForCausalLM

Measured by `make bench`: the checkpoint, and its own weights with routing off, in turn. Medians of the ratios of passes
that ran in turn; spread is the slowest pass over the fastest (dense, SUBLLM). "Limit" counts operations; "reached" is
the speed-up over the limit. "Recording" is of the routing, "trace" of all that the page shows. Cache and peak memory
(of tensors, beyond the weights) are SUBLLM over dense. "Routing" is the share of reading that goes into entering and
leaving levels. The last column tells new tokens apart by how many blocks processed them: their time over the dense
model's, and those blocks' share of all.

{table(rows)}

{listed}
"""


if __name__ == "__main__":
    sys.exit(main())
