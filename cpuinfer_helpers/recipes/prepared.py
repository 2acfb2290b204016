"""A model that a recipe has prepared, or the eager model that answers in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, CpuInferError, first_line
from cpuinfer_helpers.interface.copies import untouched
from cpuinfer_helpers.interface.drop_in import DropIn
from cpuinfer_helpers.interface.inputs import BoundInputs, check_model
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes.base import Build, Recipe, Request
from cpuinfer_helpers.recipes.saved import circumstances, read_example, read_parts, recipe_to_save
from cpuinfer_helpers.saving.folders import new_artifact
from cpuinfer_helpers.saving.manifest import described
from cpuinfer_helpers.saving.probe import PROBE_FILE, answers_of, probe_of, run_probe
from cpuinfer_helpers.saving.tensors import write_named_tensors
from cpuinfer_helpers.saving.weights import write_model
from cpuinfer_helpers.verification.equality import difference
from cpuinfer_helpers.verification.sizes import ANY_SIZE, Sizes
from cpuinfer_helpers.verification.variations import valid_positions

KIND = "cpuinfer-prepared-model"

# Their runtimes start threads when a model is prepared, or their kernels are compiled for a number of threads.
_WITH_THREADS = ("openvino-", "onnxruntime-", "onednn-graph-")
# Compiles again for other inputs and numbers of threads, in threads that only the process itself has.
_WITH_A_COMPILER = "compile-"


def _nothing() -> None:
    """There is no eager model to save."""


class PreparedModel(DropIn):
    """A model prepared by a recipe, or the eager model in its place; made by :func:`~cpuinfer_helpers.prepare`.

    Call it with the keyword inputs of the example; it returns the model's own output class, in the model's own dtype,
    without gradients. It computes in the recipe's precision, also under autocast.

    Attributes
    ----------
    recipe : str
        Name of the recipe that was asked for.
    reason : str or None
        Why the eager model answers; None if what the recipe made does.
    receipt : Receipt
        What was requested and what was seen.
    build : Build or None
        What the backend handed back; None if the eager model answers.
    inputs : BoundInputs
        The example: tensors by name, and the plain values that are constants.
    spec : OutputSpec or None
        Structure of the output; None if the eager model answers.
    config
        The model's configuration, as ``model.config``; None for models without one.
    sizes : Sizes
        Which sizes of the inputs were compared with the model; calls with others are refused.
    probe : dict of str to Tensor
        The example, and the model's own answers to it; empty after a fallback.
    tolerance : float or None
        Largest difference from the model that passes, if it was given.
    other_ways : bool
        Whether the recipe has other ways to make it, which :func:`~cpuinfer_helpers.prepare` tries where the answers
        turn out to differ.
    """

    _shared = ("build", "_assemble", "_eager_model")
    _elsewhere = "save(folder) here, and load_optimized(folder) in the other process"
    _each_shape = False

    def __init__(
        self,
        *,
        recipe: str,
        model: Callable[..., Any] | None,
        inputs: BoundInputs,
        spec: OutputSpec | None,
        dtypes: Mapping[str, torch.dtype],
        receipt: Receipt,
        build: Build | None = None,
        config: Any = None,
        sizes: Sizes = ANY_SIZE,
        probe: Mapping[str, torch.Tensor] | None = None,
        tolerance: float | None = None,
        eager: Callable[[], torch.nn.Module | None] = _nothing,
        other_ways: bool = False,
    ) -> None:
        super().__init__(inputs=inputs, receipt=receipt, model=model, spec=spec, config=config, sizes=sizes)
        self.recipe = recipe
        self.other_ways = other_ways
        self.build = build
        self.probe = dict(probe or {})
        self.tolerance = tolerance
        self._dtypes = dict(dtypes)
        # Asked when it is saved. The eager model is not kept in memory for that.
        self._eager_model = eager

    @property
    def _compiled(self) -> bool:
        return self.prepared

    @property
    def _own_threads(self) -> bool:
        if self.recipe.startswith(_WITH_A_COMPILER):
            return self.prepared
        return self.prepared and self.recipe.startswith(_WITH_THREADS) and self._threads > 1

    @property
    def prepared(self) -> bool:
        """Whether calls run what the recipe made; False if the eager model answers in its place."""
        return self.build is not None

    @property
    def module(self) -> torch.jit.ScriptModule | None:
        """The ScriptModule that runs, where there is one."""
        return self.build.module if self.build else None

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of each output tensor, the eager model's own."""
        return dict(self._dtypes)

    def _answer(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        with _no_autocast():
            outputs = self.build.answer(inputs)
            return self._assemble({name: outputs[name].to(dtype) for name, dtype in self._dtypes.items()})

    def save(self, directory: str | os.PathLike[str], *, model: torch.nn.Module | None = None) -> Path:
        """Write what the recipe has made, the model's weights and a manifest to a folder, whole or not at all.

        :func:`~cpuinfer_helpers.load_optimized` reads it. What a recipe cannot write (eager, BetterTransformer,
        torch.compile, and what is made for each shape) is made anew from the weights then.

        Parameters
        ----------
        directory
            The folder to make. What was saved there by this method is replaced; a folder of anything else is refused.
        model
            The eager model that was prepared. Needed where it is not in memory any more: it is not kept there.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArtifactError
            If nothing was prepared, the model is gone or was changed since, the folder cannot be written or holds
            something else, or what was written cannot be loaded again. What was there is then as it was.
        """
        if not self.prepared:
            raise ArtifactError(f"nothing was prepared, so there is nothing to save: {self.reason}")
        model = self._model_to_save(model)
        manifest: dict[str, Any] = {}
        with new_artifact(directory, KIND, manifest) as folder:
            self._write(model, manifest, folder)
        return Path(directory)

    def _model_to_save(self, model: torch.nn.Module | None) -> torch.nn.Module:
        model = self._eager_model() if model is None else model
        if model is None:
            raise ArtifactError(
                "the eager model, whose weights are saved too, is not in memory any more: keep it until then, or give "
                "it by save(folder, model=model). What was loaded from a folder is saved by copying that folder"
            )
        check_model(model)
        return model

    def _write(self, model: torch.nn.Module, manifest: dict[str, Any], folder: Path) -> None:
        """Write everything but the manifest into a folder, note it in the manifest, and see that it can be loaded."""
        recipe = recipe_to_save(self.recipe)
        with torch.inference_mode(False):
            reference = Reference(model, self.inputs)
        self._refuse_changed(reference)
        manifest.update(circumstances(recipe), tolerance=self.tolerance, each_shape=self._each_shape)
        manifest.update(described(self.inputs.tensors, self.inputs.constants, self.receipt, self.sizes))
        manifest["model"] = write_model(model, folder)
        manifest["exported"] = recipe.export is not None and self.prepared and not self._each_shape
        names = self.spec.tensor_names() if self.spec else tuple(reference.expected)
        if manifest["exported"]:
            request = Request(recipe.name, recipe.precision, untouched(model), self.inputs)
            manifest["details"] = recipe.export(request, self.build, folder)
            manifest["output"] = self.spec.to_dict()
            manifest["output_dtypes"] = {name: str(d).removeprefix("torch.") for name, d in self.dtypes.items()}
        probe = probe_of(self.inputs.tensors, {name: reference.expected[name] for name in names})
        write_named_tensors(probe, folder / PROBE_FILE)
        if manifest["exported"]:
            self._check_written(json.loads(json.dumps(manifest)), recipe, folder)

    def _refuse_changed(self, reference: Reference) -> None:
        """Raise where the model does not give the answers any more that what was prepared was compared with."""
        valid = valid_positions(self.inputs.tensors, reference.config)
        for name, before in answers_of(self.probe).items():
            now = reference.expected.get(name)
            if now is None or now.shape != before.shape or not difference(before, now, valid).passed:
                raise ArtifactError(
                    f"the model gives other answers ({name}) than when it was prepared: it is another one, or was "
                    "changed since; prepare it anew and save that"
                )

    def _check_written(self, manifest: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
        """Load what was just written, and run its probe, before it takes the place of an older folder.

        What a recipe makes anew from the weights when it is loaded is not made here: that takes as long as preparing.
        """
        try:
            inputs, probe = read_example(manifest, folder)
            PreparedModel.restored(manifest, recipe, inputs, probe, folder).run_probe(probe, folder)
        except (CpuInferError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"what was written cannot be loaded again, so nothing was saved: {first_line(error)}"
            ) from error

    @classmethod
    def restored(
        cls,
        manifest: Mapping[str, Any],
        recipe: Recipe,
        inputs: BoundInputs,
        probe: Mapping[str, torch.Tensor],
        folder: Path,
    ) -> PreparedModel:
        """What :meth:`save` wrote, from the backend's own files; see :func:`~cpuinfer_helpers.load_optimized`."""
        return cls(model=None, **vars(read_parts(manifest, recipe, inputs, probe, folder)))

    def run_probe(self, probe: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Compare the answers to the example, three calls, with those that the model gave when it was saved.

        Parameters
        ----------
        probe
            The example and those answers, as they were saved.
        folder
            Where it was saved, for the message.

        Raises
        ------
        ArtifactError
            If they differ, or it fails.
        """
        run_probe(
            self.named_answers,
            probe,
            folder,
            advice="load_optimized(..., rebuild=True) prepares it anew",
            valid=valid_positions(self.inputs.tensors, self.config),
            precision=self.recipe.rpartition("-")[2],
            tolerance=self.tolerance,
        )

    def __str__(self) -> str:
        if not self.prepared:
            return f"{self.recipe}: NOT prepared, the eager model answers, because {self.reason}"
        checked = "verified" if self.receipt.verified else "not verified"
        text = f"{self.recipe}: {self.receipt.runs}, {checked} ({self.receipt.checks_summary()})"
        return text + self.receipt.branches_text()


def _no_autocast() -> AbstractContextManager[Any]:
    """What a recipe made has a precision of its own: autocast around a call would make another plan of its graph."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
