"""Run a function of this package once, in a child process of its own; all that can go wrong is a status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.processes.asking import Answer
from cpuinfer_helpers.processes.child import Child, ChildLost, import_path
from cpuinfer_helpers.processes.questions import step_of
from cpuinfer_helpers.processes.status import SUCCESSFUL

logger = logging.getLogger("cpuinfer_helpers")


def run_once(question: str, arguments: Mapping[str, Any], *, name: str, timeout_s: float) -> Answer:
    """Run a function of this package in a process of its own, for what changes the process that it runs in.

    The process has this one's environment and finds the modules that this one finds. It ends with the function.

    Parameters
    ----------
    question
        The function, as ``module:function``. It returns what JSON can hold.
    arguments
        Its arguments by name, in types that JSON knows.
    name
        What is run, for whoever reads the log.
    timeout_s
        Seconds after which the process is ended.

    Returns
    -------
    Answer
        Without a value if the process fails, ends, needs too much memory or takes too long; that is logged as a
        WARNING.

    Raises
    ------
    ArtifactError
        If there is no place for the process's temporary files.
    """
    try:
        with temporary_folder() as folder:
            value = _value(Child.start(name, folder / "child"), question, arguments, timeout_s)
    except ChildLost as lost:
        logger.warning("%s: %s", name, lost.status)
        return Answer(lost.status)
    return Answer(SUCCESSFUL, value)


def _value(child: Child, question: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
    told = {"question": question, "arguments": dict(arguments), "path": import_path()}
    try:
        value = child.ask("run_once", timeout_s=timeout_s, step=step_of(question), **told)
        child.log_what_it_wrote()
        return value
    finally:
        child.close()
