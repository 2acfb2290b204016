"""Training of one offline checkpoint from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from cpuinfer_helpers.tasks.kinds.registry import get_kind
from tools.checkpoints import (
    language_model,
    question_answering,
    text_classification,
    text_generation,
    token_classification,
    vocabulary,
    words,
)
from tools.checkpoints.initialise import initialise
from tools.checkpoints.muon import Muon

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Example:
    """Token ids with their segments and labels; `labels` is (start, end), one class, or one tag a token.

    For questions, `kinds` holds what each token is part of (see `HintHeads`), `sentence` whether it stands in the
    sentence that answers. For texts to go on with, `text` holds all there is.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    labels: list[int]
    kinds: list[int] | None = None
    sentence: list[int] | None = None
    text: language_model.Encoded | None = None


@dataclass(frozen=True)
class Settings:
    """How one checkpoint is built and trained. `tokens` counts padded tokens per batch, `warm_up` is a share of them."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    examples: int
    tokens: int
    learning_rate: float
    matrix_rate: float
    swap_share: float = 0.0
    warm_up: float = 0.1


# Chosen by trial: the first three trainings together take under two minutes on two free cores, the last a quarter of an
# hour on one.
SETTINGS = {
    "question-answering": Settings(
        hidden=128,
        layers=3,
        heads=4,
        intermediate=256,
        examples=25000,
        tokens=2000,
        learning_rate=2.5e-3,
        matrix_rate=4e-3,
        swap_share=0.35,
    ),
    "text-classification": Settings(
        hidden=64,
        layers=2,
        heads=4,
        intermediate=256,
        examples=56000,
        tokens=1200,
        learning_rate=6e-3,
        matrix_rate=6e-3,
    ),
    "token-classification": Settings(
        hidden=64,
        layers=3,
        heads=4,
        intermediate=256,
        examples=36000,
        tokens=1200,
        learning_rate=2e-3,
        matrix_rate=4e-3,
    ),
    "text-generation": Settings(
        hidden=256,
        layers=4,
        heads=4,
        intermediate=640,
        examples=20000,
        tokens=3000,
        learning_rate=3e-3,
        matrix_rate=2e-3,
        warm_up=0.05,
    ),
}
LABELS = {"text-classification": text_classification.LABELS, "token-classification": token_classification.LABELS}


def make_tokenizer(task_name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of one offline checkpoint."""
    return (
        language_model.make_tokenizer() if task_name == text_generation.NAME else vocabulary.make_tokenizer(task_name)
    )


def new_model(task_name: str, vocab_size: int, seed: int) -> PreTrainedModel:
    """An untrained model for a task, with its starting weights."""
    import transformers

    settings = SETTINGS[task_name]
    if task_name == text_generation.NAME:
        return language_model.new_model(settings, vocab_size, seed)
    labels = LABELS.get(task_name)
    extra = (
        {}
        if labels is None
        else {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    )
    config = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        **extra,
    )
    model = getattr(transformers, get_kind(task_name).auto_class).from_config(config)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


@dataclass(frozen=True)
class Pieces:
    """Ids of the vocabulary by what they can stand for: beginnings of words, continuations, and what is never swapped."""

    starts: list[int]
    endings: list[int]
    continuations: frozenset[int]
    kept: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Pieces:
        """Sort a tokenizer's vocabulary."""
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        starts = [number for number, piece in enumerate(pieces) if number > 4 and piece.isalpha() and piece.islower()]
        endings = [number for number, piece in enumerate(pieces) if piece.startswith("##")]
        common = set(words.COMMON)
        kept = [
            number
            for number, piece in enumerate(pieces)
            if number <= 4 or piece in common or not (piece.isalpha() or piece.startswith("##"))
        ]
        return cls(starts, endings, frozenset(endings), frozenset(kept))

    def exchange(self, number: int, rng: Random) -> int:
        """A random entry of the same sort: a continuation for a continuation."""
        return rng.choice(self.endings if number in self.continuations else self.starts)


