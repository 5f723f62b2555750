"""The app: navigation, shared selectors, an error boundary. Start it with `streamlit run app/main.py`."""

import sys
from pathlib import Path

import streamlit as st

if (root := str(Path(__file__).resolve().parents[1])) not in sys.path:  # Streamlit has put the script's folder there
    sys.path.insert(0, root)

from app import log, visitors
from app.components import contrast, frame_link, orientation, stop
from app.messages import boundary
from app.settings import Settings
from app.strings import say
from app.views import explore, sidebar, watch
from app.views.corpus import page as corpus
from app.views.debug import page as debug
from app.views.efficiency import page as efficiency
from subllm.assets import ASSETS

_ICON = str(ASSETS / "icon.svg")

log.start()
st.set_page_config(page_title="SUBLLM explorer", page_icon=_ICON, layout="wide")
pages = [
    st.Page(explore.show, title=say("page_explore"), icon=":material/filter_alt:", url_path="explore", default=True),
    st.Page(debug.show, title=say("page_debug"), icon=":material/bug_report:", url_path="debug"),
    st.Page(efficiency.show, title=say("page_efficiency"), icon=":material/speed:", url_path="efficiency"),
    st.Page(corpus.show, title=say("page_corpus"), icon=":material/library_books:", url_path="corpus"),
    st.Page(watch.show, title=say("page_watch"), icon=":material/monitoring:", url_path="watch"),
]
pinned = {"lesson", "pin"} <= {*st.query_params}  # a teacher's link shows the lesson and nothing else
page = st.navigation(pages, position="hidden" if pinned or st.context.is_embedded else "sidebar")
contrast.show()
stop.show(visitors.note_stop)
frame_link.open_named(pages, page)
with boundary():
    settings = Settings.read()
    visitors.enter(settings)
    if settings.frame_origin is not None:
        frame_link.tell(settings.frame_origin, page)
    if not (pinned or st.context.is_embedded):
        orientation.offer(page.url_path)
    sidebar.show(settings, page.url_path)
    with visitors.interruption_said(page.url_path):
        page.run()
