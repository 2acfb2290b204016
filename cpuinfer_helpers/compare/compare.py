"""Compare recipes on one model and one set of inputs, each in a process of its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import torch

from cpuinfer_helpers.compare.result import Comparison, check_price
from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.interface.inputs import bind_inputs, calibration_rows, check_model, given_rows
from cpuinfer_helpers.machine import limits
from cpuinfer_helpers.machine.report import MachineReport, machine_report
from cpuinfer_helpers.processes.candidates import Bench, Candidate, new_row, timed
from cpuinfer_helpers.processes.child import Child, ChildLost
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.recipes import Recipe, get_recipe, list_recipes
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.timing.results import Roofline, Timing

logger = logging.getLogger("cpuinfer_helpers")

# Seconds for each kernel and shape of the roofline.
_ROOFLINE_BUDGET_S = 0.5


def compare(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    recipes: Sequence[str | Recipe] | None = None,
    *,
    threads: int | None = None,
    budget_s: float = 10.0,
    relative_width: float = 0.02,
    verify: bool = True,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    agreement_inputs: Sequence[Mapping[str, Any]] = (),
    measure_roofline: bool = True,
    price_per_hour: float | None = None,
    timeout_s: float = 900.0,
    memory_bytes: int | None = None,
) -> Comparison:
    """Compare recipes on one model and one set of inputs.

    Each recipe has a fresh process of its own, with the same threads. The processes take turns of about 0.3 s in
    rotating order, and only one works at any time, so that drift of the machine meets all alike. All of them keep the
    memory that they free (:func:`~cpuinfer_helpers.freed_memory_kept`). A recipe that crashes, runs out of memory or
    takes too long costs its own row only.

    Parameters
    ----------
    model
        An eager model in evaluation mode: from transformers, or any module with named tensor inputs, also one whose
        class is defined in a notebook cell. It is left as it was, and its weights are kept once for all processes.
    inputs
        Tensors by argument name, batch first, such as (batch, length) token ids; plain values become constants.
    recipes
        Names (:func:`~cpuinfer_helpers.list_recipes`) or recipes of your own; all unless given. Those that cannot run
        here get a row that says why. The reference, ``eager-fp32``, is always among them.
    threads
        Threads of each process; PyTorch's number in this one unless given.
    budget_s
        Seconds of measuring for each recipe, preparation not included. Six rounds are always made.
    relative_width
        Stop earlier when every median's 95% interval is narrower than this share of it.
    verify
        Check each prepared model on other batch sizes, lengths and paddings; one that fails falls back.
    calibration
        Inputs for static quantisation, a few dozen, like those that the model will see.
    agreement_inputs
        Further inputs on which labels are compared with the reference's; a single batch is a coarse measure.
    measure_roofline
        Measure the rates of matrix products, for the percentages of the roofline. Takes some seconds.
    price_per_hour
        What an hour of this machine costs, in any currency, for a column with the cost of a million inferences.
    timeout_s
        Longest time for one stage of one recipe.
    memory_bytes
        Bytes that this process and all its children may hold together; what the machine has unless given. Recipes
        that do not fit at once are measured in groups, and the reference runs in every group.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        If the model, the inputs or another argument cannot be used, or the model cannot be sent to another process.
    RecipeError
        If the reference itself does not run: then there is nothing to compare with.
    """
    request = check_request(model, inputs, agreement_inputs)
    chosen = choose_recipes(recipes)
    threads = choose_threads(threads)
    price = check_price(price_per_hour)
    check_positive(budget_s=budget_s, relative_width=relative_width, timeout_s=timeout_s, memory_bytes=memory_bytes)
    rows = calibration_rows(calibration, bind_inputs(model, inputs))
    content = {**request, "model": model, "calibration": rows}
    with Session(content, threads=threads, timeout_s=timeout_s, memory_bytes=memory_bytes) as session:
        bench = Bench(session, request, budget_s, relative_width, getattr(model, "config", None))
        job = _ComparisonRun(bench, verify)
        job.run(chosen, measure_roofline)
    return Comparison(
        rows={recipe.name: job.rows[recipe.name] for recipe in chosen},
        **circumstances(model, request["inputs"], threads),
        roofline=job.roofline,
        flops=job.flops,
        price_per_hour=price,
        notes=job.notes(),
    )


def circumstances(model: torch.nn.Module, inputs: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What a :class:`Comparison` says of the model, its inputs and the machine."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return {
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "inputs": {name: _shape_text(tensor) for name, tensor in tensors.items()},
        "batch_size": next(iter(tensors.values())).shape[0],
        "threads": threads,
        "environment": _environment(machine_report()),
    }


@dataclass
class _ComparisonRun:
    """Carries what is seen on the way into the rows."""

    bench: Bench
    verify: bool
    rows: dict[str, RecipeResult] = field(default_factory=dict)
    roofline: Roofline | None = None
    flops: int | None = None
    groups: int = 0

    @property
    def session(self) -> Session:
        return self.bench.session

    def run(self, recipes: Sequence[Recipe], measure_roofline: bool) -> None:
        """Prepare one recipe after the other; measure whenever memory is full, and at the end."""
        from tqdm.auto import tqdm

        missing = {recipe.name: recipe.why_not for recipe in recipes}
        able = [recipe for recipe in recipes if missing[recipe.name] is None]
        for recipe in recipes:
            if missing[recipe.name]:
                self._keep(new_row(recipe, Status(Kind.LACKS, missing[recipe.name])))
        with tqdm(total=2 * len(able), desc="comparing", unit="step") as self.progress:
            self.reference = self._begin_reference(able[0], able if measure_roofline else [])
            group: list[Candidate] = []
            for recipe in able[1:]:
                if group and not self.session.has_room_for(recipe):
                    self._finish(group)
                candidate = self._begin_or_row(recipe)
                # It may have failed only because others were there.
                if candidate is None and group and self.rows[recipe.name].status.kind is Kind.OUT_OF_MEMORY:
                    self._finish(group)
                    candidate = self._begin_or_row(recipe)
                if candidate is not None:
                    group.append(candidate)
            if group or REFERENCE not in self.rows:
                self._finish(group)

    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know."""
        if self.groups < 2:
            return ()
        return (
            f"Measured in {self.groups} groups, as memory allows; each speed-up is against the reference in its group.",
        )

    def _begin_reference(self, recipe: Recipe, rated: Sequence[Recipe]) -> Candidate:
        try:
            child, load_s = self._start(recipe)
            candidate = self._prepare(recipe, child, load_s)
            if not candidate.row.successful:
                raise ChildLost(candidate.row.status)
            self.expected, resident = self.session.answers(child)
            if rated:
                self._measure_roofline(child, rated)
        except ChildLost as lost:
            raise RecipeError(f"the reference {recipe.name} does not run: {lost.status}") from lost
        candidate.row = self.bench.judged(candidate.row, self.expected, self.expected, resident)
        return candidate

    def _begin_or_row(self, recipe: Recipe) -> Candidate | None:
        """A candidate that waits for its turns, or None and a row that says why there is none."""
        try:
            child, load_s = self._start(recipe)
            candidate = self._prepare(recipe, child, load_s)
            if candidate.row.successful:
                candidate.row = self.bench.judged(candidate.row, self.expected, *self.session.answers(child))
                self.progress.set_description(f"{recipe.name}: waiting")
                return candidate
        except ChildLost as lost:
            self._keep(new_row(recipe, lost.status))
            return None
        self.session.close(child)
        self._keep(candidate.row)
        return None

    def _start(self, recipe: Recipe) -> tuple[Child, float]:
        self.progress.set_description(f"{recipe.name}: starting")
        return self.session.start(recipe)

    def _measure_roofline(self, child: Child, recipes: Sequence[Recipe]) -> None:
        self.progress.set_description("measuring the roofline")
        precisions = list(dict.fromkeys(recipe.precision for recipe in recipes))
        budget_s = min(_ROOFLINE_BUDGET_S, self.bench.budget_s / 10)
        measured = self.session.ask(child, "roofline", precisions=precisions, budget_s=budget_s)
        self.roofline = Roofline(**{**measured, "tried": tuple(map(tuple, measured["tried"]))})
        self.flops = self.session.ask(child, "flops")["flops"]

    def _prepare(self, recipe: Recipe, child: Child, load_s: float) -> Candidate:
        # Against itself the reference has nothing to prove.
        verify = self.verify and recipe.name != REFERENCE
        candidate = self.bench.prepare(
            recipe,
            child,
            load_s,
            lambda stage: self.progress.set_description(f"{recipe.name}: {stage}"),
            verify=verify,
        )
        if candidate.row.successful:
            self.progress.update(1)
        return candidate

    def _finish(self, group: list[Candidate]) -> None:
        """Measure the reference and the group in interleaved rounds, then end the group's processes."""
        candidates = [self.reference, *group]
        rounds = self.bench.rounds(
            candidates, lambda number: self.progress.set_description(f"{len(candidates)} recipes: round {number}")
        )
        if REFERENCE in rounds.lost:
            raise RecipeError(f"the reference {REFERENCE} does not run: {rounds.lost[REFERENCE]}")
        self.groups += 1
        against = self.bench.timing(self.reference, rounds)
        if REFERENCE not in self.rows:
            self._keep(self._timed(self.reference, against, None))
        for candidate in group:
            name = candidate.row.recipe
            if name in rounds.lost:
                self._keep(replace(candidate.row, status=rounds.lost[name]))
                continue
            self._keep(self._timed(candidate, self.bench.timing(candidate, rounds), against))
            self.session.close(candidate.child)
        group.clear()

    def _timed(self, candidate: Candidate, timing: Timing, reference: Timing | None) -> RecipeResult:
        row, percent = timed(candidate, timing, reference), None
        if self.roofline is not None and self.flops and row.precision in self.roofline.rates:
            percent = self.roofline.percent(timing, self.flops, row.precision)
        return replace(row, roofline_percent=percent, group=self.groups)

    def _keep(self, row: RecipeResult) -> None:
        self.rows[row.recipe] = row
        if row.status.kind is Kind.LACKS:
            return
        # Two steps each: prepared, and measured.
        self.progress.update(1 if row.first_call_s is not None else 2)
        if row.status.failed:
            logger.warning("%s: %s", row.recipe, row.status)


