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


def test_a_light_heavy_block_has_three_sites_beside_the_brackets():
    structure = parse_structure("TC(C)T")
    assert [(s.level, s.parent, s.depth, s.start, s.stop, s.kind, s.block) for s in structure.sites] == [
        (1, 0, 1, 1, 1, "query", 1),
        (2, 0, 1, 1, 1, "key_value", 1),
        (3, 0, 1, 1, 1, "mlp", 1),
        (4, 0, 1, 2, 4, "level", -1),
        (5, 4, 2, 3, 3, "query", 2),
        (6, 4, 2, 3, 3, "key_value", 2),
        (7, 4, 2, 3, 3, "mlp", 2),
    ]
    assert structure.block_levels == (0, 0, 4, 0) and structure.num_blocks == 4
    assert structure.brackets == {4: 0} and list(structure.light_heavy) == [1, 2]
    assert structure.runs == {0: range(1), 3: range(3, 4)}, "only LLaMA blocks are captured in runs"


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
