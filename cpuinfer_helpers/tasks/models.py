"""A model of the user's own, from a folder or from the hub, with inputs to run it on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, format_bytes
from cpuinfer_helpers.errors import DataError, InputError, first_line
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.tasks import hub
from cpuinfer_helpers.tasks.checkpoints import load_tokenizer, load_weights
from cpuinfer_helpers.tasks.loading import TASK_NAMES, load_task, read_examples
from cpuinfer_helpers.tasks.task import Task

_AUTO_CLASSES = {
    "question-answering": "AutoModelForQuestionAnswering",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
}
MODEL_TASKS = tuple(_AUTO_CLASSES)
# Where transformers lists the classes of each task.
_CLASS_LISTS = {
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio-classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}
_LENGTH = 384
# One second at the rate that nearly all speech models are trained for.
_SAMPLES = 16_000
_SEED = 0


@dataclass(frozen=True, repr=False)
class LoadedModel(Displayed):
    """A model from a folder, the hub or a task; made by :func:`load_model`.

    Attributes
    ----------
    model
        In evaluation mode, FP32.
    task
        One of ``question-answering``, ``text-classification``, ``token-classification``, ``image-classification`` and
        ``audio-classification``.
    tokenizer
        Its tokenizer; None where there is none, and for images and audio.
    origin
        The folder or the hub's name; for a task's own model what the task says.
    notes
        What a user should know of its inputs.
    """

    model: torch.nn.Module
    task: str
    tokenizer: Any
    origin: str
    notes: tuple[str, ...] = ()

    def inputs(self, batch_size: int = 1, length: int | None = None) -> dict[str, torch.Tensor]:
        """Example inputs of the shape that the model is to be fast at.

        Parameters
        ----------
        batch_size
            Rows.
        length
            Tokens of a row, or samples of audio; unless given, 384 tokens (fewer if the model takes no more) or 16 000
            samples. Images have the size that the model's configuration names.

        Returns
        -------
        dict of str to Tensor
            Text: int64 token ids and mask of shape (batch, length), of the task's own texts where there is a tokenizer.
            Images and audio: normally distributed numbers from a fixed seed, which cost the same time as real ones.

        Raises
        ------
        InputError
            If a size is not positive, or the shape of an input cannot be told from the configuration.
        """
        if batch_size < 1 or (length is not None and length < 1):
            raise InputError(f"batch_size {batch_size} and length {length} must be at least 1")
        if self.task in TASK_NAMES:
            length = length or min(_LENGTH, _longest(self.model.config))
            return self._own_inputs(self._text(batch_size, length))
        shape = _shape_of(self.model, length)
        values = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(_SEED))
        return {self.model.main_input_name: values}

    def as_task(self) -> Task:
        """The task's own offline data with this model: for its metric, and rows to calibrate with.

        Raises
        ------
        InputError
            For images, audio, and models without a tokenizer.
        """
        if self.task not in TASK_NAMES or self.tokenizer is None:
            raise InputError(f"there is no data for {self.task} with this model; give a metric of your own")
        datasets = {"heldout": read_examples(self.task, "heldout")}
        return Task(self.task, self.model, self.model, self.tokenizer, datasets, self.origin)

    def table(self) -> Table:
        """Class, origin and size."""
        parameters = list(self.model.parameters())
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        rows = (
            ("class", type(self.model).__name__),
            ("task", self.task),
            ("from", self.origin),
            ("parameters", f"{sum(p.numel() for p in parameters) / 1e6:.1f} million, {format_bytes(size)}"),
        )
        return Table(("model", "seen"), rows, note=" ".join(self.notes))

    def _text(self, batch_size: int, length: int) -> dict[str, torch.Tensor]:
        if self.tokenizer is not None:
            return self.as_task().inputs(batch_size, length)
        generator = torch.Generator().manual_seed(_SEED)
        ids = torch.randint(0, self.model.config.vocab_size, (batch_size, length), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _own_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Without what this model does not take, such as segments for those without them."""
        from cpuinfer_helpers.interface.inputs import argument_names

        known = argument_names(self.model)
        return {name: tensor for name, tensor in inputs.items() if name in known}


