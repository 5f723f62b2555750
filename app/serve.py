"""`subllm app`: start the app. Options that are not its own go to `streamlit run`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_MAIN = Path(__file__).with_name("main.py")
# of an installed app; a checkout has the same in .streamlit/config.toml, for those who call streamlit themselves
_OPTIONS = {
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "server.fileWatcherType": "none",
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "server.maxMessageSize": "32",
    "server.maxUploadSize": "8",
    "theme.light.primaryColor": "#2f6fb3",
    "theme.light.textColor": "#151412",
    "theme.dark.primaryColor": "#6aa5e0",
}


_LOCAL = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace this process by Streamlit's server."""
    parser = argparse.ArgumentParser(
        prog="subllm app",
        description="Open the app in a browser.",
        epilog="Other options go to streamlit run. Environment variables such as SUBLLM_ROOTS are in docs/hosting.md.",
    )
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8501)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    chosen, rest = parser.parse_known_args(arguments)
    if find_spec("streamlit") is None:  # found in another process only
        raise ModuleNotFoundError("Streamlit is not installed", name="streamlit")
    options = _OPTIONS | {"server.address": chosen.address, "server.headless": str(chosen.no_browser).lower()}
    if chosen.port is not None:
        options["server.port"] = str(chosen.port)
    if chosen.address not in _LOCAL and "SUBLLM_PROFILE" not in os.environ:
        print(  # noqa: T201
            f"Others can reach {chosen.address}. SUBLLM_PROFILE=class or SUBLLM_PROFILE=public limits what they can "
            "use; see docs/hosting.md.",
            file=sys.stderr,
        )
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(_MAIN), *flags, *rest])


if __name__ == "__main__":
    sys.exit(main())
