"""Run by test_ipex.py in a process of its own, because IPEX changes the process: prints what was seen, as JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from typing import Any

import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes import PreparedModel, prepare
from cpuinfer_helpers.recipes.backends import ipex
from tests.conftest import make_bert, make_inputs
from tests.forks import call_in_a_fork

NAMES = ("ipex-fp32", "ipex-bf16", "ipex-int8")
SHAPES = ((2, 12), (1, 5), (3, 23), (5, 12))
QUESTIONS = 60


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


MESSAGES = Messages()


class Watched(torch.nn.Module):
    """Notes the number of threads with which it runs."""

    threads: set[int] = set()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Watched.threads.add(torch.get_num_threads())
        return self.second(torch.relu(self.first(x)))


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.head = torch.nn.Linear(8, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.convolution(pixels))).mean((2, 3)))


def process_state() -> list[Any]:
    return [
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.get_rng_state().tolist(),
    ]


def frozen_state(model: torch.nn.Module) -> list[Any]:
    """Everything by which a change of a model could be seen: classes, places, layouts, dtypes and values."""
    tensors = model.state_dict().items()
    places = [(name, t.data_ptr(), list(t.stride()), str(t.dtype), t.double().tolist()) for name, t in tensors]
    return [[type(part).__name__ for part in model.modules()], places, cpu_attention(model)]


def cpu_attention(model: torch.nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def errors(prepared: PreparedModel, model: torch.nn.Module) -> list[float]:
    """Largest error on valid positions as a share of the largest answer, over shapes, paddings and four calls each."""
    found = []
    for seed, (batch, length) in enumerate(SHAPES):
        inputs = make_inputs(batch, length, padding=length // 3, seed=seed)
        valid = inputs["attention_mask"].bool()
        with torch.no_grad():
            wanted = model(**inputs).start_logits[valid]
        for _ in range(4):
            seen = prepared(**inputs).start_logits[valid]
            found.append(((seen - wanted).abs().max() / wanted.abs().max()).item())
    return found


def in_a_thread(function: Any, *args: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0] if results else None


def seen_of(prepared: PreparedModel) -> dict[str, Any]:
    receipt = prepared.receipt
    return {
        "prepared": prepared.prepared,
        "reason": prepared.reason,
        "runs": receipt.runs,
        "verified": receipt.verified,
        "frozen": receipt.frozen,
        "script_module": receipt.script_module,
        "evidence": dict(receipt.evidence),
        "nodes": dict(receipt.graph_nodes),
        "weights": dict(receipt.weight_dtypes),
        "linears": dict(receipt.linear_dtypes),
        "attention": receipt.attention_implementation,
    }


def bert_scenarios() -> dict[str, Any]:
    model, example = make_bert(), make_inputs()
    rows = [make_inputs(2, 4 + seed, seed=seed) for seed in range(8)]
    before, state = frozen_state(model), process_state()
    seen: dict[str, Any] = {}
    for name in NAMES:
        prepared = prepare(name, model, example, calibration=rows)
        seen[name] = {
            **seen_of(prepared),
            "same_state": process_state() == state,
            "errors": errors(prepared, model),
            "errors_in_thread": in_a_thread(errors, prepared, model),
            # Made for two threads.
            "in a fork": {count: call_in_a_fork(lambda p=prepared: p(**example), count) for count in (1, 2)},
            "output": type(prepared(**example)).__name__,
            "model_unchanged": frozen_state(model) == before,
        }
    seen["threads"] = thread_warnings(prepare("ipex-fp32", model, example, verify=False), example)
    seen["example only"] = seen_of(prepare("ipex-int8", model, example))
    bad = [*rows, {"input_ids": rows[0]["input_ids"]}]
    try:
        prepare("ipex-int8", model, example, calibration=bad)
    except cpu.InputError as error:
        seen["bad row"] = str(error)
    seen["whole attention fused"] = without_heads_by_transpose(model, example)
    return seen


def thread_warnings(prepared: PreparedModel, example: dict[str, torch.Tensor]) -> list[str]:
    threads = torch.get_num_threads()
    prepared(**example)
    MESSAGES.texts.clear()
    try:
        for _ in range(3):
            torch.set_num_threads(threads + 1)
            prepared(**example)
    finally:
        torch.set_num_threads(threads)
    prepared(**example)
    return list(MESSAGES.texts)


def without_heads_by_transpose(model: torch.nn.Module, example: dict[str, torch.Tensor]) -> dict[str, Any]:
    kept = ipex.HeadsByTranspose
    ipex.HeadsByTranspose = contextlib.nullcontext
    try:
        return seen_of(prepare("ipex-bf16", model, example))
    finally:
        ipex.HeadsByTranspose = kept


def other_modules() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    models = {
        "no product": (torch.nn.LayerNorm(8), {"input": torch.randn(2, 8, generator=generator)}),
        "nothing": (torch.nn.Identity(), {"input": torch.randn(2, 8, generator=generator)}),
        "convolution": (Convolution(), {"pixels": torch.randn(2, 3, 12, 12, generator=generator)}),
        "encoder layer": (layer, {"src": torch.randn(2, 6, 32, generator=generator)}),
    }
    seen: dict[str, Any] = {}
    for kind, (model, example) in models.items():
        model.eval()
        before = frozen_state(model)
        for name in NAMES:
            prepared = prepare(name, model, example)
            seen[f"{kind} {name}"] = {**seen_of(prepared), "model_unchanged": frozen_state(model) == before}
    return seen


def calibration_threads() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Watched.threads.clear()
        rows = [{"x": torch.randn(2, 16)} for _ in range(3)]
        observed: list[int] = []
        converted = ipex._calibration_rows

        def noted(request: Any) -> Any:
            Watched.threads.clear()
            for row in converted(request):
                yield row
                observed.extend(Watched.threads)

        ipex._calibration_rows = noted
        prepared = prepare("ipex-int8", Watched().eval(), {"x": torch.randn(2, 16)}, calibration=rows)
        ipex._calibration_rows = converted
        return {"observed": sorted(set(observed)), "after": torch.get_num_threads(), **seen_of(prepared)}
    finally:
        torch.set_num_threads(threads)


def scores() -> dict[str, Any]:
    task = cpu.load_task("question-answering")
    reference = task.evaluate(limit=QUESTIONS)
    seen: dict[str, Any] = {"eager": reference.metrics["f1"]}
    for name in NAMES:
        prepared = prepare(name, task.trained_model, task.inputs(2, 48), calibration=task.calibration_inputs(32))
        score = task.evaluate(prepared, limit=QUESTIONS)
        seen[name] = {
            "prepared": prepared.prepared,
            "f1": score.metrics["f1"],
            "agreement": score.agreement(reference),
        }
    return seen


def main() -> None:
    logging.getLogger("cpuinfer_helpers").addHandler(MESSAGES)
    seen = {
        "bert": bert_scenarios(),
        "modules": other_modules(),
        "calibration": calibration_threads(),
        "scores": scores(),
    }
    print("SEEN " + json.dumps(seen))


main()
