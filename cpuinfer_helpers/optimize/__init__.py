"""The fastest recipe that keeps a model's answers: found, remembered, saved and loaded."""

from cpuinfer_helpers.optimize.model import OptimizedModel
from cpuinfer_helpers.optimize.optimizing import optimize
from cpuinfer_helpers.optimize.saving import load_optimized

__all__ = ["OptimizedModel", "load_optimized", "optimize"]
