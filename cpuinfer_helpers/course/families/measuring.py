"""Measure many small models: a process for each backend goes through all of them, eager PyTorch in one of its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cpuinfer_helpers.compare.compare import choose_threads
from cpuinfer_helpers.course.families.architectures import FAMILIES, LONGEST
from cpuinfer_helpers.course.families.comparison import FamilyComparison, FamilyResult
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.processes.asking import prepare_in
from cpuinfer_helpers.processes.candidates import Bench, Candidate
from cpuinfer_helpers.processes.child import Child, ChildLost
from cpuinfer_helpers.processes.memory import private_bytes
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.processes.transport import write_parcel
from cpuinfer_helpers.recipes import Recipe, get_recipe
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.tasks import task_names
from cpuinfer_helpers.tasks.kinds.base import BERT_BASE
from cpuinfer_helpers.tasks.kinds.registry import get_kind
from cpuinfer_helpers.timing.results import Timing
from cpuinfer_helpers.verification.equality import difference
from cpuinfer_helpers.verification.variations import valid_positions

logger = logging.getLogger("cpuinfer_helpers")

_BASELINE = "eager"
# TorchScript never lets go of some of the graphs that it has made. A process that has grown to this is replaced.
_LARGEST_CHILD_BYTES = 2 * 2**30


def compare_families(
    families: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    *,
    backends: Sequence[str] = ("ipex", "onednn-graph"),
    precisions: Sequence[str] = ("fp32", "bf16"),
    layers: int = 2,
    length: int = 128,
    batch_size: int = 1,
    threads: int | None = None,
    budget_s: float = 0.5,
    relative_width: float = 0.02,
    timeout_s: float = 120.0,
) -> FamilyComparison:
    """Test which model families get faster than eager PyTorch at the same precision, on which tasks.

    The models have random weights, the width of their base versions and few layers. All layers of an encoder are
    alike, so a speed-up of two is close to that of twelve, at a fraction of the time. Every prepared model is verified
    on other batch sizes, lengths and paddings, and its answers are compared with those of a process without the
    backend.

    Parameters
    ----------
    families
        Keys of :data:`FAMILIES`: ``bert``, ``roberta`` ...; all unless given.
    tasks
        ``question-answering``, ``text-classification``, ``token-classification``; all unless given.
    backends
        What is set against eager PyTorch. Each has a process of its own that goes through all models; only one process
        works at any time, and they take turns.
    precisions
        ``fp32``, ``bf16``. A recipe, such as ``ipex-bf16``, is set against ``eager-bf16``.
    layers
        Encoder layers of each model; MobileBERT, whose layers are thin, gets twice as many.
    length, batch_size
        Shape of the inputs, of at most 512 tokens; an eighth of each row is padding.
    threads
        Threads of each process; PyTorch's number in this one unless given.
    budget_s
        Seconds of measuring for each recipe and model. Six rounds are always made.
    relative_width
        Stop earlier when every median's 95% interval is narrower than this share of it.
    timeout_s
        Longest time for one stage of one model.

    Returns
    -------
    FamilyComparison

    Raises
    ------
    InputError
        If an argument cannot be used.
    """
    from tqdm.auto import tqdm

    chosen = [FAMILIES[name] for name in _chosen("families", families, tuple(FAMILIES))]
    tasks = _chosen("tasks", tasks, _encoder_tasks())
    recipes = _recipes(backends, precisions)
    threads = choose_threads(threads)
    _check_counts(layers=layers, length=length, batch_size=batch_size)
    if length > LONGEST:
        raise InputError(f"length is {length!r}; the models take no more than {LONGEST} tokens")
    _check_positive(budget_s=budget_s, relative_width=relative_width, timeout_s=timeout_s)
    lacking = {recipe.name: recipe.why_not for recipe in recipes if recipe.why_not}
    able = [recipe for recipe in recipes if recipe.name not in lacking]
    models = [(family, task) for family in chosen for task in tasks] if able else []
    rows: list[FamilyResult] = []
    with (
        _ModelSession(threads, timeout_s) as session,
        tqdm(models, desc="comparing families", unit="model") as progress,
    ):
        for family, task in progress:
            progress.set_description(f"{family.title}, {task}")
            model = family.make_model(task, layers)
            inputs = family.make_inputs(model, batch_size, length)
            session.take(model, inputs)
            bench = Bench(session, {"inputs": inputs, "agreement": ()}, budget_s, relative_width)
            rows += _ModelRun(session, bench, family.title, task).run(able)
    report = machine_report()
    ran = dict.fromkeys(recipe.precision for recipe in able)
    return FamilyComparison(
        rows=tuple(rows),
        recipes=tuple(recipe.name for recipe in recipes),
        lacking=lacking,
        layers=layers,
        length=length,
        batch_size=batch_size,
        threads=threads,
        environment={"cpu": report.cpu, "versions": dict(report.versions)},
        emulated={precision: why for precision in ran if (why := report.why_not_native(precision))},
    )


def _encoder_tasks() -> tuple[str, ...]:
    """The tasks for which BERT-base is the model to time: these families are its kin."""
    return tuple(name for name in task_names() if get_kind(name).data.geometry is BERT_BASE)


class _ModelSession(Session):
    """Child processes, one for each backend, that go from model to model."""

    def __init__(self, threads: int, timeout_s: float) -> None:
        nothing = {"model": torch.nn.Identity(), "inputs": {}}
        super().__init__(nothing, threads=threads, timeout_s=timeout_s, memory_bytes=None)
        self._by_backend: dict[str, Child] = {}
        self._taken = 0

    def take(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        """Make this the model that children are asked to prepare; the files of the one before are removed."""
        for path in (self._parcel.structure, self._parcel.tensors):
            Path(path).unlink()
        self._taken += 1
        self._parcel = write_parcel(self._folder, f"model-{self._taken}", {"model": model, "inputs": inputs})

    def load(self, recipe: Recipe) -> Child:
        """The backend's child, with the model loaded anew; a new one where there is none or it has grown too large.

        Raises
        ------
        ChildLost
            If it cannot.
        """
        child = self._by_backend.get(recipe.backend)
        if child in self._children and private_bytes([child.process_id]) > _LARGEST_CHILD_BYTES:
            logger.info("the process of %s has grown; a new one goes on", recipe.backend)
            self.close(child)
        if child not in self._children:
            child, _ = self.start(recipe)
            self._by_backend[recipe.backend] = child
        else:
            child.recipe = recipe.name
            self.ask(child, "load", content=self._parcel.to_dict(), recipe=recipe.name)
        return child


@dataclass
class _ModelRun:
    """One model: carries what is seen of it into rows.

    Not by :func:`~cpuinfer_helpers.processes.asking.ask_alone`, whose process ends with its answer: here those of the
    baseline and of the recipes wait for each other, to take turns, and then go on to the next model.
    """

    session: _ModelSession
    bench: Bench
    family: str
    task: str
    expected: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def run(self, recipes: Sequence[Recipe]) -> Iterator[FamilyResult]:
        """Prepare and measure by precision, since a process holds one prepared model at a time."""
        for precision in dict.fromkeys(recipe.precision for recipe in recipes):
            against = [recipe for recipe in recipes if recipe.precision == precision]
            try:
                yield from self._measure(get_recipe(f"{_BASELINE}-{precision}"), against)
            except ChildLost as lost:
                status = Status(Kind.NOT_MEASURED, f"the eager model does not run: {lost.status}")
                yield from (self._failure(recipe.name, status) for recipe in against)

    def _measure(self, baseline: Recipe, recipes: Sequence[Recipe]) -> list[FamilyResult]:
        """A row for each recipe; ChildLost if the baseline does not run."""
        self.expected = self.expected or self._expected()
        eager = self._prepare(baseline)
        ready: dict[str, Candidate] = {}
        failed: dict[str, Status] = {}
        for recipe in recipes:
            try:
                ready[recipe.name] = self._prepare(recipe)
            except ChildLost as lost:
                failed[recipe.name] = lost.status
        rounds = self.bench.rounds([eager, *ready.values()], lambda number: None)
        failed |= rounds.lost
        if baseline.name in failed:
            raise ChildLost(failed[baseline.name])
        against = self.bench.timing(eager, rounds)
        return [
            self._failure(recipe.name, failed[recipe.name], against)
            if recipe.name in failed
            else self._success(ready[recipe.name].row, self.bench.timing(ready[recipe.name], rounds), against)
            for recipe in recipes
        ]

    def _expected(self) -> dict[str, torch.Tensor]:
        """The answers of eager FP32, from a process in which no backend was ever imported."""
        child = self.session.load(get_recipe(REFERENCE))
        prepare_in(self.session, child, verify=False)
        return self.session.answers(child)[0][0]

    def _failure(self, recipe: str, status: Status, against: Timing | None = None) -> FamilyResult:
        logger.warning("%s, %s, %s: %s", self.family, self.task, recipe, status)
        return FamilyResult(self.family, self.task, recipe, status, against)

    def _success(self, row: RecipeResult, timing: Timing, against: Timing) -> FamilyResult:
        seen = {"max_error": row.max_error, "receipt": row.receipt}
        return FamilyResult(self.family, self.task, row.recipe, row.status, against, timing, **seen)

    def _prepare(self, recipe: Recipe) -> Candidate:
        """Have the model prepared, verified and warmed up; ChildLost tells why that failed."""
        child, verify = self.session.load(recipe), recipe.backend != _BASELINE
        candidate = self.bench.prepare(recipe, child, None, lambda stage: None, verify=verify)
        if not candidate.row.successful:
            raise ChildLost(_not_prepared(candidate.row.status))
        if verify:
            error = self._largest_error(recipe, self.session.answers(child)[0][0])
            candidate.row = replace(candidate.row, max_error=error)
        return candidate

    def _largest_error(self, recipe: Recipe, answers: Mapping[str, torch.Tensor]) -> float:
        """Against eager FP32 in its own process; ChildLost if beyond the tolerance of the recipe's precision."""
        valid, worst = valid_positions(self.bench.request["inputs"]), 0.0
        for name, wanted in self.expected.items():
            found = difference(wanted, answers[name], valid, recipe.precision)
            if not found.passed:
                how_far = f"{name} differs by {found.error:.1e}, tolerance {found.allowed:.1e}"
                reason = f"it does not give the answers of eager FP32: {how_far}"
                raise ChildLost(Status(Kind.NOT_PREPARED, reason))
            worst = max(worst, found.error)
        return worst


def _not_prepared(status: Status) -> Status:
    """A fall back as the course tells it: who has that model gets nothing."""
    return replace(status, kind=Kind.NOT_PREPARED) if status.kind is Kind.FELL_BACK else status


def _chosen(what: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    if names is None:
        return tuple(known)
    if isinstance(names, str) or not names:
        raise InputError(f"{what} is {names!r}; give a list with some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise InputError(f"{what} names {name!r}; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def _recipes(backends: Sequence[str], precisions: Sequence[str]) -> list[Recipe]:
    precisions = _chosen("precisions", precisions, ("fp32", "bf16"))
    if isinstance(backends, str) or not backends or _BASELINE in backends:
        raise InputError(f"backends is {backends!r}; give a list of backends to set against {_BASELINE}")
    return [get_recipe(f"{backend}-{precision}") for precision in precisions for backend in dict.fromkeys(backends)]


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number of at least 1")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(f"{name} is {value!r}; give a positive number")
