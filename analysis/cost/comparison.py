"""One SUBLLM against one dense LLaMA: time, memory and energy, measured in turn on the same prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from subllm import Probe, RoutingRecord, SubllmCache, SubllmForCausalLM
from subllm.checkpoints.dense import load_llama, routing_off, sharing_weights
from subllm.checkpoints.device import dtype_name
from subllm.checkpoints.files import DENSE_TWIN
from subllm.checkpoints.load import Checkpoint
from subllm.routing import AtRetention, Override
from subllm.structure import BLOCK, CLOSE, LIGHT_HEAVY, OPEN

from ..errors import AnalysisError
from ..guard import Progress, out_of_memory_reported, silent
from .benchmark_text import NEW_TOKENS
from .measure import Took, alternate, anatomy, energy, free_bytes, peak_bytes, resident_bytes
from .operations import decode_operations, prefill_operations
from .sizes import cache_bytes, level_tokens, prefill_bytes, without_levels

DECODE_AGAINST, WRITING = "decode against", "our model without brackets; means over the new tokens"
"""How decoding is measured, as a fact that is kept with the measurements."""
DISTURBED = 1.5  # slowest pass over the fastest, beyond which a measurement says that it was disturbed
Overhead = Callable[[SubllmForCausalLM, Tensor, SubllmCache, Probe], object]  # reads the prompts once more


class Baseline(StrEnum):
    """Dense models to compare with, besides the folder of any LLaMA; links and files hold the values."""

    LLAMA = "llama"
    ROUTING_OFF = "routing off"
    TWIN = "twin"


class Timed(StrEnum):
    """What is timed of both models; files hold the values."""

    SUBLLM = "subllm"
    DENSE = "dense"
    SUBLLM_DECODE = "subllm decode"
    DENSE_DECODE = "dense decode"
    RECORDING = "recording"
    DENSE_STRUCTURE = "dense structure"


_DECODED = (Timed.SUBLLM_DECODE, Timed.DENSE_DECODE)  # one new token, which may run more or fewer blocks than the next


class Setting(NamedTuple):
    """What is measured.

    Attributes:
        tokens: of every prompt.
        batch: prompts read together.
        retention: share that every level is made to keep, by moving its threshold; 0 leaves the thresholds alone. A
            router that does not score keeps what it keeps.
    """

    tokens: int
    batch: int = 1
    retention: float = 0.0

    @property
    def words(self) -> str:
        """In words, such as "4 × 2,048 at 50%"."""
        text = f"{self.tokens:,}" if self.batch == 1 else f"{self.batch} × {self.tokens:,}"
        return f"{text} at {self.retention:.0%}" if self.retention else text


@dataclass(frozen=True)
class Comparison:
    """One setting.

    Attributes:
        structure: of the SUBLLM.
        tokens: of every prompt.
        batch: prompts read together.
        asked: retention that was asked for; 0 where the thresholds were left alone.
        retention: share of its parent's tokens that each level kept.
        seconds: of every timed pass, by what ran: "subllm" and "dense" reading the prompts, "subllm decode" and
            "dense decode" per new token of every prompt; with overheads also "recording" (the SUBLLM recording its
            routing), "trace" (recording all that a trace holds) and "dense structure" (our model without brackets).
        busy: processor time of the same passes.
        joules: energy of reading the prompts once, "subllm" and "dense", from blocks of many passes; no blocks where it
            is not counted.
        prefill_limit: dense operations over the SUBLLM's, reading the prompts.
        decode_limit: the same for the new tokens that are timed.
        cache_bytes: keys and values of the prompts, SUBLLM and dense.
        level_bytes: the SUBLLM's, for every level.
        peak_bytes: most memory of tensors at once while reading, SUBLLM and dense.
        resident_bytes: memory that the process took beyond what it had, SUBLLM and dense; empty where not told.
        step_seconds: median for each character of the structure while reading; the rest (embedding, norm, head) last.
        module_seconds: median for each kind of module while reading; see `analysis.cost.measure.Anatomy`.
        decode_blocks: blocks that ran for each timed new token, in the order of "subllm decode".
        growth: bytes of keys and values after each new token, SUBLLM and dense.
        graphs: whether both models launched their blocks as CUDA graphs for new tokens.
    """

    structure: str
    tokens: int
    batch: int
    asked: float
    retention: list[float]
    seconds: dict[str, list[float]]
    busy: dict[str, list[float]]
    joules: dict[str, list[float]]
    prefill_limit: float
    decode_limit: float
    cache_bytes: list[int]
    level_bytes: list[int]
    peak_bytes: list[int]
    resident_bytes: list[int]
    step_seconds: list[float]
    module_seconds: dict[str, float]
    decode_blocks: list[int]
    growth: list[list[int]]
    graphs: bool = False

    @property
    def setting(self) -> Setting:
        """What was measured."""
        return Setting(self.tokens, self.batch, self.asked)

    @property
    def routing_share(self) -> float:
        """Share of the time of reading that goes into entering and leaving levels."""
        inside = zip(self.structure, self.step_seconds, strict=False)
        return sum(seconds for symbol, seconds in inside if symbol in (OPEN, CLOSE)) / sum(self.step_seconds)

    def decode_by_blocks(self) -> dict[int, tuple[float, float]]:
        """For every number of blocks that ran for a new token: its time over the dense one's, and its blocks' share.

        Times are medians of the ratios of tokens decoded in turn.
        """
        blocks = self.structure.count(BLOCK) + self.structure.count(LIGHT_HEAVY)
        pairs = zip(
            self.decode_blocks, self.seconds[Timed.SUBLLM_DECODE], self.seconds[Timed.DENSE_DECODE], strict=True
        )
        ratios: dict[int, list[float]] = {}
        for count, ours, dense in pairs:
            ratios.setdefault(count, []).append(ours / dense)
        return {count: (median(ratios[count]), count / blocks) for count in sorted(ratios)}

    def time(self, name: str) -> float:
        """Seconds of a pass: the median of those that read, the mean of new tokens, which are not alike."""
        typical = fmean if name in _DECODED else median
        return typical(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Ratio of the wall clock: the median over passes that ran in turn, or of the mean times of new tokens."""
        if slow in _DECODED:
            return self.time(slow) / self.time(fast)
        return median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def busy_ratio(self, slow: str, fast: str) -> float:
        """Median ratio of the processor time of passes that ran in turn."""
        return median(a / b for a, b in zip(self.busy[slow], self.busy[fast], strict=True))

    @property
    def resident_ratio(self) -> float | None:
        """Memory that the process took, SUBLLM over dense; None where one is unknown, or took no new memory."""
        known = len(self.resident_bytes) == 2 and all(self.resident_bytes)
        return self.resident_bytes[0] / self.resident_bytes[1] if known else None

    def throughput(self, name: str) -> float:
        """Tokens per second, all prompts together, of a pass that reads or that writes one new token."""
        each = 1 if name in _DECODED else self.tokens
        return self.batch * each / self.time(name)

    def spread(self, name: str) -> float:
        """Slowest pass over the fastest."""
        return max(self.seconds[name]) / min(self.seconds[name])

    @property
    def disturbed(self) -> bool:
        """Whether passes of the same thing differ so much that something else must have run."""
        return max(self.spread(Timed.SUBLLM), self.spread(Timed.DENSE)) > DISTURBED


