"""What is taken away is what the screen shows: reports, pictures and tables, in a browser without a network."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import expect

from analysis import Trace
from analysis.figures import summary
from analysis.figures.strings import table
from analysis.report.html import report
from analysis.report.site import Page, write_site
from tests.analysis.report.test_html import HOSTILE, hostile_trace
from tests.analysis.trace.test_trace import make_trace

from .test_explore import read_tokens, run, shown, tokens


@pytest.fixture
def offline(browser):
    """Opens a file without a network; a fault of a script, or anything that the policy refuses, fails the test."""
    contexts, faults = [], []

    def open_file(path, ready=True, **options):
        context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("request", lambda request: request.url.startswith("file:") or faults.append(request.url))
        page.goto(path.as_uri())
        if ready:
            page.locator("html[data-ready]").wait_for(state="attached")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert faults == []


def written(folder, *traces, **options):
    path = folder / "report.html"
    path.write_text(report(traces, **options), encoding="utf-8")
    return path


def numbers(trace, mask):
    """Tokens as a browser counts: characters beyond U+FFFF are two."""
    text = trace.prompt.text
    places = [(int(trace.prompt.starts[n]), int(trace.prompt.ends[n])) for n in np.flatnonzero(mask)]
    return {(len(text[:start].encode("utf-16-le")) // 2, text[start:end]) for start, end in places}


def said(page):
    return page.locator("main").inner_text()


def test_a_report_shows_the_kept_tokens_of_every_level_and_the_tables_in_both_languages(offline, tmp_path, pictures):
    trace = replace(make_trace(tokens=60, seed=3), note="what I saw")
    page = offline(written(tmp_path, trace))
    for language in ("en", "zh"):
        page.get_by_role("button", name={"en": "English", "zh": "中文"}[language]).click()
        words = table(language)
        expect(page).to_have_title(words["report_title"].format(name=trace.provenance.checkpoint))
        for level in trace.routing.levels:
            page.get_by_role("radio").nth(level - 1).click()
            found, row = read_tokens(page), level - 1
            assert found["kept"] == numbers(trace, trace.routing.kept[row])
            assert found["dropped"] == numbers(trace, trace.routing.dropped[row])
            assert found["absent"] == numbers(trace, ~trace.routing.reached[row])
        for rows in (summary.level_table(trace, words), summary.cost_table(trace, words)):
            cells = (
                page.locator("table:visible").filter(has_text=rows.columns[-1]).locator("td.number").all_inner_texts()
            )
            assert cells == [value for _, row in rows.iterrows() for value in row]
        assert "what I saw" in said(page) and words["report_again"] in said(page)
        assert page.locator("[lang]:visible").evaluate_all("all => [...new Set(all.map((each) => each.lang))]") != []
    page.screenshot(path=pictures / "report.png", full_page=True)


def test_whatever_a_prompt_says_stays_text_in_a_report_and_in_its_pictures(offline, tmp_path):
    page = offline(written(tmp_path, hostile_trace(), note=HOSTILE), color_scheme="dark")
    assert page.locator(".routing .body").evaluate("body => body.textContent") == HOSTILE
    assert page.locator("img").count() == page.locator("main script").count() - 1 == 0
    assert said(page).count("<script>bad()</script>") > 3
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", background))) < 200, "dark"
    with page.expect_download() as download:
        page.locator(".zoom .svg").click()
    page = offline(download.value.path().rename(tmp_path / "routing.svg"), ready=False)
    drawn = page.evaluate("[...document.querySelectorAll('text')].map((each) => each.textContent).join('')")
    assert HOSTILE[:40].replace(" ", "") in drawn.replace(" ", "")
    assert page.evaluate("document.querySelectorAll('script, image').length") == 0


def test_a_picture_has_the_cells_of_the_map_and_says_when_it_would_be_too_large(offline, tmp_path):
    trace = make_trace(tokens=60, seed=3)
    page = offline(written(tmp_path, trace))
    with page.expect_download() as download:
        page.locator(".zoom .png").click()
    picture = download.value.path().read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width > 2 * page.locator(".routing .cells").bounding_box()["width"] and height > 100
    with page.expect_download() as download:
        page.locator(".zoom .svg").click()
    drawn = download.value.path().read_text(encoding="utf-8")
    assert drawn.count("line-through") == 0 and f"{trace.routing.kept[0].sum()} of 60 kept" in drawn
    rng = np.random.default_rng(0)
    large = make_trace(tokens=4000, seed=3)
    large = replace(large, blocks=replace(large.blocks, change=rng.random((5, 4000)).astype(np.float16)))
    page = offline(written(tmp_path, large))
    page.locator(".zoom .svg").click()
    expect(page.locator(".token")).to_contain_text("Zoom in on the map")


def test_runs_side_by_side_keep_their_own_colours_and_an_index_leads_to_them(offline, tmp_path):
    first, second = make_trace(tokens=30, seed=1), make_trace("T(T)T", tokens=40, seed=2)
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for file, trace in zip(files, (first, second), strict=True):
        trace.save(file)
    write_site([Page("both", files, [first, second]), Page("one", files[:1], [first])], tmp_path / "site")
    page = offline(tmp_path / "site" / "index.html")
    assert page.get_by_role("row").count() == 4
    page.get_by_role("link", name="both", exact=True).click()
    page.locator("html[data-ready]").wait_for(state="attached")
    found = read_tokens(page)
    assert found["kept"] == numbers(first, first.routing.kept[0]) | numbers(second, second.routing.kept[0])
    expect(page.locator("main")).to_contain_text("Tokens in common")


def test_what_is_taken_from_the_page_is_what_it_shows(page, offline, tmp_path):
    text = "the cat sat on the mat and <b>then</b> the dog"
    run(page, text)
    shown(page, text)
    on_screen = read_tokens(page)
    metrics = page.locator("[data-testid=stMetricValue]").all_inner_texts()

    def taken(name):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        return download.value.path().rename(tmp_path / download.value.suggested_filename)

    report_ = offline(taken("Report (HTML)"))
    assert read_tokens(report_) == on_screen
    assert report_.locator(".figures:visible dd:first-of-type").all_inner_texts() == metrics
    trace = Trace.load(taken("Trace (.npz)"))
    assert tokens(trace, trace.routing.kept[0]) == on_screen["kept"]
    with (taken("Tokens (CSV)")).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(io.StringIO(file.read(), newline="")))
    assert {(int(row["start"]), json.loads(row["text"])) for row in rows if row["kept_1"] == "True"} == on_screen[
        "kept"
    ]
    with page.expect_download() as download:
        page.locator(".zoom .png").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_notebook_shows_a_run_in_both_themes(offline, tmp_path, pictures, scheme):
    trace = make_trace(tokens=30, seed=1)
    path = tmp_path / "notebook.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{trace._repr_mimebundle_()["text/html"]}', encoding="utf-8")
    page = offline(path, ready=False, color_scheme=scheme)
    page.frame_locator("iframe").locator("html[data-ready]").wait_for(state="attached")
    frame = page.frames[1]
    assert read_tokens(frame)["kept"] == numbers(trace, trace.routing.kept[0])
    background = frame.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    page.screenshot(path=pictures / f"notebook-{scheme}.png")
