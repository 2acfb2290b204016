"""An IPEX that does not fit: everything says so, and nothing takes the process with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cpuinfer_helpers.machine.versions import release_of
from tests.conftest import seen_in_child
from tests.isa import NO_BF16_KERNELS_IN_IPEX

# What IPEX 2.8's own __init__ does: it asks os, which has no such function, to end the process; or sys, below AVX2.
WAYS = {"os.exit": "import os\nos.exit(127)\n", "sys.exit": "import sys\nsys.exit('ERROR! IPEX needs AVX2')\n"}
SEE = """
import json, sys
import torch
import cpuinfer_helpers as cpu
from cpuinfer_helpers.commands import doctor
from cpuinfer_helpers.machine.report import machine_report
from tests.faults.harm import Layers, example

names = ("ipex-fp32", "ipex-bf16", "ipex-int8")
seen = {"why not": [recipe.why_not for recipe in cpu.list_recipes() if recipe.name in names]}
seen["table"] = str(cpu.list_recipes())
prepared = [cpu.prepare(name, Layers().eval(), example()) for name in names]
seen["reasons"] = [model.reason for model in prepared]
right = Layers().eval()(**example())["logits"]
seen["right"] = all(torch.equal(model(**example())["logits"], right) for model in prepared)
try:
    cpu.prepare("ipex-fp32", Layers().eval(), example(), on_failure="raise")
except cpu.RecipeError as error:
    seen["raised"] = str(error)
found = doctor._ipex(machine_report())
seen["doctor"] = [found.status, str(found)]
if sys.argv[1] == "compare":
    options = {"threads": 1, "budget_s": 0.2, "measure_roofline": False}
    compared = cpu.compare(Layers().eval(), example(), ["ipex-fp32"], **options)
    seen["status"] = {name: str(row.status) for name, row in compared.rows.items()}
print("SEEN", json.dumps(seen))
"""
ON_GUIDE = release_of(torch.__version__)[:2] == (2, 8)


def fake_ipex(folder: Path, version: str, way: str) -> None:
    package = folder / "intel_extension_for_pytorch"
    package.mkdir()
    (package / "__init__.py").write_text(WAYS[way])
    described = folder / f"intel_extension_for_pytorch-{version}.dist-info"
    described.mkdir()
    name = "intel-extension-for-pytorch"
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(("version", "way"), [("2.7.0", "os.exit"), ("2.8.0", "os.exit"), ("2.8.0", "sys.exit")])
def test_it_is_named_and_the_process_survives(tmp_path, version, way):
    fake_ipex(tmp_path, version, way)
    root = str(Path(__file__).parents[2])
    # In a comparison, only the way that ends a process can do more harm than here.
    compares = way == "sys.exit"
    seen = seen_in_child("-c", SEE, "compare" if compares else "prepare", PYTHONPATH=f"{tmp_path}:{root}")
    assert seen["right"]
    assert seen["doctor"][0] == "fail" and version in seen["doctor"][1]
    told = [*seen["reasons"], seen["raised"]]
    if compares:
        assert seen["status"]["eager-fp32"] == "successful"
        told.append(seen["status"]["ipex-fp32"].removeprefix("fell back: " if ON_GUIDE else "lacks: "))
    if version == "2.8.0" and ON_GUIDE:
        # Its version fits, so only the import shows it.
        assert seen["why not"] == [None, NO_BF16_KERNELS_IN_IPEX, None]
        kind = "AttributeError" if way == "os.exit" else "SystemExit"
        for text in told:
            if text == NO_BF16_KERNELS_IN_IPEX:
                continue
            assert text.startswith(f"importing intel_extension_for_pytorch fails ({kind}"), text
            assert "install IPEX 2.8.0 with torch 2.8.0, or remove it" in text
    else:
        needs_ipex = "intel-extension-for-pytorch 2.7.0 is installed, it needs intel-extension-for-pytorch"
        reason = "IPEX 2.8 needs torch 2.8" if version == "2.8.0" else needs_ipex
        for text in [*seen["why not"], *told]:
            assert text.startswith(reason), text
        assert seen["table"].count(f"cannot run: {reason}") == 3
