"""Checkpoints of other projects that route tokens, which are recognised and refused with what differs.

Such a model computes something else than any router here, and most of them choose tokens by ranks that depend on later
tokens: a prefix would give other outputs, a cache another text, and no threshold could be shown. Reading them as they
are would need a rule of its own for each, so the message says what to do instead.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import place_of, printable


@dataclass(frozen=True)
class _Foreign:
    """A format of another project.

    Attributes:
        maker: what it is called.
        fits: whether the fields of a config.json are of this format.
        differs: what it computes; translated in `assets/messages.json`, like the maker.
    """

    maker: str
    fits: Callable[[Mapping[str, Any]], bool]
    differs: str


def _architectures(fields: Mapping[str, Any]) -> list[str]:
    names = fields.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


_LLAMA_FACTORY = _Foreign(
    "LLaMA-Factory (Mixture-of-Depths by astramind)",
    lambda fields: any(name.endswith("MoDForCausalLM") for name in _architectures(fields)),
    "every other block replaces a token x with r·block(x), with no way around the block; it keeps one token fewer than "
    "12.5% of the text, by ranks that depend on later tokens; and a token that comes alone is always processed, so "
    "that writing skips nothing",
)
_FORMATS = (
    _LLAMA_FACTORY,
    _Foreign(
        "joey00072 (Mixture-of-Depths)",
        lambda fields: {"capacity_factor", "weight_tying", "d_model", "hidden_dim"} <= fields.keys(),
        "every other block adds block(x) to x once more, weighted by a softmax over the tokens that it keeps, which "
        "depend on later tokens",
    ),
    _Foreign(
        "p-MoD",
        lambda fields: fields.get("model_type") == "pmod_llava_llama",
        "it routes the tokens of images in a LLaVA, and images are not read here",
    ),
    _Foreign(
        "γ-MoD",
        lambda fields: fields.get("model_type") == "mod_llava_llama",
        "it routes the tokens of images in a LLaVA, and images are not read here",
    ),
)
_ROUTER_NAMES = (".router.", ".mod_router.", ".aux_router.", ".routing_token")
_NAMED = 3


def refuse_foreign(folder: Path, fields: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose config.json is that of another project with token routing.

    Args:
        folder: of the checkpoint.
        fields: of its config.json.

    Raises:
        CheckpointError: if it is.
    """
    for format_ in _FORMATS:
        if "structure" not in fields and format_.fits(fields):
            raise _refused(folder, format_)


def refuse_foreign_tensors(folder: Path, names: Iterable[str]) -> None:
    """Refuse weights with routers that no model here has; their config.json may call them a plain LLaMA.

    Args:
        folder: of the checkpoint.
        names: of tensors that the model does not have.

    Raises:
        CheckpointError: if there is a router among them.
    """
    routers = sorted(name for name in names if any(part in f".{name}" for part in _ROUTER_NAMES))
    if any(".router.weight_predictor." in name for name in routers):
        raise _refused(folder, _LLAMA_FACTORY)
    if routers:
        raise CheckpointError(
            "{folder} has routers that its config.json does not name ({names}; {count:,} tensors in all): another "
            "project made it, whose rule is not known here. Convert the LLaMA that it was made from, with: subllm "
            "convert llama --router mod",
            folder=place_of(folder),
            names=", ".join(map(printable, routers[:_NAMED])),
            count=len(routers),
        )


def _refused(folder: Path, format_: _Foreign) -> CheckpointError:
    return CheckpointError(
        "{folder} is a checkpoint of {maker}, which computes something else than any router here: {differs}. Read "
        "another way, it would write something else, so it is not loaded. Convert the LLaMA that it was made from, "
        "with: subllm convert llama --router mod",
        folder=place_of(folder),
        maker=format_.maker,
        differs=format_.differs,
    )
