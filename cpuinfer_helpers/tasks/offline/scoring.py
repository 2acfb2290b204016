"""Scores of the offline checkpoints, and what guessing would score."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_SEQ_LENGTH, DOC_STRIDE, MAX_ANSWER_LENGTH = 384, 128, 30


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's rule for comparing answers."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of two answers, 0 to 1 (SQuAD's F1)."""
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(answer).split()
    common = sum((collections.Counter(predicted) & collections.Counter(expected)).values())
    if not common:
        return float(predicted == expected)
    return 2 * common / (len(predicted) + len(expected))


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 in percent, each prediction against the best of its accepted answers."""
    exact = [max(normalise_answer(p) == normalise_answer(a) for a in accepted)
             for p, accepted in zip(predictions, answers, strict=True)]
    f1 = [max(answer_f1(p, a) for a in accepted) for p, accepted in zip(predictions, answers, strict=True)]
    return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * sum(f1) / len(f1)}


def squad_entries(squad: dict[str, Any]) -> list[dict[str, Any]]:
    """Questions of a SQuAD file, flat: id, context, question, answers."""
    return [{"context": paragraph["context"], **entry} for article in squad["data"]
            for paragraph in article["paragraphs"] for entry in paragraph["qas"]]


def _best_span(start: torch.Tensor, end: torch.Tensor, allowed: torch.Tensor) -> tuple[float, int, int]:
    """Highest start + end logit with start <= end < start + MAX_ANSWER_LENGTH, inside the context."""
    blocked = torch.where(allowed, 0.0, -1e4)
    scores = (start + blocked).unsqueeze(1) + (end + blocked).unsqueeze(0)
    lengths = torch.ones_like(scores, dtype=torch.bool).triu().tril(MAX_ANSWER_LENGTH - 1)
    scores = scores.masked_fill(~lengths, -1e9)
    best = int(scores.argmax())
    return float(scores.flatten()[best]), best // scores.shape[1], best % scores.shape[1]


@torch.no_grad()
def answer_questions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, entries: Sequence[dict[str, Any]],
                     batch_size: int = 16) -> list[str]:
    """The model's answer to each question: the best span over all windows, as in the guide's ``run_qa``.

    Parameters
    ----------
    model
        A question-answering model in evaluation mode.
    tokenizer
        Its fast tokenizer.
    entries
        From `squad_entries`.
    batch_size
        Windows per call.

    Returns
    -------
    list of str
        One substring of the context per question.
    """
    encoded = tokenizer([e["question"] for e in entries], [e["context"] for e in entries], truncation="only_second",
                        max_length=MAX_SEQ_LENGTH, stride=DOC_STRIDE, return_overflowing_tokens=True,
                        return_offsets_mapping=True)
    windows = list(zip(encoded["overflow_to_sample_mapping"], encoded["offset_mapping"], strict=True))
    best: dict[int, tuple[float, str]] = {}
    by_length = sorted(range(len(windows)), key=lambda index: len(encoded["input_ids"][index]))
    for position in range(0, len(by_length), batch_size):
        chosen = by_length[position:position + batch_size]
        inputs = {key: pad_sequence([torch.tensor(encoded[key][index]) for index in chosen], batch_first=True)
                  for key in ("input_ids", "token_type_ids", "attention_mask")}  # zero is the padding of all three
        output = model(**inputs)
        for row, index in enumerate(chosen):
            sample, offsets = windows[index]
            length = len(offsets)
            allowed = torch.tensor([identity == 1 for identity in encoded.sequence_ids(index)])
            score, start, end = _best_span(output.start_logits[row, :length], output.end_logits[row, :length], allowed)
            text = entries[sample]["context"][offsets[start][0]:offsets[end][1]]
            if sample not in best or score > best[sample][0]:
                best[sample] = (score, text)
    return [best[sample][1] for sample in range(len(entries))]


@torch.no_grad()
def classify_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The label of each text."""
    labels = []
    for position in range(0, len(texts), 32):
        inputs = tokenizer(list(texts[position:position + 32]), padding=True, truncation=True, return_tensors="pt")
        labels += [model.config.id2label[number] for number in model(**inputs).logits.argmax(-1).tolist()]
    return labels


@torch.no_grad()
def tag_sentences(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[list[str]]) -> list[list[str]]:
    """A tag for each word of each sentence: the tag of its first piece."""
    tags = []
    for position in range(0, len(sentences), 32):
        inputs = tokenizer(list(sentences[position:position + 32]), is_split_into_words=True, padding=True,
                           truncation=True, return_tensors="pt")
        for row, numbers in enumerate(model(**inputs).logits.argmax(-1).tolist()):
            first: dict[int, str] = {}
            for number, word in zip(numbers, inputs.word_ids(row), strict=True):
                if word is not None:
                    first.setdefault(word, model.config.id2label[number])
            tags.append([first[word] for word in sorted(first)])
    return tags


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, last word) of each entity of a BIO sequence, as the CoNLL-2000 script reads it."""
    found, start = set(), 0
    previous = "O"
    for index, tag in enumerate([*tags, "O"]):
        continues = tag.startswith("I-") and previous != "O" and previous[2:] == tag[2:]
        if not continues:
            if previous != "O":
                found.add((previous[2:], start, index - 1))
            start = index
        previous = tag
    return found


def entity_f1(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 in percent over whole entities (CoNLL-2003's score)."""
    pairs = [(entities(p), entities(e)) for p, e in zip(predicted, expected, strict=True)]
    right = sum(len(p & e) for p, e in pairs)
    total = sum(len(p) + len(e) for p, e in pairs)
    return 200 * right / total if total else 100.0


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Share of right labels in percent."""
    return 100 * sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)
