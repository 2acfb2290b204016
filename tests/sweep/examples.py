"""Inputs for any of the classes, in any batch size, length and padding, seeded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sweep.classes import EMBEDDINGS, MULTIPLE_CHOICE, SEQUENCE_TO_SEQUENCE

FIRST_TOKEN, LAST_TOKEN = 10, 120  # above every special token, below the tiny vocabulary's size
# One number, or two: choices and length, length of the encoder and of the decoder, height and width.
Size = int | tuple[int, int]
Tensors = dict[str, torch.Tensor]

TOKENS, CHOICES, PAIRS = "tokens", "choices", "pairs of sequences"
IMAGE, TEXT_AND_IMAGE, VIDEO = "image", "text and image", "video"
WAVEFORM, FEATURES = "waveform", "features"
_CONTENT = ("input_ids", "inputs", "input_values", "input_features")


@dataclass(frozen=True)
class Padding:
    """What of the rows is padding, and what stands there.

    Attributes
    ----------
    valid
        How many positions of each row are content, in turn; a fraction is a share of the length.
    left
        Padding comes before the content.
    junk
        Zero: padding holds the padding token, or zeros. Else: a seed for other content to stand under the padding.
    decoder
        It is the decoder's sequence that is padded.
    """

    valid: Sequence[float]
    left: bool = False
    junk: int = 0
    decoder: bool = False


class Examples:
    """Makes inputs for one model.

    Parameters
    ----------
    model
        The tiny model.
    task
        As for :class:`~sweep.classes.Case`.
    kind
        What kind of inputs; by the task and the model's arguments unless given.
    """

    def __init__(self, model: torch.nn.Module, task: str, kind: str = "") -> None:
        self.model = model
        self.config = model.config
        self.task = task
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.kind = kind or self.kinds(model, task)[0]

    @classmethod
    def kinds(cls, model: torch.nn.Module, task: str) -> tuple[str, ...]:
        """Kinds of inputs that may do, the likeliest first."""
        arguments = inspect.signature(model.forward).parameters
        has_text = "input_ids" in arguments
        if task in _KIND_OF_TASK:
            return (_KIND_OF_TASK[task],)
        if task in ("image classification", "object detection", "image segmentation"):
            return (TOKENS,) if "pixel_values" not in arguments and has_text else (IMAGE, VIDEO)
        if task == "audio classification" or (task == EMBEDDINGS and not has_text and _is_sound(model)):
            waveform = "input_values" in arguments and hasattr(model.config, "conv_dim")
            return (WAVEFORM if waveform else FEATURES,)
        if task != EMBEDDINGS:
            return (WAVEFORM if "input_values" in arguments and not has_text else TOKENS,)
        if not has_text:
            return (IMAGE, VIDEO) if _takes_pixels(arguments) else (WAVEFORM,)
        first = PAIRS if "decoder_input_ids" in arguments else TOKENS
        return (first, TEXT_AND_IMAGE) if "pixel_values" in arguments else (first,)

    @property
    def padded(self) -> bool:
        """Whether the inputs have a mask, so that rows may be padded."""
        return self.kind not in (IMAGE, VIDEO) and "attention_mask" in self.make(1, self.size)

    @property
    def size(self) -> Size:
        """Size of the example: what the model is traced with."""
        from sweep.overrides import EXAMPLE_SIZES

        usual: Size = _USUAL[self.kind]
        if self.kind in (IMAGE, VIDEO):
            size = getattr(_vision(self.config), "image_size", usual)
            usual = size if isinstance(size, int) else usual
        return EXAMPLE_SIZES.get(self.config.model_type, usual)

    def make(self, batch: int, size: Size, padding: Padding | None = None, *, seed: int = 0) -> Tensors:
        """Inputs of one shape.

        Parameters
        ----------
        batch
            Number of rows.
        size
            Tokens of a row; pixels of a side; frames; hundreds of samples; or two of these, see :data:`Size`.
        padding
            None: there is none.
        seed
            For the content.
        """
        first, second = size if isinstance(size, tuple) else (size, 0)
        generator = torch.Generator().manual_seed(1000 * seed + 10 * first + batch + 100_000 * second)
        inputs = self._maker()(batch, size, generator)
        if padding is not None:
            self._pad(inputs, padding)
        return inputs

    def _maker(self) -> Any:
        return {
            TOKENS: self._tokens,
            CHOICES: self._choices,
            PAIRS: self._pairs,
            IMAGE: self._image,
            VIDEO: self._video,
            TEXT_AND_IMAGE: self._text_and_image,
            WAVEFORM: self._waveform,
            FEATURES: self._features,
        }[self.kind]

    def _names(self) -> tuple[str, ...]:
        from sweep.overrides import WITHOUT_MASK

        family = self.config.model_type
        return tuple(name for name in self.arguments if not (name == "attention_mask" and family in WITHOUT_MASK))

    def _tokens(self, batch: int, length: int, generator: torch.Generator) -> Tensors:
        from sweep.overrides import FURTHER_INPUTS

        ids = self._ids(batch, length, generator)
        name = "input_ids" if "input_ids" in self.arguments else "inputs"
        inputs = {name: ids}
        if "attention_mask" in self._names():
            inputs["attention_mask"] = torch.ones_like(ids)
        if "token_type_ids" in self.arguments and (getattr(self.config, "type_vocab_size", 0) or 0) > 1:
            inputs["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(batch, length).clone()
        further = FURTHER_INPUTS.get(self.config.model_type)
        if further is not None:
            inputs |= further(self.config, ids, generator)
        return {key: value for key, value in inputs.items() if key in self.arguments}

    def _ids(self, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
        ids = torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, length), generator=generator)
        eos = _text_config(self.config, "eos_token_id")
        if isinstance(eos, int):
            ids[:, -1] = eos
        return ids

    def _choices(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensors:
        """Every tensor as (batch, choices, ...)."""
        choices, length = size
        flat = self._tokens(batch * choices, length, generator)
        return {name: tensor.unflatten(0, (batch, choices)) for name, tensor in flat.items()}

    def _pairs(self, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensors:
        """A sequence for the encoder and another, of a length of its own, for the decoder."""
        length, decoder_length = size
        inputs = self._tokens(batch, length, generator)
        ids = torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, decoder_length), generator=generator)
        start = _text_config(self.config, "decoder_start_token_id")
        ids[:, 0] = start if isinstance(start, int) else 2
        if "decoder_input_ids" in self.arguments:
            inputs["decoder_input_ids"] = ids
        if "decoder_attention_mask" in self.arguments:
            inputs["decoder_attention_mask"] = torch.ones_like(ids)
        return inputs

    def _image(self, batch: int, size: Size, generator: torch.Generator) -> Tensors:
        from sweep.overrides import FURTHER_INPUTS

        name = "pixel_values" if "pixel_values" in self.arguments else self.model.main_input_name
        height, width = size if isinstance(size, tuple) else (size, size)
        channels = getattr(_vision(self.config), "num_channels", 3)
        inputs = {name: torch.rand(batch, channels, height, width, generator=generator)}
        if "pixel_mask" in self.arguments:
            inputs["pixel_mask"] = torch.ones(batch, height, width, dtype=torch.long)
        further = FURTHER_INPUTS.get(self.config.model_type)
        return inputs | (further(self.config, inputs[name], generator) if further else {})

    def _video(self, batch: int, size: Size, generator: torch.Generator) -> Tensors:
        name = next(name for name in self.arguments if name.startswith("pixel_values"))
        height, width = size if isinstance(size, tuple) else (size, size)
        frames = getattr(self.config, "num_frames", None) or getattr(self.config, "frames_per_clip", 4)
        channels = getattr(_vision(self.config), "num_channels", 3)
        return {name: torch.rand(batch, frames, channels, height, width, generator=generator)}

    def _text_and_image(self, batch: int, length: int, generator: torch.Generator) -> Tensors:
        vision = _vision(self.config)
        side = getattr(vision, "image_size", 32)
        side = side if isinstance(side, int) else side[0]
        pixels = torch.rand(batch, getattr(vision, "num_channels", 3), side, side, generator=generator)
        return self._tokens(batch, length, generator) | {"pixel_values": pixels}

    def _waveform(self, batch: int, size: int, generator: torch.Generator) -> Tensors:
        values = torch.randn(batch, 100 * size, generator=generator)
        if not hasattr(self.config, "conv_dim"):
            # Codecs take channels, and pad by another name.
            return {"input_values": values[:, None]}
        inputs = {"input_values": values, "attention_mask": torch.ones(values.shape, dtype=torch.long)}
        return {name: tensor for name, tensor in inputs.items() if name in self.arguments}

    def _features(self, batch: int, size: int, generator: torch.Generator) -> Tensors:
        from sweep.overrides import FEATURES as SPECTROGRAMS

        inputs = SPECTROGRAMS[self.config.model_type](self.config, batch, size, generator)
        if "decoder_input_ids" in self.arguments:
            inputs["decoder_input_ids"] = torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, 17), generator=generator)
        return {name: tensor for name, tensor in inputs.items() if name in self.arguments}

    def _pad(self, inputs: Tensors, padding: Padding) -> None:
        if padding.decoder:
            self._pad_decoder(inputs, padding)
            return
        mask = inputs["attention_mask"]
        keep = _kept(mask.shape, padding)
        inputs["attention_mask"] = keep.to(mask.dtype)
        name = next(key for key in inputs if key in _CONTENT)
        eos = _text_config(self.config, "eos_token_id")
        if inputs[name].dtype == torch.long and isinstance(eos, int):
            last = keep & (keep.flip(-1).cumsum(-1).flip(-1) == 1)
            inputs[name][last] = eos
        self._fill(inputs[name], keep, padding.junk)

    def _pad_decoder(self, inputs: Tensors, padding: Padding) -> None:
        ids = inputs["decoder_input_ids"]
        keep = _kept(ids.shape, padding)
        inputs["decoder_attention_mask"] = keep.to(inputs["decoder_attention_mask"].dtype)
        self._fill(ids, keep, padding.junk)

    def _fill(self, content: torch.Tensor, keep: torch.Tensor, junk: int) -> None:
        generator = torch.Generator().manual_seed(junk)
        if content.dtype == torch.long:
            pad = _text_config(self.config, "pad_token_id") or 0
            other = torch.randint(FIRST_TOKEN, LAST_TOKEN, content.shape, generator=generator)
            content[~keep] = other[~keep] if junk else pad
        else:
            other = torch.randn(content.shape, generator=generator)
            content[~keep] = other[~keep] if junk else 0.0


_KIND_OF_TASK = {MULTIPLE_CHOICE: CHOICES, SEQUENCE_TO_SEQUENCE: PAIRS}
_USUAL: dict[str, Size] = {
    TOKENS: 24,
    TEXT_AND_IMAGE: 24,
    CHOICES: (3, 24),
    PAIRS: (24, 17),
    IMAGE: 32,
    VIDEO: 32,
    WAVEFORM: 40,
    FEATURES: 30,
}


def _kept(shape: torch.Size, padding: Padding) -> torch.Tensor:
    """Which positions are content; the shares are given out row by row, in turn."""
    rows, length = shape[:-1].numel(), shape[-1]
    shares = [padding.valid[row % len(padding.valid)] for row in range(rows)]
    count = torch.tensor([max(1, int(length * share)) for share in shares])[:, None]
    column = torch.arange(length)[None]
    return (column >= length - count if padding.left else column < count).view(shape)


def _is_sound(model: torch.nn.Module) -> bool:
    from sweep.overrides import FEATURES as SPECTROGRAMS

    return model.config.model_type in SPECTROGRAMS or hasattr(model.config, "conv_dim")


def _takes_pixels(arguments: Any) -> bool:
    return any(name.startswith("pixel_values") for name in arguments)


def _text_config(config: Any, name: str) -> Any:
    text = getattr(config, "text_config", None)
    return getattr(config, name, None) if getattr(config, name, None) is not None else getattr(text, name, None)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config
