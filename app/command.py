"""The command `subllm`: one line for each sub-command. What a sub-command needs is imported when it runs."""

import importlib
import sys
from difflib import get_close_matches
from importlib.util import find_spec

COMMANDS = {
    "app": ("app.serve", "open the app in a browser"),
    "trace": ("analysis.commands.trace", "show which tokens each level keeps of a prompt"),
    "edit": ("analysis.commands.edit", "keep, drop or reweight tokens, and see what changes"),
    "why": ("analysis.commands.why", "attribute a score or the next token to the prompt's words"),
    "patch": ("analysis.commands.patch", "put the state of one prompt into the run of another"),
    "generate": ("analysis.commands.generate", "continue a prompt token by token"),
    "compare": ("analysis.commands.compare", "compare two saved traces"),
    "diff": ("analysis.commands.diff", "check whether two saved traces agree, for CI"),
    "report": ("analysis.commands.report", "show saved traces in HTML files that open offline"),
    "rivals": ("analysis.commands.rivals", "compare the learned selection with simple rules"),
    "efficiency": ("analysis.commands.efficiency", "measure time, memory and energy on this machine"),
    "routers": ("analysis.commands.routers", "measure each router against LLaMA, in one table"),
    "predict": ("analysis.commands.predict", "predict time and memory on other hardware"),
    "evaluate": ("analysis.commands.evaluate", "measure perplexity, needles and benchmark tasks"),
    "tradeoff": ("analysis.commands.tradeoff", "measure quality against savings, as a table and a picture"),
    "corpus": ("analysis.commands.corpus", "measure what is dropped over many documents"),
    "corpus-rivals": ("analysis.commands.corpus_rivals", "compare selection rules over documents of a corpus"),
    "answers": ("analysis.commands.answers", "join the answers that learners of the lesson downloaded"),
    "train": ("subllm.train.__main__", "train a model from scratch"),
    "training-step": ("analysis.commands.training_step", "measure training steps on this machine"),
    "convert": ("subllm.convert.__main__", "turn a LLaMA, or a reference checkpoint, into a SUBLLM"),
    "data": ("subllm.text.packed", "train a tokenizer, and pack text for training"),
    "corpus-text": ("subllm.text.corpus", "download text with free licences"),
    "demo": ("subllm.demo", "build the demo checkpoint"),
}

_EXTRAS = {  # the one with all that a command may need; for other commands, it is app
    "evaluate": "train",
    "tradeoff": "train",
    "corpus": "corpus",
    "train": "train",
    "training-step": "train",
    "convert": "train",
    "data": "train",
}
_OPTIONAL = {"captum", "datasets", "gguf", "peft", "plotly", "pyarrow", "ray", "streamlit", "tensorboard"}
_LATE = {"convert": "tensorboard", "train": "tensorboard"}  # transformers would miss it when the training begins


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: subllm COMMAND [OPTIONS]",
            "",
            "See, question and prove what a token-dropping LLM does.",
            "",
            *lines,
            "",
            "subllm COMMAND --help lists the options of a command; subllm --version prints the version.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; its exit code, or 2 if there is none of that name."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())  # noqa: T201
        return 0
    if name == "--version":
        from importlib.metadata import version  # noqa: PLC0415 - slow, and only needed here

        print(f"subllm {version('subllm')}")  # noqa: T201
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"error: there is no command {name!r}.{hint} Run subllm --help for a list.", file=sys.stderr)  # noqa: T201
        return 2
    try:
        late = _LATE.get(name)
        if late and find_spec(late) is None:
            raise ModuleNotFoundError(name=late)
        code: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OPTIONAL:
            raise
        extra = _EXTRAS.get(name, "app")
        install = f"pip install 'subllm[{extra}]'"
        print(f"error: subllm {name} needs {package}; install it with: {install}", file=sys.stderr)  # noqa: T201
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
