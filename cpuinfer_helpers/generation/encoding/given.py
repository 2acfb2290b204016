"""What an encoder reads while a step is verified: sources of several lengths, with padding and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cpuinfer_helpers.generation.encoding.sources import MASK, TOKENS, called, reads_mask, source_name, start_token
from cpuinfer_helpers.interface.copies import untouched

# Which share of each row of what an encoder reads is padding, on the right.
_HIDDEN = (0.0, 0.3, 0.5)


@dataclass(frozen=True)
class Given:
    """What an encoder reads for the texts.

    Attributes
    ----------
    name
        The argument that it is.
    source, mask
        For the three texts, (3, ...): of another length than the example's where the model takes that, two of them
        padded on the right; no mask where the model reads none.
    long_source, long_mask
        For the long text, (1, ...): of a third length.
    """

    name: str
    source: torch.Tensor
    mask: torch.Tensor | None
    long_source: torch.Tensor
    long_mask: torch.Tensor | None

    def rows(self, rows: slice) -> Sourced:
        """Those of some of the three texts."""
        return Sourced(self.name, self.source[rows], None if self.mask is None else self.mask[rows])

    @property
    def long(self) -> Sourced:
        """That of the long text."""
        return Sourced(self.name, self.long_source, self.long_mask)


@dataclass(frozen=True)
class Sourced:
    """What an encoder reads, a source for each row; see :class:`Given`."""

    name: str
    source: torch.Tensor
    mask: torch.Tensor | None

    @property
    def named(self) -> dict[str, torch.Tensor]:
        """As arguments of a model."""
        return {self.name: self.source, **({} if self.mask is None else {MASK: self.mask})}


def given_for(model: torch.nn.Module, prompts: Mapping[str, torch.Tensor], count: int) -> Given:
    """Sources from the example and from random content, of other lengths than the example's where the model takes them.

    Parameters
    ----------
    model
        Of an encoder and a decoder.
    prompts
        The example.
    count
        For how many texts.

    Raises
    ------
    RecipeError
        If the model fails on the example itself.
    """
    name = source_name(model)
    source = prompts[name]
    masked = reads_mask(model, name, source)
    length = source.shape[1]
    lengths = (length + 5, length + 3, max(length - 1, 4), length) if name == TOKENS else (length + 16, length)
    taken = [size for size in dict.fromkeys(lengths) if size == length or _takes(model, name, source, size)]
    rows = _of_length(model, name, source, count, taken[0], seed=1)
    long = _of_length(model, name, source, 1, taken[min(1, len(taken) - 1)], seed=2)
    if not masked:
        return Given(name, rows, None, long, None)
    mask = torch.ones(rows.shape[:2], dtype=torch.long)
    for row, share in enumerate(_HIDDEN):
        mask[row, mask.shape[1] - int(share * mask.shape[1]) :] = 0
    return Given(name, rows, mask, long, torch.ones(long.shape[:2], dtype=torch.long))


def _vocabulary_read(model: torch.nn.Module) -> int:
    """How many tokens an encoder knows."""
    try:
        embedding = model.get_encoder().get_input_embeddings()
    except (NotImplementedError, AttributeError):
        embedding = model.get_input_embeddings()
    return getattr(embedding, "num_embeddings", None) or model.config.get_text_config(decoder=True).vocab_size


def _takes(model: torch.nn.Module, name: str, source: torch.Tensor, length: int) -> bool:
    """Whether a model takes sources of a length itself."""
    ids, positions = torch.full((1, 1), start_token(model)), torch.zeros(1, 1, dtype=torch.long)
    try:
        with torch.no_grad():
            called(untouched(model), {name: _of_length(model, name, source, 1, length, seed=3)}, ids, None, positions)
    except Exception:  # the model's own Python may refuse it in any way
        return False
    return True


def _of_length(
    model: torch.nn.Module, name: str, source: torch.Tensor, rows: int, length: int, *, seed: int
) -> torch.Tensor:
    """The first row of a source, and random ones of the same kind."""
    generator = torch.Generator().manual_seed(seed)
    if name != TOKENS:
        like = source.float()
        made = torch.randn(rows, length, *source.shape[2:], generator=generator) * like.std() + like.mean()
        made[0, : source.shape[1]] = source[0, :length]
        return made.to(source.dtype)
    size = _vocabulary_read(model)
    made = torch.randint(0, size, (rows, length), generator=generator)
    made[0, : source.shape[1]] = source[0, :length]
    padding = getattr(model.config, "pad_token_id", None)
    made = torch.where(made == padding, (made + 1) % size, made) if padding is not None else made
    # Some encoders look for the end of the text.
    made[:, -1] = source[0, -1]
    return made
