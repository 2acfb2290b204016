"""Which model classes the installed transformers' auto classes know for the tasks of the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MULTIPLE_CHOICE, SEQUENCE_TO_SEQUENCE, EMBEDDINGS = "multiple choice", "sequence to sequence", "embeddings"
TASKS: dict[str, tuple[str, ...]] = {
    "question answering": ("FOR_QUESTION_ANSWERING",),
    "text classification": ("FOR_SEQUENCE_CLASSIFICATION",),
    "token classification": ("FOR_TOKEN_CLASSIFICATION",),
    "image classification": ("FOR_IMAGE_CLASSIFICATION",),
    "audio classification": ("FOR_AUDIO_CLASSIFICATION",),
    MULTIPLE_CHOICE: ("FOR_MULTIPLE_CHOICE",),
    "masked language modelling": ("FOR_MASKED_LM",),
    "causal language modelling": ("FOR_CAUSAL_LM",),
    "next sentence prediction": ("FOR_NEXT_SENTENCE_PREDICTION",),
    SEQUENCE_TO_SEQUENCE: ("FOR_SEQ_TO_SEQ_CAUSAL_LM",),
    "object detection": ("FOR_OBJECT_DETECTION",),
    "image segmentation": (
        "FOR_IMAGE_SEGMENTATION",
        "FOR_INSTANCE_SEGMENTATION",
        "FOR_SEMANTIC_SEGMENTATION",
        "FOR_UNIVERSAL_SEGMENTATION",
    ),
    EMBEDDINGS: ("",),
}
# Tasks whose inputs are others than those that the same class gets for another task.
_OWN_INPUTS = (MULTIPLE_CHOICE, SEQUENCE_TO_SEQUENCE)


@dataclass(frozen=True)
class Case:
    """One model class and the task that it is for."""

    name: str
    task: str
    family: str

    def model_class(self) -> Any:
        """The class itself; importing it may fail where a package that it needs is missing."""
        import transformers

        return getattr(transformers, self.name)


def all_cases() -> list[Case]:
    """Every class once, and again where another task gives it other inputs; in the order of tasks and names."""
    cases: dict[tuple[str, str], Case] = {}
    for task, mappings in TASKS.items():
        for mapping in mappings:
            for family, name in _classes(mapping):
                inputs = task if task in _OWN_INPUTS else ""
                cases.setdefault((name, inputs), Case(name, task, family))
    return list(cases.values())


def _classes(mapping: str) -> list[tuple[str, str]]:
    """Family and name of each class of one of the auto classes' tables."""
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, f"MODEL_{mapping}_MAPPING_NAMES".replace("__", "_"))
    return [
        (family, name)
        for family, names in sorted(table.items())
        for name in ((names,) if isinstance(names, str) else names)
    ]
