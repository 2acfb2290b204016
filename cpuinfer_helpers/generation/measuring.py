"""How fast text is written: until the first token, and for each further one, as shares of what memory gives."""

from __future__ import annotations

import itertools
import statistics
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation.encoding.sources import start_token
from cpuinfer_helpers.generation.generator import Generator, bound_example
from cpuinfer_helpers.generation.step import EncodingStep, Sources, State, Step
from cpuinfer_helpers.timing.results import Roofline, Speedup, Timing


@dataclass(frozen=True)
class Turn:
    """One whole generation.

    Attributes
    ----------
    first_token
        Seconds until the first token.
    tokens
        Seconds of each further token.
    step
        Of these, seconds in the step itself, without what ``generate()`` does around it; empty for an eager model.
    """

    first_token: float
    tokens: tuple[float, ...]
    step: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """Of the whole generation."""
        return self.first_token + sum(self.tokens)


@dataclass(frozen=True, repr=False)
class GenerationTiming(Displayed):
    """How fast one generator has written.

    Attributes
    ----------
    label
        Its name.
    rows, prompt_tokens, new_tokens
        How many prompts of how many tokens were continued by how many.
    first_call
        Seconds of the very first generation, which compiles and allocates; not among the turns.
    turns
        Whole generations, in turns with those of the others.
    bytes_read
        Bytes of weights, keys and values that a token reads on average; 0 where that is not known.
    same_tokens
        How many of all new tokens are those of the first generator.
    threads
        While measuring.
    bandwidth
        Bytes per second that memory gives; None where it was not measured.
    round_id
        Those with the same one were measured in turns.
    """

    label: str
    rows: int
    prompt_tokens: int
    new_tokens: int
    first_call: float
    turns: tuple[Turn, ...]
    bytes_read: int
    same_tokens: int
    threads: int
    bandwidth: float | None = None
    round_id: str = ""

    @property
    def first_token(self) -> float:
        """Median seconds until the first token."""
        return statistics.median(turn.first_token for turn in self.turns)

    @property
    def per_token(self) -> float:
        """Median of the turns' mean seconds for each token after the first."""
        return self.timing.median

    @property
    def low(self) -> float:
        """Lower end of the 95% interval of :attr:`per_token`."""
        return self.timing.low

    @property
    def high(self) -> float:
        """Upper end of the 95% interval of :attr:`per_token`."""
        return self.timing.high

    @property
    def slow_token(self) -> float:
        """Seconds that 95% of all tokens after the first were written within."""
        tokens = sorted(seconds for turn in self.turns for seconds in turn.tokens)
        return tokens[min(len(tokens) - 1, int(0.95 * len(tokens)))]

    @property
    def prefill_rate(self) -> float:
        """Tokens of prompts read per second, all rows together."""
        return self.rows * self.prompt_tokens / self.first_token

    @property
    def decode_rate(self) -> float:
        """Tokens written per second, all rows together."""
        return self.rows / self.per_token

    @property
    def overhead(self) -> float | None:
        """Median seconds for each token that ``generate()`` takes around the step; None for an eager model."""
        pairs = [pair for turn in self.turns for pair in zip(turn.tokens, turn.step, strict=False)]
        return statistics.median(whole - step for whole, step in pairs) if pairs else None

    @property
    def bandwidth_share(self) -> float | None:
        """Bytes read per second as a share of what memory gives; None where either is not known."""
        return self.bytes_read / self.per_token / self.bandwidth if self.bandwidth and self.bytes_read else None

    def is_faster_than(self, other: GenerationTiming) -> Speedup:
        """How many times faster tokens are written, turn by turn."""
        return self.timing.is_faster_than(other.timing)

    @property
    def timing(self) -> Timing:
        """Seconds for each token after the first, a sample for each turn."""
        return self._timing(tuple(statistics.fmean(turn.tokens) for turn in self.turns))

    @property
    def whole(self) -> Timing:
        """Seconds for a whole text, from the prompt to its last token, a sample for each turn."""
        return self._timing(tuple(turn.seconds for turn in self.turns))

    def _timing(self, samples: tuple[float, ...]) -> Timing:
        return Timing(
            label=self.label,
            samples=samples,
            first_call=self.first_call,
            warmup_calls=1,
            steady=True,
            stopped_by="calls",
            threads=self.threads,
            round_id=self.round_id,
        )

    def table(self) -> Table:
        """What was measured, a row each."""
        share, overhead = self.bandwidth_share, self.overhead
        rows = [
            ("first token", format_seconds(self.first_token), f"{self.prefill_rate:.0f} tokens/s"),
            ("each further token", format_seconds(self.per_token), f"{self.decode_rate:.1f} tokens/s"),
            ("95% of them within", format_seconds(self.slow_token), ""),
            ("first generation", format_seconds(self.first_call), "the whole of it"),
        ]
        if overhead is not None:
            rows.append(("of a token, generate() itself", format_seconds(overhead), f"{overhead / self.per_token:.0%}"))
        if share is not None:
            read = f"{self.bytes_read / 1e6:.0f} MB for each token, {self.bytes_read / self.per_token / 1e9:.1f} GB/s"
            rows.append(("memory read", f"{share:.0%}", f"{read} of {self.bandwidth / 1e9:.1f}"))
        note = f"{self.rows} x {self.prompt_tokens} tokens, {self.new_tokens} new, {len(self.turns)} turns"
        return Table(("what", self.label, "that is"), tuple(rows), note=f"{note}, {self.threads} threads")


