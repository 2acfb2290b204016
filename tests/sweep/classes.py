"""Which model classes the installed transformers' auto classes know for the tasks of the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.tasks.kinds.registry import kinds

WRITERS = "causal language modelling"
SPEECH = "speech to text"
MULTIPLE_CHOICE, SEQUENCE_TO_SEQUENCE, EMBEDDINGS = "multiple choice", "sequence to sequence", "embeddings"
# What results of the sweep have always called these.
_NAMES = {"fill-mask": "masked language modelling"}
# A task and transformers' lists of its classes: the package's kinds that have a head of their own, and others. Causal
# language modelling comes late: what is also in another list has always been swept for that one.
TASKS: dict[str, tuple[str, ...]] = {
    **{
        _NAMES.get(kind.name, kind.name.replace("-", " ")): (kind.class_list,)
        for kind in kinds()
        if kind.auto_class not in ("AutoModel", "AutoModelForCausalLM")
    },
    MULTIPLE_CHOICE: ("MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",),
    WRITERS: ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "next sentence prediction": ("MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",),
    SEQUENCE_TO_SEQUENCE: ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",),
    "object detection": ("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",),
    "image segmentation": (
        "MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES",
        "MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES",
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
        "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    ),
    EMBEDDINGS: ("MODEL_MAPPING_NAMES",),
    SPEECH: ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",),
}
# Those whose classes write text; of the last one that is all that is tried.
WRITING_TASKS = (WRITERS, SEQUENCE_TO_SEQUENCE, SPEECH)
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
    for task, lists in TASKS.items():
        for listed in lists:
            for family, name in _classes(listed):
                inputs = task if task in _OWN_INPUTS else ""
                cases.setdefault((name, inputs), Case(name, task, family))
    return list(cases.values())


def _classes(listed: str) -> list[tuple[str, str]]:
    """Family and name of each class of one of transformers' lists."""
    from transformers.models.auto import modeling_auto

    return [
        (family, name)
        for family, names in sorted(getattr(modeling_auto, listed).items())
        for name in ((names,) if isinstance(names, str) else names)
    ]
