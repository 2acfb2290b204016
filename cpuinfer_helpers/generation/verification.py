"""Whether a step gives the model's own logits: fed in every way that ``generate()`` feeds it, beside one eager pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError, first_line
from cpuinfer_helpers.generation.closeness import LARGEST_ERROR, Closeness, closeness, perplexity
from cpuinfer_helpers.generation.encoding.given import Given, Sourced, given_for
from cpuinfer_helpers.generation.encoding.sources import PROMPT, PROMPT_MASK, called, has_encoder, start_token
from cpuinfer_helpers.generation.layout import named_arguments
from cpuinfer_helpers.generation.positions import positions_of, window_of
from cpuinfer_helpers.generation.step import BLOCK, State, Step
from cpuinfer_helpers.generation.weights import limit_of
from cpuinfer_helpers.interface.copies import untouched
from cpuinfer_helpers.receipts import Check

_ROWS, _TOKENS = 3, 24
_ALL = slice(None)
# How much of each row of the padded texts is padding.
_PADDING = (0, 6, 3)
# A window of more tokens is not gone beyond: that would take a text of as many.
_LARGEST_WINDOW = 512
# What quantised weights may cost over all tokens: the share of the logits, and of perplexity.
MEAN_ERROR = {"int8": 0.03, "int4": 0.5}
MORE_PERPLEXITY = {"int8": 0.01, "int4": 0.05}
# Between the model's own logits of a text with padding and without.
_NO_DIFFERENCE = 1e-3
# What a model's own generate() writes for the comparison, and how far its logits may be from one pass in its own dtype.
_OWN_TOKENS, _OWN_DIFFERENCE = 3, 5e-2
# Fewer tokens tell nothing of perplexity.
_FEWEST_FOR_PERPLEXITY = 32
# Steps with whole numbers round what is multiplied; fed in another way, another number is sometimes rounded otherwise.
_LIKE_ITSELF = {"int8": 0.03, "int4": 0.03}


@dataclass(frozen=True)
class Texts:
    """Texts to feed, with the model's own logits of every token.

    Attributes
    ----------
    ids, logits
        Token ids (3, 24) and logits of three texts without padding.
    mask, padded
        A mask that pads two of them on the left, and the logits with it.
    alone
        Whether the model gives a padded text the logits that it gives the same text without padding.
    long_ids, long_logits
        One text, long enough for the room to grow twice and to go beyond the window: (1, tokens).
    given
        What the encoder reads, where there is one.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    mask: torch.Tensor
    padded: torch.Tensor
    alone: bool
    long_ids: torch.Tensor
    long_logits: torch.Tensor
    given: Given | None = None


@dataclass(frozen=True)
class Verified:
    """What the comparison has found.

    Attributes
    ----------
    checks
        In the order in which they ran.
    difference
        The first thing that differs, with its place; None if nothing does.
    evidence
        How near all logits were, as texts.
    limit
        The most tokens that were fed, where no more is known to be right; None where the model's own limit holds.
    """

    checks: tuple[Check, ...]
    difference: str | None
    evidence: Mapping[str, str]
    limit: int | None = None


Fed = tuple[torch.Tensor, torch.Tensor]
_Script = Callable[[Step, Texts], Iterator[Fed]]


