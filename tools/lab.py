"""Open the course in JupyterLab, reachable from this machine only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST = "notebooks/00-start-here.ipynb"


def arguments() -> list[str]:
    options = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url=/lab/tree/{FIRST}",  # so that a printed address leads there too
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    if os.geteuid() == 0:
        options.append("--allow-root")  # usual in a container; the server listens on this machine only
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        options.append("--no-browser")
    return options


def main() -> int:
    os.chdir(ROOT)
    if not Path(FIRST).is_file():
        print(f"{FIRST} is missing: this clone is not complete.", file=sys.stderr)
        return 1
    options = arguments()
    if "--no-browser" in options:
        print(
            "No display here: open the address below in a browser on this machine. To open it on another,\n"
            "first run there, with the port that the address names:\n"
            "  ssh -L 8888:localhost:8888 <this machine>",
            file=sys.stderr,
        )
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
