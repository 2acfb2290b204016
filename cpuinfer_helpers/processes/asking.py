"""Have a child process prepare a recipe, and ask it about what it has prepared; all that can go wrong is a status."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.processes.child import Child, ChildLost
from cpuinfer_helpers.processes.questions import step_of
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status, failure
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import Recipe
from cpuinfer_helpers.saving.plain import read

logger = logging.getLogger("cpuinfer_helpers")


@dataclass(frozen=True)
class Preparation:
    """What a child has prepared.

    Attributes
    ----------
    status
        Successful; or that the eager model answers instead, and why: ``fell back``, ``out of memory``.
    receipt
        All that was seen of the preparation.
    seconds
        How long it took to build what runs.
    example_calls
        Seconds of the first calls with the inputs themselves, the very first one included.
    """

    status: Status
    receipt: Receipt
    seconds: float
    example_calls: Sequence[float]

    @property
    def runs(self) -> str:
        """What answers."""
        return self.receipt.runs or "the eager model"


@dataclass(frozen=True)
class Answer:
    """What a child answered.

    Attributes
    ----------
    status
        Successful; or why there is no answer: ``lacks``, ``fell back``, ``crashed``, ``out of memory``, ``timed out``.
    value
        What the function returned, as JSON has it; None without an answer.
    runs
        What the child has prepared; empty if it did not come to that.
    """

    status: Status
    value: Any = None
    runs: str = ""


def prepare_in(session: Session, child: Child, **options: Any) -> Preparation:
    """Have a child prepare the recipe and the model that it has loaded.

    Parameters
    ----------
    session, child
        As :meth:`Session.start` gave it.
    **options
        For :meth:`~cpuinfer_helpers.processes.worker.Worker.prepare`.

    Raises
    ------
    ChildLost
        If the child ends.
    """
    done = session.ask(child, "prepare", **options)
    receipt = read(Receipt, done["receipt"], "receipt", older=True)
    status = SUCCESSFUL if done["prepared"] else failure(Kind.FELL_BACK, receipt.reason)
    return Preparation(status, receipt, done["seconds"], done["example_calls"])


def ask_alone(
    session: Session, recipe: Recipe, question: str, *, verify: bool, watched: bool = True, **arguments: Any
) -> Answer:
    """Start a process, have it prepare a recipe, ask it one question, and end it.

    Parameters
    ----------
    session
        Starts the process, with the model and all else that it was given.
    recipe
        What prepares the model.
    question
        A function of this package, as ``module:function``. In the process it is called with the prepared model, with
        what the session was given, the model itself excepted, and with ``arguments``. It returns what JSON can hold.
    verify
        Whether the prepared model is checked on other sizes and paddings; if it fails, that is a fall back.
    watched
        Whether memory is watched while it answers; that would disturb a measurement.
    **arguments
        Further arguments of the function, in types that JSON knows.

    Returns
    -------
    Answer
        Without a value if the recipe cannot run here or falls back, or the process fails, ends, needs too much memory
        or takes too long. A failure is logged as a WARNING, and costs nobody else anything.
    """
    answer = _answer(session, recipe, question, verify, watched, arguments)
    if answer.status.failed:
        logger.warning("%s: %s", recipe.name, answer.status)
    return answer


def _answer(
    session: Session, recipe: Recipe, question: str, verify: bool, watched: bool, arguments: dict[str, Any]
) -> Answer:
    lacks = recipe.why_not
    if lacks:
        return Answer(Status(Kind.LACKS, lacks))
    try:
        child, _ = session.start(recipe)
        try:
            preparation = prepare_in(session, child, verify=verify)
            if not preparation.status.successful:
                return Answer(preparation.status, runs=preparation.runs)
            told = {"question": question, "arguments": arguments}
            value = session.ask(child, "answer_question", watched=watched, step=step_of(question), **told)
        finally:
            session.close(child)
    except ChildLost as lost:
        return Answer(lost.status)
    return Answer(SUCCESSFUL, value, preparation.runs)
