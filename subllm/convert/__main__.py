"""Command line of the conversions.

subllm convert reference --config C.json --weights W.safetensors --out DIR
subllm convert llama --model NAME_OR_FOLDER_OR_GGUF --structure TT(TT)TT --text DIR --out DIR
subllm convert chats --model NAME_OR_FOLDER_OR_GGUF --topics wiki.jsonl --out chats.jsonl
subllm convert repeats --text DIR --topics wiki.jsonl --out DIR
"""

import argparse
import json
import os
import random
import sys
import warnings
from pathlib import Path

import torch
from transformers import logging

from .. import atomic
from ..checkpoints.base import from_llama, load_base
from ..checkpoints.device import pick_device, pick_dtype
from ..checkpoints.files import read_json
from ..command import Arguments, command, positive
from ..errors import CheckpointError, DataError, StructureError, SubllmError
from ..runs.config import PRECISIONS
from ..runs.trainer import full_disk_reported
from ..structure import LIGHT_HEAVY_SITES, parse_structure
from ..text.blocks import LONGEST, DrawnBlocks
from ..text.chats import append_chats, count_chats, find_topics, write_chats
from ..text.documents import Documents
from ..text.repeats import DISTANCE, LEAST_DISTANCE, MOST_LISTED, numbers_again, passages_twice
from ..text.sources import is_held_out, read_pieces
from .adapt import adapt
from .card import model_card
from .distillation import AdaptOptions, fast_precision
from .learned import save_learned
from .merging import fit_bypasses
from .reference import from_reference, load_weights
from .scorers import fit_scorers

_FIT_BATCHES = 12
_ROUTERS = ("subllm", "mod", "stride")  # those that can begin close to the LLaMA


def _reference(arguments: argparse.Namespace) -> None:
    try:
        config = read_json(arguments.config)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{arguments.config} is not a readable JSON file: {error}") from error
    model = from_reference(config, load_weights(arguments.weights))
    with atomic.full_disk_reported(arguments.out), atomic.added_whole(arguments.out) as partial:
        model.save_pretrained(partial)
    print(f"Wrote {arguments.out}")  # noqa: T201


def _llama(arguments: argparse.Namespace) -> None:
    options = AdaptOptions(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        length=arguments.length,
        rank=arguments.rank,
        inner_rank=arguments.inner_rank,
        average=arguments.average,
        learning_rate=arguments.learning_rate,
        start_retention=arguments.start_retention,
        evaluate_every=arguments.evaluate_every,
        save_every=arguments.save_every,
        seed=arguments.seed,
        precision=arguments.precision or fast_precision(),
    )
    if not parse_structure(arguments.structure).sites:
        raise StructureError(
            "The structure {text!r} drops no token, so there is nothing to convert. Put brackets around some blocks, "
            "as in 'TT(TT)TT', or write a 'C' in place of a 'T'.",
            text=arguments.structure,
        )
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    dense, tokenizer = load_base(arguments.model, dtype)
    dense.to(pick_device())  # type: ignore[arg-type] # before its weights are shared, so that they are moved once
    ratio = arguments.retention[0] if len(arguments.retention) == 1 else arguments.retention
    router = arguments.router[0] if len(arguments.router) == 1 else arguments.router
    given = {
        "light_heads": arguments.light_heads,
        "light_intermediate_size": arguments.light_units,
        "window": arguments.window,
        "routed": arguments.routed and dict(zip(LIGHT_HEAVY_SITES, arguments.routed, strict=True)),
    }
    model = from_llama(dense, arguments.structure, ratio, router=router, **given)
    documents = Documents(arguments.text)
    blocks = DrawnBlocks(documents, tokenizer, length=options.length, held_out=False, seed=options.seed)
    rest = DrawnBlocks(documents, tokenizer, length=options.length, held_out=True, seed=options.seed)
    held_out = rest.batch(0, arguments.held_out_blocks)
    fitting = [blocks.batch(10**6 + index, options.batch_size) for index in range(_FIT_BATCHES)]
    directions = fit_scorers(model, dense, fitting)
    fit_bypasses(model, fitting)
    folder = arguments.out / "training"
    adapted, evaluations = adapt(model, dense, directions, blocks, held_out, folder, options, arguments.start)
    if int(os.environ.get("RANK", "0")):
        return
    with full_disk_reported(folder), atomic.added_whole(arguments.out) as partial:
        learned = partial / "learned"
        save_learned(adapted, model, learned)
        adapted.merge_and_unload().to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        card = model_card(arguments, model.config, options, evaluations)
        for each in (partial, learned):
            (each / "README.md").write_text(card)
    print(f"Wrote {arguments.out}: {evaluations[-1][1]}")  # noqa: T201


