"""What became of a recipe: its kind, which code asks for, and the reason, which people read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cpuinfer_helpers.errors import is_memory_error


class Kind(str, Enum):
    """Kinds of what can become of a recipe; each is equal to its text."""

    SUCCESSFUL = "successful"
    # Not begun.
    LACKS = "lacks"
    NOT_TRIED = "not tried"
    # Begun, and given up because another one is faster.
    SLOWER = "slower"
    # Failed.
    FELL_BACK = "fell back"
    NOT_PREPARED = "could not be prepared"
    NOT_MEASURED = "not measured"
    WORSE = "worse"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out of memory"
    TIMED_OUT = "timed out"

    __str__ = str.__str__


_NO_FAILURES = frozenset({Kind.SUCCESSFUL, Kind.LACKS, Kind.NOT_TRIED, Kind.SLOWER})


@dataclass(frozen=True, repr=False)
class Status:
    """What became of a recipe.

    It prints as the kind, and the reason behind a colon: ``lacks: openvino>=2024 is not installed``.

    Attributes
    ----------
    kind
        One of :class:`Kind`, equal to its text: ``status.kind == "lacks"``.
    reason
        Why, in words for people; empty where there is nothing to explain.
    """

    kind: Kind
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else str(self.kind)

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def from_text(cls, text: str) -> Status:
        """The status that prints so.

        Raises
        ------
        ValueError
            If the text is of no kind.
        """
        kind, _, reason = str(text).partition(":")
        if kind not in set(Kind):
            raise ValueError(f"a status is {text!r:.80}, and should begin with one of: {', '.join(Kind)}")
        return cls(Kind(kind), reason.removeprefix(" "))

    @property
    def successful(self) -> bool:
        """Whether all that was asked for was done."""
        return self.kind is Kind.SUCCESSFUL

    @property
    def failed(self) -> bool:
        """Whether it was begun and went wrong, which deserves a warning."""
        return self.kind not in _NO_FAILURES


SUCCESSFUL = Status(Kind.SUCCESSFUL)


def failure(kind: Kind, reason: str | None) -> Status:
    """A failure of this kind, unless the reason tells that there was no more memory."""
    reason = reason or "no reason given"
    return Status(Kind.OUT_OF_MEMORY if is_memory_error(reason) else kind, reason)
