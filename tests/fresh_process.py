"""What preparing by each recipe, in a thread of a process that has just begun, leaves changed: one JSON line."""

from __future__ import annotations

import json
import sys
import threading

import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes import get_recipe
from tests import soak
from tests.conftest import make_bert, make_inputs


def seen(name: str) -> dict[str, str]:
    """What is not as it was, as texts; what kept the recipe from being prepared, if anything did."""
    model, made = make_bert(num_hidden_layers=1), []
    before = soak.state()
    thread = threading.Thread(target=lambda: made.append(cpu.prepare(name, model, make_inputs(), verify=False)))
    thread.start()
    thread.join()
    made[0](**make_inputs(3, 7))
    changed = {what: repr(pair)[:500] for what, pair in soak.changes(before, soak.state()).items()}
    return changed | ({"reason": made[0].reason} if made[0].reason else {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    cpu.trace_model(make_bert(num_hidden_layers=1), make_inputs(), verify=False)
    found = {name: seen(name) for name in sys.argv[1:] if get_recipe(name).can_run}
    print("SEEN", json.dumps(found))
