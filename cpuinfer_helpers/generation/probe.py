"""Example prompts with the model's own logits: saved with what was prepared, and compared when that is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.generation.closeness import LARGEST_ERROR, closeness
from cpuinfer_helpers.generation.positions import positions_of
from cpuinfer_helpers.generation.step import Step
from cpuinfer_helpers.generation.verification import eager_logits

# Logits of so many tokens of so many prompts: a vocabulary has a hundred thousand of each.
_ROWS, _TOKENS, _LAST = 4, 64, 4


def probe_for(model: torch.nn.Module, prompts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The last tokens of the first prompts, and the model's own logits of the last of these."""
    ids, mask = (prompts[name][:_ROWS, -_TOKENS:] for name in ("input_ids", "attention_mask"))
    return {"ids": ids, "mask": mask, "logits": eager_logits(model, ids, mask)[:, -_LAST:].float()}


def check_same_model(model: torch.nn.Module, probe: Mapping[str, torch.Tensor]) -> None:
    """Raise where a model does not give the logits any more that it gave when it was prepared.

    Raises
    ------
    ArtifactError
    """
    now = eager_logits(model, probe["ids"], probe["mask"])[:, -_LAST:]
    if now.shape != probe["logits"].shape or _worst(probe, now.float()) > LARGEST_ERROR["fp32"]:
        raise ArtifactError(
            "the model gives other logits than when it was prepared: it is another one, or was changed since; prepare "
            "it anew and save that"
        )


def check_step(
    step: Step, probe: Mapping[str, torch.Tensor], precision: str, tolerance: float | None, folder: Path
) -> None:
    """Feed a step the prompts whole and in pieces, and compare its logits with those that were saved.

    Raises
    ------
    ArtifactError
        If they differ, or it fails.
    """
    largest = LARGEST_ERROR[precision] if tolerance is None else tolerance
    total = probe["ids"].shape[1]
    for pieces in ((total,), (*(1 for _ in range(min(3, total - 1))), total - min(3, total - 1))):
        try:
            worst = _worst(probe, _fed(step, probe, pieces))
        except Exception as error:  # with a changed manifest it may be put together in any wrong way
            raise ArtifactError(f"{folder}: what was loaded fails: {first_line(error)}; save again") from error
        if not worst <= largest:
            raise ArtifactError(
                f"{folder}: its logits are {worst:.1e} off those that were saved, more than {largest:.1e}; prepare the "
                "model anew here"
            )


def _fed(step: Step, probe: Mapping[str, torch.Tensor], pieces: tuple[int, ...]) -> torch.Tensor:
    ids, mask, seen = probe["ids"], probe["mask"], []
    state = step.new_state(len(ids), ids.shape[1])
    for count in pieces:
        start, end = state.length, state.length + count
        fed_mask = mask[:, :end]
        seen.append(step.feed(ids[:, start:end], fed_mask, positions_of(fed_mask, count), state, last=None))
    return torch.cat(seen, dim=1)[:, -_LAST:].float()


def _worst(probe: Mapping[str, torch.Tensor], seen: torch.Tensor) -> float:
    valid = probe["mask"][:, -_LAST:].bool()
    return closeness(probe["logits"][valid], seen[valid], 1.0).worst
