"""What becomes of a prepared model in another process: copied, pickled or forked, or refused in one line."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError


class Carried:
    """Base of the models that this package makes.

    A deep copy shares what was compiled, which calls do not change; an eager model in its place is copied. What was
    compiled cannot be pickled: pickling refuses and says what to do. An eager model can. After a fork, calls are
    refused where they could hang: the threads that PyTorch and the other runtimes compute with are not in the child.
    """

    # Attributes that a deep copy shares, and those that are made of others.
    _shared: tuple[str, ...] = ()
    _derived: tuple[str, ...] = ()
    _elsewhere = "prepare the model in the other process"
    # Whether what answers has threads of its own beside PyTorch's.
    _own_threads = False

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Note in which process it is made."""
        new = super().__new__(cls)
        new._process = os.getpid()
        return new

    @property
    def _compiled(self) -> bool:
        return False

    def _derive(self) -> None:
        """Set the attributes that are made of others."""

    def _refuse_fork(self) -> None:
        """Raise where a call in this process could wait for threads that only its parent has."""
        if os.getpid() != self._process and (self._own_threads or torch.get_num_threads() > 1):
            remedy = "" if self._own_threads else "call torch.set_num_threads(1) in it first, "
            raise ArtifactError(
                f"{type(self).__name__} was made in process {self._process} and is called in a fork of it, where its "
                f"threads do not exist and the call could hang: {remedy}start processes by 'spawn', or "
                f"{self._elsewhere}"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in self._state().items():
            shared = name == "_process" or (self._compiled and name in self._shared)
            vars(new)[name] = value if shared else copy.deepcopy(value, memo)
        new._derive()
        return new

    def __copy__(self) -> Any:
        new = type(self).__new__(type(self))
        vars(new).update(self._state())
        new._derive()
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._compiled:
            raise ArtifactError(
                f"{type(self).__name__} holds what was compiled here and cannot be pickled: {self._elsewhere}"
            )
        state = {name: value for name, value in self._state().items() if name != "_process"}
        return _restored, (type(self), state)

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._derived}


def _restored(kind: type[Carried], state: dict[str, Any]) -> Carried:
    new = kind.__new__(kind)
    vars(new).update(state)
    new._derive()
    return new
