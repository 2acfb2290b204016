"""Any value in what was saved that somebody has changed: it answers as before, or is refused by an error of ours."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cpuinfer_helpers as cpu
from cpuinfer_helpers.optimize import choices
from cpuinfer_helpers.recipes import get_recipe
from cpuinfer_helpers.saving.folders import MANIFEST
from tests.conftest import make_bert, make_inputs
from tests.faults.harm import Layers, example
from tests.faults.test_remembered_choices import found
from tests.faults.test_tampered import list_as_its_own, read, write
from tests.optimize.saving_cases import by_hand
from tests.tracing.test_each_shape import LengthBakedIn

SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
RECIPES = ("torchscript-fp32", "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32", "eager-fp32")
ESCAPE, TURNED = "\x1b[2J\x07", "\u202egpj.exe"
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
VALUES = (
    None, True, False, -1, 0, 3, 10**12, 2**63, 10**400, 1e308, float("nan"), float("inf"), "NaN", "Infinity",
    "", "x", "owner/kernel", "../../etc/passwd", "\x00", ESCAPE, TURNED, "\ud800", [], [1], [-1, 10**12], [None],
    {}, {"x": 1}, {ESCAPE: 1}, DEEP,
)  # fmt: skip
QUICK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def bert() -> torch.nn.Module:
    return make_bert(**SMALL)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place; of the receipt, which decides nothing, one level."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    if path[:1] == ("receipt",) and len(path) > 1:
        return found
    return found + [place for key, entry in entries for place in leaves(entry, (*path, key))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return changed


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each kind; a test leaves it as it was."""
    parent = tmp_path_factory.mktemp("hostile")

    def get(name: str) -> Path:
        folder = parent / name
        if folder.exists():
            return folder
        if name == "trace":
            return cpu.trace_model(Layers().eval(), example()).save(folder)
        if name == "each shape":
            return cpu.trace_model(LengthBakedIn().eval(), example(), each_shape=True).save(folder)
        if get_recipe(name).why_not:
            pytest.skip(get_recipe(name).why_not)
        return by_hand(name, bert(), make_inputs()).save(folder)

    return get


def check(load: Callable[[], Any], expected: Callable[[Any], Any], folder: Path) -> bool:
    """Whether it was loaded; then it must answer as before, and otherwise the error must be ours, and plain."""
    try:
        loaded = load()
    except (cpu.ArtifactError, cpu.RecipeError) as error:
        assert str(folder) in str(error) or isinstance(error, cpu.RecipeError)
        assert ESCAPE[0] not in str(error) and TURNED[0] not in str(error) and len(str(error)) < 3000
        return False
    expected(loaded)
    for text in (str(loaded), loaded.table().as_text(), str(loaded.receipt)):
        assert ESCAPE[0] not in text and TURNED[0] not in text
    return True


def right_answers(loaded: Any) -> None:
    for inputs in (make_inputs(), make_inputs(3, 21, padding=4, seed=1)):
        with torch.no_grad():
            wanted = bert()(**inputs)
        seen = loaded(**inputs)
        valid = inputs["attention_mask"].bool()
        for name in ("start_logits", "end_logits"):
            # The tolerance of FP32, as the package itself has it.
            assert seen[name].dtype == torch.float32
            assert (seen[name] - wanted[name])[valid].abs().max() <= 1e-4 * wanted[name].abs().max()


@pytest.mark.cpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_manifest_of_every_recipe(saved: Callable[[str], Path], recipe: str) -> None:
    folder = saved(recipe)
    whole = (folder / MANIFEST).read_text()
    manifest = json.loads(whole)
    outcomes = []

    @QUICK
    @given(st.sampled_from([p for p in leaves(manifest) if p[0] not in ("kind", "files")]), st.sampled_from(VALUES))
    def changed(path: tuple[Any, ...], value: Any) -> None:
        write(folder, put(manifest, path, value))
        outcomes.append(check(lambda: cpu.load_optimized(folder), right_answers, folder))

    try:
        changed()
    finally:
        (folder / MANIFEST).write_text(whole)
    assert False in outcomes and cpu.load_optimized(folder)


