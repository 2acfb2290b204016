"""One class and one recipe: is it prepared or refused, and does it give the model's answers to inputs of our own?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sweep.calls import Call
from sweep.comparing import error_size, flat
from sweep.subject import Subject
from sweep.writing import WRITING, write_and_check

TRACE = "trace"
RECIPES = (TRACE, "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32", WRITING)

RIGHT = "right"
RIGHT_BY_SHAPE = "right, one trace for each shape"
OWN_SIZE = "right at its own size only"
REFUSED = "refused or fell back"
WRONG = "silently wrong"
FOREIGN = "foreign error at a later shape"
NOT_LOADED = "fails after save and load"
STOPPED = "out of time or memory"
NO_EAGER = "eager does not run"
OUTCOMES = (RIGHT, RIGHT_BY_SHAPE, OWN_SIZE, REFUSED, WRONG, FOREIGN, NOT_LOADED, STOPPED, NO_EAGER)
PREPARED = (RIGHT, RIGHT_BY_SHAPE, OWN_SIZE)

CALLS = 3
# A difference of so many times what rounding does to the model's own answers is one that rounding explains.
_ROOM = 3
_FILE = "expected.pt"
# A key-value cache is no answer of a single pass.
LEFT_OUT = ("past_key_values", "cache_params", "past_buckets_states", "mems", "rnn_hidden_states", "state")


def prepare_and_check(subject: Subject, recipe: str, folder: Path) -> dict[str, Any]:
    """Prepare one class by one recipe and check it on other inputs; save a trace for :func:`load_and_check`."""
    import cpuinfer_helpers as cpu

    if recipe == WRITING:
        return write_and_check(subject)
    head = {"checked": len(subject.answers), "varies": subject.varies, "random": subject.random}
    try:
        prepared, reason, found = _prepare(subject, recipe)
    except cpu.CpuInferError as error:
        return {**head, "outcome": REFUSED, "reason": text_of(error)}
    except Exception as error:  # whatever is not ours is what we look for
        return {**head, "outcome": FOREIGN, "reason": f"while it is prepared: {text_of(error)}"}
    if reason is not None:
        return {**head, **found, "outcome": REFUSED, "reason": reason}
    checked, refused = check(prepared, subject)
    if recipe == TRACE and checked["outcome"] in PREPARED:
        _save(prepared, subject, refused, folder)
    return {**head, **found, **checked, "by rounding": subject.by_rounding}


def _prepare(subject: Subject, recipe: str) -> tuple[Any, str | None, dict[str, Any]]:
    """What was prepared, why it was not, and what its receipt says."""
    import cpuinfer_helpers as cpu

    example = {name: tensor.clone() for name, tensor in subject.example.items()}
    if recipe == TRACE:
        prepared = cpu.trace_model(subject.model, example, each_shape=True)
        how = str(prepared.receipt.evidence.get("no single trace", ""))
    else:
        prepared = cpu.prepare(recipe, subject.model, example, each_shape=True)
        how = str(prepared.receipt.evidence.get("not once for all", ""))
    return prepared, prepared.reason, {"how": how, "verified": prepared.receipt.verified}


def check(prepared: Any, subject: Subject) -> tuple[dict[str, Any], dict[str, str]]:
    """What comes of every call, and those that were refused, each with what was said."""
    refused: dict[str, str] = {}
    for call, wanted in subject.answers:
        problem = differs(prepared, call, wanted, subject)
        if problem is None:
            continue
        if problem["outcome"] != REFUSED:
            return problem, refused
        refused[call.name] = problem["reason"]
    return _summed(prepared, subject.answers, refused), refused


def _summed(prepared: Any, answers: Sequence[Any], refused: Mapping[str, str]) -> dict[str, Any]:
    shapes, by_eager = getattr(prepared, "shapes", ()), getattr(prepared, "eager_shapes", {})
    if by_eager:
        shape, why = next(iter(by_eager.items()))
        counted = f"{len(by_eager)} of {len(by_eager) + len(shapes)} shapes"
        return {"outcome": REFUSED, "reason": f"the eager model answers for {counted}, {shape}: {why}"}
    if not refused:
        return {"outcome": RIGHT_BY_SHAPE if shapes else RIGHT, "traces": max(1, len(shapes))}
    how = f"{len(refused)} of {len(answers)} calls refused, '{next(iter(refused))}': {next(iter(refused.values()))}"
    return {"outcome": OWN_SIZE if len(refused) < len(answers) else REFUSED, "reason": how, "refused": len(refused)}


def differs(
    prepared: Any, call: Call, wanted: Mapping[str, torch.Tensor], subject: Subject | None = None
) -> dict[str, str] | None:
    """What is wrong with the answers to three calls; None if nothing. A subject tells what rounding can do."""
    import cpuinfer_helpers as cpu

    for number in range(1, CALLS + 1):
        try:
            seen = flat(prepared(**{name: tensor.clone() for name, tensor in call.inputs.items()}))
        except cpu.InputError as error:
            if number == 1:
                return {"outcome": REFUSED, "reason": text_of(error)}
            return {"outcome": FOREIGN, "reason": f"{call.name}, answered, then refused: {text_of(error)}"}
        except Exception as error:  # whatever is not ours is what we look for
            return {"outcome": FOREIGN, "reason": f"{call.name}, call {number}: {text_of(error)}"}
        for name, tensor in wanted.items():
            problem = _difference(name, tensor, seen, call, subject)
            if problem:
                return {"outcome": WRONG, "reason": f"{call.name}, call {number}: {name} {problem}"}
    return None


def _difference(
    name: str, wanted: torch.Tensor, seen: Mapping[str, torch.Tensor], call: Call, subject: Subject | None
) -> str | None:
    if name not in seen:
        return None if name.split(".")[0] in LEFT_OUT else "is missing"
    size = error_size(wanted, seen[name], call.valid_of(name, wanted.shape))
    if size is None:
        return f"has shape {tuple(seen[name].shape)} in place of {tuple(wanted.shape)}"
    if size <= 1:
        return None
    if subject and size <= _ROOM * subject.rounding(call, {name: wanted}, name):
        subject.by_rounding.append(f"{call.name}: {name}")
        return None
    random = ", and the model's own answers are random" if subject and subject.random else ""
    return f"differs by {size:.1e} times the tolerance{random}"


def _save(prepared: Any, subject: Subject, refused: Mapping[str, str], folder: Path) -> None:
    """What :func:`load_and_check` compares: what was right, and what was refused."""
    prepared.save(folder / "saved")
    pardoned = {text.split(": ")[0] for text in subject.by_rounding}
    answers = [
        (call.name, call.inputs, call.valid, call.decoder_valid, wanted, call.name in refused)
        for call, wanted in subject.answers
        if call.name not in pardoned
    ]
    torch.save((subject.example, answers), folder / _FILE)


def load_and_check(folder: Path) -> dict[str, Any]:
    """Load a trace in a new process and compare its answers with those that the eager model gave in the other."""
    import cpuinfer_helpers as cpu

    try:
        traced = cpu.TracedModel.load(folder / "saved")
    except cpu.CpuInferError as error:
        return {"outcome": NOT_LOADED, "reason": text_of(error)}
    example, answers = torch.load(folder / _FILE, weights_only=True)
    for name, inputs, valid, decoder_valid, wanted, refused in answers:
        problem = differs(traced, Call(name, inputs, valid, decoder_valid), wanted)
        if (problem or {}).get("outcome") != (REFUSED if refused else None):
            text = f"{problem['outcome']}: {problem['reason']}" if problem else f"{name}: no longer refused"
            return {"outcome": NOT_LOADED, "reason": text}
    return {} if not getattr(traced, "shapes", ()) else _unknown_shape_is_refused(traced, example)


def _unknown_shape_is_refused(traced: Any, example: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Without the eager model, a shape that has no trace has to be refused by name."""
    import cpuinfer_helpers as cpu

    nine_rows = {name: tensor[:1].repeat(9, *[1] * (tensor.dim() - 1)) for name, tensor in example.items()}
    try:
        traced(**nine_rows)
    except cpu.InputError as error:
        if traced.shapes[0] in str(error):
            return {}
        return {"outcome": NOT_LOADED, "reason": f"an unknown shape is refused without naming the others: {error}"}
    return {"outcome": NOT_LOADED, "reason": "an unknown shape is answered"}


def text_of(error: BaseException) -> str:
    """Kind and telling line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    own = [line for line in lines if line.startswith(("RuntimeError:", "IndexError:", "ValueError:"))]
    return f"{type(error).__name__}: {(own[-1] if own else lines[0])[:300]}"
