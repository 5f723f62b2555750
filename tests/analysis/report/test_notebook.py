"""A run as the last line of a notebook's cell shows its report, in a frame that cannot reach the notebook."""

from dataclasses import replace
from html.parser import HTMLParser

import analysis
from analysis.report.html import report
from tests.analysis.report.test_html import hostile_trace
from tests.analysis.trace.test_trace import make_trace


class Frames(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


def frame_of(bundle):
    ((tag, attributes),) = Frames(bundle["text/html"]).elements
    assert tag == "iframe"
    return attributes


def test_a_trace_and_a_pair_show_their_reports_in_a_frame_without_the_notebooks_origin():
    first, second = hostile_trace(), make_trace("T(T)T", tokens=7)
    one = frame_of(first._repr_mimebundle_())
    assert one["srcdoc"] == report([first]) and one["sandbox"] == "allow-scripts allow-downloads"
    both = analysis.TracePair(first, second, ("a", "b"))._repr_mimebundle_()
    assert frame_of(both)["srcdoc"] == report([first, second], names=("a", "b"))


def test_where_there_is_no_browser_a_line_says_what_it_is():
    trace = make_trace(tokens=7)
    edited = replace(trace, provenance=replace(trace.provenance, checkpoint="x", edits=("drop 1@1",)))
    assert edited._repr_mimebundle_()["text/plain"] == f"Trace of 7 tokens · x · {trace.provenance.structure} · edited"
