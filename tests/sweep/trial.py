"""One class: does it run, is it traced or refused, and does the trace give the model's answers to inputs of our own?"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweep.classes import Case
from sweep.examples import Examples
from sweep.tiny import tiny_model

RIGHT = "traced and right"
RIGHT_BY_SHAPE = "traced and right, one trace for each shape"
REFUSED = "refused"
WRONG = "silently wrong"
CRASH = "crash on a later shape"
NOT_LOADED = "fails after save and load"
NO_EAGER = "eager does not run"
STOPPED = "out of time or memory"
OUTCOMES = (RIGHT, RIGHT_BY_SHAPE, REFUSED, WRONG, CRASH, NOT_LOADED, STOPPED, NO_EAGER)

CALLS = 3
# As many units as the package allows for itself, written again so that neither hides the other's mistake: the same
# FP32 operators in another order differ by about 1e-6 of the largest answer for each layer.
RELATIVE, ABSOLUTE = 1e-4, 1e-6
_FILE = "expected.pt"


@dataclass(frozen=True)
class Call:
    """Inputs of one shape, and which positions are no padding (None: all)."""

    name: str
    inputs: dict[str, torch.Tensor]
    valid: torch.Tensor | None = None


def trace_and_check(case: Case, folder: Path) -> dict[str, Any]:
    """Trace one class, check it on other inputs, and save it with the eager answers for :func:`load_and_check`."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        model = tiny_model(case.model_class(), case.family)
        examples = Examples(model, case.task)
        example = examples.make(2, example_size(examples, model))
        eager(model, example)
    except Exception as error:  # whatever keeps a class from running is what the report says of it
        return {"outcome": NO_EAGER, "reason": text_of(error)}
    return _trace(model, examples, example, folder)


def _trace(
    model: torch.nn.Module, examples: Examples, example: dict[str, torch.Tensor], folder: Path
) -> dict[str, Any]:
    import cpuinfer_helpers as cpu

    answers = [(call, expected) for call in calls(examples, model) if (expected := answer_or_none(model, call))]
    found: dict[str, Any] = {"checked": len(answers), "varies": varies(model, examples, example)}
    traced = cpu.trace_model(model, example, each_shape=True)
    if not traced.traced:
        return {**found, "outcome": REFUSED, "reason": traced.reason}
    found |= {"how": str(traced.receipt.evidence.get("no single trace", "")), "verified": traced.receipt.verified}
    for call, expected in answers:
        problem = differs(traced, call, expected)
        if problem:
            return {**found, **problem}
    shapes = getattr(traced, "shapes", ())
    eager_shapes = getattr(traced, "eager_shapes", {})
    if eager_shapes:
        shape, why = next(iter(eager_shapes.items()))
        counted = f"{len(eager_shapes)} of {len(eager_shapes) + len(shapes)} shapes"
        reason = f"the eager model answers for {counted}, {shape}: {why}"
        return {**found, "outcome": REFUSED, "reason": reason}
    traced.save(folder / "saved")
    torch.save([(call.name, call.inputs, call.valid, expected) for call, expected in answers], folder / _FILE)
    return {**found, "outcome": RIGHT_BY_SHAPE if shapes else RIGHT, "traces": max(1, len(shapes))}


def load_and_check(folder: Path) -> dict[str, Any]:
    """Load a trace in a new process and compare its answers with those that the eager model gave in the other."""
    import cpuinfer_helpers as cpu

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        traced = cpu.TracedModel.load(folder / "saved")
    except cpu.CpuInferError as error:
        return {"outcome": NOT_LOADED, "reason": text_of(error)}
    for name, inputs, valid, expected in torch.load(folder / _FILE, weights_only=True):
        problem = differs(traced, Call(name, inputs, valid), expected)
        if problem:
            return {"outcome": NOT_LOADED, "reason": f"{problem['outcome']}: {problem['reason']}"}
    return {} if not getattr(traced, "shapes", ()) else _unknown_shape_is_refused(traced, inputs)


