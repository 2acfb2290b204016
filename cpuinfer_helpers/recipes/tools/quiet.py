"""Let libraries convert a model without their progress bars, log lines, warnings or telemetry."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator

from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.switches import native_stderr_logged

logger = logging.getLogger("cpuinfer_helpers")

_TELEMETRY = ("send_event", "start_session", "end_session", "send_error", "send_stack_trace")


@contextlib.contextmanager
def libraries_quiet() -> Iterator[list[str]]:
    """Run the block without other libraries' chatter, and without telemetry; everything global is restored.

    What they print goes to the log, at DEBUG.

    Yields
    ------
    list of str
        Filled, at the end of the block, with the Python warnings that were given in it, each once.
    """
    messages: list[str] = []
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(switches.held())
        stack.enter_context(switches.pythons_random_state_kept())
        stack.enter_context(_logging_restored())
        stack.enter_context(_no_telemetry())
        stack.enter_context(_no_progress_bars())
        stack.enter_context(native_stderr_logged())
        stack.enter_context(switches.stdout_redirected(printed))
        caught = stack.enter_context(switches.warnings_caught())
        yield messages
    texts = (f"{one.category.__name__}: {' '.join(str(one.message).split())}" for one in caught)
    # Each library announces its own deprecations, which say nothing about this model.
    messages.extend(dict.fromkeys(text for text in texts if not text.startswith(_ABOUT_THE_LIBRARY)))
    for line in printed.getvalue().splitlines():
        logger.debug("a library printed: %s", line)


_ABOUT_THE_LIBRARY = ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning")


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """Nothing of this thread's below ERROR; then the root logger's handlers and the class of new loggers as before.

    NNCF sets the class for the whole process, and ``logging.warning`` gives a root logger without handlers one.
    """
    enabled = logging.Logger.isEnabledFor

    def errors_only(log: logging.Logger, level: int) -> bool:
        return level > logging.WARNING and enabled(log, level)

    with switches.held():
        root, logger_class = logging.getLogger(), logging.getLoggerClass()
        handlers, threshold = list(root.handlers), logging.root.manager.disable
        try:
            with switches.patched(logging.Logger, "isEnabledFor", errors_only):
                yield
        finally:
            logging.disable(threshold)
            logging.setLoggerClass(logger_class)
            root.handlers[:] = handlers


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """OpenVINO and NNCF report their use over the network unless they find themselves in continuous integration.

    The variable also keeps them from writing an identifier into the home folder. Where the process has imported them
    before, it comes too late, so what sends is replaced for the block.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(switches.environment("CI", "true"))
        if importlib.util.find_spec("openvino_telemetry") is not None:
            from openvino_telemetry import Telemetry

            for name in _TELEMETRY:
                stack.enter_context(switches.patched(Telemetry, name, _nothing))
        yield


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """NNCF draws with rich, in a notebook past the standard output."""
    if importlib.util.find_spec("rich") is None:
        yield
        return
    from rich.progress import Progress

    construct = Progress.__init__

    def disabled(self: Progress, *columns: object, **settings: object) -> None:
        construct(self, *columns, **{**settings, "disable": True})

    with switches.patched(Progress, "__init__", disabled):
        yield


def _nothing(*_: object, **__: object) -> None:
    """Take anything, do nothing."""