@pytest.mark.parametrize("kind", ["trace", "each shape"])
def test_a_manifest_of_every_kind_of_trace(saved: Callable[[str], Path], kind: str) -> None:
    folder = saved(kind)
    whole = (folder / MANIFEST).read_text()
    manifest = json.loads(whole)
    before = cpu.TracedModel.load(folder)(**example())["logits"]

    def same(loaded: Any) -> None:
        torch.testing.assert_close(loaded(**example())["logits"], before, rtol=0, atol=1e-6)

    @QUICK
    @given(st.sampled_from([p for p in leaves(manifest) if p[0] != "files"]), st.sampled_from(VALUES))
    def changed(path: tuple[Any, ...], value: Any) -> None:
        write(folder, put(manifest, path, value))
        check(lambda: cpu.TracedModel.load(folder), same, folder)

    try:
        changed()
    finally:
        (folder / MANIFEST).write_text(whole)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("attention", "owner/kernel"),
        ("class", "os:_Environ"),
        ("class", "builtins:dict"),
        ("config_class", "builtins:dict"),
        ("config_class", "transformers.models.gone.configuration:Gone"),
    ],
)
def test_names_that_would_be_looked_up(saved: Callable[[str], Path], tmp_path: Path, entry: str, value: str) -> None:
    folder = shutil.copytree(saved("eager-fp32"), tmp_path / "model")
    manifest = read(folder)
    write(folder, put(manifest, ("model", entry), value))
    with pytest.raises(cpu.ArtifactError) as caught:
        cpu.load_optimized(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**6},
        {"max_position_embeddings": 10**11},
        {"hidden_size": -8},
        {"num_attention_heads": 0},
        {"hidden_act": "owner/kernel"},
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "owner/kernel"},
    ],
    ids=str,
)
def test_a_configuration_of_any_size(saved: Callable[[str], Path], tmp_path: Path, entries: dict[str, Any]) -> None:
    """Nothing of that size is made, and nothing is fetched."""
    folder = shutil.copytree(saved("eager-fp32"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps(config))
    list_as_its_own(folder, "config.json")
    with pytest.raises(cpu.ArtifactError) as caught:
        cpu.load_optimized(folder)
    assert str(folder) in str(caught.value)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [_pipe, _link, _device, _folder])
@pytest.mark.parametrize("name", ["manifest.json", "probe.safetensors", "model.torchscript.pt"])
def test_what_is_no_file(
    saved: Callable[[str], Path], tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    """Nobody waits for it, and nothing outside of the folder is read."""
    folder = shutil.copytree(saved("trace"), tmp_path / "model")
    change(folder / name)
    with pytest.raises(cpu.ArtifactError) as caught:
        cpu.TracedModel.load(folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", [".hidden", ".model.torchscript.pt", "extra", f"a{ESCAPE}b", "a\nb", TURNED])
def test_a_file_that_is_in_no_sum(saved: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(saved("trace"), tmp_path / "model")
    (folder / name).touch()
    with pytest.raises(cpu.ArtifactError, match="is not part of what was saved") as caught:
        cpu.TracedModel.load(folder)
    assert str(folder) in str(caught.value) and str(caught.value).isprintable()


def test_a_comparison_and_a_remembered_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "choice.json"
    found().save(path)
    whole = json.loads(path.read_text())
    model = Layers()
    outcomes = []

    @QUICK
    @given(st.sampled_from(leaves(whole)), st.sampled_from(VALUES))
    def changed(place: tuple[Any, ...], value: Any) -> None:
        path.write_text(json.dumps(put(whole, place, value)))
        caplog.clear()
        try:
            loaded = cpu.Comparison.load(path)
        except cpu.ArtifactError as error:
            assert str(path) in str(error) and ESCAPE[0] not in str(error)
            outcomes.append(choices.recall(path, model, 1))
            assert outcomes[-1] is None and "measuring anew" in caplog.text
            return
        assert loaded.best().recipe in loaded.rows
        assert loaded.table().as_text() and ESCAPE[0] not in str(loaded) and TURNED[0] not in str(loaded)

    changed()
    assert outcomes


@pytest.mark.parametrize("value", [float("nan"), "NaN", 0, -1.0, float("inf"), 10**400, None, []])
def test_times_that_nothing_takes(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "choice.json"
    found().save(path)
    whole = json.loads(path.read_text())
    for place in (("timing", "samples", 0), ("speedup", "ratio")):
        path.write_text(json.dumps(put(whole, ("rows", "torchscript-fp32", *place), value)))
        with pytest.raises(cpu.ArtifactError, match=r"choice\.json"):
            cpu.Comparison.load(path)


def test_a_pipe_in_the_place_of_a_comparison(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "choice.json")
    with pytest.raises(cpu.ArtifactError, match="it is no file"):
        cpu.Comparison.load(tmp_path / "choice.json")
    assert choices.recall(tmp_path / "choice.json", Layers(), 1) is None and "measuring anew" in caplog.text


def test_what_is_saved_can_be_read_whatever_it_says(tmp_path: Path) -> None:
    """Warnings of other libraries have colours in them."""
    optimized = by_hand("torchscript-fp32", Layers().eval(), example())
    optimized.prepared.receipt = replace(optimized.receipt, warnings=(f"red {ESCAPE}",))
    loaded = cpu.load_optimized(optimized.save(tmp_path / "model"))
    assert loaded.receipt.warnings == ("red \\x1b[2J\\x07",)
