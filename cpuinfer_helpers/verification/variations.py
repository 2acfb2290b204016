"""What a prepared model is asked: other batch sizes, lengths, paddings and contents than those of the example."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from cpuinfer_helpers.verification.equality import Valid

Tensors = Mapping[str, torch.Tensor]
Slot = tuple[str, int]

# Long enough for three rows of different padding; longer ones cost time and show nothing more.
_PADDED_LENGTH = 48
# Beyond the length from which BigBird's attention turns sparse (704 tokens with its usual blocks), and short enough
# for one row on any CPU.
_FAR_LENGTH = 768
# So many times the example's own length is asked for, unless that is so long that it would take minutes.
_TIMES, _LONGEST_TO_MULTIPLY = 3, 40_000
# What an example of several dimensions, such as answers to choose from, may grow to for one row.
_MOST_NUMBERS = 50_000
# Smaller ones cannot be made smaller for a model that halves them a few times.
_SMALLEST_IMAGE = 16
_MANY_ROWS = 33
_MOST_TOKENS_OF_MANY_ROWS = 1024
_REDRAWN = (1, 2, 3)
_ROWS_CHANGED = 2
# Of shorter sequences the other paddings leave few tokens already.
_LEAST_MOSTLY_PADDED = 12
# Inputs of more kinds than this are not taken apart pair by pair.
_MOST_SLOTS = 12


@dataclass(frozen=True)
class Variation:
    """Inputs that differ from the example in one way.

    Attributes
    ----------
    name
        What was varied.
    inputs
        The tensors by name; None where this variation cannot be made, with the reason in ``note``.
    valid
        Boolean, batch by length: the positions that are no padding; None if all are valid. With a second one, batch by
        frames, for models whose convolutions make frames of samples.
    note
        Why there are no inputs.
    """

    name: str
    inputs: dict[str, torch.Tensor] | None
    valid: Valid = None
    note: str = ""


@dataclass(frozen=True)
class Question:
    """One thing to ask: the first of some variations that the model itself answers.

    Attributes
    ----------
    alternatives
        In the order in which they are tried.
    optional
        Whether it is no news that the model answers none of them.
    keeps_size
        Whether a prepared model that fails here is kept for the example's own size: images are made to one size,
        texts come in any.
    part
        The dimensions that differ from others which have the same size in the example.
    keeps_rows
        Whether a prepared model that fails here is kept for inputs that all have as many rows, as in the example. Some
        models take other numbers of rows by mistake, and mix them up.
    """

    alternatives: tuple[Variation, ...]
    optional: bool = False
    keeps_size: bool = False
    part: tuple[Slot, ...] = ()
    keeps_rows: bool = False


def plan(config: Any, example: Tensors) -> Iterator[Question]:
    """Everything that whatever is prepared is asked before it may answer: there is no shorter plan.

    Parameters
    ----------
    config
        The model's configuration, for its largest length and its padding token; None for models without one.
    example
        Tensors by name; the first dimension of each is the batch.

    Yields
    ------
    Question
        The example itself; other batch sizes; every dimension after the batch shorter, longer and far longer, equal
        sizes together and those that can be varied alone by themselves; other contents; padding on either side, and
        other tokens under the padding.
    """
    shapes = _Shapes(config, example)
    yield _one(Variation("example", dict(example), shapes.valid(example)))
    yield from shapes.batches()
    groups = shapes.groups
    if not groups:
        yield _one(Variation("other lengths", None, note="the inputs have no dimension after the batch"))
    for group in groups:
        yield from group.near()
    yield from shapes.many_rows()
    yield from shapes.contents()
    yield from shapes.paddings()
    yield from shapes.masks()
    for group in groups:
        yield from group.alone()
        yield from group.far()


def same_shape_plan(config: Any, given: Tensors) -> Iterator[Question]:
    """Inputs of exactly the given shape: themselves, other contents, other paddings, other tokens under the padding.

    Parameters
    ----------
    config, given
        As for :func:`plan`.

    Yields
    ------
    Question
    """
    shapes = _Shapes(config, given, whole=True)
    yield _one(Variation("given", dict(given), shapes.valid(given)))
    yield _one(shapes.shuffled("other content", seed=1))
    yield from shapes.contents()
    if not shapes.has_mask or shapes.length < 3:
        return
    size = shapes.batch, shapes.length
    yield _one(shapes.padded("padding", *size, counts=shapes.counts(0)))
    yield _one(shapes.padded("padded tokens changed", *size, counts=shapes.counts(1), other_tokens=True))
    yield _one(shapes.padded("padding on the left", *size, counts=shapes.counts(1), left=True))
    yield _one(shapes.padded("mostly padding", *size, counts=shapes.counts(3)))
    yield _one(shapes.padded("no padding", *size, counts=[shapes.length] * shapes.batch))


def with_padding(config: Any, example: Tensors) -> dict[str, torch.Tensor] | None:
    """The example with its last token padded, where none is; None if it has padding, or nothing may be padded.

    Models that look whether there is any padding take their general path then.
    """
    shapes = _Shapes(config, example)
    if not shapes.has_mask or shapes.length < 3 or not bool(example["attention_mask"].all()):
        return None
    counts = [shapes.length] * (shapes.batch - 1) + [shapes.length - 1]
    return shapes.padded("", shapes.batch, shapes.length, counts=counts).inputs


def of_lengths(config: Any, example: Tensors, lengths: Iterable[int]) -> list[dict[str, torch.Tensor]]:
    """The example's rows cut or extended to other lengths, with everything that is as long as the attention mask."""
    shapes = _Shapes(config, example)
    slots = shapes.slots_of_size(shapes.length)
    return [shapes.resized(dict.fromkeys(slots, length), {}) for length in lengths]


