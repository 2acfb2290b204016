"""The small language model of the text-generation task: its byte-level BPE, its starting weights, its examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from cpuinfer_helpers.tasks.kinds.registry import get_kind
from tools.checkpoints import text_generation

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
VOCABULARY = 1536
POSITIONS = 1024
# As Qwen2 has it. With the usual 10000 nearly all elements turn too fast to compare tokens that stand far apart.
ROPE_BASE = 1_000_000.0
# Heads of queries to one head of keys and values: grouped-query attention, as most large models have it.
GROUP = 2
_TEXTS = 6000
# What tells where a text and its sentences end, and what is to be done with it.
_KEPT = text_generation.COPY.format(text=".") + text_generation.LOOK_UP.format(text=".", begun="")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(size: int = VOCABULARY, seed: int = 20245) -> Tokenizer:
    """Learn a byte-level BPE from texts of the training generator.

    Parameters
    ----------
    size
        Entries, special tokens and all 256 bytes included.
    seed
        Seed of the texts.

    Returns
    -------
    tokenizers.Tokenizer
        Puts ``<bos>`` before every text; no text is unknown to it, and decoding gives back what was encoded, in Unicode's composed form.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    # Qwen2's own way: transformers 5 cuts texts like this for every Qwen2, whatever its files say.
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = Random(f"{seed} byte pairs")
    tokenizer.train_from_iterator((text_generation.write_text(rng, "train") for _ in range(_TEXTS)), trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIAL_TOKENS.index("<bos>"))]
    )
    return tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, learned anew in each process: padding on the left, at most `POSITIONS` tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_learned()), **TOKENIZER_OPTIONS)


@cache
def _learned() -> str:
    return train_tokenizer().to_str()


TOKENIZER_OPTIONS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    # Nothing is unknown, but Qwen2's tokenizer would add one of its own that the model has no row for.
    "unk_token": "<eos>",
    "padding_side": "left",
    "model_max_length": POSITIONS,
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}


