"""The recipes of text generation, and what each is said to need."""

from __future__ import annotations

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation import generation_recipe
from cpuinfer_helpers.machine.report import MachineReport


def test_the_reference_comes_first_and_every_recipe_is_in_the_table():
    recipes = cpu.list_generation_recipes()
    assert recipes.names[0] == "eager-fp32" and len(set(recipes.names)) == len(recipes)
    assert all(name in str(recipes) for name in recipes.names)


def test_an_unknown_recipe_is_named_with_those_that_there_are():
    with pytest.raises(cpu.InputError, match="choose from eager-fp32"):
        generation_recipe("eager-fp7")


def test_only_products_in_fewer_bits_are_emulated(monkeypatch):
    monkeypatch.setattr(MachineReport, "emulation", lambda self, precision: f"emulated {precision}")
    emulated = {recipe.name for recipe in cpu.list_generation_recipes() if recipe.emulated}
    # Weights that are only stored in 8 or 4 bits are multiplied in FP32.
    assert emulated == {"compile-bf16", "eager-bf16", "torchscript-bf16", "openvino-bf16", "torchscript-int8"}
