"""What fuses in one model by different recipes, each in a process of its own: IPEX changes the one that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.compare.compare import choose_recipes, choose_threads
from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.fusion import PATTERNS, FusionReport, fusion_report
from cpuinfer_helpers.fusion.patterns import MHA
from cpuinfer_helpers.fusion.report import without_graph
from cpuinfer_helpers.processes.asking import ask_alone
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.recipes import PreparedModel, Recipe
from cpuinfer_helpers.saving.plain import read, write


@dataclass(frozen=True, repr=False)
class FusionReports(Displayed):
    """What fused by each recipe; made by :func:`fusion_reports`.

    Attributes
    ----------
    reports
        A :class:`~cpuinfer_helpers.fusion.FusionReport` for each recipe, by name. That of a recipe that did not run
        says why in its ``reason``.
    """

    reports: Mapping[str, FusionReport]

    def __getitem__(self, recipe: str) -> FusionReport:
        if recipe not in self.reports:
            raise InputError(f"there is no report of {recipe!r}; choose from {', '.join(self.reports)}")
        return self.reports[recipe]

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of the recipes that ran and have a graph."""
        return tuple(name for name, report in self.reports.items() if report.reason is None)

    def table(self) -> Table:
        """A row for each recipe: how often each pattern fused, and what computes attention."""
        patterns = tuple(pattern.name for pattern in PATTERNS)
        rows = tuple(_row(name, report, patterns) for name, report in self.reports.items())
        return Table(
            columns=("recipe", *patterns, "attention", "why there is nothing"),
            rows=rows,
            note="how many operators of each kind ran by their fast kernel, in a process of each recipe's own",
            numeric=patterns,
        )


def fusion_reports(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    recipes: Sequence[str | Recipe],
    *,
    threads: int | None = None,
    timeout_s: float = 900.0,
    memory_bytes: int | None = None,
) -> FusionReports:
    """Say what fuses in a model by each recipe. Answers are not verified and nothing is timed.

    Parameters
    ----------
    model
        As for :func:`compare`.
    inputs
        Keyword arguments of a call, as in use: what fuses can depend on shapes.
    recipes
        Names or recipes of your own.
    threads, timeout_s, memory_bytes
        As for :func:`compare`.

    Returns
    -------
    FusionReports

    Raises
    ------
    InputError
        If an argument cannot be used.
    """
    from tqdm.auto import tqdm

    chosen, threads = _without_reference(recipes), choose_threads(threads)
    content = {"model": model, "inputs": dict(inputs), "calibration": ()}
    reports: dict[str, FusionReport] = {}
    with (
        Session(content, threads=threads, timeout_s=timeout_s, memory_bytes=memory_bytes) as session,
        tqdm(chosen, desc="fusion reports", unit="recipe") as progress,
    ):
        for recipe in progress:
            progress.set_description(f"{recipe.name}: fusion report")
            reports[recipe.name] = _report(session, recipe)
    return FusionReports(reports)


def _without_reference(recipes: Sequence[str | Recipe]) -> tuple[Recipe, ...]:
    """Those that were asked for; a choice puts the reference in front, and there is nothing fused in it."""
    chosen = choose_recipes(recipes)
    asked = {recipe if isinstance(recipe, str) else recipe.name for recipe in recipes}
    return tuple(recipe for recipe in chosen if recipe.name in asked)


def report_fusions(prepared: PreparedModel, sent: Mapping[str, Any]) -> dict[str, Any]:
    """In a process of its own: what fused in a prepared model, called with the inputs that were sent."""
    return write(fusion_report(prepared, sent["inputs"]))


def _report(session: Session, recipe: Recipe) -> FusionReport:
    answer = ask_alone(session, recipe, f"{__name__}:report_fusions", verify=False)
    if not answer.status.successful:
        return without_graph(str(answer.status))
    return read(FusionReport, answer.value, "report")


def _row(name: str, report: FusionReport, patterns: Sequence[str]) -> tuple[str, ...]:
    if report.reason is not None:
        return (name, *("" for _ in patterns), "", report.reason)
    counts = report.counts
    attention = {**report[MHA].nodes, **report.stock_attention}
    return (name, *(str(counts[pattern]) for pattern in patterns), ", ".join(attention), "")
