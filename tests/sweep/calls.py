"""What a prepared model is called with: sizes, paddings and content of our own, none that the package itself tries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from sweep.examples import CHOICES, IMAGE, PAIRS, VIDEO, Examples, Padding, Size, Tensors

# Shares of content in each row, in turn.
_ROWS, _THREE_ROWS = (0.35, 1.0, 0.8, 0.55), (0.4, 1.0, 0.9)
_PADDINGS = {
    "padding": Padding(_ROWS),
    "padding with other tokens in it": Padding(_ROWS, junk=7),
    "padding on the left with other tokens in it": Padding(_ROWS, left=True, junk=11),
}
# Below the 160 positions of the tiny models, with room for what some keep for themselves.
_FAR = 139


@dataclass(frozen=True)
class Call:
    """Inputs of one shape.

    Attributes
    ----------
    name
        What is different from the example.
    inputs
        Tensors by name.
    valid
        Positions that are no padding (None: all).
    decoder_valid
        The same for the decoder's sequence.
    plain
        The same with nothing but padding under the padding; None where that is what there is.
    """

    name: str
    inputs: Tensors
    valid: torch.Tensor | None = None
    decoder_valid: torch.Tensor | None = None
    plain: Tensors | None = None

    def valid_of(self, output: str, shape: torch.Size) -> torch.Tensor | None:
        """The positions that count of an output; None if all do."""
        of_decoder = self.decoder_valid is not None and not output.startswith("encoder")
        valid = self.decoder_valid if of_decoder else self.valid
        return valid if valid is not None and shape[: valid.dim()] == valid.shape else None


def calls(examples: Examples) -> Iterator[Call]:
    """Every call for a model, beginning with those of the example's own shape."""
    make, size = examples.make, examples.size
    yield Call("other content", make(2, size, seed=8))
    yield Call("one row", make(1, size, seed=1))
    yield Call("five rows", make(5, size, seed=2))
    if examples.kind in (IMAGE, VIDEO):
        yield from _images(examples)
    elif examples.kind == CHOICES:
        yield from _choices(examples)
    elif examples.kind == PAIRS:
        yield from _pairs(examples)
    else:
        yield from _sequences(examples)


def _sequences(examples: Examples) -> Iterator[Call]:
    make, size = examples.make, examples.size
    shorter, longer = size * 13 // 24, size * 41 // 24
    yield Call("one row, shorter", make(1, shorter, seed=3))
    yield Call("five rows, longer", make(5, longer, seed=4))
    yield Call("one row, much longer", make(1, size * 53 // 24, seed=5))
    if "input_ids" in make(1, size):
        yield Call("one row, five tokens", make(1, 5, seed=9))
        yield Call("one row, far longer", make(1, _FAR, seed=10))
    if not examples.padded:
        return
    for name, padding in _PADDINGS.items():
        yield _padded(examples, name, 4, size * 29 // 24, padding)
    yield _padded(examples, "shorter, padded", 3, size * 11 // 24, Padding(_THREE_ROWS, junk=13))
    yield _padded(examples, "its own size, padded", 2, size, Padding((0.6, 0.85), junk=17))


def _choices(examples: Examples) -> Iterator[Call]:
    """The number of choices and the length, each by itself and together."""
    make, (choices, length) = examples.make, examples.size
    yield Call("more choices", make(2, (choices + 2, length), seed=3))
    yield Call("fewer choices", make(3, (choices - 1, length), seed=3))
    yield Call("longer", make(2, (choices, length * 41 // 24), seed=4))
    yield Call("one row, shorter", make(1, (choices, length * 13 // 24), seed=5))
    yield Call("one row of four choices, much longer", make(1, (4, length * 53 // 24), seed=9))
    yield Call("as many choices as tokens", make(1, (5, 5), seed=10))
    if not examples.padded:
        return
    for name, padding in _PADDINGS.items():
        yield _padded(examples, name, 3, (2, length * 29 // 24), padding)


def _pairs(examples: Examples) -> Iterator[Call]:
    """The lengths of encoder and decoder, each by itself and together."""
    make, (length, decoder) = examples.make, examples.size
    longer, shorter = length * 41 // 24, length * 13 // 24
    sizes = {
        "only the encoder's sequence longer": (2, (longer, decoder)),
        "only the encoder's sequence shorter": (3, (shorter, decoder)),
        "only the decoder's sequence longer": (2, (length, decoder * 2 - 3)),
        "only the decoder's sequence shorter": (1, (length, decoder * 9 // 17)),
        "one token of the decoder": (4, (length, 1)),
        "both longer": (1, (longer, decoder * 2 - 5)),
        "both shorter": (5, (shorter, decoder // 2)),
        "sequences of the same length": (2, (19, 19)),
        "one row, both much longer": (1, (length * 53 // 24, decoder * 2 + 6)),
        "one row, the encoder's sequence far longer": (1, (_FAR, decoder + 2)),
    }
    for number, (name, (batch, size)) in enumerate(sizes.items(), 20):
        yield Call(name, make(batch, size, seed=number))
    if not examples.padded:
        return
    for name, padding in _PADDINGS.items():
        yield _padded(examples, name, 4, (length * 29 // 24, decoder + 2), padding)
    if "decoder_attention_mask" in examples.arguments:
        padding = Padding(_ROWS, junk=7, decoder=True)
        yield _padded(examples, "padding of the decoder's sequence", 4, (shorter, decoder + 2), padding)


def _images(examples: Examples) -> Iterator[Call]:
    make, size = examples.make, examples.size
    yield Call("larger image", make(3, size + size // 2, seed=3))
    yield Call("larger image of no round size", make(1, size + size // 4 + 3, seed=3))
    yield Call("smaller image", make(4, size - size // 4, seed=4))
    yield Call("wide image", make(2, (size, size + size // 2), seed=5))
    yield Call("high image", make(1, (size + size // 2, size), seed=6))
    if "pixel_mask" in examples.arguments:
        inputs = make(2, size, seed=7)
        inputs["pixel_mask"][0, size * 5 // 8 :] = 0
        inputs["pixel_mask"][1, :, size * 3 // 4 :] = 0
        inputs["pixel_values"] *= inputs["pixel_mask"][:, None]
        yield Call("images of two sizes, padded", inputs)


def _padded(examples: Examples, name: str, batch: int, size: Size, padding: Padding) -> Call:
    inputs = examples.make(batch, size, padding, seed=6)
    plain = examples.make(batch, size, replace(padding, junk=0), seed=6) if padding.junk else None
    valid, decoder = inputs["attention_mask"].bool(), inputs.get("decoder_attention_mask")
    return Call(name, inputs, valid, None if decoder is None else decoder.bool(), plain)
