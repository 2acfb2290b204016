"""What optimize() returns: a model that runs by the recipe that was chosen, with all that was seen on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.carrying import Carried
from cpuinfer_helpers.compare import Comparison
from cpuinfer_helpers.compare.comparison import RecipeResult
from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import PreparedModel
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.sizes import Sizes


class OptimizedModel(Displayed, Carried):
    """A model that runs by the fastest recipe that kept its answers; made by :func:`optimize` and ``load_optimized``.

    Call it with the keyword inputs of the example; it returns the model's own output class, without gradients.

    Attributes
    ----------
    prepared : PreparedModel
        What answers.
    comparison : Comparison
        Every recipe that was tried, with what became of it: its table, plot and costs.
    reason : str or None
        Why the eager model stays; None if another recipe was seen to be faster.
    remembered : bool
        Whether the recipe was chosen in an earlier call, on this machine, and only verified in this one.
    model : torch.nn.Module or None
        The eager model, whose weights :meth:`save` writes beside what was made of them; None if that was loaded.
    tolerance : float or None
        What :func:`optimize` was given.
    """

    _elsewhere = "save(folder) here, and load_optimized(folder) in the other process"

    def __init__(
        self,
        *,
        prepared: PreparedModel,
        comparison: Comparison,
        model: torch.nn.Module | None,
        reason: str | None = None,
        remembered: bool = False,
        tolerance: float | None = None,
    ) -> None:
        self.prepared = prepared
        self.comparison = comparison
        self.reason = reason
        self.remembered = remembered
        self.model = model
        self.tolerance = tolerance

    @property
    def _compiled(self) -> bool:
        return self.prepared._compiled

    @property
    def recipe(self) -> str:
        """Name of the recipe that was chosen."""
        return self.prepared.recipe

    @property
    def receipt(self) -> Receipt:
        """What was seen of the preparation and its verification."""
        return self.prepared.receipt

    @property
    def config(self) -> Any:
        """The model's configuration, as ``model.config``; None for models without one."""
        return self.prepared.config

    @property
    def sizes(self) -> Sizes:
        """Which sizes of the inputs were compared with the model; calls with others are refused."""
        return self.prepared.sizes

    @property
    def fixed_sizes(self) -> dict[str, torch.Size]:
        """Sizes of a row that calls must have, of the inputs of which no dimension may vary: images of one size."""
        return self.prepared.fixed_sizes

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that a call takes."""
        return self.prepared.input_names

    @property
    def result(self) -> RecipeResult:
        """The chosen recipe's row of the comparison."""
        return self.comparison[self.recipe]

    def __call__(self, **inputs: Any) -> Any:
        """Run the model.

        Parameters
        ----------
        **inputs
            Tensors by the names of the example, in any batch size and length that the model takes.

        Returns
        -------
        The model's own output class.

        Raises
        ------
        InputError
            If an input is missing or unknown, is a constant with another value, or has a size beyond those that were
            compared with the model.
        """
        return self.prepared(**inputs)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the model, as the recipe has made it, with its weights and a manifest to a folder, whole or not at all.

        Parameters
        ----------
        directory
            The folder to make. An optimized model saved there before is replaced; a folder of anything else is refused.

        Returns
        -------
        Path
            The folder, for ``load_optimized``.

        Raises
        ------
        ArtifactError
            If the folder cannot be written or holds something else.
        """
        from cpuinfer_helpers.optimize.saving import save

        return save(self, directory)

    def __str__(self) -> str:
        return f"{self._headline()}\n{self.table().as_text()}"

    def table(self) -> Table:
        """A row for each recipe that was tried."""
        whole = self.comparison.table()
        wanted = [whole.columns.index(name) for name in _COLUMNS]
        rows = tuple(tuple(row[place] for place in wanted) for row in whole.rows)
        numeric = tuple(name for name in whole.numeric if name in _COLUMNS)
        return Table(_COLUMNS, rows, title=self._headline(), note=whole.title, numeric=numeric)

    def _headline(self) -> str:
        name = self.comparison.model
        if self.recipe == REFERENCE:
            return f"{name} stays as it is ({REFERENCE}), because {self.reason}"
        earlier = f", chosen on {self.comparison.environment['measured_at']}" if self.remembered else ""
        return f"{name}: {self.recipe}, {self.result.speedup}{earlier}; {self.receipt.checks_summary()}"


_COLUMNS = ("recipe", "status", "median", "95% interval", "speed-up", "its interval", "largest error", "same labels")