def baseline(checkpoint: Checkpoint, which: str) -> Any:
    """The dense model to compare with.

    Args:
        checkpoint: loaded.
        which: "llama" (LlamaForCausalLM with the checkpoint's weights), "routing off" (our model with the same
            weights and no brackets), "twin" (the LLaMA in its folder), or the folder of another LLaMA.

    Raises:
        AnalysisError: if there is no twin.
        CheckpointError: if a folder cannot be loaded.
    """
    model = checkpoint.model
    if which == Baseline.LLAMA:
        return routing_off(model)
    if which == Baseline.ROUTING_OFF:
        return dense_structure(routing_off(model), model.config)
    folder = checkpoint.folder / DENSE_TWIN if which == Baseline.TWIN else Path(which)
    if which == Baseline.TWIN and not folder.is_dir():
        raise AnalysisError(
            "{name} has no dense twin (its folder {twin} is missing). Compare with 'llama' or 'routing off', or give "
            "the folder of a LLaMA.",
            name=checkpoint.folder.name,
            twin=DENSE_TWIN,
        )
    return load_llama(folder, model)


def check_scores(model: SubllmForCausalLM) -> None:
    """Refuse to set the retention of a model in which no level scores tokens, so that none would follow.

    Raises:
        AnalysisError: if no router has scores, whose threshold could be moved.
    """
    if not any(router.scores_tokens for router in model.config.router_classes):
        raise AnalysisError(
            "No level of this model scores tokens (routers: {routers}), so none can be made to keep another share of "
            "them; leave the retention to the model.",
            routers=", ".join(sorted({*model.config.routers})) or "none",
        )


