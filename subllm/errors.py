"""The errors that a user of the package can cause.

    SubllmError
    ├── StructureError      a structure string that cannot be read
    ├── ConfigurationError  a configuration that contradicts itself
    ├── CheckpointError     a checkpoint that is missing, incomplete, unsafe or of another shape
    ├── DeviceError         a device that is not there or does not work
    │   └── DeviceFullError
    ├── PromptError         a prompt that the model cannot take
    │   └── PromptTooLongError
    ├── DataError           text that cannot be read or is too short
    ├── DiskFullError       a disk without room for what is written
    └── TrainingError       a training or conversion that cannot start or resume
        └── TrainingStopped

Each message says what was found, what is allowed and what to do.
"""


class SubllmError(Exception):
    """Base class of the errors that a user of the package can cause.

    The message and its values are kept apart, so that the message can be translated (`assets/messages.json`).

    Args:
        message: text, with `str.format` placeholders if there are values.
        **values: values of the placeholders.
    """

    def __init__(self, message: str = "", /, **values: object) -> None:
        super().__init__(message.format(**values) if values else message)
        self.message, self.values = message, values


class StructureError(SubllmError, ValueError):
    """A structure string that cannot be read."""


class ConfigurationError(SubllmError, ValueError):
    """A configuration whose parts contradict each other."""


class CheckpointError(SubllmError, ValueError):
    """A checkpoint that is missing, incomplete, unsafe or of another shape."""


class DeviceError(SubllmError, RuntimeError):
    """A device that is not there or does not work."""


class DeviceFullError(DeviceError):
    """A device whose free memory does not suffice for a model."""


class PromptError(SubllmError, ValueError):
    """A prompt that the model cannot take."""


class PromptTooLongError(PromptError):
    """A prompt with more tokens than fit.

    Args:
        tokens: number of tokens; 0 if the prompt is so long that they were not counted.
        limit: largest number of tokens allowed.
        characters: number of characters, if the tokens were not counted.
    """

    def __init__(self, tokens: int, limit: int, characters: int = 0) -> None:
        if characters:
            super().__init__(
                "The prompt has {characters:,} characters; at most {limit:,} tokens fit here. Shorten it, or run only "
                "the first {limit:,} tokens.",
                characters=characters,
                limit=limit,
            )
        else:
            super().__init__(
                "The prompt has {tokens:,} tokens; at most {limit:,} fit here. Shorten it, or run only the first "
                "{limit:,} tokens.",
                tokens=tokens,
                limit=limit,
            )
        self.tokens, self.limit = tokens, limit


class DataError(SubllmError, ValueError):
    """Text that cannot be read or is too short."""


class DiskFullError(SubllmError):
    """A disk without room for what is written."""


class TrainingError(SubllmError, RuntimeError):
    """A training or conversion that cannot start or continue."""


class TrainingStopped(TrainingError):  # noqa: N818 - the run ended in good order
    """A run that a signal stopped.

    Args:
        step: number of completed steps.
    """

    def __init__(self, step: int) -> None:
        super().__init__("Stopped at step {step:,}; run the same command again to resume.", step=step)


def shortened(text: str, most: int = 80) -> str:
    """As much of a text as a message has room for."""
    return text if len(text) <= most else f"{text[:most]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
