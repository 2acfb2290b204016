"""Try recipes within a time budget, the cheapest to prepare first, and measure the best of them side by side."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpuinfer_helpers.compare.compare import circumstances
from cpuinfer_helpers.compare.result import Comparison
from cpuinfer_helpers.display import GrowingTable, Table, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.processes.candidates import Bench, Candidate, new_row, timed
from cpuinfer_helpers.processes.child import ChildLost
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.processes.rounds import MIN_ROUNDS, TURN_S, Rounds
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import Recipe, get_recipe
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.saving.plain import read

logger = logging.getLogger("cpuinfer_helpers")

# Seconds to start a process and to prepare BERT-base at (1, 384) in it (AMD EPYC, Zen 5, 2 cores): for the order only.
_SECONDS = {
    "eager": 5,
    "bettertransformer": 6,
    "torchscript": 7,
    "onednn-graph": 9,
    "onnxruntime": 11,
    "openvino": 13,
    "ipex": 13,
    "compile": 45,
}
_UNKNOWN_SECONDS = 10
_SECONDS_TO_QUANTISE = 20
# First calls are no measurement: only what is clearly slower in them is not looked at any further.
_CLEARLY_SLOWER = 1.2
# A speed-up that is worth more measuring if it is not certain yet.
_WORTH_A_LOOK = 1.05
# What a machine that others use may take longer than it did a moment ago.
_CAUTION = 1.5
# As many are measured side by side, beside the reference: each holds its own copy of the weights.
_FINALISTS = 3
# Share of the budget that one recipe may take to warm up; and how wide an interval may stay, as a share of its median.
_MEASURING_SHARE = 1 / 24
_RELATIVE_WIDTH = 0.05


@dataclass
class _Finalist:
    """A verified candidate, and the seconds that it takes to prepare it in yet another process."""

    candidate: Candidate
    prepare_s: float


@dataclass
class Search:
    """One search for the fastest recipe.

    Attributes
    ----------
    model, inputs, agreement
        The eager model, and the inputs by name on which recipes are measured, and compared.
    tolerance
        Largest difference from the model's answers, as a share of the largest; None for that of the precision.
    metric
        The user's own function of a model, higher is better; None for none.
    metric_kept
        Share of the model's own metric that a recipe must reach.
    calibration
        Inputs for static quantisation.
    budget_s
        Seconds for everything.
    memory_bytes
        As for :func:`~cpuinfer_helpers.compare`.
    left_out
        Why recipes that could run are not tried, by name.
    """

    model: torch.nn.Module
    inputs: Mapping[str, Any]
    agreement: Sequence[Mapping[str, Any]]
    tolerance: float | None
    metric: Any
    metric_kept: float
    calibration: Sequence[Mapping[str, torch.Tensor]]
    budget_s: float
    memory_bytes: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    rows: dict[str, RecipeResult] = field(default_factory=dict)
    finalists: list[_Finalist] = field(default_factory=list)

    def run(self, recipes: Sequence[Recipe]) -> Comparison:
        """Try the recipes; the reference is the first of them.

        Raises
        ------
        InputError
            If the model cannot be sent to another process, or the metric fails on the model itself.
        """
        from tqdm.auto import tqdm

        self._end = time.monotonic() + self.budget_s
        threads = torch.get_num_threads()
        # Asked before anything is measured: it takes a moment, and importing nothing.
        missing = {recipe.name: recipe.why_not or self.left_out.get(recipe.name) for recipe in recipes}
        content = {
            "model": self.model,
            "inputs": self.inputs,
            "agreement": self.agreement,
            "calibration": self.calibration,
            "metric": self.metric,
        }
        with (
            Session(content, threads=threads, timeout_s=self.budget_s, memory_bytes=self.memory_bytes) as session,
            tqdm(total=len(recipes) + 1, desc="optimizing", unit="recipe") as self._progress,
            GrowingTable() as self._shown,
        ):
            request = {"inputs": self.inputs, "agreement": self.agreement}
            config = getattr(self.model, "config", None)
            self._bench = Bench(session, request, self.budget_s * _MEASURING_SHARE, _RELATIVE_WIDTH, config)
            self._session = session
            able = [recipe for recipe in recipes if not missing[recipe.name]]
            for recipe in recipes:
                self._start_together(recipe, able)
                self._try(recipe, missing[recipe.name])
                self._progress.update(1)
            self._measure()
            self._progress.update(1)
        described = circumstances(self.model, self.inputs, threads)
        return Comparison(rows={recipe.name: self.rows[recipe.name] for recipe in recipes}, **described)

    def _start_together(self, recipe: Recipe, able: Sequence[Recipe]) -> None:
        """Start as many processes as there are threads, while nothing is measured: starting one takes one core."""
        if recipe not in able or self._session.is_ready(recipe):
            return
        first = able.index(recipe)
        others = [other for other in able[first : first + self._session.threads] if self._session.has_room_for(other)]
        if len(others) > 1 and self._time_left() > 1.0:
            self._progress.set_description(f"starting {len(others)} processes")
            self._session.deadline = self._end - self._reserve()
            try:
                self._session.start_together(others)
            except ChildLost as lost:  # each is started by itself when its turn comes, and is told why it cannot
                logger.debug("%d processes cannot be started at once: %s", len(others), lost.status)

    def _try(self, recipe: Recipe, missing: str | None) -> None:
        row = self._obstacle(recipe, missing)
        if row is None:
            self._session.deadline = self._end - self._reserve()
            try:
                row = self._tried(recipe)
            except ChildLost as lost:
                row = new_row(recipe, lost.status)
        self._keep(row)

    def _obstacle(self, recipe: Recipe, missing: str | None) -> RecipeResult | None:
        """A row for what is not even begun, or None."""
        if missing:
            return new_row(recipe, Status(Kind.LACKS, missing))
        if recipe.name == REFERENCE:
            return None
        if REFERENCE not in self._waiting():
            why = "the reference was not measured, so there is nothing to compare with"
            return new_row(recipe, Status(Kind.NOT_TRIED, why))
        if self._time_left() < 1.0:
            return new_row(recipe, Status(Kind.NOT_TRIED, f"the budget of {round(self.budget_s, 1):g} s is used up"))
        while not self._session.has_room_for(recipe):
            if len(self._others()) < 2:
                return new_row(recipe, Status(Kind.OUT_OF_MEMORY, "there is no room for another process"))
            self._give_up_slowest()
        return None

    def _tried(self, recipe: Recipe) -> RecipeResult:
        """Prepare, look at the first calls, verify: as far as it is worth while."""
        started = time.monotonic()
        self._stage(recipe, "starting")
        child, load_s = self._session.start(recipe)
        candidate = self._bench.prepare(
            recipe, child, load_s, lambda stage: self._stage(recipe, stage), verify=False, keep_model=True
        )
        prepare_s = time.monotonic() - started
        if candidate.row.successful:
            candidate.row = self._examined(recipe, candidate)
        if not candidate.row.successful:
            self._session.close(child)
            return candidate.row
        self.finalists.append(_Finalist(candidate, prepare_s))
        self.finalists.sort(key=_fastest_s)
        if len(self._others()) > _FINALISTS:
            self._give_up_slowest()
        return candidate.row

    def _examined(self, recipe: Recipe, candidate: Candidate) -> RecipeResult:
        """The candidate's row after its answers have been looked at, or with a status that says why not."""
        row, child = candidate.row, candidate.child
        if recipe.name != REFERENCE:
            best = min(self.finalists, key=_fastest_s).candidate
            if candidate.fastest_s > _CLEARLY_SLOWER * best.fastest_s:
                return replace(row, status=_slower(candidate, best))
            self._stage(recipe, "verifying")
            seen = self._session.ask(child, "verify", tolerance=self.tolerance)
            row = replace(row, receipt=read(Receipt, seen["receipt"], "receipt", older=True))
            if seen["difference"]:
                return replace(row, status=Status(Kind.FELL_BACK, seen["difference"]))
        self._stage(recipe, "comparing answers")
        answers, resident_bytes = self._session.answers(child)
        if recipe.name == REFERENCE:
            self._expected = answers
        row = self._bench.judged(row, self._expected, answers, resident_bytes)
        return row if self.metric is None else self._scored(recipe, candidate, row)

    def _scored(self, recipe: Recipe, candidate: Candidate, row: RecipeResult) -> RecipeResult:
        self._stage(recipe, "asking the metric")
        if recipe.name == REFERENCE:
            try:
                self._wanted = self._session.ask(candidate.child, "metric")["value"]
            except ChildLost as lost:
                if lost.status.kind is Kind.TIMED_OUT:
                    raise
                raise InputError(f"metric fails on the model itself: {lost.status}") from lost
            return with_metric(row, check_own_metric(self._wanted))
        seen = self._session.ask(candidate.child, "metric")["value"]
        row = with_metric(row, seen)
        if not metric_holds(seen, self._wanted, self.metric_kept):
            return replace(row, status=_worse(seen, self._wanted, self.metric_kept))
        return row

    def _measure(self) -> None:
        """The reference and the finalists in turns; only this says what is faster."""
        if REFERENCE not in self._waiting():
            return
        self._session.deadline = self._end
        candidates = [finalist.candidate for finalist in self.finalists]
        rounds = self._rounds(self._bench, candidates)
        if not rounds.lost and self._is_undecided(candidates, rounds):
            # On a noisy machine all the time that is left goes into telling them apart.
            left_s = self._time_left()
            if left_s > 0:
                rounds = self._rounds(replace(self._bench, budget_s=left_s / len(candidates)), candidates)
        reference = next(candidate for candidate in candidates if candidate.row.recipe == REFERENCE)
        against = self._bench.timing(reference, rounds) if REFERENCE in rounds.samples else None
        for candidate in candidates:
            name = candidate.row.recipe
            if name in rounds.lost:
                row = replace(candidate.row, status=rounds.lost[name])
            elif against is None:
                why = f"the reference was lost: {rounds.lost[REFERENCE]}"
                row = replace(candidate.row, status=Status(Kind.CRASHED, why))
            else:
                timing = self._bench.timing(candidate, rounds)
                row = timed(candidate, timing, against if candidate is not reference else None)
            self._keep(replace(row, group=1))

    def _rounds(self, bench: Bench, candidates: Sequence[Candidate]) -> Rounds:
        described = f"{len(candidates)} recipes side by side"
        return bench.rounds(
            candidates,
            lambda number: self._progress.set_description(f"{described}: round {number}"),
            deadline=self._end - self._prepare_reserve(),
        )

    def _is_undecided(self, candidates: Sequence[Candidate], rounds: Rounds) -> bool:
        """Whether one looks faster than the reference, and no interval says so."""
        timings = {candidate.row.recipe: self._bench.timing(candidate, rounds) for candidate in candidates}
        reference = timings.pop(REFERENCE)
        speedups = [timing.is_faster_than(reference) for timing in timings.values()]
        return any(speedup.ratio > _WORTH_A_LOOK for speedup in speedups) and not any(speedups)

    def _give_up_slowest(self) -> None:
        """Let go of the slowest candidate, which others beat."""
        others = self._others()
        slowest, best = max(others, key=_fastest_s), min(others, key=_fastest_s)
        self.finalists.remove(slowest)
        self._session.close(slowest.candidate.child)
        self._keep(replace(slowest.candidate.row, status=_slower(slowest.candidate, best.candidate)))

    def _others(self) -> list[_Finalist]:
        return [finalist for finalist in self.finalists if finalist.candidate.row.recipe != REFERENCE]

    def _waiting(self) -> list[str]:
        return [finalist.candidate.row.recipe for finalist in self.finalists]

    def _time_left(self) -> float:
        """Seconds that are left before what is kept for the end."""
        return self._end - self._reserve() - time.monotonic()

    def _reserve(self) -> float:
        """Seconds that must be left for the last measurement and for preparing the best in the user's process."""
        turn_s = min(TURN_S, self._bench.budget_s / 20)
        calls_s = (finalist.candidate.call_s for finalist in self.finalists)
        # Each turn has one call that is not counted, and a wait until the process is idle.
        rounds_s = sum(MIN_ROUNDS * (max(turn_s, call_s) + call_s + 0.1) for call_s in calls_s)
        return _CAUTION * rounds_s + self._prepare_reserve()

    def _prepare_reserve(self) -> float:
        return max((finalist.prepare_s + 4 * finalist.candidate.call_s for finalist in self._others()), default=0.0)

    def _keep(self, row: RecipeResult) -> None:
        self.rows[row.recipe] = row
        if row.status.failed:
            logger.warning("%s: %s", row.recipe, row.status)
        self._shown.show(self._table())

    def _table(self) -> Table:
        rows = tuple(self._cells(row) for row in self.rows.values())
        return Table(("recipe", "status", "a call", "speed-up", "largest error"), rows, numeric=_NUMERIC)

    def _cells(self, row: RecipeResult) -> tuple[str, ...]:
        calls = {finalist.candidate.row.recipe: finalist.candidate.call_s for finalist in self.finalists}
        call_s = row.timing.median if row.timing else calls.get(row.recipe)
        status = "verified" if row.successful and row.recipe != REFERENCE else str(row.status)
        return (
            row.recipe,
            status,
            "" if call_s is None else ("" if row.timing else "about ") + format_seconds(call_s),
            "" if row.speedup is None else f"{row.speedup.ratio:.2f}x",
            "" if row.max_error is None else f"{row.max_error:.1e}",
        )

    def _stage(self, recipe: Recipe, stage: str) -> None:
        self._progress.set_description(f"{recipe.name}: {stage}")


