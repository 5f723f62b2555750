"""The app: navigation and an error boundary. Start it with `streamlit run app/main.py`, from any folder."""

import logging
import sys
from pathlib import Path

import streamlit as st

if (root := str(Path(__file__).resolve().parents[1])) not in sys.path:  # Streamlit has put the script's folder there
    sys.path.insert(0, root)

from analysis import AnalysisError
from app.messages import show_error, start_logging
from app.strings import say
from app.views import explore, watch
from app.views.debug import page as debug
from app.views.efficiency import page as efficiency
from subllm import SubllmError
from subllm.assets import ASSETS

_ICON = str(ASSETS / "icon.svg")

start_logging()
st.set_page_config(page_title="SUBLLM explorer", page_icon=_ICON, layout="wide")
page = st.navigation(
    [
        st.Page(
            explore.show, title=say("page_explore"), icon=":material/filter_alt:", url_path="explore", default=True
        ),
        st.Page(debug.show, title=say("page_debug"), icon=":material/bug_report:", url_path="debug"),
        st.Page(efficiency.show, title=say("page_efficiency"), icon=":material/speed:", url_path="efficiency"),
        st.Page(watch.show, title=say("page_watch"), icon=":material/monitoring:", url_path="watch"),
    ]
)
try:
    page.run()
except (SubllmError, AnalysisError) as error:
    show_error(error)
except Exception:
    logging.getLogger("app").exception("A page failed")
    st.error(say("failed"))
