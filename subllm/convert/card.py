"""The model card of a converted checkpoint: what was done, what came out, and the command that repeats it."""

import argparse
import shlex
import sys

from .distillation import AdaptOptions
from .evaluate import Evaluation


def model_card(arguments: argparse.Namespace, options: AdaptOptions, evaluations: list[tuple[int, Evaluation]]) -> str:
    """Markdown text of the card.

    Args:
        arguments: of the command line.
        options: of the training.
        evaluations: of the run, with their steps, in order.
    """
    rows = "\n".join(
        f"| {step} | {step * options.batch_size * options.length:,} | {found.perplexity:.2f} | {found.divergence:.3f} "
        f"| {found.agreement:.3f} | {', '.join(f'{share:.3f}' for share in found.retention)} |"
        for step, found in evaluations
    )
    result = evaluations[-1][1]
    command = shlex.join(["python", "-m", "subllm.convert", *sys.argv[1:]])
    return f"""# A SUBLLM converted from {arguments.model}

Structure `{arguments.structure}`, nominal retention {arguments.retention}.

On held-out documents of the training text ({result.tokens:,} tokens): {result}.

| step | tokens trained on | perplexity | KL to dense | top-1 agreement | retention per level |
| --- | --- | --- | --- | --- | --- |
{rows}

The dense model's perplexity on the same text is {result.dense_perplexity:.2f}.

Trained: rank-{options.rank} adapters, bypass scales, scorers; {options.steps} steps of
{options.batch_size} × {options.length} tokens, seed {options.seed}. Repeat with

```
{command}
```
"""
