"""`subllm corpus`: what kinds of tokens a checkpoint drops over many documents, on one machine or a cluster."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from subllm.command import Arguments, positive
from subllm.runs.signals import stop_on_signal

from ..corpus.run import Engine, options_for, run_corpus
from ..corpus.schema import CorpusRun, Options
from ..errors import RunStopped
from .arguments import add_checkpoint, analysis_command, folder_of

_NAMED = 5  # documents left out that are printed


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm corpus",
        description="Read many documents, write what every level did with every token, and measure what is kept. "
        "The same command continues a run that was stopped or killed.",
    )
    add_checkpoint(parser)
    parser.add_argument("--text", nargs="+", required=True, help="files, folders or names of hub datasets")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    parser.add_argument(
        "--tokens", type=positive, metavar="N", help="stop after this many tokens of text (default: all)"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=Options.window,
        help="tokens read together (default: 2048, or as many as the checkpoint takes)",
    )
    parser.add_argument("--compare", action="store_true", help="let the dense model read the text as well")
    parser.add_argument("--attention", action="store_true", help="measure the attention that every token receives")
    parser.add_argument("--no-text", action="store_true", help="keep no text of the documents, and no examples")
    group = parser.add_argument_group("workers")
    group.add_argument("--engine", choices=[Engine.LOCAL.value, Engine.RAY.value], default=Engine.LOCAL.value)
    group.add_argument("--workers", type=int, default=0, help="how many (default: one for each GPU, or each core)")
    group.add_argument("--threads", type=positive, default=1, help="of each worker on a CPU (default: 1)")
    group.add_argument(
        "--ray-address", default="", help="of a Ray cluster, such as auto (default: one on this machine)"
    )
    group.add_argument("--rows", type=positive, help="rows of a batch (default: 1 on a CPU, 8 on a GPU)")
    group.add_argument("--row-tokens", type=positive, help="tokens of a row (default: 512 on a CPU, 2048 on a GPU)")
    group.add_argument(
        "--shard-characters",
        type=positive,
        default=Options.shard_characters,
        metavar="N",
        help="text of a shard, which a killed worker reads again (default: 1,000,000)",
    )
    chosen = parser.parse_args(arguments)
    suited = options_for(chosen.device, chosen.dtype)
    options = replace(
        suited,
        window=chosen.window,
        rows=suited.rows if chosen.rows is None else chosen.rows,
        row_tokens=suited.row_tokens if chosen.row_tokens is None else chosen.row_tokens,
        shard_characters=chosen.shard_characters,
        tokens=chosen.tokens,
        dense=chosen.compare,
        attention=chosen.attention,
        texts=not chosen.no_text,
        threads=chosen.threads,
    )
    with stop_on_signal() as stopped, tqdm(total=100, disable=None, bar_format="{desc}", file=sys.stderr) as bar:
        stages = set()

        def progress(share: float, stage: str, **values: object) -> None:
            stages.add(stage)
            if stopped() and stage != "summary":
                raise RunStopped("The run was stopped; the same command continues it.")
            bar.set_description_str(_line(share, stage, values))

        try:
            run = run_corpus(
                chosen.text,
                chosen.out,
                folder_of(chosen),
                options,
                engine=chosen.engine,
                workers=chosen.workers,
                device=chosen.device or "",
                ray_address=chosen.ray_address,
                progress=progress,
            )
        except RunStopped as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            raise KeyboardInterrupt from error
    print(report(run, chosen.out, read=bool(stages - {"summary"})))  # noqa: T201
    if not run.complete:
        raise KeyboardInterrupt


def _line(share: float, stage: str, values: dict[str, object]) -> str:
    """Where the run is, on one line."""
    if stage == "documents":
        return f"reading documents: {values.get('done')}"
    if stage == "summary":
        return f"summary: {share:.0%}"
    return (
        f"{share:4.0%}, {values.get('tokens')} tokens, {values.get('rate')} a second, {values.get('left')} left, "
        f"shards: {values.get('done')} of {values.get('shards')}"
    )


def report(run: CorpusRun, out: Path, *, read: bool) -> str:
    """What was read, what was left out, and where the result is.

    Args:
        run: that ended.
        out: its folder.
        read: whether texts were read, and not only found read.
    """
    seconds = max(run.seconds, 1e-9)
    lines = [
        f"{run.checkpoint} · {run.structure} · {run.device} · {run.options.dtype}",
        f"{run.tokens:,} tokens of {run.documents:,} documents in {len(run.shards):,} shards; "
        f"{run.tokens / seconds:,.0f} tokens a second and worker",
    ]
    if run.skipped:
        lines.append(f"left out: {run.skipped:,}")
        lines += [f"  {entry.name}: {entry.reason}" for entry in run.skipped_documents[:_NAMED]]
        lines += [f"  … and {run.skipped - _NAMED:,} more, in corpus.json"] if run.skipped > _NAMED else []
    if not run.complete:
        lines.append(f"Stopped; {out} has what is complete, and the same command goes on")
    elif read:
        lines.append(f"Wrote {out}")
    else:
        lines.append(f"{out} was there already; the texts were not read again (remove it to read them anew)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
