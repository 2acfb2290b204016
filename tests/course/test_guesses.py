"""Guesses: compared in words, kept between notebooks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cpuinfer_helpers import InputError
from cpuinfer_helpers.course.guesses import check_guess, keep_guesses, kept_guesses
from cpuinfer_helpers.timing.results import Speedup, Timing


def timing_of(*seconds: float) -> Timing:
    return Timing("x", seconds, seconds[0], 1, True, "calls", 1)


@pytest.mark.parametrize(
    ("guess", "says"),
    [
        (2.0, "You guessed 2x, measured 2.10x [1.90, 2.30]: right."),
        (1.9, "You guessed 1.9x, measured 2.10x [1.90, 2.30]: right."),
        (1.5, "You guessed 1.5x, measured 2.10x [1.90, 2.30]: too low by 29%."),
        (3, "You guessed 3x, measured 2.10x [1.90, 2.30]: too high by 43%."),
        (21, "You guessed 21x, measured 2.10x [1.90, 2.30]: too high by a factor of 10.0."),
        (0.7, "You guessed 0.7x, measured 2.10x [1.90, 2.30]: too low by a factor of 3.0."),
    ],
)
def test_a_ratio_is_compared_with_its_interval(guess: float, says: str) -> None:
    assert check_guess(guess, Speedup(2.1, 1.9, 2.3, paired=True)) == says


def test_a_time_is_guessed_in_milliseconds() -> None:
    timing = timing_of(0.4, 0.41, 0.42, 0.43, 0.44, 0.45, 0.46)
    assert check_guess(430, timing) == "You guessed 430 ms, measured 430 ms [400 ms, 460 ms]: right."
    assert check_guess(100, timing).endswith("too low by a factor of 4.3.")
    assert check_guess(1900, timing_of(*[2.0] * 6)).endswith("measured 2.00 s [2.00 s, 2.00 s]: too low by 5%.")


def test_large_numbers_are_written_out() -> None:
    assert check_guess(1000, 2345.6, "%") == "You guessed 1000%, measured 2346%: too low by a factor of 2.3."


@pytest.mark.parametrize(("guess", "verdict"), [(104, "right"), (106, "too high by 6%"), (94, "too low by 6%")])
def test_a_number_is_hit_within_five_percent(guess: float, verdict: str) -> None:
    assert check_guess(guess, 100.0, "%") == f"You guessed {guess}%, measured 100%: {verdict}."


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "2", None])
def test_only_a_positive_number_is_a_guess(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="positive number"):
        check_guess(wrong, 1.0)
    with pytest.raises(InputError, match="traced"):
        keep_guesses({"traced": wrong}, tmp_path / "guesses.json")
    assert list(tmp_path.iterdir()) == []


def test_kept_guesses_come_back_and_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "guesses.json"
    assert kept_guesses(path) == {}
    assert keep_guesses({"eager ms": 400, "traced": 1.5}, path) == path
    keep_guesses({"traced": 1.1, "bf16": 3.0}, path)
    assert kept_guesses(path) == {"eager ms": 400, "traced": 1.1, "bf16": 3.0}
    assert [entry.name for entry in path.parent.iterdir()] == ["guesses.json"]


def test_guesses_are_kept_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    keep_guesses({"traced": 1.5})
    assert json.loads((tmp_path / "guesses.json").read_text(encoding="utf-8")) == {"traced": 1.5}
    assert kept_guesses() == {"traced": 1.5}


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"traced": "fast"}', '{"traced": -1}'])
def test_a_damaged_file_is_left_out_and_said(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "guesses.json"
    path.write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        assert kept_guesses(path) == {}
    assert str(path) in caplog.text
    keep_guesses({"traced": 1.5}, path)
    assert kept_guesses(path) == {"traced": 1.5}
