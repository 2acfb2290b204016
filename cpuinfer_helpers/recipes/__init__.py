"""Ways to run a model, one file a backend, and a registry of them by name."""

from cpuinfer_helpers.recipes.base import Build, Recipe, Request
from cpuinfer_helpers.recipes.preparation import prepare
from cpuinfer_helpers.recipes.prepared import PreparedModel
from cpuinfer_helpers.recipes.registry import RecipeList, get_recipe, list_recipes

__all__ = ["Build", "PreparedModel", "Recipe", "RecipeList", "Request", "get_recipe", "list_recipes", "prepare"]