def choose_recipes(recipes: Sequence[str | Recipe] | None) -> tuple[Recipe, ...]:
    """The recipes to run, the reference first.

    Raises
    ------
    InputError
        If a name is unknown or comes twice, or another recipe has the reference's name.
    """
    if isinstance(recipes, (str, Recipe)):
        raise InputError(f"recipes is the single {recipes!r:.60}; give a list, such as ['torchscript-fp32']")
    if recipes is not None and not isinstance(recipes, Iterable):
        raise InputError(f"recipes is {recipes!r:.60}; give a list, such as ['torchscript-fp32']")
    reference = get_recipe(REFERENCE)
    wanted = list_recipes() if recipes is None else recipes
    chosen = [get_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in wanted]
    for recipe in chosen:
        if not isinstance(recipe, Recipe):
            raise InputError(f"recipes holds a {type(recipe).__name__}; give names or Recipe objects")
        if recipe.name == REFERENCE and recipe != reference:
            raise InputError(f"a recipe of your own is named {REFERENCE}, which is the reference; rename it")
    others = [recipe for recipe in chosen if recipe != reference]
    names = [recipe.name for recipe in others]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"recipes names {twice[0]!r} more than once; name each once")
    return (reference, *others)


def choose_threads(threads: int | None) -> int:
    """The number of threads; PyTorch's own unless given.

    Raises
    ------
    InputError
        If it is not a whole number of at least 1, or far more than this machine could run.
    """
    return torch.get_num_threads() if threads is None else limits.check_threads(threads)


