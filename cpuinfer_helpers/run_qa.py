"""The guide's command line: ``python -m cpuinfer_helpers.run_qa`` evaluates a question answering model.

Options and files are those of transformers' ``run_qa`` example, as far as it evaluates and predicts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from cpuinfer_helpers.commands.qa_options import check_options, check_types
from cpuinfer_helpers.commands.shared import exit_code
from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.errors import CpuInferError, DataError, InputError, first_line
from cpuinfer_helpers.interface.inputs import argument_names
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.saving.folders import write_text
from cpuinfer_helpers.saving.plain import write
from cpuinfer_helpers.tasks.checkpoints import load_config, load_tokenizer, load_weights
from cpuinfer_helpers.tasks.files import read_json
from cpuinfer_helpers.tasks.hub import hub_unavailable
from cpuinfer_helpers.tasks.squad import windows as qa
from cpuinfer_helpers.tasks.squad.answers import AnswerRules, SquadAnswers, find_answers
from cpuinfer_helpers.tasks.squad.data import Question, parse_squad, read_squad
from cpuinfer_helpers.tasks.squad.scores import score_squad_v2
from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments

logger = logging.getLogger("cpuinfer_helpers")

_SCORES = ("exact_match", "exact", "f1")


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str = field(metadata={"help": "Folder of a checkpoint, or its name on the hub."})
    config_name: str | None = field(default=None, metadata={"help": "Configuration, if it is not the model's own."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the model's own."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where models from the hub are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    token: str | None = field(default=None, metadata={"help": "Access token for the hub."})


@dataclass
class DataArguments:
    """Which data, and how answers are chosen."""

    dataset_name: str | None = field(default=None, metadata={"help": "Name of a data set on the hub, such as squad."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    validation_file: str | None = field(default=None, metadata={"help": "SQuAD-format file to evaluate on."})
    test_file: str | None = field(default=None, metadata={"help": "SQuAD-format file to predict; answers optional."})
    max_seq_length: int = field(default=qa.MAX_SEQ_LENGTH, metadata={"help": "Tokens of a window, with its question."})
    doc_stride: int = field(default=qa.DOC_STRIDE, metadata={"help": "Tokens that neighbouring windows share."})
    pad_to_max_length: bool | None = field(
        default=None,
        metadata={"help": "Pad every window to max_seq_length. On unless jit_mode_eval groups windows by length."},
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first so many questions."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for prediction."})
    version_2_with_negative: bool = field(default=False, metadata={"help": "Questions may have no answer."})
    null_score_diff_threshold: float = field(
        default=0.0, metadata={"help": "How much higher no answer must score than the best one to be chosen."}
    )
    n_best_size: int = field(default=qa.N_BEST, metadata={"help": "Candidates that are written for each question."})
    max_answer_length: int = field(default=qa.MAX_ANSWER_LENGTH, metadata={"help": "Longest answer, in tokens."})


@dataclass(frozen=True, repr=False)
class QaResult(Displayed):
    """What one part of a run gave.

    Attributes
    ----------
    part
        ``eval`` or ``predict``.
    metrics
        As they are written to ``eval_results.json``.
    receipt
        What ran; None for the plain FP32 model.
    questions
        Their number.
    seconds
        From texts to scored answers: tokenising, running, post-processing and scoring, compilation not included.
    compilation_seconds
        Preparation and verification.
    """

    part: str
    metrics: Mapping[str, Any]
    receipt: Receipt | None
    questions: int
    seconds: float
    compilation_seconds: float

    def table(self) -> Table:
        """The summary."""
        scores = [(name, self.metrics.get(f"{self.part}_{name}")) for name in _SCORES]
        rows = [(name, f"{value:.2f}") for name, value in scores if value is not None]
        rows += [
            ("questions", str(self.questions)),
            ("questions per second", f"{self.questions / self.seconds:.2f}, with tokenising and post-processing"),
            ("compilation", format_seconds(self.compilation_seconds) if self.compilation_seconds else "none"),
            ("ran", self.receipt.runs if self.receipt else "the eager model in FP32, as transformers runs it"),
        ]
        evidence = self.receipt.evidence if self.receipt else {}
        rows += [(name, evidence[name]) for name in ("BF16", "estimate") if name in evidence]
        if self.receipt is not None and self.receipt.reason:
            rows.append(("not as asked, because", self.receipt.reason))
        return Table((self.part, "result"), tuple(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments
        The words after the program's name, or the path of one JSON file with the options; those of this process
        unless given.

    Returns
    -------
    int
        Exit code: 0, or 2 with one line on standard error if the request cannot be carried out, 130 if interrupted.
    """

    def run_and_print() -> int:
        # Transformers' arguments write what accelerate reads in the next run of this process.
        with switches.environment_kept():
            results = run(*parse_options(sys.argv[1:] if arguments is None else list(arguments)))
        if os.environ.get("RANK", "0") == "0":
            print(*results, sep="\n\n", flush=True)
        return 0

    return exit_code("run_qa", run_and_print)


