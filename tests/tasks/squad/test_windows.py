"""Windows over long contexts, answers mapped back to text, exact match and F1."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from cpuinfer_helpers import InputError
from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.squad.windows import Window, best_answers, prepare_windows, score_answers

SHORT = Question("short", "Where is the cat?", "The cat sat on the mat.", ("on the mat",), (12,))
SENTENCES = ("The old river runs through a CITY.", "Anna's cat sat in the red-house, in 1889!", "Zoë works there...")
LONG = Question("long", "  Who built it?", "  ".join(SENTENCES[i % 3] for i in range(14)), (), ())
SIZES = {"max_seq_length": 40, "doc_stride": 10}


def _tokens_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _context_ids(window: Window) -> list[int]:
    return [t for t, o in zip(window.inputs["input_ids"], window.offsets, strict=True) if o is not None]


def test_short_context_is_one_window(tokenizer: Any) -> None:
    (window,) = prepare_windows([SHORT], tokenizer, **SIZES)
    question, context = _tokens_of(tokenizer, SHORT.question), _tokens_of(tokenizer, SHORT.context)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert window.inputs["input_ids"] == [first, *question, last, *context, last]
    assert window.inputs["token_type_ids"] == [0] * (len(question) + 2) + [1] * (len(context) + 1)
    assert set(window.inputs["attention_mask"]) == {1}
    assert [o is not None for o in window.offsets] == [False] * (len(question) + 2) + [True] * len(context) + [False]


@pytest.mark.parametrize("question", [SHORT, LONG])
def test_offsets_give_the_very_text_of_every_token(tokenizer: Any, question: Question) -> None:
    for window in prepare_windows([question], tokenizer, **SIZES):
        for token, offset in zip(window.inputs["input_ids"], window.offsets, strict=True):
            if offset is None:
                continue
            written = question.context[offset[0] : offset[1]].lower().replace("ë", "e")
            piece = tokenizer.convert_ids_to_tokens(token).removeprefix("##")
            assert written == piece != "[UNK]"


def test_windows_of_a_long_context_overlap_by_the_stride_and_reach_the_end(tokenizer: Any) -> None:
    windows = prepare_windows([LONG], tokenizer, **SIZES)
    whole = _tokens_of(tokenizer, LONG.context)
    room = 40 - len(_tokens_of(tokenizer, LONG.question.lstrip())) - 3
    assert len(windows) == -(-(len(whole) - 10) // (room - 10)) > 2
    parts = [_context_ids(window) for window in windows]
    for number, part in enumerate(parts):
        start = number * (room - 10)
        assert part == whole[start : start + room]
    assert all(len(window.inputs["input_ids"]) == 40 for window in windows[:-1])
    for before, after in pairwise(parts):
        assert before[-10:] == after[:10]
    assert parts[-1][-1] == whole[-1]


def test_windows_know_their_question(tokenizer: Any) -> None:
    windows = prepare_windows([SHORT, LONG, SHORT], tokenizer, **SIZES)
    indexes = [window.question_index for window in windows]
    assert indexes == sorted(indexes)
    assert indexes.count(0) == indexes.count(2) == 1
    assert indexes.count(1) > 2


def test_default_sizes_are_those_of_the_guide(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "model_max_length", 512)
    windows = prepare_windows([Question("q", "Who?", "the cat . " * 200, (), ())], tokenizer)
    assert [len(window.inputs["input_ids"]) for window in windows[:-1]] == [384] * (len(windows) - 1)
    assert _context_ids(windows[0])[-128:] == _context_ids(windows[1])[:128]
    first, second = windows[0].offsets[-2], windows[1].offsets[windows[1].inputs["token_type_ids"].index(1) + 127]
    assert first == second


@pytest.mark.parametrize(
    ("questions", "sizes", "message"),
    [
        ([], SIZES, "no questions"),
        ([SHORT], {"max_seq_length": 65, "doc_stride": 10}, "65 is more than the 64 tokens"),
        ([Question("wide", "the " * 50, "The cat.", (), ())], SIZES, "'wide' has 50 tokens and leaves room for 0"),
        ([SHORT], {"max_seq_length": 20, "doc_stride": 12}, r"'short' has 5 tokens.*room for 12.*doc_stride 12"),
    ],
)
def test_sizes_that_cannot_be_used(tokenizer: Any, questions: list[Question], sizes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_windows(questions, tokenizer, **sizes)


def _random_logits(windows: list[Window], seed: int, padding: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(window.offsets) + padding for window in windows]
    return [(torch.randn(n, generator=generator), torch.randn(n, generator=generator)) for n in sizes]


def _by_brute_force(
    question: Question, number: int, windows: list[Window], logits: list, longest: int
) -> list[tuple[float, int, int]]:
    found = []
    for window, (starts, ends) in zip(windows, logits, strict=True):
        if window.question_index != number:
            continue
        for i, first in enumerate(window.offsets):
            for j, last in enumerate(window.offsets):
                if first is not None and last is not None and 0 <= j - i < longest:
                    found.append((starts[i].item() + ends[j].item(), first[0], last[1]))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("longest", [1, 4, 30])
def test_best_answers_are_those_of_a_search_through_everything(tokenizer: Any, seed: int, longest: int) -> None:
    questions = [SHORT, LONG]
    windows = prepare_windows(questions, tokenizer, **SIZES)
    logits = _random_logits(windows, seed, padding=7)
    found = best_answers(questions, windows, logits, n_best=1000, max_answer_length=longest)
    for number, question in enumerate(questions):
        expected = _by_brute_force(question, number, windows, logits, longest)[:1000]
        # Sums of two float32 in float64: exact on either side.
        assert [(a.score, a.start, a.end) for a in found[number]] == expected
        assert all(a.text == question.context[a.start : a.end] for a in found[number])


def test_only_the_best_starts_and_ends_are_combined(tokenizer: Any) -> None:
    windows = prepare_windows([SHORT], tokenizer, **SIZES)
    logits = _random_logits(windows, 3)
    (few,) = best_answers([SHORT], windows, logits, n_best=4)
    starts, ends = (set(part.topk(4).indices.tolist()) for part in logits[0])
    spans = windows[0].offsets
    allowed = {(spans[i][0], spans[j][1]) for i in starts for j in ends if spans[i] and spans[j] and i <= j}
    assert {(a.start, a.end) for a in few} <= allowed
    assert 1 <= len(few) <= 4


def test_best_answer_may_come_from_any_window(tokenizer: Any) -> None:
    windows = prepare_windows([LONG], tokenizer, **SIZES)
    last = windows[-1]
    place = next(i for i, o in reversed(list(enumerate(last.offsets))) if o is not None)
    logits = [(torch.zeros(len(w.offsets)), torch.zeros(len(w.offsets))) for w in windows]
    logits[-1][0][place], logits[-1][1][place] = 5.0, 5.0
    answer = best_answers([LONG], windows, logits)[0][0]
    assert (answer.start, answer.end) == last.offsets[place]
    assert answer.end == len(LONG.context)
    assert answer.score == 10.0


def test_padding_and_question_are_never_the_answer(tokenizer: Any) -> None:
    (window,) = prepare_windows([SHORT], tokenizer, **SIZES)
    logits = _random_logits([window], 0, padding=5)
    for part in logits[0]:
        part[:3] = 50.0
        part[-5:] = 100.0
    (answers,) = best_answers([SHORT], [window], logits, n_best=10)
    assert all(a.score < 40 for a in answers)
    assert answers[0].text


def test_no_possible_span_is_an_empty_answer(tokenizer: Any) -> None:
    (window,) = prepare_windows([SHORT], tokenizer, **SIZES)
    size = len(window.offsets)
    start, end = torch.zeros(size), torch.zeros(size)
    start[size - 2], end[size - 4] = 9.0, 9.0
    (answers,) = best_answers([SHORT], [window], [(start, end)], n_best=1)
    assert [a.text for a in answers] == [""]


def test_logits_in_bfloat16_can_be_used(tokenizer: Any) -> None:
    windows = prepare_windows([SHORT], tokenizer, **SIZES)
    logits = [(s.bfloat16(), e.bfloat16()) for s, e in _random_logits(windows, 1)]
    assert best_answers([SHORT], windows, logits)[0][0].text in SHORT.context


def _asked(*answers: str) -> Question:
    return Question("q", "Who?", "context", answers, tuple(0 for _ in answers))


@pytest.mark.parametrize(
    ("accepted", "predicted", "exact_match", "f1"),
    [
        (("Paris",), "Paris", 100, 100),
        # Articles, case, punctuation and white space do not count.
        (("the Eiffel Tower",), "Eiffel tower.", 100, 100),
        (("an  apple",), "The apple!", 100, 100),
        (("U.S.A.",), "USA", 100, 100),
        # Two of three words right, both of two: 2 * (2/3 * 1) / (2/3 + 1).
        (("old bridge",), "old stone bridge", 0, 80),
        # One common word of one and of four: 2 * (1 * 1/4) / (1 + 1/4).
        (("in city of Paris",), "Paris", 0, 40),
        (("Paris",), "London", 0, 0),
        (("Paris",), "", 0, 0),
        # Words count as often as they stand there: one common, 1/3 and 1/1.
        (("ha",), "ha ha ha", 0, 50),
        # The best of the accepted answers counts.
        (("in the year 1889", "1889"), "1889", 100, 100),
        (("red house in Paris", "house"), "red house", 0, 100 * 2 / 3),
        # Without an accepted answer, as SQuAD 2.0 has it, only silence is right.
        ((), "", 100, 100),
        ((), "Paris", 0, 0),
    ],
)
def test_scores_worked_out_by_hand(accepted: tuple[str, ...], predicted: str, exact_match: float, f1: float) -> None:
    scores = score_answers([_asked(*accepted)], [predicted])
    # torchmetrics computes in float32.
    assert scores == pytest.approx({"exact_match": exact_match, "f1": f1}, abs=1e-4)


def test_scores_are_means_over_the_questions() -> None:
    questions = [Question(str(i), "Who?", "context", (a,), (0,)) for i, a in enumerate(["Paris", "old bridge", "cat"])]
    scores = score_answers(questions, ["Paris", "old stone bridge", "dog"])
    assert scores == pytest.approx({"exact_match": 100 / 3, "f1": 60.0}, abs=1e-4)


def test_as_many_answers_as_questions_are_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_answers([_asked("Paris")], [])