def question_examples(tokenizer: PreTrainedTokenizerBase, count: int, rng: Random) -> list[Example]:
    """Encoded questions: mostly short contexts, some full windows, some windows without the answer."""
    short = question_answering.stream(rng, (1, 4))
    middle = question_answering.stream(rng, (4, 10))
    long = question_answering.stream(rng, (20, 34), 6)
    questions = [next(rng.choices((short, middle, long), (0.72, 0.25, 0.03))[0]) for _ in range(count)]
    encoded = tokenizer(
        [q.question for q in questions],
        [q.context for q in questions],
        truncation="only_second",
        max_length=384,
        stride=128,
        return_overflowing_tokens=True,
    )
    examples = []
    for index, sample in enumerate(encoded["overflow_to_sample_mapping"]):
        question = questions[sample]
        first = encoded.char_to_token(index, question.answer_start, 1)
        last = encoded.char_to_token(index, question.answer_start + len(question.answer) - 1, 1)
        if first is None or last is None:
            first = last = 0
        kinds, sentence = _hints(encoded, index, question)
        examples.append(
            Example(encoded["input_ids"][index], encoded["token_type_ids"][index], [first, last], kinds, sentence)
        )
    return examples


def _hints(encoded: BatchEncoding, index: int, question: question_answering.Question) -> tuple[list[int], list[int]]:
    """For each token: the class of the value that it begins or goes on, and whether its sentence answers."""
    kinds, sentence = [IGNORED], [IGNORED]
    begins = {start: (end, kind) for start, end, kind in question.values}
    end, kind = -1, 0
    for (start, _), segment in zip(encoded.encodings[index].offsets[1:], encoded.sequence_ids(index)[1:], strict=True):
        if segment != 1:
            kinds.append(IGNORED)
            sentence.append(IGNORED)
            continue
        if start in begins:
            end, kind = begins[start][0], 1 + 2 * question_answering.KINDS.index(begins[start][1])
            kinds.append(kind)
        else:
            kinds.append(kind + 1 if start < end else 0)
        sentence.append(int(question.sentence[0] <= start < question.sentence[1]))
    kinds[0] = 1 + 2 * question_answering.KINDS.index(question.asked)  # [CLS]: the kind asked for
    return kinds, sentence


