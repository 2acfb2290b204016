"""What the texts of the repository name is there: links, files, targets, notebooks, recipes, figures of a picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from tools import draw_results, navigation

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "cpuinfer_helpers").rglob("README.md")),
]
TWO_SCREENS = 130
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Files of the repository, from its root, as they are named in running text; NN-name stands for any notebook.
NAMED = re.compile(r"`((?:tests|tools|docs|notebooks|cpuinfer_helpers|\.ci)/[\w./-]+)`")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings: small letters and hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def leads_somewhere(link: str, source: Path) -> bool:
    name, _, anchor = link.partition("#")
    target = (source.parent / name) if name else source
    return target.exists() and (not anchor or anchor in anchors(read(target)))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", read(ROOT / "Makefile"), flags=re.MULTILINE))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_names_of_files_lead_somewhere(path: Path):
    text = read(path)
    links = [link for link in LINK.findall(text) if not link.startswith("http")]
    assert [link for link in links if not leads_somewhere(link, path)] == []
    assert [name for name in NAMED.findall(text) if not (ROOT / name).exists() and "NN-" not in name] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_make_command_that_a_text_names_is_there(path: Path):
    assert set(re.findall(r"`make ([a-z0-9-]+)", read(path))) <= targets()


def test_contributing_names_every_way_of_testing():
    others = {"help", "lab", "clean"}
    assert targets() - others <= set(re.findall(r"`make ([a-z0-9-]+)`", read(ROOT / "CONTRIBUTING.md")))


def test_the_readme_opens_with_what_this_is_the_two_commands_and_the_notebooks():
    text = read(README)
    marks = ["# Efficient Inference on CPU", "`cpuinfer_helpers`", "make lab ", "make test ", "| notebook |", "\n## "]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places) and places[0] == 0
    assert len(text.splitlines()) <= TWO_SCREENS


def test_the_readme_lists_every_notebook_in_order():
    listed = re.findall(r"^\| \[[^\]]+\]\(notebooks/([^)]+)\)", read(README), flags=re.MULTILINE)
    assert listed == [path.name for path in navigation.course(ROOT / "notebooks")]


def test_the_picture_is_small_and_its_figures_are_in_the_results():
    assert draw_results.PICTURE.stat().st_size < 100_000
    found = draw_results.times(read(draw_results.RESULTS))
    assert set(draw_results.SHOWN) <= set(found) <= set(cpu.list_recipes().names)
    assert all(time.low <= time.median <= time.high for time in found.values())
    (described,) = re.findall(r"!\[([^\]]+)\]\(docs/comparison\.png\)", read(README))
    longest, shortest = found["eager-fp32"].median, found["ipex-int8"].median
    assert [float(number) for number in re.findall(r" (\d+)(?= |$)", described)] == [longest, round(shortest)]


def recipes_named(section: str) -> list[str]:
    """A row has one name in full, and of the others what follows the backend: `torchscript-fp32`, `-bf16`."""
    text, named = read(ROOT / "docs/package.md").partition(f"\n## {section}\n")[2].partition("\n## ")[0], []
    for cell in re.findall(r"^\| (`[\w-]+-(?:fp32|fp16w|bf16|int8|int4)`.*?) \|", text, flags=re.MULTILINE):
        names = re.findall(r"`([\w-]+)`", cell)
        backend = names[0].rpartition("-")[0]
        named += [f"{backend}{name}" if name.startswith("-") else name for name in names]
    return sorted(named)


def test_the_tables_of_recipes_are_complete():
    assert recipes_named("Recipes") == sorted(cpu.list_recipes().names)
    assert recipes_named("Writing text") == sorted(cpu.list_generation_recipes().names)
