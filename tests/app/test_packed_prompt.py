"""Long prompts in links: what is packed is unpacked, and what strangers put there is read within bounds."""

import base64
import contextlib
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError
from app.packed_prompt import LONGEST, pack, unpack

LETTERS = st.characters(exclude_categories=["Cs"])


def fragment(data):
    return "p=" + base64.urlsafe_b64encode(data).decode().rstrip("=")


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@given(st.text(LETTERS, max_size=3000))
def test_a_prompt_comes_out_of_a_link_as_it_went_in(text):
    packed = pack(text)
    if packed is not None:
        assert unpack(packed) == text
        assert packed.isascii() and not {*packed} & {*"#&+/ %"}
        assert len(packed) <= LONGEST


def test_prose_of_some_pages_fits_and_what_does_not_fit_has_no_link():
    text = Path(__file__).read_text(encoding="utf-8")
    assert unpack(pack(text)) == text
    assert pack("".join(chr(0x4E00 + 7919 * n % 20000) for n in range(5000))) is None
    assert pack("x" * (1 << 20)) is None


@pytest.mark.parametrize("lost", ["", "p", "q=abc", "section"])
def test_a_link_without_its_prompt_says_so(lost):
    with pytest.raises(AnalysisError, match="has lost its prompt"):
        unpack(lost)


@pytest.mark.parametrize(
    "bad",
    [
        "p=",
        "p=%%%",
        "p=äöü",
        "p=A",
        "p=" + "A" * LONGEST,
        fragment(b"no stream"),
        fragment(deflated(b"the cat sat")[:-3]),
        fragment(deflated(b"the cat sat") + b"more"),
        fragment(deflated(b"\xff\xfe")),
        fragment(deflated(bytes(1 << 19))),  # unpacks to more than is read
    ],
)
def test_what_cannot_be_read_is_refused(bad):
    with pytest.raises(AnalysisError, match="cannot be read"):
        unpack(bad)


@given(st.one_of(st.text(), st.text().map("p=".__add__), st.binary(max_size=300).map(fragment)))
def test_anything_is_read_or_refused(text):
    with contextlib.suppress(AnalysisError):
        assert isinstance(unpack(text), str)
