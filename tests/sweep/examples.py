"""Inputs for any of the classes, in any batch size, length and padding, seeded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

FIRST_TOKEN, LAST_TOKEN = 10, 120  # above every special token, below the tiny vocabulary's size


class Examples:
    """Makes inputs for one model.

    Parameters
    ----------
    model
        The tiny model.
    task
        As for :class:`~sweep.classes.Case`.
    """

    def __init__(self, model: torch.nn.Module, task: str) -> None:
        self.model = model
        self.config = model.config
        self.task = task
        self.arguments = tuple(inspect.signature(model.forward).parameters)
        self.kind = self._kind()

    def _kind(self) -> str:
        if self.task == "image classification":
            return "tokens" if "pixel_values" not in self.arguments and "input_ids" in self.arguments else "image"
        if self.task == "audio classification":
            if "input_values" in self.arguments and hasattr(self.config, "conv_dim"):
                return "waveform"
            return "features"
        return "tokens"

    @property
    def padded(self) -> bool:
        """Whether the inputs have a mask, so that rows may be padded."""
        return self.kind != "image" and "attention_mask" in self.make(1, 8)

    def make(
        self,
        batch: int,
        size: int,
        valid: Sequence[int] | None = None,
        *,
        left: bool = False,
        junk: int = 0,
        seed: int = 0,
    ) -> dict[str, torch.Tensor]:
        """Inputs of one shape.

        Parameters
        ----------
        batch
            Number of rows.
        size
            Tokens of a row; pixels of a side; frames; or hundreds of samples.
        valid
            How many tokens of each row are no padding; all unless given.
        left
            Padding comes before the content.
        junk
            Zero: padding holds the padding token. Else: a seed for tokens to stand under the padding.
        seed
            For the content.
        """
        generator = torch.Generator().manual_seed(1000 * seed + 10 * size + batch)
        make = {"tokens": self._tokens, "image": self._image, "waveform": self._waveform, "features": self._features}
        inputs = make[self.kind](batch, size, generator)
        if valid is not None:
            self._pad(inputs, valid, left, junk)
        return inputs

    def _names(self) -> tuple[str, ...]:
        from sweep.overrides import WITHOUT_MASK

        family = self.config.model_type
        return tuple(name for name in self.arguments if not (name == "attention_mask" and family in WITHOUT_MASK))

    def _tokens(self, batch: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        from sweep.overrides import FURTHER_INPUTS

        ids = torch.randint(FIRST_TOKEN, LAST_TOKEN, (batch, length), generator=generator)
        eos = _text_config(self.config, "eos_token_id")
        if isinstance(eos, int):
            ids[:, -1] = eos
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

    def _image(self, batch: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        from sweep.overrides import FURTHER_INPUTS

        name = "pixel_values" if "pixel_values" in self.arguments else "inputs"
        channels = getattr(_vision(self.config), "num_channels", 3)
        inputs = {name: torch.rand(batch, channels, size, size, generator=generator)}
        further = FURTHER_INPUTS.get(self.config.model_type)
        return inputs | (further(self.config, inputs[name], generator) if further else {})

    def _waveform(self, batch: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        values = torch.randn(batch, 100 * size, generator=generator)
        return {"input_values": values, "attention_mask": torch.ones(values.shape, dtype=torch.long)}

    def _features(self, batch: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        from sweep.overrides import FEATURES

        return FEATURES[self.config.model_type](self.config, batch, size, generator)

    def _pad(self, inputs: dict[str, torch.Tensor], valid: Sequence[int], left: bool, junk: int) -> None:
        mask = inputs["attention_mask"]
        length = mask.shape[1]
        count = torch.tensor([max(1, int(length * n)) if isinstance(n, float) else n for n in valid])[:, None]
        column = torch.arange(length)[None]
        keep = column >= length - count if left else column < count
        inputs["attention_mask"] = keep.to(mask.dtype)
        name = next(key for key in inputs if key in ("input_ids", "inputs", "input_values", "input_features"))
        content = inputs[name]
        eos = _text_config(self.config, "eos_token_id")
        if content.dtype == torch.long and isinstance(eos, int):
            content[torch.arange(len(count)), -1 if left else count[:, 0] - 1] = eos
        generator = torch.Generator().manual_seed(junk)
        if content.dtype == torch.long:
            pad = _text_config(self.config, "pad_token_id") or 0
            other = torch.randint(FIRST_TOKEN, LAST_TOKEN, content.shape, generator=generator)
            content[~keep] = other[~keep] if junk else pad
        else:
            other = torch.randn(content.shape, generator=generator)
            content[~keep] = other[~keep] if junk else 0.0


def _text_config(config: Any, name: str) -> Any:
    text = getattr(config, "text_config", None)
    return getattr(config, name, None) if getattr(config, name, None) is not None else getattr(text, name, None)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config
