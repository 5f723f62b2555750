"""Several people at once: each sees what is theirs, all of it, and nothing of the others, whatever the others do.

Every visitor has a browser context, a word that is in all of its prompts, and acts drawn from a seed. An act begins
something, lets the others go on, and then checks what came of it against the model run without the app.
"""

import random
import re
import time
from statistics import median_low as median
from urllib.parse import parse_qsl, urlencode, urlsplit

import psutil
import pytest
from playwright.sync_api import expect
from streamlit.string_util import clean_text

from analysis.debug.edits import Edit
from analysis.debug.generation import Generation
from subllm.assets import TRAINED
from subllm.runs.folder import read_about

from .test_sessions import Model, add, ask, check_debug, check_explore, check_view, read, wait_for_address
from .waiting import settled

MARKERS = ("zephyrous", "quagmire", "bulwarks", "juxtapose")
WORDS = "the a cat dog sat ran on under mat tree and then it was very happy sad old new left".split()  # noqa: SIM905
ACTS = 6  # of each visitor
MINUTES, FLAT = 10, 150 << 20  # of the long test; growth of the server's memory in its second half, in bytes
WRITTEN = 40  # tokens at a press
TITLES = {
    "Explore": "What does this LLM drop?",
    "Debug": "Why was this token kept, and what if it were not?",
    "Efficiency": "How much do the dropped tokens save?",
    "Watch training": "How a model learns what to keep",
}
MOST_THREADS, MOST_GROWTH = 60, 400 << 20  # of the server; of its memory, in bytes, once all have been there
_EVERYTHING = """() => {
    const found = [location.href, document.title, document.documentElement.outerHTML];
    const walk = (root) => {
        for (const element of root.querySelectorAll('*')) {
            if ('value' in element) found.push(String(element.value));
            if (element.shadowRoot) {
                found.push(element.shadowRoot.innerHTML);
                walk(element.shadowRoot);
            }
        }
    };
    walk(document);
    return found.join(' ');
}"""