@torch.inference_mode()
def compare(
    model: SubllmForCausalLM,
    dense: Any,
    ids: Tensor,
    repeats: int,
    progress: Progress = silent,
    *,
    retention: float = 0.0,
    override: Override | None = None,
    overheads: Mapping[str, Overhead] | None = None,
) -> Comparison:
    """Measure prompts of equal length.

    Args:
        model: in evaluation mode.
        dense: as from `baseline`.
        ids: (B, T + new tokens): prompts, and what follows them.
        repeats: timed passes of each.
        progress: told how many passes are done.
        retention: share that every level is made to keep; 0 leaves it to the model.
        override: decides in place of the model's routers, where no retention is asked for.
        overheads: measure also what recording costs, our model without brackets, and these passes over one prompt.

    Raises:
        AnalysisError: if the baseline cannot read the prompts, memory would not suffice, or the retention of no level
            can be set.
        RunStopped: if memory runs out all the same.
    """
    device, config = model.device, model.config
    batch = ids.shape[0]
    prompt, rest = ids[:, :-NEW_TOKENS], ids[:, -NEW_TOKENS:]
    setting = Setting(prompt.shape[1], batch, retention)
    check_memory(model, dense, setting)
    _check_baseline(dense, ids)
    if retention:
        check_scores(model)
        override = AtRetention(retention)
    plain, recording = Probe(override=override), Probe(record=True, override=override)

    def read(which: Any, cache: Any, **options: Any) -> Any:
        return which(prompt, past_key_values=cache, logits_to_keep=1, **options)

    passes: dict[str, Callable[[], Any]] = {
        Timed.SUBLLM: lambda: read(model, SubllmCache(config), probe=plain),
        Timed.DENSE: lambda: read(dense, _cache(dense)),
    }
    if overheads is not None:
        bare = dense_structure(routing_off(model), config)
        passes |= {
            Timed.RECORDING: lambda: read(model, SubllmCache(config), probe=recording),
            Timed.DENSE_STRUCTURE: lambda: read(bare, SubllmCache(bare.config)),
        }
        for name, overhead in overheads.items() if batch == 1 else ():
            passes[name] = partial(_read_once_more, overhead, model, prompt, plain)
    total = 2 + len(passes) * repeats

    def before(done: int) -> None:
        progress(done / total, "passes", done=done, total=total, tokens=setting.words)

    with out_of_memory_reported(prompt.numel(), model):
        for each in passes.values():
            before(0)
            each()  # finds the thresholds; and the first pass of all makes the workspaces of matrix libraries
        peaks, resident = [], []
        for index, name in enumerate((Timed.SUBLLM, Timed.DENSE)):
            before(index + 1)
            peaks.append(peak_bytes(passes[name], device))
            resident.append(resident_bytes(passes[name], device))
        took = alternate(passes, repeats, device, lambda done: before(2 + done))
        before(total)
        joules = energy({name: passes[name] for name in (Timed.SUBLLM, Timed.DENSE)}, device, min(repeats, 2))
        before(total)
        parts = [
            anatomy(model, lambda probe: read(model, SubllmCache(config), probe=probe), device, override)
            for _ in range(min(repeats, 3))
        ]
        writer = dense_structure(dense, dense.config)
        cache, dense_cache = SubllmCache(config), SubllmCache(writer.config)
        records = read(model, cache, probe=recording).routing
        read(writer, dense_cache)
        sizes, level_sizes = [cache.used_bytes, dense_cache.used_bytes], cache.level_bytes
        lengths = _rows(cache, batch)
        decode, blocks, limit, growth = _decode(model, writer, cache, dense_cache, rest, plain, lambda: before(total))
    ours = sum(prefill_operations(config, levels) for levels in zip(*lengths, strict=True))
    theirs = batch * prefill_operations(without_levels(dense.config), [setting.tokens])
    everything = took | decode
    return Comparison(
        structure=config.parsed_structure.text,
        tokens=setting.tokens,
        batch=batch,
        asked=retention,
        retention=[_kept_share(record) for record in records],
        seconds={name: [one.seconds for one in each] for name, each in everything.items()},
        busy={name: [one.busy for one in each] for name, each in everything.items()},
        joules=joules,
        prefill_limit=theirs / ours,
        decode_limit=limit,
        cache_bytes=sizes,
        level_bytes=level_sizes,
        peak_bytes=peaks,
        resident_bytes=[size for size in resident if size is not None],
        step_seconds=[median(times) for times in zip(*(part.steps for part in parts), strict=True)],
        module_seconds={name: median(part.modules[name] for part in parts) for name in parts[0].modules},
        decode_blocks=blocks,
        growth=growth,
        graphs=bool(cache.graphs.replays) and not cache.graphs.refusal,
    )


