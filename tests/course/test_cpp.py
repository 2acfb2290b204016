from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course import cpp
from cpuinfer_helpers.machine import compiler
from cpuinfer_helpers.machine.limits import most_threads

needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="no C++ compiler is installed")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return cpp.build(tmp_path_factory.mktemp("a folder with a space"))


@needs_compiler
def test_a_program_without_python_gives_the_models_answers(program, bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs)
    result = cpp.run(program, traced.module, bert_inputs, calls=3, threads=1)
    expected = bert(**bert_inputs)
    # The program prints nine digits, more than FP32 holds.
    torch.testing.assert_close(result.outputs["start_logits"], expected.start_logits.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.outputs["end_logits"], expected.end_logits.detach(), rtol=1e-5, atol=1e-6)
    assert len(result.seconds) == 3
    assert not result.has_python
    if sys.platform == "linux":
        assert any(name.startswith("libtorch_cpu") for name in result.libraries)


@needs_compiler
def test_it_reads_a_saved_trace(program, bert, bert_inputs, tmp_path):
    cpu.trace_model(bert, bert_inputs).save(tmp_path / "saved")
    result = cpp.run(program, tmp_path / "saved", bert_inputs, calls=1)
    assert result.outputs["start_logits"].shape == bert_inputs["input_ids"].shape
    assert "Python among them" in str(result)


@needs_compiler
def test_its_errors_are_told(program, bert, bert_inputs, tmp_path):
    with pytest.raises(cpu.BuildError, match=r"nothing\.pt"):
        cpp.run(program, tmp_path / "nothing.pt", bert_inputs)
    with pytest.raises(cpu.InputError, match="float32"):
        cpp.run(program, tmp_path / "nothing.pt", {"input_ids": torch.rand(1, 2)})


@needs_compiler
@pytest.mark.parametrize("number", ["0", "-1", "1000000000000", "9" * 30, "two", "", "1e3", "2 ", "nan"])
@pytest.mark.parametrize("place", ["CALLS", "THREADS"])
def test_the_program_refuses_nonsense_numbers_in_one_line(program, number, place, tmp_path):
    words = {"CALLS": "1", "THREADS": "1", place: number}
    command = [str(program), str(tmp_path / "no module"), str(tmp_path / "no inputs"), *words.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run_traced: {place} is '{number}'; give a whole number")
    assert done.stderr.count("\n") == 1


@needs_compiler
def test_the_program_takes_as_many_threads_as_python(program, tmp_path):
    """It gets as far as the module, which is not there: the number of threads was taken."""
    for threads, code in ((most_threads(), 1), (most_threads() + 1, 2)):
        command = [str(program), str(tmp_path / "no module"), str(tmp_path / "no inputs"), "1", str(threads)]
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == code


@pytest.mark.parametrize("given", [{"threads": 10**9}, {"threads": 0}, {"threads": 1.5}, {"calls": 0}, {"calls": None}])
def test_nonsense_numbers_are_refused_before_it_is_started(given, tmp_path, bert_inputs):
    with pytest.raises(cpu.InputError, match=rf"{next(iter(given))} is .*; give a whole number of at least 1"):
        cpp.run(tmp_path / "no program", tmp_path / "no module", bert_inputs, **given)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler.find_compiler() is None
    with pytest.raises(cpu.BuildError, match="install"):
        cpp.build(tmp_path)


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    fake = tmp_path / "failing compiler"
    fake.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: no such header' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(cpu.BuildError, match="no such header"):
        cpp.build(tmp_path)