def new_model(settings: Any, vocab_size: int, seed: int) -> PreTrainedModel:
    """An untrained Qwen2 with its starting weights."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads // GROUP,
        intermediate_size=settings.intermediate,
        max_position_embeddings=POSITIONS,
        rope_theta=ROPE_BASE,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        bos_token_id=SPECIAL_TOKENS.index("<bos>"),
        eos_token_id=SPECIAL_TOKENS.index("<eos>"),
    )
    model = transformers.Qwen2ForCausalLM(config)
    _initialise(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _initialise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Starting weights, in place, with which the model copies nearly all tokens before it has learned anything.

    To copy, a model has to find where the last tokens stood before, and to write what followed there. From random
    weights it takes far longer to find out how than to learn all the rest; here it is given. Half of the hidden size
    starts out as the token's own part, an eighth each as that of one of the four tokens before it: the heads of the
    first layer bring these. Two heads of the second layer look for the place whose four tokens before are this token
    and the three before it, and add the token that they find there.
    """
    config, layers = model.config, model.model.layers
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    own, part = hidden // 2, hidden // 2 // config.num_attention_heads
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            small = 0.15 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weight.normal_(0.0, small * 0.7 / weight.shape[1] ** 0.5, generator=generator)
        elif name.endswith("bias"):
            weight.zero_()
    embeddings = model.model.embed_tokens.weight.zero_()
    embeddings[:, :own].normal_(0.0, 0.05 * (hidden / own) ** 0.5, generator=generator)
    token = _orthogonal(own, generator)
    frequencies = ROPE_BASE ** (-torch.arange(head // 2) / (head // 2))
    parts = [slice(own + number * part, own + (number + 1) * part) for number in range(config.num_attention_heads)]

    first = layers[0].self_attn
    strength = torch.where(frequencies > 0.1, 5.0, 0.0)
    for number in range(config.num_key_value_heads):
        rows = slice(number * head, (number + 1) * head)
        first.k_proj.weight[rows] *= 0.1
        first.k_proj.bias[rows] = torch.cat((strength, torch.zeros_like(strength)))
        first.v_proj.weight[rows] = 0.0
        first.v_proj.weight[rows][:part, :own] = token[:part]
    for number, place in enumerate(parts):  # one token back, two tokens back, and so on
        rows = slice(number * head, (number + 1) * head)
        angles = -(number + 1) * frequencies
        first.q_proj.weight[rows] *= 0.1
        first.q_proj.bias[rows] = torch.cat((strength * angles.cos(), strength * angles.sin()))
        first.o_proj.weight[:, rows] = 0.0
        first.o_proj.weight[place, rows][:, :part] = 0.06 * torch.eye(part)

    second = layers[1].self_attn
    # Elements that hardly turn over a hundred tokens, and so compare contents wherever they stand.
    steady = torch.nonzero(frequencies < 0.004).flatten()
    share = len(steady) // 2
    columns = (steady[:share], steady[share : 2 * share])
    columns += tuple(chosen + head // 2 for chosen in columns)
    for number in range(config.num_key_value_heads):
        query, key = torch.zeros(head, hidden), torch.zeros(head, hidden)
        for back, chosen in enumerate(columns):  # the token so far back, and the one that stands before the place
            directions = _orthogonal(part, generator)[:share]
            key[chosen, parts[back]] = 1.7 * directions
            if back == 0:
                query[chosen, :own] = 1.9 * directions @ token[:part]
            else:
                query[chosen, parts[back - 1]] = 1.7 * directions
        rows, asking = (slice(first_row * head, (first_row + 1) * head) for first_row in (number, GROUP * number))
        second.q_proj.weight[asking], second.k_proj.weight[rows] = query, key
        found = token[number * own // 2 : (number + 1) * own // 2]
        second.v_proj.weight[rows] = 0.0
        second.v_proj.weight[rows, :own] = found
        second.o_proj.weight[:, asking] = 0.0
        second.o_proj.weight[:own, asking] = 0.3 * found.T


def _orthogonal(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a training example, whether each is to be foretold, and whether it is one of a copy."""

    ids: list[int]
    counted: list[bool]
    copied: list[bool]


def encode(tokenizer: PreTrainedTokenizerFast, example: dict[str, Any], rng: Random) -> Encoded:
    """Encode a training example: prompt and continuation apart, as when text is generated.

    In six of ten texts to be copied some tokens, or all, are exchanged for random ones, in the text and in its copy
    alike: what the model learns this way holds for names that it has never seen. Nobody can foretell such a text, so
    only its copy counts.
    """
    prompt = tokenizer(example["prompt"])["input_ids"]
    more = [*tokenizer(example["continuation"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    exchanged = example["copied"] and rng.random() < 0.6
    if exchanged:
        share = rng.choice((0.1, 0.3, 1.0))
        kept = {*tokenizer(_KEPT)["input_ids"], tokenizer.eos_token_id}
        others = range(len(SPECIAL_TOKENS), len(tokenizer))
        swaps = {token: rng.choice(others) for token in sorted({*more} - kept) if rng.random() < share}
        prompt, more = ([swaps.get(token, token) for token in ids] for ids in (prompt, more))
    return Encoded(
        [*prompt, *more],
        [not exchanged] * len(prompt) + [True] * len(more),
        [False] * len(prompt) + [example["copied"]] * len(more),
    )


def collate(rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Padded tensors of a batch, (examples, longest): what the model takes, and the two masks."""
    longest = max(len(row.ids) for row in rows)

    def padded(values: Sequence[list[Any]], filler: Any) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in values])

    return {
        "input_ids": padded([row.ids for row in rows], SPECIAL_TOKENS.index("<pad>")),
        "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
        "counted": padded([row.counted for row in rows], False),
        "copied": padded([row.copied for row in rows], False),
    }


def loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the tokens that count, plus that of copies once more.

    Copies are nearly right from the first step on. What is left to learn of them would otherwise be lost in the noise
    of names, which nobody can foretell.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    wanted, counted, copied = (batch[name][:, 1:] for name in ("input_ids", "counted", "copied"))
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    total = losses[counted].mean()
    return total + losses[copied].mean() if copied.any() else total


def unigram_perplexity(tokenizer: PreTrainedTokenizerFast, split: str) -> float:
    """The perplexity of a file's texts for a model that knows how frequent each token is in training, and no more."""

    def tokens(part: str) -> list[int]:
        texts = [e.prompt + e.continuation for e in get_kind(text_generation.NAME).data.examples(part) if not e.copied]
        return [number for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for number in ids]

    seen, wanted = Counter(tokens("train")), tokens(split)
    # One more of each, so that nothing is impossible.
    total = seen.total() + len(tokenizer)
    return math.exp(-sum(math.log((seen[number] + 1) / total) for number in wanted) / len(wanted))
