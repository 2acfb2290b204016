"""A model and its converted copy, shared: a test must not change them."""

from __future__ import annotations

import pytest

import cpuinfer_helpers as cpu
from tests.bettertransformer.families import make_wide_bert


@pytest.fixture(scope="session")
def pair():
    model = make_wide_bert()
    return model, cpu.to_bettertransformer(model)
