"""Long sessions: whatever was run, chosen and edited before, the page shows the run that it says it shows."""

import shlex
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import expect
from streamlit.string_util import clean_text

from analysis.debug.edits import Edit
from analysis.debug.intervene import intervene, run_unedited
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm.checkpoints.load import load_checkpoint

from .test_debug import TEXT
from .test_explore import read_tokens, tokens
from .waiting import settled

PROMPTS = [
    "The old lighthouse keeper had not spoken to anyone for eleven days when the boat appeared.",
    "def search(items, target):\n    low, high = 0, len(items) - 1\n    while low <= high: pass\n",
    "A train travels 180 km in 2.5 hours. What is its average speed?",
    '{"order": 10482, "customer": {"name": "Ada", "city": "London"}, "paid": true}',
    "The cat sat on the mat. The cat sat on the mat. The dog sat on the mat. The cat sat on the",
    "清晨的码头很安静，老渔夫把网铺在木板上。",
    "The old lighthouse keeper had not spoken to anyone for eleven days when the boat left again.",
    "Good morning, доброе утро, 🌅 and naïve café",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse",
    "the cat sat on the mat and then the dog sat on the cat",
]
_MAP = """([blocks, tokens]) => {
    const parts = [...document.querySelectorAll('[data-testid=stBidiComponentIsolated]')];
    const cells = parts.map((part) => part.shadowRoot.querySelector('.cells')).find(Boolean);
    const ratio = devicePixelRatio;
    const width = cells.width;
    const { data } = cells.getContext('2d').getImageData(0, 0, width, cells.height);
    return [...Array(blocks).keys()].map((block) => [...Array(tokens).keys()].map((token) => {
        const at = 4 * (Math.floor((9 * block + 4) * ratio) * width + Math.floor(((token + 0.5) * width) / tokens));
        return data[at + 2] > data[at];  // blue: processed there; orange: dropped
    }));
}"""


class Model:
    """The tiny checkpoint without the app: what the page has to show."""

    def __init__(self, folder):
        self.checkpoint = load_checkpoint(folder, "cpu", "float32")
        self.known = {}

    def trace(self, text, chat=False):
        """Of a prompt, with a continuation."""
        if (text, chat) not in self.known:
            prompt = read_prompt(text, self.checkpoint.tokenizer, 512, chat=chat)
            self.known[text, chat] = record_trace(self.checkpoint, prompt, RunOptions(40, False))
        return self.known[text, chat]

    def edited(self, text, edits, chat=False):
        """The trace of the prompt with edits in force."""
        unedited = run_unedited(self.checkpoint, self.trace(text, chat).prompt)
        return intervene(unedited, [Edit.parse(edit) for edit in edits]).trace


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return Model(tiny_checkpoint)


def wait_for_address(page, **fields):
    """Wait until the address says all of this."""
    page.wait_for_url(
        lambda url: fields.items() <= dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)).items()
    )


def check_view(page, trace, shown=1):
    """Text, colours, levels and map are those of a trace, at the level that is shown."""
    view, routing = page.locator(".routing .text:visible"), trace.routing
    expect(view).to_have_js_property("textContent", trace.prompt.text)
    buttons = page.get_by_role("radiogroup", name="Level to show").get_by_role("radio")
    for level in routing.levels:
        kept, reached = (int(each[level - 1].sum()) for each in (routing.kept, routing.reached))
        expect(buttons.nth(level - 1)).to_contain_text(f"{kept} of {reached} kept")
    if trace.prompt.text.isascii():  # elsewhere several tokens share a character
        found = read_tokens(page)
        assert found["kept"] == tokens(trace, routing.kept[shown - 1])
        assert found["dropped"] == tokens(trace, routing.dropped[shown - 1])
    assert page.evaluate(_MAP, [routing.num_blocks, trace.num_tokens]) == routing.processed.tolist()


def check_explore(page, trace, text):
    """Everything on the first page is of this run: what comes last, what comes first, and the address."""
    said = page.get_by_test_id("stText").filter(visible=True)
    expect(said).to_have_js_property("textContent", clean_text(trace.continuation.text))
    settled(page)
    check_view(page, trace)
    shares = [*trace.routing.retention, trace.routing.processed.mean()]
    numbers = [str(trace.num_tokens), *(f"{share:.0%}" for share in shares)]
    for place, number in enumerate(numbers):
        expect(page.get_by_test_id("stMetricValue").nth(place)).to_have_text(number)
    wait_for_address(page, v="2", prompt=text, checkpoint="tiny", chat="0", level="1")


