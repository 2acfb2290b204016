"""What optimize() returns: a model that runs by the recipe that was chosen, with all that was seen on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.compare import Comparison
from cpuinfer_helpers.compare.saved import as_text
from cpuinfer_helpers.display import Table
from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.interface.drop_in import DropIn
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import PreparedModel
from cpuinfer_helpers.recipes.loading import load_of_kind
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.saving import kinds
from cpuinfer_helpers.saving.folders import new_artifact
from cpuinfer_helpers.tracing.traced import TracedModel
from cpuinfer_helpers.verification.sizes import Sizes

KIND = "cpuinfer-optimized-model"
_COMPARISON_FILE = "comparison.json"
_FIELDS: Mapping[str, Any] = {"reason": str | None}


class OptimizedModel(DropIn):
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
    ) -> None:
        self.prepared = prepared
        self.comparison = comparison
        self._reason = reason
        self.remembered = remembered
        self.model = model

    @property
    def _compiled(self) -> bool:
        return self.prepared._compiled

    @property
    def reason(self) -> str | None:
        """Why the eager model stays; None if another recipe was seen to be faster."""
        return self._reason

    @property
    def recipe(self) -> str:
        """Name of the recipe that was chosen."""
        return self.prepared.recipe

    @property
    def tolerance(self) -> float | None:
        """Largest difference from the model that passes, if it was given."""
        return self.prepared.tolerance

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
    def inputs(self) -> BoundInputs:
        """The example: tensors by name, and the plain values that are constants."""
        return self.prepared.inputs

    @property
    def result(self) -> RecipeResult:
        """The chosen recipe's row of the comparison."""
        return self.comparison[self.recipe]

    def __call__(self, **inputs: Any) -> Any:
        """Run the model; see :class:`~cpuinfer_helpers.interface.drop_in.DropIn`."""
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
            If the folder cannot be written or holds something else, the recipe is one of your own, the model was
            changed since or was loaded without its weights, or what was written cannot be loaded again. What was there
            is then as it was.
        """
        if self.model is None:
            raise ArtifactError("this model was loaded from a folder without its weights; copy that folder")
        manifest: dict[str, Any] = {"reason": self.reason}
        with new_artifact(directory, KIND, manifest) as folder:
            self.prepared._write(self.model, manifest, folder)
            (folder / _COMPARISON_FILE).write_text(as_text(self.comparison), encoding="utf-8")
            Comparison.load(folder / _COMPARISON_FILE)
        return Path(directory)

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


def load_optimized(
    directory: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    model: torch.nn.Module | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
) -> OptimizedModel | PreparedModel | TracedModel:
    """Read a folder that ``save()`` wrote: of an optimized, a prepared or a traced model.

    The manifest and the sha256 of every file are checked before anything is deserialised. No file in it is a pickle
    that Python reads. But a TorchScript file is a program, and so are, in their way, the files of other backends: one
    whose code names an operator that touches files, or that would run while it is loaded, is refused. The sums tell of
    damage, not of malice: load only folders that come from someone you trust.

    Parameters
    ----------
    directory
        The folder.
    rebuild
        Make the eager model from the saved weights, prepare it by the saved recipe, and verify it: for other versions,
        or another CPU, than those it was saved with, which are an error otherwise.
    model
        An instance of the model's class, for models that are not of transformers and recipes whose result cannot be
        written (eager, BetterTransformer, torch.compile), or with ``rebuild``. Its weights are replaced by those of
        the folder.
    calibration
        Inputs for static quantisation, for a rebuild of an INT8 recipe.
    verify
        Compare with the answers that the eager model gave when this was saved, three calls.

    Returns
    -------
    OptimizedModel, PreparedModel or TracedModel
        What was saved. ``rebuild``, ``model`` and ``calibration`` are for the first two.

    Raises
    ------
    ArtifactError
        If the folder is damaged or of another kind, was saved with other versions or on a CPU with instructions that
        this one lacks, or its answers differ. A traced model is loaded with other versions too, with a WARNING.
    InputError
        If ``rebuild``, ``model`` or ``calibration`` is given for a traced model.
    RecipeError
        If the recipe cannot run here.
    """
    further: dict[str, Any] = {"rebuild": rebuild, "model": model, "calibration": calibration}
    given = {name: value for name, value in further.items() if value is not None and value is not False and value != ()}
    return kinds.load(given_path(directory, "directory"), verify=verify, **given)


@kinds.loads(KIND)
def _load(
    directory: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    model: torch.nn.Module | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
) -> OptimizedModel:
    """Read a folder that :meth:`OptimizedModel.save` wrote."""
    return load_of_kind(directory, KIND, _FIELDS, _with_its_comparison, rebuild, model, calibration, verify)


def _with_its_comparison(
    manifest: Mapping[str, Any], prepared: PreparedModel, eager: torch.nn.Module | None, folder: Path
) -> OptimizedModel:
    return OptimizedModel(
        prepared=prepared,
        comparison=Comparison.load(folder / _COMPARISON_FILE),
        model=eager,
        reason=manifest["reason"],
    )
