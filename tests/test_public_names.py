"""What is public: the same names in ``__all__``, in the namespace, in the READMEs and wherever they are used."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cpuinfer_helpers"
# Texts in which people see the package used; what they name has to be there.
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *PACKAGE.rglob("README.md")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REFERENCE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?(\w+(?:\.\w+)*)`")


def documented() -> set[str]:
    """The names in the tables of the package's README, each in the first column."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def returned() -> set[str]:
    """The classes that the last column says a function returns, where it says in which room."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    return set(re.findall(r"`((?:\w+\.)+\w+)`", "".join(re.findall(r"\| ([^|]+) \|$", text, flags=re.MULTILINE))))


def used(text: str) -> set[str]:
    return set(re.findall(r"\bcpu\.([A-Za-z_]\w*)", text))


def notebook_source(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


def test_the_readme_of_the_package_documents_every_public_name_and_no_other():
    assert documented() == set(cpu.__all__)


def test_what_is_said_to_be_returned_is_where_it_is_said_to_be():
    assert returned()
    assert [name for name in returned() if not is_there(f"cpuinfer_helpers.{name}")] == []


def test_what_the_package_holds_of_its_own_is_public():
    held = {
        name
        for name, value in vars(cpu).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("cpuinfer_helpers")
    }
    assert held | {*cpu._OF_THE_TRAINER, *cpu._OF_GENERATION} == set(cpu.__all__)


def test_names_are_sorted_and_there_is_one_of_each():
    assert cpu.__all__ == sorted(set(cpu.__all__))


def test_every_error_is_public():
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds <= set(cpu.__all__)
    assert {name for name in cpu.__all__ if name.endswith("Error")} == kinds


def test_the_docstring_draws_the_errors_as_they_are():
    """Each line has a name and what it also is; what stands further right is a kind of what stands above it."""
    drawn = re.findall(r"^ *[+*x] (\w+)(?: \((\w+)\))?$", errors.__doc__ or "", flags=re.MULTILINE)
    kinds = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name, _ in drawn} == set(kinds)
    for name, also in drawn:
        assert issubclass(kinds[name], errors.CpuInferError)
        assert not also or [base.__name__ for base in kinds[name].__bases__] == ["CpuInferError", also]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_text_names_only_what_is_public(path: Path):
    assert used(path.read_text(encoding="utf-8")) <= set(cpu.__all__)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_only_what_is_public(path: Path):
    assert used(notebook_source(path)) <= set(cpu.__all__)


def test_code_beside_the_package_uses_only_what_is_public():
    """Annotations too, which nothing evaluates."""
    wrong = [
        f"{path.relative_to(ROOT)}, line {node.lineno}: cpu.{node.attr}"
        for folder in ("tests", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cpu"
        if not node.attr.startswith("_") and node.attr not in cpu.__all__
    ]
    assert wrong == []


def test_the_readme_shows_every_step_of_the_way():
    """Measuring, tracing, preparing, comparing, choosing and evaluating: what somebody comes for."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    steps = {"machine_report", "measure_interleaved", "trace_model", "prepare", "compare", "optimize", "load_optimized"}
    assert {*steps, "JitTrainer"} <= used(text)


def is_there(path: str) -> bool:
    """Whether a dotted path leads to something: a module, and what is in it."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        try:
            place: Any = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            if not hasattr(place, name):
                return False
            place = getattr(place, name)
        return True
    return False


def is_near(reference: str, path: Path) -> bool:
    """Whether a short name leads to something: in the module itself, in one of its classes, or of what is public."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    first, *further = reference.split(".")
    for place in (module, *(value for value in vars(module).values() if isinstance(value, type)), cpu):
        # Fields of dataclasses that have no default are annotations only.
        if not further and first in getattr(place, "__annotations__", {}):
            return True
        found = getattr(place, first, None)
        if found is not None and all(hasattr(found, name) for name in further):
            return True
    return False


def test_docstrings_refer_to_what_is_there():
    missing = [
        f"{path.relative_to(ROOT)}: {reference}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for reference in REFERENCE.findall(path.read_text(encoding="utf-8"))
        if not is_there(reference) and not is_near(reference, path)
    ]
    assert missing == []
