"""What a comparison of recipes of text generation has found: a row for each recipe, with views of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.compare import saved
from cpuinfer_helpers.compare.result import check_price
from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_bytes, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation.measuring import GenerationTiming
from cpuinfer_helpers.generation.registry import PRECISIONS
from cpuinfer_helpers.generation.selection.saved import FORMAT
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.timing.results import Speedup, interval_text


@dataclass(frozen=True, repr=False)
class GenerationResult(Displayed):
    """What one recipe did; None stands for what was not measured.

    Attributes
    ----------
    recipe, precision
        Its name, and ``fp32``, ``fp16w``, ``bf16``, ``int8`` or ``int4``.
    status
        What became of it, see :class:`~cpuinfer_helpers.processes.status.Status`.
    emulated
        Whether the CPU lacks instructions for the precision.
    load_s, prepare_s
        Seconds to load the model, and to build what runs.
    first_text_s
        Seconds of the very first text, which compiles and allocates.
    timing
        Times of whole texts and of each token. None if it did not run to the end.
    speedup
        Of a whole text against the reference's, paired by turn. None for the reference itself.
    token_speedup
        The same of a token after the first.
    group
        Recipes with the same number were measured in the same turns.
    resident_bytes
        What its process holds in memory after the first text, beyond what it held before the model was prepared.
    peak_bytes
        The most that its process has held, libraries included.
    weight_bytes
        Bytes of weights that a token reads.
    perplexity
        On held-out texts, with the recipe and with the model itself; None where it was not compared.
    runs
        What wrote, from the receipt.
    receipt
        All that was seen of the preparation.
    """

    recipe: str
    precision: str
    status: Status
    emulated: bool = False
    load_s: float | None = None
    prepare_s: float | None = None
    first_text_s: float | None = None
    timing: GenerationTiming | None = None
    speedup: Speedup | None = None
    token_speedup: Speedup | None = None
    group: int | None = None
    resident_bytes: int | None = None
    peak_bytes: int | None = None
    weight_bytes: int | None = None
    perplexity: tuple[float, float] | None = None
    runs: str = ""
    receipt: Receipt | None = None

    @property
    def successful(self) -> bool:
        """Whether it was prepared, verified if asked, and measured to the end."""
        return self.status.successful

    @property
    def ratio(self) -> float | None:
        """How many times faster than the reference a whole text is; 1 for itself, None if it was not measured."""
        if self.timing is None:
            return None
        return 1.0 if self.speedup is None else self.speedup.ratio

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, ``no difference seen``, ``reference``, or nothing."""
        if self.timing is None:
            return ""
        return "reference" if self.speedup is None else self.speedup.verdict

    @property
    def more_perplexity(self) -> float | None:
        """By which share perplexity is more than the model's own; None where it was not compared."""
        return self.perplexity[0] / self.perplexity[1] - 1 if self.perplexity else None

    @property
    def max_error(self) -> float | None:
        """Largest relative error of one token's logits that verification has seen; None without verification."""
        errors = (
            [check.max_error for check in self.receipt.checks if check.max_error is not None] if self.receipt else []
        )
        return max(errors, default=None)

    def table(self) -> Table:
        """The row's fields below each other."""
        return Table(("recipe", self.recipe), tuple(self.cells().items()))

    def cells(self) -> dict[str, str]:
        """All but the recipe's name as texts, by the columns of a comparison's table."""
        timing = self.timing
        share = timing.bandwidth_share if timing else None
        return {
            "status": str(self.status),
            "prepare": _text(self.prepare_s, format_seconds),
            "first text": _text(self.first_text_s, format_seconds),
            "first token": _text(timing, lambda t: format_seconds(t.first_token)),
            "each token": _text(timing, lambda t: format_seconds(t.per_token)),
            "95% interval": _text(timing, lambda t: interval_text(t.low, t.high)),
            "95% within": _text(timing, lambda t: format_seconds(t.slow_token)),
            "tokens/s": _text(timing, lambda t: f"{t.decode_rate:.1f}"),
            "speed-up of a token": _text(self.token_speedup, lambda s: f"{s.ratio:.2f}x"),
            "of a whole text": _text(self.speedup, lambda s: f"{s.ratio:.2f}x"),
            "its interval": _text(self.speedup, lambda s: f"[{s.low:.2f}, {s.high:.2f}]"),
            "verdict": self.verdict,
            "of memory": _text(share, lambda part: f"{part:.0%}"),
            "logits off by": _text(self.max_error, lambda error: f"{error:.1e}"),
            "perplexity": _text(self.more_perplexity, lambda more: f"{more:+.2%}"),
            "same tokens": _text(timing, lambda t: f"{t.same_tokens} of {t.rows * t.new_tokens}"),
            "memory": _text(self.resident_bytes, format_bytes),
            "what ran": self.runs + (", emulated" if self.emulated and self.runs else ""),
        }

    def numbers(self) -> dict[str, Any]:
        """The same as numbers and texts: seconds, ratios, shares and bytes."""
        timing = self.timing
        return {
            "recipe": self.recipe,
            "precision": self.precision,
            "status": str(self.status),
            "load_s": self.load_s,
            "prepare_s": self.prepare_s,
            "first_text_s": self.first_text_s,
            "first_token_s": timing.first_token if timing else None,
            "per_token_s": timing.per_token if timing else None,
            "low_s": timing.low if timing else None,
            "high_s": timing.high if timing else None,
            "slow_token_s": timing.slow_token if timing else None,
            "overhead_s": timing.overhead if timing else None,
            "prefill_rate": timing.prefill_rate if timing else None,
            "decode_rate": timing.decode_rate if timing else None,
            "text_s": timing.whole.median if timing else None,
            "speedup": self.speedup.ratio if self.speedup is not None else None,
            "token_speedup": self.token_speedup.ratio if self.token_speedup is not None else None,
            "verdict": self.verdict,
            "bytes_read": timing.bytes_read if timing else None,
            "bandwidth_share": timing.bandwidth_share if timing else None,
            "max_error": self.max_error,
            "more_perplexity": self.more_perplexity,
            "same_tokens": timing.same_tokens if timing else None,
            "resident_bytes": self.resident_bytes,
            "peak_bytes": self.peak_bytes,
            "weight_bytes": self.weight_bytes,
            "runs": self.runs,
        }