class Visitor:
    """A person with a browser of their own; every act is a generator that stops where the others may go on."""

    def __init__(self, number, browser, address, model):
        self.marker, self.others = MARKERS[number], [marker for marker in MARKERS if marker != MARKERS[number]]
        self.random = random.Random(number)
        self.browser, self.address, self.model = browser, address, model
        self.asked = 0
        self.context = None
        self.said = []  # what was done, for the message of a failure

    def live(self, acts):
        """Everything that the visitor does."""
        yield from self.arrive()
        for _ in acts:
            possible = ["go", "leave", "reload"]
            possible += {"Explore": ["ask"] * 4 + ["stop"] * 2, "Debug": ["read", "edit", "edit", "write"]}.get(
                self.page_name, []
            )
            possible += ["choose"] * (self.text is not None and self.page_name in ("Explore", "Debug"))
            act = self.random.choice(possible)
            self.said.append(act)
            yield from getattr(self, act)()
            self.look()
        self.context.close()

    def look(self):
        """There is a page, it is whole, and nothing on it is another's."""
        settled(self.page)
        expect(self.page.get_by_role("heading", name=TITLES[self.page_name])).to_be_visible()
        assert self.page.get_by_test_id("stException").count() == 0
        assert self.page.get_by_text("Something went wrong").count() == 0
        assert self.faults == []
        found = self.page.evaluate(_EVERYTHING)
        assert self.marker in found or self.text is None or self.page_name not in ("Explore", "Debug")
        assert not [marker for marker in self.others if marker in found]

    @property
    def edits(self):
        """Of the run that is shown: every run has its own."""
        return self.made.setdefault(self.text, [])

    def new_text(self):
        self.asked += 1
        words = " ".join(self.random.choices(WORDS, k=self.random.randint(6, 30)))
        return f"{self.marker} {self.asked} {words}"

    def arrive(self, path="", **fields):
        """A new browser: with nothing in it, or with a link."""
        self.context = self.browser.new_context(viewport={"width": 1300, "height": 2400})
        self.page = self.context.new_page()
        self.faults = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page_name = "Debug" if path else "Explore"
        self.text, self.whole = fields.get("prompt"), not path
        self.made = {self.text: fields["edits"].split(";") if fields.get("edits") else []}
        if fields:
            self.page.goto(f"{self.address}/{path}?{urlencode(fields | {'v': 2, 'checkpoint': 'tiny'})}")
            yield
            self.check()
        else:
            self.page.goto(self.address)
            self.page.get_by_role("button", name="Run", exact=True).wait_for()
            yield
            self.page.get_by_role("combobox", name="Checkpoint").click()
            self.page.get_by_role("option", name="tiny").click()
            yield from self.ask()

    def check(self):
        """What is on screen is the last run, with all of its numbers."""
        if self.text is None:
            return
        if self.page_name == "Debug":
            check_debug(self.page, self.model, self.text, self.edits)
        elif self.page_name == "Explore" and self.whole:
            check_explore(self.page, self.model.trace(self.text), self.text)
        elif self.page_name == "Explore":
            self.check_what_is_known_first()

    def check_what_is_known_first(self):
        """A run that was stopped, or one of the page Debug, says nothing beyond the prompt."""
        trace = self.model.trace(self.text)
        expect(self.page.locator(".routing .text:visible")).to_have_js_property("textContent", trace.prompt.text)
        settled(self.page)
        check_view(self.page, trace)
        wait_for_address(self.page, prompt=self.text, checkpoint="tiny")

    def go(self):
        """To another page."""
        name = self.random.choice([name for name in TITLES if name != self.page_name])
        self.page.get_by_role("link", name=name).click()
        self.page_name = name
        yield
        self.page.get_by_role("heading", name=TITLES[name]).wait_for()
        if name == "Efficiency":
            expect(self.page.get_by_test_id("stCode").first).to_contain_text("--checkpoint tiny")
        elif name == "Watch training":
            self.page.get_by_text("Perplexity of this prompt at this step").wait_for()
            steps = read_about(TRAINED["small"])["config"]["steps"]
            expect(self.page.get_by_test_id("stMetricValue").first).to_have_text(f"{steps:,} / {steps:,}")
        self.check()

    def ask(self):
        """Run a prompt."""
        self.text, self.whole = self.new_text(), True
        ask(self.page, self.text)
        yield
        self.check()

    def stop(self):
        """Run a prompt and stop it: what is shown then is what is known of it, or what was shown before."""
        before, text = self.text, self.new_text()
        ask(self.page, text)
        yield
        stop = self.page.get_by_role("button", name="Stop", exact=True)
        stop.evaluate_all("buttons => buttons.forEach(button => button.click())")  # if there is one at this moment
        yield
        settled(self.page)
        view = self.page.locator(".routing .text:visible")
        shown = view.text_content() if view.count() else None
        assert shown in (before, text)
        if shown == text:
            self.text, self.whole = text, False
        if shown is not None:
            self.check_what_is_known_first()

    def choose(self):
        """Go back to a run from before."""
        label = "Earlier runs in this session" if self.page_name == "Explore" else "Run to debug"
        box = self.page.get_by_role("combobox", name=label)
        if not box.count():
            return
        box.click()
        self.page.get_by_role("option").first.wait_for()
        options = self.page.get_by_role("option").all()
        option = self.random.choice(options)
        number = re.search(rf"{self.marker} (\d+) ", option.inner_text())[1]
        option.click()
        yield
        view = self.page.locator(".routing .text:visible")
        expect(view).to_have_text(re.compile(f"^{self.marker} {number} "))
        settled(self.page)
        self.text, self.whole = view.text_content(), False
        if self.page_name == "Debug":
            self.check()
        else:
            self.check_what_is_known_first()

    def read(self):
        """Read a prompt on the page Debug."""
        text = self.new_text()
        read(self.page, text)
        self.text, self.whole = text, False
        yield
        self.check()

    def edit(self):
        """Add an edit, or take the last one back."""
        if self.text is None:
            yield from self.read()
        if self.edits and self.random.random() < 0.4:
            self.page.locator("[class*=st-key-remove-] button:visible").last.click()
            self.made[self.text] = self.edits[:-1]
        else:
            kind = self.page.get_by_role("combobox", name="Edit", exact=True)
            if "drop" not in kind.input_value():
                kind.click()
                self.page.get_by_role("option", name="drop", exact=True).click()
            token = self.random.choice([n for n in range(2, 15) if f"drop {n}@1" not in self.edits])
            add(self.page, str(token))
            self.made[self.text] = [*self.edits, f"drop {token}@1"]
        yield
        self.check()

    def write(self):
        """Have the text continued step by step, while others do what they do."""
        if self.text is None:
            yield from self.read()
        self.page.get_by_role("tab", name="Step by step").click()
        self.page.get_by_role("button", name="Continue", exact=True).click()
        yield
        trace = self.model.trace(self.text)
        edits = tuple(map(Edit.parse, self.edits))
        expected = Generation(self.model.checkpoint.model, trace.prompt, edits=edits)
        while len(expected.tokens) < WRITTEN and not expected.finished:
            expected.step()
        self.page.get_by_text(re.compile(rf"^{len(expected.tokens)} tokens?,")).first.wait_for()
        settled(self.page)
        said = self.model.checkpoint.tokenizer.decode([token.id for token in expected.tokens])
        code = self.page.get_by_test_id("stCode").filter(visible=True).first
        assert code.text_content().strip() == clean_text(said).strip()
        self.page.get_by_role("tab", name="What if").click()
        yield
        self.check()

    def reload(self):
        """In the middle of a run, if there can be one: the address says what is shown afterwards."""
        if self.page_name == "Explore":
            ask(self.page, self.new_text())
            yield
        self.page.reload(wait_until="commit")
        fields = dict(parse_qsl(urlsplit(self.page.url).query))
        yield
        self.page.get_by_role("heading", name=TITLES[self.page_name]).wait_for()
        self.text = fields.get("prompt")
        self.made = {self.text: fields["edits"].split(";") if fields.get("edits") else []}
        self.whole = self.page_name == "Explore"
        if self.text is None or self.page_name not in ("Explore", "Debug"):  # its checkpoint has to be chosen again
            self.context.close()
            yield from self.arrive()
        else:
            self.check()

    def leave(self):
        """Close the browser in the middle of a run, and come back later, empty-handed or with a link."""
        if self.page_name == "Explore":
            ask(self.page, self.new_text())
            yield
        self.context.close()
        yield
        kind = self.random.choice(["", "explore", "debug"])
        if not kind:
            yield from self.arrive()
        elif kind == "explore":
            yield from self.arrive(prompt=self.new_text())
        else:
            yield from self.arrive("debug", prompt=self.new_text(), edits="drop 3-5@1;threshold 0.1@2")