def ask(page, text):
    area = page.get_by_label("Prompt", exact=True)
    area.fill(text)
    area.press("Control+Enter")
    page.get_by_role("button", name="Run", exact=True).click()


def choose_run(page, label, text):
    """Choose a run from before; of several that begin alike, the last one."""
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=f" · {text.strip()[:60]!r} · tiny · float32").first.click()


def test_ten_prompts_in_a_row_are_each_shown_as_they_ran(page, model, pictures):
    label = "Earlier runs in this session"
    for number, text in enumerate(PROMPTS):
        if number == 3:  # the first three with all stages of a run
            page.get_by_text("Compare with the dense model").click()
        ask(page, text)
        check_explore(page, model.trace(text), text)
        if number in (2, 3, 6, 9):  # looks at runs from before, and goes on from there
            for earlier in (PROMPTS[number - 2], PROMPTS[number], PROMPTS[number - 1]):
                choose_run(page, label, earlier)
                check_explore(page, model.trace(earlier), earlier)
        if number == 7:  # the same prompt again while another is shown
            choose_run(page, label, PROMPTS[number - 1])
            check_explore(page, model.trace(PROMPTS[number - 1]), PROMPTS[number - 1])
            ask(page, text)
            check_explore(page, model.trace(text), text)
    page.screenshot(path=pictures / "ten prompts.png", full_page=True)


@pytest.fixture
def debug(page):
    """The page for debugging, before a prompt was read."""
    page.set_viewport_size({"width": 1300, "height": 3200})  # all of it, as a list that is open closes when one scrolls
    page.get_by_role("link", name="Debug").click()
    page.get_by_role("heading", name="Why was this token").wait_for()
    return page


def read(page, text):
    """Read a prompt on the page for debugging."""
    settled(page)
    area = page.get_by_role("textbox", name="Prompt", exact=True)
    if not area.is_visible():
        page.get_by_text("Run a prompt", exact=True).click()
    area.fill(text)
    area.press("Control+Enter")
    page.get_by_role("button", name="Run", exact=True).click()


def add(page, what):
    """Add an edit of the kind chosen before."""
    settled(page)
    field = page.get_by_role("textbox", name="Tokens", exact=True)
    field.fill(what)
    page.get_by_role("button", name="Add", exact=True).click()


def check_debug(page, model, text, edits, chat=False):
    """Everything below What if is of this run with these edits: numbers, text, map, list, command and address."""
    trace = model.edited(text, edits, chat)
    row = page.get_by_role("row").filter(has_text="Perplexity of the prompt")
    expect(row.filter(has_text=f"{trace.perplexity:,.2f}")).to_have_count(1)
    expect(row).to_have_count(1)  # what stood there before is gone
    expect(page.locator("[class*=st-key-remove-]")).to_have_count(len(edits))  # in the list, each with its button
    settled(page)
    check_view(page, trace)
    command = ["subllm", "edit", "--checkpoint", "tiny", "--device", "cpu", "--dtype", "float32"]
    command += ["--prompt", text, *(["--chat"] * chat)]
    for edit in edits:
        kind, what = edit.split(" ") if " " in edit else edit.split("@")
        command += [f"--{kind}={what}"]
    code = page.get_by_test_id("stCode").filter(visible=True)
    expect(code).to_have_count(1)
    expect(code).to_have_js_property("textContent", shlex.join(command))
    fields = {"edits": ";".join(edits)} if edits else {}
    wait_for_address(page, prompt=text, checkpoint="tiny", chat=str(int(chat)), **fields)
    assert edits or "edits=" not in page.url


