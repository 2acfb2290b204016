"""A model of the user's own, from a folder or from the hub, with inputs to run it on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, format_bytes
from cpuinfer_helpers.errors import DataError, InputError, first_line
from cpuinfer_helpers.interface.inputs import argument_names
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.tasks import hub
from cpuinfer_helpers.tasks.batches import Model, padded_batches
from cpuinfer_helpers.tasks.checkpoints import load_processor, load_weights
from cpuinfer_helpers.tasks.kinds.base import TaskKind
from cpuinfer_helpers.tasks.kinds.registry import get_kind, kind_names, kinds, task_names
from cpuinfer_helpers.tasks.loading import load_task
from cpuinfer_helpers.tasks.metrics import TaskMetric, VectorMetric
from cpuinfer_helpers.tasks.task import Task
from cpuinfer_helpers.tasks.texts import encoded_texts, running_text

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# What a processor is called, and what inputs are made of without one.
_INSTEAD = {
    "AutoTokenizer": ("tokenizer", "random tokens"),
    "AutoImageProcessor": ("image processor", "random numbers, which cost the same time"),
    "AutoFeatureExtractor": ("feature extractor", "random numbers, which cost the same time"),
}


@dataclass(frozen=True, repr=False)
class LoadedModel(Displayed):
    """A model from a folder, the hub or a task; made by :func:`load_model`.

    Attributes
    ----------
    model
        In evaluation mode, FP32.
    task
        What it is for: ``question-answering``, ``text-classification``, ``token-classification``,
        ``text-generation``, ``audio-classification``, ``feature-extraction``, ``fill-mask``,
        ``image-classification`` or ``sentence-similarity``.
    tokenizer
        Its tokenizer; None where there is none, and for images and audio.
    origin
        The folder or the hub's name; for a task's own model what the task says.
    notes
        What a user should know of its inputs.
    processor
        Its image processor or feature extractor, for images and audio; None where there is none, and for texts.
    """

    model: torch.nn.Module
    task: str
    tokenizer: Any
    origin: str
    notes: tuple[str, ...] = ()
    processor: Any = None

    @property
    def kind(self) -> TaskKind:
        """How models for this task are loaded and run."""
        return get_kind(self.task)

    def inputs(self, batch_size: int = 1, length: int | None = None) -> dict[str, torch.Tensor]:
        """Example inputs of the shape that the model is to be fast at.

        Parameters
        ----------
        batch_size
            Rows.
        length
            Tokens of a row, or samples of audio; unless given, 384 tokens (fewer if the model takes no more) or 16 000
            samples. Images have the size that the processor makes, or the model's configuration names.

        Returns
        -------
        dict of str to Tensor
            Text: int64 token ids and mask of shape (batch, length), of the task's own texts, or of shipped ones, where
            there is a tokenizer. Images and audio: random pixels and noise from a fixed seed, as the processor makes
            them, or where there is none normally distributed numbers; they cost the same time as real ones.

        Raises
        ------
        InputError
            If a size is not positive, or the shape of an input cannot be told from the configuration.
        """
        if batch_size < 1 or (length is not None and length < 1):
            raise InputError(f"batch_size {batch_size} and length {length} must be at least 1")
        processor = self.tokenizer if self.kind.reads_texts else self.processor
        return self._own_inputs(self.kind.inputs(self.kind, self.model, processor, batch_size, length))

    def running_text(self, rows: int = 8, length: int = 64) -> torch.Tensor | None:
        """Shipped texts one after the other in the model's own tokens, for ``held_out``; None without a tokenizer.

        Parameters
        ----------
        rows, length
            As for :meth:`Task.running_text`.
        """
        if self.tokenizer is None:
            return None
        return running_text(self.tokenizer, self.kind.texts("heldout"), rows, length)

    def as_task(self) -> Task:
        """The task's own offline data with this model: for its metric, and rows to calibrate with.

        Raises
        ------
        InputError
            For kinds of tasks that have none, and models without a tokenizer.
        """
        data = self.kind.data
        if data is None or self.tokenizer is None:
            raise InputError(f"there is no data for {self.task} with this model; give a metric of your own")
        datasets = {"heldout": data.examples("heldout")}
        return Task(self.task, self.model, self.model, self.tokenizer, datasets, self.origin)

    def metric(self, examples: int) -> Callable[[Model], float]:
        """What tells whether a prepared model's answers are still right, for :func:`~cpuinfer_helpers.optimize`.

        Parameters
        ----------
        examples
            On so many examples, the first ones.

        Returns
        -------
        callable
            Takes a model that is called with keyword inputs, and returns a number, more is better: the task's main
            metric on its own data, in percent, or, where answers are vectors, the mean cosine between a model's and
            this one's; perplexity, of which less is better, has its sign changed.

        Raises
        ------
        InputError
            If there is neither, there is no tokenizer, or ``examples`` is not positive.
        """
        if examples < 1:
            raise InputError(f"examples is {examples}; give at least 1")
        if self.kind.vectors is None or self.tokenizer is None:
            return TaskMetric(self.as_task(), examples)
        return VectorMetric.of(self.task, self.model, self.tokenizer, examples)

    def calibration_inputs(self, count: int = 32) -> list[dict[str, torch.Tensor]]:
        """Rows of a training part that is never scored, to calibrate a quantised model with; none without a tokenizer.

        Parameters
        ----------
        count
            As for :meth:`Task.calibration_inputs`.

        Returns
        -------
        list of dict of str to Tensor
            One row each.
        """
        if self.tokenizer is None:
            return []
        if self.kind.data is not None:
            return self.as_task().calibration_inputs(count)
        rows = encoded_texts(self.tokenizer, self.kind.texts("train")[:count])
        return [self._own_inputs(batch) for batch in padded_batches(self.tokenizer, rows, 1, None, "length")]

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

    def _own_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Without what this model does not take, such as segments for those without them."""
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
        ``question-answering``, ``text-classification``, ``token-classification``, ``text-generation``,
        ``audio-classification``, ``feature-extraction``, ``fill-mask``, ``image-classification`` or
        ``sentence-similarity``; what the model's
        configuration says it was saved for unless given. Models without a head, for features or similarity, do not say.

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
    if task is not None:
        get_kind(task)
    folder = given_path(name_or_path, "name_or_path")
    if name_or_path in task_names():
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
    kind = get_kind(task) if task else _saved_for(folder, origin)
    model = load_weights(kind.auto_class, folder, local_files_only=True)
    processor, note = _processor(kind, folder)
    notes = (note,) if note else ()
    if kind.reads_texts:
        return LoadedModel(model, kind.name, processor, origin, notes)
    return LoadedModel(model, kind.name, None, origin, notes, processor)


def _processor(kind: TaskKind, folder: Path) -> tuple[Any, str]:
    """What makes inputs, or None and a sentence about what they are instead."""
    what, instead = _INSTEAD[kind.processor]
    nothing = f"No {what}, so inputs are {instead}."
    if not kind.reads_texts and not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return None, nothing
    try:
        processor = load_processor(kind.processor, folder, padding_side=kind.padding_side, local_files_only=True)
    except InputError:
        raise
    except Exception as error:  # each reads files of its own, and says in its own way that they are missing
        return None, f"No {what} ({first_line(error)}), so inputs are {instead}."
    # Without any files, transformers 5 makes one that knows no words.
    if kind.reads_texts and len(processor) <= len(processor.all_special_tokens):
        return None, nothing
    return processor, ""


def _saved_for(folder: Path, origin: str) -> TaskKind:
    """The only kind of task that the class which wrote the configuration is for."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    told = [kind for kind in kinds() if kind.is_told_by(saved)]
    if len(told) == 1:
        return told[0]
    said = f"it was saved as {', '.join(saved)}" if saved else "its configuration names no class"
    raise InputError(f"{origin}: {said}, which tells no task; give task, one of {', '.join(kind_names())}")
