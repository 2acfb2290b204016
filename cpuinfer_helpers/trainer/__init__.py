"""The Trainer flow of the guide: ``jit_mode_eval`` and ``use_ipex`` that do what they say, on any transformers."""

from cpuinfer_helpers.trainer.arguments import JitTrainingArguments
from cpuinfer_helpers.trainer.trainer import JitTrainer
from cpuinfer_helpers.trainer.verdict import TrainerVerdict, verify_trainer

__all__ = ["JitTrainer", "JitTrainingArguments", "TrainerVerdict", "verify_trainer"]