def server_process():
    (found,) = [p for p in psutil.Process().children() if any("streamlit" in part for part in p.cmdline())]
    return found


def acts_of(lives, order):
    """The visitors act, one at a time, until all have gone home; yields after every act."""
    while lives:
        visitor = order.choice(list(lives))
        try:
            next(lives[visitor])
        except StopIteration:
            del lives[visitor]
        except BaseException as error:
            error.add_note(f"{visitor.marker}: {', '.join(visitor.said)}")
            raise
        yield


@pytest.mark.slow
def test_four_people_at_once_see_what_is_theirs_and_nothing_else(browser, server, tiny_checkpoint):
    model = Model(tiny_checkpoint)
    order = random.Random(0)
    visitors = [Visitor(number, browser, server, model) for number in range(len(MARKERS))]
    lives = {visitor: visitor.live(range(ACTS)) for visitor in visitors}
    process, half = server_process(), None
    for _ in acts_of(lives, order):
        if half is None and all(len(each.said) >= ACTS // 2 for each in visitors):
            half = process.memory_info().rss
        assert process.num_threads() <= MOST_THREADS
    assert process.memory_info().rss - half < MOST_GROWTH


@pytest.mark.soak
def test_four_people_for_ten_minutes_take_no_more_memory_in_the_end_than_in_the_middle(
    browser, server, tiny_checkpoint
):
    """Streamlit collects garbage after every run of a page, so what is compared is what is kept."""
    model, order, process = Model(tiny_checkpoint), random.Random(1), server_process()
    began, sizes = time.monotonic(), []
    acts = iter(lambda: time.monotonic() - began < 60 * MINUTES, False)  # shared, so all go home at the same time
    visitors = [Visitor(number, browser, server, model) for number in range(len(MARKERS))]
    lives = {visitor: visitor.live(acts) for visitor in visitors}
    for _ in acts_of(lives, order):
        sizes.append((time.monotonic() - began, process.memory_info().rss))
        assert process.num_threads() <= MOST_THREADS
    half = [size for when, size in sizes if 30 * MINUTES < when < 45 * MINUTES]
    end = [size for when, size in sizes if when >= 45 * MINUTES]
    assert len(half) > 3 and len(end) > 3
    assert median(end) - median(half) < FLAT, f"{median(half) >> 20} MiB, then {median(end) >> 20} MiB"