def _unknown_shape_is_refused(traced: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Without the eager model, a shape that has no trace has to be refused by name."""
    import cpuinfer_helpers as cpu

    nine_rows = {name: tensor[:1].repeat(9, *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
    try:
        traced(**nine_rows)
    except cpu.InputError as error:
        if traced.shapes[0] in str(error):
            return {}
        return {"outcome": NOT_LOADED, "reason": f"an unknown shape is refused without naming the others: {error}"}
    return {"outcome": NOT_LOADED, "reason": "an unknown shape is answered"}


def differs(traced: Any, call: Call, expected: Mapping[str, torch.Tensor]) -> dict[str, str] | None:
    """What is wrong with the trace's answers, three calls; None if nothing."""
    for number in range(1, CALLS + 1):
        try:
            seen = flat(traced(**call.inputs))
        except Exception as error:  # a crash is what we look for
            return {"outcome": CRASH, "reason": f"{call.name}, call {number}: {text_of(error)}"}
        for name, wanted in expected.items():
            if name not in seen:
                if name.split(".")[0] in LEFT_OUT:
                    continue
                return {"outcome": WRONG, "reason": f"{call.name}: {name} is missing"}
            size = error_size(wanted, seen[name], call.valid)
            if size is None or size > 1:
                how = "another shape" if size is None else f"{size:.1e} times the tolerance"
                return {"outcome": WRONG, "reason": f"{call.name}, call {number}: {name} differs by {how}"}
    return None


# A key-value cache is no answer of a model that classifies.
LEFT_OUT = ("past_key_values", "cache_params", "past_buckets_states", "mems", "rnn_hidden_states")


def error_size(wanted: torch.Tensor, seen: torch.Tensor, valid: torch.Tensor | None) -> float | None:
    """Largest difference on valid positions, in tolerances; None if the shapes differ."""
    if wanted.shape != seen.shape:
        return None
    if valid is not None and wanted.shape[: valid.dim()] == valid.shape:
        wanted, seen = wanted[valid], seen[valid]
    if not wanted.numel():
        return 0.0
    wanted, seen = wanted.double(), seen.double()
    if not torch.equal(wanted.isfinite(), seen.isfinite()):
        return float("inf")
    wanted, seen = wanted.nan_to_num(0.0, 0.0, 0.0), seen.nan_to_num(0.0, 0.0, 0.0)
    usual = wanted.abs()[wanted.abs() < 1e30]
    largest = usual.max().item() if usual.numel() else 0.0
    return (wanted - seen).abs().max().item() / (RELATIVE * largest + ABSOLUTE)


def flat(output: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of an output by its path."""
    if isinstance(output, torch.Tensor):
        return {path or "output": output}
    entries = output.items() if isinstance(output, Mapping) else ()
    if isinstance(output, (tuple, list)):
        entries = ((str(number), entry) for number, entry in enumerate(output))
    found: dict[str, torch.Tensor] = {}
    for key, entry in entries:
        found |= flat(entry, f"{path}.{key}" if path else str(key))
    return found


def eager(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's own answer; of a copy, because some models change when they see a shape (Swin, BigBird)."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return flat(copy.deepcopy(model)(**inputs))


def answer_or_none(model: torch.nn.Module, call: Call) -> dict[str, torch.Tensor] | None:
    """The model's own answer, or None where it refuses this shape itself."""
    try:
        return eager(model, call.inputs)
    except Exception:  # a model may refuse a shape in any way; then there is nothing to compare
        return None


def varies(model: torch.nn.Module, examples: Examples, example: dict[str, torch.Tensor]) -> bool:
    """Whether other content gives other answers: if not, comparing answers proves nothing."""
    first, second = (
        eager(model, example),
        answer_or_none(model, Call("", examples.make(2, example_size(examples, model), seed=5))),
    )
    name = next(iter(first))
    return second is not None and (error_size(first[name], second[name], None) or 0) > 1


def example_size(examples: Examples, model: torch.nn.Module) -> int:
    from sweep.overrides import EXAMPLE_SIZES

    usual = {"tokens": 24, "image": 32, "waveform": 40, "features": 30}[examples.kind]
    if examples.kind == "image":
        size = getattr(getattr(model.config, "vision_config", None) or model.config, "image_size", usual)
        usual = size if isinstance(size, int) else usual
    return EXAMPLE_SIZES.get(model.config.model_type, usual)


def calls(examples: Examples, model: torch.nn.Module) -> Iterator[Call]:
    """Batch sizes, lengths and paddings of our own; none is among those that trace_model looks at."""
    size = example_size(examples, model)
    yield Call("one row", examples.make(1, size, seed=1))
    yield Call("five rows", examples.make(5, size, seed=2))
    if examples.kind == "image":
        yield Call("larger image", examples.make(3, size + size // 2, seed=3))
        yield Call("larger image of no round size", examples.make(1, size + size // 4 + 3, seed=3))
        yield Call("smaller image", examples.make(4, size - size // 4, seed=4))
        return
    shorter, longer = size * 13 // 24, size * 41 // 24
    yield Call("one row, shorter", examples.make(1, shorter, seed=3))
    yield Call("five rows, longer", examples.make(5, longer, seed=4))
    yield Call("one row, much longer", examples.make(1, size * 53 // 24, seed=5))
    if not examples.padded:
        return
    for name, options in (
        ("padding", {}),
        ("padding with other tokens in it", {"junk": 7}),
        ("padding on the left with other tokens in it", {"left": True, "junk": 11}),
    ):
        inputs = examples.make(4, size * 29 // 24, (0.35, 1.0, 0.8, 0.55), seed=6, **options)
        yield Call(name, inputs, inputs["attention_mask"].bool())
    inputs = examples.make(3, size * 11 // 24, (0.4, 1.0, 0.9), junk=13, seed=7)
    yield Call("shorter, padded", inputs, inputs["attention_mask"].bool())


def text_of(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    own = [line for line in lines if line.startswith(("RuntimeError:", "IndexError:", "ValueError:"))]
    return f"{type(error).__name__}: {(own[-1] if own else lines[0])[:300]}"
