"""The same evaluation with other flags, by our Trainer or transformers' own, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine.limits import check_threads
from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.processes.once import run_once
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.tasks import Task, load_task
from cpuinfer_helpers.tasks.kinds.base import accuracy
from cpuinfer_helpers.tasks.kinds.registry import loadable_kind
from cpuinfer_helpers.tasks.rows import task_rows
from cpuinfer_helpers.trainer.plan import FLAGS

FLAGS_OF_FLOWS = (*FLAGS, "group_eval_by_length", "stock")
_TIMEOUT_S = 900


@dataclass(frozen=True)
class FlowResult:
    """One evaluation.

    Attributes
    ----------
    name, flags
        What was asked for; ``stock`` among the flags for transformers' own Trainer.
    jit_mode_eval, use_ipex, precision, reason
        As in a :class:`~cpuinfer_helpers.trainer.TrainerVerdict`.
    ran
        What evaluated.
    metrics, predictions
        The task's, in percent, and the answer to each example.
    examples
        Number of questions, texts or sentences.
    seconds, compilation_seconds
        Evaluation without compilation, and compilation with its verification.
    """

    name: str
    flags: tuple[str, ...]
    jit_mode_eval: str
    use_ipex: str
    precision: str
    ran: str
    reason: str | None
    metrics: Mapping[str, float]
    predictions: tuple[Any, ...]
    examples: int
    seconds: float
    compilation_seconds: float

    @property
    def per_second(self) -> float:
        """Examples per second, compilation not included."""
        return self.examples / self.seconds


@dataclass(frozen=True, repr=False)
class FlowResults(Displayed):
    """Evaluations of one task; made by :func:`run_flows`.

    Attributes
    ----------
    task
        Its name.
    rows
        A :class:`FlowResult` by name, or the status of the process that was to evaluate, where that failed.
    """

    task: str
    rows: Mapping[str, FlowResult | Status]

    def __getitem__(self, name: str) -> FlowResult | Status:
        return self.rows[name]

    def table(self) -> Table:
        """What each flow was asked for and did, its metric and its speed; answers are compared with the first's."""
        ran = [row for row in self.rows.values() if isinstance(row, FlowResult)]
        metric = list(ran[0].metrics)[-1] if ran else "metric"
        rows = []
        for name, row in self.rows.items():
            if isinstance(row, Status):
                rows.append((name, str(row), *[""] * 8))
                continue
            same = accuracy(row.predictions, ran[0].predictions)
            rows.append(
                (
                    name,
                    row.jit_mode_eval,
                    row.use_ipex,
                    row.precision,
                    f"{row.metrics[metric]:.1f}",
                    f"{same:.1f}%",
                    f"{row.per_second:.1f}",
                    format_seconds(row.compilation_seconds),
                    row.ran,
                    row.reason or "",
                )
            )
        columns = ("flow", "jit_mode_eval", "use_ipex", "linear layers", metric, "same answers", "examples/s")
        columns += ("compilation", "ran", "reason")
        return Table(columns, tuple(rows), title=self.task, numeric=columns[4:8])


