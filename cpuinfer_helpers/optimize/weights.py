"""Write an eager model as weights and configuration, and make it again from them; nothing is pickled."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers import switches
from cpuinfer_helpers.errors import ArtifactError, first_line

WEIGHTS_FILE = "weights.safetensors"
_CONFIG_FILE = "config.json"
# How safetensors, whose errors are of one class, says that the system refused.
_IO_ERROR = re.compile(r"I/O error|IoError")


def write_model(model: torch.nn.Module, folder: Path) -> dict[str, Any]:
    """Write the weights, tied ones once, and the configuration of a transformers model.

    Returns
    -------
    dict
        For the manifest: names of the classes, dtype and attention implementation.

    Raises
    ------
    ArtifactError
        If the weights cannot be written as safetensors.
    OSError
        If there is no room for them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    try:
        save_model(model, str(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError, ValueError) as error:
        if _IO_ERROR.search(str(error)):
            raise OSError(f"the weights cannot be written: {first_line(error)}") from error
        raise ArtifactError(
            f"the weights of {type(model).__name__} cannot be written to {folder.parent} as safetensors: "
            f"{first_line(error)}; nothing was changed"
        ) from error
    # Safetensors makes it readable for its owner only.
    (folder / WEIGHTS_FILE).chmod(0o644)
    config = getattr(model, "config", None)
    described = {"class": _path_of(type(model)), "dtypes": _dtypes(model)}
    if not hasattr(config, "to_json_string"):
        return described
    (folder / _CONFIG_FILE).write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    attention = getattr(config, "_attn_implementation", None)
    return described | {"config_class": _path_of(type(config)), "attention": attention}


def read_config(described: Mapping[str, Any], folder: Path) -> Any:
    """The configuration that was written; None for models without one and for a class that cannot be imported.

    Raises
    ------
    ArtifactError
        If the file does not hold a configuration of that class.
    """
    config_class = find_class(described["config_class"]) if "config_class" in described else None
    if config_class is None:
        return None
    try:
        config = config_class.from_dict(json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8")))
        config._attn_implementation = described["attention"]
    except Exception as error:  # each class checks its entries, and has errors of its own
        raise ArtifactError(f"{folder / _CONFIG_FILE} cannot be read: {first_line(error)}; save again") from error
    return config


def read_model(described: Mapping[str, Any], folder: Path, model: torch.nn.Module | None) -> torch.nn.Module:
    """Make the model again, in evaluation mode.

    Parameters
    ----------
    described
        What :func:`write_model` returned.
    folder
        Where it wrote.
    model
        An instance of the class, for models that are not of transformers; its weights are replaced.

    Raises
    ------
    ArtifactError
        If the class is not of transformers and no instance was given, or the weights do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    if model is None:
        model = _new_model(described, folder)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in described["dtypes"]:
            tensor.data = tensor.data.to(dtype_of(described["dtypes"][name]))
    try:
        load_model(model, str(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{folder}: its weights do not fit {type(model).__name__}: {first_line(error)}") from error
    return model.eval()


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name such as ``bfloat16``.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found


def find_class(path: str) -> type | None:
    """A class of transformers, or of a module that the user has imported already; None if it is neither."""
    module_name, _, qualified_name = path.partition(":")
    if module_name.split(".")[0] == "transformers":
        try:
            found: Any = importlib.import_module(module_name)
        except ImportError:  # another version of transformers has no such module
            return None
    else:
        found = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _new_model(described: Mapping[str, Any], folder: Path) -> torch.nn.Module:
    model_class, config = find_class(described["class"]), read_config(described, folder)
    if config is None or model_class is None or not hasattr(model_class, "_from_config"):
        raise ArtifactError(
            f"{folder} holds a {described['class'].partition(':')[2]}, which is no class of the transformers installed "
            "here: load_optimized(..., model=...) takes an instance of it, whose weights are replaced"
        )
    with switches.random_state_kept():
        return model_class._from_config(config, attn_implementation=described["attention"])


def _path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _dtypes(model: torch.nn.Module) -> dict[str, str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors}
