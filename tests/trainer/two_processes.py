"""Run by test_two_processes.py under torchrun: predicts and prints the metrics of the first process."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from rows import make_model, make_rows

from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments


def metric(found: Any) -> dict[str, float]:
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    # The first columns of the first tokens only: how far batches are padded differs between processes.
    logits = np.asarray(logits).reshape(len(logits), -1)[:, :6]
    labels = found.label_ids[0] if isinstance(found.label_ids, tuple) else found.label_ids[:, 0]
    weights = np.arange(1, len(logits) + 1)
    return {
        "rows": len(logits),
        "first": float(logits[0].sum()),
        "last": float(logits[-1].sum()),
        "sum": float((weights * logits.sum(axis=1)).sum() + (weights * labels).sum()),
    }


def main() -> None:
    task, *flags = sys.argv[1:]
    # As many batches as processes, so that both ways the batches are the same.
    rows = make_rows(task, 8)
    with tempfile.TemporaryDirectory() as folder:
        args = JitTrainingArguments(
            folder,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            per_device_eval_batch_size=2,
            **dict.fromkeys(flags, True),
        )
        trainer = JitTrainer(model=make_model(task), args=args, compute_metrics=metric)
        metrics = trainer.predict(rows).metrics
        if trainer.is_world_process_zero():
            print("SEEN " + json.dumps({**metrics, "processes": args.world_size}), flush=True)
    # Otherwise a process that ends while the other still talks to it can abort, in the threads of its group.
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


main()
