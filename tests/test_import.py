"""Importing the package is light and changes nothing in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cpuinfer_helpers

ROOT = Path(cpuinfer_helpers.__file__).parents[1]
HEAVY = (
    "transformers",
    "scipy",
    "pandas",
    "psutil",
    "torchmetrics",
    "matplotlib",
    "ipywidgets",
    "tqdm",
    "pyarrow",
    "datasets",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "intel_extension_for_pytorch",
    "openvino",
    "onnxruntime",
)
CODE = """
import gc, json, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def state():
    return {
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "JIT autocast": torch._C._jit_set_autocast_mode(torch._C._jit_set_autocast_mode(True)),
        "oneDNN fusion": torch.jit.onednn_fusion_enabled(),
        "fp32 precision": torch.get_float32_matmul_precision(),
        "random state": hash(random.getstate()),
        "numpy random state": str(numpy.random.get_state()),
        "torch random state": torch.get_rng_state().tolist(),
        "garbage collector": gc.isenabled(),
        "working directory": os.getcwd(),
        "warning filters": str(warnings.filters),
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "own log handlers": [str(handler) for handler in logging.getLogger("cpuinfer_helpers").handlers],
        "path": list(sys.path),
        "running threads": threading.active_count(),
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "excepthook": str(sys.excepthook),
    }

modules, before = set(sys.modules), state()
import cpuinfer_helpers
after, added = state(), sorted(set(sys.modules) - modules)
assert all(hasattr(cpuinfer_helpers, name) for name in cpuinfer_helpers.__all__)
assert set(cpuinfer_helpers.__all__) <= set(dir(cpuinfer_helpers))
changed = [name for name in before if before[name] != after[name]]
print(json.dumps({"added": added, "changed": changed}))
"""


def test_import_is_light_and_leaves_the_process_as_it_was() -> None:
    child = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout)
    assert "cpuinfer_helpers.timing.results" in seen["added"]
    assert not {name.split(".")[0] for name in seen["added"]} & set(HEAVY)
    assert seen["changed"] == []


def test_every_public_name_has_a_docstring() -> None:
    for name in cpuinfer_helpers.__all__:
        assert (getattr(cpuinfer_helpers, name).__doc__ or "").strip(), name
