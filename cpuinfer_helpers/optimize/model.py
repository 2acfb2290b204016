"""What optimize() returns: a model that runs by the recipe that was chosen, with all that was seen on the way."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.compare import Comparison
from cpuinfer_helpers.compare.saved import as_text
from cpuinfer_helpers.display import Table
from cpuinfer_helpers.errors import ArtifactError, CpuInferError, InputError, RecipeError, first_line
from cpuinfer_helpers.interface.copies import untouched
from cpuinfer_helpers.interface.drop_in import DropIn
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.machine.report import detect_isa, machine_report
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import PreparedModel, Recipe, Request, get_recipe, prepare
from cpuinfer_helpers.recipes.base import Stored
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.recipes.saved import known_recipe, probe_of, refuse_other_circumstances
from cpuinfer_helpers.saving.folders import new_artifact, read_manifest
from cpuinfer_helpers.saving.plain import check_fields
from cpuinfer_helpers.saving.probe import MANIFEST_FIELDS, PROBE_FILE, check_inputs, run_probe, schema
from cpuinfer_helpers.saving.tensors import read_named_tensors, write_named_tensors
from cpuinfer_helpers.saving.weights import dtype_of, read_config, read_model, write_model
from cpuinfer_helpers.verification.sizes import Sizes, read_sizes
from cpuinfer_helpers.verification.variations import valid_positions

KIND = "cpuinfer-optimized-model"
_FORMAT_VERSION = 1
_COMPARISON_FILE = "comparison.json"
_FIELDS: Mapping[str, Any] = {
    "recipe": str,
    "needs": tuple[str, ...],
    "cpu": str,
    "threads": int,
    "reason": str | None,
    "tolerance": float | None,
    "exported": bool,
    "model": Mapping[str, Any],
    "details": Mapping[str, Any] | None,
    "output": Mapping[str, Any] | None,
    "output_dtypes": Mapping[str, str] | None,
}


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
        self._reason = reason
        self.remembered = remembered
        self.model = model
        self.tolerance = tolerance

    @property
    def _compiled(self) -> bool:
        return self.prepared._compiled

    def _answer(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        return self.prepared._answer(inputs)

    @property
    def reason(self) -> str | None:
        """Why the eager model stays; None if another recipe was seen to be faster."""
        return self._reason

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
            If the folder cannot be written or holds something else.
        """
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


def save(optimized: OptimizedModel, directory: str | os.PathLike[str]) -> Path:
    """See :meth:`OptimizedModel.save`."""
    recipe, model, prepared = _recipe_of(optimized), optimized.model, optimized.prepared
    if model is None:
        raise ArtifactError("this model was loaded from a folder without its weights; copy that folder")
    request = Request(recipe.name, recipe.precision, untouched(model), prepared.inputs)
    reference = Reference(model, prepared.inputs)
    probe = probe_of(reference, prepared)
    manifest: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "recipe": recipe.name,
        "versions": installed_versions(),
        "needs": list(recipe.needs),
        "isa": list(detect_isa()),
        "cpu": machine_report().cpu,
        "threads": torch.get_num_threads(),
        "inputs": {name: schema(tensor) for name, tensor in prepared.inputs.tensors.items()},
        "constants": prepared.inputs.constants,
        "receipt": prepared.receipt.to_dict(),
        "reason": optimized.reason,
        "tolerance": optimized.tolerance,
        "sizes": prepared.sizes.to_dict(),
    }
    with new_artifact(directory, KIND, manifest) as folder:
        manifest["model"] = write_model(model, folder)
        manifest["exported"] = recipe.export is not None and prepared.prepared
        if manifest["exported"]:
            manifest["details"] = recipe.export(request, prepared.build, folder)
            manifest["output"] = prepared.spec.to_dict()
            manifest["output_dtypes"] = {name: _name(dtype) for name, dtype in prepared.dtypes.items()}
        write_named_tensors(probe, folder / PROBE_FILE)
        (folder / _COMPARISON_FILE).write_text(as_text(optimized.comparison), encoding="utf-8")
        _check_written(json.loads(json.dumps(manifest)), recipe, prepared.inputs, folder)
    return Path(directory)