def _chats(arguments: argparse.Namespace) -> None:
    topics = find_topics(piece.text for piece in read_pieces(arguments.topics))
    device = pick_device()
    dense, tokenizer = load_base(arguments.model, getattr(torch, pick_dtype(device)))
    if not tokenizer.chat_template:
        raise CheckpointError(f"{arguments.model} has no chat template, so it cannot write chats.")
    chats = write_chats(
        dense.to(device),  # type: ignore[arg-type]
        tokenizer,
        topics,
        count=arguments.count,
        max_new_tokens=arguments.new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed + count_chats(arguments.out),  # else they would be those that are there
    )
    append_chats(arguments.out, chats)
    print(f"Wrote {arguments.out}")  # noqa: T201


def _repeats(arguments: argparse.Namespace) -> None:
    sources = Documents(arguments.text).sources(held_out=False)
    topics = find_topics(piece.text for piece in read_pieces(arguments.topics) if not is_held_out(piece.text))
    if not sources or len(topics) < MOST_LISTED:
        raise DataError(
            f"There are {sum(map(len, sources)):,} documents to train on and {len(topics):,} topics; at least 1 and "
            f"{MOST_LISTED} are needed."
        )
    if not LEAST_DISTANCE < arguments.distance <= LONGEST:
        raise DataError(
            f"The distance is {arguments.distance:,} characters; it must be more than {LEAST_DISTANCE} and at most "
            f"{LONGEST:,}, which a conversion reads of a document at once."
        )
    rng = random.Random(arguments.seed)
    with full_disk_reported(arguments.out), atomic.added_whole(arguments.out) as partial:
        for name, texts in (  # a conversion reads as much of every file
            ("passages-1", passages_twice(sources, arguments.count, rng, arguments.distance)),
            ("passages-2", passages_twice(sources, arguments.count, rng, arguments.distance)),
            ("numbers", numbers_again(sources, topics, arguments.count, rng, arguments.distance)),
        ):
            lines = (json.dumps({"text": text}) + "\n" for text in texts)
            (partial / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"Wrote {arguments.out}")  # noqa: T201


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind the help, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


