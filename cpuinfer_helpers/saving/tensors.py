"""Modules and tensors in files: written through memory, read without running anything that a file may name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.graph import jit_deprecations_ignored
from cpuinfer_helpers.saving.module_archive import check_module_archive


def write_module(module: torch.jit.ScriptModule, path: Path) -> None:
    """Write a ScriptModule; needs memory for another copy of its weights meanwhile.

    Writing files itself, TorchScript ends the whole process when the disk is full.

    Raises
    ------
    OSError
        If the file cannot be written.
    ArtifactError
        If :func:`read_module` would refuse it.
    """
    with jit_deprecations_ignored():
        path.write_bytes(module.save_to_buffer())
    check_module_archive(path, advice="a trace that would not be read again is not saved")


def read_module(path: str | os.PathLike[str]) -> torch.jit.ScriptModule:
    """Read a ScriptModule with TorchScript's own reader, which knows tensors and TorchScript's types only.

    A TorchScript file is a program. What it could do to files, and what it would run while it is loaded, is looked for
    before anything is deserialised; see :mod:`cpuinfer_helpers.saving.module_archive`.

    Raises
    ------
    ArtifactError
        If the file is no such module, or names an operator for files, or defines ``__setstate__``.
    """
    check_module_archive(path)
    try:
        with jit_deprecations_ignored():
            return torch.jit.load(os.fspath(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is no TorchScript module: {first_line(error)}; save the model again") from error


def write_named_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors by name as safetensors.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from safetensors.torch import save

    # Copied, because outputs may be views of each other, which the format cannot express.
    plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    path.write_bytes(save(plain))


def read_named_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read what :func:`write_named_tensors` wrote.

    Raises
    ------
    ArtifactError
        If the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read: {first_line(error)}; save the model again") from error
