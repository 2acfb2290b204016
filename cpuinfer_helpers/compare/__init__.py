"""Recipes side by side, each in a process of its own."""

from cpuinfer_helpers.compare.compare import compare
from cpuinfer_helpers.compare.fusions import FusionReports, fusion_reports
from cpuinfer_helpers.compare.mixed import MixedLengths, MixedRow, compare_mixed_lengths, realistic_lengths
from cpuinfer_helpers.compare.result import Comparison, SideBySide
from cpuinfer_helpers.compare.scores import RecipeScore, RecipeScores, score_recipes
from cpuinfer_helpers.processes.recipe_result import RecipeResult

__all__ = [
    "Comparison",
    "FusionReports",
    "MixedLengths",
    "MixedRow",
    "RecipeResult",
    "RecipeScore",
    "RecipeScores",
    "SideBySide",
    "compare",
    "compare_mixed_lengths",
    "fusion_reports",
    "realistic_lengths",
    "score_recipes",
]
