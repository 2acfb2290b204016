"""Answers from logits by run_qa's rules, compared with those rules written out one pair at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cpuinfer_helpers.tasks.squad.answers import AnswerRules, find_answers
from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.squad.windows import Window, prepare_windows

CONTEXT = "the cat sat on the mat in the old house of Anna Smith by the river in Paris"


def pair_by_pair(question, windows, starts, ends, rules):
    """The documented rules without arrays: all pairs, then the order, then the probabilities."""
    pairs, null = [], None
    for window, start, end in zip(windows, starts, ends, strict=True):
        nothing = (start[0] + end[0], start[0], end[0], "")
        null = nothing if null is None or nothing[0] < null[0] else null
        best = [sorted(range(len(row)), key=lambda i, row=row: -row[i])[: rules.n_best] for row in (start, end)]
        for a in best[0]:
            for b in best[1]:
                inside = max(a, b) < len(window.offsets) and window.offsets[a] and window.offsets[b]
                if inside and a <= b < a + rules.max_answer_length:
                    text = question.context[window.offsets[a][0] : window.offsets[b][1]]
                    pairs.append((start[a] + end[b], start[a], end[b], text))
    if rules.may_have_no_answer:
        pairs.append(null)
    pairs = sorted(pairs, key=lambda pair: -pair[0])[: rules.n_best]
    if rules.may_have_no_answer and null not in pairs:
        pairs.append(null)
    if not any(pair[3] for pair in pairs):
        pairs.insert(0, (0.0, 0.0, 0.0, "empty"))
    weights = [math.exp(pair[0] - max(p[0] for p in pairs)) for pair in pairs]
    best = next((pair for pair in pairs if pair[3]), pairs[0]) if rules.may_have_no_answer else pairs[0]
    odds = null[0] - best[1] - best[2]
    text = "" if rules.may_have_no_answer and odds > rules.null_score_diff_threshold else best[3]
    return text, odds, [(pair[3], pair[1], pair[2], w / sum(weights)) for pair, w in zip(pairs, weights, strict=True)]


def made(tokenizer, seed, count=4):
    rng = np.random.default_rng(seed)
    questions = [Question(f"q{i}", "where was the cat ?", " ".join([CONTEXT] * (1 + i)), (), ()) for i in range(count)]
    windows = prepare_windows(questions, tokenizer, max_seq_length=40, doc_stride=8)
    logits = rng.normal(size=(2, len(windows), 44)).astype(np.float32)
    return questions, windows, *logits


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [None, 0.0, -3.0, 3.0])
@pytest.mark.parametrize(("n_best", "longest"), [(20, 30), (3, 2), (1, 1)])
def test_answers_are_those_of_the_rules(tokenizer, seed, threshold, n_best, longest):
    questions, windows, starts, ends = made(tokenizer, seed)
    rules = AnswerRules(n_best, longest, threshold is not None, threshold or 0.0)
    found = find_answers(questions, windows, starts, ends, rules)
    for number, question in enumerate(questions):
        mine = [i for i, window in enumerate(windows) if window.question_index == number]
        expected = pair_by_pair(question, [windows[i] for i in mine], starts[mine], ends[mine], rules)
        assert found.texts[question.id] == expected[0]
        records = found.n_best[question.id]
        assert [r["text"] for r in records] == [pair[0] for pair in expected[2]]
        for record, (_, start, end, probability) in zip(records, expected[2], strict=True):
            assert (record["start_logit"], record["end_logit"]) == (start, end)
            # Exponentials in single precision there, in double here.
            assert record["probability"] == pytest.approx(probability, rel=1e-5)
        if threshold is None:
            assert not found.null_odds
        else:
            assert found.null_odds[question.id] == pytest.approx(expected[1], abs=1e-6)


def test_both_kinds_of_answer_occur_in_these_tests(tokenizer):
    for threshold, empty in ((-30.0, True), (30.0, False)):
        questions, windows, starts, ends = made(tokenizer, 0)
        rules = AnswerRules(may_have_no_answer=True, null_score_diff_threshold=threshold)
        assert {not text for text in find_answers(questions, windows, starts, ends, rules).texts.values()} == {empty}


def test_where_no_part_can_be_an_answer_the_text_says_so():
    question = Question("q", "?", "a b", (), ())
    window = Window(0, {}, (None, None, (0, 1), (2, 3)))
    starts, ends = np.zeros((1, 4), dtype=np.float32), np.zeros((1, 4), dtype=np.float32)
    starts[0, 3], ends[0, 2] = 9, 9  # the only pair that is considered ends before it starts
    found = find_answers([question], [window], starts, ends, AnswerRules(n_best=1))
    assert found.texts == {"q": "empty"}
    assert found.n_best == {"q": [{"text": "empty", "start_logit": 0.0, "end_logit": 0.0, "probability": 1.0}]}
