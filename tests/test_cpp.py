from __future__ import annotations

import sys

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers import cpp

needs_compiler = pytest.mark.skipif(cpp.find_compiler() is None, reason="no C++ compiler is installed")


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


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cpp.find_compiler() is None
    with pytest.raises(cpu.BuildError, match="install"):
        cpp.build(tmp_path)


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    fake = tmp_path / "failing compiler"
    fake.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: no such header' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(cpu.BuildError, match="no such header"):
        cpp.build(tmp_path)
