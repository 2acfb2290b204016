"""Folders that are written whole or not at all, and checked before anything in them is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cpuinfer_helpers import ArtifactError
from cpuinfer_helpers.saving.folders import MANIFEST, new_artifact, read_manifest, sha256

KIND = "test-artifact"


def write(folder: Path, weights: bytes = b"weights" * 1000, **manifest: object) -> Path:
    with new_artifact(folder, KIND, {"format_version": 1, **manifest}) as temporary:
        (temporary / "weights.bin").write_bytes(weights)
        (temporary / "notes.txt").write_text("notes", encoding="utf-8")
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "deep" / "er" / "model", recipe="torchscript")
    manifest = read_manifest(folder, KIND, 1)
    assert (manifest["kind"], manifest["recipe"]) == (KIND, "torchscript")
    assert manifest["files"] == {name: sha256(folder / name) for name in ("notes.txt", "weights.bin")}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_path_with_a_space_and_an_umlaut(tmp_path: Path) -> None:
    folder = write(tmp_path / "mein schönes Modell")
    assert read_manifest(folder, KIND, 1)["files"]
    assert read_manifest(str(folder), KIND, 1)["files"]


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("model"))
    assert read_manifest("model", KIND, 1)
    assert (tmp_path / "model" / MANIFEST).is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writing_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_artifact(tmp_path / "model", KIND, {}) as temporary:
        (temporary / "weights.bin").write_bytes(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_keeps_the_old_artifact(artifact: Path) -> None:
    before = read_manifest(artifact, KIND, 1)
    with pytest.raises(RuntimeError), new_artifact(artifact, KIND, {}) as temporary:
        (temporary / "weights.bin").write_bytes(b"half")
        raise RuntimeError
    assert read_manifest(artifact, KIND, 1) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["model"]


def test_manifest_that_json_does_not_know_keeps_the_old_artifact(artifact: Path) -> None:
    before = read_manifest(artifact, KIND, 1)
    with pytest.raises(TypeError):
        write(artifact, b"new", something=object())
    assert read_manifest(artifact, KIND, 1) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["model"]


def test_nothing_appears_under_the_name_before_the_end(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "model", KIND, {}) as temporary:
        assert temporary.is_dir()
        assert not (tmp_path / "model").exists()


def test_older_artifact_of_the_same_kind_is_replaced_as_a_whole(artifact: Path) -> None:
    with new_artifact(artifact, KIND, {"format_version": 1}) as temporary:
        (temporary / "only.bin").write_bytes(b"new")
    assert sorted(path.name for path in artifact.iterdir()) == [MANIFEST, "only.bin"]
    assert [path.name for path in artifact.parent.iterdir()] == ["model"]


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert read_manifest(write(tmp_path / "model"), KIND, 1)


def test_linked_folder_is_replaced_where_it_is(artifact: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(artifact, target_is_directory=True)
    write(link, b"new")
    assert link.is_symlink()
    assert (artifact / "weights.bin").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="model"):
        write(tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_artifact_to_which_somebody_added_a_file_is_not_replaced(artifact: Path) -> None:
    (artifact / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"thesis\.txt"):
        write(artifact)
    assert (artifact / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert (artifact / "weights.bin").read_bytes() == b"weights" * 1000


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="exists"):
        write(tmp_path / "model")
    assert (tmp_path / "model").read_text(encoding="utf-8") == "mine"


def test_artifact_of_another_kind_is_refused(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="no other-kind"), new_artifact(artifact, "other-kind", {}):
        pass
    assert read_manifest(artifact, KIND, 1)


def _tamper(folder: Path) -> None:
    content = bytearray((folder / "weights.bin").read_bytes())
    content[5] ^= 1
    (folder / "weights.bin").write_bytes(content)


def _truncate(folder: Path) -> None:
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:-1])


def _change_manifest(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        (folder / MANIFEST).write_text(json.dumps({**manifest, **values}), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_tamper, r"weights\.bin is damaged"),
        (_truncate, r"weights\.bin is damaged"),
        (lambda folder: (folder / "weights.bin").write_bytes(b""), r"weights\.bin is damaged"),
        (lambda folder: (folder / "weights.bin").unlink(), r"weights\.bin is missing"),
        (lambda folder: (folder / "extra.bin").write_bytes(b"x"), r"extra\.bin"),
        (lambda folder: (folder / "extra").mkdir(), "extra"),
        (lambda folder: (folder / MANIFEST).unlink(), r"no manifest\.json"),
        (lambda folder: (folder / MANIFEST).write_text("{", encoding="utf-8"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]", encoding="utf-8"), "is not a manifest"),
        (_change_manifest(kind="something-else"), "'something-else', not 'test-artifact'"),
        (_change_manifest(format_version=2), "format 2, this version reads 1"),
        (_change_manifest(format_version=None), "format None"),
        (_change_manifest(files={}), "lists no|does not list"),
        (_change_manifest(files=None), "does not list its files"),
        (_change_manifest(files=["weights.bin"]), "does not list its files"),
    ],
)
def test_damage_is_found_and_named(artifact: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(artifact)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(artifact, KIND, 1)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "inner/file", "..", ".", ""])
def test_names_that_lead_out_of_the_folder_are_refused(artifact: Path, name: str) -> None:
    secret = artifact.parent / "secret"
    secret.write_text("secret", encoding="utf-8")
    manifest = read_manifest(artifact, KIND, 1)
    _change_manifest(files={**manifest["files"], name: sha256(secret)})(artifact)
    with pytest.raises(ArtifactError, match="does not list its files"):
        read_manifest(artifact, KIND, 1)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no manifest"):
        read_manifest(tmp_path / "nowhere", KIND, 1)
