"""Which values of ``run_qa``'s options make sense for an evaluation on a CPU."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import transformers

from cpuinfer_helpers.errors import InputError

# What libraries take: 32-bit integers for sizes, and as many bits of a seed (numpy.random.seed).
_LARGEST, _LARGEST_SEED = 2**31 - 1, 2**32 - 1
# Each is a process that imports and holds what it loads.
_MOST_WORKERS = 64

# The smallest and the largest value of each option that is a number; None stands for an option that was not given.
_RANGES: dict[str, tuple[float, float]] = {
    "max_seq_length": (1, _LARGEST),
    "doc_stride": (0, _LARGEST),
    "max_eval_samples": (1, math.inf),
    "max_predict_samples": (1, math.inf),
    "n_best_size": (1, _LARGEST),
    "max_answer_length": (1, _LARGEST),
    "null_score_diff_threshold": (-math.inf, math.inf),
    "seed": (0, _LARGEST_SEED),
    "data_seed": (0, _LARGEST_SEED),
    "per_device_eval_batch_size": (1, _LARGEST),
    "per_gpu_eval_batch_size": (1, _LARGEST),
    "per_device_train_batch_size": (1, _LARGEST),
    "eval_accumulation_steps": (1, _LARGEST),
    "dataloader_num_workers": (0, _MOST_WORKERS),
    "dataloader_prefetch_factor": (1, _LARGEST),
    "ddp_timeout": (1, _LARGEST),
    "ddp_bucket_cap_mb": (1, _LARGEST),
}

_PLAIN_LOOP = "the evaluation is a plain loop in this process"
_ON_CPU = "this command is for the CPU"
# Options that must stay as they are, with the reason.
_FIXED: dict[str, str] = {
    "dataloader_drop_last": "rows would be left out of the evaluation",
    "dataloader_in_order": "batches would come back in another order than the questions",
    "eval_do_concat_batches": "answers are found in the logits of all batches together",
    "eval_use_gather_object": "what is gathered are tensors",
    "prediction_loss_only": "answers are found in the logits, which it leaves out",
    "batch_eval_metrics": "SQuAD's scores are of all answers together",
    "past_index": "question answering models take no state of the batch before",
    "deepspeed": _PLAIN_LOOP,
    "fsdp": _PLAIN_LOOP,
    "fsdp_min_num_params": _PLAIN_LOOP,
    "fsdp_transformer_layer_cls_to_wrap": _PLAIN_LOOP,
    "parallelism_config": _PLAIN_LOOP,
    "mp_parameters": _PLAIN_LOOP,
    "fp16": f"{_ON_CPU}, where --bf16 is the shorter format",
    "fp16_full_eval": f"{_ON_CPU}, where --bf16_full_eval is the shorter format",
    "use_mps_device": _ON_CPU,
    "tpu_num_cores": _ON_CPU,
    "torch_compile": "give --jit_mode_eval with --jit_recipe compile",
    "torch_compile_backend": "give --jit_mode_eval with --jit_recipe compile",
    "torch_compile_mode": "give --jit_mode_eval with --jit_recipe compile",
    "torchdynamo": "give --jit_mode_eval with --jit_recipe compile",
    "use_liger_kernel": f"{_ON_CPU}, and Liger's kernels are not",
    "push_to_hub": "nothing is trained, so there is nothing to push",
    "resume_from_checkpoint": "nothing is trained; name the checkpoint with --model_name_or_path",
    "load_best_model_at_end": "nothing is trained",
}


def check_types(options: Mapping[str, Any], *kinds: type) -> None:
    """Refuse options of a file that are of another type than their dataclass says, before anything is made of them.

    From the command line everything comes as text. What a file has, transformers' own checks take as it is: a number in
    place of a file's name, for one, is a file descriptor that they read from and close.

    Parameters
    ----------
    options
        Values by name, as JSON has them.
    *kinds
        The dataclasses that are to be made of them. Names that none of them has are left to whoever makes them.

    Raises
    ------
    InputError
        The message names the option and its value.
    """
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for option in dataclasses.fields(kind):
            if option.name not in options:
                continue
            value, choices = options[option.name], option.metadata.get("choices")
            if not _fits(value, hints[option.name]):
                _refuse_type(option.name, value)
            if choices and value not in choices:
                raise InputError(f"--{option.name} is {str(value)[:40]!r}; choose from {', '.join(map(str, choices))}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON's value is of the type; what is to be read from a text, such as a choice, may be a text."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float))
    wanted = origin or hint
    if wanted in (int, str, list, dict, type(None)):
        return isinstance(value, wanted) and (wanted is not list or all(isinstance(one, str) for one in value))
    return isinstance(value, str)


def _refuse_type(option: str, value: Any) -> None:
    raise InputError(f"--{option} is {str(value)[:40]!r}, a {type(value).__name__}, which it does not take")


def check_options(*groups: Any) -> None:
    """Refuse values with which an evaluation would fail, leave something out, or do what nobody means.

    Parameters
    ----------
    *groups
        Dataclasses of options. Those that are not known here are left to whoever uses them.

    Raises
    ------
    InputError
        The message names the option, its value, and what would do.
    """
    for group in groups:
        hints = {} if isinstance(group, transformers.TrainingArguments) else typing.get_type_hints(type(group))
        for option in dataclasses.fields(group):
            value = getattr(group, option.name, None)
            if option.name in hints:
                _check_type(option.name, value, hints[option.name])
            _check_range(option.name, value)
            if option.name in _FIXED and not _is_default(value, option.default):
                raise InputError(f"--{option.name} {value} makes no sense here: {_FIXED[option.name]}; leave it out")
    _check_together(groups)


def _check_range(name: str, value: Any) -> None:
    if name not in _RANGES or value is None:
        return
    low, high = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InputError(f"--{name} is {str(value)[:40]}; give a number")
    if not low <= value <= high:
        wanted = f"at least {low}" if value < low else f"at most {high}"
        raise InputError(f"--{name} is {str(value)[:40]}; give {wanted}")


def _check_type(option: str, value: Any, wanted: Any) -> None:
    """Whoever makes the dataclass may give it anything."""
    if not isinstance(value, (str, bool, int, float, type(None))) or (
        wanted in (str, str | None, bool, bool | None) and not isinstance(value, wanted)
    ):
        _refuse_type(option, value)


def _is_default(value: Any, default: Any) -> bool:
    """Whether an option was left alone; texts and lists that are empty are what transformers makes of nothing."""
    return value == default or (not default and not value)


def _check_together(groups: tuple[Any, ...]) -> None:
    given = {option.name: getattr(group, option.name, None) for group in groups for option in dataclasses.fields(group)}
    stride, length = given.get("doc_stride"), given.get("max_seq_length")
    if stride is not None and length is not None and stride >= length:
        raise InputError(f"--doc_stride is {stride}; give less than --max_seq_length, which is {length}")