def shape_text(inputs: Tensors) -> str:
    """Shape of the first input, such as ``3 x 96``."""
    return " x ".join(map(str, next(iter(inputs.values())).shape))


def most_positions(config: Any) -> int | None:
    """The longest row that a model is sure to have positions for, by its configuration, or None."""
    limit = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin number positions from two.
    return limit - 2 if isinstance(limit, int) and limit > 2 else None


def valid_positions(inputs: Mapping[str, Any], config: Any = None) -> Valid:
    """Positions that are no padding, as the attention mask of shape (batch, length) says.

    Parameters
    ----------
    inputs
        What the model is called with.
    config
        The model's configuration or None: it tells of convolutions that make frames of samples.

    Returns
    -------
    Tensor, tuple of two or None
        Boolean, of shape (batch, length); with it, of shape (batch, frames) for such models. None without a mask, and
        where a second sequence has the mask's shape, so that nobody can tell whose positions an output has.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    second = inputs.get("decoder_input_ids")
    if isinstance(second, torch.Tensor) and second.shape == mask.shape:
        return None
    valid = mask.bool()
    frames = _frames(config, valid) if "input_values" in inputs else None
    return valid if frames is None else (valid, frames)


def _frames(config: Any, valid: torch.Tensor) -> torch.Tensor | None:
    """Frames that are made of valid samples only, as Wav2Vec2 and its kin count them; None for other models."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
        return None
    # The number of outputs of a convolution without padding, as torch.nn.Conv1d gives it.
    counts = torch.cat([valid.sum(dim=1), torch.tensor([valid.shape[1]])])
    for kernel, stride in zip(kernels, strides, strict=False):
        counts = torch.div(counts - kernel, stride, rounding_mode="floor") + 1
    *rows, total = counts.clamp(min=0).tolist()
    return torch.tensor([[frame < count for frame in range(total)] for count in rows], dtype=torch.bool)


def _one(variation: Variation) -> Question:
    return Question((variation,))


