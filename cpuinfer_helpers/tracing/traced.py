"""A traced model, or the eager model in its place: called like the model, saved, loaded and looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from cpuinfer_helpers.errors import ArtifactError, CpuInferError, first_line, not_loaded
from cpuinfer_helpers.interface.drop_in import DropIn
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.saving import kinds
from cpuinfer_helpers.saving import manifest as manifests
from cpuinfer_helpers.saving.folders import MODULE_FILE, kind_of, new_artifact, read_manifest
from cpuinfer_helpers.saving.plain import check_fields, read
from cpuinfer_helpers.saving.probe import PROBE_FILE, inputs_of, run_probe, warn_of_other_versions
from cpuinfer_helpers.saving.tensors import read_module, read_named_tensors, write_module, write_named_tensors
from cpuinfer_helpers.verification.sizes import ANY_SIZE, Sizes


class TracedModel(DropIn):
    """A traced model, or the eager model that answers in its place; made by :func:`trace_model` and :meth:`load`.

    Call it with the keyword inputs that it was traced with; it returns the model's own output class, without gradients.

    Attributes
    ----------
    module : torch.jit.ScriptModule or None
        The traced module. It takes the same tensors by name and returns a dictionary of tensors. None after a fallback.
    reason : str or None
        Why the eager model answers; None if the trace does.
    receipt : Receipt
        What was requested and what was seen.
    inputs : BoundInputs
        The example: tensors by name, and the plain values that are constants.
    config
        The model's configuration, as ``model.config``; None for models without one and after :meth:`load`.
    sizes : Sizes
        Which sizes of the inputs were compared with the model; calls with others are refused.
    probe : dict of str to Tensor
        The example, and the model's own answers to it.
    """

    # Every kind of trace, by the name that its manifests give.
    _by_kind: ClassVar[dict[str, type[TracedModel]]] = {}
    _kind = "cpuinfer-traced-model"
    _format_version = 1
    _shared = ("module", "_model", "_assemble")
    _elsewhere = "save(folder) here, and TracedModel.load(folder) in the other process"

    def __init__(
        self,
        *,
        module: torch.jit.ScriptModule | None,
        model: Callable[..., Any] | None,
        inputs: BoundInputs,
        spec: OutputSpec | None,
        receipt: Receipt,
        probe: Mapping[str, torch.Tensor],
        config: Any = None,
        sizes: Sizes = ANY_SIZE,
    ) -> None:
        super().__init__(inputs=inputs, receipt=receipt, model=model, spec=spec, config=config, sizes=sizes)
        self.module = module
        self.probe = probe
        self._positional = receipt.requested.get("input_style") == "tuple"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._by_kind[cls._kind] = cls
        kinds.loads(cls._kind)(cls.load)

    @property
    def _compiled(self) -> bool:
        return self.traced

    @property
    def traced(self) -> bool:
        """Whether calls run the traced module."""
        return self.module is not None

    def _answer(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        if self._positional:
            return self._assemble(self.module(*(inputs[name] for name in self.inputs.tensors)))
        return self._assemble(self.module(**inputs))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trace, its manifest and a probe to a folder, whole or not at all.

        The probe is the example with the model's own answers: :meth:`load` runs it before anybody else does.

        Parameters
        ----------
        directory
            The folder to make. A trace saved there before is replaced; a folder of anything else is refused.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArtifactError
            If nothing was traced, the folder holds something else or cannot be written, or what was written cannot be
            loaded again. What was there is then as it was.

        Notes
        -----
        Needs memory for another copy of the weights meanwhile.
        """
        if self.module is None:
            raise ArtifactError(f"nothing was traced, so there is nothing to save: {self.reason}")
        manifest = self._manifest(self.inputs.tensors, self.sizes) | {"output": self.spec.to_dict()}
        with new_artifact(directory, self._kind, manifest) as folder:
            write_module(self.module, folder / MODULE_FILE)
            write_named_tensors(self.probe, folder / PROBE_FILE)
            self._check_written(manifest, folder)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, verify: bool = True) -> TracedModel:
        """Read a folder that :meth:`save` wrote.

        A TorchScript file is a program: whoever loads and calls it runs it. The manifest and the sha256 of every file
        are checked before anything is deserialised, and a module is refused if its code names an operator that touches
        files, or would run while it is loaded. The sums tell of damage, not of malice, and a program can still use up
        time and memory: load only folders that come from someone you trust.

        Parameters
        ----------
        directory
            The folder.
        verify
            Run the probe three times and compare with the answers that the eager model gave when it was traced.

        Returns
        -------
        TracedModel

        Raises
        ------
        ArtifactError
            If the folder is damaged or of another kind, or the probe's answers differ.
        """
        if cls is TracedModel:
            cls = cls._by_kind.get(kind_of(directory), cls)
        manifest = read_manifest(directory, cls._kind, cls._format_version)
        folder = os.fspath(directory)
        try:
            check_fields(manifest, manifests.FIELDS, "manifest")
            warn_of_other_versions(manifest, folder)
            loaded = cls._from_manifest(manifest, folder)
            bound = loaded.inputs
            manifests.check_inputs(manifest, bound.tensors, bound.constants, loaded.fixed_sizes)
        except ArtifactError:
            raise
        except Exception as error:  # with a changed manifest it may be put together in any wrong way
            raise not_loaded(folder, error) from error
        if verify:
            loaded._run_probe(folder)
        return loaded

    def _manifest(self, tensors: Mapping[str, torch.Tensor], sizes: Sizes | None = None) -> dict[str, Any]:
        """What the manifest of every kind of trace says."""
        entries = manifests.described(tensors, self.inputs.constants, self.receipt, sizes)
        return {"format_version": self._format_version, **entries}

    def _check_written(self, manifest: Mapping[str, Any], folder: Path) -> None:
        """Load what was just written, and run its probe, before it takes the place of an older folder."""
        try:
            written = self._from_manifest(json.loads(json.dumps(manifest)), os.fspath(folder))
            written._run_probe(os.fspath(folder))
        except (CpuInferError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"what was written cannot be loaded again, so nothing was saved: {first_line(error)}"
            ) from error

    @classmethod
    def _from_manifest(cls, manifest: Mapping[str, Any], folder: str) -> TracedModel:
        probe = read_named_tensors(os.path.join(folder, PROBE_FILE))
        inputs = inputs_of(probe, manifest["inputs"])
        module = read_module(os.path.join(folder, MODULE_FILE))
        return cls(
            module=module,
            model=None,
            inputs=BoundInputs(inputs, manifest["constants"]),
            spec=OutputSpec.from_dict(manifest["output"]),
            receipt=read(Receipt, manifest["receipt"], "receipt", older=True),
            probe=probe,
            sizes=manifests.read_sizes(manifest, inputs),
        )

    def __str__(self) -> str:
        name = self.receipt.requested.get("model", "model")
        if not self.traced:
            return f"{name}: NOT traced, the eager model answers, because {self.reason}"
        how = "traced and frozen" if self.receipt.frozen else "traced"
        checked = "verified" if self.receipt.verified else "not verified"
        text = f"{name}: {how}, {checked} ({self.receipt.checks_summary()}), takes {', '.join(self.input_names)}"
        return text + self.receipt.branches_text()

    def _run_probe(self, folder: str) -> None:
        run_probe(self.named_answers, self.probe, folder)


kinds.loads(TracedModel._kind)(TracedModel.load)