def texts_for(model: torch.nn.Module, prompts: Mapping[str, torch.Tensor]) -> Texts:
    """Texts from example prompts and from random tokens, with the model's own logits.

    Raises
    ------
    RecipeError
        If the model fails on them, or its logits are no numbers.
    """
    config = model.config.get_text_config(decoder=True)
    limit, window = limit_of(model), window_of(config)
    long = 2 * BLOCK + 4
    if window and window <= _LARGEST_WINDOW:
        long = max(long, window + BLOCK // 2)
    short, long = (size if limit is None else min(size, limit) for size in (_TOKENS, long))
    given = given_for(model, prompts, _ROWS) if has_encoder(model) else None
    ids = sample_ids(config, prompts, _ROWS * short + long)
    rows, long_ids = ids[: _ROWS * short].view(_ROWS, short), ids[None, _ROWS * short :]
    if given is not None:
        rows[:, 0] = long_ids[:, 0] = start_token(model)
    of_rows, of_long = (given.rows(slice(None)), given.long) if given else (None, None)
    mask = torch.ones_like(rows)
    for row, padding in enumerate(_PADDING):
        # Transformers puts the token that a decoder begins with before the padding, where no row has it.
        first = 1 if given is not None and row == _ROWS - 1 else 0
        mask[row, first : min(padding, short - 2)] = 0
    padded = eager_logits(model, rows, mask, of_rows)
    return Texts(
        rows,
        eager_logits(model, rows, torch.ones_like(rows), of_rows),
        mask,
        padded,
        # A beginning whose padding stands after its first token is no text alone.
        given is None and _same_alone(model, rows, mask, padded),
        long_ids,
        eager_logits(model, long_ids, torch.ones_like(long_ids), of_long),
        given,
    )


def eager_logits(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, sources: Sourced | None = None
) -> torch.Tensor:
    """The model's own logits of every token in one pass, (batch, tokens, vocabulary), by a copy that is thrown away."""
    copied, positions = untouched(model), positions_of(mask, ids.shape[1])
    arguments: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "use_cache": False,
        "return_dict": True,
    }
    try:
        with torch.no_grad():
            if sources is None:
                logits = copied(**named_arguments(copied, arguments)).logits
            else:
                logits = called(copied, sources.named, ids, mask, positions, use_cache=False).logits
    except Exception as error:  # the model's own Python may raise anything
        raise RecipeError(f"the model itself fails on {tuple(ids.shape)} tokens: {first_line(error)}") from error
    if bool(logits[mask.bool()].isnan().any()):
        raise RecipeError(
            "the model's own logits are not a number for some tokens, so nothing can be compared with them"
        )
    return logits


