"""The fastest recipe that keeps a model's answers: found, remembered, saved and loaded."""

from cpuinfer_helpers.optimize.model import OptimizedModel
from cpuinfer_helpers.optimize.optimizing import optimize

__all__ = ["OptimizedModel", "optimize"]
