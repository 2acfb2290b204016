"""The fusion report: what fused in a module, proven by its graph and its kernels, and why the rest did not."""

from cpuinfer_helpers.fusion.layer import LayerPicture
from cpuinfer_helpers.fusion.patterns import PATTERNS
from cpuinfer_helpers.fusion.report import Finding, FusionReport, fusion_report

__all__ = ["PATTERNS", "Finding", "FusionReport", "LayerPicture", "fusion_report"]
