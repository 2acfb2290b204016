"""Text, a token at a time: transformers' ``generate()`` over a step of ours, verified and with a receipt."""

from cpuinfer_helpers.generation.generator import Generator
from cpuinfer_helpers.generation.measuring import measure_generation
from cpuinfer_helpers.generation.preparation import prepare_generator
from cpuinfer_helpers.generation.registry import generation_recipe, list_generation_recipes
from cpuinfer_helpers.generation.selection import compare_generators, optimize_generator

__all__ = [
    "Generator",
    "compare_generators",
    "generation_recipe",
    "list_generation_recipes",
    "measure_generation",
    "optimize_generator",
    "prepare_generator",
]
