"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import cpuinfer_helpers

MODULES = [m.name for m in pkgutil.walk_packages(cpuinfer_helpers.__path__, "cpuinfer_helpers.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    names = ("machine.report", "timing.measuring", "tracing.trace")
    modules = [importlib.import_module(f"cpuinfer_helpers.{name}") for name in names]
    assert all(doctest.testmod(module).attempted >= 2 for module in modules)