def run(model_args: ModelArguments, data_args: DataArguments, args: JitTrainingArguments) -> list[QaResult]:
    """Evaluate, predict, or both; write the files and return the results.

    Raises
    ------
    CpuInferError
        If a file, an option or the model cannot be used.
    """
    check_options(model_args)
    _check(data_args, args)
    parts = []
    if args.do_eval:
        parts.append(("eval", _questions(data_args, "validation", data_args.max_eval_samples)))
    if args.do_predict:
        parts.append(("predict", _questions(data_args, "test", data_args.max_predict_samples)))
    folder = _writable(args.output_dir)
    model, tokenizer = _load(model_args)
    # As transformers above: half a second that would count as scoring.
    import torchmetrics.functional.text  # noqa: F401

    transformers.set_seed(args.seed)
    return [_Part(name, questions, model, tokenizer, data_args, args, folder).run() for name, questions in parts]


@dataclass
class _Part:
    """Evaluation or prediction of one set of questions."""

    name: str
    questions: list[Question]
    model: torch.nn.Module
    tokenizer: Any
    data_args: DataArguments
    args: JitTrainingArguments
    folder: Path

    def run(self) -> QaResult:
        started = time.perf_counter()
        windows = qa.prepare_windows(
            self.questions,
            self.tokenizer,
            max_seq_length=self.data_args.max_seq_length,
            doc_stride=self.data_args.doc_stride,
        )
        trainer, output = self._predict([window.inputs for window in windows])
        answers = self._answers(windows, output.predictions)
        metrics = {**self._scores(answers), **output.metrics, f"{self.name}_samples": len(windows)}
        compilation = metrics.get(f"{self.name}_jit_compilation_time", 0.0)
        seconds = time.perf_counter() - started - compilation
        if trainer.is_world_process_zero():
            self._write(answers, metrics, trainer.jit_receipt)
        return QaResult(self.name, metrics, trainer.jit_receipt, len(self.questions), seconds, compilation)

    def _predict(self, rows: list[dict[str, list[int]]]) -> tuple[JitTrainer, Any]:
        try:
            trainer = self._trainer()
            return trainer, trainer.predict(rows, metric_key_prefix=self.name)
        except CpuInferError:
            raise
        except Exception as error:  # what transformers, its integrations and the model raise for options and inputs
            logger.debug("the evaluation failed", exc_info=True)
            raise InputError(f"the evaluation fails with these options: {first_line(error)}") from error

    def _trainer(self) -> JitTrainer:
        padded = {"padding": "max_length", "max_length": self.data_args.max_seq_length}
        whole = self.data_args.pad_to_max_length
        collator = transformers.DataCollatorWithPadding(self.tokenizer, **(padded if whole else {}))
        return JitTrainer(model=self.model, args=self.args, data_collator=collator)

    def _answers(self, windows: list[qa.Window], predictions: Any) -> SquadAnswers:
        start, end = predictions[:2]
        rules = AnswerRules(
            n_best=self.data_args.n_best_size,
            max_answer_length=self.data_args.max_answer_length,
            may_have_no_answer=self.data_args.version_2_with_negative,
            null_score_diff_threshold=self.data_args.null_score_diff_threshold,
        )
        return find_answers(self.questions, windows, start, end, rules)

    def _scores(self, answers: SquadAnswers) -> dict[str, float]:
        if self.name == "predict" and not any(question.answers for question in self.questions):
            return {}
        if self.data_args.version_2_with_negative:
            scores = score_squad_v2(self.questions, answers.texts)
        else:
            scores = qa.score_answers(self.questions, [answers.texts[question.id] for question in self.questions])
        return {f"{self.name}_{name}": value for name, value in scores.items()}

    def _write(self, answers: SquadAnswers, metrics: Mapping[str, Any], receipt: Receipt | None) -> None:
        files = {
            f"{self.name}_predictions.json": answers.texts,
            f"{self.name}_nbest_predictions.json": answers.n_best,
            f"{self.name}_results.json": dict(metrics),
            "all_results.json": {**_results_before(self.folder / "all_results.json"), **metrics},
        }
        if answers.null_odds:
            files[f"{self.name}_null_odds.json"] = answers.null_odds
        if receipt is not None:
            files[f"{self.name}_receipt.json"] = write(receipt)
        for name, content in files.items():
            text = json.dumps(content, indent=4, sort_keys="results" in name) + "\n"
            try:
                write_text(self.folder / name, text)
            except OSError as error:
                found = [name for name in _SCORES if f"{self.name}_{name}" in metrics]
                scores = ", ".join(f"{name} {metrics[f'{self.name}_{name}']:.2f}" for name in found)
                raise DataError(
                    f"{self.folder / name} cannot be written: {error.strerror or error}; make room there or give "
                    f"another --output_dir. What was found: {scores or 'no scores'}"
                ) from error


class _Parser(transformers.HfArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message}; see --help")