_NUMERIC = ("a call", "speed-up", "largest error")


def in_order(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """The reference, then the recipes by what it takes to prepare them, cheapest first; last what is emulated."""
    others = [recipe for recipe in recipes if recipe.name != REFERENCE]
    return (get_recipe(REFERENCE), *sorted(others, key=_effort))


def _effort(recipe: Recipe) -> tuple[bool, float, bool]:
    """What it takes to prepare; of two precisions the lower first: what is slower than it need not be verified."""
    quantises = _SECONDS_TO_QUANTISE if recipe.precision == "int8" else 0
    seconds = _SECONDS.get(recipe.backend, _UNKNOWN_SECONDS) + quantises
    return emulated_bf16(recipe) is not None, seconds, recipe.precision == "fp32"


def emulated_bf16(recipe: Recipe) -> str | None:
    """Why a recipe of BF16 is of no use to somebody who looks for a fast one, or None."""
    return recipe.emulation if recipe.precision == "bf16" else None


def metric_holds(seen: float, wanted: float, kept: float) -> bool:
    """Whether a metric is at least that share of the model's own; not-a-number never is."""
    # For negative metrics, such as a loss with its sign changed, the share goes the other way.
    return seen >= wanted - (1.0 - kept) * abs(wanted)


def check_own_metric(value: float) -> float:
    """The metric of the model itself, which every recipe's is compared with.

    Raises
    ------
    InputError
        If it is infinite or not a number.
    """
    if not math.isfinite(value):
        raise InputError(f"metric is {value} for the model itself, so nothing can be compared with it; mend the metric")
    return value


def with_metric(row: RecipeResult, value: float) -> RecipeResult:
    """The row with the user's metric in its receipt."""
    evidence = {**row.receipt.evidence, "metric": f"{value:.6g}"}
    return replace(row, receipt=replace(row.receipt, evidence=evidence))


def _worse(seen: float, wanted: float, kept: float) -> Status:
    reason = f"the metric is {seen:.6g}, the model's own is {wanted:.6g}, of which {kept:.4g} was asked"
    return Status(Kind.WORSE, reason)


def _fastest_s(finalist: _Finalist) -> float:
    """The fastest of the first calls: what else runs on the machine can only slow a call down."""
    return finalist.candidate.fastest_s


def _slower(candidate: Candidate, best: Candidate) -> Status:
    seconds = format_seconds(candidate.fastest_s)
    reason = f"the fastest of its first calls took {seconds}, of {best.row.recipe}'s {format_seconds(best.fastest_s)}"
    return Status(Kind.SLOWER, reason)
