"""Run tests that send signals to their own process, or fork it, in a pytest of their own.

A process with PyTorch's threads in it is not to be forked, and one that runs two thousand other tests is not to be
interrupted. All such tests of a module share one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from functools import cache
from pathlib import Path

import pytest

_INSIDE = "CPUINFER_TESTS_APART"
_LIMIT_S = 600


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Take what came of the test in the process of its own."""
    if pyfuncitem.get_closest_marker("apart") is None or os.environ.get(_INSIDE):
        return None
    root = pyfuncitem.config.rootpath
    names = [item.nodeid for item in pyfuncitem.session.items if item.path == pyfuncitem.path and _is_apart(item)]
    kind, text = _outcomes(root, tuple(names)).get(pyfuncitem.name, ("error", "it did not run"))
    if kind == "skipped":
        pytest.skip(text)
    if kind != "passed":
        pytest.fail(f"in a process of its own: {text}", pytrace=False)
    return True


def _is_apart(item: pytest.Item) -> bool:
    return item.get_closest_marker("apart") is not None


@cache
def _outcomes(root: Path, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """For each test ``passed``, ``skipped``, ``failure`` or ``error``, with the text that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *names]
        environment = {**os.environ, _INSIDE: "1"}
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
        if not report.exists():
            text = f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            return {name.rpartition("::")[2]: ("error", text) for name in names}
        cases = xml.etree.ElementTree.parse(report).iter("testcase")
        return {case.attrib["name"]: _outcome(case) for case in cases}


def _outcome(case: xml.etree.ElementTree.Element) -> tuple[str, str]:
    for found in case:
        if found.tag in ("failure", "error", "skipped"):
            return found.tag, found.text or found.attrib.get("message", "")
    return "passed", ""
