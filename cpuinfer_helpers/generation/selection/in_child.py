"""What the child process of one recipe is asked: to prepare a generator, and to write whole texts with it.

Each function is called with what the child holds (:mod:`cpuinfer_helpers.processes.questions`), where the generator
stays between the questions.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

from cpuinfer_helpers.generation.measuring import Writer
from cpuinfer_helpers.generation.preparation import prepare_generator
from cpuinfer_helpers.saving.plain import write
from cpuinfer_helpers.timing.roofline import memory_bandwidth


def prepare_here(
    _: Any, content: MutableMapping[str, Any], *, new_tokens: int, verify: bool, tolerance: float | None
) -> dict[str, Any]:
    """Prepare the model by the recipe, let go of the original, and tell what was seen."""
    before = resident_bytes()
    generator = prepare_generator(
        content["recipe"],
        content["model"],
        content["prompts"],
        held_out=content["held_out"],
        verify=verify,
        tolerance=tolerance,
    )
    content.pop("model")
    content["writer"] = Writer(generator, content["prompts"], new_tokens)
    content["bytes_before"] = before
    return {
        "prepared": generator.prepared,
        "receipt": write(generator.receipt),
        "perplexity": generator.perplexity,
    }


def first_text(_: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write for the first time: the tokens, and what the process holds after it."""
    tokens, turn = content["writer"].write()
    held = resident_bytes() - content["bytes_before"]
    return {
        "tokens": tokens.tolist(),
        "turn": asdict(turn),
        "bytes_read": content["writer"].bytes_read,
        "weight_bytes": content["writer"].weight_bytes,
        "resident_bytes": max(0, held),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def next_text(_: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write once more: its times."""
    gc.disable()
    try:
        return asdict(content["writer"].write()[1])
    finally:
        gc.enable()


def bandwidth_here(_: Any, content: Mapping[str, Any]) -> float:
    """Bytes per second that memory gives to this process and its threads."""
    return memory_bandwidth()


def resident_bytes() -> int:
    """Bytes that this process holds in memory, after what was freed has been given back."""
    import psutil

    gc.collect()
    # Of the GNU C library only.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss
