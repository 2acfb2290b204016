"""Inputs of an exact shape, made of texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.batches import padded, rows_of
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.files import read_json
from cpuinfer_helpers.tasks.squad.windows import MAX_SEQ_LENGTH
from cpuinfer_helpers.verification.variations import most_positions

# A text, and what stands before it as a sequence of its own, such as a question; empty where nothing does.
Text = tuple[str, str]
_LEAST_TOKENS = 4
_SEED = 0


def sentences(part: str) -> list[Text]:
    """The reviews of a shipped file, such as ``heldout``, for models that have no texts of their own."""
    return [("", record["text"]) for record in read_json(DATA / f"text-classification-{part}.json")]


def text_inputs(
    tokenizer: Any,
    texts: Sequence[Text],
    batch_size: int,
    length: int,
    tokens: int | Sequence[int] | None = None,
    *,
    side: str = "right",
) -> dict[str, torch.Tensor]:
    """Inputs of an exact shape; each row begins at another text.

    Parameters
    ----------
    tokenizer
        Makes the rows.
    texts
        What they are made of.
    batch_size, length
        Rows and columns.
    tokens
        Tokens of each row that are real, one number for all rows or one for each; all of them unless given.
    side
        Where the padding is: ``right`` or ``left``.

    Returns
    -------
    dict of str to Tensor
        int64 tensors of shape (``batch_size``, ``length``).

    Raises
    ------
    InputError
        If a size is not positive, ``tokens`` is more than ``length``, or there are not as many as rows.
    """
    tokens = length if tokens is None else tokens
    counts = [tokens] * batch_size if isinstance(tokens, int) else list(tokens)
    fits = len(counts) == batch_size and all(_LEAST_TOKENS <= count <= length for count in counts)
    if batch_size < 1 or length < _LEAST_TOKENS or not fits:
        raise InputError(
            f"inputs: batch_size {batch_size}, length {length}, tokens {tokens} cannot be made; "
            f"batch_size must be at least 1, and {_LEAST_TOKENS} <= tokens <= length, for every row"
        )
    return padded(tokenizer, [_row(tokenizer, texts, row, count) for row, count in enumerate(counts)], length, side)


def random_tokens(config: Any, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids from a fixed seed, for a model without a tokenizer.

    Raises
    ------
    InputError
        If the configuration names no vocabulary.
    """
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise InputError(
            f"{type(config).__name__} names no size of a vocabulary, so tokens cannot be made; make the example inputs "
            "yourself"
        )
    ids = torch.randint(0, vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(_SEED))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def encoded_texts(tokenizer: Any, texts: Sequence[Text]) -> list[dict[str, list[int]]]:
    """A row for each text, without what stands before it, cut to what the model takes."""
    encoded = tokenizer([text for _, text in texts], truncation=True, max_length=longest_row(tokenizer))
    return rows_of(tokenizer, encoded)


def running_text(tokenizer: Any, texts: Sequence[Text], rows: int, length: int) -> torch.Tensor:
    """Texts one after the other, cut into rows without padding, on which perplexity can be compared.

    Parameters
    ----------
    tokenizer
        Makes tokens of them.
    texts
        What is cut.
    rows, length
        At most so many rows, of so many tokens each.

    Returns
    -------
    torch.Tensor
        Token ids (rows, length), int64; fewer rows where the texts are shorter.

    Raises
    ------
    InputError
        If a size is not positive, or the texts are too short for a single row.
    """
    if rows < 1 or length < 2:
        raise InputError(f"rows is {rows} and length is {length}; give at least 1 row of 2 tokens")
    ids: list[int] = []
    for _, text in texts:
        ids += tokenizer(text, verbose=False)["input_ids"]
        if len(ids) >= rows * length:
            break
    whole = min(rows, len(ids) // length)
    if not whole:
        raise InputError(f"the texts have {len(ids)} tokens, fewer than a row of {length}; ask for shorter rows")
    return torch.tensor(ids[: whole * length], dtype=torch.long).view(whole, length)


def usual_length(config: Any) -> int:
    """384 tokens as in the guide, or as many as the model has positions for."""
    return min(MAX_SEQ_LENGTH, most_positions(config) or MAX_SEQ_LENGTH)


def longest_row(tokenizer: Any) -> int:
    """The most tokens of a row: what the tokenizer takes, and no more than SQuAD's evaluation uses."""
    return min(tokenizer.model_max_length, MAX_SEQ_LENGTH)


def _row(tokenizer: Any, texts: Sequence[Text], row: int, tokens: int) -> dict[str, list[int]]:
    """One row of exactly so many tokens: texts one after the other, cut off."""
    start = row % len(texts)
    before, text = texts[start][0], ""
    for _, more in itertools.islice(itertools.cycle(texts), start, None):
        text += " " + more
        if _length(tokenizer, text) >= tokens:
            break
    if before and tokens > 2 * _length(tokenizer, before):
        encoded = tokenizer(before, text, truncation="only_second", max_length=tokens)
    else:
        encoded = tokenizer(text, truncation=True, max_length=tokens)
    return {name: encoded[name] for name in tokenizer.model_input_names}


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