_KINDS = (ModelArguments, DataArguments, JitTrainingArguments)


@cache
def _parser() -> _Parser:
    return _Parser(_KINDS, prog="python -m cpuinfer_helpers.run_qa")


def parse_options(words: list[str]) -> tuple[ModelArguments, DataArguments, JitTrainingArguments]:
    """Options from the command line's words, or from the JSON file that they name.

    Raises
    ------
    InputError
        If an option is unknown, missing, or has a value that cannot be used.
    """
    parser = _parser()
    try:
        if len(words) == 1 and words[0].endswith(".json"):
            options = read_json(words[0])
            if not isinstance(options, dict):
                raise InputError(f"{words[0]} holds a {type(options).__name__}; give an object of options by name")
            check_types(options, *_KINDS)
            return parser.parse_dict(options)
        *parsed, unknown = parser.parse_args_into_dataclasses(args=words, return_remaining_strings=True)
    except CpuInferError:
        raise
    except Exception as error:  # transformers' arguments check themselves, with errors of many kinds
        raise InputError(first_line(error).partition(": ")[2] or first_line(error)) from error
    if unknown:
        raise InputError(f"{unknown[0]} is no option of this command; see --help")
    return tuple(parsed)


def _check(data_args: DataArguments, args: JitTrainingArguments) -> None:
    if args.do_train:
        raise InputError("--do_train: this command evaluates; train with transformers' own run_qa")
    if not args.do_eval and not args.do_predict:
        raise InputError("nothing to do; give --do_eval, --do_predict or both")
    check_options(data_args, args)
    if args.jit_mode_eval and data_args.pad_to_max_length is None:
        args.group_eval_by_length = True
    if data_args.pad_to_max_length is None:
        data_args.pad_to_max_length = not args.group_eval_by_length


def _questions(data_args: DataArguments, part: str, limit: int | None) -> list[Question]:
    file = data_args.validation_file if part == "validation" else data_args.test_file
    if file is not None:
        questions = read_squad(file, answers=part == "validation")
    elif data_args.dataset_name is not None:
        questions = _from_hub(data_args, part)
    else:
        option = "--validation_file" if part == "validation" else "--test_file"
        raise InputError(f"there is no data: give --dataset_name or {option}")
    without = next((question for question in questions if not question.answers), None)
    if part == "validation" and without is not None and not data_args.version_2_with_negative:
        logger.warning("question %r has no answer; SQuAD 2.0 needs --version_2_with_negative", without.id)
    return questions[:limit]


def _from_hub(data_args: DataArguments, part: str) -> list[Question]:
    import datasets

    name = data_args.dataset_name
    away = hub_unavailable()
    try:
        loaded = datasets.load_dataset(
            name,
            data_args.dataset_config_name,
            split=part,
            download_config=datasets.DownloadConfig(local_files_only=away is not None),
        )
    except Exception as error:  # the library raises errors of many kinds, each with a message of its own
        reason = f"{away}, and it is not in the cache" if away else first_line(error)
        option = "--validation_file" if part == "validation" else "--test_file"
        what = f"--dataset_name {name}, part {part!r}"
        raise DataError(f"{what}, cannot be loaded: {reason}; or give {option}") from error
    return parse_squad(list(loaded), f"{name}, part {part!r}", answers=part == "validation")


def _load(model_args: ModelArguments) -> tuple[torch.nn.Module, Any]:
    path = model_args.model_name_or_path
    shared = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision, "token": model_args.token}
    if hub_unavailable():
        shared["local_files_only"] = True
    try:
        config = load_config(model_args.config_name or path, **shared)
        tokenizer = load_tokenizer(model_args.tokenizer_name or path, use_fast=True, **shared)
        model = load_weights("AutoModelForQuestionAnswering", path, config=config, **shared)
    except InputError as error:
        raise InputError(f"--model_name_or_path {path} cannot be used: {error}") from error
    except Exception as error:  # readers of configurations, weights and tokenizers each have errors of their own
        raise InputError(f"--model_name_or_path {path} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"--model_name_or_path {path} has no fast tokenizer, which the mapping back to text needs")
    if tokenizer.pad_token_id is None:
        raise InputError(f"--model_name_or_path {path} has a tokenizer without a padding token, which batches need")
    tokenizer.truncation_side = "right"
    if "attention_mask" in argument_names(model) and "attention_mask" not in tokenizer.model_input_names:
        # Without it padding would be read as text.
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return model, tokenizer


def _results_before(path: Path) -> dict[str, Any]:
    """What another part, or an earlier run, has left there."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s is written anew, because it cannot be read: %s", path, error)
        return {}
    return before if isinstance(before, dict) else {}


def _writable(output_dir: str) -> Path:
    if not isinstance(output_dir, str) or not output_dir:
        raise InputError(f"--output_dir is {output_dir!r}; give a folder")
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # the latter for names that no file can have
        raise InputError(f"--output_dir {folder} cannot be written: {getattr(error, 'strerror', error)}") from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
