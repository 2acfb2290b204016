"""One label for each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cpuinfer_helpers.tasks.kinds.base import TaskKind, unknown_shape

_USUAL_SIZE = 224
_SEED = 0


def _inputs(
    kind: TaskKind, model: torch.nn.Module, processor: Any, batch_size: int, length: int | None
) -> dict[str, torch.Tensor]:
    """Images from a fixed seed as the processor makes them; numbers of the configuration's shape without one."""
    if model.main_input_name != "pixel_values":
        raise unknown_shape(model)
    channels, height, width = _shape(model.config)
    if processor is None:
        generator = torch.Generator().manual_seed(_SEED)
        return {"pixel_values": torch.randn(batch_size, channels, height, width, generator=generator)}
    images = np.random.default_rng(_SEED).integers(0, 256, (batch_size, height, width, channels), dtype=np.uint8)
    return dict(processor(images=list(images), return_tensors="pt"))


def _shape(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "image_size", None) or _USUAL_SIZE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return getattr(config, "num_channels", 3), height, width


KIND = TaskKind("image-classification", "AutoModelForImageClassification", "AutoImageProcessor", _inputs)
