"""How text is written is measured token by token, and told with what it is compared with."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.measuring import GenerationTiming, Turn, measure_generation
from cpuinfer_helpers.timing.roofline import memory_bandwidth
from tests.generation.models import make_language_model, make_prompts


@pytest.fixture(scope="module")
def timings():
    model, prompts = make_language_model("llama"), make_prompts(2, 12)
    generators = {name: cpu.prepare_generator(name, model, prompts) for name in ("eager-fp32", "torchscript-fp32")}
    generators["fallback"] = cpu.prepare_generator("torchscript-fp32", make_language_model("bloom"), prompts)
    return measure_generation(generators, prompts, new_tokens=6, turns=3, progress=False)


def test_every_generator_writes_all_tokens_in_each_turn(timings):
    assert list(timings) == ["eager-fp32", "torchscript-fp32", "fallback"]
    for timing in timings.values():
        assert (timing.rows, timing.prompt_tokens, timing.new_tokens, len(timing.turns)) == (2, 12, 6, 3)
        assert all(turn.first_token > 0 and len(turn.tokens) == 5 for turn in timing.turns)
    assert timings["torchscript-fp32"].same_tokens == 12 and timings["fallback"].same_tokens < 12


def test_what_generate_itself_takes_is_told_where_there_is_a_step(timings):
    assert timings["torchscript-fp32"].overhead > 0 and timings["fallback"].overhead is None
    assert len(timings["torchscript-fp32"].turns[0].step) == 5


def test_bytes_are_those_of_weights_and_of_what_is_kept(timings):
    model = make_language_model("llama")
    read = sum(4 * p.numel() for name, p in model.named_parameters() if "embed" not in name)
    read += sum(4 * b.numel() for b in model.buffers())
    # Keys and values of 2 layers with 2 heads of 8 numbers, for 2 rows of 12 tokens and half of the 6 new ones.
    kept = 2 * (12 + 3) * (2 * 2 * 2 * 8 * 4)
    assert timings["torchscript-fp32"].bytes_read == read + kept
    assert timings["fallback"].bytes_read == 0


def test_the_tables_hold_every_generator(timings):
    text = str(timings)
    assert all(name in text for name in timings) and "12 of 12" in text
    assert "first token" in str(timings["torchscript-fp32"]) and "generate() itself" in str(timings["torchscript-fp32"])


TIMING = GenerationTiming(
    label="one",
    rows=4,
    prompt_tokens=10,
    new_tokens=3,
    first_call=9.0,
    turns=(Turn(0.5, (0.1, 0.3), (0.1, 0.2)), Turn(0.7, (0.1, 0.1), (0.05, 0.05)), Turn(0.6, (0.4, 0.2), (0.3, 0.1))),
    bytes_read=10**9,
    same_tokens=12,
    threads=2,
    bandwidth=10e9,
    round_id="a",
)


def test_medians_rates_and_shares_are_those_of_the_turns():
    assert TIMING.first_token == 0.6 and TIMING.per_token == pytest.approx(0.2)
    assert TIMING.prefill_rate == pytest.approx(40 / 0.6) and TIMING.decode_rate == pytest.approx(20)
    assert TIMING.slow_token == 0.4 and TIMING.overhead == pytest.approx(0.075)
    assert TIMING.bandwidth_share == pytest.approx(0.5)
    assert dataclasses.replace(TIMING, bandwidth=None).bandwidth_share is None


def test_turns_are_compared_in_pairs():
    half = dataclasses.replace(TIMING, turns=tuple(Turn(t.first_token, (0.1, 0.1)) for t in TIMING.turns))
    assert half.is_faster_than(TIMING).ratio == pytest.approx(2) and half.is_faster_than(TIMING).paired


@pytest.mark.parametrize("settings", [{"new_tokens": 1}, {"turns": 0}])
def test_what_cannot_be_measured_is_an_input_error(settings):
    generator = cpu.prepare_generator("eager-fp32", make_language_model("llama"), make_prompts())
    with pytest.raises(cpu.InputError, match="at least 2 and 1"):
        measure_generation({"eager": generator}, make_prompts(), **settings)
    with pytest.raises(cpu.InputError, match="at least one generator"):
        measure_generation({}, make_prompts())


def test_memory_is_measured_where_it_is_asked_for():
    with cpu.threads(1):
        assert memory_bandwidth(budget_s=0.05, size=2**22) > 0
        roofline = cpu.roofline(("fp32",), budget_s=0.02)
    assert roofline.bandwidth is None
    with pytest.raises(cpu.InputError, match="memory=True"):
        roofline.shortest_read(1)
    measured = dataclasses.replace(roofline, bandwidth=20e9)
    assert measured.shortest_read(10e9) == 0.5 and "20.0 GB/s" in str(measured)
    assert torch.get_num_threads() >= 1