class HintHeads(torch.nn.Module):
    """What training tells the middle of the question-answering model; thrown away afterwards.

    From the second layer on, each token should know what kind of value it belongs to, [CLS] which kind is asked for,
    and each token of the context whether its sentence answers. Learned from the answer alone, this takes far longer.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.kind = torch.nn.Linear(hidden, 1 + 2 * len(question_answering.KINDS))
        self.sentence = torch.nn.Linear(hidden, 2)

    def loss(self, hidden_states: Sequence[torch.Tensor], kinds: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """Sum of the cross entropies; hidden states are (examples, tokens, hidden), labels (examples, tokens)."""
        middle = hidden_states[-2]
        entropy = torch.nn.functional.cross_entropy
        return entropy(self.kind(middle).flatten(0, 1), kinds.flatten(), ignore_index=IGNORED) + entropy(
            self.sentence(middle).flatten(0, 1), sentence.flatten(), ignore_index=IGNORED
        )


def text_examples(tokenizer: PreTrainedTokenizerBase, count: int, rng: Random) -> list[Example]:
    """Encoded reviews."""
    reviews = [example for example, _ in zip(text_classification.stream(rng), range(count), strict=False)]
    encoded = tokenizer([review["text"] for review in reviews], truncation=True)
    return [
        Example(ids, types, [text_classification.LABELS.index(review["label"])])
        for ids, types, review in zip(encoded["input_ids"], encoded["token_type_ids"], reviews, strict=True)
    ]


def token_examples(tokenizer: PreTrainedTokenizerBase, count: int, rng: Random) -> list[Example]:
    """Encoded sentences; only the first piece of each word has a label.

    The pieces of many names, and of some ordinary words, are exchanged for random ones: which pieces a name is made
    of must not be what tells it. The capital that begins it stays.
    """
    sentences = [example for example, _ in zip(token_classification.stream(rng), range(count), strict=False)]
    encoded = tokenizer([sentence["tokens"] for sentence in sentences], is_split_into_words=True, truncation=True)
    pieces = Pieces.of(tokenizer)
    examples = []
    for index, sentence in enumerate(sentences):
        share = rng.choice((0.0, 0.4, 0.8))
        ids, labels, previous, exchange = list(encoded["input_ids"][index]), [], None, False
        for position, word in enumerate(encoded.word_ids(index)):
            first = word is not None and word != previous
            if first:
                token, tag = sentence["tokens"][word], sentence["tags"][word]
                fixed = token in token_classification.FIXED or token.lower() in token_classification.COMMON
                exchange = not fixed and token.isalpha() and rng.random() < (share if tag != "O" else 0.4 * share)
            labels.append(token_classification.LABELS.index(sentence["tags"][word]) if first else IGNORED)
            if word is not None and exchange:
                if not first:
                    ids[position] = rng.choice(pieces.endings)
                elif token.islower():
                    ids[position] = rng.choice(pieces.starts)
            previous = word
        examples.append(Example(ids, encoded["token_type_ids"][index], labels))
    return examples


def generation_examples(tokenizer: PreTrainedTokenizerBase, count: int, rng: Random) -> list[Example]:
    """Encoded texts to go on with and to copy."""
    drawn = islice(text_generation.stream(rng), count)
    texts = [language_model.encode(tokenizer, example, rng) for example in drawn]
    return [Example(text.ids, [], [], text=text) for text in texts]


EXAMPLES: dict[str, Callable[[Any, int, Random], list[Example]]] = {
    "question-answering": question_examples,
    "text-classification": text_examples,
    "token-classification": token_examples,
    "text-generation": generation_examples,
}


def batches(examples: Sequence[Example], tokens: int, rng: Random) -> list[list[Example]]:
    """Batches of examples of like length, each at most `tokens` tokens with its padding, in random order."""
    order = sorted(examples, key=lambda example: len(example.input_ids) + 8 * rng.random())
    result: list[list[Example]] = [[]]
    for example in order:
        if (len(result[-1]) + 1) * len(example.input_ids) > tokens and result[-1]:
            result.append([])
        result[-1].append(example)
    rng.shuffle(result)
    return result


NAMED = frozenset(
    number
    for position, kind in enumerate(question_answering.KINDS)
    for number in (1 + 2 * position, 2 + 2 * position)
    if kind in ("person", "city", "country", "org", "river", "mountain", "bridge", "event", "called")
)


def swap_tokens(example: Example, rng: Random, share: float, pieces: Pieces) -> Example:
    """With probability `share`, put random tokens in the place of names and of what question and context share.

    Each is replaced everywhere alike, so the question stays answerable, but only by comparing tokens: what the model
    learns this way holds for words and names that the training text has never had.
    """
    if rng.random() >= share:
        return example
    pairs = list(zip(example.input_ids, example.token_type_ids, strict=True))
    asked = {token for token, segment in pairs if segment == 0}
    swappable = asked.intersection(token for token, segment in pairs if segment == 1)
    swappable.update(
        token for token, kind in zip(example.input_ids[1:], example.kinds[1:], strict=True) if kind in NAMED
    )
    strength = rng.choice((0.3, 0.7, 1.0))
    swaps = {token: pieces.exchange(token, rng) for token in sorted(swappable - pieces.kept) if rng.random() < strength}
    return replace(example, input_ids=[swaps.get(token, token) for token in example.input_ids])


def collate(task_name: str, batch: Sequence[Example], rng: Random) -> dict[str, torch.Tensor]:
    """Padded tensors of a batch, (examples, longest), int64."""
    if task_name == text_generation.NAME:
        return language_model.collate([example.text for example in batch])
    longest = max(len(example.input_ids) for example in batch)

    def padded(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    inputs = {
        "input_ids": padded([example.input_ids for example in batch], 0),
        "token_type_ids": padded([example.token_type_ids for example in batch], 0),
        "attention_mask": padded([[1] * len(example.input_ids) for example in batch], 0),
    }
    # Positions up to 511 are all trained, though most examples are short: contexts start at a random place.
    start = torch.tensor([[rng.randint(0, 511 - longest) if rng.random() < 0.5 else 0] for _ in batch])
    moved = inputs["token_type_ids"] if task_name == "question-answering" else torch.ones_like(inputs["input_ids"])
    inputs["position_ids"] = torch.arange(longest) + start * moved
    if task_name == "question-answering":
        inputs["start_positions"] = torch.tensor([example.labels[0] for example in batch])
        inputs["end_positions"] = torch.tensor([example.labels[1] for example in batch])
        inputs["kinds"] = padded([example.kinds for example in batch], IGNORED)
        inputs["sentence"] = padded([example.sentence for example in batch], IGNORED)
    elif task_name == "text-classification":
        inputs["labels"] = torch.tensor([example.labels[0] for example in batch])
    else:
        inputs["labels"] = padded([example.labels for example in batch], IGNORED)
    return inputs


def _rate(step: int, steps: int, share: float) -> float:
    warm_up = max(1, int(steps * share))
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / (steps - warm_up))) + 0.01)


def train(task_name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Train one model from scratch on examples drawn from the seeded generator.

    Parameters
    ----------
    task_name
        One of `SETTINGS`.
    tokenizer
        From `make_tokenizer`.
    seed
        Fixes the examples, their order and the starting weights.

    Returns
    -------
    PreTrainedModel
        The trained model, in evaluation mode, float32.
    """
    from tqdm.auto import tqdm

    settings, rng = SETTINGS[task_name], Random(f"{seed} training {task_name}")
    examples = EXAMPLES[task_name](tokenizer, settings.examples, rng)
    plan = batches(examples, settings.tokens, rng)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        torch.manual_seed(seed)
        model = new_model(task_name, len(tokenizer), seed).train()
        hints = HintHeads(settings.hidden) if task_name == "question-answering" else None
    parameters = [*model.parameters(), *(hints.parameters() if hints else ())]
    optimizers = _optimizers(model, hints, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(plan), settings.warm_up))
        for optimizer in optimizers
    ]
    pieces = Pieces.of(tokenizer) if settings.swap_share else None
    with torch.enable_grad(), tqdm(plan, desc=task_name, unit="batch") as progress:
        for batch in progress:
            if pieces is not None:
                batch = [swap_tokens(e, rng, settings.swap_share, pieces) for e in batch]
            loss = _loss(model, hints, collate(task_name, batch, rng))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            progress.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
    return model.eval()


def _optimizers(model: PreTrainedModel, hints: HintHeads | None, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, Adam for everything else."""
    matrices = [weight for name, weight in model.named_parameters() if ".layer" in name and weight.dim() == 2]
    chosen = {id(weight) for weight in matrices}
    others = [
        weight for weight in (*model.parameters(), *(hints.parameters() if hints else ())) if id(weight) not in chosen
    ]
    return [
        Muon(matrices, lr=settings.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def _loss(model: PreTrainedModel, hints: HintHeads | None, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    if "copied" in inputs:
        return language_model.loss(model, inputs)
    if hints is None:
        return model(**inputs).loss
    kinds, sentence = inputs.pop("kinds"), inputs.pop("sentence")
    output = model(**inputs, output_hidden_states=True)
    return output.loss + hints.loss(output.hidden_states, kinds, sentence)
