"""Look into how text is written: passes of one token and of many, one more token after a long text, and rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_bytes, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation.generator import Generator
from cpuinfer_helpers.generation.layout import named_arguments
from cpuinfer_helpers.generation.measuring import GenerationTiming, GenerationTimings, measure_generation
from cpuinfer_helpers.generation.step import StepBuild
from cpuinfer_helpers.generation.weights import weights_of
from cpuinfer_helpers.interface.flops import count_flops
from cpuinfer_helpers.timing.measuring import measure_interleaved
from cpuinfer_helpers.timing.results import Roofline, Timing


@dataclass(frozen=True, repr=False)
class Passes(Displayed):
    """One pass of a model over one token and over many, beside what the CPU computes and what memory gives.

    Attributes
    ----------
    timings
        Of each pass, by its number of tokens.
    flops
        Operations of each.
    weight_bytes
        Bytes of the weights, which every pass reads whole.
    roofline
        With its memory measured.
    """

    timings: Mapping[int, Timing]
    flops: Mapping[int, int]
    weight_bytes: int
    roofline: Roofline

    def per_token(self, tokens: int) -> float:
        """Median seconds of a pass for each of its tokens."""
        return self.timings[tokens].median / tokens

    def of_arithmetic(self, tokens: int) -> float:
        """Operations per second of a pass as a share of what the CPU computes."""
        return self.roofline.percent(self.timings[tokens], self.flops[tokens]) / 100

    def of_memory(self, tokens: int) -> float:
        """Bytes of weights per second of a pass as a share of what memory gives."""
        return self.roofline.shortest_read(self.weight_bytes) / self.timings[tokens].median

    def table(self) -> Table:
        """A row for each pass."""
        rows = tuple(
            (
                str(tokens),
                format_seconds(timing.median),
                format_seconds(self.per_token(tokens)),
                f"{self.of_arithmetic(tokens):.0%}",
                f"{self.of_memory(tokens):.0%}",
                "arithmetic" if self.of_arithmetic(tokens) > self.of_memory(tokens) else "memory",
            )
            for tokens, timing in self.timings.items()
        )
        columns = ("tokens in a pass", "one pass", "each token", "of arithmetic", "of memory", "nearer limit")
        note = f"{self.weight_bytes / 1e6:.0f} MB of weights, read once in each pass; {self.roofline.threads} threads"
        return Table(columns, rows, note=note, numeric=columns[:-1])

    def plot(self) -> Any:
        """Bars of the time for each token, in milliseconds."""
        values = [1e3 * self.per_token(tokens) for tokens in self.timings]
        return bar_chart([f"{n} in a pass" for n in self.timings], values, unit="milliseconds for each token")


def time_passes(
    model: torch.nn.Module, ids: torch.Tensor, counts: Sequence[int], roofline: Roofline, *, budget_s: float = 6.0
) -> Passes:
    """Time passes over the first tokens of a text, in turns; of the last token logits are wanted, as in ``generate``.

    Parameters
    ----------
    model
        A causal language model in FP32.
    ids
        The text, (1, tokens).
    counts
        How many of its tokens each pass is over.
    roofline
        With FP32 and memory.
    budget_s
        Seconds for all of them.

    Returns
    -------
    Passes

    Raises
    ------
    InputError
        If a pass would be over more tokens than there are.
    """
    if max(counts) > ids.shape[1] or min(counts) < 1:
        raise InputError(f"counts are {list(counts)}; give numbers from 1 to {ids.shape[1]}, the tokens of the text")
    passes = {count: named_arguments(model, {"input_ids": ids[:, :count], "logits_to_keep": 1}) for count in counts}
    timings = measure_interleaved({str(n): _call(model, inputs) for n, inputs in passes.items()}, budget_s=budget_s)
    return Passes(
        {count: timings[str(count)] for count in counts},
        {count: count_flops(model, inputs) for count, inputs in passes.items()},
        weights_of(model).read,
        roofline,
    )


def _call(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return model(**inputs)

    return call


def one_more(generator: Generator, ids: torch.Tensor, rows: int = 1) -> Callable[[], torch.Tensor]:
    """Read a text, and return what writes one token after it, as often as it is called.

    Parameters
    ----------
    generator
        Prepared.
    ids
        The text, (1, tokens).
    rows
        How many texts write at once; all of them are this one.

    Returns
    -------
    callable
        Feeds one token to each row and takes it back. Returns its logits.

    Raises
    ------
    InputError
        If the eager model writes in the generator's place: it has no step that could take a token back.
    """
    if generator.build is None:
        raise InputError(f"one_more: {generator.recipe} was not prepared: {generator.reason}")
    step, length = generator.build.step, ids.shape[1]
    state = step.new_state(1, length + 1)
    step.feed(ids, torch.ones_like(ids), torch.arange(length)[None], state)
    state.reorder(torch.zeros(rows, dtype=torch.long))
    token, mask = ids[:, -1:].repeat(rows, 1), torch.ones(rows, length + 1, dtype=torch.long)
    positions = torch.full((rows, 1), length)

    def write() -> torch.Tensor:
        logits = step.feed(token, mask, positions, state)
        state.crop(length)
        return logits

    return write


def rates(timing: GenerationTiming) -> Table:
    """What may be called tokens per second of one and the same generation.

    Parameters
    ----------
    timing
        Of the generation.
    """
    rows, new, read = timing.rows, timing.rows * timing.new_tokens, timing.rows * timing.prompt_tokens
    whole = timing.whole.median
    told = (
        ("tokens read and written", "of the whole", (read + new) / whole),
        ("tokens read", "until the first token", timing.prefill_rate),
        ("tokens written", "after the first token", timing.decode_rate),
        ("tokens written", "after the first token, at the pace of the slowest 5%", rows / timing.slow_token),
        ("tokens written", "of the whole", new / whole),
        ("tokens written", "of the whole, the very first time", new / timing.first_call),
    )
    lines = tuple((what, when, f"{rate:.1f}") for what, when, rate in told)
    columns = ("what is counted", "over which time", "tokens per second")
    note = f"{timing.label}: {timing.rows} x {timing.prompt_tokens} tokens, {timing.new_tokens} new"
    return Table(columns, lines, note=note, numeric=columns[2:])


def cache_sizes(build: StepBuild, tokens: Sequence[int], texts: Sequence[int]) -> Table:
    """How large keys and values are after so many tokens of so many texts, beside the weights.

    Parameters
    ----------
    build
        Of the generator that keeps them.
    tokens, texts
        How many tokens of how many texts.
    """
    rows = tuple(
        (f"{count:,}", *(_beside(count * many * build.token_bytes, build) for many in texts)) for count in tokens
    )
    columns = ("tokens so far", *("one text" if many == 1 else f"{many} texts" for many in texts))
    return Table(columns, rows, note="in brackets: compared with all weights that a token reads", numeric=columns)


def _beside(size: int, build: StepBuild) -> str:
    return f"{format_bytes(size)} ({size / build.weight_bytes:.0%})"


def at_most(bandwidth: float, weights: Mapping[str, float], bits: Sequence[int] = (32, 16, 8, 4)) -> Table:
    """How fast models of any size could write one text at best, if all weights are read for each token.

    Parameters
    ----------
    bandwidth
        Bytes per second that memory gives.
    weights
        Numbers of weights, by name.
    bits
        How many bits each weight has.
    """
    rows = tuple((name, *(_pace(count * few / 8, bandwidth) for few in bits)) for name, count in weights.items())
    columns = ("weights", *(f"{few} bits" for few in bits))
    note = f"size of the weights, and tokens per second at most, at {bandwidth / 1e9:.1f} GB/s; one text"
    return Table(columns, rows, note=note, numeric=columns[1:])


def _pace(size: float, bandwidth: float) -> str:
    return f"{size / 1e9:.1f} GB: {bandwidth / size:.3g}"


@dataclass(frozen=True, repr=False)
class ByRows(Displayed):
    """Generators that write more and more texts at once.

    Attributes
    ----------
    timings
        By the number of texts, those of all generators.
    """

    timings: Mapping[int, GenerationTimings]

    def gain(self, name: str) -> float:
        """How many times as many tokens per second the most texts give as a single one."""
        first, *_, last = self.timings.values()
        return last[name].decode_rate / first[name].decode_rate

    def table(self) -> Table:
        """A row for each generator and number of texts."""
        rows = tuple((name, str(texts), *_pace_of(timing)) for name, texts, timing in self._each())
        columns = ("recipe", "texts at once", "first token", "each token", "tokens per second, all texts")
        return Table(columns, rows, numeric=columns[1:])

    def plot(self) -> Any:
        """Bars of the tokens per second, all texts together."""
        labels, values = zip(*((f"{name}, {n}", one.decode_rate) for name, n, one in self._each()), strict=True)
        return bar_chart(labels, values, unit="tokens per second, all texts together")

    def _each(self) -> Iterator[tuple[str, int, GenerationTiming]]:
        for name in next(iter(self.timings.values())):
            for texts, timings in self.timings.items():
                yield name, texts, timings[name]


def _pace_of(timing: GenerationTiming) -> tuple[str, str, str]:
    return format_seconds(timing.first_token), format_seconds(timing.per_token), f"{timing.decode_rate:.1f}"


def write_by_rows(
    generators: Mapping[str, Generator], prompts: Mapping[str, torch.Tensor], counts: Sequence[int], **settings: Any
) -> ByRows:
    """Have generators write the first prompts of a batch, more and more of them at once.

    Parameters
    ----------
    generators
        By name.
    prompts
        The batch.
    counts
        How many of its texts are written at once.
    **settings
        Of :func:`~cpuinfer_helpers.measure_generation`.
    """
    first = {count: {name: tensor[:count] for name, tensor in prompts.items()} for count in counts}
    return ByRows({count: measure_generation(generators, some, **settings) for count, some in first.items()})
