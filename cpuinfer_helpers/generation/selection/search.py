"""Try recipes of text generation within a time budget, and have the best of them write side by side."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from tqdm.auto import tqdm

from cpuinfer_helpers.display import GrowingTable, Table, format_seconds
from cpuinfer_helpers.generation.selection.bench import Candidate, GenerationBench, new_row
from cpuinfer_helpers.generation.selection.compare import TURNS, described
from cpuinfer_helpers.generation.selection.result import GenerationComparison, GenerationResult
from cpuinfer_helpers.generation.step import GenerationRecipe
from cpuinfer_helpers.processes.child import ChildLost
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.recipes.registry import REFERENCE

logger = logging.getLogger("cpuinfer_helpers")

# First texts are no measurement: only what is clearly slower in them is not looked at any further.
_CLEARLY_SLOWER = 1.5
# TorchScript has made its plan by the third call of each shape: short texts are looked at as often.
_LOOKS, _SHORT_S = 3, 2.0
# As many are measured side by side, beside the reference: each holds its own copy of the weights.
_FINALISTS = 3
# What a machine that others use may take longer than it did a moment ago.
_CAUTION = 1.5
# Turns for telling apart what the first six could not, where time is left.
_MOST_TURNS = 24
# A speed-up that is worth more measuring if it is not certain yet.
_WORTH_A_LOOK = 1.05


@dataclass
class GenerationSearch:
    """One search for the recipe that writes fastest.

    Attributes
    ----------
    model, prompts, held_out
        The eager model, what is continued, and the texts on which perplexity is compared.
    new_tokens
        By how many tokens.
    tolerance
        Largest relative error of one token's logits; None for that of each precision.
    budget_s
        Seconds for everything.
    memory_bytes
        As for :func:`~cpuinfer_helpers.compare_generators`.
    left_out
        Why recipes that could run are not tried, by name.
    progress
        Show a bar, and a table that grows.
    """

    model: torch.nn.Module
    prompts: Mapping[str, torch.Tensor]
    held_out: torch.Tensor | None
    new_tokens: int
    tolerance: float | None
    budget_s: float
    memory_bytes: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    progress: bool = True
    rows: dict[str, GenerationResult] = field(default_factory=dict)
    finalists: list[Candidate] = field(default_factory=list)
    # Seconds that it took to prepare each finalist, which is prepared once more in the process that asks.
    preparing: dict[str, float] = field(default_factory=dict)

    def run(self, recipes: Sequence[GenerationRecipe]) -> GenerationComparison:
        """Try the recipes; the reference is the first of them."""
        self._end = time.monotonic() + self.budget_s
        threads = torch.get_num_threads()
        missing = {recipe.name: recipe.why_not or self.left_out.get(recipe.name) for recipe in recipes}
        content = {"model": self.model, "prompts": self.prompts, "held_out": self.held_out}
        with (
            Session(content, threads=threads, timeout_s=self.budget_s, memory_bytes=self.memory_bytes) as session,
            tqdm(total=len(recipes) + 1, desc="optimizing", unit="recipe", disable=not self.progress) as bar,
            GrowingTable() as self._shown,
        ):
            self._bench = GenerationBench(session, self.prompts, self.new_tokens, self.tolerance, bar.set_description)
            able = [recipe for recipe in recipes if not missing[recipe.name]]
            for recipe in recipes:
                self._start_together(recipe, able)
                self._keep(self._obstacle(recipe, missing[recipe.name]) or self._tried(recipe))
                bar.update(1)
            self._measure()
            bar.update(1)
        return GenerationComparison(
            rows={recipe.name: self.rows[recipe.name] for recipe in recipes},
            **described(self.model, self.prompts, self.new_tokens, threads),
            bandwidth=self._bench.bandwidth,
        )

    def _start_together(self, recipe: GenerationRecipe, able: Sequence[GenerationRecipe]) -> None:
        """Start as many processes as there are threads, while nothing is measured: starting one takes one core."""
        session = self._bench.session
        if recipe not in able or session.is_ready(recipe):
            return
        first = able.index(recipe)
        others = [other for other in able[first : first + session.threads] if session.has_room_for(other)]
        if len(others) > 1 and self._time_left() > 1.0:
            session.deadline = self._end - self._reserve()
            try:
                session.start_together(others)
            except ChildLost as lost:  # each is started by itself when its turn comes, and is told why it cannot
                logger.debug("%d processes cannot be started at once: %s", len(others), lost.status)

    def _obstacle(self, recipe: GenerationRecipe, missing: str | None) -> GenerationResult | None:
        """A row for what is not even begun, or None."""
        if missing:
            return new_row(recipe, Status(Kind.LACKS, missing))
        if recipe.name == REFERENCE:
            return None
        if REFERENCE not in self.rows or not self.rows[REFERENCE].successful:
            why = "the reference has not written, so there is nothing to compare with"
            return new_row(recipe, Status(Kind.NOT_TRIED, why))
        if self._time_left() < 1.0:
            return new_row(recipe, Status(Kind.NOT_TRIED, f"the budget of {round(self.budget_s, 1):g} s is used up"))
        while not self._bench.session.has_room_for(recipe):
            if len(self._others()) < 2:
                return new_row(recipe, Status(Kind.OUT_OF_MEMORY, "there is no room for another process"))
            self._give_up_slowest()
        return None

    def _tried(self, recipe: GenerationRecipe) -> GenerationResult:
        """Prepare, verify, and look at the first two texts."""
        started = time.monotonic()
        self._bench.session.deadline = self._end - self._reserve()
        try:
            candidate = self._bench.begin(recipe, verify=True)
            seconds = time.monotonic() - started
            if not candidate.row.successful:
                return candidate.row
            if recipe.name == REFERENCE:
                self._bench.measure_bandwidth(candidate)
            lost = self._bench.take_turns([candidate], _LOOKS if candidate.fastest_s < _SHORT_S else 1)
        except ChildLost as error:
            return new_row(recipe, error.status)
        if lost:
            return replace(candidate.row, status=lost[candidate.name])
        return self._judged(candidate, seconds)

    def _judged(self, candidate: Candidate, prepare_s: float) -> GenerationResult:
        """Its row, and a place among the finalists unless others are clearly faster."""
        best = min(self.finalists, key=_fastest_s, default=candidate)
        if candidate.fastest_s > _CLEARLY_SLOWER * best.fastest_s and candidate.name != REFERENCE:
            self._bench.close(candidate)
            return replace(candidate.row, status=_slower(candidate, best))
        self.finalists.append(candidate)
        self.preparing[candidate.name] = prepare_s
        if len(self._others()) > _FINALISTS:
            self._give_up_slowest()
        return self.rows.get(candidate.name, candidate.row)

    def _give_up_slowest(self) -> None:
        """Let go of the slowest finalist, which others beat."""
        others = self._others()
        slowest, best = max(others, key=_fastest_s), min(others, key=_fastest_s)
        self.finalists.remove(slowest)
        self._bench.close(slowest)
        self._keep(replace(slowest.row, status=_slower(slowest, best)))

    def _measure(self) -> None:
        """The reference and the finalists in turns; only this says what is faster."""
        candidates = sorted(self.finalists, key=lambda candidate: candidate.name != REFERENCE)
        if not candidates or candidates[0].name != REFERENCE:
            return
        self._bench.session.deadline = self._end
        for candidate in candidates:
            candidate.turns.clear()
        end = self._end - self._prepare_reserve()
        lost = self._bench.take_turns(candidates, TURNS)
        alive = [candidate for candidate in candidates if candidate.name not in lost]
        if not lost and self._is_undecided(alive):
            lost = self._bench.take_turns(
                alive, _MOST_TURNS - TURNS, until=lambda _: time.monotonic() + self._turn_s() > end
            )
            alive = [candidate for candidate in alive if candidate.name not in lost]
        for candidate in candidates:
            if candidate.name in lost:
                self._keep(replace(candidate.row, status=lost[candidate.name]))
        if alive and alive[0].name == REFERENCE:
            for row in self._bench.measured(alive, group=1):
                self._keep(row)

    def _is_undecided(self, candidates: Sequence[Candidate]) -> bool:
        """Whether one looks faster than the reference, and no interval says so."""
        speedups = [row.speedup for row in self._bench.measured(candidates, group=1)[1:]]
        return any(speedup.ratio > _WORTH_A_LOOK for speedup in speedups) and not any(speedups)

    def _others(self) -> list[Candidate]:
        return [candidate for candidate in self.finalists if candidate.name != REFERENCE]

    def _time_left(self) -> float:
        return self._end - self._reserve() - time.monotonic()

    def _turn_s(self) -> float:
        """Seconds of one turn of all finalists, with the wait until each process is idle."""
        return sum(candidate.fastest_s + 0.1 for candidate in self.finalists)

    def _reserve(self) -> float:
        """Seconds that must be left for the last turns and for preparing the best in the process that asks."""
        return _CAUTION * TURNS * self._turn_s() + self._prepare_reserve()

    def _prepare_reserve(self) -> float:
        return max((self.preparing[candidate.name] for candidate in self._others()), default=0.0)

    def _keep(self, row: GenerationResult) -> None:
        self.rows[row.recipe] = row
        if row.status.failed:
            logger.warning("%s: %s", row.recipe, row.status)
        if self.progress:
            self._shown.show(Table(_COLUMNS, tuple(map(_cells, self.rows.values())), numeric=_COLUMNS[2:]))


_COLUMNS = ("recipe", "status", "first token", "each token", "whole text", "logits off by")


def _cells(row: GenerationResult) -> tuple[str, ...]:
    cells, timing = row.cells(), row.timing
    status = "verified" if row.successful and row.recipe != REFERENCE else str(row.status)
    whole = "" if timing is None else format_seconds(timing.whole.median)
    return row.recipe, status, cells["first token"], cells["each token"], whole, cells["logits off by"]


def _fastest_s(candidate: Candidate) -> float:
    return candidate.fastest_s


def _slower(candidate: Candidate, best: Candidate) -> Status:
    seconds = format_seconds(candidate.fastest_s)
    reason = f"the fastest of its first texts took {seconds}, of {best.name}'s {format_seconds(best.fastest_s)}"
    return Status(Kind.SLOWER, reason)
