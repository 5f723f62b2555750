"""The logit lens: what the model would predict from the stream after each block, and what each level added."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subllm import Closed, Event, Probe, Ran, SubllmForCausalLM
from subllm.model.levels import Tokens
from subllm.routing import Override

from ..guard import Progress, ids_on_device, out_of_memory_reported, silent, steps_reported

_CHUNK = 256  # positions whose logits exist at once: (chunk, V)


@dataclass(frozen=True, eq=False)
class Lens:
    """Predictions from one token's stream, block by block. L blocks, S levels, D width.

    Attributes:
        processed: (L,) True where the block processed the token; elsewhere its stream passed unchanged.
        ids: (L + 1,) most likely next token after the embedding and after each block, by the final norm and head.
        probabilities: (L + 1,) probabilities of those.
        target_probabilities: (L + 1,) probability of the actual next token; NaN at the end of the prompt.
        contributions: (S, D) what each level added to the token's stream; NaN where the token did not reach the level's
            router, and for keys and values of a light/heavy block.
        norms: (S, 3) L2 norm of the token's stream before the level, after the level's last block, and after the
            level; NaN where the token was not there, and in a light/heavy block.
    """

    processed: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray
    target_probabilities: np.ndarray
    contributions: np.ndarray
    norms: np.ndarray


@torch.inference_mode()
def logit_lens(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    token: int,
    override: Override | None = None,
    progress: Progress = silent,
) -> Lens:
    """Apply the logit lens to one token. The model is causal, so only the prompt up to the token is run.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        token: index of the token.
        override: decides in place of the routers, as in `Probe`.
        progress: receives the progress, after every step; may raise to stop.

    Raises:
        PromptError: if the model has no embedding for a token.
        RunStopped: when memory runs out.
    """
    structure, config = model.config.parsed_structure, model.config
    ids = ids_on_device(model, token_ids[: token + 1])
    streams: list[Tensor] = []  # after the embedding and after each block, (D,)
    processed: list[bool] = []
    contributions = np.full((structure.num_levels, config.hidden_size), np.nan, dtype=np.float32)
    norms = np.full((structure.num_levels, 3), np.nan, dtype=np.float32)
    report = steps_reported(progress, structure, len(ids[0]))
    current: Tensor | None = None  # (D,) the token's stream after the last block that processed it

    def own(tokens: Tokens) -> Tensor | None:
        """The token's stream, the last of the row; None if the token is not there."""
        here = tokens.hidden_states.shape[1] and int(tokens.positions[0, -1]) == token
        return tokens.hidden_states[0, -1].clone() if here else None

    def observe(event: Event) -> None:
        nonlocal current
        report()
        if current is None:
            current = own(event.before)
            assert current is not None
            streams.append(current)
        after = own(event.after)
        current = current if after is None else after
        if isinstance(event, Ran):
            processed.append(after is not None)
            streams.append(current)
            for branch in () if after is None else event.branches:
                if (added := branch.change) is not None:
                    contributions[branch.level - 1] = added[0, -1].float().cpu().numpy()
        elif isinstance(event, Closed):
            before = own(event.before)
            for place, stream in enumerate((before, own(event.inside), after)):
                if stream is not None:
                    norms[event.level - 1, place] = stream.float().norm().item()
            if before is not None and after is not None:
                contributions[event.level - 1] = (after - before).float().cpu().numpy()

    with out_of_memory_reported(len(ids[0]), model):
        model.model(ids, use_cache=False, probe=Probe(observe=observe, override=override))
        head: Any = model.lm_head
        probabilities = head(model.model.norm(torch.stack(streams))).float().softmax(-1)
        best, likeliest = (each.cpu().numpy() for each in probabilities.max(-1))
        target = np.full(len(streams), np.nan, dtype=np.float32)
        if token + 1 < len(token_ids):
            target = probabilities[:, int(token_ids[token + 1])].cpu().numpy()
    return Lens(np.asarray(processed), likeliest, best, target, contributions, norms)


@torch.inference_mode()
def confidence(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    progress: Progress = silent,
    override: Override | None = None,
) -> np.ndarray:
    """Apply the logit lens to every token after every block.

    It takes a head's work per token and block, which is often more than the forward pass itself.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        progress: receives the progress; may raise to stop.
        override: decides in place of the routers, as in `Probe`.

    Returns:
        (L, T) float16, probability of the most likely next token; NaN where the block did not process the token.

    Raises:
        RunStopped: when memory runs out.
    """
    found = np.full((model.config.parsed_structure.num_blocks, len(token_ids)), np.nan, dtype=np.float16)
    head: Any = model.lm_head

    def observe(event: Event) -> None:
        if not isinstance(event, Ran):
            return
        block, positions = event.block, event.after.positions[0].cpu().numpy()
        for start in range(0, len(positions), _CHUNK):
            progress((block + start / len(positions)) / len(found), "lens", block=block, blocks=len(found))
            chunk = slice(start, start + _CHUNK)
            logits = head(model.model.norm(event.after.hidden_states[0, chunk])).float()
            found[block, positions[chunk]] = (logits.amax(-1) - logits.logsumexp(-1)).exp().cpu().numpy()

    ids = ids_on_device(model, token_ids)
    with out_of_memory_reported(len(token_ids), model):
        model.model(ids, use_cache=False, probe=Probe(observe=observe, override=override))
    return found
