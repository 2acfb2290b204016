"""Load a task from the hub when it answers, otherwise from what the package ships."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.saving.folders import sha256
from cpuinfer_helpers.tasks import hub
from cpuinfer_helpers.tasks.checkpoints import load_tokenizer, load_weights
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.kinds.base import TaskKind
from cpuinfer_helpers.tasks.kinds.registry import loadable_kind
from cpuinfer_helpers.tasks.task import Task

logger = logging.getLogger("cpuinfer_helpers")
# Rows of a hub data set that a task keeps: enough for a stable score, few enough for a laptop.
_HUB_ROWS = 1000
_SEED = 0


def load_task(name: str) -> Task:
    """Load a task: a model, its tokenizer, its data and its metric.

    From the hub when it answers within three seconds: the guide's ``csarron/bert-base-uncased-squad-v1`` with
    ``squad`` for question answering, ``distilbert-base-uncased-finetuned-sst-2-english`` with SST-2 for text
    classification, ``dslim/bert-base-NER`` with CoNLL-2003 for token classification, ``openai-community/gpt2`` with
    WikiText-2 for text generation. Otherwise offline: a model of BERT-base geometry, or GPT-2's for generation, with
    fixed random weights for timing, and a small checkpoint, trained on data that this package ships, for accuracy.
    ``origin`` says which, and why.

    Parameters
    ----------
    name
        ``question-answering``, ``text-classification``, ``token-classification`` or ``text-generation``.

    Returns
    -------
    Task

    Raises
    ------
    InputError
        For an unknown name, or that of a kind of task for which there is no data.
    """
    kind = loadable_kind(name)
    unavailable = hub.hub_unavailable()
    try:
        return _from_hub(kind)
    except Exception as error:  # a hub can fail in any phase, each library with errors of its own
        reason = _why_offline(unavailable, error)
        level = logging.INFO if reason == unavailable else logging.WARNING
        logger.log(level, "%s: going offline, because %s", name, reason)
    return _offline(kind, reason)


def checkpoint_directory(name: str, shipped: Path = DATA / "checkpoints") -> Path:
    """Folder of a task's small trained checkpoint, after its files have been checked.

    Parameters
    ----------
    name
        The task.
    shipped
        Folder with the shipped checkpoints and their ``scores.json``.

    Returns
    -------
    Path

    Raises
    ------
    ArtifactError
        If a file is missing or is not what was shipped.
    """
    damage = _damage(shipped, name)
    if damage is not None:
        raise ArtifactError(f"{damage}; install cpuinfer-helpers again, or in a clone: git checkout {shipped}")
    return shipped / name


def _from_hub(kind: TaskKind) -> Task:
    source = kind.data.source

    def load(folder: Path) -> tuple[torch.nn.Module, Any]:
        return load_weights(kind.auto_class, folder), load_tokenizer(folder, padding_side=kind.padding_side)

    model, tokenizer = hub.load_or_download_again(source.model, load)
    examples = source.read(hub.fetch_rows(source.dataset, _HUB_ROWS))
    origin = f"hub: {source.model}, {source.dataset.repository} (first {len(examples)} of its validation part)"
    return Task(kind.name, model, model, tokenizer, {"validation": examples}, origin)


def _offline(kind: TaskKind, reason: str) -> Task:
    folder = checkpoint_directory(kind.name)
    trained = load_weights(kind.auto_class, folder)
    tokenizer = load_tokenizer(folder, padding_side=kind.padding_side)
    datasets = {part: kind.data.examples(part) for part in kind.data.files if part != "train"}
    origin = (
        f"offline: {kind.data.geometry.name} geometry with fixed random weights for timing, a small trained "
        f"checkpoint for accuracy ({reason})"
    )
    return Task(kind.name, _to_time(kind, trained.config), trained, tokenizer, datasets, origin)


def _to_time(kind: TaskKind, trained_config: Any) -> torch.nn.Module:
    """The base model of a kind, the same random weights every time."""
    import transformers

    config = kind.data.geometry.config(trained_config)
    with switches.random_state_kept():
        torch.manual_seed(_SEED)
        return getattr(transformers, kind.auto_class).from_config(config).eval()


def _damage(shipped: Path, name: str) -> str | None:
    """What is wrong with a shipped checkpoint, or None."""
    try:
        sums = json.loads((shipped / "scores.json").read_text(encoding="utf-8"))[name]["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{shipped / 'scores.json'} cannot be read or does not list it ({type(error).__name__})"
    for file, digest in sums.items():
        path = shipped / name / file
        if not path.is_file():
            return f"{path} is missing"
        if sha256(path) != digest:
            return f"{path} is damaged: its sha256 differs"
    return None


def _why_offline(unavailable: str | None, error: Exception) -> str:
    """The hub is away and nothing was cached: that is expected. Everything else names the error."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = first_line(error)
    if unavailable is None:
        return f"the hub failed half way: {what}"
    if isinstance(error, LocalEntryNotFoundError):
        return unavailable
    return f"{unavailable}, and the cached copy cannot be used: {what}"
