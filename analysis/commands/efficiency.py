"""`subllm efficiency`: time, memory and energy of a checkpoint and of a dense model, measured in turn.

subllm efficiency --lengths 512 2048 --batches 1 4 --retentions 0.5 0.8 --out DIR
"""

import argparse
import sys
from pathlib import Path

from torch import Tensor

from subllm import Probe, SubllmCache, SubllmForCausalLM
from subllm.command import Arguments, positive

from ..cost.benchmark_text import NEW_TOKENS, prompt_of
from ..cost.comparison import Baseline, baseline, compare
from ..cost.sweep import LENGTHS, facts_of, load_rows, report, save, settings_of
from ..errors import AnalysisError
from ..trace.prefill import prefill
from .arguments import add_checkpoint, add_rule, analysis_command, check_folder, load, rule_of


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm efficiency", description="Measure a checkpoint against a dense model on this machine."
    )
    add_checkpoint(parser)
    parser.add_argument("--lengths", type=positive, nargs="+", default=list(LENGTHS), help="prompt lengths, in tokens")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1], help="prompts read together (default: 1)")
    parser.add_argument(
        "--retentions",
        type=float,
        nargs="+",
        default=[0.0],
        help="share that each level must keep (default: its own)",
    )
    parser.add_argument("--baseline", default="llama", help=f"{', '.join(Baseline)}, or the folder of a LLaMA")
    parser.add_argument(
        "--repeats", type=positive, default=5, help="timed passes of each model per setting (default: 5)"
    )
    parser.add_argument("--overheads", action="store_true", help="also measure what recording costs")
    parser.add_argument("--out", type=Path, help="folder for the table and the Parquet file")
    parser.add_argument("--resume", action="store_true", help="keep the settings that are in --out already")
    add_rule(parser)
    chosen = parser.parse_args(arguments)
    rule = rule_of(chosen)
    if rule is not None and any(chosen.retentions):
        raise AnalysisError("A rule says what every level keeps; leave out --rule or --retentions.")
    settings = settings_of(chosen.lengths, chosen.batches, chosen.retentions)
    check_folder(chosen.out)
    checkpoint = load(chosen)
    prompts = {setting: prompt_of(checkpoint, setting.tokens, setting.batch) for setting in settings}
    facts = facts_of(checkpoint, chosen.baseline, chosen.repeats)
    if rule is not None:
        facts["rule"] = f"{rule.name} ({'; '.join(map(str, rule.edits))})"
    name = f"{checkpoint.model.device.type}-{facts['dtype']}" + (f"-{chosen.rule.stem}" if chosen.rule else "")
    known = load_rows(chosen.out / f"{name}.parquet", facts) if chosen.out and chosen.resume else []
    rows = {row.setting: row for row in known}
    dense = baseline(checkpoint, chosen.baseline)
    overheads = {"trace": _trace} if chosen.overheads else None
    for setting, ids in prompts.items():
        if setting in rows:
            continue
        rows[setting] = compare(
            checkpoint.model,
            dense,
            ids,
            chosen.repeats,
            retention=setting.retention,
            override=None if rule is None else rule.override(checkpoint, ids[:, :-NEW_TOKENS]),
            overheads=overheads,
        )
        print(f"{setting.words} tokens: {rows[setting].ratio('dense', 'subllm'):.2f}×", file=sys.stderr)  # noqa: T201
        if chosen.out:
            save(chosen.out, name, facts, [rows[each] for each in sorted(rows)])
    print(report(facts, [rows[each] for each in sorted(rows)]))  # noqa: T201


def _trace(model: SubllmForCausalLM, ids: Tensor, cache: SubllmCache, probe: Probe) -> object:
    return prefill(model, ids, cache=cache, probe=probe)


if __name__ == "__main__":
    sys.exit(main())