@dataclass(frozen=True, repr=False)
class GenerationTimings(Displayed, Mapping[str, GenerationTiming]):
    """Generators side by side; the first one is what the others are compared with."""

    timings: Mapping[str, GenerationTiming] = field(default_factory=dict)

    def __getitem__(self, name: str) -> GenerationTiming:
        return self.timings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.timings)

    def __len__(self) -> int:
        return len(self.timings)

    def table(self) -> Table:
        """A row each."""
        reference = next(iter(self.timings.values()))
        rows = tuple(_row(timing, reference) for timing in self.timings.values())
        columns = (
            "generator",
            "first token",
            "each token",
            "95% interval",
            "tokens/s",
            "speed-up",
            "of memory",
            "same tokens",
        )
        note = (
            f"{reference.rows} x {reference.prompt_tokens} tokens, {reference.new_tokens} new, "
            f"{len(reference.turns)} whole generations each in turns, {reference.threads} threads"
        )
        return Table(
            columns, rows, note=note, numeric=("first token", "each token", "tokens/s", "speed-up", "of memory")
        )

    def plot(self) -> Any:
        """Bars of the time for each token, in milliseconds."""
        values, lows, highs = zip(
            *((t.per_token * 1e3, t.low * 1e3, t.high * 1e3) for t in self.timings.values()), strict=True
        )
        return bar_chart(list(self), values, lows, highs, unit="milliseconds for each token (median, 95% interval)")


def measure_generation(
    generators: Mapping[str, Generator],
    prompts: Mapping[str, torch.Tensor],
    *,
    new_tokens: int = 32,
    turns: int = 6,
    roofline: Roofline | None = None,
    progress: bool = True,
) -> GenerationTimings:
    """Have generators continue prompts greedily, one whole generation each in turns, and look at every token.

    Parameters
    ----------
    generators
        By name; the first one is what the others are compared with.
    prompts
        ``input_ids`` and ``attention_mask`` (rows, tokens), padded on the left; of models with an encoder what that
        reads.
    new_tokens
        How many tokens each writes; none stops before.
    turns
        How many generations of each are counted.
    roofline
        With a bandwidth, from ``cpu.roofline(memory=True)`` in the same process, for the share of it that is reached.
    progress
        Show a bar.

    Returns
    -------
    GenerationTimings

    Raises
    ------
    InputError
        If there is nothing to measure.
    """
    if not generators:
        raise InputError("measure_generation: give at least one generator by name")
    if new_tokens < 2 or turns < 1:
        raise InputError(f"new_tokens is {new_tokens} and turns is {turns}; at least 2 and 1 can be measured")
    inputs = bound_example(prompts, next(iter(generators.values())).model).tensors
    runners = {name: Writer(generator, inputs, new_tokens) for name, generator in generators.items()}
    bar = tqdm(total=len(runners) * (turns + 1), unit="text", disable=not progress, leave=False)
    with bar:
        first, tokens = {}, {}
        for name, runner in runners.items():
            started = time.perf_counter()
            tokens[name] = runner.write()[0]
            first[name] = time.perf_counter() - started
            bar.update()
        seen: dict[str, list[Turn]] = {name: [] for name in runners}
        order = list(runners)
        for turn in range(turns):
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                seen[name].append(runners[name].write()[1])
                bar.update()
    reference, round_id = next(iter(tokens.values())), uuid.uuid4().hex
    return GenerationTimings(
        {
            name: GenerationTiming(
                label=name,
                rows=runner.rows,
                prompt_tokens=runner.length,
                new_tokens=new_tokens,
                first_call=first[name],
                turns=tuple(seen[name]),
                bytes_read=runner.bytes_read,
                same_tokens=int((tokens[name] == reference)[:, -new_tokens:].sum()),
                threads=torch.get_num_threads(),
                bandwidth=roofline.bandwidth if roofline else None,
                round_id=round_id,
            )
            for name, runner in runners.items()
        }
    )


class _Clock:
    """Told of each token by ``generate()``; rows of any number."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to tell."""