@dataclass(frozen=True)
class _Group:
    """Dimensions of the inputs that have the same size, and what to ask about them."""

    shapes: _Shapes
    size: int
    slots: tuple[Slot, ...]

    @cached_property
    def is_image(self) -> bool:
        """Whether rows and columns of an image are among the dimensions."""
        example = self.shapes.example
        return self.size >= _SMALLEST_IMAGE and any(
            example[name].dim() >= 4 and example[name].is_floating_point() and dim >= 2 and "mask" not in name
            for name, dim in self.slots
        )

    @cached_property
    def label(self) -> str:
        """Which inputs these are, where they are not the first sequence."""
        if self.is_image or self.size == self.shapes.length:
            return ""
        first, dim = self.slots[0]
        return f" ({first}, dimension {dim})"

    def near(self) -> Iterator[Question]:
        """Somewhat smaller and larger."""
        if self.is_image:
            yield from self._other_images()
            return
        rows, size = self.shapes.batch, self.size
        if size > 1:
            yield self._ask("shorter", (max(2, size // 3), size - size // 4, size - 1), rows + 1)
        if size > 2:
            yield self._ask("much shorter", (max(2, min(7, size // 2)),), rows + 2)
            yield self._ask("two", (2, 3, 4, 5), 1)
        longer = self.shapes.limited(size + max(3, size // 4))
        if longer <= size:
            longer = max(size, *self.shapes.position_limits())
        if longer > size:
            yield self._ask("longer", (longer, size + 1, 2 * size), rows)
        else:
            yield _one(Variation("longer" + self.label, None, note=f"the model takes no more than {longer} tokens"))

    def far(self) -> Iterator[Question]:
        """One, and many more than the example has.

        A model may take another path through its code there, which a trace of the example does not hold: sparse
        attention on long texts, fewer experts than all on short ones.
        """
        if self.is_image:
            yield Question((self._resized("much larger image", 2 * self.size, 1),), optional=True, keeps_size=True)
            return
        if self.size > 1:
            yield Question((self._resized("one" + self.label, 1, 1),), optional=True)
        near = self.size + max(3, self.size // 4)
        sizes = [size for size in self._far_sizes() if size > near]
        if sizes:
            made = (self._resized("far longer" + self.label, size, 1) for size in sizes)
            yield Question(tuple(made), optional=self.label != "")
        if sizes and self.shapes.has_mask and self.size == self.shapes.length:
            padded = (
                self.shapes.padded("far longer, mostly padding", 1, size, counts=[max(2, size // 4)]) for size in sizes
            )
            yield Question(tuple(padded), optional=True)

    def alone(self) -> Iterator[Question]:
        """Each input, each dimension and each pair of inputs by itself, where the model can take that."""
        size = self.size
        longer, shorter = self.shapes.limited(size + max(3, size // 4)), max(1, size // 2)
        for slots in self._parts():
            names = ", ".join(dict.fromkeys(name for name, _ in slots))
            for text, other in (("longer", longer), ("shorter", shorter)):
                if other == size:
                    continue
                inputs = self.shapes.resized(dict.fromkeys(slots, other), {})
                variation = Variation(f"{names} alone {text}", inputs, self.shapes.valid(inputs))
                yield Question((variation,), optional=True, keeps_size=self.is_image, part=slots)

    def _are_sequences(self, part: tuple[Slot, ...]) -> bool:
        """Whether there is more than a mask on both sides, once a part of the dimensions is taken out.

        Some models do not mind a mask that is longer than its tokens, and nobody makes one.
        """
        content = {name for name, tensor in self.shapes.example.items() if not is_binary(tensor)}
        sides = part, tuple(slot for slot in self.slots if slot not in part)
        return all(any(name in content for name, _ in side) for side in sides)

    def _other_images(self) -> Iterator[Question]:
        size, rows = self.size, self.shapes.batch
        sizes = {
            "larger image": (size + size // 2, 2 * size),
            "image of no round size": (size + size // 4 + 1, size + 3),
            "smaller image": (size - size // 4, size // 2),
        }
        for name, others in sizes.items():
            made = tuple(self._resized(name, other, rows) for other in others)
            yield Question(made, keeps_size=True)

    def _ask(self, name: str, sizes: Sequence[int], rows: int) -> Question:
        sizes = [size for size in dict.fromkeys(sizes) if size != self.size and size > 0]
        return Question(tuple(self._resized(name + self.label, size, rows) for size in sizes), optional=not sizes)

    def _resized(self, name: str, size: int, rows: int) -> Variation:
        inputs = self.shapes.resized(dict.fromkeys(self.slots, size), self.shapes.rows(rows))
        return Variation(name, inputs, self.shapes.valid(inputs))

    def _far_sizes(self) -> list[int]:
        """The farthest first, for models that do not take it."""
        times = _TIMES * self.size if self.size <= _LONGEST_TO_MULTIPLY else 0
        farthest = max(_FAR_LENGTH, times)
        others = (farthest, *self.shapes.position_limits(), 512, 384, 256, 128, 64, times, times and 2 * self.size)
        sizes = {size for size in others if self.size < size <= farthest and self._fits(size)}
        return sorted(sizes, reverse=True)

    def _fits(self, size: int) -> bool:
        grown = self.shapes.resized_numbers(dict.fromkeys(self.slots, size))
        return size <= 2 * self.size or size == _TIMES * self.size or grown <= _MOST_NUMBERS

    def _parts(self) -> list[tuple[Slot, ...]]:
        """Proper parts of the dimensions that might vary apart from the others."""
        slots = self.slots
        if len(slots) == 1 or len(slots) > _MOST_SLOTS:
            return []
        names, dims = (tuple(dict.fromkeys(slot[i] for slot in slots)) for i in (0, 1))
        chosen = [tuple(slot for slot in slots if slot[1] == dim) for dim in dims]
        for count in (1, 2):
            for some in itertools.combinations(names, count):
                chosen.append(tuple(slot for slot in slots if slot[0] in some))
        chosen += [(slot,) for slot in slots]
        chosen += [tuple(slot for slot in slots if slot not in part) for part in list(chosen)]
        proper = (part for part in dict.fromkeys(chosen) if 0 < len(part) < len(slots))
        return [part for part in proper if self._are_sequences(part)]


class _Shapes:
    """Makes inputs of other shapes and contents from the example's own."""

    def __init__(self, config: Any, example: Tensors, *, whole: bool = False) -> None:
        self.config = config
        self.example = example
        self.whole = whole
        self.batch = next(iter(example.values())).shape[0]
        self.length = self._sequence_length()
        mask = example.get("attention_mask")
        self.has_mask = mask is not None and 2 <= mask.dim() <= 3 and mask.shape[-1] == self.length
        self.has_mask = self.has_mask and is_binary(mask)

    def _sequence_length(self) -> int | None:
        for name in ("input_ids", "attention_mask", "inputs_embeds", "input_values"):
            tensor = self.example.get(name)
            if tensor is not None and tensor.dim() >= 2:
                return tensor.shape[1] if tensor.dim() == 2 or name == "inputs_embeds" else tensor.shape[-1]
        return None

    @cached_property
    def groups(self) -> list[_Group]:
        """Dimensions after the batch by size, those of the first sequence first."""
        slots: dict[int, list[Slot]] = {}
        for name, tensor in self.example.items():
            for dim in range(1, tensor.dim()):
                slots.setdefault(tensor.shape[dim], []).append((name, dim))
        sizes = sorted(slots, key=lambda size: size != self.length)
        return [_Group(self, size, tuple(slots[size])) for size in sizes if size > 0]

    def slots_of_size(self, size: int | None) -> tuple[Slot, ...]:
        """The dimensions after the batch that have a size."""
        return next((group.slots for group in self.groups if group.size == size), ())

    def limited(self, length: int) -> int:
        return min(length, most_positions(self.config) or length)

    def position_limits(self) -> tuple[int, ...]:
        """Largest lengths that the configuration names, for whichever of the sequences they hold."""
        names = ("max_position_embeddings", "max_source_positions", "max_target_positions", "n_positions")
        limits = (getattr(self.config, name, None) for name in names)
        # RoBERTa and its kin number positions from two.
        known = [limit for limit in limits if isinstance(limit, int) and limit > 2]
        return tuple(size for limit in known for size in (limit, limit - 2))

    def valid(self, inputs: Tensors) -> Valid:
        return valid_positions(inputs, self.config) if self.has_mask else None

    # Batches

    @cached_property
    def _row_counts(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(tensor.shape[0] for tensor in self.example.values()))

    def rows(self, count: int) -> dict[str, int]:
        """Rows of each input where the first has so many: as many more or fewer of each, at least one."""
        return {name: max(1, tensor.shape[0] + count - self.batch) for name, tensor in self.example.items()}

    def batches(self) -> Iterator[Question]:
        """Other batch sizes; of inputs that have other numbers of rows than the first, each number by itself too."""
        more = self.resized({}, self.rows(self.batch + 1))
        yield _one(Variation("other batch size", more, self.valid(more)))
        fewer = self.resized({}, self.rows(max(1, self.batch - 1)), first_row=1)
        yield _one(Variation("partial last batch", fewer, self.valid(fewer)))
        if self.batch > 2:
            single = self.resized({}, self.rows(1), first_row=2)
            yield _one(Variation("one row", single, self.valid(single)))
        for part in self._independent_parts():
            rows = {name: tensor.shape[0] + (2 if name in part else 0) for name, tensor in self.example.items()}
            inputs = self.resized({}, rows)
            variation = Variation(f"more rows of {', '.join(part)} alone", inputs, self.valid(inputs))
            keeps_rows = len(self._row_counts) == 1
            yield Question((variation,), optional=True, part=tuple((n, 0) for n in part), keeps_rows=keeps_rows)

    def _independent_parts(self) -> list[tuple[str, ...]]:
        """Inputs that share no size with the others, such as texts and images; none if there is but one such part."""
        parts: list[set[str]] = []
        for name, tensor in self.example.items():
            own, sizes = {name}, set(tensor.shape[1:])
            for part in [p for p in parts if any(sizes & set(self.example[n].shape[1:]) for n in p)]:
                parts.remove(part)
                own |= part
            parts.append(own)
        named = [tuple(name for name in self.example if name in part) for part in parts]
        # One row broadcasts against many, which nobody asks a model for.
        return named if len(named) > 1 and (self.batch > 1 or len(self._row_counts) > 1) else []

    def many_rows(self) -> Iterator[Question]:
        """A batch far larger than the example's, of short rows."""
        slots = () if self.length is None else self.slots_of_size(self.length)
        sizes = dict.fromkeys(slots, min(7, self.length or 0))
        numbers = max(1, self.resized_numbers(sizes))
        count = min(_MANY_ROWS, self.batch + 31 if numbers <= _MOST_TOKENS_OF_MANY_ROWS else 0)
        if count > self.batch + 1:
            inputs = self.resized(sizes, self.rows(count))
            yield Question((Variation("many rows", inputs, self.valid(inputs)),), optional=True)

    def resized_numbers(self, sizes: Mapping[Slot, int]) -> int:
        """How many numbers one row of the largest input has with some dimensions of another size."""
        most = 0
        for name, tensor in self.example.items():
            count = 1
            for dim in range(1, tensor.dim()):
                count *= sizes.get((name, dim), tensor.shape[dim])
            most = max(most, count)
        return most

    def resized(
        self, sizes: Mapping[Slot, int], rows: Mapping[str, int], first_row: int = 0
    ) -> dict[str, torch.Tensor]:
        """The example with other sizes and numbers of rows; a new row has other content than that it was made of."""
        made = {}
        for name, tensor in self.example.items():
            for dim in range(1, tensor.dim()):
                if sizes.get((name, dim), tensor.shape[dim]) != tensor.shape[dim]:
                    tensor = tensor.index_select(dim, _places(tensor.shape[dim], sizes[name, dim]))
            count = rows.get(name, tensor.shape[0])
            if count != tensor.shape[0] or first_row:
                chosen = [(first_row + row, tensor[(first_row + row) % tensor.shape[0]]) for row in range(count)]
                tensor = torch.stack([_rolled(row, number) for number, row in chosen])
            made[name] = tensor
        return made

    # Contents

    def contents(self) -> Iterator[Question]:
        """Other content in the same shape, drawn anew and negated, so that a branch on values is met."""
        for seed in _REDRAWN:
            whole = self._changed("redrawn", lambda name, tensor, seed=seed: self._redrawn(name, tensor, seed, True))
            own = self._changed("redrawn", lambda name, tensor, seed=seed: self._redrawn(name, tensor, seed, False))
            yield Question((whole, own, self.shuffled("redrawn", seed)))
        yield Question((self._changed("negated", self._negated),), optional=True)

    def masks(self) -> Iterator[Question]:
        """Masks with holes, and segments of other types, where such inputs are there."""
        masks = self._changed("masks redrawn", self._redrawn_mask)
        if any(not torch.equal(masks.inputs[name], tensor) for name, tensor in self._few_rows.items()):
            yield Question((masks,), optional=True)

    def shuffled(self, name: str, seed: int) -> Variation:
        """The content of each input in another order; first and last tokens stay in place."""
        return self._changed(name, lambda key, tensor: self._shuffled(key, tensor, seed))

    def _changed(self, name: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Variation:
        inputs = {key: change(key, tensor) for key, tensor in self._few_rows.items()}
        return Variation(name, inputs, self.valid(inputs))

    @cached_property
    def _few_rows(self) -> dict[str, torch.Tensor]:
        """The rows whose content is changed: other rows show nothing more. Examples of one shape keep all of theirs."""
        return dict(self.example) if self.whole else {name: t[:_ROWS_CHANGED] for name, t in self.example.items()}

    def _redrawn(self, name: str, tensor: torch.Tensor, seed: int, whole: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if not tensor.numel() or is_binary(tensor):
            return tensor
        if tensor.is_floating_point():
            numbers = tensor.float()
            if not bool(numbers.isfinite().all()) or numbers.unique().numel() < 5:
                return tensor
            drawn = torch.randn(tensor.shape, generator=generator) * numbers.std() + numbers.mean()
            return drawn.to(tensor.dtype)
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != 2:
            return tensor
        low, high = (0, self._vocabulary(tensor)) if whole else (int(tensor.min()), int(tensor.max()) + 1)
        drawn = torch.randint(low, max(high, low + 1), tensor.shape, generator=generator).to(tensor.dtype)
        return self._where_valid(drawn, tensor)

    def _vocabulary(self, tensor: torch.Tensor) -> int:
        size = getattr(self.config, "vocab_size", None)
        return size if isinstance(size, int) and int(tensor.max()) < size else int(tensor.max()) + 1

    def _negated(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.numel() or is_binary(tensor):
            return tensor
        if tensor.is_floating_point():
            return -tensor if bool(tensor.isfinite().all()) else tensor
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != 2:
            return tensor
        return self._where_valid(tensor.max() + tensor.min() - tensor, tensor)

    def _redrawn_mask(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Zeros and ones at random where there are only those, the first of each row a one."""
        if not is_binary(tensor) or tensor.dim() < 2 or tensor.shape[-1] < 2:
            return tensor
        drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(4)) < 0.6
        drawn[..., 0] = True
        return drawn.to(tensor.dtype)

    def _shuffled(self, name: str, tensor: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if not tensor.numel() or is_binary(tensor):
            return tensor
        if tensor.is_floating_point():
            return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != 2 or tensor.shape[1] < 4:
            return tensor
        # Among the example's own tokens, so that nothing special appears that it does not have.
        inner = tensor[:, 1:-1]
        drawn = inner.flatten()[torch.randint(inner.numel(), inner.shape, generator=generator)]
        return self._where_valid(torch.cat([tensor[:, :1], drawn, tensor[:, -1:]], dim=1), tensor)

    def _where_valid(self, other: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        keep = self.valid(self._few_rows)
        keep = keep[0] if isinstance(keep, tuple) else keep
        return other if keep is None or keep.shape != tensor.shape else torch.where(keep, other, tensor)

    # Padding

    def paddings(self) -> Iterator[Question]:
        """Rows of different lengths, padded on either side, and with other tokens under the padding."""
        if self.length is None:
            return
        if not self.has_mask:
            note = "there is no attention mask among the inputs, so nothing may be padded"
            yield _one(Variation("padding", None, note=note))
            return
        length = max(6, min(self.length // 3, _PADDED_LENGTH))
        yield _one(self.padded("padding", 3, length))
        yield _one(self.padded("padded tokens changed", 3, length, other_tokens=True))
        yield _one(self.padded("padding on the left", 3, length, left=True))
        odd = self._odd_length()
        if odd is not None:
            # Lengths that are padded to round ones are not, where there is padding on the left already.
            yield _one(self.padded("padding on the left, odd length", 3, odd, left=True))
        if self.length >= _LEAST_MOSTLY_PADDED:
            # Attention to near tokens only has nothing to attend to in the midst of much padding.
            yield _one(self.padded("mostly padding", self.batch, self.length, counts=self.counts(2)))

    def _odd_length(self) -> int | None:
        """An odd one that is near the example's, longer if the model takes that; None if there is none."""
        longer = self.limited(self.length + max(3, self.length // 4))
        odd = longer - 1 + longer % 2
        return odd if odd > max(6, min(self.length // 3, _PADDED_LENGTH)) and odd != self.length else None

    def padded(
        self,
        name: str,
        batch: int,
        length: int,
        *,
        left: bool = False,
        other_tokens: bool = False,
        counts: Sequence[int] | None = None,
    ) -> Variation:
        sizes = {slot: length for slot in self.slots_of_size(self.length) if length != self.length}
        inputs = self.resized(sizes, self.rows(batch))
        mask = self.example["attention_mask"]
        rows, inner = inputs["attention_mask"].shape[0], mask.shape[1:-1]
        keep = torch.zeros(rows, *inner, length, dtype=torch.bool)
        for row in range(rows):
            valid_count = length if row == 0 else max(2, length // (2 * row))
            valid_count = counts[row % len(counts)] if counts else valid_count
            columns = slice(length - valid_count, None) if left else slice(0, valid_count)
            keep[row, ..., columns] = True
        inputs["attention_mask"] = keep.to(mask.dtype)
        for key, tensor in inputs.items():
            if tensor.shape[: keep.dim()] == keep.shape and not is_binary(tensor) and "decoder" not in key:
                inputs[key] = self._pad(tensor, keep, other_tokens)
        return Variation(name, inputs, self.valid(inputs))

    def counts(self, first: int) -> list[int]:
        """How many tokens of each row to keep: from all to a few, another number in each of the first rows."""
        return [max(2, self.length * (4 - (row + first) % 4) // 4) for row in range(self.batch)]

    def _pad(self, tensor: torch.Tensor, keep: torch.Tensor, other_tokens: bool) -> torch.Tensor:
        padding = 0 if tensor.is_floating_point() else getattr(self.config, "pad_token_id", None)
        padded = tensor.clone()
        padded[~keep] = padding if isinstance(padding, int) and padding >= 0 else 0
        if other_tokens:
            padded[~keep] = tensor.roll(1, dims=keep.dim() - 1)[~keep]
        return padded


def is_binary(tensor: torch.Tensor) -> bool:
    """Whether it holds zeros and ones only, as masks and types of segments do."""
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def _places(size: int, wanted: int) -> torch.Tensor:
    """Positions of the example that make a dimension of the wanted size; its first and last stay in place."""
    inner = list(range(1, size - 1)) or [0]
    middle = [inner[i % len(inner)] for i in range(max(wanted - 2, 0))]
    return torch.tensor([0, *middle, size - 1][:wanted])


def _rolled(row: torch.Tensor, by: int) -> torch.Tensor:
    """Other content for other rows: the same tokens, all but the first and last moved on."""
    if by == 0 or row.dim() == 0 or row.shape[0] < 4 or not _is_content(row):
        return row
    return torch.cat([row[:1], row[1:-1].roll(by, dims=0), row[-1:]])


def _is_content(row: torch.Tensor) -> bool:
    return row.is_floating_point() or (row.dim() == 1 and row.unique().numel() > 2)
