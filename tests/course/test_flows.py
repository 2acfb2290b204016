"""What runs of flows refuse before a process is started."""

from __future__ import annotations

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course.flows import run_flows


@pytest.mark.parametrize("threads", [0, -1, 10**9, 1.5, True])
def test_nonsense_numbers_of_threads(threads):
    with pytest.raises(cpu.InputError, match=f"threads is {threads}; give a whole number"):
        run_flows("text-classification", {"plain": []}, threads=threads)
