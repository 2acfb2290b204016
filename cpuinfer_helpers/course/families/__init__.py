"""Model families side by side: which of them get faster by which backend, on which task, in which precision."""

from cpuinfer_helpers.course.families.architectures import FAMILIES, Family
from cpuinfer_helpers.course.families.comparison import Benefit, FamilyComparison, FamilyResult
from cpuinfer_helpers.course.families.measuring import compare_families

__all__ = ["FAMILIES", "Benefit", "Family", "FamilyComparison", "FamilyResult", "compare_families"]
