"""Write the line of links at the top of every notebook: previous | contents | next.

python tools/navigation.py          list the notebooks whose line is out of date (exit code 1 if any)
python tools/navigation.py --write  bring them up to date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "**Course:**"
LINE = re.compile(rf"^{re.escape(MARK)}.*$", re.MULTILINE)


def course(folder: Path) -> list[Path]:
    """The notebooks in order."""
    return sorted(folder.glob("[0-9][0-9]-*.ipynb"))


def line_for(path: Path, paths: list[Path]) -> str:
    """The line for one notebook; the first has no previous and the last no next, which then is plain text."""
    place = paths.index(path)
    before = f"[previous]({paths[place - 1].name})" if place > 0 else "previous"
    after = f"[next]({paths[place + 1].name})" if place + 1 < len(paths) else "next"
    return f"{MARK} {before} | [contents](../README.md) | {after}"


def head_of(notebook: dict[str, Any]) -> str:
    """The text of the first cell."""
    source = notebook["cells"][0]["source"]
    return source if isinstance(source, str) else "".join(source)


def with_line(head: str, line: str) -> str:
    """The first cell's text with its line replaced, or put in after the title."""
    if LINE.search(head):
        return LINE.sub(lambda _: line, head, count=1)
    title, _, rest = head.partition("\n")
    return f"{title}\n\n{line}\n\n{rest.lstrip()}"


def is_current(path: Path, paths: list[Path]) -> bool:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return line_for(path, paths) in head_of(notebook).splitlines()


def write(path: Path, paths: list[Path]) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    head = with_line(head_of(notebook), line_for(path, paths))
    notebook["cells"][0]["source"] = head.splitlines(keepends=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def main(arguments: list[str]) -> int:
    paths = course(ROOT / "notebooks")
    stale = [path for path in paths if not is_current(path, paths)]
    if arguments == ["--write"]:
        for path in stale:
            write(path, paths)
            print(f"updated {path.name}")
        return 0
    for path in stale:
        print(f"{path.name}: out of date; run python tools/navigation.py --write")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
