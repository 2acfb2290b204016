"""Recipes on a realistic mix of lengths: each at its own length, against everything padded to one length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cpuinfer_helpers.compare.compare import choose_recipes, choose_threads
from cpuinfer_helpers.display import Displayed, Table, format_bytes
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.interface.inputs import given_rows
from cpuinfer_helpers.processes.asking import ask_alone
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.recipes import Recipe
from cpuinfer_helpers.tasks import Task
from cpuinfer_helpers.timing.measuring import measure_interleaved, seconds_of
from cpuinfer_helpers.timing.results import Speedup

# Question and passage together: most SQuAD v1.1 pairs are well under 200 tokens. A log-normal with this median and
# spread has a mean of 172.
_MEDIAN_TOKENS = 160
_SPREAD = 0.38
_CALLS_UNTIL_STEADY = 3
Inputs = Mapping[str, torch.Tensor]


def realistic_lengths(count: int = 12, longest: int = 384) -> tuple[int, ...]:
    """Lengths of a mix of questions with their passages, in tokens, in an order that mixes short and long.

    Quantiles of a log-normal distribution with a median of 160 tokens, at most ``longest``.

    Examples
    --------
    >>> sorted(realistic_lengths(4))
    [103, 142, 181, 248]
    """
    if count < 1 or longest < 8:
        raise InputError(f"realistic_lengths: count {count} must be at least 1 and longest {longest} at least 8")
    normal = statistics.NormalDist(math.log(_MEDIAN_TOKENS), _SPREAD)
    lengths = [min(longest, round(math.exp(normal.inv_cdf((i + 0.5) / count)))) for i in range(count)]
    return tuple(lengths[0::2] + lengths[1::2][::-1])


@dataclass(frozen=True)
class MixedRow:
    """One recipe on the mix.

    Attributes
    ----------
    recipe, status, runs
        As in a comparison.
    seconds
        Median time of one pass over the mix at its own lengths, in seconds; padded passes in ``padded_seconds``.
    gain, gain_low, gain_high
        How many times more inputs a second than with everything padded, with its 95% interval, interleaved rounds.
    unseen
        Largest time of the first three calls at a length, divided by the time of that length later on.
    memory_bytes
        How much the resident memory of the process grew over all lengths.
    """

    recipe: str
    status: Status
    runs: str = ""
    seconds: float = math.nan
    padded_seconds: float = math.nan
    gain: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    unseen: float = math.nan
    memory_bytes: int = 0

    @property
    def speedup(self) -> Speedup:
        """The gain over padding, with its interval."""
        return Speedup(self.gain, self.gain_low, self.gain_high, paired=True)


@dataclass(frozen=True, repr=False)
class MixedLengths(Displayed):
    """Recipes on a mix of lengths; made by :func:`compare_mixed_lengths`.

    Attributes
    ----------
    rows
        A :class:`MixedRow` for each recipe, by name.
    lengths
        Tokens of each input of the mix.
    padded_to
        The one length of the other way.
    """

    rows: Mapping[str, MixedRow]
    lengths: tuple[int, ...]
    padded_to: int

    def to_dict(self) -> dict[str, Any]:
        """The figures in types that JSON knows."""
        return {
            "lengths": list(self.lengths),
            "padded_to": self.padded_to,
            "rows": {name: asdict(row) | {"status": str(row.status)} for name, row in self.rows.items()},
        }

    def table(self) -> Table:
        """A row for each recipe."""
        columns = ("recipe", "status", "inputs/s", "padded", "gain", "its interval", "unseen length", "memory growth")
        shortest, longest, mean = min(self.lengths), max(self.lengths), statistics.mean(self.lengths)
        return Table(
            columns=columns,
            rows=tuple(self._row(row) for row in self.rows.values()),
            title=f"{len(self.lengths)} inputs, {shortest} to {longest} tokens, {mean:.0f} on average",
            note=(
                f"padded: every input padded to {self.padded_to} tokens. unseen length: the slowest of the first three "
                "calls at a length, against later calls at that length. Batch size 1."
            ),
            numeric=columns[2:],
        )

    def _row(self, row: MixedRow) -> tuple[str, ...]:
        if not row.status.successful:
            return (row.recipe, str(row.status), "", "", "", "", "", "")
        return (
            row.recipe,
            str(row.status),
            f"{len(self.lengths) / row.seconds:.1f}",
            f"{len(self.lengths) / row.padded_seconds:.1f}",
            f"{row.gain:.2f}x",
            f"[{row.gain_low:.2f}, {row.gain_high:.2f}]",
            f"{row.unseen:.1f}x",
            format_bytes(row.memory_bytes),
        )


def compare_mixed_lengths(
    task: Task,
    recipes: Sequence[str | Recipe] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    padded_to: int = 384,
    budget_s: float = 10.0,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    threads: int | None = None,
    timeout_s: float = 900.0,
    memory_bytes: int | None = None,
) -> MixedLengths:
    """Run a task's model over inputs of mixed lengths, each recipe in a process of its own, one after the other.

    Parameters
    ----------
    task
        Its ``model`` runs on its own texts, cut to the lengths.
    recipes
        Names or recipes of your own; all unless given.
    lengths
        Tokens of each input; :func:`realistic_lengths` unless given.
    padded_to
        Length that everything is padded to in the other half of each round.
    budget_s
        Seconds of measuring for each recipe and way; six rounds are always made.
    calibration, threads, timeout_s, memory_bytes
        As for :func:`compare`.

    Returns
    -------
    MixedLengths
    """
    from tqdm.auto import tqdm

    chosen, threads = choose_recipes(recipes), choose_threads(threads)
    lengths = tuple(lengths or realistic_lengths(longest=padded_to))
    content = {
        "model": task.model,
        "inputs": task.inputs(1, padded_to),
        "calibration": given_rows("calibration", calibration),
        "mixed": [task.inputs(1, length) for length in lengths],
        "padded": [task.inputs(1, padded_to, tokens=length) for length in lengths],
    }
    rows: dict[str, MixedRow] = {}
    with (
        Session(content, threads=threads, timeout_s=timeout_s, memory_bytes=memory_bytes) as session,
        tqdm(chosen, desc="mixed lengths", unit="recipe") as progress,
    ):
        for recipe in progress:
            progress.set_description(f"{recipe.name}: mixed lengths")
            rows[recipe.name] = _measured(session, recipe, budget_s)
    return MixedLengths(rows, lengths, padded_to)


def _measured(session: Session, recipe: Recipe, budget_s: float) -> MixedRow:
    question = f"{__name__}:measure_mixed_lengths"
    answer = ask_alone(session, recipe, question, verify=False, watched=False, budget_s=budget_s)
    return MixedRow(recipe.name, answer.status, answer.runs, **(answer.value or {}))


def measure_mixed_lengths(
    prepared: Callable[..., Any], sent: Mapping[str, Sequence[Inputs]], budget_s: float
) -> dict[str, Any]:
    """In a process of its own: run a mix of lengths as it comes, and padded, in interleaved rounds.

    Parameters
    ----------
    prepared
        Called with keyword inputs.
    sent
        ``mixed`` and ``padded``: the same inputs at their own lengths, and all at one length.
    budget_s
        Seconds for each of the two ways.

    Returns
    -------
    dict
        ``seconds`` and ``padded_seconds`` (median of a pass), ``gain`` with ``gain_low`` and ``gain_high``, ``unseen``
        (the slowest of the first three calls at a length divided by later ones at that length) and ``memory_bytes``
        (growth of resident memory over all lengths).
    """
    import psutil

    mixed, padded = sent["mixed"], sent["padded"]
    resident = psutil.Process().memory_info().rss
    # A backend may compile at the first call, or look at one or two first.
    passes = [_each(prepared, mixed) for _ in range(_CALLS_UNTIL_STEADY)]
    _run_all(prepared, mixed)
    later = [min(seconds_of(lambda inputs=inputs: prepared(**inputs)) for _ in range(2)) for inputs in mixed]
    grown = psutil.Process().memory_info().rss - resident
    timings = measure_interleaved(
        {"padded": lambda: _run_all(prepared, padded), "mixed": lambda: _run_all(prepared, mixed)}, budget_s=budget_s
    )
    gain = timings.speedup("mixed")
    return {
        "seconds": timings["mixed"].median,
        "padded_seconds": timings["padded"].median,
        "gain": gain.ratio,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "unseen": max(max(early) / steady for *early, steady in zip(*passes, later, strict=True)),
        "memory_bytes": max(0, grown),
    }


def _each(prepared: Callable[..., Any], inputs: Sequence[Inputs]) -> list[float]:
    """Seconds of one call for each input."""
    return [seconds_of(lambda tensors=tensors: prepared(**tensors)) for tensors in inputs]


def _run_all(prepared: Callable[..., Any], inputs: Sequence[Inputs]) -> None:
    for tensors in inputs:
        prepared(**tensors)
