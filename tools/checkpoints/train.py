"""Train the offline checkpoints from scratch: ``python -m tools.checkpoints.train --output DIR``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine.scratch import unfinished_folder
from cpuinfer_helpers.saving.folders import move_into_place, sha256, write_text
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.kinds.registry import get_kind
from cpuinfer_helpers.tasks.kinds.token_classification import entity_f1
from cpuinfer_helpers.tasks.squad.windows import score_answers
from cpuinfer_helpers.tasks.task import Task
from tools.checkpoints import language_model, text_generation
from tools.checkpoints.training import SETTINGS, make_tokenizer, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("cpuinfer_helpers")
TASK_NAMES = tuple(SETTINGS)

SEED = 1
SPLITS = ("heldout", "prose")


@dataclass(frozen=True)
class Scores:
    """What one checkpoint scores, in percent, beside what guessing would; perplexity is no percentage.

    Attributes
    ----------
    task
        Name of the task.
    metric
        Name of the metric of `heldout`, `prose` and `chance`.
    heldout
        Score on the generated held-out file: other names and numbers than in training, many wordings new.
    prose
        Score on the file written by hand, in sentences that no generator made.
    chance
        The held-out score of guessing (see `chance_score`).
    details
        Further figures, such as exact match, and the number of examples of each file.
    training_seconds
        Wall-clock time of the training.
    seed
        Seed of the training.
    versions
        Python, torch and transformers.
    files
        Name to SHA-256 of every file of the checkpoint.
    """

    task: str
    metric: str
    heldout: float
    prose: float
    chance: float
    details: dict[str, float]
    training_seconds: float
    seed: int
    versions: dict[str, str]
    files: dict[str, str]

    def __str__(self) -> str:
        return (
            f"{self.task}: {self.metric} {self.heldout:.1f} held out, {self.prose:.1f} on prose "
            f"(chance {self.chance:.1f}), trained in {self.training_seconds:.0f} s"
        )


def score_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task_name: str, split: str
) -> dict[str, float]:
    """Score a model on one data file, as `Task.evaluate` does.

    Parameters
    ----------
    model
        A model for the task, in evaluation mode.
    tokenizer
        Its fast tokenizer.
    task_name
        Name of the task.
    split
        ``"train"``, ``"heldout"`` or ``"prose"``.

    Returns
    -------
    dict
        ``"score"`` (the main metric of the task), ``"examples"``, and the task's other metrics.
    """
    data = get_kind(task_name).data
    found = Task(task_name, model, model, tokenizer, {split: data.examples(split)}, "offline").evaluate()
    metrics = dict(found.metrics)
    return {"score": metrics.pop(data.metric), "examples": found.examples, **metrics}


def train_checkpoint(task_name: str, output_dir: str | os.PathLike[str], seed: int = SEED) -> Scores:
    """Train one checkpoint from scratch and save it as ``output_dir/task_name``.

    Parameters
    ----------
    task_name
        One of `TASK_NAMES`.
    output_dir
        Folder that gets the checkpoint's folder; made if missing. A checkpoint that is there is replaced, once the
        new one is complete.
    seed
        Seed of the training.

    Returns
    -------
    Scores
        Measured on the checkpoint as saved.

    Raises
    ------
    InputError
        If there is no such task.
    """
    import torch
    import transformers

    if task_name not in SETTINGS:
        raise InputError(f"there is no offline task {task_name!r}; choose from {', '.join(SETTINGS)}")
    begin = time.perf_counter()
    model = train(task_name, make_tokenizer(task_name), seed)
    seconds = time.perf_counter() - begin
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with _replaced_folder(output / task_name) as folder:
        save(model, task_name, folder)
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        saved = type(model).from_pretrained(folder, torch_dtype=torch.float32).eval()
        found = {split: score_model(saved, make_tokenizer(task_name), task_name, split) for split in SPLITS}
    details = {
        f"{split} {name}": round(value, 2)
        for split, scores in found.items()
        for name, value in scores.items()
        if name != "score"
    }
    if task_name == text_generation.NAME:
        details["prose chance"] = round(chance_score(task_name, "prose"), 2)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    scores = Scores(
        task_name,
        get_kind(task_name).data.metric,
        round(found["heldout"]["score"], 2),
        round(found["prose"]["score"], 2),
        round(chance_score(task_name, "heldout"), 2),
        details,
        round(seconds, 1),
        seed,
        versions,
        files,
    )
    logger.info("%s", scores)
    return scores


def save(model: PreTrainedModel, task_name: str, folder: Path) -> None:
    """Write a checkpoint that ``from_pretrained`` of transformers 4 and 5 reads alike: weights in FP16, used in FP32."""
    import torch
    from safetensors.torch import save as serialised

    tied = {"lm_head.weight"} if task_name == text_generation.NAME else set()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    (folder / "model.safetensors").write_bytes(serialised(weights, metadata={"format": "pt"}))
    config = model.config.to_diff_dict()
    config.pop("dtype", None)
    config |= {"architectures": [type(model).__name__], "torch_dtype": "float32"}
    if task_name == text_generation.NAME:
        tokenizer_config = {"tokenizer_class": "Qwen2Tokenizer", **language_model.TOKENIZER_OPTIONS}
        # Each version of transformers has a name and a default of its own for this.
        config.pop("rope_parameters", None)
        config["rope_theta"] = language_model.ROPE_BASE
    else:
        tokenizer_config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": task_name != "token-classification",
            "strip_accents": True,
            "model_max_length": 512,
        }
        shutil.copyfile(DATA / "vocab.txt", folder / "vocab.txt")
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    make_tokenizer(task_name).backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


@contextmanager
def _replaced_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill that takes the target's place at the end; after an error the target is as before."""
    with unfinished_folder(target) as temporary:
        new = temporary / "new"
        new.mkdir()
        yield new
        move_into_place(new, target)


def chance_score(task_name: str, split: str) -> float:
    """What guessing scores on a file, in percent; for text generation the perplexity of counting tokens.

    For question answering: a random word of the context, ten times for each question. For text classification: the
    share of the most frequent label. For token classification: every capitalised word taken for a person, words in a
    row for one. For text generation: every token as likely as it is frequent in the training file.
    """
    if task_name == text_generation.NAME:
        return language_model.unigram_perplexity(make_tokenizer(task_name), split)
    examples = get_kind(task_name).data.examples(split)
    if task_name == "question-answering":
        rng = Random(SEED)
        asked = [replace(question, id=f"{question.id} {i}") for question in examples for i in range(10)]
        return score_answers(asked, [rng.choice(question.context.split()) for question in asked])["f1"]
    if task_name == "text-classification":
        labels = [example.label for example in examples]
        return 100 * max(labels.count(label) for label in set(labels)) / len(labels)
    return entity_f1([example.tags for example in examples], [_capitals(example.words) for example in examples])["f1"]


def _capitals(words: Sequence[str]) -> list[str]:
    capital = [word[0].isupper() for word in words]
    return [("I-PER" if index and capital[index - 1] else "B-PER") if big else "O" for index, big in enumerate(capital)]


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.checkpoints.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints and scores.json")
    parser.add_argument("--task", choices=TASK_NAMES, help="only this one (default: all)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"default: {SEED}, the seed of the shipped checkpoints")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    scores_file = options.output / "scores.json"
    scores = json.loads(scores_file.read_text(encoding="utf-8")) if scores_file.exists() else {}
    for task_name in (options.task,) if options.task else TASK_NAMES:
        scores[task_name] = asdict(train_checkpoint(task_name, options.output, options.seed))
        write_text(scores_file, json.dumps(scores, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
