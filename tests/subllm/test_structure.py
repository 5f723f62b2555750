import pytest

from subllm import StructureError, parse_structure


def test_levels_are_numbered_from_1_in_order_of_opening():
    structure = parse_structure("T(T(TT)T)(T)T")
    assert [(s.level, s.parent, s.depth, s.start, s.stop) for s in structure.sites] == [
        (1, 0, 1, 1, 8),
        (2, 1, 2, 3, 6),
        (3, 0, 1, 9, 11),
    ]
    assert structure.block_levels == (0, 1, 2, 2, 1, 3, 0)
    assert structure.closing_order == (2, 1, 3)


def test_paper_structure_has_the_published_linear_share():
    structure = parse_structure("TTTTT(TTTTT(TTTT)TTTTT)TTTTT")
    shares = structure.level_shares([0.64, 0.64])
    assert sum(shares[level] for level in structure.block_levels) / structure.num_blocks == pytest.approx(
        (10 + 10 * 0.64 + 4 * 0.64**2) / 24
    )


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
