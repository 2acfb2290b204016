"""Imports run one way: a room of the package imports only what stands below it, and no modules import each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import pytest

import cpuinfer_helpers

PACKAGE = Path(cpuinfer_helpers.__file__).parent

# The rooms, from the top to the ground. What stands on one line is one room, or a module by itself.
ROOMS = """
__init__            the public names
__main__            what can be typed
run_qa              the guide's command line
commands            what each command prints and exits with
course              props of the notebooks
scale               bulk work in shards, layouts of instances
generation          text, a token at a time
optimize            the fastest recipe that keeps the answers
compare             recipes side by side
trainer             the Trainer flow
processes           child processes
recipes             ways to run a model, a file for each backend
tasks               model, tokenizer, data and metric, a file for each kind
tracing             trace, freeze, verify, or fall back
bettertransformer   the fast path
fusion              what fused, and why not
interface           inputs, outputs, the reference, copies
saving              folders with a manifest
verification        what is varied, how it is compared, what counts as equal
timing              measuring, intervals, the roofline
graph               what the graph holds
machine             what the CPU can do, and the switches of the process
receipts            what was asked for, and what was seen
display             tables and charts
errors              the ground
"""
ORDER = tuple(line.split()[0] for line in ROOMS.strip().splitlines())
MOST_ENTRIES = 25


class Import(NamedTuple):
    """That one module imports another, each by its path in the package."""

    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def module_of(path: Path) -> str:
    """``recipes/base.py`` is ``recipes.base``; a folder's ``__init__.py`` is the folder; the package's is itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def is_module(name: str) -> bool:
    place = PACKAGE.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imported_by(node: ast.AST) -> Iterator[str]:
    """The modules of the package that a statement imports, wherever it stands: in a function it runs as well."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "the package imports by full names"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        package, _, path = name.partition(".")
        if package == "cpuinfer_helpers":
            yield path if path and is_module(path) else path.rpartition(".")[0] or "__init__"


def imports_of(path: Path) -> set[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {Import(module_of(path), name) for node in ast.walk(tree) for name in imported_by(node)}


def all_imports() -> set[Import]:
    return {found for path in PACKAGE.rglob("*.py") for found in imports_of(path)}


def room_of(module: str) -> str:
    room = module.split(".")[0]
    assert room in ORDER, f"{room} is no room; it belongs into one of {', '.join(ORDER)}"
    return room


def runs_upward(one: Import) -> bool:
    return ORDER.index(room_of(one.imported)) < ORDER.index(room_of(one.importer))


def circle_through(one: Import, imports: Set[Import]) -> list[str]:
    """The modules of a shortest circle within a room, if the import is part of one: in any other circle one runs up."""
    below: dict[str, list[str]] = {}
    for importer, imported in sorted(imports):
        if room_of(importer) == room_of(imported):
            below.setdefault(importer, []).append(imported)
    return way(one.imported, one.importer, below)


def way(start: str, end: str, below: Mapping[str, list[str]]) -> list[str]:
    """A shortest way down from one module to another."""
    ways, seen = [[start]], {start}
    for walked in ways:
        if walked[-1] == end:
            return walked
        for module in below.get(walked[-1], []):
            if module not in seen:
                seen.add(module)
                ways.append([*walked, module])
    return []


def test_a_room_imports_only_what_stands_below_it():
    wrong = [
        f"{one}, but {room_of(one.imported)} stands above {room_of(one.importer)}: move what both need into "
        f"{room_of(one.importer)} or below, or have it handed in"
        for one in sorted(all_imports())
        if runs_upward(one)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other():
    imports = all_imports()
    circles = {frozenset(circle): circle for one in sorted(imports) if (circle := circle_through(one, imports))}
    wrong = [f"{' imports '.join([*circle, circle[0]])}: none of them is the lower one" for circle in circles.values()]
    assert not wrong, "\n".join(wrong)


def test_the_packages_root_holds_rooms_and_nothing_else():
    """A reader sees what there is at one glance, each with a name that says what it is about."""
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path.is_dir() and holds_code(path))}
    assert {room_of(entry) for entry in entries} <= set(ORDER)
    assert len(entries) <= MOST_ENTRIES


def holds_code(folder: Path) -> bool:
    """What is left behind of another branch holds only compiled files."""
    return any(folder.rglob("*.py"))


def folders() -> list[Path]:
    return sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.relative_to(PACKAGE).as_posix())
def test_a_readme_says_what_is_in_a_folder_and_what_it_may_import(folder: Path):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {folder.relative_to(PACKAGE).as_posix()}\n")
    missing = [name for name in re.findall(r"`([\w/]+\.(?:py|cpp))`", text) if not is_named(name, folder)]
    assert not missing, f"{folder.name}/README.md names {', '.join(missing)}, which is not there"
    here = {module_of(path).split(".")[0] for path in PACKAGE.rglob("*.py")}
    below = [room for room in ORDER[ORDER.index(room_of(module_of(folder / "__init__.py"))) + 1 :] if room in here]
    assert re.findall(r"`(\w+)` and down", text) == below[:1]


def is_named(name: str, folder: Path) -> bool:
    """A file of the folder itself, of one in it, or of the package's or the repository's root."""
    return any((place / name).is_file() for place in (folder, PACKAGE, PACKAGE.parent))


def test_no_two_files_of_tests_have_one_name():
    """They are in folders without an ``__init__.py``: pytest takes the second one of a name for the first."""
    names = [path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