def load_model(name_or_path: str | os.PathLike[str], task: str | None = None) -> LoadedModel:
    """Load a model from a folder or from the hub, or a task's own model.

    Code that comes with a model is not run, and weights are read as safetensors, or with ``weights_only=True``.

    Parameters
    ----------
    name_or_path
        A folder that ``save_pretrained`` wrote, or owner and name on the hub; or the name of a task of
        :func:`~cpuinfer_helpers.load_task`, for the model that is timed there (a folder of that name: ``./name``).
    task
        ``question-answering``, ``text-classification``, ``token-classification``, ``image-classification`` or
        ``audio-classification``; what the model's configuration says it was saved for unless given.

    Returns
    -------
    LoadedModel

    Raises
    ------
    InputError
        For an unknown task, a name that is neither a folder nor a name on the hub, or a model whose configuration does
        not tell its task; for one that needs code of its own, or lacks some of its tensors, such as the task's head.
    DataError
        If the model cannot be read, or the hub does not have it or does not answer.
    """
    if task is not None and task not in _AUTO_CLASSES:
        raise InputError(f"unknown task {task!r}; choose from {', '.join(MODEL_TASKS)}")
    folder = given_path(name_or_path, "name_or_path")
    if name_or_path in TASK_NAMES:
        return _of_task(str(name_or_path), task)
    name = os.fspath(name_or_path)
    try:
        if folder.is_dir():
            return _read(folder, task, str(folder))
        if name.count("/") > 1 or name.startswith((".", "~", "/")):
            raise InputError(f"{name} is no folder here, and no name on the hub; give one of the two")
        return hub.load_or_download_again(name, lambda path: _read(path, task, f"hub: {name}"))
    except InputError:
        raise
    except Exception as error:  # hub, safetensors, JSON and configurations each have errors of their own
        unavailable = hub.hub_unavailable()
        away = f" ({unavailable})" if unavailable and not folder.is_dir() else ""
        wanted = f" for {task}" if task else ""
        raise DataError(f"{name} cannot be loaded{wanted}: {first_line(error)}{away}") from error


def _of_task(name: str, task: str | None) -> LoadedModel:
    if task not in (None, name):
        raise InputError(f"{name!r} is a task, and the task given is {task!r}; leave one of the two out")
    loaded = load_task(name)
    return LoadedModel(loaded.model, name, loaded.tokenizer, loaded.origin)


def _read(folder: Path, task: str | None, origin: str) -> LoadedModel:
    task = task or _saved_for(folder, origin)
    model = load_weights(_AUTO_CLASSES[task], folder, local_files_only=True)
    if task not in TASK_NAMES:
        return LoadedModel(model, task, None, origin, ("Inputs are random numbers, which cost the same time.",))
    try:
        tokenizer = load_tokenizer(folder, local_files_only=True)
    except InputError:
        raise
    except Exception as error:  # each tokenizer reads files of its own, and says in its own way that they are missing
        note = f"No tokenizer ({first_line(error)}), so inputs are random tokens."
        return LoadedModel(model, task, None, origin, (note,))
    # Without any files, transformers 5 makes one that knows no words.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        return LoadedModel(model, task, None, origin, ("No tokenizer, so inputs are random tokens.",))
    return LoadedModel(model, task, tokenizer, origin)


def _saved_for(folder: Path, origin: str) -> str:
    """The task of the class that wrote the configuration."""
    from transformers.models.auto import modeling_auto

    saved = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    for task, list_name in _CLASS_LISTS.items():
        listed = getattr(modeling_auto, list_name).values()
        names = {name for entry in listed for name in ([entry] if isinstance(entry, str) else entry)}
        if names & set(saved):
            return task
    said = f"it was saved as {', '.join(saved)}" if saved else "its configuration names no class"
    raise InputError(f"{origin}: {said}, which tells no task; give task, one of {', '.join(MODEL_TASKS)}")


def _longest(config: Any) -> int:
    longest = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin number positions from two.
    return longest - 2 if isinstance(longest, int) and longest > 2 else _LENGTH


def _shape_of(model: torch.nn.Module, length: int | None) -> tuple[int, ...]:
    """Shape of one row of the main input, from the configuration."""
    makers: dict[str, Callable[[Any, int | None], tuple[int, ...] | None]] = {
        "pixel_values": _image_shape,
        "input_values": _audio_shape,
        "input_features": _features_shape,
    }
    maker = makers.get(model.main_input_name)
    shape = maker(model.config, length) if maker else None
    if shape is None:
        raise InputError(
            f"the shape of {model.main_input_name!r} cannot be told from the configuration of {type(model).__name__}; "
            "make the example inputs yourself"
        )
    return shape


def _image_shape(config: Any, length: int | None) -> tuple[int, ...]:
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return (getattr(config, "num_channels", 3), height, width)


def _audio_shape(config: Any, length: int | None) -> tuple[int, ...]:
    # The audio spectrogram transformer calls its spectrogram input_values too.
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return (config.max_length, config.num_mel_bins)
    return (length or _SAMPLES,)


def _features_shape(config: Any, length: int | None) -> tuple[int, ...] | None:
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return (config.num_mel_bins, 2 * config.max_source_positions)
    if hasattr(config, "feature_projection_input_dim"):
        # Two frames of 10 ms are stacked to one.
        return (max(1, (length or _SAMPLES) // 320), config.feature_projection_input_dim)
    return None
