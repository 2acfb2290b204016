"""TorchScript archives that would do more than compute: refused before TorchScript reads them."""

from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.saving.tensors import read_module, write_module
from tests.faults.harm import Layers, example
from tests.optimize.saving_cases import by_hand, list_anew
from tests.tracing.test_each_shape import LengthBakedIn

FILE = "model.torchscript.pt"


class Plain(torch.nn.Module):
    """Weights, an attribute that is no tensor, and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.names: list[str] = ["save", "from_file"]

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"save": self.layer(values), "length": values.sum() + len(self.names)}


class Saves(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        torch.save(values, "ran")
        return values


class Maps(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.from_file("ran", True, 8)


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(torch.nn.Linear(8, 8), Saves())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.parts(values)


@torch.jit.script
def keep(values: torch.Tensor) -> torch.Tensor:
    torch.ops.aten.save(values, "ran")
    return values


class InAFunction(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return keep(values)


class WhileLoading(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(8)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight, self.training = state


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives write to a relative path."""
    monkeypatch.chdir(tmp_path)


def scripted(model: torch.nn.Module, path: Path) -> Path:
    path.write_bytes(torch.jit.script(model.eval()).save_to_buffer())
    return path


def parts_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(parts: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def with_code(code: str, path: Path) -> Path:
    """An archive whose module runs these lines, put there by hand."""
    parts = parts_of(scripted(torch.nn.Identity(), path))
    (name,) = (name for name in parts if name.endswith(".py"))
    head = parts[name].decode().partition("  def forward")[0]
    lines = "".join(f"    {line}\n" for line in code.split("\n"))
    parts[name] = f"{head}  def forward(self, input: Tensor) -> Tensor:\n{lines}    return input\n".encode()
    return written(parts, path)


def refused(path: Path, words: str) -> None:
    with pytest.raises(cpu.ArtifactError, match=words) as caught:
        read_module(path)
    assert str(path) in str(caught.value)
    assert not Path("ran").exists()


def test_what_only_computes_is_read(tmp_path: Path) -> None:
    """Names in texts decide nothing."""
    model = Plain().eval()
    seen = read_module(scripted(model, tmp_path / FILE))(torch.ones(2, 8))
    assert torch.equal(seen["save"], model(torch.ones(2, 8))["save"])
    # Written by another writer of zip files, with the shorter end.
    assert read_module(written(parts_of(tmp_path / FILE), tmp_path / "again"))(torch.ones(2, 8))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Saves(), "names 'save', which reads or writes files"),
        (Maps(), "names 'from_file'"),
        (Inner(), "names 'save'"),
        (InAFunction(), "names 'save'"),
        (WhileLoading(), "names '__setstate__', which would run while it is loaded"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2), WhileLoading()), "names '__setstate__'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_a_program_that_touches_files_or_runs_while_it_is_loaded(
    model: torch.nn.Module, words: str, tmp_path: Path
) -> None:
    refused(scripted(model, tmp_path / FILE), words)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(cpu.ArtifactError, match="names 'save', which reads or writes files; a trace that"):
        write_module(torch.jit.script(Saves()), tmp_path / FILE)


# The first seven did write a file on both stacks.
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('f = torch.save\nf(input, "ran")', "names 'save'"),
        ('getattr(torch, "sa" "ve")(input, "ran")', "two texts behind each other"),
        ('getattr(torch, "\\163ave")(input, "ran")', "cannot be seen"),
        ('getattr(torch, "save")(input, "ran")', "looks up 'save'"),
        ('o = ops\no.aten.save(input, "ran")', "gives a library of operators another name"),
        ("torch.save(input, 'ran')", 'has "\'" in it'),
        ('torch.\\\n  save(input, "ran")', r"has '\\\\' in it"),
        ("i = ops.image\ni.write_file(input)", "gives a library of operators another name"),
        ('getattr(ops, "image")', "gives a library of operators another name"),
        ('ops.image.write_file("ran", input)', "image::write_file"),
        ('ops.debugprims.load_tensor("ran", [1])', "debugprims::load_tensor"),
        ('ops.symm_mem.one_shot_all_reduce(input, "sum", "0")', "symm_mem::one_shot_all_reduce"),
        ('torch.rpc_sync("elsewhere", input)', "runs on another machine"),
        ("t = __torch__.torch.classes", "the class of C\\+\\+ 'torch.classes"),
        ("t = __torch__\nt.torch.classes.c10d.ProcessGroup(0, 1)", "gives its classes another name"),
        ("__torch__.torch.classes.c10d.ProcessGroup(0, 1)", "the class of C\\+\\+ 'torch.classes.c10d'"),
        ("pass # import", "has '#' in it"),
        ('x = """a"""', "two texts behind each other"),
        ("x = \x0c1", "has '\\\\x0c' in it"),
        ("x = s\u0430ve", "which TorchScript does not write"),
    ],
)
def test_code_that_was_put_there_by_hand(code: str, words: str, tmp_path: Path) -> None:
    refused(with_code(code, tmp_path / FILE), words)


def test_an_operator_of_a_users_own_may_take_tensors_but_no_texts(tmp_path: Path) -> None:
    library = torch.library.Library("own_of_this_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.define("keep(Tensor x, str where) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    module = read_module(with_code("input = ops.own_of_this_test.twice(input)", tmp_path / FILE))
    assert module(torch.ones(1)).item() == 2
    refused(with_code('ops.own_of_this_test.keep(input, "ran")', tmp_path / FILE), "own_of_this_test::keep")


def _added(name: str, data: bytes = b"") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, data)

    return change


