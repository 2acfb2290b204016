"""A starting point for small BERT models from which matching words is learned in a minute instead of hours.

A model trained from random weights spends most of its time finding out that a word of the question should look at the
same word of the context, and that neighbouring words matter. Here the first layer starts out doing just that, and
everything else is left to training: two heads compare the word parts of two tokens, two compare their positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import BertPreTrainedModel

SHARE_OF_POSITION = 4  # a quarter of the hidden size holds the position, one element the segment, the rest the word


def sinusoids(positions: int, size: int) -> torch.Tensor:
    """Sine and cosine of each position at frequencies from 1.6 to 0.01 radians, in pairs.

    Parameters
    ----------
    positions
        Number of positions.
    size
        Number of elements, even.

    Returns
    -------
    torch.Tensor
        float32, (positions, size).
    """
    frequencies = torch.logspace(math.log10(1.6), math.log10(0.01), size // 2)
    angles = torch.arange(positions).unsqueeze(1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=2).reshape(positions, size)


def shift(size: int, offset: int) -> torch.Tensor:
    """The (size, size) rotation R with R @ sinusoids(p) = sinusoids(p + offset)."""
    frequencies = torch.logspace(math.log10(1.6), math.log10(0.01), size // 2)
    rotation = torch.zeros(size, size)
    for pair, angle in enumerate(frequencies * offset):
        sine, cosine = angle.sin(), angle.cos()
        rotation[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = torch.stack(
            (torch.stack((cosine, sine)), torch.stack((-sine, cosine)))
        )
    return rotation


@torch.no_grad()
def initialise(model: BertPreTrainedModel, generator: torch.Generator) -> None:
    """Give a freshly made BERT model its starting weights, in place.

    Parameters
    ----------
    model
        A BERT model with a task head; at least four heads of attention.
    generator
        Source of randomness.
    """
    config, bert = model.config, model.bert
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embeddings" not in name:
            weight.normal_(0.0, 0.7 / math.sqrt(weight.shape[1]), generator=generator)
    position_size = min(hidden // SHARE_OF_POSITION, head) // 2 * 2
    word_size = hidden - position_size - 1
    words = bert.embeddings.word_embeddings.weight.zero_()
    words[:, :word_size].normal_(generator=generator)
    words[0].zero_()
    positions = bert.embeddings.position_embeddings.weight.zero_()
    place = slice(word_size, word_size + position_size)
    positions[:, place] = sinusoids(config.max_position_embeddings, position_size)
    segments = bert.embeddings.token_type_embeddings.weight.zero_()
    segments[0, -1], segments[1, -1] = 2.0, -2.0

    first = bert.encoder.layer[0].attention.self
    for number, favoured in ((0, 1.0), (1, -1.0)):  # same word: in the question, in the context
        rows = slice(number * head, (number + 1) * head)
        random = torch.randn(word_size, word_size, generator=generator)
        projection = torch.linalg.qr(random)[0][: head - 1]
        for linear in (first.query, first.key):
            linear.weight[rows] = 0.0
            linear.weight[rows][: head - 1, :word_size] = 1.3 * projection
        first.query.bias[(number + 1) * head - 1] = 3.0
        first.key.weight[(number + 1) * head - 1, -1] = favoured
    later = [layer.attention.self for layer in bert.encoder.layer[1:]]
    # (layer, head, offset, sharpness): the token before, the token after, and further on wide neighbourhoods
    looks = [(first, 2, -1, 2.0), (first, 3, 1, 2.0)]
    looks += [
        (layer, number, offset, sharp)
        for layer in later[:1]
        for number, offset, sharp in ((0, -4, 1.2), (1, 4, 1.2), (2, -2, 2.0))
    ]
    for layer, number, offset, sharpness in looks:
        rows = slice(number * head, number * head + position_size)
        for linear in (layer.query, layer.key):
            linear.weight[number * head : (number + 1) * head] = 0.0
        layer.query.weight[rows, place] = sharpness * shift(position_size, offset)
        layer.key.weight[rows, place] = sharpness * torch.eye(position_size)