@command(SubllmError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="subllm convert", description="Make a SUBLLM of another checkpoint.")
    commands = parser.add_subparsers(dest="command", required=True)
    reference = commands.add_parser("reference", help="from a checkpoint in the reference format (XiaoMi/subllm)")
    reference.add_argument("--config", type=Path, required=True, help="the reference's config.json")
    reference.add_argument("--weights", type=Path, required=True, help=".safetensors, .pt or .bin with its weights")
    reference.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    reference.set_defaults(run=_reference)
    llama = commands.add_parser("llama", help="from any LLaMA", formatter_class=_Defaults)
    llama.add_argument("--model", required=True, help="checkpoint folder, GGUF file or hub name of the LLaMA")
    llama.add_argument(
        "--structure",
        required=True,
        help="such as 'TT(TT)TT', with one T per block of the LLaMA, or C for one with light and heavy branches",
    )
    llama.add_argument(
        "--retention",
        type=float,
        nargs="+",
        default=[0.64],
        help="share of tokens kept: one for all levels, or one for each",
    )
    llama.add_argument(
        "--router",
        choices=_ROUTERS,
        nargs="+",
        default=["subllm"],
        help="what selects or merges the tokens, one for all levels, or one for each; mod is Mixture-of-Depths, stride "
        "merges groups of 1/retention tokens as Zipformer does",
    )
    llama.add_argument(
        "--light-heads", type=positive, help="heads of the light branch of each C; a quarter if left out"
    )
    llama.add_argument("--light-units", type=positive, help="its hidden units; a ninth if left out")
    llama.add_argument("--window", type=positive, help="tokens that a light head sees; 128 if left out")
    llama.add_argument(
        "--routed",
        type=float,
        nargs=3,
        metavar=("QUERIES", "KEYS", "MLP"),
        help="shares of the tokens in the heavy branches of each C; 0.125 0.25 0.125 if left out",
    )
    llama.add_argument("--text", type=Path, nargs="+", required=True, help=".txt or .jsonl files, or folders of them")
    llama.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the state of the run")
    llama.add_argument(
        "--from", dest="start", type=Path, metavar="FOLDER", help="start from what an earlier conversion learned"
    )
    llama.add_argument("--steps", type=positive, default=AdaptOptions.steps, help="optimisation steps")
    llama.add_argument("--batch-size", type=positive, default=AdaptOptions.batch_size, help="sequences per step")
    llama.add_argument("--length", type=int, default=AdaptOptions.length, help="tokens per sequence")
    llama.add_argument("--rank", type=positive, default=AdaptOptions.rank, help="rank of the adapters")
    llama.add_argument(
        "--inner-rank",
        type=int,
        default=AdaptOptions.inner_rank,
        help="rank of those of the blocks inside levels; 0 gives them the same",
    )
    llama.add_argument(
        "--average",
        type=float,
        default=AdaptOptions.average,
        metavar="DECAY",
        help="end with the running average of the weights, which keeps this share of itself in every step, such as "
        "0.98; 0 ends with the last weights",
    )
    llama.add_argument(
        "--learning-rate", type=float, default=AdaptOptions.learning_rate, help="peak learning rate of the adapters"
    )
    llama.add_argument(
        "--start-retention",
        type=float,
        default=AdaptOptions.start_retention,
        help="share of tokens that each level keeps at step 0",
    )
    llama.add_argument("--held-out-blocks", type=positive, default=16, help="sequences for evaluation")
    for option, default, what in (
        ("--evaluate-every", AdaptOptions.evaluate_every, "evaluations"),
        ("--save-every", AdaptOptions.save_every, "checkpoints"),
    ):
        llama.add_argument(option, type=positive, default=default, help=f"steps between {what}")
    llama.add_argument("--seed", type=int, default=AdaptOptions.seed, help="random seed")
    llama.add_argument(
        "--precision", choices=PRECISIONS, help="number format of training (default: the fastest on this machine)"
    )
    llama.set_defaults(run=_llama)
    chats = commands.add_parser("chats", help="have a chat model write chats and stories to train on")
    chats.add_argument("--model", required=True, help="checkpoint folder, GGUF file or hub name of a chat model")
    chats.add_argument("--topics", type=Path, nargs="+", required=True, help="text with the topics to ask about")
    chats.add_argument(
        "--out", type=Path, required=True, help=".jsonl file to append to; each run adds different chats"
    )
    chats.add_argument("--count", type=positive, default=512, help="number of chats (default: 512)")
    chats.add_argument("--new-tokens", type=positive, default=220, help="length of an answer (default: 220)")
    chats.add_argument("--batch-size", type=positive, default=64, help="chats written at once (default: 64)")
    chats.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    chats.set_defaults(run=_chats)
    repeats = commands.add_parser("repeats", help="write text to train on that asks for what was said before")
    repeats.add_argument("--text", type=Path, nargs="+", required=True, help="text whose passages are repeated")
    repeats.add_argument("--topics", type=Path, nargs="+", required=True, help="text with topics, which get numbers")
    repeats.add_argument("--out", type=Path, required=True, help="folder for three .jsonl files")
    repeats.add_argument("--count", type=positive, default=1200, help="texts per file (default: 1200)")
    repeats.add_argument(
        "--distance",
        type=int,
        default=DISTANCE,
        help="limit in characters on passages that come twice and on those between a number and its repetition",
    )
    repeats.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    repeats.set_defaults(run=_repeats)
    chosen = parser.parse_args(arguments)
    chosen.given = sys.argv[1:] if arguments is None else [*arguments]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # between libraries: peft calls what transformers renamed
    chosen.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