def run_flows(
    task: str,
    flows: Mapping[str, Sequence[str]],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    pad_to: int | None = None,
    threads: int | None = None,
) -> FlowResults:
    """Evaluate a task's trained model with the Trainer, once for each set of flags, each in a process of its own.

    Parameters
    ----------
    task
        Name of a task.
    flows
        Flags by a name of your choice: ``jit_mode_eval``, ``use_ipex``, ``bf16``, ``bf16_full_eval``,
        ``group_eval_by_length``; ``stock`` for transformers' own Trainer. Where its version has no such flag, it is
        set all the same, and the result tells that it is ignored.
    limit
        Only so many examples, the first ones.
    batch_size
        Rows in a batch.
    pad_to
        Pad all rows to this length, as the guide's ``run_qa`` does with 384; to the longest of their batch unless
        given.
    threads
        Of each process; PyTorch's number unless given.

    Returns
    -------
    FlowResults

    Raises
    ------
    InputError
        For an unknown task or flag, a task that a Trainer is not meant to score, or a number of threads that this
        machine could not run.
    """
    from tqdm.auto import tqdm

    if threads is not None:
        check_threads(threads)
    if loadable_kind(task).data.collator is None:
        raise InputError(f"run_flows: {task} is not scored by a Trainer; use Task.evaluate")
    for name, flags in flows.items():
        for flag in flags:
            if flag not in FLAGS_OF_FLOWS:
                raise InputError(f"flow {name!r} has the flag {flag!r}; choose from {', '.join(FLAGS_OF_FLOWS)}")
    rows: dict[str, FlowResult | Status] = {}
    for name, flags in (progress := tqdm(flows.items(), desc="evaluating", unit="flow", leave=False)):
        progress.set_description(name)
        job = {"task": task, "flags": list(flags), "limit": limit, "batch_size": batch_size}
        rows[name] = _in_child(name, {**job, "pad_to": pad_to, "threads": threads})
    return FlowResults(task, rows)


def _in_child(name: str, job: Mapping[str, Any]) -> FlowResult | Status:
    answer = run_once(f"{__name__}:evaluate_flow", {"job": {**job, "name": name}}, name=name, timeout_s=_TIMEOUT_S)
    if not answer.status.successful:
        return answer.status
    found = answer.value
    # JSON has no tuples, in which the tags of a sentence are.
    predictions = tuple(tuple(one) if isinstance(one, list) else one for one in found["predictions"])
    return FlowResult(**{**found, "flags": tuple(found["flags"]), "predictions": predictions})


def evaluate_flow(job: Mapping[str, Any]) -> dict[str, Any]:
    """In a process of its own: look at one batch by verify_trainer, then evaluate; the fields of a FlowResult."""
    import torch

    from cpuinfer_helpers.trainer import verify_trainer

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    task = load_task(job["task"])
    rows = task_rows(task, limit=job["limit"])
    with temporary_folder() as folder:
        trainer = _trainer(job, task, str(folder))
        # Before the evaluation, which may change the model of transformers' own Trainer.
        verdict = verify_trainer(trainer, rows.rows)
        started = time.perf_counter()
        output = trainer.predict(rows.rows)
        score = rows.score(output.predictions)
        seconds = time.perf_counter() - started
    compilation = output.metrics.get("test_jit_compilation_time", 0.0)
    result = FlowResult(
        name=job["name"],
        flags=tuple(job["flags"]),
        jit_mode_eval=verdict.jit_mode_eval,
        use_ipex=verdict.use_ipex,
        precision=verdict.precision,
        ran=verdict.model,
        reason=verdict.reason,
        metrics=dict(score.metrics),
        predictions=score.predictions,
        examples=score.examples,
        seconds=seconds - compilation,
        compilation_seconds=compilation,
    )
    return asdict(result)


def _trainer(job: Mapping[str, Any], task: Task, folder: str) -> Any:
    import transformers

    from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments

    flags = [flag for flag in job["flags"] if flag != "stock"]
    settings = {
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_eval_batch_size": job["batch_size"],
    }
    padding = {"padding": "max_length", "max_length": job["pad_to"]} if job["pad_to"] else {}
    collator = getattr(transformers, task.kind.data.collator)(task.tokenizer, **padding)
    if "stock" not in job["flags"]:
        args = JitTrainingArguments(folder, **settings, **dict.fromkeys(flags, True))
        return JitTrainer(model=task.trained_model, args=args, data_collator=collator)
    known = [flag for flag in flags if flag in transformers.TrainingArguments.__dataclass_fields__]
    args = transformers.TrainingArguments(folder, **settings, **dict.fromkeys(known, True))
    for flag in set(flags) - set(known):
        setattr(args, flag, True)
    return transformers.Trainer(model=task.trained_model, args=args, data_collator=collator)