def check_memory(model: SubllmForCausalLM, dense: Any, setting: Setting) -> None:
    """See that a measurement fits before it starts: a system that runs out of memory kills without a word.

    Args:
        model: SUBLLM.
        dense: to compare with.
        setting: to be measured.

    Raises:
        AnalysisError: if it does not; says what is needed and what is free.
    """
    dtype, larger = dtype_name(model), without_levels(dense.config)
    levels = level_tokens(larger, setting.tokens)
    reading = prefill_bytes(larger, levels, setting.batch, dtype)
    writing = 3 * cache_bytes(larger, levels, setting.batch, dtype)  # two caches, and one that is copied to grow
    need, free = max(reading, writing), free_bytes(model.device)
    if need > free:
        raise AnalysisError(
            "Measuring {setting} tokens would take about {need:,.1f} GB besides the weights, and {free:,.1f} GB are "
            "free. Use a smaller batch, a shorter prompt or a smaller dtype.",
            setting=setting.words,
            need=need / 1e9,
            free=free / 1e9,
        )


def _rows(cache: SubllmCache, batch: int) -> list[tuple[int, ...]]:
    """(1 + S,) cached tokens of every row; a level that no token reached yet knows of no rows."""
    return [level.rows or (0,) * batch for level in cache.levels]


