"""BetterTransformer: a model's encoder layers on the fast path that PyTorch has for them."""

from cpuinfer_helpers.bettertransformer.converting import reverse_bettertransformer, to_bettertransformer
from cpuinfer_helpers.bettertransformer.fast_path import FastPathUse, KernelsInside, fast_path_use, kernels_inside
from cpuinfer_helpers.bettertransformer.layer import FastEncoderLayer

__all__ = [
    "FastEncoderLayer",
    "FastPathUse",
    "KernelsInside",
    "fast_path_use",
    "kernels_inside",
    "reverse_bettertransformer",
    "to_bettertransformer",
]
