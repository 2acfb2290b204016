"""One label for each recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cpuinfer_helpers.tasks.kinds.base import TaskKind, unknown_shape

# One second at the rate that nearly all speech models are trained for.
_SAMPLES = 16_000
# Two frames of 10 ms are stacked to one.
_SAMPLES_OF_FRAME = 320
_SEED = 0


def _inputs(
    kind: TaskKind, model: torch.nn.Module, extractor: Any, batch_size: int, length: int | None
) -> dict[str, torch.Tensor]:
    """A second of noise from a fixed seed as the extractor makes it; numbers of the model's shape without one."""
    if extractor is None:
        values = torch.randn(batch_size, *_shape(model, length), generator=torch.Generator().manual_seed(_SEED))
        return {model.main_input_name: values}
    rate = extractor.sampling_rate
    sound = np.random.default_rng(_SEED).normal(scale=0.1, size=(batch_size, length or rate)).astype(np.float32)
    return dict(extractor(list(sound), sampling_rate=rate, return_tensors="pt"))


def _shape(model: torch.nn.Module, length: int | None) -> tuple[int, ...]:
    """Shape of one row of the main input, from the configuration."""
    config, samples = model.config, length or _SAMPLES
    if model.main_input_name == "input_values":
        # The audio spectrogram transformer calls its spectrogram input_values too.
        is_spectrogram = hasattr(config, "num_mel_bins") and hasattr(config, "max_length")
        return (config.max_length, config.num_mel_bins) if is_spectrogram else (samples,)
    if model.main_input_name == "input_features":
        if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
            return (config.num_mel_bins, 2 * config.max_source_positions)
        if hasattr(config, "feature_projection_input_dim"):
            return (max(1, samples // _SAMPLES_OF_FRAME), config.feature_projection_input_dim)
    raise unknown_shape(model)


KIND = TaskKind("audio-classification", "AutoModelForAudioClassification", "AutoFeatureExtractor", _inputs)
