"""One forward pass over a prompt, recorded: the routing, what every block changed, and the next tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from subllm import Event, Probe, Ran, SubllmCache, SubllmConfig, SubllmForCausalLM
from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.device import device_name, dtype_name
from subllm.checkpoints.load import Checkpoint
from subllm.model.levels import Snapshot
from subllm.model.light_heavy import linear_operations
from subllm.model.probe import PLAIN
from subllm.routing import routing_arrays
from subllm.routing.bypass import bypass_scales

from ..errors import AnalysisError
from ..guard import Progress, silent, steps_reported
from .parts import Blocks, Predictions, Provenance, Routing
from .tokenize import decode_pieces

NEXT_TOKENS = 10


@dataclass(frozen=True, eq=False)
class Prefill:
    """What one forward pass over a prompt left.

    Attributes:
        routing: what every router decided.
        blocks: what every block changed.
        hidden_states: (T, D) last hidden states, also of tokens that follow the prompt in the same pass.
        snapshots: states just before each router decided, by level; empty unless the probe keeps them.
    """

    routing: Routing
    blocks: Blocks
    hidden_states: Tensor
    snapshots: dict[int, Snapshot]


@torch.no_grad()
def prefill(
    model: SubllmForCausalLM,
    ids: Tensor,
    *,
    length: int | None = None,
    cache: SubllmCache | None = None,
    probe: Probe = PLAIN,
    known: Prefill | None = None,
    progress: Progress = silent,
) -> Prefill:
    """Run one forward pass over a prompt and record it.

    Args:
        model: a model in evaluation mode.
        ids: (1, T) token ids.
        length: number of ids that are the prompt; all by default.
        cache: a cache to fill.
        probe: what overrides the routers, the snapshot to resume from, and whether snapshots are kept.
        known: an earlier pass over the same ids, whose blocks are taken over where this one resumes behind them.
        progress: receives the progress, after every step; may raise to stop.

    Raises:
        AnalysisError: if numbers stop being finite; names the block.
    """
    length = ids.shape[1] if length is None else length
    structure = model.config.parsed_structure
    # block, positions, change, whether all is finite; copied once the device is done
    ran: list[tuple[int, Tensor, Tensor, Tensor]] = []
    report = steps_reported(progress, structure, length, 0.4, 0 if probe.resume is None else probe.resume.step)

    def observe(event: Event) -> None:
        report()
        if isinstance(event, Ran):
            before, after = event.before.hidden_states[0], event.after.hidden_states[0]
            change = (after - before).norm(dim=-1, dtype=torch.float32) / before.norm(dim=-1, dtype=torch.float32)
            ran.append((event.block, event.before.positions[0], change, after.isfinite().all()))

    output = model.model(
        ids, past_key_values=cache, use_cache=cache is not None, probe=replace(probe, record=True, observe=observe)
    )
    change = np.full((structure.num_blocks, length), np.nan, dtype=np.float16)
    if known is not None:
        change[:] = known.blocks.change
    _check_finite(model, [(block, finite) for block, _, _, finite in ran])
    for block, positions, values, _ in ran:
        places = positions.cpu().numpy()
        inside = places < length
        change[block] = np.nan
        change[block, places[inside]] = values.cpu().numpy()[inside]
    routing = routing_of(model, routing_arrays(output.routing, length))
    return Prefill(routing, Blocks(change), output.last_hidden_state[0], probe.snapshots)


def _check_finite(model: SubllmForCausalLM, blocks: list[tuple[int, Tensor]]) -> None:
    """Check that numbers stay finite: behind one that is not, everything is dropped and every prediction is 0."""
    if not blocks:
        return
    finite = torch.stack([each for _, each in blocks]).tolist()
    if not all(finite):
        raise AnalysisError(
            "Numbers stop being finite after block {block} of this checkpoint in {dtype}: they are infinite, or not a "
            "number. Choose a dtype with more range, such as float32, or another checkpoint.",
            block=blocks[finite.index(False)][0],
            dtype=dtype_name(model),
        )


def routing_of(model: SubllmForCausalLM, arrays: Mapping[str, np.ndarray]) -> Routing:
    """Routing of a trace, from a model and the arrays of `subllm.routing.routing_arrays`."""
    config, structure = model.config, model.config.parsed_structure
    return Routing(
        routers=np.asarray(config.routers, dtype=np.str_),
        parents=np.asarray(structure.parents, dtype=np.int64),
        retention_ratios=np.asarray(config.retention_ratios, dtype=np.float64),
        block_levels=np.asarray(structure.block_levels, dtype=np.int64),
        bypass_scale=bypass_scales(model.model.level_bypasses, config.hidden_size),
        strides=np.asarray(config.strides, dtype=np.int64),
        site_kinds=np.asarray(structure.site_kinds, dtype=np.str_),
        site_blocks=np.asarray(structure.site_blocks, dtype=np.int64),
        work=block_work(config, arrays["reached"], arrays["kept"]),
        **arrays,
    )


def block_work(config: SubllmConfig, reached: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(L, T) share of a LLaMA block's matrix products that each block spent on each token.

    Args:
        config: of the model.
        reached: (S, T) as in `Routing`.
        kept: (S, T) as in `Routing`.
    """
    structure = config.parsed_structure
    everywhere = np.ones((1, kept.shape[1]), dtype=bool)
    found = np.concatenate([everywhere, kept])[list(structure.block_levels)].astype(np.float32)
    if structure.light_heavy:
        operations = linear_operations(config)
        whole = sum(operations.values())
    for block, sites in structure.light_heavy.items():
        shares = [operations[site.kind] * kept[site.level - 1] for site in sites]
        found[block] = reached[sites[0].level - 1] * (operations["light"] + sum(shares)) / whole
    return found.astype(np.float16)


def predictions_of(logits: Tensor, tokenizer: PreTrainedTokenizerBase) -> Predictions:
    """The `NEXT_TOKENS` most likely next tokens, from logits (V,)."""
    probabilities, ids = logits.float().softmax(-1).topk(min(NEXT_TOKENS, logits.numel()))
    found = ids.cpu().numpy()
    return Predictions(found, probabilities.cpu().numpy(), decode_pieces(found, tokenizer))


def provenance_of(checkpoint: Checkpoint, dense: DenseModel | None, name: str = "") -> Provenance:
    """Provenance of a trace, from the checkpoint and the dense model that it is compared with.

    Args:
        checkpoint: the checkpoint that runs.
        dense: the dense model, if there is one.
        name: display name of the checkpoint; the name of its folder by default.
    """
    model = checkpoint.model
    return Provenance(
        checkpoint=name or checkpoint.folder.name,
        digest=checkpoint.digest,
        structure=str(model.config.structure),
        device=device_name(model.device),
        dtype=dtype_name(model),
        attention=str(model.config._attn_implementation),
        dense="" if dense is None else dense.description,
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        predictor=bool(model.config.predictor),
    )
