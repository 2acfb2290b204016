"""What becomes of a prepared model in another process: copied, pickled or forked, or refused in one line."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError

_OF_THE_PROCESS = ("_process", "_threads")


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
    # Whether what answers has threads of its own, or was compiled for more than one.
    _own_threads = False

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Note in which process it is made, and with how many threads."""
        new = super().__new__(cls)
        new._process, new._threads = os.getpid(), torch.get_num_threads()
        return new

    @property
    def _compiled(self) -> bool:
        return False

    def _derive(self) -> None:
        """Set the attributes that are made of others."""

    def _refuse_fork(self) -> None:
        """Raise where a call in this process could wait for threads that only its parent has."""
        if os.getpid() == self._process:
            # What is compiled in a call may be compiled for as many.
            self._threads = max(self._threads, torch.get_num_threads())
            return
        refuse_fork(self, self._process, self._elsewhere, own_threads=self._own_threads)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for name, value in self._state().items():
            shared = name in _OF_THE_PROCESS or (self._compiled and name in self._shared)
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
        state = {name: value for name, value in self._state().items() if name not in _OF_THE_PROCESS}
        return _restored, (type(self), state)

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._derived}


def refuse_fork(made: object, process: int, elsewhere: str, *, own_threads: bool = False) -> None:
    """Raise where a call in this process could wait for threads that only the process that it was forked from has.

    Parameters
    ----------
    made
        What is called.
    process
        Where it was made.
    elsewhere
        What to do instead, for the message.
    own_threads
        Whether it has threads of its own, or was compiled for more than one.

    Raises
    ------
    ArtifactError
        In another process, unless it computes in one thread there and needs no other.
    """
    if os.getpid() == process or not (own_threads or torch.get_num_threads() > 1):
        return
    remedy = "" if own_threads else "call torch.set_num_threads(1) in it first, "
    raise ArtifactError(
        f"{type(made).__name__} was made in process {process} and is called in a fork of it, where its threads do not "
        f"exist and the call could hang: {remedy}start processes by 'spawn', or {elsewhere}"
    )


def _restored(kind: type[Carried], state: dict[str, Any]) -> Carried:
    new = kind.__new__(kind)
    vars(new).update(state)
    new._derive()
    return new
