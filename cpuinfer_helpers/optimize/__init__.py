"""The fastest recipe that keeps a model's answers: found, remembered, saved and loaded."""

from cpuinfer_helpers.optimize.model import OptimizedModel, load_optimized
from cpuinfer_helpers.optimize.optimize import optimize

__all__ = ["OptimizedModel", "load_optimized", "optimize"]