def _code_twice(renamed: Callable[[str], str]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        name = next(name for name in parts_of(path) if name.endswith(".py"))
        _added(renamed(name), b"another")(path)

    return change


def _long_code(path: Path) -> None:
    with zipfile.ZipFile(path, "a", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/code/__torch__/bomb.py", b" " * (65 * 2**20))


def _commented(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"another end"


def _two_ends(path: Path) -> None:
    path.write_bytes(path.read_bytes() + path.read_bytes())


def _prefixed(path: Path) -> None:
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())


def _flatbuffer(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"PTMF" + data[8:])


def _packed(path: Path) -> None:
    parts = parts_of(path)
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_code_twice(lambda name: name), "two entries"),
        (_added("archive/CODE/__torch__.PY", b"torch.save"), "does not write"),
        (_code_twice(lambda name: name.replace("torch", "TORCH")), "two entries"),
        (_added("other/code/__torch__/more.py"), "does not write"),
        (_added("archive/../elsewhere.py"), "does not write"),
        (_added("archive/model.json", b"{}"), "does not write"),
        (_added("archive/code/\x1b[2J.py"), r"\\\\x1b\[2J"),
        (_long_code, "MiB long"),
        (_commented, "does not end as a zip file does"),
        (_two_ends, "two directories|stands behind|two archives"),
        (_prefixed, "no zip file"),
        (_flatbuffer, "no zip file"),
        (_packed, "is packed"),
    ],
)
def test_an_archive_that_is_laid_out_otherwise(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    path = scripted(torch.nn.Linear(2, 2), tmp_path / FILE)
    parts = {name.replace(name.partition("/")[0], "archive", 1): data for name, data in parts_of(path).items()}
    change(written(parts, path))
    refused(path, words)


def test_a_second_directory_that_another_reader_takes(tmp_path: Path) -> None:
    path = scripted(torch.nn.Linear(2, 2), tmp_path / FILE)
    data = bytearray(path.read_bytes())
    (offset,) = struct.unpack("<Q", data[-34:-26])
    assert data[-42:-38] == b"PK\x06\x07" and offset == len(data) - 98
    data[-34:-26] = struct.pack("<Q", offset - 56)
    path.write_bytes(data)
    refused(path, "two directories")


def _with_data(data: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        (name,) = (name for name in parts if name.endswith("/data.pkl"))
        parts[name] = data

    return change


def _longer(parts: dict[str, bytes]) -> None:
    """A weight of 8 x 8 that claims to have more rows than there is room for."""
    (name,) = (name for name in parts if name.endswith("/data.pkl"))
    assert b"(K\x08K\x08t" in parts[name]
    parts[name] = parts[name].replace(b"(K\x08K\x08t", b"(J\x00\xca\x9a\x3bK\x08t", 1)


def _shorter(parts: dict[str, bytes]) -> None:
    """The numbers of a weight are cut off, so that reading it would read on behind them."""
    name = max((name for name in parts if "/data/" in name), key=lambda name: len(parts[name]))
    parts[name] = parts[name][:-4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with_data(b"\x80\x02cos\nsystem\nX\x08\x00\x00\x00touch raR."), "names 'os system'"),
        (_with_data(pickle.dumps(Path("ran"), protocol=4)), "STACK_GLOBAL|FRAME"),
        (_with_data(b"\x80\x02c__torch__.torch.classes.c10d\nProcessGroup\n)\x81."), "c10d ProcessGroup"),
        (_with_data(b"\x80\x02ctorch.distributed.rpc\nrebuild\n)R."), "torch.distributed.rpc"),
        (_with_data(b"\x80\x02" + b"(" * 10), "damaged"),
        (_with_data(b""), "damaged"),
        (_longer, "does not fit into"),
        (_shorter, "is not there"),
    ],
)
def test_pickles_that_name_or_claim_what_they_should_not(
    change: Callable[[dict[str, bytes]], None], words: str, tmp_path: Path
) -> None:
    parts = parts_of(scripted(torch.nn.Linear(8, 8), tmp_path / FILE))
    change(parts)
    refused(written(parts, tmp_path / FILE), words)


def test_every_way_to_load_one_refuses_it(tmp_path: Path) -> None:
    """Sums that fit do not help: whoever makes the file makes them too."""
    attack = scripted(Saves(), tmp_path / "attack")
    tokens = {"input_ids": torch.arange(24).reshape(2, 12), "attention_mask": torch.ones(2, 12)}
    one = cpu.trace_model(Layers().eval(), example()).save(tmp_path / "one")
    each = cpu.trace_model(LengthBakedIn().eval(), tokens, each_shape=True).save(tmp_path / "each")
    folders = [(one, cpu.TracedModel.load), (each, cpu.TracedModel.load)]
    for recipe in ("torchscript-fp32", "onednn-graph-fp32"):
        folders.append((by_hand(recipe, Layers().eval(), example()).save(tmp_path / recipe), cpu.load_optimized))
    for folder, load in folders:
        assert load(folder)
        name = next(path.name for path in folder.glob("model*.torchscript.pt"))
        shutil.copy(attack, folder / name)
        list_anew(folder, name)
        for verify in (True, False):
            with pytest.raises(cpu.ArtifactError, match="names 'save'"):
                load(folder, verify=verify)
        assert not Path("ran").exists()
