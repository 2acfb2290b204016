"""The recipes by name. A module of ``recipes.backends`` that has a ``RECIPES`` tuple is found by itself."""

from __future__ import annotations

import copyreg
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.recipes import backends
from cpuinfer_helpers.recipes.base import PRECISIONS, Recipe

REFERENCE = "eager-fp32"


class RecipeList(Displayed, Sequence[Recipe]):
    """Recipes in the order in which they are shown, with what each needs and whether it can run here."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._recipes = tuple(recipes)

    def __getitem__(self, index):
        return self._recipes[index]

    def __len__(self) -> int:
        return len(self._recipes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all recipes."""
        return tuple(recipe.name for recipe in self)

    @property
    def can_run(self) -> tuple[str, ...]:
        """Names of the recipes that can run here."""
        return tuple(recipe.name for recipe in self if recipe.can_run)

    def table(self) -> Table:
        """A row each."""
        rows = tuple(
            (recipe.name, recipe.summary, ", ".join(recipe.needs) or "nothing more", _here(recipe)) for recipe in self
        )
        return Table(columns=("recipe", "what it does", "needs", "here"), rows=rows)


def list_recipes() -> RecipeList:
    """All recipes: names, what each needs, whether it can run here, and if not, why.

    Returns
    -------
    RecipeList
        The reference first, then by precision and backend.
    """
    return RecipeList(tuple(_registry().values()))


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    recipes = _registry()
    if name not in recipes:
        raise InputError(f"there is no recipe {name!r}; choose from {', '.join(recipes)}")
    return recipes[name]


def our_recipe(name: str) -> Recipe:
    """The recipe of this package that has a name, also of those that are not in the registry."""
    return _ours()[name]


def _ours() -> dict[str, Recipe]:
    from cpuinfer_helpers.recipes.backends.ipex_variants import IPEX_VARIANTS

    return {**IPEX_VARIANTS, **_registry()}


def _reduced(recipe: Recipe) -> Any:
    """One of this package's goes to another process by its name: the functions that it is made of cannot."""
    ours = _ours().get(recipe.name) is recipe
    return (our_recipe, (recipe.name,)) if ours else object.__reduce_ex__(recipe, 4)


copyreg.pickle(Recipe, _reduced)


@cache
def _registry() -> dict[str, Recipe]:
    recipes = sorted(recipes_in(backends), key=_order)
    return {recipe.name: recipe for recipe in recipes}


def recipes_in(package: ModuleType) -> Iterator[Recipe]:
    """Those of every module of a package that has a ``RECIPES`` tuple."""
    for module in pkgutil.iter_modules(package.__path__):
        yield from getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "RECIPES", ())


def _order(recipe: Recipe) -> tuple[bool, int, str]:
    return (recipe.name != REFERENCE, PRECISIONS.index(recipe.precision), recipe.name)


def _here(recipe: Recipe) -> str:
    if recipe.why_not:
        return f"cannot run: {recipe.why_not}"
    return f"runs, {recipe.emulation}" if recipe.emulation else "runs"