def load_optimized(
    directory: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    model: torch.nn.Module | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
) -> OptimizedModel:
    """Read a folder that :meth:`OptimizedModel.save` wrote.

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
    OptimizedModel

    Raises
    ------
    ArtifactError
        If the folder is damaged or of another kind, was saved with other versions or on a CPU with instructions that
        this one lacks, or its answers differ.
    RecipeError
        If the recipe cannot run here.
    """
    folder = given_path(directory, "directory")
    manifest = read_manifest(folder, KIND, _FORMAT_VERSION)
    try:
        check_fields(manifest, MANIFEST_FIELDS | _FIELDS, "manifest")
        if manifest["tolerance"] is not None and not 0 <= manifest["tolerance"] < math.inf:
            raise ValueError(f"tolerance is {manifest['tolerance']}")
        recipe = known_recipe(manifest["recipe"], folder)
        if not rebuild:
            refuse_other_circumstances(manifest, recipe, folder)
        probe = read_named_tensors(folder / PROBE_FILE)
        inputs = BoundInputs({name: probe[f"input.{name}"] for name in manifest["inputs"]}, manifest["constants"])
        check_inputs(manifest, inputs, manifest.get("fixed_sizes"))
        if rebuild or not manifest["exported"]:
            optimized = _rebuilt(manifest, recipe, inputs, folder, model, calibration, verify=rebuild)
        else:
            optimized = _restored(manifest, recipe, inputs, probe, folder)
        if verify:
            run_probe(
                optimized,
                probe,
                folder,
                advice="load_optimized(..., rebuild=True) prepares it anew",
                valid=valid_positions(inputs.tensors, optimized.config),
                precision=recipe.precision,
                tolerance=optimized.tolerance,
            )
    except (ArtifactError, RecipeError):
        raise
    except Exception as error:  # with a changed manifest it may be put together in any wrong way
        if isinstance(error, InputError) and (model is not None or calibration):
            raise  # of what was given with the call
        raise ArtifactError(
            f"{folder}: its manifest is not what save() writes ({first_line(error)}); save again"
        ) from error
    return optimized


def _check_written(manifest: Mapping[str, Any], recipe: Recipe, inputs: BoundInputs, folder: Path) -> None:
    """Load what was just written, and run its probe, before it takes the place of an older folder.

    What a recipe would make anew from the weights when it is loaded is not made here: that takes as long as preparing.
    """
    try:
        probe = read_named_tensors(folder / PROBE_FILE)
        if not manifest["exported"]:
            Comparison.load(folder / _COMPARISON_FILE)
            return
        restored = _restored(manifest, recipe, inputs, probe, folder)
        valid = valid_positions(inputs.tensors, restored.config)
        run_probe(restored, probe, folder, valid=valid, precision=recipe.precision, tolerance=manifest["tolerance"])
    except (CpuInferError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"what was written cannot be loaded again, so nothing was saved: {first_line(error)}"
        ) from error


def _recipe_of(optimized: OptimizedModel) -> Recipe:
    try:
        return get_recipe(optimized.recipe)
    except ValueError as error:
        raise ArtifactError(
            f"{optimized.recipe} is a recipe of your own, which load_optimized does not know"
        ) from error


def _rebuilt(
    manifest: Mapping[str, Any],
    recipe: Recipe,
    inputs: BoundInputs,
    folder: Path,
    model: torch.nn.Module | None,
    calibration: Sequence[Mapping[str, torch.Tensor]],
    *,
    verify: bool,
) -> OptimizedModel:
    """The eager model from the saved weights, prepared by the saved recipe."""
    eager = read_model(manifest["model"], folder, model)
    prepared = prepare(
        recipe,
        eager,
        {**inputs.tensors, **inputs.constants},
        calibration=calibration,
        verify=verify,
        tolerance=manifest["tolerance"],
        on_failure="raise",
    )
    return _optimized(manifest, folder, prepared, eager)


def _answers_of(probe: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("output."): t for name, t in probe.items() if name.startswith("output.")}


def _restored(
    manifest: Mapping[str, Any], recipe: Recipe, inputs: BoundInputs, probe: Mapping[str, torch.Tensor], folder: Path
) -> OptimizedModel:
    """What the recipe had made, from its own files."""
    if recipe.why_not:
        raise RecipeError(f"{folder} needs the recipe {recipe.name}: {recipe.why_not}")
    spec = OutputSpec.from_dict(manifest["output"])
    dtypes = {name: dtype_of(dtype) for name, dtype in manifest["output_dtypes"].items()}
    # What the probe holds are the model's own answers, as it gave them.
    own = {name: tensor.dtype for name, tensor in _answers_of(probe).items()}
    if not dtypes.keys() == own.keys() == set(spec.tensor_names()) or dtypes != own:
        raise ArtifactError(f"{folder}: its manifest names other outputs than its probe holds; save again")
    try:
        build = recipe.restore(Stored(inputs, spec.tensor_names(), manifest["details"]), folder)
    except CpuInferError:
        raise
    except Exception as error:  # each backend has errors of its own for files that it cannot read
        raise ArtifactError(f"{folder}: {recipe.backend} cannot read its own files: {first_line(error)}") from error
    prepared = PreparedModel(
        recipe=recipe.name,
        model=None,
        inputs=inputs,
        spec=spec,
        dtypes=dtypes,
        receipt=Receipt.from_dict(manifest["receipt"]),
        build=build,
        config=read_config(manifest["model"], folder),
        sizes=read_sizes(manifest, inputs.tensors),
    )
    return _optimized(manifest, folder, prepared, None)


def _optimized(
    manifest: Mapping[str, Any], folder: Path, prepared: PreparedModel, model: torch.nn.Module | None
) -> OptimizedModel:
    return OptimizedModel(
        prepared=prepared,
        comparison=Comparison.load(folder / _COMPARISON_FILE),
        model=model,
        reason=manifest["reason"],
        tolerance=manifest["tolerance"],
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
