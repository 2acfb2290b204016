"""The WordPiece vocabulary that the three offline tasks share."""

from __future__ import annotations

import string
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cpuinfer_helpers.tasks.data_files import DATA
from tools.checkpoints import question_answering, text_classification, token_classification, words

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZE = 4700
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + "–—‘’“”…°€£×·•½§µßæøþðłœı"


def training_text(seed: int = 20243) -> list[str]:
    """Text drawn from the training generators, plus the word lists, from which the vocabulary is learned."""
    rng = Random(f"{seed} vocabulary")
    lines = [
        " ".join(str(part) for part in (question.context, question.question))
        for question, _ in zip(question_answering.stream(rng, (3, 8), 1), range(4000), strict=False)
    ]
    lines += [example["text"] for example, _ in zip(text_classification.stream(rng), range(3000), strict=False)]
    lines += [
        " ".join(example["tokens"]) for example, _ in zip(token_classification.stream(rng), range(3000), strict=False)
    ]
    verbs = [form for forms in words.VERBS + words.PROCESSES for form in forms]
    nouns = words.AGENTS + words.OBJECTS + words.NATURE + words.ABSTRACT
    listed = words.COMMON + words.ADJECTIVES + words.MATERIALS + verbs + nouns
    # Listed names are left out: names are then cut into pieces in training just as unknown ones are later.
    names = words.every_name("train")
    lines = [" ".join(word for word in line.split() if word.strip(".,?;:'\"s") not in names) for line in lines]
    # Often enough that each of these words becomes one piece.
    return lines + [" ".join(listed + nouns)] * 60


def train_vocabulary(size: int = SIZE, seed: int = 20243) -> list[str]:
    """Learn a lower-case WordPiece vocabulary from the training text.

    Parameters
    ----------
    size
        Most entries wanted, special tokens included; numbers are left out afterwards.
    seed
        Seed of the text.

    Returns
    -------
    list of str
        Entries in the order of their ids; ``[PAD]`` is 0. Every printable ASCII character has an entry, alone and as
        a continuation, so that ordinary text never becomes ``[UNK]``.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Room for the characters, most of which the training text holds too.
    trainer = trainers.WordPieceTrainer(vocab_size=size - 202, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(training_text(seed), trainer=trainer)
    learned = set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS)
    letters = string.ascii_lowercase + string.digits
    characters = list(_CHARACTERS) + ["##" + letter for letter in letters] + ["##ß", "##æ", "##ø", "##ł", "##œ"]
    # No numbers of three digits or more: all years are then cut in the same way, those of training and new ones.
    learned = {entry for entry in learned if sum(character.isdigit() for character in entry) < 3}
    # In alphabetical order: the order of equally frequent entries differs between versions of the library.
    capitals = list(string.ascii_uppercase) + ["##" + letter for letter in string.ascii_uppercase]
    # Capitals come last, for the task that needs them: "Lisbon" is then "L" and pieces of small letters.
    return list(SPECIAL_TOKENS) + sorted(learned.union(characters)) + capitals


def make_tokenizer(task_name: str = "question-answering", vocab_file: Path = DATA / "vocab.txt") -> BertTokenizerFast:
    """The tokenizer of one offline checkpoint, with at most 512 tokens a text.

    Parameters
    ----------
    task_name
        For ``"token-classification"`` the text keeps its capitals, which tell names; for the other tasks it is put in
        small letters, as by ``bert-base-uncased``. The vocabulary is the same.
    vocab_file
        One entry a line.

    Returns
    -------
    BertTokenizerFast
    """
    from transformers import BertTokenizerFast

    with open(vocab_file, encoding="utf-8") as lines:
        entries = {line.rstrip("\n"): number for number, line in enumerate(lines)}
    options = {"do_lower_case": task_name != "token-classification", "strip_accents": True, "model_max_length": 512}
    # transformers 5 takes the entries themselves; transformers 4 takes the file.
    tokenizer = BertTokenizerFast(vocab_file=str(vocab_file), **options)
    if len(tokenizer) != len(entries):
        tokenizer = BertTokenizerFast(vocab=entries, **options)
    return tokenizer
