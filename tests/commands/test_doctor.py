from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.commands import doctor
from cpuinfer_helpers.commands.doctor import FAIL, OK, WARN, diagnose
from cpuinfer_helpers.machine.report import MachineReport

GUIDE = {
    "torch": "2.8.0",
    "intel-extension-for-pytorch": "2.8.0",
    "transformers": "4.52.4",
    "accelerate": "1.15.0",
}


@pytest.fixture
def report(monkeypatch):
    """A report of a good machine with the guide stack; no check leaves this process."""
    monkeypatch.setattr(doctor, "import_problem", lambda module: None)
    monkeypatch.setattr(doctor, "hub_unavailable", lambda: "HF_HUB_OFFLINE is set")
    return MachineReport(
        cpu="Test CPU",
        architecture="x86_64",
        isa=("AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16"),
        isa_caps={},
        cores_total=4,
        cores_allowed=4,
        cpu_quota=None,
        threads=4,
        memory_total=16 * 2**30,
        memory_available=12 * 2**30,
        python="3.11.7",
        system="Linux 6",
        versions=GUIDE,
    )


def finding(report, name):
    return next(f for f in diagnose(report).findings if f.name == name)


def versions(**changes):
    merged = {**GUIDE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def test_a_good_machine_is_healthy(report):
    diagnosis = diagnose(report)
    assert diagnosis.healthy
    assert {f.status for f in diagnosis.findings} <= {OK, WARN}
    assert all(f.advice for f in diagnosis.findings if f.status != OK)


@pytest.mark.parametrize(
    ("change", "name", "status", "word"),
    [
        ({"python": "3.9.18"}, "Python", FAIL, "3.10 to 3.13"),
        ({"python": "3.14.0"}, "Python", FAIL, "3.10 to 3.13"),
        ({"python": "3.13.2+"}, "Python", OK, "3.13.2+"),
        ({"isa": ("AVX2",)}, "CPU", WARN, "emulated"),
        ({"isa": ()}, "CPU", WARN, "AVX2"),
        ({"isa_caps": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, "CPU", WARN, "ONEDNN_MAX_CPU_ISA=AVX2"),
        ({"cpu_quota": 1.5}, "cores", WARN, "OMP_NUM_THREADS=1"),
        ({"cores_allowed": 2}, "cores", WARN, "OMP_NUM_THREADS=2"),
        ({"threads": 1}, "cores", WARN, "OMP_NUM_THREADS"),
        ({"memory_available": 3 * 2**30}, "memory", WARN, "3.0 GiB"),
        ({"memory_available": 1 * 2**30}, "memory", FAIL, "close other programs"),
        ({"versions": versions(torch="2.10.0")}, "stack", WARN, "requirements"),
        ({"versions": versions(torch="2.9.1")}, "IPEX", FAIL, "install torch 2.8.x"),
        ({"versions": versions(transformers="4.55.0")}, "stock Trainer flags", WARN, "does nothing"),
        ({"versions": versions(transformers="4.57.6")}, "stock Trainer flags", OK, "use_ipex is gone"),
        ({"versions": versions(transformers="4.47.1")}, "stock Trainer flags", WARN, "falls back"),
        ({"versions": versions(transformers="5.23.0")}, "stock Trainer flags", OK, "neither"),
        ({"versions": versions(accelerate=None)}, "accelerate", WARN, "pip install accelerate"),
        ({"versions": versions(accelerate="0.20.0")}, "accelerate", FAIL, "0.26"),
    ],
)
def test_each_fault_is_named_with_what_to_do(report, change, name, status, word):
    found = finding(replace(report, **change), name)
    assert found.status == status
    assert word in str(found)


def test_ipex_that_fits_is_still_named_with_its_known_issues(report):
    found = finding(report, "IPEX")
    assert found.status == WARN and "security" in found.advice


def test_ipex_that_cannot_be_imported_fails(report, monkeypatch):
    monkeypatch.setattr(doctor, "import_problem", lambda module: "ImportError: libfoo.so")
    assert finding(report, "IPEX").status == FAIL and not diagnose(report).healthy


def test_import_problem_tries_it_in_a_process_of_its_own():
    assert doctor.import_problem("json") is None
    assert "ModuleNotFoundError" in doctor.import_problem("no_such_module_anywhere")


def test_a_missing_compiler_is_a_warning(report, monkeypatch):
    monkeypatch.setattr(doctor, "find_compiler", lambda: None)
    assert finding(report, "C++ compiler").status == WARN


def test_a_kernel_of_another_python_fails(tmp_path):
    assert doctor.same_python("python")
    assert doctor.same_python(sys.executable)
    assert not doctor.same_python(str(tmp_path / "bin" / "python"))


def test_the_command_prints_a_line_a_check_and_ends_with_the_right_code():
    command = [sys.executable, "-m", "cpuinfer_helpers", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(cpu.__file__).parents[1], check=False)
    lines = result.stdout.strip().splitlines()
    assert len(lines) >= 10
    assert all(line.startswith(("[ok]", "[warn]", "[fail]")) for line in lines)
    assert result.returncode == int(any(line.startswith("[fail]") for line in lines))


def test_the_exit_code_is_one_on_a_fail(report, monkeypatch, capsys):
    from cpuinfer_helpers import __main__

    monkeypatch.setattr(doctor, "machine_report", lambda: replace(report, python="3.9.1"))
    assert __main__.main(["doctor"]) == 1
    assert "[fail] Python: 3.9.1" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "machine_report", lambda: report)
    assert __main__.main(["doctor"]) == 0


def test_an_unknown_command_ends_with_code_two(capsys):
    from cpuinfer_helpers import __main__

    with pytest.raises(SystemExit) as stopped:
        __main__.main(["cure"])
    assert stopped.value.code == 2
    assert "cure" in capsys.readouterr().err
