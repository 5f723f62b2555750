"""The model card of a converted checkpoint: the hub's metadata, what came out, and the command that repeats it."""

import argparse
import json
import re
import shlex
from pathlib import Path

from ..configuration import SubllmConfig
from .distillation import AdaptOptions, inner_ranks
from .fidelity import Fidelity

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(
    arguments: argparse.Namespace, config: SubllmConfig, options: AdaptOptions, evaluations: list[tuple[int, Fidelity]]
) -> str:
    """Markdown text of the card.

    Args:
        arguments: parsed command line of `subllm convert llama`; `given` holds its arguments as they were given.
        config: configuration of what came out.
        options: settings of the training.
        evaluations: steps and evaluations of the run, in order.
    """
    rows = "\n".join(
        f"| {step} | {step * options.batch_size * options.length:,} | {found.perplexity:.2f} | {found.divergence:.3f} "
        f"| {found.agreement:.3f} | {_shares(found.retention)} |"
        for step, found in evaluations
    )
    result = evaluations[-1][1]
    command = shlex.join(["subllm", "convert", *arguments.given])
    averaged = f"\nThe last row is of the running average of the weights ({options.average:g} per step).\n"
    return f"""{_metadata(str(arguments.model))}
# A SUBLLM converted from {arguments.model}

| | |
| --- | --- |
| structure | `{config.structure}` |
| nominal retention | {_each([f"{ratio:g}" for ratio in config.retention_ratios])} |
| router | {_each(config.routers)} |
| trained | rank-{_ranks(options, config)} adapters{_trained(config)} |
| budget | {options.steps} steps of {options.batch_size} × {options.length} tokens, seed {options.seed} |

On held-out documents of the training text ({result.tokens:,} tokens):

| | |
| --- | ---: |
| perplexity | {result.perplexity:.2f} |
| perplexity of the dense model | {result.dense_perplexity:.2f} |
| perplexity over dense | {result.perplexity_ratio:.3f} |
| KL divergence from the dense model, nats | {result.divergence:.3f} |
| most likely next token the same | {result.agreement:.3f} |
| retention per level | {_shares(result.retention)} |

During training:

| step | tokens trained on | perplexity | KL to dense | top-1 agreement | retention per level |
| --- | --- | --- | --- | --- | --- |
{rows}
{averaged if options.average else ""}
This was measured before the weights were rounded to bfloat16; `subllm evaluate` measures what was saved.

Repeat with

```
{command}
```
"""


def _metadata(base: str) -> str:
    """YAML that the hub reads. The licence is the base's, whatever that is; a base is named if it is on the hub."""
    on_hub = _HUB_NAME.fullmatch(base) and not Path(base).exists()
    lines = [
        "license: other",
        "license_name: license-of-the-base-model",
        *([f"base_model: {json.dumps(base)}"] if on_hub else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "  - subllm",
        "  - token-dropping",
    ]
    return "\n".join(["---", *lines, "---", ""])


def _ranks(options: AdaptOptions, config: SubllmConfig) -> str:
    other = inner_ranks(config.parsed_structure, options.rank, options.inner_rank).values()
    return f"{options.rank}" + "".join(f" (inside levels {rank})" for rank in other)


def _trained(config: SubllmConfig) -> str:
    """What was trained besides the adapters."""
    kinds = config.router_classes
    parts = {
        "bypass scales": any(kind.has_bypass for kind in kinds),
        "scorers": any(kind.scores_tokens for kind in kinds),
        "weights of merged tokens": any(kind.merges_tokens for kind in kinds),
    }
    return "".join(f", {part}" for part, trained in parts.items() if trained)


def _each(levels: list[str]) -> str:
    """What holds for each level, in order; said once where all agree."""
    return ", ".join(levels if len(set(levels)) > 1 else levels[:1]) or "none"


def _shares(retention: list[float]) -> str:
    return ", ".join(f"{share:.3f}" for share in retention)
