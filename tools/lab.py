"""Open the course in JupyterLab, reachable from this machine only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST = "notebooks/00-start-here.ipynb"
# JupyterLab asks every new user whether to fetch news; the answer here is no, as nothing else needs the network.
SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


def arguments() -> list[str]:
    options = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url=/lab/tree/{FIRST}",  # so that a printed address leads there too
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    if os.geteuid() == 0:
        options.append("--allow-root")  # usual in a container; the server listens on this machine only
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        options.append("--no-browser")
    return options


def write_settings(folder: Path) -> None:
    """Defaults of this environment; what a user sets in JupyterLab goes before them."""
    file = folder / "overrides.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(SETTINGS), encoding="utf-8")


def main() -> int:
    os.chdir(ROOT)
    if not Path(FIRST).is_file():
        print(f"{FIRST} is missing: this clone is not complete.", file=sys.stderr)
        return 1
    write_settings(Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings")
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
