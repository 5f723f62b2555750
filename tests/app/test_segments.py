"""Retention by segment on the page: the worst first, by any division, and a row shows its place in the text."""

import pytest

from analysis.quality.segments import SegmentKind, segments
from tests.app.test_explore import page, run  # noqa: F401 - a fixture
from tests.app.test_light_heavy import PAGES, divided, opened  # noqa: F401 - a fixture

TEXT = "The cat sat on the mat. Why? The dog sat on the cat.\nAnd then the mat sat."
CHAT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nThe cat sat.<|im_end|>"


@pytest.mark.parametrize("kind", [kind for kind in SegmentKind if kind != SegmentKind.TURN])
def test_every_division_is_a_table_with_the_worst_segment_first(page, kind):  # noqa: F811
    run(page, TEXT)
    page.segmented_control(key="segment kind").set_value(kind).run()
    assert not page.exception and not page.error
    trace = page.session_state["session"].runs[0].trace
    table, expected = page.dataframe[1].value, segments(trace.prompt, trace.routing, kind)
    assert table["Number of tokens"].sum() == trace.num_tokens
    assert table["Level 1"].tolist() == sorted(expected.share(1).tolist())
    assert (table["Level 2"] <= table["Level 1"]).all()


def test_turns_are_offered_where_there_are_any(page):  # noqa: F811
    run(page, TEXT)
    assert "turn" not in page.segmented_control(key="segment kind").options
    assert any("no turns of a chat" in caption.value for caption in page.caption)
    run(page, CHAT)
    page.segmented_control(key="segment kind").set_value("turn").run()
    assert not page.exception and not page.error
    assert set(page.dataframe[1].value["Segment"]) == {"1 user", "2 assistant"}
    page.session_state["language"] = "zh"
    page.run()
    assert set(page.dataframe[1].value["部分"]) == {"1 用户", "2 助手"}


def test_where_a_heavy_branch_is_chosen_nothing_is_said_to_be_dropped(divided):  # noqa: F811
    page = opened(PAGES["explore"], level="1")  # noqa: F811
    page.segmented_control(key="segment kind").set_value(SegmentKind.WORD).run()
    said = [caption.value.replace("\\", "") for caption in page.caption]
    assert any("the smallest share takes the heavy branch in" in caption for caption in said)
    assert not any("keeps least" in caption for caption in said)


def test_of_a_single_segment_nothing_is_said_to_be_the_least(page):  # noqa: F811
    run(page, "the cat sat on the mat")
    page.segmented_control(key="segment kind").set_value(SegmentKind.SENTENCE).run()
    assert len(page.dataframe[1].value) == 1
    assert not any("keeps least" in caption.value for caption in page.caption)
    page.segmented_control(key="segment kind").set_value(SegmentKind.WORD).run()
    assert any("keeps least" in caption.value for caption in page.caption)


def test_scripts_have_names_in_chinese(page):  # noqa: F811
    run(page, TEXT)
    page.segmented_control(key="segment kind").set_value(SegmentKind.SCRIPT).run()
    page.session_state["language"] = "zh"
    page.run()
    assert not page.exception and "拉丁文" in set(page.dataframe[1].value["部分"])
