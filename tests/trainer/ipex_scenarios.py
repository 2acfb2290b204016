"""Run by test_ipex_flags.py in a process of its own, because IPEX changes it: prints what was seen, as JSON."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import transformers
from rows import make_model, make_rows

from cpuinfer_helpers.saving.plain import write
from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments, verify_trainer

ROWS = make_rows("question-answering")
FLAGS = ("", "bf16", "bf16_full_eval")


def arguments(kind: Any, folder: str, **flags: Any) -> Any:
    return kind(folder, use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=3, **flags)


def ours(folder: str, expected: Any, **flags: Any) -> dict[str, Any]:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = JitTrainer(model=model, args=arguments(JitTrainingArguments, folder, **flags))
    output = trainer.predict(ROWS)
    return {
        "error": max(float(np.abs(a - b).max()) for a, b in zip(output.predictions, expected, strict=True)),
        "receipt": write(trainer.jit_receipt),
        "metrics": output.metrics,
        "unchanged": all(torch.equal(t, before[name]) for name, t in model.state_dict().items()),
        "type": type(model.bert.encoder.layer[0].output.dense).__name__,
    }


def stock(folder: str, **flags: Any) -> dict[str, Any]:
    model = make_model()
    trainer = transformers.Trainer(
        model=copy.deepcopy(model), args=arguments(transformers.TrainingArguments, folder, **flags), eval_dataset=ROWS
    )
    verdict = verify_trainer(trainer)
    return {
        "jit": verdict.jit_mode_eval,
        "ipex": verdict.use_ipex,
        "unchanged": type(trainer.model.bert.encoder.layer[0].output.dense) is torch.nn.Linear,
        "text": str(verdict),
    }


def trained(folder: str) -> dict[str, Any]:
    model = make_model()
    flags = {"jit_mode_eval": True, "use_ipex": True, "max_steps": 2, "save_strategy": "no"}
    trainer = JitTrainer(
        model=model, args=arguments(JitTrainingArguments, folder, **flags), train_dataset=ROWS, eval_dataset=ROWS
    )
    called = []
    optimise = trainer.ipex_optimize_model
    trainer.ipex_optimize_model = lambda *given, **more: called.append(given) or optimise(*given, **more)
    trainer.train()
    trainer.evaluate()
    found = {"type": type(model.bert.encoder.layer[0].output.dense).__name__}
    found["optimised by transformers"] = len(called)
    return {**found, "same model": trainer.model is model, "recipe": trainer.jit_receipt.requested["recipe"]}


def main() -> None:
    seen: dict[str, Any] = {"ours": {}, "untraced": {}, "stock": {}}
    with tempfile.TemporaryDirectory() as folder:
        # First: a BF16 Trainer in the process decides what transformers' own Trainer runs after it.
        for flags in ({"jit_mode_eval": True}, {"use_ipex": True}, {"jit_mode_eval": True, "use_ipex": True}):
            seen["stock"][" ".join(flags)] = stock(folder, **flags)
        plain = JitTrainer(model=make_model(), args=arguments(JitTrainingArguments, folder))
        expected = plain.predict(ROWS).predictions
        for flag in FLAGS:
            more = {flag: True} if flag else {}
            seen["ours"][flag] = ours(folder, expected, use_ipex=True, jit_mode_eval=True, **more)
            seen["untraced"][flag] = ours(folder, expected, use_ipex=True, **more)
        seen["trained"] = trained(folder)
    print("SEEN " + json.dumps(seen))


main()
