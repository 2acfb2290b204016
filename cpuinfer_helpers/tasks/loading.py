"""Load a task from the hub when it answers, otherwise from what the package ships."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, InputError, first_line
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.saving.folders import sha256
from cpuinfer_helpers.tasks import hub
from cpuinfer_helpers.tasks.checkpoints import load_tokenizer, load_weights
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.kinds.text_classification import LabelledText, read_texts
from cpuinfer_helpers.tasks.kinds.token_classification import TaggedSentence, read_sentences
from cpuinfer_helpers.tasks.squad.data import parse_squad, read_squad
from cpuinfer_helpers.tasks.task import Example, Task

logger = logging.getLogger("cpuinfer_helpers")
# Rows of a hub data set that a task keeps: enough for a stable score, few enough for a laptop.
_HUB_ROWS = 1000
_SEED = 0


@dataclass(frozen=True)
class _Source:
    """Where one task's parts come from."""

    auto_class: str
    model_class: str
    repository: str
    dataset: hub.DatasetFile
    read_rows: Callable[[Sequence[Mapping[str, Any]]], list[Example]]
    read_file: Callable[[Path], Sequence[Example]]


def _squad_rows(rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    return list(parse_squad(list(rows), "the squad data set"))


def _sst2_rows(rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    return [LabelledText(row["sentence"], ("NEGATIVE", "POSITIVE")[row["label"]]) for row in rows]


# The order in which CoNLL-2003 on the hub numbers its tags.
_CONLL_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def _conll_rows(rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    return [TaggedSentence(tuple(row["tokens"]), tuple(_CONLL_TAGS[n] for n in row["ner_tags"])) for row in rows]


_SOURCES = {
    "question-answering": _Source(
        "AutoModelForQuestionAnswering",
        "BertForQuestionAnswering",
        "csarron/bert-base-uncased-squad-v1",
        hub.DatasetFile("rajpurkar/squad", "plain_text/validation-00000-of-00001.parquet"),
        _squad_rows,
        read_squad,
    ),
    "text-classification": _Source(
        "AutoModelForSequenceClassification",
        "BertForSequenceClassification",
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        hub.DatasetFile("stanfordnlp/sst2", "data/validation-00000-of-00001.parquet"),
        _sst2_rows,
        read_texts,
    ),
    "token-classification": _Source(
        "AutoModelForTokenClassification",
        "BertForTokenClassification",
        "dslim/bert-base-NER",
        hub.DatasetFile("eriktks/conll2003", "conll2003/validation/0000.parquet", "refs/convert/parquet"),
        _conll_rows,
        read_sentences,
    ),
}
TASK_NAMES = tuple(_SOURCES)


def load_task(name: str) -> Task:
    """Load a task: a model, its tokenizer, its data and its metric.

    From the hub when it answers within three seconds: the guide's ``csarron/bert-base-uncased-squad-v1`` with
    ``squad`` for question answering, ``distilbert-base-uncased-finetuned-sst-2-english`` with SST-2 for text
    classification, ``dslim/bert-base-NER`` with
    CoNLL-2003 for token classification. Otherwise offline: a model of BERT-base geometry with fixed random weights
    for timing, and a small checkpoint, trained on data that this package ships, for accuracy. ``origin`` says which,
    and why.

    Parameters
    ----------
    name
        ``question-answering``, ``text-classification`` or ``token-classification``.

    Returns
    -------
    Task

    Raises
    ------
    InputError
        For an unknown name.
    """
    if not isinstance(name, str) or name not in _SOURCES:
        raise InputError(f"unknown task {name!r}; choose from {', '.join(TASK_NAMES)}")
    unavailable = hub.hub_unavailable()
    try:
        return _from_hub(name)
    except Exception as error:  # a hub can fail in any phase, each library with errors of its own
        reason = _why_offline(unavailable, error)
        level = logging.INFO if reason == unavailable else logging.WARNING
        logger.log(level, "%s: going offline, because %s", name, reason)
    return _offline(name, reason)


def read_examples(name: str, part: str) -> Sequence[Example]:
    """The examples of a shipped data file: ``train``, ``heldout`` or ``prose`` of a task."""
    return _SOURCES[name].read_file(DATA / f"{name}-{part}.json")


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


def _from_hub(name: str) -> Task:
    source = _SOURCES[name]

    def load(folder: Path) -> tuple[torch.nn.Module, Any]:
        return load_weights(source.auto_class, folder), load_tokenizer(folder)

    model, tokenizer = hub.load_or_download_again(source.repository, load)
    examples = source.read_rows(hub.fetch_rows(source.dataset, _HUB_ROWS))
    origin = f"hub: {source.repository}, {source.dataset.repository} (first {len(examples)} of its validation part)"
    return Task(name, model, model, tokenizer, {"validation": examples}, origin)


def _offline(name: str, reason: str) -> Task:
    source = _SOURCES[name]
    folder = checkpoint_directory(name)
    trained, tokenizer = load_weights(source.auto_class, folder), load_tokenizer(folder)
    datasets = {part: read_examples(name, part) for part in ("heldout", "prose")}
    origin = (
        "offline: BERT-base geometry with fixed random weights for timing, a small trained checkpoint for accuracy "
        f"({reason})"
    )
    return Task(name, _bert_base(source.model_class, trained.config), trained, tokenizer, datasets, origin)


def _bert_base(class_name: str, trained_config: Any) -> torch.nn.Module:
    """BERT-base as its configuration's defaults have it (12 layers, 768 wide), the same random weights every time."""
    import transformers

    labels = {"id2label": trained_config.id2label, "label2id": trained_config.label2id}
    with switches.random_state_kept():
        torch.manual_seed(_SEED)
        return getattr(transformers, class_name)(transformers.BertConfig(**labels)).eval()


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