def _decode(
    model: SubllmForCausalLM,
    dense: SubllmForCausalLM,
    cache: SubllmCache,
    dense_cache: SubllmCache,
    rest: Tensor,
    probe: Probe,
    report: Callable[[], None],
) -> tuple[dict[str, list[Took]], list[int], float, list[list[int]]]:
    """Time per new token, both models in turn, the same tokens fed to both; blocks used; limit of the ratio; growth.

    The dense model is ours without brackets: a DynamicCache, which LlamaForCausalLM writes with, copies all keys and
    values for every token.
    """
    config, places = model.config, model.config.parsed_structure.block_levels
    operations: list[tuple[float, float]] = []
    steady: list[int] = []  # tokens with which no graph was captured, which takes several passes
    took: dict[str, list[Took]] = {Timed.SUBLLM_DECODE: [], Timed.DENSE_DECODE: []}
    blocks: list[int] = []
    growth: list[list[int]] = []
    first = rest.shape[1] // 4  # those before grow the buffers
    for index in range(rest.shape[1]):
        report()
        token = rest[:, index, None]
        before = _rows(cache, rest.shape[0])
        captured = cache.graphs.captures + dense_cache.graphs.captures
        passes: dict[str, Callable[[], object]] = {
            Timed.SUBLLM_DECODE: partial(model, token, past_key_values=cache, probe=probe),
            Timed.DENSE_DECODE: partial(dense, token, past_key_values=dense_cache),
        }
        names = list(passes)[:: -1 if index % 2 else 1]
        for name, each in alternate({name: passes[name] for name in names}, 1, model.device).items():
            took[name] += each
        if why := cache.graphs.refusal or dense_cache.graphs.refusal:
            if index > first and not (cache.graphs.refusal and dense_cache.graphs.refusal):
                first = min(index + 1, rest.shape[1] - 1)  # both with graphs, or both without
            cache.graphs.refuse(why)
            dense_cache.graphs.refuse(why)
        after = _rows(cache, rest.shape[0])
        if cache.graphs.captures + dense_cache.graphs.captures == captured:
            steady.append(index)
        growth.append([cache.used_bytes, dense_cache.used_bytes])
        blocks.append(sum(after[place] != before[place] for place in places))
        ours = theirs = 0.0
        for cached, earlier in zip(zip(*after, strict=True), zip(*before, strict=True), strict=True):
            present = [new > old for new, old in zip(cached, earlier, strict=True)]
            ours += decode_operations(config, cached, present)
            theirs += decode_operations(dense.config, cached[:1], [True])
        operations.append((ours, theirs))
    timed = [index for index in steady if index >= first] or [len(blocks) - 1]
    ours, theirs = (sum(operations[index][which] for index in timed) for which in (0, 1))
    chosen = {name: [each[index] for index in timed] for name, each in took.items()}
    return chosen, [blocks[index] for index in timed], theirs / ours, growth


def _read_once_more(overhead: Overhead, model: SubllmForCausalLM, prompt: Tensor, probe: Probe) -> object:
    return overhead(model, prompt, SubllmCache(model.config), probe)


def _cache(model: Any) -> Any:
    return SubllmCache(model.config) if isinstance(model, SubllmForCausalLM) else DynamicCache(config=model.config)


def _check_baseline(dense: Any, ids: Tensor) -> None:
    positions, words = dense.config.max_position_embeddings, dense.config.vocab_size
    if ids.shape[1] - NEW_TOKENS > positions:
        found = ids.shape[1] - NEW_TOKENS
        raise AnalysisError(
            "The dense model has {positions:,} positions, too few for a prompt of {found:,} tokens. Choose a shorter "
            "prompt.",
            positions=positions,
            found=found,
        )
    if int(ids.max()) >= words:
        raise AnalysisError(
            "The vocabulary of the dense model has {words:,} tokens, and the prompt has the token id {token:,}. "
            "Compare with a LLaMA that has the same tokenizer.",
            words=words,
            token=int(ids.max()),
        )


def dense_structure(dense: Any, config: LlamaConfig) -> SubllmForCausalLM:
    """Our model with a structure without brackets, sharing the dense model's weights."""
    plain_config = without_levels(config)
    plain_config._attn_implementation = config._attn_implementation
    return sharing_weights(SubllmForCausalLM, plain_config, dense.state_dict(), dense.device)


def _kept_share(record: RoutingRecord) -> float:
    return int(record.kept.sum()) / max(int(record.reached.sum()), 1)
