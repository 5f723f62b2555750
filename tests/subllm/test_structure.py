import pytest

from subllm import StructureError, parse_structure


def test_spans_are_numbered_in_order_of_opening():
    structure = parse_structure("T(T(TT)T)(T)T")
    assert [(s.parent, s.depth, s.start, s.stop) for s in structure.spans] == [
        (None, 1, 1, 8),
        (0, 2, 3, 6),
        (None, 1, 9, 11),
    ]
    assert structure.block_spans == (None, 0, 1, 1, 0, 2, None)
    assert structure.closing_order == (1, 0, 2)


def test_paper_structure_has_the_published_linear_share():
    structure = parse_structure("TTTTT(TTTTT(TTTT)TTTTT)TTTTT")
    shares = structure.block_shares([0.64, 0.64])
    assert sum(shares) / structure.num_blocks == pytest.approx((10 + 10 * 0.64 + 4 * 0.64**2) / 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "non-empty"),
        ("()", "no block"),
        ("T(T", "position 1 that is never closed"),
        ("TT)T", "position 2"),
        ("TxT", "'x' at position 1"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(StructureError, match=message.replace("(", r"\(").replace(")", r"\)")):
        parse_structure(text)
