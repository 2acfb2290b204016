"""The recipes of text generation by name. A module of ``generation.backends`` with ``RECIPES`` is found by itself."""

from __future__ import annotations

from functools import cache

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation import backends
from cpuinfer_helpers.generation.step import GenerationRecipe
from cpuinfer_helpers.recipes.registry import REFERENCE, RecipeList, recipes_in

PRECISIONS = ("fp32", "fp16w", "bf16", "int8", "int4")


def list_generation_recipes() -> RecipeList:
    """The ways to generate text, what each needs, and whether it can run here.

    Returns
    -------
    RecipeList
        The reference first, then by precision and backend.
    """
    return RecipeList(tuple(_registry().values()))


def generation_recipe(name: str) -> GenerationRecipe:
    """The recipe of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    recipes = _registry()
    if name not in recipes:
        raise InputError(f"there is no recipe {name!r} to generate text; choose from {', '.join(recipes)}")
    return recipes[name]


@cache
def _registry() -> dict[str, GenerationRecipe]:
    return {recipe.name: recipe for recipe in sorted(recipes_in(backends), key=_order)}


def _order(recipe: GenerationRecipe) -> tuple[bool, int, str]:
    return (recipe.name != REFERENCE, PRECISIONS.index(recipe.precision), recipe.name)
