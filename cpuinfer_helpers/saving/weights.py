"""Write an eager model as weights and configuration, and make it again from them; nothing is pickled."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.saving.attention_names import unknown_attention

logger = logging.getLogger("cpuinfer_helpers")

WEIGHTS_FILE = "weights.safetensors"
_CONFIG_FILE = "config.json"
# A model makes a few tensors for each that it keeps, tables of positions among them, and fills each by a few calls.
_TIMES, _ELEMENTS, _CALLS = 4, 10**7, 100
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
    return {"dtypes": _dtypes(model), **write_config(model, folder)}


def write_config(model: torch.nn.Module, folder: Path) -> dict[str, Any]:
    """Write the configuration of a transformers model.

    Returns
    -------
    dict
        For the manifest: names of the classes and the attention implementation.
    """
    config = getattr(model, "config", None)
    described = {"class": _path_of(type(model))}
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
    config_class = _class_of(described["config_class"], "PretrainedConfig") if "config_class" in described else None
    if config_class is None:
        return None
    try:
        settings = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        for named in (settings, {"attn_implementation": described["attention"]}):
            attention = unknown_attention(named)
            if attention is not None:
                raise ValueError(f"it asks for the attention {attention!r}, which this transformers does not have")
        config = config_class.from_dict(settings)
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
    try:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in described["dtypes"]:
                tensor.data = tensor.data.to(dtype_of(described["dtypes"][name]))
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
        except Exception:  # another version of transformers has no such module, or it is the name of none
            return None
    else:
        found = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _new_model(described: Mapping[str, Any], folder: Path) -> torch.nn.Module:
    model_class, config = model_class_of(described), read_config(described, folder)
    if config is None or model_class is None or not hasattr(model_class, "_from_config"):
        raise ArtifactError(
            f"{folder} holds a {described['class'].partition(':')[2]}, which is no class of the transformers installed "
            "here: load_optimized(..., model=...) takes an instance of it, whose weights are replaced"
        )
    try:
        with switches.random_state_kept():
            refuse_larger(model_class, config, folder)
            return model_class._from_config(config, attn_implementation=described["attention"])
    except ArtifactError:
        raise
    except Exception as error:  # each class builds itself in its own way
        raise ArtifactError(
            f"{folder}: a {model_class.__name__} of its configuration cannot be made: {first_line(error)}; save again"
        ) from error


def model_class_of(described: Mapping[str, Any]) -> Any:
    """The class of a model that was written, if it is one of transformers' models; None if it is not."""
    return _class_of(described["class"], "PreTrainedModel")


def _class_of(path: str, base: str) -> type | None:
    """A class by its path, if it is one of the library's own kind: others would be called with what a file says."""
    import transformers

    found = find_class(path)
    return found if found is not None and issubclass(found, getattr(transformers, base)) else None


class _Bounded(TorchFunctionMode):
    """Stops whoever makes more or larger tensors than a model of that size needs."""

    def __init__(self, elements: int, tensors: int) -> None:
        super().__init__()
        self._elements, self._left = elements, tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._left -= 1
        if self._left < 0 or (isinstance(made, torch.Tensor) and made.numel() > self._elements):
            raise _TooLarge
        return made


class _TooLarge(Exception):
    pass


def refuse_larger(model_class: Any, config: Any, folder: Path) -> None:
    """Make a model without memory first: a changed number in its configuration may ask for any size.

    Raises
    ------
    ArtifactError
        If it is larger than the weights in the folder.
    """
    sizes = _sizes_of(folder / WEIGHTS_FILE)
    bounded = _Bounded(_TIMES * max(sizes, default=0) + _ELEMENTS, _CALLS * len(sizes) + _CALLS**2)
    # A copy, because some classes write into their configuration.
    try:
        with bounded, torch.device("meta"):
            model_class._from_config(copy.deepcopy(config))
    except _TooLarge:
        raise ArtifactError(
            f"{folder}: its configuration asks for a {model_class.__name__} that is larger than its weights; save again"
        ) from None
    except (RuntimeError, NotImplementedError) as error:  # of what looks at the numbers of its tensors
        logger.debug("%s cannot be made without memory: %s", model_class.__name__, first_line(error))


def _sizes_of(path: Path) -> list[int]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  it is no mapping


def _path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _dtypes(model: torch.nn.Module) -> dict[str, str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors}