def check_request(
    model: torch.nn.Module, inputs: Mapping[str, Any], agreement: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """``inputs`` and ``agreement``, each with tensors and plain values by name.

    Raises
    ------
    InputError
        If the model or the inputs cannot be used, or the further inputs have other names.
    """
    check_model(model)
    bound = bind_inputs(model, inputs)
    given = {**bound.tensors, **bound.constants}
    further = []
    for number, row in enumerate(given_rows("agreement_inputs", agreement)):
        try:
            other = bind_inputs(model, row)
        except InputError as error:
            raise InputError(f"agreement_inputs[{number}]: {error}") from error
        if other.tensors.keys() != bound.tensors.keys():
            raise InputError(
                f"agreement_inputs[{number}] has {', '.join(other.tensors)}, "
                f"not {', '.join(bound.tensors)} as inputs has; give the same names"
            )
        further.append({**other.tensors, **other.constants})
    return {"inputs": given, "agreement": tuple(further)}


def check_positive(**values: float | None) -> None:
    """Refuse what is no positive number; ``memory_bytes`` may be None.

    Raises
    ------
    InputError
        Naming the argument and its value.
    """
    for name, value in values.items():
        if value is None and name == "memory_bytes":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(f"{name} is {value!r}; give a positive number")


def _shape_text(tensor: torch.Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape))}, {str(tensor.dtype).removeprefix('torch.')}"


def _environment(report: MachineReport) -> dict[str, Any]:
    left_out = ("threads", "memory_available", "cores_allowed")
    facts = {name: value for name, value in asdict(report).items() if name not in left_out}
    return facts | {
        "isa": list(report.isa),
        "cores": report.cores,
        "bf16_native": report.bf16_native,
        "int8_native": report.int8_native,
        "stack": report.stack,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