@dataclass(frozen=True, repr=False)
class GenerationComparison(Displayed):
    """Recipes of text generation side by side, each measured in a process of its own.

    Made by :func:`~cpuinfer_helpers.compare_generators`, and by :func:`~cpuinfer_helpers.optimize_generator`.

    Attributes
    ----------
    rows
        A :class:`GenerationResult` for each recipe, by name; the reference, ``eager-fp32``, is the first.
    model
        Name of the model's class.
    parameters
        Number of its parameters.
    prompts
        For each tensor of the prompts its shape and dtype.
    new_tokens
        How many tokens each text was continued by.
    threads
        Threads of each process.
    environment
        The machine and the versions.
    bandwidth
        Bytes per second that memory gives, measured beside the texts; None where it was not measured.
    notes
        What a reader of the table must know.
    """

    rows: Mapping[str, GenerationResult]
    model: str
    parameters: int
    prompts: Mapping[str, str]
    new_tokens: int
    threads: int
    environment: Mapping[str, Any]
    bandwidth: float | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, recipe: str) -> GenerationResult:
        if recipe not in self.rows:
            raise InputError(f"{recipe!r} was not compared; choose from {', '.join(self.rows)}")
        return self.rows[recipe]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def reference(self) -> GenerationResult:
        """The row of ``eager-fp32``."""
        return self.rows[REFERENCE]

    def best(self, precision: str | None = None) -> GenerationResult:
        """The recipe that writes a whole text fastest.

        Parameters
        ----------
        precision
            Only among those of ``fp32``, ``fp16w``, ``bf16``, ``int8`` or ``int4``; among all unless given.

        Returns
        -------
        GenerationResult
            The reference, if it is among them and no other one is seen to be faster, intervals considered.

        Raises
        ------
        InputError
            If the precision is unknown or no recipe of it was successful.
        """
        if precision is not None and precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
        able = [
            row for row in self.rows.values() if row.successful and row.timing and precision in (None, row.precision)
        ]
        if not able:
            raise InputError(f"no recipe of precision {precision!r} was successful; see the status column")
        if self.reference in able:
            able = [row for row in able if row is self.reference or row.speedup]
        return max(able, key=lambda row: row.ratio)

    def table(self) -> Table:
        """A row for each recipe."""
        cells = [{"recipe": row.recipe, **row.cells()} for row in self.rows.values()]
        rows = tuple(tuple(row.values()) for row in cells)
        return Table(tuple(cells[0]), rows, title=self._title(), note=" ".join(self._notes()), numeric=_NUMERIC)

    def answers(self) -> Table:
        """What each recipe keeps of the model's answers, without its times."""
        rows = []
        for row in self.rows.values():
            cells = row.cells()
            rows.append((row.recipe, *(cells[name] for name in _OF_ANSWERS)))
        return Table(("recipe", *_OF_ANSWERS), tuple(rows), title=self._title(), numeric=_OF_ANSWERS[1:])

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each recipe: seconds, ratios, shares and bytes as numbers."""
        import pandas

        return pandas.DataFrame.from_records([row.numbers() for row in self.rows.values()], index="recipe")

    def plot(self) -> Any:
        """Bars of the time for each token, in milliseconds, with their 95% intervals."""
        timed = [row for row in self.rows.values() if row.timing is not None]
        medians, lows, highs = (
            [getattr(row.timing, key) * 1e3 for row in timed] for key in ("per_token", "low", "high")
        )
        unit = "milliseconds for each token (median, 95% interval)"
        return bar_chart([row.recipe for row in timed], medians, lows, highs, unit=unit, title=self._title())

    def cost(self, price_per_hour: float) -> Table:
        """What a million tokens cost with each recipe, if the machine does nothing but write such texts.

        Parameters
        ----------
        price_per_hour
            What an hour of this machine costs, in any currency.

        Returns
        -------
        Table
            Tokens are those that were written; the time for reading the prompts is theirs.

        Raises
        ------
        InputError
            If it is not a positive number.
        """
        price = check_price(price_per_hour)
        rows = []
        for row in self.rows.values():
            if row.timing is not None:
                rate = row.timing.rows * row.timing.new_tokens / row.timing.whole.median
                hours = 1e6 / rate / 3600
                rows.append((row.recipe, f"{rate:.1f}", f"{hours:.1f}", f"{hours * price:.3g}"))
        columns = ("recipe", "tokens a second", "hours a million", "cost of a million")
        note = f"At {price:g} an hour; prompts of the same length, continued by {self.new_tokens} tokens."
        return Table(columns, tuple(rows), note=note, numeric=columns[1:])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, environment included, as JSON; whole or not at all.

        Raises
        ------
        ArtifactError
            If it cannot be written.
        """
        saved.save(self, path, FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GenerationComparison:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ArtifactError
            If the file is missing, damaged or of another format.
        """
        return saved.load(cls, path, FORMAT)

    def _title(self) -> str:
        shapes = "; ".join(f"{name}: {shape}" for name, shape in self.prompts.items())
        cpu = self.environment.get("cpu", "unknown CPU")
        return f"{self.model} ({shapes}; {self.new_tokens} new tokens), {self.threads} threads, {cpu}"

    def _notes(self) -> tuple[str, ...]:
        if self.bandwidth is None:
            return self.notes
        return (f"Memory is read at {self.bandwidth / 1e9:.1f} GB/s.", *self.notes)


_OF_ANSWERS = ("status", "logits off by", "perplexity", "same tokens")
_NUMERIC = (
    "prepare",
    "first text",
    "first token",
    "each token",
    "95% within",
    "tokens/s",
    "speed-up of a token",
    "of a whole text",
    "of memory",
    "logits off by",
    "perplexity",
    "memory",
)


def _text(value: Any, show: Any) -> str:
    return "" if value is None else show(value)
