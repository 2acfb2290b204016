"""Passes, one more token and rates: what notebook 10 looks into."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course.writing import at_most, cache_sizes, one_more, rates, time_passes, write_by_rows
from cpuinfer_helpers.generation.measuring import GenerationTiming, Turn
from cpuinfer_helpers.timing.results import Roofline, Timing
from tests.generation.models import make_language_model, make_prompts

ROOFLINE = Roofline({"fp32": 1e9}, {"fp32": "a kernel"}, {"fp32": True}, (("fp32", "a kernel", 1e9),), 1, 1e8)


@pytest.fixture(scope="module")
def passes():
    ids = make_prompts(1, 12)["input_ids"]
    return time_passes(make_language_model("llama"), ids, (1, 4, 12), ROOFLINE, budget_s=0.1)


def test_passes_read_the_same_weights_and_compute_more_with_more_tokens(passes):
    model = make_language_model("llama")
    read = sum(4 * p.numel() for name, p in model.named_parameters() if "embed" not in name)
    read += sum(4 * b.numel() for b in model.buffers())
    assert passes.weight_bytes == read and list(passes.timings) == [1, 4, 12]
    assert passes.flops[1] < passes.flops[4] < passes.flops[12]


def test_shares_are_those_of_the_roofline(passes):
    seconds = Timing("x", (0.5,) * 6, 1.0, 1, True, "calls", 1)
    timed = dataclasses.replace(
        passes, timings={4: seconds}, flops={4: int(2e8)}, weight_bytes=int(1e7), roofline=ROOFLINE
    )
    assert timed.per_token(4) == pytest.approx(0.125)
    assert timed.of_arithmetic(4) == pytest.approx(0.4) and timed.of_memory(4) == pytest.approx(0.2)
    assert timed.table().rows == (("4", "500 ms", "125 ms", "40%", "20%", "arithmetic"),)
    assert dataclasses.replace(timed, flops={4: int(2e7)}).table().rows[0][-1] == "memory"
    assert timed.plot().axes


@pytest.mark.parametrize("counts", [(0, 4), (4, 13)])
def test_a_pass_is_over_tokens_of_the_text(counts):
    with pytest.raises(cpu.InputError, match="from 1 to 12"):
        time_passes(make_language_model("llama"), make_prompts(1, 12)["input_ids"], counts, ROOFLINE)


@pytest.mark.parametrize("rows", [1, 3])
def test_one_more_token_is_the_models_own_each_time(rows):
    model, ids = make_language_model("llama"), make_prompts(1, 9)["input_ids"]
    generator = cpu.prepare_generator("torchscript-fp32", model, {"input_ids": ids}, verify=False)
    write = one_more(generator, ids, rows)
    with torch.no_grad():
        expected = model(torch.cat([ids, ids[:, -1:]], dim=1)).logits[0, -1]
    for _ in range(3):
        logits = write()
        assert logits.shape == (rows, 1, len(expected))
        torch.testing.assert_close(logits[:, 0], expected.expand(rows, -1), rtol=1e-4, atol=1e-4)


def test_the_eager_model_takes_no_token_back():
    generator = cpu.prepare_generator("torchscript-fp32", make_language_model("bloom"), make_prompts())
    with pytest.raises(cpu.InputError, match="was not prepared"):
        one_more(generator, make_prompts()["input_ids"][:1])


def test_one_generation_has_many_rates():
    timing = GenerationTiming(
        label="one",
        rows=2,
        prompt_tokens=30,
        new_tokens=11,
        first_call=4.0,
        turns=(Turn(1.0, (0.1,) * 9 + (0.2,)), Turn(1.0, (0.1,) * 9 + (0.2,))),
        bytes_read=0,
        same_tokens=22,
        threads=1,
    )
    told = [float(row[-1]) for row in rates(timing).rows]
    assert told == [pytest.approx(rate, abs=0.06) for rate in (82 / 2.1, 60, 2 / 0.11, 10, 22 / 2.1, 5.5)]


def test_the_cache_grows_with_tokens_and_texts():
    build = cpu.prepare_generator("eager-fp32", make_language_model("llama"), make_prompts(), verify=False).build
    build = dataclasses.replace(build, token_bytes=2**20, weight_bytes=2**21)
    assert cache_sizes(build, (1, 1000), (1, 2)).rows == (
        ("1", "1.0 MiB (50%)", "2.0 MiB (100%)"),
        ("1,000", "1000.0 MiB (50000%)", "2.0 GiB (100000%)"),
    )


def test_the_best_pace_is_bandwidth_over_bytes():
    table = at_most(20e9, {"one": 1e9, "two": 2e9}, bits=(32, 8))
    assert table.rows == (("one", "4.0 GB: 5", "1.0 GB: 20"), ("two", "8.0 GB: 2.5", "2.0 GB: 10"))


def test_more_and_more_texts_are_written_at_once():
    prompts, model = make_prompts(4, 9), make_language_model("llama")
    generators = {name: cpu.prepare_generator(name, model, prompts) for name in ("eager-fp32", "torchscript-fp32")}
    seen = write_by_rows(generators, prompts, (1, 4), new_tokens=3, turns=1, progress=False)
    assert [(row[0], row[1]) for row in seen.table().rows] == [(name, n) for name in generators for n in ("1", "4")]
    assert [timings["eager-fp32"].rows for timings in seen.timings.values()] == [1, 4]
    one, four = (timings["eager-fp32"] for timings in seen.timings.values())
    assert seen.gain("eager-fp32") == pytest.approx(4 * one.per_token / four.per_token) and seen.plot().axes
