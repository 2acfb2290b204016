"""A recipe in its process: prepared, warmed up, asked for its answers, and timed in turns with others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.processes.asking import prepare_in
from cpuinfer_helpers.processes.child import Child
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.processes.rounds import Rounds, run_rounds
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.recipes import Recipe
from cpuinfer_helpers.timing.results import Timing
from cpuinfer_helpers.verification.agreement import label_agreement, max_error

# Share of a recipe's budget that warming up may take.
_WARM_UP_SHARE = 0.3


@dataclass
class Candidate:
    """A recipe that is prepared, warmed up and waits in its process for its turns; or one that failed, see its row."""

    child: Child
    row: RecipeResult
    example_calls: Sequence[float] = ()
    call_s: float = 0.0
    fastest_s: float = 0.0
    warm_up_calls: int = 0
    steady: bool = False


@dataclass(frozen=True)
class Bench:
    """Prepares, judges and times recipes in the processes of one session.

    Attributes
    ----------
    session
        Starts the processes and asks them.
    request
        ``inputs`` and ``agreement``: what the recipes answer.
    budget_s
        Seconds of measuring for each recipe.
    relative_width
        Stop earlier when every median's 95% interval is narrower than this share of it.
    config
        The model's configuration or None: it may tell what is padding in the answers.
    """

    session: Session
    request: Mapping[str, Any]
    budget_s: float
    relative_width: float
    config: Any = None

    def prepare(
        self, recipe: Recipe, child: Child, load_s: float | None, on_stage: Callable[[str], None], **options: Any
    ) -> Candidate:
        """Prepare the model in a child and warm it up.

        Parameters
        ----------
        recipe, child, load_s
            What :meth:`Session.start` was given and gave; without ``load_s`` the row tells no time for it.
        on_stage
            Told what is being done.
        **options
            For :meth:`~cpuinfer_helpers.processes.worker.Worker.prepare`.

        Raises
        ------
        ChildLost
            If the child ends.
        """
        on_stage("preparing")
        done = prepare_in(self.session, child, **options)
        row = new_row(recipe, done.status, load_s=load_s, receipt=done.receipt, runs=done.runs)
        if not row.successful:
            return Candidate(child, row)
        on_stage("warming up")
        warm = self.session.ask(child, "warm_up", budget_s=self.budget_s * _WARM_UP_SHARE)
        calls = done.example_calls
        row = replace(row, prepare_s=done.seconds, first_call_s=calls[0])
        return Candidate(child, row, calls, warm["median"], warm["fastest"], warm["calls"], warm["steady"])

    def judged(
        self, row: RecipeResult, expected: Sequence[Mapping[str, torch.Tensor]], answers: Any, resident_bytes: int
    ) -> RecipeResult:
        """The row with how far its answers are from the reference's."""
        given = [self.request["inputs"], *self.request["agreement"]]
        percent, labels = label_agreement(expected, answers, given, self.config)
        error = max_error(expected, answers, given, self.config)
        return replace(row, max_error=error, label_agreement=percent, labels=labels, resident_bytes=resident_bytes)

    def rounds(
        self, candidates: Sequence[Candidate], on_round: Callable[[int], None], deadline: float = math.inf
    ) -> Rounds:
        """Give each candidate its turns, and end by the deadline (``time.monotonic()``) if six of each fit in."""
        return run_rounds(
            [candidate.child for candidate in candidates],
            {candidate.row.recipe: candidate.call_s for candidate in candidates},
            self._turn,
            budget_s=self.budget_s,
            relative_width=self.relative_width,
            on_round=on_round,
            deadline=deadline,
        )

    def timing(self, candidate: Candidate, rounds: Rounds) -> Timing:
        """What the rounds say of one candidate."""
        name = candidate.row.recipe
        return Timing(
            label=name,
            samples=tuple(rounds.samples[name]),
            first_call=candidate.row.first_call_s,
            warmup_calls=candidate.warm_up_calls,
            steady=candidate.steady,
            stopped_by=rounds.stopped_by,
            threads=self.session.threads,
            round_id=rounds.round_id,
        )

    def _turn(self, child: Child, calls: int) -> list[float]:
        return self.session.ask(child, "run", watched=False, calls=calls)["seconds"]


def timed(candidate: Candidate, timing: Timing, reference: Timing | None) -> RecipeResult:
    """The candidate's row with its times, and its speed-up unless it is the reference itself."""
    return replace(
        candidate.row,
        timing=timing,
        speedup=timing.is_faster_than(reference) if reference else None,
        warm_up_s=sum(max(0.0, seconds - timing.median) for seconds in candidate.example_calls),
    )


def new_row(recipe: Recipe, status: Status, **seen: Any) -> RecipeResult:
    """A row of which nothing has been measured yet."""
    return RecipeResult(recipe.name, recipe.precision, status, emulated=recipe.emulated, **seen)
