"""Answers from logits as the guide's ``run_qa`` gives them: n-best lists, probabilities, and questions without answer.

The rules are those of the ``run_qa`` example of transformers (``utils_qa.py``), so that its files can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.squad.windows import MAX_ANSWER_LENGTH, N_BEST, Window

# What stands for an answer where no part of the context can be one.
_NO_SPAN = "empty"


@dataclass(frozen=True)
class AnswerRules:
    """How answers are chosen.

    Attributes
    ----------
    n_best
        Starts and ends of each window that are combined, and answers that are kept for each question.
    max_answer_length
        Longest answer, in tokens.
    may_have_no_answer
        Whether a question may be left unanswered, as in SQuAD 2.0.
    null_score_diff_threshold
        A question is left unanswered if that scores higher than the best answer by more than this, in logits.
    """

    n_best: int = N_BEST
    max_answer_length: int = MAX_ANSWER_LENGTH
    may_have_no_answer: bool = False
    null_score_diff_threshold: float = 0.0


@dataclass(frozen=True)
class SquadAnswers:
    """Answers by the question's id.

    Attributes
    ----------
    texts
        The answer; empty if the question is left unanswered.
    n_best
        The candidates, best first: ``text``, ``start_logit``, ``end_logit`` and ``probability`` of each.
    null_odds
        Score of no answer minus that of the best one; empty unless questions may have no answer.
    """

    texts: dict[str, str]
    n_best: dict[str, list[dict[str, Any]]]
    null_odds: dict[str, float]


@dataclass(frozen=True)
class _Spans:
    """Candidates of one question: logits, and characters of the context from ``first`` up to ``last``."""

    start_logits: np.ndarray
    end_logits: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        return self.start_logits + self.end_logits

    def take(self, positions: np.ndarray) -> _Spans:
        return _Spans(*(values[positions] for values in self._values()))

    def __add__(self, other: _Spans) -> _Spans:
        return _Spans(*(np.concatenate(pair) for pair in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[np.ndarray, ...]:
        return self.start_logits, self.end_logits, self.first, self.last


def find_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    rules: AnswerRules | None = None,
) -> SquadAnswers:
    """Map logits back to parts of the contexts.

    Parameters
    ----------
    questions, windows
        As given to and returned by :func:`~cpuinfer_helpers.tasks.squad.windows.prepare_windows`.
    start_logits, end_logits
        Float arrays of shape (windows, tokens); as many tokens as the longest window or more.
    rules
        SQuAD 1.1's unless given.

    Returns
    -------
    SquadAnswers
    """
    rules = rules or AnswerRules()
    of_question: list[list[int]] = [[] for _ in questions]
    for number, window in enumerate(windows):
        of_question[window.question_index].append(number)
    found = SquadAnswers({}, {}, {})
    for question, numbers in zip(questions, of_question, strict=True):
        spans = [_window_spans(windows[i], start_logits[i], end_logits[i], rules) for i in numbers]
        nulls = [_Spans(*_null(start_logits[i], end_logits[i])) for i in numbers]
        null = min(nulls, key=lambda span: span.scores[0])
        _choose(question, sum(spans[1:], spans[0]), null, rules, found)
    return found


def _window_spans(window: Window, starts: np.ndarray, ends: np.ndarray, rules: AnswerRules) -> _Spans:
    """Every pair of the best starts and ends that is a part of the context, best starts first."""
    first, last = (np.argsort(logits)[-1 : -rules.n_best - 1 : -1] for logits in (starts, ends))
    offsets = window.offsets
    first = np.array([i for i in first if i < len(offsets) and offsets[i] is not None], dtype=int)
    last = np.array([i for i in last if i < len(offsets) and offsets[i] is not None], dtype=int)
    row, column = np.nonzero((last[None] >= first[:, None]) & (last[None] < first[:, None] + rules.max_answer_length))
    start, end = first[row], last[column]
    characters = [(offsets[a][0], offsets[b][1]) for a, b in zip(start, end, strict=True)]
    bounds = np.array(characters, dtype=int).reshape(-1, 2)
    return _Spans(starts[start], ends[end], bounds[:, 0], bounds[:, 1])


def _null(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """No answer: the logits of the first token, and an empty part of the context."""
    nothing = np.zeros(1, dtype=int)
    return starts[:1], ends[:1], nothing, nothing


def _choose(question: Question, spans: _Spans, null: _Spans, rules: AnswerRules, found: SquadAnswers) -> None:
    """Rank the candidates of one question, and note the answer."""
    if rules.may_have_no_answer:
        spans = spans + null
    best = spans.take(np.argsort(-spans.scores, kind="stable")[: rules.n_best])
    if rules.may_have_no_answer and not np.any((best.first == 0) & (best.last == 0)):
        best = best + null
    texts = [question.context[a:b] for a, b in zip(best.first, best.last, strict=True)]
    candidates, scores = _records(texts, best)
    for record, probability in zip(candidates, _softmax(scores), strict=True):
        record["probability"] = float(probability)
    found.n_best[question.id] = candidates
    if not rules.may_have_no_answer:
        found.texts[question.id] = candidates[0]["text"]
        return
    answer = next(record for record in candidates if record["text"])
    odds = null.scores[0] - np.float32(answer["start_logit"]) - np.float32(answer["end_logit"])
    found.null_odds[question.id] = float(odds)
    found.texts[question.id] = "" if odds > rules.null_score_diff_threshold else answer["text"]


def _records(texts: list[str], best: _Spans) -> tuple[list[dict[str, Any]], np.ndarray]:
    rows = zip(best.start_logits, best.end_logits, texts, strict=True)
    records = [{"start_logit": float(start), "end_logit": float(end), "text": text} for start, end, text in rows]
    scores = best.scores
    if not any(texts):
        records.insert(0, {"text": _NO_SPAN, "start_logit": 0.0, "end_logit": 0.0})
        scores = np.concatenate([[0.0], scores])
    return records, scores


def _softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()
