"""Write a model whose layers store their weights in other ways, and make it again without the original weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.generation import linears
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.saving.tensors import read_named_tensors
from cpuinfer_helpers.saving.weights import WEIGHTS_FILE, refuse_larger


def write_converted(model: torch.nn.Module, folder: Path) -> dict[str, Any]:
    """Write the tensors of a model, each once.

    Parameters
    ----------
    model
        In which modules of :mod:`cpuinfer_helpers.generation.linears` stand for others.
    folder
        Where to.

    Returns
    -------
    dict
        ``replaced``: the class of each module that stands for another, by path. ``same``: the name under which a
        tensor stands that was not written again.
    """
    replaced: dict[str, str] = {}
    named: dict[str, torch.Tensor] = {}
    for path, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, linears.Replacing):
            replaced[path] = type(part).__name__
        else:
            named |= {_joined(path, name): tensor for name, tensor in _own_tensors(part).items()}
    tensors, same = _each_once(named)
    for path, first in _first_paths(model, replaced).items():
        if first == path:
            part = model.get_submodule(path)
            tensors |= {_joined(path, name): tensor for name, tensor in part.tensors().items()}
        else:
            same[path] = first
    _write(tensors, folder / WEIGHTS_FILE)
    return {"replaced": replaced, "same": same}


def read_converted(described: Mapping[str, Any], model_class: type, config: Any, folder: Path) -> torch.nn.Module:
    """Make the model again.

    Parameters
    ----------
    described
        What :func:`write_converted` returned.
    model_class, config
        Of transformers.
    folder
        Where it was written.

    Raises
    ------
    ArtifactError
        If what was written does not fit the model.
    """
    tensors = read_named_tensors(folder / WEIGHTS_FILE)
    try:
        refuse_larger(model_class, config, folder)
        with switches.random_state_kept(), switches.held(), torch.device("meta"):
            model = model_class._from_config(config, attn_implementation=config._attn_implementation).eval()
        _put_replaced(model, described["replaced"], described["same"], tensors)
        _assign(model, described["replaced"], described["same"], tensors)
    except ArtifactError:
        raise
    except Exception as error:  # with a changed manifest it may fit in any wrong way
        raise ArtifactError(f"{folder}: its weights do not fit {model_class.__name__}: {first_line(error)}") from error
    return model


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Straight to the file: a language model's weights do not fit into memory twice."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"the weights cannot be written as safetensors: {first_line(error)}") from error
    # Safetensors makes it readable for its owner only.
    path.chmod(0o644)


def _put_replaced(
    model: torch.nn.Module, replaced: Mapping[str, str], same: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    made: dict[str, torch.nn.Module] = {}
    for path, kind in replaced.items():
        if path not in same:
            own = {n.removeprefix(f"{path}."): t for n, t in tensors.items() if n.rpartition(".")[0] == path}
            made[path] = linears.KINDS[kind].from_tensors(own)
    for path in replaced:
        linears.put(model, path, made[same.get(path, path)])


def _assign(
    model: torch.nn.Module, replaced: Mapping[str, str], same: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    made: dict[str, torch.Tensor] = {}
    for path, part in model.named_modules():
        if path in replaced:
            continue
        for name in _own_tensors(part):
            full = _joined(path, name)
            first = same.get(full, full)
            if first not in made:
                made[first] = tensors[first]
            _set_tensor(part, name, made[first])


def _set_tensor(part: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    if name in part._parameters:
        part._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)
    elif name in part._buffers:
        part._buffers[name] = tensor
    else:
        setattr(part, name, tensor)


def _own_tensors(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers, also those that are not part of a state, and tensors that are plain attributes."""
    held = {**part._parameters, **part._buffers, **vars(part)}
    return {name: tensor for name, tensor in held.items() if isinstance(tensor, torch.Tensor)}


def _each_once(named: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    first: dict[int, str] = {}
    same = {name: first[id(tensor)] for name, tensor in named.items() if first.setdefault(id(tensor), name) != name}
    return {name: tensor.detach() for name, tensor in named.items() if name not in same}, same


def _first_paths(model: torch.nn.Module, paths: Mapping[str, str]) -> dict[str, str]:
    first: dict[int, str] = {}
    return {path: first.setdefault(id(model.get_submodule(path)), path) for path in paths}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
