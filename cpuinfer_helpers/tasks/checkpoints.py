"""Read checkpoints: no code of theirs is run, and none is taken that lacks some of the model's tensors."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.saving.attention_names import unknown_attention

# As many tensors are named; of a checkpoint of another model, all are missing.
_NAMED = 3
# The class that loads models without a head.
_BARE = "AutoModel"


def load_config(name: str | os.PathLike[str], **options: Any) -> Any:
    """A model's configuration, without running code that may lie beside it.

    Parameters
    ----------
    name
        A folder, or owner and name on the hub.
    **options
        For ``from_pretrained``.

    Raises
    ------
    InputError
        If it needs code of its own, or names an implementation of attention that would be fetched from the hub.
    """
    import transformers

    config = _without_own_code(transformers.AutoConfig.from_pretrained, name, options)
    _refuse_attention(name, [config.to_dict(), {"attn_implementation": getattr(config, "_attn_implementation", None)}])
    return config


def load_tokenizer(name: str | os.PathLike[str], *, padding_side: str = "right", **options: Any) -> Any:
    """A tokenizer that pads on the right, without running code that may lie beside it; see :func:`load_config`.

    For models that go on after the last token, ``padding_side`` is ``left``. Many of their tokenizers have no padding
    token; it is then the one that ends a text, as ``generate`` has it.
    """
    import transformers

    tokenizer = _without_own_code(transformers.AutoTokenizer.from_pretrained, name, options)
    # Answers are read from the first column on, and absolute positions begin there: padding has to come last.
    tokenizer.padding_side = padding_side
    if padding_side == "left" and tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(
    class_name: str, name: str | os.PathLike[str], *, padding_side: str = "right", **options: Any
) -> Any:
    """What makes a model's inputs, without running code that may lie beside it; see :func:`load_config`.

    ``class_name`` is ``AutoTokenizer``, for which see :func:`load_tokenizer`, ``AutoImageProcessor`` or
    ``AutoFeatureExtractor``.
    """
    import transformers

    if class_name == "AutoTokenizer":
        return load_tokenizer(name, padding_side=padding_side, **options)
    return _without_own_code(getattr(transformers, class_name).from_pretrained, name, options)


def load_weights(auto_class: str, name: str | os.PathLike[str], **options: Any) -> torch.nn.Module:
    """A model with all of its weights, in evaluation mode and FP32, without running code that may lie beside them.

    Tensors that a checkpoint lacks would be random numbers, such as the head of a model that was saved without its
    task: transformers only logs this.

    Parameters
    ----------
    auto_class
        Name of a class of transformers, such as ``AutoModelForQuestionAnswering``.
    name
        A folder, or owner and name on the hub.
    **options
        For ``from_pretrained``.

    Raises
    ------
    InputError
        If it needs code of its own, names an implementation of attention that would be fetched from the hub, or lacks
        some of the model's tensors.
    """
    import transformers

    _refuse_attention_in(name)
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    load = getattr(transformers, auto_class).from_pretrained
    model, found = _without_own_code(load, name, options)
    if auto_class == _BARE and _lacks_only_the_pooler(model, found["missing_keys"]):
        model, found = _without_own_code(load, name, {**options, "add_pooling_layer": False})
    others = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    for keys, what in ((found["missing_keys"], "has no weights for"), (others, "has other shapes for")):
        if keys:
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            raise InputError(
                f"{name} is no {_task_of(auto_class)} checkpoint: it {what} {', '.join(sorted(keys)[:_NAMED])}{more}, "
                f"which a {type(model).__name__} has; give one that was trained and saved for this"
            )
    return model.float().eval()


def _lacks_only_the_pooler(model: torch.nn.Module, missing: Collection[str]) -> bool:
    """Whether a model was saved with a head that has no use for the pooler, which it can be made without."""
    only = bool(missing) and all(key.startswith("pooler.") for key in missing)
    return only and "add_pooling_layer" in inspect.signature(type(model).__init__).parameters


def _task_of(auto_class: str) -> str:
    """``AutoModelForQuestionAnswering``: question answering."""
    if auto_class == _BARE:
        return "feature extraction"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", auto_class.removeprefix("AutoModelFor")).lower()


def _without_own_code(load: Callable[..., Any], name: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    try:
        # Unless this is given, it asks on the terminal, and a yes runs the code.
        return load(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise InputError(
            f"{name} needs Python code of its own, which is never run here: load it yourself, if you trust it, and "
            "give the model itself"
        ) from error


def _refuse_attention_in(name: str | os.PathLike[str]) -> None:
    try:
        settings = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not a folder, or one that from_pretrained has words for
        return
    _refuse_attention(name, settings)


def _refuse_attention(name: str | os.PathLike[str], settings: Any) -> None:
    attention = unknown_attention(settings)
    if attention is not None:
        raise InputError(
            f"{name} asks for the attention {attention!r}, which this transformers does not have; remove it from "
            "config.json"
        )
