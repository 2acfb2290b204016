"""SQuAD 2.0's scores: exact match and F1 over all questions, over those with an answer and over those without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.squad.windows import score_answers


def score_squad_v2(questions: Sequence[Question], texts: Mapping[str, str]) -> dict[str, float]:
    """Scores under the names of SQuAD 2.0's evaluation, in percent.

    Parameters
    ----------
    questions
        With their accepted answers; none for a question that is to be left unanswered.
    texts
        The answer to each by id, empty for none.

    Returns
    -------
    dict
        ``exact``, ``f1`` and ``total``; the same with ``HasAns_`` and ``NoAns_`` before it where there are such
        questions; and ``best_exact`` and ``best_f1`` with their thresholds, which the evaluation seeks on the
        probability of no answer. As in ``run_qa`` that is 0 for every question, so they say nothing.
    """
    each = [score_answers([question], [texts[question.id]]) for question in questions]
    exact, f1 = ([scores[name] for scores in each] for name in ("exact_match", "f1"))
    answered = [bool(question.answers) for question in questions]
    found: dict[str, float] = {}
    for prefix, wanted in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        rows = [row for row, has_answer in enumerate(answered) if has_answer in wanted]
        if rows:
            found |= {
                f"{prefix}exact": sum(exact[row] for row in rows) / len(rows),
                f"{prefix}f1": sum(f1[row] for row in rows) / len(rows),
                f"{prefix}total": len(rows),
            }
    given = [bool(texts[question.id]) for question in questions]
    for name, scores in (("exact", exact), ("f1", f1)):
        found |= {f"best_{name}": _best(scores, answered, given), f"best_{name}_thresh": 0.0}
    return found


def _best(scores: Sequence[float], answered: Sequence[bool], given: Sequence[bool]) -> float:
    """The best score of giving the answers to the first questions only, for any number of them."""
    start = 100.0 * answered.count(False)
    changes = [
        score if has_answer else (-100.0 if text else 0.0)
        for score, has_answer, text in zip(scores, answered, given, strict=True)
    ]
    return max(accumulate(changes, initial=start)) / len(scores)
