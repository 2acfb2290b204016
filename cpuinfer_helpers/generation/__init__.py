"""Text, a token at a time: transformers' ``generate()`` over a step of ours, verified and with a receipt."""

from cpuinfer_helpers.generation.generator import Generator
from cpuinfer_helpers.generation.preparation import prepare_generator
from cpuinfer_helpers.generation.registry import generation_recipe, list_generation_recipes

__all__ = ["Generator", "generation_recipe", "list_generation_recipes", "prepare_generator"]