def test_seven_prompts_in_a_row_are_debugged_with_edits_in_between(debug, model, pictures):
    label = "Run to debug"
    edits = {text: [] for text in PROMPTS}  # every run has its own
    for number, text in enumerate(PROMPTS[:7]):
        read(debug, text)
        check_debug(debug, model, text, [])
        if number == 0:
            debug.get_by_role("combobox", name="Edit", exact=True).click()
            debug.get_by_role("option", name="keep", exact=True).click()
        if number in (0, 2, 3, 5, 6):
            edits[text] = [f"keep {number + 2}@1"]
            add(debug, str(number + 2))
            check_debug(debug, model, text, edits[text])
        if number == 3:
            debug.locator(".st-key-undo button:visible").first.click()
            check_debug(debug, model, text, [])
            debug.locator(".st-key-redo button:visible").first.click()
            check_debug(debug, model, text, edits[text])
        if number in (2, 5):  # looks at runs from before, and goes on from there
            for earlier in (PROMPTS[number - 2], PROMPTS[number], PROMPTS[number - 1]):
                choose_run(debug, label, earlier)
                check_debug(debug, model, earlier, edits[earlier])
        if number == 6:
            debug.get_by_role("button", name="Add to Side by side").click()
            debug.get_by_text("The edited run was added").wait_for()
            check_debug(debug, model, text, edits[text])
            choose_run(debug, label, text)  # the edited run: shown with its edits, which can be taken back
            check_debug(debug, model, text, edits[text])
            debug.get_by_role("button", name="Remove all edits").click()
            check_debug(debug, model, text, [])
    debug.screenshot(path=pictures / "seven prompts debugged.png", full_page=True)
    debug.get_by_role("link", name="Explore").click()  # shows the run that was chosen last
    expect(debug.locator(".routing .text:visible")).to_have_js_property("textContent", PROMPTS[6])


def test_back_and_forward_in_the_browser_show_runs_and_levels_from_before(page, model):
    first, second = PROMPTS[0], PROMPTS[4]
    ask(page, first)
    check_explore(page, model.trace(first), first)
    page.get_by_role("radiogroup", name="Level to show").get_by_role("radio").nth(1).click()
    wait_for_address(page, prompt=first, level="2")
    ask(page, second)
    wait_for_address(page, prompt=second, level="2")
    page.go_back()
    wait_for_address(page, prompt=first, level="2")
    settled(page)
    check_view(page, model.trace(first), shown=2)
    page.go_back()
    check_explore(page, model.trace(first), first)
    page.go_back()  # before the session's first run: what is shown stays
    settled(page)
    check_view(page, model.trace(first))
    for _ in range(3):
        page.go_forward()
    wait_for_address(page, prompt=second, level="2")
    settled(page)
    check_view(page, model.trace(second), shown=2)


def test_back_and_forward_in_the_browser_show_edits_from_before_and_other_pages(debug, model):
    text = PROMPTS[4]
    read(debug, text)
    check_debug(debug, model, text, [])
    debug.get_by_role("combobox", name="Edit", exact=True).click()
    debug.get_by_role("option", name="keep", exact=True).click()
    add(debug, "5")
    check_debug(debug, model, text, ["keep 5@1"])
    debug.go_back()
    check_debug(debug, model, text, [])
    debug.go_forward()
    check_debug(debug, model, text, ["keep 5@1"])
    debug.get_by_role("link", name="Explore").click()
    debug.get_by_role("heading", name="What does this LLM drop?").wait_for()
    settled(debug)
    check_view(debug, model.trace(text))
    debug.go_back()  # to the page, whose address says less
    debug.go_back()
    check_debug(debug, model, text, ["keep 5@1"])


def test_what_if_is_whole_while_another_person_writes(debug, browser, server, model):
    """Both stages of an edited run wait their turn, again and again, and the page stays whole."""
    read(debug, TEXT)
    check_debug(debug, model, TEXT, [])
    debug.get_by_role("combobox", name="Edit", exact=True).click()
    debug.get_by_role("option", name="keep", exact=True).click()
    context = browser.new_context(viewport={"width": 1300, "height": 2000})
    other = context.new_page()
    other.goto(f"{server}/debug?checkpoint=long&prompt={'the+cat+sat+' * 40}")
    other.get_by_text("Perplexity of the prompt").wait_for()
    other.get_by_role("tab", name="Step by step").click()
    many = other.get_by_role("spinbutton", name="Tokens per click")
    many.fill("400")
    many.press("Enter")
    settled(other)
    other.get_by_text("Also run the dense model").click()  # the writing has to last
    settled(other)
    edits = []
    for token in range(1, 6):
        other.get_by_role("button", name="Continue").click()
        other.get_by_text("New tokens generated").wait_for()
        edits = [*edits, f"keep {token}@1"]
        add(debug, str(token))
        check_debug(debug, model, TEXT, edits)
        other.get_by_role("button", name="Stop").click()
        other.get_by_text("New tokens generated").wait_for(state="detached")
    context.close()
