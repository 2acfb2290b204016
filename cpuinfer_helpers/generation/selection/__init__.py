"""Recipes of text generation side by side, each in a process of its own, and the fastest one that keeps the answers."""

from cpuinfer_helpers.generation.selection.compare import compare_generators
from cpuinfer_helpers.generation.selection.optimize import optimize_generator
from cpuinfer_helpers.generation.selection.result import GenerationComparison, GenerationResult

__all__ = ["GenerationComparison", "GenerationResult", "compare_generators", "optimize_generator"]
