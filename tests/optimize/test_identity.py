"""What a function does, as a number: the same in another process, another for any other code or content."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cpuinfer_helpers.optimize.identity import identity_of
from tests.conftest import make_bert, seen_in_child

FACTOR = 2.0


@dataclass
class Settings:
    names: frozenset[str]
    table: dict[str, list[float]]


class Metric:
    __slots__ = ("settings",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, model: object) -> float:
        return FACTOR * helper(len(self.settings.names))

    @staticmethod
    def other(number: int) -> int:
        return sum(number for _ in range(3))

    @property
    def size(self) -> int:
        return len(self.settings.table)


def helper(number: int) -> float:
    return number / 2 if number in {1, 2, 3} else recursive(number)


def recursive(number: int) -> float:
    return 0.0 if number == 0 else helper(number - 1)


def metric() -> Metric:
    return Metric(Settings(frozenset({"one", "two", "three"}), {"a": [1.0, 2.0]}))


CHILD = """
import json
from test_identity import identity_of, metric
print("SEEN", json.dumps(identity_of(metric())))
"""


def test_it_is_the_same_in_another_process() -> None:
    places = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[2])))
    elsewhere = seen_in_child("-c", CHILD, PYTHONHASHSEED="7", PYTHONPATH=places)
    assert identity_of(metric()) == identity_of(metric()) == elsewhere


def test_globals_and_functions_that_it_calls_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(metric())
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "FACTOR", 3.0)
        assert identity_of(metric()) not in (before, None)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "recursive", lambda number: 1.0)
        assert identity_of(metric()) not in (before, None)
    assert identity_of(metric()) == before


def test_content_counts_and_not_where_it_lies() -> None:
    one, same, other = torch.ones(3), torch.ones(3), torch.tensor([1.0, 1.0, 2.0])
    assert identity_of(one) == identity_of(same) != identity_of(other)
    assert identity_of([one, one]) != identity_of([one]) and identity_of(one.double()) != identity_of(one)
    assert identity_of(make_bert()) == identity_of(make_bert()) != identity_of(make_bert(seed=1))
    assert identity_of({"a": 1}) != identity_of({"a": 1.0}) != identity_of({"a": True})


def test_what_is_known_is_not_looked_into() -> None:
    models = make_bert(), make_bert(seed=1)
    described = [identity_of({"model": model}, {id(model): "the model"}) for model in models]
    assert described[0] == described[1] is not None


@pytest.mark.parametrize("value", [threading.Lock(), (n for n in range(3)), sys.stdout, [threading.Lock()]])
def test_what_cannot_be_seen(value: object) -> None:
    assert identity_of(value) is None and identity_of(lambda: value) is None
