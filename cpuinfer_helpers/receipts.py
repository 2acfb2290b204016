"""What was asked for, what was seen, and why not: a receipt goes with everything that this package prepares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cpuinfer_helpers.display import Displayed, Table, format_seconds

# What is warned of where the model's own Python code asks a traced tensor which way to go, before the place.
BRANCH = "the example has decided a branch at"


@dataclass(frozen=True)
class Check:
    """One comparison of a prepared model with the model that it was made from.

    Attributes
    ----------
    name
        What was varied: ``other batch size``, ``padded tokens changed`` ...
    shape
        Shape of the inputs, such as ``3 x 96``.
    passed
        Whether all calls gave the model's own answers; None where the model itself refuses such inputs.
    max_error
        Largest absolute difference over all calls and outputs, on valid positions.
    tolerance
        Largest difference that passes.
    note
        Why it failed or was left out.
    """

    name: str
    shape: str
    passed: bool | None
    max_error: float = 0.0
    tolerance: float = 0.0
    note: str = ""


@dataclass(frozen=True, repr=False)
class Receipt(Displayed):
    """What was requested of a preparation, and what was observed of its result.

    Attributes
    ----------
    requested
        The arguments as they were given: recipe, input style, freezing ...
    script_module
        Whether calls run a ScriptModule. False means that the eager model answers.
    frozen
        Whether weights are constants of the graph.
    graph_nodes
        How often each kind of node stands in the graph that ran, nested blocks included.
    weight_dtypes
        Number of weight tensors of each dtype.
    linear_dtypes
        Number of linear layers that ran at each dtype, as the profiler saw their inputs.
    attention_implementation
        ``eager``, ``sdpa`` ... of the model's configuration; None for models that have none.
    isa, threads, versions
        The machine and the process at that moment.
    outputs_left_out
        Outputs of the model that the prepared one does not return, such as ``past_key_values``.
    checks
        The comparisons with the model, in the order in which they ran.
    warnings
        Warnings that the preparation raised, among them every TracerWarning.
    prepare_seconds
        Time for preparation, verification not included.
    reason
        Why the request was not carried out; None if it was.
    runs
        What answers, where it is no plain ScriptModule: ``OpenVINO compiled model`` ...
    evidence
        What was seen to run, as texts by name: executed precisions, counts of kernels ...
    """

    requested: Mapping[str, Any]
    script_module: bool
    frozen: bool = False
    graph_nodes: Mapping[str, int] = field(default_factory=dict)
    weight_dtypes: Mapping[str, int] = field(default_factory=dict)
    linear_dtypes: Mapping[str, int] = field(default_factory=dict)
    attention_implementation: str | None = None
    isa: tuple[str, ...] = ()
    threads: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    outputs_left_out: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    prepare_seconds: float = 0.0
    reason: str | None = None
    runs: str = ""
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def verified(self) -> bool:
        """Whether at least one check ran and none failed."""
        outcomes = [check.passed for check in self.checks if check.passed is not None]
        return bool(outcomes) and all(outcomes)

    def with_evidence(self, **texts: str) -> Receipt:
        """The receipt with more of what was seen."""
        return replace(self, evidence={**self.evidence, **texts})

    def table(self) -> Table:
        """Requested against observed, a row each."""
        rows = [
            ("requested", _pairs(self.requested)),
            ("runs", self._runs_text()),
            ("prepared in", format_seconds(self.prepare_seconds)),
            ("verified", self.checks_summary()),
        ]
        if self.script_module:
            rows += [
                ("graph", _pairs(dict(sorted(self.graph_nodes.items(), key=lambda item: -item[1])[:6]))),
                ("weights", _pairs(self.weight_dtypes)),
                ("linear layers ran in", _pairs(self.linear_dtypes)),
            ]
        rows += [(name, text) for name, text in self.evidence.items()]
        rows += [
            ("attention", self.attention_implementation or "not configurable"),
            ("left out", ", ".join(self.outputs_left_out) or "nothing"),
            ("warnings", f"{len(self.warnings)}" + (f", first: {self.warnings[0]}" if self.warnings else "")),
            ("machine", f"{'/'.join(self.isa)}, {self.threads} threads"),
            ("versions", _pairs(self.versions)),
        ]
        return Table(columns=("receipt", "seen"), rows=tuple(rows))

    def checks_table(self) -> Table:
        """The comparisons with the model, a row each."""
        outcome = {True: "same", False: "DIFFERS", None: "left out"}
        rows = tuple(
            (
                check.name,
                check.shape,
                outcome[check.passed],
                f"{check.max_error:.1e}" if check.passed is not None else "",
                f"{check.tolerance:.1e}" if check.passed is not None else "",
                check.note,
            )
            for check in self.checks
        )
        columns = ("check", "shape", "answers", "largest error", "tolerance", "note")
        return Table(columns=columns, rows=rows, numeric=("largest error", "tolerance"))

    def branches_text(self) -> str:
        """A note on branches of the model's own code that the example has decided; empty if there are none."""
        places = [warning.partition(BRANCH)[2].strip() for warning in self.warnings if BRANCH in warning]
        if not places:
            return ""
        more = f" and {len(places) - 2} more" if len(places) > 2 else ""
        return f"; {BRANCH} {', '.join(places[:2])}{more}"

    def _runs_text(self) -> str:
        if self.runs:
            return self.runs
        if self.script_module:
            return "ScriptModule, " + ("frozen" if self.frozen else "not frozen")
        return f"the eager model, because {self.reason}" if self.reason else "the eager model"

    def checks_summary(self) -> str:
        """How many checks passed, and the largest error, in one line."""
        if not self.checks:
            return "no"
        ran = [check for check in self.checks if check.passed is not None]
        failed = [check for check in ran if not check.passed]
        worst = max((check.max_error for check in ran), default=0.0)
        left_out = len(self.checks) - len(ran)
        text = f"{len(ran) - len(failed)} of {len(ran)} checks, largest error {worst:.1e}"
        return text + (f", {left_out} left out" if left_out else "")


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping.items()) or "none"
