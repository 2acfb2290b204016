"""What the comparison of model families found: a row for each model, precision and recipe, with views of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.timing.results import Speedup, Timing


@dataclass(frozen=True)
class FamilyResult:
    """What one recipe did with one model; None stands for what was not measured.

    Attributes
    ----------
    family, task
        Which model: the family's name in papers, and the task whose head it has.
    recipe
        What prepared it: ``ipex-bf16`` ...
    status
        What became of it: a kind, ``successful``, ``could not be prepared``, ``crashed``, ``out of memory``,
        ``timed out`` or ``not measured``, and the reason.
    baseline
        Times of the eager model in the same precision.
    timing
        Times of the prepared model, from the same interleaved rounds; each sample is the median of one turn.
    max_error
        Largest absolute difference from the answers of eager FP32, on valid positions of the measured input.
    receipt
        All that was seen of the preparation.
    """

    family: str
    task: str
    recipe: str
    status: Status
    baseline: Timing | None = None
    timing: Timing | None = None
    max_error: float | None = None
    receipt: Receipt | None = None

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16``."""
        return self.recipe.rpartition("-")[2]

    @property
    def speedup(self) -> Speedup | None:
        """Against the eager model in the same precision, paired by round."""
        if self.timing is None or self.baseline is None:
            return None
        return self.timing.is_faster_than(self.baseline)

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, ``no difference seen``, or the kind of the status."""
        return str(self.status.kind) if self.speedup is None else self.speedup.verdict


@dataclass(frozen=True, repr=False)
class Benefit(Displayed):
    """How many of all models one recipe makes faster than eager at the same precision.

    Attributes
    ----------
    recipe
        Its name.
    faster, slower, same
        Models by what the 95% interval of their speed-up says; ``same`` where it holds 1.
    failed
        Models that could not be prepared, or did not give the model's answers.
    median_ratio
        Median speed-up of those that were measured; None if there are none.
    why_not
        Why the recipe cannot run here at all; None if it can.
    """

    recipe: str
    faster: int
    slower: int
    same: int
    failed: int
    median_ratio: float | None = None
    why_not: str | None = None

    @property
    def models(self) -> int:
        """All models, also those that could not be prepared: who has one of them does not benefit."""
        return self.faster + self.slower + self.same + self.failed

    @property
    def percent(self) -> float | None:
        """Share of models that get faster, in percent; None if the recipe cannot run here."""
        return 100.0 * self.faster / self.models if self.models else None

    def __str__(self) -> str:
        if self.percent is None:
            return f"not measured: {self.why_not}"
        return f"faster in {self.faster} of {self.models} ({self.percent:.0f}%)"

    def table(self) -> Table:
        """The numbers in one row."""
        return benefits_table([self])


@dataclass(frozen=True, repr=False)
class FamilyComparison(Displayed):
    """Model families side by side; made by :func:`compare_families`.

    Attributes
    ----------
    rows
        A :class:`FamilyResult` for each model and recipe.
    recipes
        Names of the recipes that were asked for.
    lacking
        Why recipes cannot run here, by name.
    layers, length, batch_size, threads
        Encoder layers of each model, shape of the inputs, and threads of each process.
    environment
        ``cpu`` and ``versions``.
    emulated
        Precisions for which this process lacks instructions, with which and why.
    """

    rows: tuple[FamilyResult, ...]
    recipes: tuple[str, ...]
    lacking: Mapping[str, str]
    layers: int
    length: int
    batch_size: int
    threads: int
    environment: Mapping[str, Any]
    emulated: Mapping[str, str] = field(default_factory=dict)

    def row(self, family: str, task: str, recipe: str) -> FamilyResult:
        """The row of one model and recipe.

        Raises
        ------
        InputError
            If there is none.
        """
        for row in self.rows:
            if (row.family, row.task, row.recipe) == (family, task, recipe):
                return row
        raise InputError(f"there is no row for {family!r}, {task!r}, {recipe!r}; see the columns of to_frame()")

    def share_that_benefits(self, recipe: str) -> Benefit:
        """How many of all models a recipe makes faster, counted only where the 95% interval says so.

        Parameters
        ----------
        recipe
            One of ``recipes``: ``ipex-fp32`` ...

        Returns
        -------
        Benefit
            Prints as ``faster in N of M (x%)``.

        Raises
        ------
        InputError
            If the recipe was not asked for.
        """
        if recipe not in self.recipes:
            raise InputError(f"{recipe!r} was not compared; choose from {', '.join(self.recipes)}")
        rows = [row for row in self.rows if row.recipe == recipe]
        speedups = [row.speedup for row in rows if row.speedup is not None]
        verdicts = [speedup.verdict for speedup in speedups]
        return Benefit(
            recipe,
            faster=verdicts.count("faster"),
            slower=verdicts.count("slower"),
            same=verdicts.count("no difference seen"),
            failed=len(rows) - len(speedups),
            median_ratio=statistics.median(s.ratio for s in speedups) if speedups else None,
            why_not=self.lacking.get(recipe),
        )

    def benefits(self) -> Table:
        """A row for each recipe: how many models get faster, and how many do not."""
        return benefits_table([self.share_that_benefits(recipe) for recipe in self.recipes], self._title())

    def problems(self) -> Table:
        """What could not be measured, and why; the tasks of a family that share a reason stand in one row."""
        tasks: dict[tuple[str, str, str], list[str]] = {}
        for row in self.rows:
            if not row.status.successful:
                tasks.setdefault((row.family, row.recipe, str(row.status)), []).append(row.task)
        rows = [(family, ", ".join(named), recipe, status) for (family, recipe, status), named in tasks.items()]
        rows += [("all", "all", recipe, f"lacks: {reason}") for recipe, reason in self.lacking.items()]
        return Table(("family", "task", "recipe", "status"), tuple(rows))

    def table(self) -> Table:
        """A row for each model: times of eager, and the speed-up by each recipe, with interval and verdict."""
        ran = [recipe for recipe in self.recipes if recipe not in self.lacking]
        precisions = list(dict.fromkeys(recipe.rpartition("-")[2] for recipe in ran))
        by_precision = {p: [recipe for recipe in ran if recipe.endswith(f"-{p}")] for p in precisions}
        found = {(row.family, row.task, row.recipe): row for row in self.rows}
        rows = []
        for family, task in dict.fromkeys((row.family, row.task) for row in self.rows):
            cells = [family, task]
            for recipes in by_precision.values():
                several = [found[family, task, recipe] for recipe in recipes]
                cells += [_baseline_text(several), *map(_speedup_text, several)]
            rows.append(tuple(cells))
        columns = ["family", "task"]
        for precision, recipes in by_precision.items():
            columns += [f"eager-{precision}", *recipes]
        numeric = tuple(f"eager-{precision}" for precision in precisions)
        return Table(tuple(columns), tuple(rows), self._title(), self._note(), numeric)

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each model and recipe: seconds and ratios as numbers."""
        import pandas

        return pandas.DataFrame.from_records([_numbers(row) for row in self.rows])

    def plot(self, recipe: str) -> Any:
        """Bars of one recipe's speed-ups over eager at the same precision, with their 95% intervals.

        Raises
        ------
        InputError
            If the recipe was not asked for.
        """
        self.share_that_benefits(recipe)
        measured = [(row, row.speedup) for row in self.rows if row.recipe == recipe and row.speedup is not None]
        ratios, lows, highs = ([getattr(s, name) for _, s in measured] for name in ("ratio", "low", "high"))
        labels = [f"{row.family}, {row.task}" for row, _ in measured]
        unit = f"times as fast as eager {recipe.rpartition('-')[2].upper()} (median, 95% interval)"
        return bar_chart(labels, ratios, lows, highs, unit=unit, title=recipe)

    def _title(self) -> str:
        return (
            f"{self.layers} layers of base width, random weights, {self.batch_size} x {self.length} tokens, "
            f"{self.threads} threads, {self.environment.get('cpu', 'unknown CPU')}"
        )

    def _note(self) -> str:
        lines = [f"{recipe}: {self.share_that_benefits(recipe)}." for recipe in self.recipes]
        lines += [f"{precision.upper()} is emulated: {why}." for precision, why in self.emulated.items()]
        lines += [f"{family} ({tasks}), {recipe}: {status}" for family, tasks, recipe, status in self._failures()]
        return "\n".join(lines)

    def _failures(self) -> list[tuple[str, ...]]:
        return [row for row in self.problems().rows if row[0] != "all"]


