"""Run every notebook at full size and write pages to read: `make run`.

    python tools/run_notebooks.py [part of a notebook's name ...]

For each notebook build/NN-name.html; for all of them together build/results.html and build/results.json,
which hold every result table that the notebooks showed. A notebook that fails does not stop the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
RESULT_MIME_TYPE = "application/vnd.cpuinfer+json"  # cpuinfer_helpers.display gives every result this form
CELL_SECONDS = 1800
PACKAGES = ("torch", "intel-extension-for-pytorch", "transformers", "numpy", "cpuinfer-helpers")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
NUMBER = re.compile(r"^[-+±<>~]*\d[\d.,]*\s*\S{0,8}$")


@dataclass(frozen=True)
class Result:
    """One table that a notebook showed."""

    cell: int
    kind: str
    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Run:
    """What came of running one notebook."""

    name: str
    page: str
    minutes: float
    failed_cell: int | None = None
    error: str | None = None
    results: list[Result] = field(default_factory=list)

    @property
    def status(self) -> str:
        return "passed" if self.error is None else "failed"


# ---- running


class Interruption:
    """Ctrl-C while a notebook runs: cancels the run, which ends the kernel, and remembers that it was asked for.

    nbclient's own handler ends the kernel too, but what it then raises looks like a kernel that died by itself.
    """

    def __init__(self) -> None:
        self.happened = False

    def watch(self, notebook: NotebookNode) -> None:
        """To be called in the run's own task, once nbclient has set its handlers."""
        task = asyncio.current_task()
        if task is not None:
            with contextlib.suppress(RuntimeError):  # not in the main thread: no signals arrive there
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._cancel, task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        self.happened = True
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the poll of the kernel ends with an error
        task.cancel()


def execute(notebook: NotebookNode, folder: Path, cell_seconds: int) -> tuple[int | None, str | None]:
    """Run the cells in place. Returns the failing cell's number, from 0, and its error, or two Nones."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    reached = [0]
    interruption = Interruption()
    client = NotebookClient(
        notebook,
        timeout=cell_seconds,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        resources={"metadata": {"path": str(folder)}},
        on_notebook_start=interruption.watch,
        on_cell_start=lambda cell, cell_index: reached.__setitem__(0, cell_index),
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError, asyncio.CancelledError) as error:
        if interruption.happened:
            raise KeyboardInterrupt from None
        if isinstance(error, CellExecutionError):
            return reached[0], f"{error.ename}: {error.evalue}"
        return reached[0], f"{type(error).__name__}: {error}"
    return None, None


def results_of(notebook: NotebookNode) -> Iterator[Result]:
    """Every result, under its own title or the heading that it stands under."""
    heading = ""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            heading = (HEADING.findall(cell.source) or [heading])[-1]
        for output in cell.get("outputs", []):
            shown = output.get("data", {}).get(RESULT_MIME_TYPE)
            if shown is not None:
                title = shown["title"] or heading
                yield Result(number, shown["kind"], title, shown["columns"], shown["rows"])


def run_one(path: Path, build: Path, cell_seconds: int = CELL_SECONDS) -> Run:
    """Execute one notebook and write its page, with what it got done before an error, if there was one."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    failed_cell, error = execute(notebook, path.parent, cell_seconds)
    minutes = (time.monotonic() - start) / 60
    page = f"{path.stem}.html"
    write(build / page, notebook_page(notebook, path.stem))
    return Run(path.stem, page, minutes, failed_cell, error, list(results_of(notebook)))


def write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


# ---- pages


