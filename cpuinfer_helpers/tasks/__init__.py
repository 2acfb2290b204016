"""Tasks: model, tokenizer, data and metric, from the hub or offline."""

from cpuinfer_helpers.tasks.kinds.registry import task_names
from cpuinfer_helpers.tasks.loading import load_task
from cpuinfer_helpers.tasks.models import LoadedModel, load_model
from cpuinfer_helpers.tasks.task import Score, Task

__all__ = ["LoadedModel", "Score", "Task", "load_model", "load_task", "task_names"]
