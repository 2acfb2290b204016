"""What an adapter asks a model for: no key-value cache, and nothing of a model that others have is changed for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.inputs import bind_inputs

X = torch.ones(2, 3)


class Inner(torch.nn.Module):
    """Makes a cache if its own configuration says so, as the bodies of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, x: torch.Tensor, use_cache: bool | None = None) -> dict[str, torch.Tensor]:
        cached = self.config.use_cache if use_cache is None else use_cache
        return {"y": x + 1, **({"cache": x} if cached else {})}


class TellsItsConfiguration(torch.nn.Module):
    """Its forward takes no ``use_cache``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.config = SimpleNamespace()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.inner(x)


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_model_that_takes_use_cache_is_told(is_copy: bool) -> None:
    adapter = named_inputs(Inner(), bind_inputs(Inner(), {"x": X}), is_copy=is_copy)
    assert set(adapter.run_model({"x": X})) == {"y"}


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_cache_that_is_asked_for_is_made(is_copy: bool) -> None:
    model = Inner()
    adapter = named_inputs(model, bind_inputs(model, {"x": X, "use_cache": True}), is_copy=is_copy)
    assert set(adapter.run_model({"x": X})) == {"y", "cache"}
    assert model.config.use_cache


def test_a_configuration_is_changed_in_a_copy_and_in_no_other_model() -> None:
    model = TellsItsConfiguration()
    inputs = bind_inputs(model, {"x": X})
    assert set(named_inputs(model, inputs).run_model({"x": X})) == {"y", "cache"}
    assert model.inner.config.use_cache
    assert set(named_inputs(model, inputs, is_copy=True).run_model({"x": X})) == {"y"}
