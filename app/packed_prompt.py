"""Long prompts in links: compressed, in the part after the #, which browsers keep to themselves.

A prompt stands there as `p=`, and base64url without padding of its UTF-8 in a raw deflate stream. A server never sees
this part, so no server refuses it for its length; the page asks the browser for it.
"""

import base64
import binascii
import zlib

from analysis import AnalysisError
from subllm.errors import first_line

LONGEST = 8192  # characters of the part after the #
_MOST = 1 << 18  # bytes of a prompt; a stream that unpacks to more is not unpacked
_NAME = "p="


def pack(text: str) -> str | None:
    """The part of a link after the # that carries a prompt; None if it would be too long.

    Args:
        text: of a prompt.
    """
    data = text.encode()
    if len(data) > _MOST:
        return None
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = base64.urlsafe_b64encode(packer.compress(data) + packer.flush()).decode().rstrip("=")
    return _NAME + packed if len(packed) <= LONGEST - len(_NAME) else None


def unpack(fragment: str) -> str:
    """The prompt that a link carries.

    Args:
        fragment: what stands after the #.

    Raises:
        AnalysisError: if there is no prompt, or it cannot be read.
    """
    if not fragment.startswith(_NAME):
        raise AnalysisError(
            "The link has lost its prompt, which stands at its end, after the #. Copy the whole link, or ask for the "
            "file of the run."
        )
    packed = fragment.removeprefix(_NAME)
    try:
        if len(fragment) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST:,} characters")
        if not packed.isascii():
            raise ValueError("it has characters that no link has")
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        text = unpacker.decompress(data, _MOST)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"it is cut off, or longer than {_MOST:,} bytes")
        return text.decode()
    except (ValueError, binascii.Error, zlib.error) as error:
        raise AnalysisError(
            "The prompt in the link cannot be read ({words}). Copy the whole link, or ask for the file of the run.",
            words=first_line(error),
        ) from error
