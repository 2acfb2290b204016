"""What the whole process shares is put back as it was found, by however many threads, and is changed in one place."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._functorch.vmap

import cpuinfer_helpers as cpu
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.switches import native_stderr_logged
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet
from cpuinfer_helpers.tracing.traceable import traceable_operators
from tests.conftest import no_temporary_folder, seen_in_child
from tests.forks import ends_with
from tests.soak import Marked, changes, state

PACKAGE = Path(cpu.__file__).parent


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """No test here may leave anything behind."""
    before = state()
    yield
    changed = changes(before, state())
    # pytest itself and its plugins set these anew between the test and what comes before and after it.
    of_pytest = {"stdout, stderr", "logging", "warnings", "file descriptors", "Python's random state"}
    assert changed.keys() <= of_pytest


def elsewhere(function: Callable[[], Any]) -> Any:
    """What a function returns, or raises, in another thread."""
    seen: list[Any] = []

    def run() -> None:
        try:
            seen.append(function())
        except Exception as error:
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert seen, "the other thread waits"
    return seen[0]


def gradient() -> float:
    x = torch.ones(1, requires_grad=True)
    Marked.apply(x).sum().backward()
    return x.grad.item()


def test_another_thread_keeps_its_backward_and_vmap_while_one_traces():
    with traceable_operators():
        assert elsewhere(gradient) == 200
        assert elsewhere(lambda: torch.vmap(torch.sin)(torch.zeros(3)).tolist()) == [0.0] * 3
        assert gradient() != 200
        with pytest.raises(cpu.TraceError, match="vmap"):
            torch.vmap(torch.sin)(torch.zeros(3))
    assert gradient() == 200


def test_what_another_thread_took_while_one_traced_goes_on_working():
    with traceable_operators():
        apply, vmap = Marked.apply, torch._functorch.vmap._flat_vmap
    assert apply(torch.ones(1, requires_grad=True)).grad_fn is not None
    assert vmap is not torch._functorch.vmap._flat_vmap and gradient() == 200


def test_a_method_that_is_replaced_here_is_the_original_elsewhere():
    with switches.patched(logging.Logger, "isEnabledFor", lambda log, level: False):
        log = logging.getLogger("somebody")
        assert not log.isEnabledFor(logging.ERROR)
        assert elsewhere(lambda: log.isEnabledFor(logging.ERROR))


def test_other_threads_print_log_and_warn_while_libraries_are_quiet(capsys, caplog):
    other = logging.getLogger("somebody.else")

    def chatter() -> None:
        print("printed elsewhere")
        other.warning("logged elsewhere")
        warnings.warn("warned elsewhere", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="warned elsewhere"), libraries_quiet() as messages:
        elsewhere(chatter)
        print("printed here")
        other.warning("logged here")
        warnings.warn("warned here", UserWarning, stacklevel=1)
    assert capsys.readouterr().out == "printed elsewhere\n"
    assert [record.getMessage() for record in caplog.records if record.name == other.name] == ["logged elsewhere"]
    assert messages == ["UserWarning: warned here"]


def test_another_thread_still_writes_to_stderr_while_native_output_is_caught(capfd, monkeypatch):
    with open(os.dup(2), "w", buffering=1, closefd=True) as stream:
        monkeypatch.setattr(switches, "_descriptor_of", lambda asked: 2)
        monkeypatch.setattr(sys, "stderr", stream)
        with native_stderr_logged():
            os.write(2, b"native\n")
            elsewhere(lambda: print("from elsewhere", file=sys.stderr))
            kept = sys.stderr
        print("afterwards", file=kept, flush=True)
        monkeypatch.undo()
    assert capfd.readouterr().err == "from elsewhere\nafterwards\n"


@pytest.mark.parametrize(
    ("memory_files", "folder", "collected"),
    [(True, False, True), (False, True, True), (False, False, False), ("forbidden", True, True)],
)
@pytest.mark.parametrize("number", [1, 2])
def test_native_output_is_collected_without_a_temporary_folder(
    number, memory_files, folder, collected, monkeypatch, capfd
):
    def forbidden(*_: Any) -> int:
        raise PermissionError(1, "not in this container")

    if memory_files == "forbidden":
        monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    elif not memory_files:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("this system has no files in memory")
    with nullcontext() if folder else no_temporary_folder(), switches.descriptor_collected(number) as lines:
        os.write(number, b"native\n")
    os.write(number, b"afterwards\n")
    assert lines == (["native"] if collected else [])
    assert capfd.readouterr()[number - 1] == ("" if collected else "native\n") + "afterwards\n"


class Broken(io.StringIO):
    """Whoever reads it has gone."""

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [None, "closed", Broken()])
def test_without_a_usable_stderr_native_output_is_still_collected(stream, monkeypatch):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with native_stderr_logged():
        os.write(2, b"native\n")


def test_a_closed_descriptor_hinders_nothing():
    kept = os.dup(2)
    os.close(2)
    try:
        with switches.descriptor_collected(2):
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(2)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_one_variable_is_put_back_and_others_are_left_alone(monkeypatch):
    monkeypatch.setenv("CPUINFER_ONE", "before")
    with switches.environment("CPUINFER_ONE", "inside"), switches.environment("CPUINFER_NONE", "inside"):
        monkeypatch.setenv("CPUINFER_OTHER", "set meanwhile")
    assert os.environ["CPUINFER_ONE"] == "before" and "CPUINFER_NONE" not in os.environ
    assert os.environ["CPUINFER_OTHER"] == "set meanwhile"


def test_threads_that_overlap_put_back_what_the_first_has_found():
    found, inside, leave = torch.get_num_threads(), threading.Event(), threading.Event()

    def first() -> None:
        with cpu.threads(found + 1):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(30)
    with cpu.threads(found + 2):
        leave.set()
        thread.join(30)
        with cpu.threads(found + 3):
            pass
        assert torch.get_num_threads() == found + 2
    assert torch.get_num_threads() == found == elsewhere(torch.get_num_threads)


def test_what_is_needed_by_several_is_switched_once():
    seen: list[str] = []
    memory = switches.Counted(lambda: seen.append("on"), lambda: seen.append("off"))
    first, second = memory.needed(), memory.needed()
    for enter in (first, second):
        enter.__enter__()
    first.__exit__(None, None, None)
    assert seen == ["on"]
    second.__exit__(None, None, None)
    assert seen == ["on", "off"]


# What is PyTorch's own: its trace log drops the handler for a folder that nobody has asked for, and its compiler keeps
# threads and a process for the next compilation, which may be another thread's. IPEX says that it changes the process.
EXPECTED = {"compile-fp32": {"loggers", "Python threads", "file descriptors"}, "ipex-fp32": {"JIT switches"}}


def test_the_first_model_of_each_backend_leaves_the_process_as_it_was():
    names = ("eager-bf16", "torchscript-fp32", "onednn-graph-fp32", "bettertransformer-fp32", "openvino-fp32")
    names += ("openvino-int8", "onnxruntime-fp32", "onnxruntime-int8", "compile-fp32", "ipex-fp32")
    found = seen_in_child("-m", "tests.fresh_process", *names)
    unexpected = {
        name: {what: text for what, text in changed.items() if what not in EXPECTED.get(name, ())}
        for name, changed in found.items()
    }
    assert {name: changed for name, changed in unexpected.items() if changed} == {}


def test_a_compilation_leaves_the_environment_and_the_recursion_limit_as_they_were(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_OF_THE_USER", "before")
    limit = sys.getrecursionlimit()
    with switches.compiled_call():
        os.environ |= {"TORCHINDUCTOR_OF_THE_USER": "changed", "TORCHINDUCTOR_LEFT": "1", "CPUINFER_OTHER": "stays"}
        sys.setrecursionlimit(limit + 1000)
    assert os.environ["TORCHINDUCTOR_OF_THE_USER"] == "before" and "TORCHINDUCTOR_LEFT" not in os.environ
    assert os.environ.pop("CPUINFER_OTHER") == "stays" and sys.getrecursionlimit() == limit


def test_libraries_that_draw_random_numbers_take_none_of_the_users():
    random.seed(3)
    np.random.seed(3)
    wanted = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    with libraries_quiet():
        random.random()
        np.random.rand()
    assert (random.random(), np.random.rand()) == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_lock_that_another_thread_held():
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with switches.held(), switches.compiled_call():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    child = os.fork()
    if child == 0:
        with switches.held(), switches.compiled_call():
            os._exit(7)
    try:
        assert ends_with(child) == 7
    finally:
        leave.set()
        thread.join()


# Where the state of the process may be changed. The others import IPEX, load it, or are children's own main programs.
CHANGES = r"mock\.patch|setattr\(torch|os\.dup2|torch\._C\._jit_set|enable_onednn_fusion\(True|logging\.disable\("
CHANGES += r"|redirect_std|catch_warnings|fork_rng|os\.environ\[.*\] =|os\.environ\.update|torch\.set_num_threads\("
ALLOWED = {
    "machine/switches.py": CHANGES,
    # Reads the mode, which has no other way to be read; and names the switch in a sentence.
    "fusion/causes.py": r"_jit_set_autocast_mode|enable_onednn_fusion",
    # Puts back what NNCF has set, under the lock.
    "recipes/tools/quiet.py": r"logging\.disable\(threshold\)",
    # Names it in a message.
    "recipes/backends/ipex.py": r"call torch\.set_num_threads",
    "interface/carrying.py": r"call torch\.set_num_threads",
    # The child that measures, and the one that shows the Trainer's flows, live for that only.
    "processes/worker.py": r"torch\.set_num_threads",
    "course/flows.py": r"torch\.set_num_threads",
}


def test_the_process_is_changed_in_one_place_only():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(CHANGES, line) and not re.search(ALLOWED.get(name, r"(?!)"), line):
                found.append(f"{name}: {line.strip()}")
    assert found == [], "use cpuinfer_helpers.machine.switches"
