"""What a comparison found: a row for each recipe, with views of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cpuinfer_helpers.compare import saved
from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.recipes.base import PRECISIONS
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.timing.results import Roofline, interval_text


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """Recipes side by side, each measured in a process of its own; made by :func:`compare`.

    Attributes
    ----------
    rows
        A :class:`RecipeResult` for each recipe, by name; the reference, ``eager-fp32``, is the first.
    model
        Name of the model's class.
    inputs
        For each input tensor its shape and dtype, such as ``1 x 384, int64``.
    batch_size
        Rows of one call.
    threads
        Threads of each process.
    environment
        The machine and the versions: ``cpu``, ``isa``, ``cores``, ``memory_total``, ``system``, ``python``,
        ``versions`` ...
    roofline, flops
        Measured rates, and operations of one call; None where they were not measured.
    price_per_hour
        What an hour of this machine costs, in any currency; None if not given.
    parameters
        Number of the model's parameters, because a class has models of many sizes; None if not known.
    """

    rows: Mapping[str, RecipeResult]
    model: str
    inputs: Mapping[str, str]
    batch_size: int
    threads: int
    environment: Mapping[str, Any]
    roofline: Roofline | None = None
    flops: int | None = None
    price_per_hour: float | None = None
    notes: tuple[str, ...] = field(default=())
    parameters: int | None = None

    def __getitem__(self, recipe: str) -> RecipeResult:
        if recipe not in self.rows:
            raise InputError(f"{recipe!r} was not compared; choose from {', '.join(self.rows)}")
        return self.rows[recipe]

    @property
    def reference(self) -> RecipeResult:
        """The row of ``eager-fp32``."""
        return self.rows[REFERENCE]

    def best(self, precision: str | None = None) -> RecipeResult:
        """The fastest successful recipe.

        Parameters
        ----------
        precision
            Only among those of ``fp32``, ``bf16`` or ``int8``; among all unless given.

        Returns
        -------
        RecipeResult
            The reference, if it is among them and no other one is seen to be faster, intervals considered.

        Raises
        ------
        InputError
            If the precision is unknown or no recipe of it was successful.
        """
        if precision is not None and precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
        able = [row for row in self.rows.values() if row.successful and precision in (None, row.precision)]
        if not able:
            raise InputError(f"no recipe of precision {precision!r} was successful; see the status column")
        if self.reference in able:
            able = [row for row in able if row is self.reference or row.speedup]
        return max(able, key=lambda row: row.ratio)

    def table(self) -> Table:
        """A row for each recipe."""
        cells = [{"recipe": row.recipe, **row.cells()} for row in self.rows.values()]
        costs = [{"per million": self._cost_text(row)} if self.price_per_hour else {} for row in self.rows.values()]
        rows = tuple(tuple({**row, **cost}.values()) for row, cost in zip(cells, costs, strict=True))
        columns = tuple({**cells[0], **costs[0]})
        return Table(columns, rows, title=self._title(), note=" ".join(self.notes), numeric=_NUMERIC)

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each recipe: seconds, ratios, percentages and bytes as numbers."""
        import pandas

        records = [row.numbers() | {"cost_per_million": self._cost(row, self.price_per_hour)} for row in self._all()]
        return pandas.DataFrame.from_records(records, index="recipe")

    def plot(self) -> Any:
        """Bars of the medians, in milliseconds, with their 95% intervals."""
        timed = [row for row in self._all() if row.timing is not None]
        medians, lows, highs = ([getattr(row.timing, key) * 1e3 for row in timed] for key in ("median", "low", "high"))
        unit = "milliseconds a call (median, 95% interval)"
        return bar_chart([row.recipe for row in timed], medians, lows, highs, unit=unit, title=self._title())

    def cost(self, price_per_hour: float | None = None) -> Table:
        """What a million inferences cost with each recipe, if the machine does nothing else.

        Parameters
        ----------
        price_per_hour
            What an hour of this machine costs, in any currency; what :func:`compare` was given unless given here.

        Returns
        -------
        Table
            An inference is one row of a batch.

        Raises
        ------
        InputError
            If there is no price, or it is not a positive number.
        """
        price = check_price(self.price_per_hour if price_per_hour is None else price_per_hour)
        if price is None:
            raise InputError("cost: price_per_hour is missing; give what an hour of this machine costs")
        rows = []
        for row in self._all():
            cost = self._cost(row, price)
            if cost is not None:
                per_second = self.batch_size / row.timing.median
                rows.append((row.recipe, f"{per_second:.1f}", f"{1e6 / per_second / 3600:.1f}", f"{cost:.3g}"))
        columns = ("recipe", "inferences a second", "hours a million", "cost of a million")
        note = f"At {price:g} an hour; an inference is one row of a batch of {self.batch_size}."
        return Table(columns, tuple(rows), note=note, numeric=columns[1:])

    def against(self, other: Comparison) -> SideBySide:
        """This comparison beside that of another machine.

        Raises
        ------
        InputError
            If the other one is of another model, of a model of another size, or of other shapes.
        """
        return SideBySide(self, other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, environment included, as JSON; whole or not at all."""
        saved.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ArtifactError
            If the file is missing, damaged or of another format.
        """
        return saved.load(cls, path)

    def _all(self) -> tuple[RecipeResult, ...]:
        return tuple(self.rows.values())

    def _title(self) -> str:
        named = {shape: [n for n, other in self.inputs.items() if other == shape] for shape in self.inputs.values()}
        shapes = "; ".join(f"{', '.join(names)}: {shape}" for shape, names in named.items())
        return f"{self.model} ({shapes}), {self.threads} threads, {self.environment.get('cpu', 'unknown CPU')}"

    def _cost(self, row: RecipeResult, price: float | None) -> float | None:
        """Seconds of a call, for each row of the batch, a million times, at the price of a second."""
        if price is None or row.timing is None:
            return None
        return row.timing.median / self.batch_size * 1e6 * price / 3600

    def _cost_text(self, row: RecipeResult) -> str:
        cost = self._cost(row, self.price_per_hour)
        return "" if cost is None else f"{cost:.3g}"


@dataclass(frozen=True, repr=False)
class SideBySide(Displayed):
    """Two comparisons of the same model and inputs on two machines.

    Attributes
    ----------
    here, there
        The comparisons.
    """

    here: Comparison
    there: Comparison

    def __post_init__(self) -> None:
        for what in ("model", "parameters", "inputs"):
            mine, theirs = getattr(self.here, what), getattr(self.there, what)
            if mine != theirs and None not in (mine, theirs):
                raise InputError(f"the comparisons cannot be set side by side: {what} is {mine} here, {theirs} there")

    def ratio(self, recipe: str) -> float | None:
        """Time there divided by time here: 2 means that here is twice as fast. None if one of them has no time."""
        timings = [side.rows[recipe].timing if recipe in side.rows else None for side in (self.here, self.there)]
        if None in timings:
            return None
        return timings[1].median / timings[0].median

    def table(self) -> Table:
        """A row for each recipe of either."""
        names = dict.fromkeys((*self.here.rows, *self.there.rows))
        rows = tuple(
            (name, _time_text(self.here, name), _time_text(self.there, name), self._text(name)) for name in names
        )
        note = f"Here: {_machine_text(self.here)}. There: {_machine_text(self.there)}. Measured at different times."
        columns = ("recipe", "here", "there", "there / here")
        return Table(columns, rows, note=note, numeric=columns[1:])

    def cost(self, price_here: float, price_there: float) -> Table:
        """What a million inferences cost on either machine, if it does nothing else.

        Parameters
        ----------
        price_here, price_there
            What an hour of each machine costs, in the same currency.

        Returns
        -------
        Table
            A row for each recipe that was measured on one of them; an inference is one row of a batch.

        Raises
        ------
        InputError
            If a price is not a positive number.
        """
        prices = check_price(price_here), check_price(price_there)
        if None in prices:
            raise InputError(f"cost: price_here is {price_here!r}, price_there is {price_there!r}; give both")
        rows = []
        for name in dict.fromkeys((*self.here.rows, *self.there.rows)):
            costs = [
                side._cost(side.rows[name], price) if name in side.rows else None
                for side, price in zip((self.here, self.there), prices, strict=True)
            ]
            if costs != [None, None]:
                ratio = "" if None in costs else f"{costs[1] / costs[0]:.2f}"
                rows.append((name, *("" if cost is None else f"{cost:.3g}" for cost in costs), ratio))
        columns = ("recipe", "a million here", "a million there", "there / here")
        note = f"At {prices[0]:g} an hour here and {prices[1]:g} there."
        return Table(columns, tuple(rows), note=note, numeric=columns[1:])

    def _text(self, recipe: str) -> str:
        ratio = self.ratio(recipe)
        return "" if ratio is None else f"{ratio:.2f}"


def check_price(price: float | None) -> float | None:
    """The price if it is a positive number or None.

    Raises
    ------
    InputError
        If it is anything else.
    """
    if price is None:
        return None
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 < price < math.inf:
        raise InputError(f"price_per_hour is {price!r}; give a positive number")
    return float(price)


_NUMERIC = (
    "load",
    "prepare",
    "first call",
    "median",
    "speed-up",
    "of roofline",
    "largest error",
    "same labels",
    "memory",
    "pays after",
    "per million",
)


def _time_text(side: Comparison, recipe: str) -> str:
    if recipe not in side.rows:
        return "not compared"
    row = side.rows[recipe]
    if row.timing is None:
        return str(row.status.kind)
    return f"{format_seconds(row.timing.median)} {interval_text(row.timing.low, row.timing.high)}"


def _machine_text(side: Comparison) -> str:
    versions = side.environment.get("versions", {})
    return f"{side.environment.get('cpu', 'unknown CPU')}, {side.threads} threads, torch {versions.get('torch', '?')}"
