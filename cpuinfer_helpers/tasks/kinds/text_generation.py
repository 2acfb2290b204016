"""Texts that are gone on with: how well a model foretells them, and whether it copies what it is told to copy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.tasks.files import is_text, read_records
from cpuinfer_helpers.tasks.hub import DatasetFile
from cpuinfer_helpers.tasks.kinds.base import (
    Encoded,
    Geometry,
    HubSource,
    Outputs,
    TaskData,
    TaskKind,
    Tensors,
    accuracy,
    shipped_files,
)
from cpuinfer_helpers.tasks.texts import longest_row, random_tokens, text_inputs

NAME = "text-generation"
# A heading of WikiText is between equals signs; fewer words leave nothing to go on with.
_HEADING, _LEAST_WORDS = " =", 12
_LEAST_TOKENS = 4


@dataclass(frozen=True)
class Continuation:
    """A prompt and what follows it.

    Attributes
    ----------
    prompt
        The beginning, or a text with the order to copy it.
    continuation
        What follows, with the space before it.
    copied
        Whether what follows stands in the prompt, which says so.
    """

    prompt: str
    continuation: str
    copied: bool = False


@dataclass(frozen=True)
class Followed:
    """What a model makes of an example, each token given all those that really stand before it.

    Attributes
    ----------
    tokens
        The most likely token at each place after the prompt, and at the end.
    wanted
        The token that stands there: if all are equal, greedy decoding writes this continuation and ends.
    loss
        Sum of the negative logarithms of what prompt and continuation were thought to be likely.
    counted
        The tokens in that sum: all but the first.
    """

    tokens: tuple[int, ...]
    wanted: tuple[int, ...]
    loss: float
    counted: int


@dataclass(frozen=True)
class _Place:
    """Where a continuation begins in its row, and where it ends; the token that ends a text comes after that."""

    first: int
    end: int


def read_continuations(path: str | os.PathLike[str]) -> list[Continuation]:
    """Read a JSON list of objects with ``prompt``, ``continuation`` and ``copied``.

    Raises
    ------
    DataError
        If the file or a record is malformed; the message names it.
    """
    examples = []
    for place, record in read_records(path, ("prompt", "continuation", "copied")):
        prompt, continuation, copied = record["prompt"], record["continuation"], record["copied"]
        if not is_text(prompt) or not is_text(continuation):
            raise DataError(f"{place}: prompt and continuation must be texts that are not empty")
        if not isinstance(copied, bool):
            raise DataError(f"{place}: copied is {copied!r}; it must be true or false")
        if copied and continuation.strip() not in prompt:
            raise DataError(f"{place}: copied is true, but the continuation does not stand in the prompt")
        examples.append(Continuation(prompt, continuation, copied))
    return examples


def _read_rows(rows: Sequence[Mapping[str, Any]]) -> list[Continuation]:
    """Paragraphs of WikiText, a third of each as the prompt."""
    found = []
    for row in rows:
        words = row["text"].split()
        if len(words) >= _LEAST_WORDS and not row["text"].startswith(_HEADING):
            first = len(words) // 3
            found.append(Continuation(" ".join(words[:first]), " " + " ".join(words[first:])))
    return found


def _text_of(example: Continuation) -> tuple[str, str]:
    return "", example.prompt + example.continuation


def _encode(tokenizer: Any, examples: Sequence[Continuation]) -> Encoded:
    """Prompt and continuation tokenized apart, as they are when text is generated, cut to what the model takes."""
    rows, places = [], []
    longest = longest_row(tokenizer)
    for example in examples:
        prompt = tokenizer(example.prompt, verbose=False)["input_ids"]
        if prompt[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            prompt = prompt[:-1]
        more = tokenizer(example.continuation, add_special_tokens=False, verbose=False)["input_ids"]
        ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = [*prompt, *more, *ending][:longest]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        places.append(_Place(min(len(prompt), len(ids)), min(len(prompt) + len(more), len(ids))))
    return Encoded(rows, places)


def _kept(inputs: Tensors, outputs: Tensors) -> list[tuple[torch.Tensor, ...]]:
    """For each token but the first of every row, how unlikely it was thought to be, and which was the most likely."""
    found = []
    for ids, mask, logits in zip(inputs["input_ids"], inputs["attention_mask"], outputs["logits"], strict=True):
        real = mask.bool()
        before, wanted = logits[real][:-1].float(), ids[real][1:]
        losses = torch.nn.functional.cross_entropy(before, wanted, reduction="none")
        found.append((losses, before.argmax(dim=-1)))
    return found


def _decode(
    encoded: Encoded, examples: Sequence[Continuation], outputs: Outputs, labels: Mapping[int, str]
) -> list[Followed]:
    """What was thought of each row."""
    found = []
    for row, place, (losses, best) in zip(encoded.rows, encoded.places, outputs, strict=True):
        counted = losses[: place.end - 1]
        tokens, wanted = best[place.first - 1 :].tolist(), row["input_ids"][place.first :]
        found.append(Followed(tuple(tokens), tuple(wanted), counted.double().sum().item(), len(counted)))
    return found


def _score(examples: Sequence[Continuation], answers: Sequence[Followed]) -> dict[str, float]:
    """The share of copies that are right from end to end; perplexity of a token of the texts that are none."""
    copies = [answer for example, answer in zip(examples, answers, strict=True) if example.copied]
    texts = [answer for example, answer in zip(examples, answers, strict=True) if not example.copied] or copies
    metrics = {}
    if copies:
        metrics["copied"] = accuracy([answer.wanted for answer in copies], [answer.tokens for answer in copies])
    mean = sum(answer.loss for answer in texts) / max(1, sum(answer.counted for answer in texts))
    # Unlike math.exp, infinite where that is too large.
    metrics["perplexity"] = torch.tensor(mean, dtype=torch.float64).exp().item()
    return metrics


def _prediction(answer: Followed) -> tuple[int, ...]:
    return answer.tokens


def _inputs(
    kind: TaskKind, model: torch.nn.Module, tokenizer: Any, batch_size: int, length: int | None
) -> dict[str, torch.Tensor]:
    """Prompts: the first as long as asked, all others shorter and padded on the left."""
    length = length or max(kind.example_tokens)
    if tokenizer is None:
        return random_tokens(model.config, batch_size, length)
    shorter = max(min(_LEAST_TOKENS, length), length * 5 // 8)
    tokens = [length, *[shorter] * (batch_size - 1)]
    return text_inputs(tokenizer, kind.texts("heldout"), batch_size, length, tokens, side=kind.padding_side)


def _gpt2(trained: Any) -> Any:
    """GPT-2 as its configuration's defaults have it; the small tokenizer's ids are among those that it knows."""
    import transformers

    return transformers.GPT2Config(pad_token_id=trained.pad_token_id)


KIND = TaskKind(
    NAME,
    "AutoModelForCausalLM",
    inputs=_inputs,
    data=TaskData(
        files=shipped_files(NAME),
        source=HubSource(
            "openai-community/gpt2",
            DatasetFile("Salesforce/wikitext", "wikitext-2-raw-v1/validation-00000-of-00001.parquet"),
            _read_rows,
        ),
        read=read_continuations,
        text_of=_text_of,
        encode=_encode,
        outputs=("logits",),
        kept=_kept,
        decode=_decode,
        prediction=_prediction,
        score=_score,
        metric="perplexity",
        less_is_better=True,
        collator=None,
        geometry=Geometry("GPT-2", _gpt2),
    ),
    # XLMWithLMHeadModel is listed too, though most were trained to fill masks; so are some that see or hear.
    told_by="ForCausalLM$|(?<!With)LMHeadModel$",
    padding_side="left",
    example_tokens=(32, 20),
)
