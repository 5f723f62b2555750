"""The page Corpus: a click on a bar opens real examples, in the view of Explore."""

import pytest

from analysis.corpus.aggregate import aggregate
from tests.analysis.corpus.simulated import simulate

from .waiting import settled


@pytest.fixture
def corpus(tab, server, odd_checkpoints):
    """The page with a result of known shares: digits are never kept."""
    folder = odd_checkpoints / "counted"
    if not folder.is_dir():
        simulate(folder, 12, 80)
        aggregate(folder)
    tab.goto(f"{server}/corpus")
    tab.get_by_role("heading", name="Which kinds of tokens are dropped?").wait_for()
    tab.get_by_role("combobox", name="Result").click()
    tab.get_by_role("option", name="counted").click()
    tab.get_by_text("simulated · T(T(T)T)T").wait_for()
    settled(tab)  # until then, the parts of the result before stand below
    return tab


def test_a_bar_opens_examples_whose_token_is_selected_in_text_and_map(corpus, pictures):
    bars = corpus.locator(".barlayer .point path")
    bars.first.wait_for(state="attached")
    settled(corpus)
    bars.first.click(force=True)
    corpus.get_by_text("Examples · kind of token: beginning of a word").wait_for()
    corpus.get_by_text("not reached: dropped at an outer level").wait_for()  # of the selected token, at Level 2
    corpus.set_viewport_size({"width": 1300, "height": 2400})
    corpus.screenshot(path=pictures / "corpus.png", full_page=True)


def test_every_part_is_drawn(corpus):
    for part, said in (
        ("Paths", "Does the token or its context decide?"),
        ("Scores", "AUC is the chance"),
        ("Types that flip", "closest to a coin toss"),
        ("Documents", "Of the documents of which at least 64 tokens reach the level"),
        ("Other rules", "subllm corpus-rivals"),
    ):
        corpus.get_by_role("radio", name=part, exact=True).click()
        corpus.get_by_text(said).first.wait_for()
