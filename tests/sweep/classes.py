"""Which model classes the installed transformers' auto classes know for the tasks of the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TASKS = {
    "question answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "text classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}


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
    """Every class once, in the order of the tasks and of their names."""
    from transformers.models.auto import modeling_auto

    cases: dict[str, Case] = {}
    for task, mapping in TASKS.items():
        for family, names in sorted(getattr(modeling_auto, mapping).items()):
            for name in (names,) if isinstance(names, str) else names:
                cases.setdefault(name, Case(name, task, family))
    return list(cases.values())