def notebook_page(notebook: NotebookNode, title: str) -> str:
    """The notebook in HTML that needs nothing from the network, unless it holds formulas."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(require_js_url="", jquery_url="", widget_renderer_url="")
    if not any(cell.cell_type == "markdown" and "$" in cell.source for cell in notebook.cells):
        exporter.mathjax_url = ""
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    # Links between notebooks lead to the pages beside this one.
    return re.sub(r'href="(\d\d-[\w-]+)\.ipynb"', r'href="\1.html"', page)


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #57606a; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #9198a1; --good: #3fb950; --bad: #f85149; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-bottom: .3rem; font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.number { text-align: right; white-space: nowrap; }
.soft { color: var(--soft); }
.passed { color: var(--good); }
.failed { color: var(--bad); }
pre { white-space: pre-wrap; }
"""


def table_html(columns: list[str], rows: list[list[str]]) -> str:
    """A table whose columns of figures are aligned to the right."""
    numeric = [all(NUMBER.match(row[i]) or row[i] in ("", "-") for row in rows) for i in range(len(columns))]
    classes = [' class="number"' if rows and is_number else "" for is_number in numeric]

    def line(tag: str, cells: list[str]) -> str:
        marked = zip(cells, classes, strict=True)
        return "<tr>" + "".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in marked) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    head = line("th", columns)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def summary_html(runs: list[Run]) -> str:
    lines = [
        f'<tr><td><a href="{escape(run.page)}">{escape(run.name)}</a></td>'
        f'<td class="{run.status}">{run.status}</td><td class="number">{run.minutes:.1f}</td>'
        f'<td class="number">{len(run.results)}</td></tr>'
        for run in runs
    ]
    head = "<tr><th>notebook</th><th>status</th><th>minutes</th><th>results</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def run_html(run: Run) -> str:
    parts = [f'<h2 id="{escape(run.name)}"><a href="{escape(run.page)}">{escape(run.name)}</a></h2>']
    minutes = f"{run.minutes:.1f} minutes"
    parts.append(f'<p><span class="{run.status}">{run.status}</span> <span class="soft">{minutes}</span></p>')
    if run.error is not None:
        parts.append(f'<pre class="failed">cell {run.failed_cell}: {escape(run.error)}</pre>')
    for result in run.results:
        title = result.title or result.kind
        place = f'<span class="soft">{escape(result.kind)}, cell {result.cell}</span>'
        parts.append(f"<h3>{escape(title)} {place}</h3>" + table_html(result.columns, result.rows))
    if not run.results:
        parts.append('<p class="soft">No result tables.</p>')
    return "\n".join(parts)


def results_page(machine: str, date: str, installed: dict[str, str], runs: list[Run]) -> str:
    names = ", ".join(f"{name} {version}" for name, version in installed.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Results</title><style>{STYLE}</style></head><body>
<h1>Results</h1>
<p>{escape(machine)}<br><span class="soft">{escape(names)}<br>{escape(date)}</span></p>
{summary_html(runs)}
{"".join(run_html(run) for run in runs)}
</body></html>
"""


def write_results(build: Path, machine: str, runs: list[Run]) -> None:
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    installed = versions()
    kept = [{**asdict(run), "status": run.status} for run in runs]
    record: dict[str, Any] = {"date": date, "machine": machine, "versions": installed, "notebooks": kept}
    write(build / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write(build / "results.html", results_page(machine, date, installed, runs))


def main(parts: list[str]) -> int:
    from cpuinfer_helpers import machine_report

    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
    paths = [path for path in found if not parts or any(part in path.name for part in parts)]
    if not paths:
        print("No notebook to run.", file=sys.stderr)
        return 2
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    machine = machine_report().one_line()
    print(machine)
    runs: list[Run] = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.stem} ... ", end="", flush=True)
        run = run_one(path, build)
        runs.append(run)
        where = "" if run.error is None else f" in cell {run.failed_cell}: {run.error.splitlines()[0]}"
        print(f"{run.status} after {run.minutes:.1f} min{where}", flush=True)
        write_results(build, machine, runs)  # after each, so that an interruption loses nothing
    print(f"Open {build / 'results.html'}")
    return int(any(run.error is not None for run in runs))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted. build/results.html holds what was finished.", file=sys.stderr)
        sys.exit(130)
