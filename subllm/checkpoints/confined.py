"""What a checkpoint's tokenizer and chat template do, tried in a process with little memory and little time.

A chat template is a program, and a tokenizer may be one in effect: its regular expressions can take time that grows
exponentially with the text, and its normalizer can multiply the text. In this process nothing could stop them.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("confined_child.py")
_SECONDS, _MEGABYTES = 20.0, 3072  # of a tokenizer; a large one takes 2 s and 1 GB
_SECONDS_OF_TEMPLATE, _MEGABYTES_OF_TEMPLATE = 5.0, 512
_few = threading.BoundedSemaphore(2)  # processes at a time, for all visitors


class ConfinedError(Exception):
    """What a confined piece of a checkpoint did wrong: its own error, too much time, or too much memory.

    Its message is a value of the `SubllmError` that a caller makes of it.
    """


def try_tokenizer(texts: list[str], *, path: Path | None = None, content: str = "") -> bool:
    """Read a tokenizer, and texts with it.

    Args:
        texts: to be tokenised.
        path: of a tokenizer.json.
        content: of a tokenizer.json, in place of its path.

    Returns:
        Whether it is certain to read all other texts in time, too.

    Raises:
        ConfinedError: if it fails, or takes more time or memory than tokenizers do.
    """
    source = {"content": content} if path is None else {"path": str(path)}
    answer = _ask({"task": "tokenizer", "texts": texts, **source}, _SECONDS, _MEGABYTES)
    return bool(answer["known"])


def render(template: str, values: dict[str, Any], characters: int) -> str:
    """Put values into a chat template.

    Args:
        template: in Jinja's language.
        values: of its variables; anything that JSON can hold.
        characters: most that the result may have.

    Raises:
        ConfinedError: if it fails, writes more than that, or takes more time or memory than templates do.
    """
    request = {"task": "template", "template": template, "values": values, "characters": characters}
    answer = _ask(request, _SECONDS_OF_TEMPLATE, _MEGABYTES_OF_TEMPLATE)
    if "text" not in answer:
        raise ConfinedError(f"it wrote {answer['characters']:,} characters, and {characters:,} are allowed")
    return str(answer["text"])


def _ask(request: dict[str, Any], seconds: float, megabytes: int) -> dict[str, Any]:
    # without `site` the child starts twice as fast; it finds libraries where this process does
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
    }
    command = [sys.executable, "-S", "-P", str(_CHILD)]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with _few, subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=none) as child:
        try:
            written, _ = child.communicate(
                json.dumps(request | {"megabytes": megabytes, "seconds": seconds}).encode(), seconds
            )
        except subprocess.TimeoutExpired as error:
            raise ConfinedError(f"it took more than {seconds:.0f} seconds") from error
        finally:
            child.kill()
    try:
        answer = json.loads(written)
    except ValueError as error:  # the process ended: memory that a library could not get
        raise ConfinedError(f"it took more than {megabytes:,} MB of memory, or crashed") from error
    if "error" in answer:
        raise ConfinedError(answer["error"])
    return dict(answer)