def refuse_unlike_own_generate(model: Any, texts: Texts) -> None:
    """Raise where a model's own ``generate()`` gives other logits than one pass over the same tokens.

    Then nobody can say which are right. GIT puts images before its text in the mask of every token after the first one,
    also where there are none.

    Raises
    ------
    RecipeError
    """
    from transformers import GenerationConfig, GenerationMixin

    end = texts.ids.shape[1] - _OWN_TOKENS
    if end < 1:
        return
    ids, mask = texts.ids[:, :end], texts.mask[:, :end]
    sources = texts.given.rows(slice(None)) if texts.given else None
    copied = untouched(model)
    settings = GenerationConfig(
        max_new_tokens=_OWN_TOKENS, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    prompts = {"input_ids": ids, "attention_mask": mask}
    if sources is not None:
        prompts = {**sources.named, PROMPT: ids, PROMPT_MASK: mask}
        # Settings of the model's, such as beams, would come into ours.
        settings.decoder_start_token_id, copied.generation_config = start_token(model), settings
    try:
        with torch.no_grad():
            # Not that of a class's own, such as Whisper's, which begins texts by itself.
            generate = GenerationMixin.generate if sources is not None else type(copied).generate
            written = generate(copied, **prompts, generation_config=settings)
    except Exception as error:  # the model's own Python may raise anything
        raise RecipeError(f"its own generate() fails: {first_line(error)}") from error
    seen = torch.stack(written.logits, dim=1)
    longer = torch.cat([mask, torch.ones_like(written.sequences[:, end:])], dim=1)
    expected = eager_logits(model, written.sequences, longer, sources)[:, end - 1 : -1]
    far = closeness(expected.flatten(0, 1), seen.flatten(0, 1), 1.0).worst
    if far > _OWN_DIFFERENCE:
        raise RecipeError(
            f"its own generate() gives other logits than one pass over the same tokens (relative error {far:.1e}), so "
            "nobody can say which are right"
        )


def comparable(model: Any, texts: Texts) -> Texts:
    """Texts that a model's own ``generate()`` gives the logits for that one pass gives.

    Some decoders beside an encoder give a beginning that is padded other logits token by token: those are left out.

    Raises
    ------
    RecipeError
        See :func:`refuse_unlike_own_generate`.
    """
    if texts.given is None:
        refuse_unlike_own_generate(model, texts)
        return texts
    try:
        refuse_unlike_own_generate(model, texts)
        return texts
    except RecipeError:
        unpadded = replace(texts, mask=torch.ones_like(texts.mask), padded=texts.logits)
        refuse_unlike_own_generate(model, unpadded)
        return unpadded


def _same_alone(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, padded: torch.Tensor) -> bool:
    text = ids[1:2, mask[1].bool()]
    alone = eager_logits(model, text, torch.ones_like(text))
    return closeness(padded[1, -text.shape[1] :], alone[0], 1.0).worst < _NO_DIFFERENCE


def verify_step(
    step: Step, precision: str, model: torch.nn.Module, texts: Texts, *, tolerance: float | None = None
) -> Verified:
    """Feed a step in every way that ``generate()`` feeds it, and compare each token's logits with the model's own.

    Parameters
    ----------
    step
        What to verify.
    precision
        ``fp32``, ``fp16w``, ``bf16``, ``int8`` or ``int4``.
    model
        The model, for the tokens that are possible.
    texts
        See :func:`texts_for`.
    tolerance
        Largest relative error of one token's logits, see :class:`~cpuinfer_helpers.generation.closeness.Closeness`;
        that of the precision unless given.

    Returns
    -------
    Verified
    """
    tolerance = LARGEST_ERROR[precision] if tolerance is None else tolerance
    checks, found, first = [], [], None
    itself = _ItsOwn(step, texts, precision) if precision in _LIKE_ITSELF else None
    for name, script in _SCRIPTS.items():
        check, near = _checked(name, script, step, texts, tolerance, itself)
        checks.append(check)
        found.extend(near)
        if check.passed is False:
            first = f"it does not give the model's logits: {name}, {check.note or _far(check)}"
            break
    evidence = _summary(found)
    if first is None:
        first = _too_far(precision, found)
    window = window_of(model.config.get_text_config(decoder=True))
    beyond = window is not None and window >= texts.long_ids.shape[1]
    return Verified(tuple(checks), first, evidence, window if beyond else None)


def compare_perplexity(
    step: Step, model: torch.nn.Module, ids: torch.Tensor, sources: Sourced | None = None
) -> tuple[float, float] | None:
    """Perplexity of a step and of the model on texts of equal length, (rows, tokens); None for too few tokens."""
    if ids.numel() < _FEWEST_FOR_PERPLEXITY or ids.shape[1] < 2:
        return None
    mask = torch.ones_like(ids)
    own = perplexity(eager_logits(model, ids, mask, sources), ids)
    state = state_for(step, len(ids), ids.shape[1], sources)
    return perplexity(step.feed(ids, mask, positions_of(mask, ids.shape[1]), state, last=None), ids), own


def state_for(step: Step, batch: int, room: int, sources: Sourced | None) -> State:
    """A new state, which begins with sources where there are any."""
    if sources is None:
        return step.new_state(batch, room)
    return step.new_state(batch, room, step.encode(sources.source, sources.mask))


def _checked(
    name: str, script: _Script, step: Step, texts: Texts, tolerance: float, itself: _ItsOwn | None
) -> tuple[Check, list[Closeness]]:
    try:
        fed = list(script(step, texts))
        alike = list(script(itself.step, itself.texts)) if itself else []
    except Exception as error:  # of a backend, each of which has errors of its own
        return Check(name, _shape(texts), False, note=f"it fails: {first_line(error)}"), []
    if not fed:
        return Check(name, _shape(texts), None, note="the model takes too few tokens for it"), []
    near = [closeness(expected, seen, tolerance) for expected, seen in fed]
    worst = max(found.worst for found in near)
    passed, note = worst <= tolerance, ""
    undecided = [found for found in near if found.same_decided < found.decided]
    if passed and undecided and not itself:
        passed, note = False, "another token is the most likely one where the model's choice is clear"
    if passed and itself:
        unlike = max(closeness(expected, seen, 1.0).worst for expected, seen in alike)
        if unlike > itself.tolerance:
            passed, note = False, f"fed so, its own logits differ by {unlike:.1%} from those in one piece"
    return Check(name, _shape(texts), passed, worst, tolerance, note), near


class _ItsOwn:
    """A step's own logits in one piece, for steps whose rounding would hide that they forget a token."""

    def __init__(self, step: Step, texts: Texts, precision: str) -> None:
        self.step, self.tolerance = step, _LIKE_ITSELF[precision]
        self.texts = replace(
            texts,
            logits=_Feeder.of(step, texts).all(),
            padded=_feed_alone(step, texts) if texts.alone else _Feeder.of(step, texts, padded=True).all(),
            long_logits=_Feeder.of_long(step, texts).all(),
        )


def _feed_alone(step: Step, texts: Texts) -> torch.Tensor:
    """Logits of each padded text fed without its padding, for which there are none."""
    logits = torch.zeros(texts.padded.shape)
    for row, mask in enumerate(texts.mask.bool()):
        text = texts.ids[row : row + 1, mask]
        logits[row, mask] = _Feeder(step, text).all()[0].float()
    return logits


class _Feeder:
    """Feeds texts piece by piece."""

    def __init__(
        self, step: Step, ids: torch.Tensor, mask: torch.Tensor | None = None, sources: Sourced | None = None
    ) -> None:
        self.step, self.ids = step, ids
        self.mask = torch.ones_like(ids) if mask is None else mask
        self.state: State = state_for(step, len(ids), 1, sources)

    @classmethod
    def of(cls, step: Step, texts: Texts, rows: slice = _ALL, *, padded: bool = False) -> _Feeder:
        """Of some of the three texts."""
        sources = texts.given.rows(rows) if texts.given else None
        return cls(step, texts.ids[rows], texts.mask[rows] if padded else None, sources)

    @classmethod
    def of_long(cls, step: Step, texts: Texts) -> _Feeder:
        """Of the long text."""
        return cls(step, texts.long_ids, sources=texts.given.long if texts.given else None)

    def all(self) -> torch.Tensor:
        """Logits of all tokens, fed at once."""
        return self.feed(self.ids.shape[1])

    def feed(self, count: int, *, ids: torch.Tensor | None = None, last: int | None = None) -> torch.Tensor:
        start, end = self.state.length, self.state.length + count
        mask = self.mask[:, :end]
        tokens = (self.ids if ids is None else ids)[:, start:end]
        return self.step.feed(tokens, mask, positions_of(mask, count), self.state, last=last)

    def compared(self, count: int, logits: torch.Tensor) -> Fed:
        """The model's and the step's logits of the next tokens that are no padding, one under the other."""
        start = self.state.length
        seen = self.feed(count)
        valid = self.mask[:, start : start + count].bool()
        return logits[:, start : start + count][valid], seen[valid]

    def all_compared(self, counts: Sequence[int], logits: torch.Tensor) -> Iterator[Fed]:
        for count in counts:
            if self.state.length + count <= self.ids.shape[1]:
                yield self.compared(count, logits)


def _one_at_a_time(step: Step, texts: Texts) -> Iterator[Fed]:
    yield from _Feeder.of(step, texts, slice(0, 1)).all_compared([1] * 10, texts.logits[:1])


def _prompt_of_two(step: Step, texts: Texts) -> Iterator[Fed]:
    yield from _Feeder.of(step, texts, slice(1, 2)).all_compared([2, 1, 1], texts.logits[1:2])


def _prompt(step: Step, texts: Texts) -> Iterator[Fed]:
    yield from _Feeder.of(step, texts, slice(2, 3)).all_compared([17, 1, 1], texts.logits[2:])


def _pieces(step: Step, texts: Texts) -> Iterator[Fed]:
    yield from _Feeder.of(step, texts).all_compared([5, 1, 11, 2], texts.logits)


def _padded_rows(step: Step, texts: Texts) -> Iterator[Fed]:
    yield from _Feeder.of(step, texts, padded=True).all_compared([17, 1, 1, 4], texts.padded)


def _grown(step: Step, texts: Texts) -> Iterator[Fed]:
    around = [BLOCK - 2, 1, 1, 1, BLOCK - 3, 1, 1, 1, 1]
    rest = texts.long_ids.shape[1] - sum(around)
    counts = [*around, rest] if rest > 0 else around
    yield from _Feeder.of_long(step, texts).all_compared(counts, texts.long_logits)


def _cropped(step: Step, texts: Texts) -> Iterator[Fed]:
    feeder = _Feeder.of(step, texts)
    if texts.ids.shape[1] < 20:
        return
    feeder.feed(12)
    draft = texts.ids.clone()
    draft[:, 13:16] = texts.ids.roll(1, dims=0)[:, 13:16]
    feeder.feed(4, ids=draft)
    feeder.state.crop(13)
    yield from feeder.all_compared([1, 1, 5], texts.logits)


def _reordered(step: Step, texts: Texts) -> Iterator[Fed]:
    order = torch.tensor([2, 0, 0, 1])
    feeder = _Feeder.of(step, texts, padded=True)
    if texts.ids.shape[1] < 14:
        return
    feeder.feed(9)
    feeder.state.reorder(order)
    feeder.ids, feeder.mask = texts.ids[order], texts.mask[order]
    yield from feeder.all_compared([1, 2], texts.padded[order])
    fewer = torch.tensor([3, 0])
    feeder.state.reorder(fewer)
    feeder.ids, feeder.mask = feeder.ids[fewer], feeder.mask[fewer]
    yield from feeder.all_compared([1, 1], texts.padded[order][fewer])


def _two_at_once(step: Step, texts: Texts) -> Iterator[Fed]:
    first, second = _Feeder.of(step, texts, slice(0, 1)), _Feeder.of(step, texts, slice(1, 3))
    for count in (7, 1, 3):
        if first.state.length + count <= texts.ids.shape[1]:
            yield first.compared(count, texts.logits[:1])
            yield second.compared(count, texts.logits[1:])


def _last_only(step: Step, texts: Texts) -> Iterator[Fed]:
    feeder = _Feeder.of(step, texts, padded=True)
    if texts.ids.shape[1] < 14:
        return
    yield texts.padded[:, 8], feeder.feed(9, last=1)[:, 0]
    yield texts.padded[:, 10:12].flatten(0, 1), feeder.feed(3, last=2).flatten(0, 1)


_SCRIPTS: dict[str, _Script] = {
    "one token at a time": _one_at_a_time,
    "a prompt of 2 tokens": _prompt_of_two,
    "a prompt of 17 tokens": _prompt,
    "prompts in pieces": _pieces,
    "padding on the left": _padded_rows,
    "more tokens than there was room for": _grown,
    "a draft cropped": _cropped,
    "rows reordered": _reordered,
    "two texts at once": _two_at_once,
    "logits of the last tokens only": _last_only,
}


def sample_ids(config: Any, prompts: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
    """Tokens of the example first, then random ones, none of them padding."""
    own = prompts["input_ids"][prompts["attention_mask"].bool()].flatten() if "input_ids" in prompts else []
    own = [token for token in own.tolist() if token < config.vocab_size] if len(own) else []
    generator = torch.Generator().manual_seed(0)
    size = config.vocab_size
    first = torch.tensor(own[: count // 2], dtype=torch.long)
    ids = torch.cat([first, torch.randint(0, size, (count,), generator=generator)])[:count]
    padding = getattr(config, "pad_token_id", None)
    if padding is None:
        return ids
    return torch.where(ids == padding, torch.full_like(ids, (padding + 1) % size), ids)


def _too_far(precision: str, found: Sequence[Closeness]) -> str | None:
    if precision not in MEAN_ERROR or not found:
        return None
    mean = _mean(found)
    if mean <= MEAN_ERROR[precision]:
        return None
    return f"its logits differ by {mean:.1%} from the model's on average, more than {MEAN_ERROR[precision]:.0%}"


def _summary(found: Sequence[Closeness]) -> dict[str, str]:
    if not found:
        return {}
    tokens, same = sum(near.tokens for near in found), sum(near.same for near in found)
    worst = max(near.worst for near in found)
    return {
        "logits": f"relative error {_mean(found):.1e}, {worst:.1e} at the worst of {tokens} tokens",
        "most likely token": f"the same for {same} of {tokens}",
    }


def _mean(found: Sequence[Closeness]) -> float:
    return (sum(near.mean**2 * near.tokens for near in found) / sum(near.tokens for near in found)) ** 0.5


def _far(check: Check) -> str:
    return f"relative error {check.max_error:.1e}, more than {check.tolerance:.1e}"


def _shape(texts: Texts) -> str:
    return f"{texts.ids.shape[0]} x {texts.ids.shape[1]}, 1 x {texts.long_ids.shape[1]}"
