"""The app in a frame of a page on another site, as on Hugging Face: links and uploads work there."""

import threading
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pytest
from playwright.sync_api import expect

from app.space import FRAME_OPTIONS

from .server import COMMAND, ROOT, serve

PAGE = """<!doctype html><title>A page around the app</title>
<script>
window.told = [];
window.addEventListener("message", ({ data, origin }) => data.queryString && window.told.push({ ...data, origin }));
</script>
<iframe src="ADDRESS" style="width: 1200px; height: 900px"></iframe>"""


class Outside(BaseHTTPRequestHandler):
    """A site with one page, in which the address after the question mark is shown in a frame."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.replace("ADDRESS", escape(unquote(urlsplit(self.path).query))).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def outside():
    """Address of another site than the app's: localhost is not 127.0.0.1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Outside) as site:
        threading.Thread(target=site.serve_forever).start()
        yield f"http://localhost:{site.server_port}"
        site.shutdown()


@pytest.fixture(scope="module")
def framed(outside, tiny_checkpoint, tmp_path_factory):
    """Address of the app as a Space starts it, except that the page around it is ours."""
    folder = tmp_path_factory.mktemp("framed")
    variables = {
        "SUBLLM_ROOTS": str(tiny_checkpoint.parent),
        "SUBLLM_HOME": str(folder),
        "SUBLLM_PROFILE": "public",
        "SUBLLM_FEATURES": "uploads",
        "SUBLLM_FRAME_ORIGIN": outside,
    }
    with serve(folder / "log", variables, [*COMMAND, *FRAME_OPTIONS]) as address:
        yield address


def told(tab, page):
    """The fields of the last address that the page around the app was told, once they name a page."""
    tab.wait_for_function(
        "page => window.told.some(({ queryString }) => queryString.includes(page))", arg=f"page={page}"
    )
    return parse_qs(tab.evaluate("window.told.at(-1).queryString"))


def test_links_and_uploads_work_in_a_frame_of_another_site(tab, outside, framed, pictures):
    def around(query):
        """The frame of the other site's page, with a link opened in it."""
        tab.goto(f"{outside}/?{quote(f'{framed}/?{query}')}")
        return tab.frame_locator("iframe")

    fields = {"v": 2, "checkpoint": "tiny", "prompt": "the cat sat & the dog?", "chat": 0, "lang": "en"}
    frame = around(urlencode(fields | {"page": "debug"}))
    expect(frame.locator(".routing .text:visible")).to_have_js_property("textContent", fields["prompt"])
    known = told(tab, "debug")
    assert known["prompt"] == [fields["prompt"]] and known["checkpoint"] == ["tiny"] and known["page"] == ["debug"]
    assert tab.evaluate("new Set(window.told.map((each) => each.origin)).size") == 1

    frame.get_by_role("link", name="Efficiency").click()
    told(tab, "efficiency")
    frame = around(tab.evaluate("window.told.at(-1).queryString"))  # as one who follows that link
    shipped = frame.get_by_text("These measurements come with the app")
    shipped.wait_for()
    frame.locator("input[type=file]").set_input_files(ROOT / "assets" / "benchmarks" / "cpu-float32.parquet")
    shipped.wait_for(state="detached")  # what was opened takes their place; a refused upload would change nothing
    tab.screenshot(path=pictures / "in a frame of another site.png")
