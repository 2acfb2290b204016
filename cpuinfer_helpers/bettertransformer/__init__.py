"""BetterTransformer: a model's encoder layers on the fast path that PyTorch has for them."""

from cpuinfer_helpers.bettertransformer.converting import reverse_bettertransformer, to_bettertransformer
from cpuinfer_helpers.bettertransformer.evidence import FastPathUse, fast_path_use
from cpuinfer_helpers.bettertransformer.layer import FastEncoderLayer

__all__ = [
    "FastEncoderLayer",
    "FastPathUse",
    "fast_path_use",
    "reverse_bettertransformer",
    "to_bettertransformer",
]