def benefits_table(benefits: list[Benefit], title: str = "") -> Table:
    """A row for each recipe."""
    columns = ("recipe", "models", "faster", "slower", "no difference", "not prepared", "share", "median speed-up")
    rows = []
    for benefit in benefits:
        if benefit.percent is None:
            rows.append((benefit.recipe, "0", "", "", "", "", str(benefit), ""))
            continue
        counts = (benefit.models, benefit.faster, benefit.slower, benefit.same, benefit.failed)
        ratio = "" if benefit.median_ratio is None else f"{benefit.median_ratio:.2f}x"
        rows.append((benefit.recipe, *map(str, counts), f"{benefit.percent:.0f}%", ratio))
    return Table(columns, tuple(rows), title, numeric=(*columns[1:6], "median speed-up"))


def _baseline_text(rows: list[FamilyResult]) -> str:
    timings = [row.baseline for row in rows if row.baseline is not None]
    return format_seconds(timings[0].median) if timings else ""


def _speedup_text(row: FamilyResult) -> str:
    if row.speedup is None:
        return row.verdict
    speedup = row.speedup
    return f"{speedup.ratio:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}] {speedup.verdict}"


def _numbers(row: FamilyResult) -> dict[str, Any]:
    speedup = row.speedup
    return {
        "family": row.family,
        "task": row.task,
        "recipe": row.recipe,
        "precision": row.precision,
        "status": str(row.status),
        "verdict": row.verdict,
        "eager_s": row.baseline.median if row.baseline else None,
        "median_s": row.timing.median if row.timing else None,
        "rounds": row.timing.calls if row.timing else None,
        "speedup": speedup.ratio if speedup is not None else None,
        "speedup_low": speedup.low if speedup is not None else None,
        "speedup_high": speedup.high if speedup is not None else None,
        "max_error": row.max_error,
    }
