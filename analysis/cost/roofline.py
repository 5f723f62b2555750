"""The work of a SUBLLM in prefill, decode and training, module by module, and the predicted speed-up.

Letters: T tokens per sequence, B sequences, S levels inside of the whole sequence, L blocks. Attention is a fused
kernel that skips masked pairs and keeps no score matrix. Everything else runs operation by operation, as eager PyTorch
does: each reads its tensors from memory and writes its result there. `analysis.cost.hardware` turns work into time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, Self

from subllm import SubllmConfig
from subllm.routing import LightHeavyRouter, Router
from subllm.structure import BLOCK, LIGHT_HEAVY, LIGHT_HEAVY_SITES, OPEN

from .hardware import Hardware, Work
from .launches import DIVIDED, GRAPH, IN_GRAPH, base_launches, level_launches
from .operations import attention_operations, divided_operations, head_dim, key_value_heads, window_pairs
from .sizes import BYTES, block_tokens, level_tokens, without_levels

_TRAINING = 3  # a backward pass does the forward's products twice
_RESIDUAL_PASSES = 6  # times that the two residual additions of a block read or write the stream
_NORM_BYTES = {"float32": 2 * 28, "float16": 2 * 36, "bfloat16": 2 * 36}  # per number of the stream, in both norms
_ROTARY_PASSES = 10  # times that queries and keys are read or written while they are turned


class _Part(NamedTuple):
    """What one module of a block does; blocks with the same tokens have theirs in common."""

    module: str
    operations: float
    bytes: float


def prefill_work(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> list[Work]:
    """Reading prompts of equal length, with logits for the last token of each.

    Args:
        config: of the model.
        levels: tokens per level of one prompt, as from `level_tokens`.
        batch: prompts.
        dtype: of weights and activations.
    """
    blocks = _reading(config, levels, batch, dtype)
    launches = _block_launches(config, "prefill", batch, dtype)
    head = _head(config, batch, dtype)
    return _in_order(config, "prefill", blocks, launches, [batch * n for n in levels], head, batch, dtype)


def decode_work(
    config: SubllmConfig,
    cached: Sequence[float],
    kept: Sequence[float],
    batch: int = 1,
    dtype: str = "bfloat16",
    *,
    graphs: bool = False,
) -> list[Work]:
    """One new token for every sequence; expected values, since each token is kept or dropped by itself.

    Args:
        config: of the model.
        cached: (1 + S,) tokens in each level's cache, per sequence.
        kept: (1 + S,) probability that a new token is present at each level; the first is 1.
        batch: sequences.
        dtype: of weights, activations and cache.
        graphs: the blocks between two brackets are launched as one CUDA graph, as `subllm.model.graphs` does.
    """
    blocks, launches = [], []
    structure, each = config.parsed_structure, _block_launches(config, "decode", batch, dtype)
    shares, in_step = block_tokens(config, kept), _in_step(config, kept)

    @cache
    def parts(share: float, keys: float, runs: float) -> list[_Part]:
        return _block(config, batch * share, batch * share * (keys + 1), batch * share * keys, dtype, runs)

    for block, (share, keys) in enumerate(zip(shares, block_tokens(config, cached), strict=True)):
        step = in_step[structure.block_levels[block]] or 1.0
        runs = step * (1 - (1 - share / step) ** batch)  # that any sequence's token needs the block, and its weights
        if block in structure.light_heavy:
            blocks.append(_light_heavy_decoding(config, block, cached, kept, batch, runs, dtype))
            launches.append(runs * each[block])
            continue
        blocks.append(parts(share, keys, runs))
        captured = IN_GRAPH * each[block] + (GRAPH if block in structure.runs else 0)
        launches.append(runs * (captured if graphs else each[block]))
    tokens, head = [batch * share for share in kept], _head(config, batch, dtype)
    return _in_order(config, "decode", blocks, launches, tokens, head, batch, dtype)


def training_work(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> list[Work]:
    """One training step without the optimizer: forward and backward, logits for every token.

    Args:
        config: of the model.
        levels: tokens per level of one sequence.
        batch: sequences.
        dtype: of weights and activations.
    """
    blocks = _reading(config, levels, batch, dtype)
    launches = _block_launches(config, "training", batch, dtype)
    tokens, head = [batch * n for n in levels], _head(config, batch * levels[0], dtype)
    return _in_order(config, "training", blocks, launches, tokens, head, batch, dtype)


PHASES: tuple[str, ...] = ("prefill", "decode", "training")


def phase_work(
    config: SubllmConfig,
    phase: str,
    tokens: float,
    batch: int = 1,
    dtype: str = "bfloat16",
    retention: Sequence[float] | None = None,
    *,
    graphs: bool = False,
) -> list[Work]:
    """Work of one phase: reading prompts, writing the next token after them, or one training step.

    Args:
        config: of the model.
        phase: one of `PHASES`.
        tokens: per sequence.
        batch: sequences.
        dtype: of the computation.
        retention: share that each level keeps; the nominal one if left out.
        graphs: see `decode_work`.
    """
    levels = level_tokens(config, tokens, retention)
    if phase == "decode":
        return decode_work(config, levels, level_tokens(config, 1, retention), batch, dtype, graphs=graphs)
    return (training_work if phase == "training" else prefill_work)(config, levels, batch, dtype)


@dataclass(frozen=True)
class Scenario:
    """What a prediction assumes about the machine and its load.

    Attributes:
        hardware: device.
        tokens: tokens of every sequence.
        batch: number of sequences.
        dtype: number format of weights, activations and cache.
        retention: share of its parent's tokens that each level keeps; None for the nominal ones.
        graphs: in decoding, blocks are launched as CUDA graphs, those of the dense model too.
    """

    hardware: Hardware
    tokens: float = 8192
    batch: int = 1
    dtype: str = "bfloat16"
    retention: tuple[float, ...] | None = None
    graphs: bool = False

    def at(self, tokens: float) -> Self:
        """The same with sequences of another length."""
        return replace(self, tokens=tokens)

    def work(self, config: SubllmConfig, phase: str) -> list[Work]:
        """Work of a phase, one of `PHASES`."""
        retention = self.retention if config.parsed_structure.num_levels else None
        return phase_work(config, phase, self.tokens, self.batch, self.dtype, retention, graphs=self.graphs)

    def seconds(self, config: SubllmConfig, phase: str) -> float:
        """Least time of a phase, one of `PHASES`."""
        return self.hardware.seconds(self.work(config, phase), self.dtype)


def speedup(config: SubllmConfig, phase: str, scenario: Scenario, dense: SubllmConfig | None = None) -> float:
    """Predicted time of the dense model over that of the SUBLLM.

    Args:
        config: of the SUBLLM.
        phase: one of `PHASES`.
        scenario: machine and load.
        dense: what `without_levels` makes of the configuration, for who asks often.
    """
    return scenario.seconds(dense or without_levels(config), phase) / scenario.seconds(config, phase)


def _in_step(config: SubllmConfig, kept: Sequence[float]) -> list[float]:
    """(1 + S,) probability that a new token is present at each level, as far as all sequences of a batch agree.

    Those of one length have their carriers at the same tokens, unless a level outside drops some.
    """
    shares = [1.0]
    for site, stride in zip(config.parsed_structure.sites, config.strides, strict=True):
        outside = shares[site.parent]
        shares.append(kept[site.level] if stride > 1 and outside == kept[site.parent] else outside)
    return shares


def _reading(config: SubllmConfig, levels: Sequence[float], batch: int, dtype: str) -> list[list[_Part]]:
    """Every block on all tokens of its level."""
    divided, work = config.parsed_structure.light_heavy, []

    @cache
    def parts(n: float) -> list[_Part]:
        return _block(config, batch * n, batch * n * (n + 1) / 2, 0, dtype)

    @cache
    def divided_parts(n: float, *kept: float) -> list[_Part]:
        assert config.window is not None
        routed = {kind: batch * each for kind, each in zip(LIGHT_HEAVY_SITES, kept, strict=True)}
        light = batch * window_pairs(n, config.window)
        heavy = routed["query"] * (routed["key_value"] / batch + 1) / 2
        return _light_heavy(config, batch * n, routed, (light, heavy), (0, 0), dtype)

    for block, n in enumerate(block_tokens(config, levels)):
        if block in divided:
            work.append(divided_parts(n, *(levels[site.level] for site in divided[block])))
        else:
            work.append(parts(n))
    return work


def _block_launches(config: SubllmConfig, phase: str, batch: int, dtype: str) -> list[float]:
    """(L,) launches of each block that runs."""
    divided, each = config.parsed_structure.light_heavy, base_launches(config, phase, dtype).block
    return [
        DIVIDED[phase][batch > 1] if block in divided else each for block in range(config.parsed_structure.num_blocks)
    ]


def _in_order(
    config: SubllmConfig,
    phase: str,
    blocks: Sequence[Sequence[_Part]],
    launches: Sequence[float],
    tokens: Sequence[float],
    head: _Part,
    batch: int,
    dtype: str,
) -> list[Work]:
    """All work of a pass as it runs, with what each block launches.

    A "(" ends a run, since the host waits there, unless the router knows what it keeps without asking the device.

    What is launched once is counted with the head, and what a level launches with its "(".
    """
    work: list[Work] = []
    structure, run = config.parsed_structure, 0
    routers, classes = config.routers, config.router_classes
    passes = _TRAINING if phase == "training" else 1

    def add(part: _Part, block: int | None, launched: float) -> None:
        work.append(Work(part.module, block, passes * part.operations, passes * part.bytes, launched, run))

    @cache
    def routing(router: type[Router], outside: float, inside: float, *kind: str) -> _Part:
        own = router.work(config, outside, inside, *kind)
        return _Part("routing", own.operations, BYTES[dtype] * own.moved)

    launching = cache(lambda name: level_launches(config, name, phase, batch))
    for step in structure.steps:
        if step.symbol == OPEN:
            site, router = structure.sites[step.index - 1], classes[step.index - 1]
            own = routing(router, tokens[site.parent], tokens[site.level])
            add(own, None, launching(routers[step.index - 1]))
            run += not router.merges_tokens
            continue
        if step.symbol == LIGHT_HEAVY:
            for site in structure.light_heavy[step.index]:  # the host learns how many are routed, three times
                add(routing(LightHeavyRouter, tokens[site.parent], tokens[site.level], site.kind), None, 0)
                run += 1
        if step.symbol in (BLOCK, LIGHT_HEAVY):
            first, *rest = blocks[step.index]
            add(first, step.index, launches[step.index])
            for part in rest:
                add(part, step.index, 0)
    add(head, None, base_launches(config, phase, dtype).once)
    return work


def _block(
    config: SubllmConfig, tokens: float, pairs: float, past: float, dtype: str, weights: float = 1
) -> list[_Part]:
    """One block on some tokens, which read `past` cached keys and values; its weights are read `weights` times."""
    width, size, inner = config.hidden_size, head_dim(config), config.intermediate_size
    heads, groups, each = config.num_attention_heads, key_value_heads(config), BYTES[dtype]
    projection, mlp = width * size * 2 * (heads + groups), 3 * width * inner
    moved = 4 * width + size * (2 * heads + 2 * groups) + _ROTARY_PASSES * size * (heads + groups)
    return [
        _Part("projections", 2 * tokens * projection, each * (weights * projection + tokens * moved)),
        _Part(
            "attention",
            attention_operations(config, 1) * pairs,
            each * size * (tokens * (2 * heads + 2 * groups) + past * 2 * groups),
        ),
        _Part("mlp", 2 * tokens * mlp, each * (weights * mlp + tokens * (3 * width + 8 * inner))),
        _Part("norms", 0, tokens * width * (each * _RESIDUAL_PASSES + _NORM_BYTES[dtype])),
    ]


def _light_heavy_decoding(
    config: SubllmConfig,
    block: int,
    cached: Sequence[float],
    kept: Sequence[float],
    batch: int,
    runs: float,
    dtype: str,
) -> list[_Part]:
    """One light/heavy block on a new token of every sequence; see `decode_work`."""
    assert config.window is not None
    sites = {site.kind: site for site in config.parsed_structure.light_heavy[block]}
    level = sites["query"].parent
    tokens = batch * kept[level]
    routed = {kind: batch * kept[site.level] for kind, site in sites.items()}
    seen, keys = min(cached[level], config.window - 1), cached[sites["key_value"].level]
    pairs = tokens * (seen + 1), routed["query"] * (keys + 1)
    reads = {kind: 1 - (1 - kept[site.level]) ** batch for kind, site in sites.items()}
    past = tokens * seen, routed["query"] * keys
    return _light_heavy(config, tokens, routed, pairs, past, dtype, reads | {"light": runs})


def _light_heavy(
    config: SubllmConfig,
    tokens: float,
    routed: Mapping[str, float],
    pairs: tuple[float, float],
    past: tuple[float, float],
    dtype: str,
    reads: Mapping[str, float] | None = None,
) -> list[_Part]:
    """One light/heavy block on some tokens.

    Args:
        config: of the model.
        tokens: that it processes.
        routed: tokens that its routers keep, by "query", "key_value" and "mlp".
        pairs: of queries and keys, in the light and in the heavy branch.
        past: cached keys that are read, likewise.
        dtype: of the computation.
        reads: how often the weights of each part are read, by "light" and as above; once if left out.
    """
    assert config.light_heads is not None
    width, size, units, each = config.hidden_size, head_dim(config), config.light_intermediate_size or 0, BYTES[dtype]
    group = config.num_attention_heads // key_value_heads(config)
    light, heavy = config.light_heads, config.num_attention_heads - config.light_heads
    own, weights = (
        divided_operations(config, tokens, routed, *pairs),
        divided_operations(config, 1, dict.fromkeys(routed, 1.0), 0, 0).linear,
    )
    reads = reads or dict.fromkeys(weights, 1.0)
    moved = {part: reads[part] * numbers / 2 for part, numbers in weights.items()}  # a weight, two operations per token
    light_mlp = 6 * width * units
    of_light = light_mlp / weights["light"]  # share of the light branch's weights that belongs to the MLP
    projected = (1 - of_light) * moved["light"] + moved["query"] + moved["key_value"]
    projected += tokens * (4 * width + (2 + _ROTARY_PASSES) * size * (light + light // group))
    projected += routed["query"] * (4 * width + (2 + _ROTARY_PASSES) * size * heavy)
    projected += routed["key_value"] * (2 * width + (2 + _ROTARY_PASSES) * size * (heavy // group))
    attended = size * (2 * tokens * (light + light // group) + 2 * past[0] * light // group)
    attended += size * (2 * routed["query"] * heavy + 2 * (routed["key_value"] + past[1]) * heavy // group)
    transformed = of_light * moved["light"] + moved["mlp"] + tokens * (3 * width + 8 * units)
    transformed += routed["mlp"] * (5 * width + 8 * (config.intermediate_size - units))
    operations = own.linear["light"] * (1 - of_light) + own.linear["query"] + own.linear["key_value"]
    return [
        _Part("projections", operations, each * projected),
        _Part("attention", own.light + own.heavy, each * attended),
        _Part("mlp", own.linear["light"] * of_light + own.linear["mlp"], each * transformed),
        _Part("norms", 0, tokens * width * (each * _RESIDUAL_PASSES + _NORM_BYTES[dtype])),
    ]


def _head(config: SubllmConfig, tokens: float, dtype: str) -> _Part:
    size = config.hidden_size * config.vocab_size
    moved = size + tokens * (config.hidden_size + config.vocab_size)
    return _Part("head", 2 * tokens * size, BYTES[dtype] * moved)