class _TimedStep(Step):
    """Another step, with the seconds of each call."""

    def __init__(self, step: Step) -> None:
        self.inner, self.limit, self.seconds = step, step.limit, []

    def new_state(self, batch: int, length: int, sources: Sources | None = None) -> State:
        return self.inner.new_state(batch, length, sources)

    def feed(self, *arguments: Any, **named: Any) -> torch.Tensor:
        started = time.perf_counter()
        logits = self.inner.feed(*arguments, **named)
        self.seconds.append(time.perf_counter() - started)
        return logits

    def _new_state(self, batch: int, capacity: int) -> State:
        raise NotImplementedError

    def _feed(self, *arguments: Any) -> torch.Tensor:
        raise NotImplementedError


class _TimedEncodingStep(_TimedStep, EncodingStep):
    """The same of a step that also encodes."""

    def __init__(self, step: EncodingStep) -> None:
        super().__init__(step)
        self.inputs_name, self.reads_mask = step.inputs_name, step.reads_mask

    def encode(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> Sources:
        return self.inner.encode(inputs, mask)

    def _encode(self, *arguments: Any) -> torch.Tensor:
        raise NotImplementedError

    def _begin(self, *arguments: Any) -> State:
        raise NotImplementedError


class Writer:
    """Writes with one generator, and looks at the clock.

    Parameters
    ----------
    generator
        What writes.
    prompts
        ``input_ids`` and ``attention_mask`` (rows, tokens), or what an encoder reads.
    new_tokens
        How many tokens it writes each time.
    """

    def __init__(self, generator: Generator, prompts: Mapping[str, torch.Tensor], new_tokens: int) -> None:
        from transformers import GenerationConfig

        self.generator, self.prompts, self.new_tokens = generator, prompts, new_tokens
        # None that would stop before, or choose otherwise than the most likely token.
        self.settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        self.source = next(iter(prompts.values())) if generator.reads_source else None
        if self.source is not None:
            self.settings.decoder_start_token_id = start_token(generator.model)
        self.rows, self.length = size_of(prompts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a token reads; 0 where that is not known."""
        return self.generator.build.weight_bytes if self.generator.build else 0

    @property
    def bytes_read(self) -> int:
        """Bytes of weights, keys and values that a token reads on average; 0 where that is not known."""
        build = self.generator.build
        if build is None:
            return 0
        if self.source is None:
            kept = (self.length + self.new_tokens // 2) * build.token_bytes
        else:
            places = build.step.encode(self.source, self.prompts.get("attention_mask")).states.shape[1]
            begun = self.prompts["decoder_input_ids"].shape[1] if "decoder_input_ids" in self.prompts else 1
            kept = places * build.source_bytes + (begun + self.new_tokens // 2) * build.token_bytes
        return build.weight_bytes + self.rows * kept

    def write(self) -> tuple[torch.Tensor, Turn]:
        """Write a whole text, greedily: all tokens, prompts included, and how long each new one took."""
        clock = _Clock()
        with _settings_of(self.generator, self.settings), _timed(self.generator) as step:
            started = time.perf_counter()
            tokens = self.generator.generate(**self.prompts, generation_config=self.settings, streamer=clock)
        # It is told of the prompt first.
        times = clock.times[1:]
        pauses = tuple(after - before for before, after in itertools.pairwise(times))
        return tokens, Turn(times[0] - started, pauses, tuple(step.seconds[1:]) if step else ())


def size_of(prompts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """How many prompts of how many tokens, or how many sources of how many tokens, frames or samples."""
    first = next(iter(prompts.values()))
    return len(first), max(first.shape[1:])


@contextmanager
def _settings_of(generator: Generator, settings: Any) -> Iterator[None]:
    """With none of a model's own settings, such as beams, which transformers adds to those that it is given."""
    own = generator.model.generation_config
    generator.model.generation_config = settings
    try:
        yield
    finally:
        generator.model.generation_config = own


@contextmanager
def _timed(generator: Generator) -> Iterator[_TimedStep | None]:
    if generator.build is None:
        yield None
        return
    step = generator.build.step
    timed = _TimedEncodingStep(step) if isinstance(step, EncodingStep) else _TimedStep(step)
    generator.model.step = timed
    try:
        yield timed
    finally:
        generator.model.step = generator.build.step


def _row(timing: GenerationTiming, reference: GenerationTiming) -> tuple[str, ...]:
    speedup = "" if timing is reference else f"{timing.is_faster_than(reference).ratio:.2f}x"
    share = timing.bandwidth_share
    return (
        timing.label,
        format_seconds(timing.first_token),
        format_seconds(timing.per_token),
        f"[{format_seconds(timing.low)}, {format_seconds(timing.high)}]",
        f"{timing.decode_rate:.1f}",
        speedup,
        "" if share is None else f"{share:.0%}",
        f"{timing.same_tokens} of {timing.rows * timing.new_tokens}",
    )
