"""Extractive question answering as the guide's ``run_qa`` does it: windows, answers mapped back to text, EM and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.squad.data import Question

MAX_SEQ_LENGTH = 384
DOC_STRIDE = 128
N_BEST = 20
MAX_ANSWER_LENGTH = 30


@dataclass(frozen=True)
class Window:
    """One part of a context that fits the model, with its question.

    Attributes
    ----------
    question_index
        Which question it belongs to.
    inputs
        Token ids, segments and attention mask, as the tokenizer names them.
    offsets
        For each token, the span of its characters in the context; None for tokens that are not of the context.
    """

    question_index: int
    inputs: dict[str, list[int]]
    offsets: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Answer:
    """One candidate: a part of the context, with its score and its place.

    Attributes
    ----------
    text
        The answer; empty if no span of the context could be one.
    score
        Start logit plus end logit.
    start, end
        Characters of the context.
    """

    text: str
    score: float
    start: int
    end: int


def prepare_windows(
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    max_seq_length: int = MAX_SEQ_LENGTH,
    doc_stride: int = DOC_STRIDE,
) -> list[Window]:
    """Tokenize questions with their contexts into overlapping windows.

    Parameters
    ----------
    questions
        Questions with contexts of any length.
    tokenizer
        A fast tokenizer: the mapping back to text needs its offsets.
    max_seq_length
        Tokens of a window, question and special tokens included.
    doc_stride
        Tokens that two neighbouring windows share.

    Returns
    -------
    list of Window
        At least one for each question, in the order of the questions. Not padded.

    Raises
    ------
    InputError
        If a question leaves no room for its context, or the windows could not move on.
    """
    _check_room(questions, tokenizer, max_seq_length, doc_stride)
    encoded = tokenizer(
        [question.question.lstrip() for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
    )
    windows = []
    for index, question_index in enumerate(encoded["overflow_to_sample_mapping"]):
        segments = encoded.sequence_ids(index)
        offsets = encoded["offset_mapping"][index]
        windows.append(
            Window(
                question_index=question_index,
                inputs={name: encoded[name][index] for name in tokenizer.model_input_names},
                offsets=tuple(tuple(o) if s == 1 else None for o, s in zip(offsets, segments, strict=True)),
            )
        )
    return windows


def best_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    logits: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    n_best: int = N_BEST,
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> list[list[Answer]]:
    """Map start and end logits back to parts of the contexts.

    Parameters
    ----------
    questions, windows
        As given to and returned by :func:`prepare_windows`.
    logits
        For each window its start and end logits, each of shape (tokens of the window or more,).
    n_best
        How many starts and ends of each window are combined, and how many answers are returned.
    max_answer_length
        Longest answer, in tokens.

    Returns
    -------
    list of list of Answer
        For each question its candidates over all windows, best first; at least one, which may be empty.
    """
    candidates: list[list[Answer]] = [[] for _ in questions]
    for window, (start_logits, end_logits) in zip(windows, logits, strict=True):
        context = questions[window.question_index].context
        spans = _window_spans(window, start_logits, end_logits, n_best, max_answer_length)
        candidates[window.question_index] += [Answer(context[a:b], score, a, b) for score, a, b in spans]
    nothing = Answer("", float("-inf"), 0, 0)
    return [sorted(found, key=lambda a: a.score, reverse=True)[:n_best] or [nothing] for found in candidates]


def score_answers(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 as SQuAD v1.1 defines them, in percent, by torchmetrics.

    Parameters
    ----------
    questions
        With their accepted answers.
    answers
        The predicted text for each.

    Returns
    -------
    dict
        ``exact_match`` and ``f1``, 0 to 100.
    """
    from torchmetrics.functional.text import squad

    predicted = [{"id": q.id, "prediction_text": text} for q, text in zip(questions, answers, strict=True)]
    # Where no answer is right, SQuAD 2.0 counts the empty one as the only right one.
    wanted = [
        {"id": q.id, "answers": {"text": list(q.answers) or [""], "answer_start": list(q.answer_starts) or [0]}}
        for q in questions
    ]
    return {name: float(value) for name, value in squad(predicted, wanted).items()}


def _window_spans(
    window: Window, start_logits: torch.Tensor, end_logits: torch.Tensor, n_best: int, max_answer_length: int
) -> list[tuple[float, int, int]]:
    """Score and characters of every pair of the best starts and ends that is a span of the context."""
    length = len(window.offsets)
    starts = start_logits[:length].float().topk(min(n_best, length))
    ends = end_logits[:length].float().topk(min(n_best, length))
    spans = []
    for start_score, start in zip(starts.values.tolist(), starts.indices.tolist(), strict=True):
        for end_score, end in zip(ends.values.tolist(), ends.indices.tolist(), strict=True):
            first, last = window.offsets[start], window.offsets[end]
            if first is None or last is None or not start <= end < start + max_answer_length:
                continue
            spans.append((start_score + end_score, first[0], last[1]))
    return spans


def _check_room(questions: Sequence[Question], tokenizer: Any, max_seq_length: int, doc_stride: int) -> None:
    if not questions:
        raise InputError("there are no questions; give at least one")
    limit = tokenizer.model_max_length
    if max_seq_length > limit:
        raise InputError(f"max_seq_length {max_seq_length} is more than the {limit} tokens that the model takes")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    # Only long questions have to be tokenized twice: even after normalisation a byte hardly makes two tokens.
    long = [q for q in questions if max_seq_length - 2 * len(q.question.encode()) - special <= doc_stride]
    if not long:
        return
    encoded = tokenizer([question.question.lstrip() for question in long], add_special_tokens=False)
    for question, tokens in zip(long, encoded["input_ids"], strict=True):
        room = max_seq_length - len(tokens) - special
        if room <= doc_stride:
            raise InputError(
                f"question {question.id!r} has {len(tokens)} tokens and leaves room for {max(room, 0)} of its context "
                f"at max_seq_length {max_seq_length}, which must be more than doc_stride {doc_stride}"
            )
