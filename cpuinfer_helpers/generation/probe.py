"""Example prompts with the model's own logits: saved with what was prepared, and compared when that is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.generation.closeness import LARGEST_ERROR, closeness
from cpuinfer_helpers.generation.encoding.given import Sourced
from cpuinfer_helpers.generation.encoding.sources import MASK, PROMPT, PROMPT_MASK, has_encoder, start_token
from cpuinfer_helpers.generation.positions import positions_of
from cpuinfer_helpers.generation.step import Step
from cpuinfer_helpers.generation.verification import eager_logits, state_for

# Logits of so many tokens of so many prompts: a vocabulary has a hundred thousand of each.
_ROWS, _TOKENS, _LAST = 4, 64, 4


# Before the names of what an encoder reads.
_SOURCE = "source."
_KEYS = frozenset({"ids", "mask", "logits"})


def probe_for(model: torch.nn.Module, prompts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The last tokens of the first prompts, and the model's own logits of the last of these.

    Of a model with an encoder also the whole of what that reads, and tokens of its decoder.
    """
    if has_encoder(model):
        return _encoder_probe(model, prompts)
    ids, mask = (prompts[name][:_ROWS, -_TOKENS:] for name in ("input_ids", "attention_mask"))
    return {"ids": ids, "mask": mask, "logits": eager_logits(model, ids, mask)[:, -_LAST:].float()}


def _encoder_probe(model: torch.nn.Module, prompts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    sources = {name: tensor[:_ROWS] for name, tensor in prompts.items() if name not in (PROMPT, PROMPT_MASK)}
    ids, mask = prompts.get(PROMPT), prompts.get(PROMPT_MASK)
    if ids is None:
        size = model.config.get_text_config(decoder=True).vocab_size
        rows = len(next(iter(sources.values())))
        ids = torch.randint(0, size, (rows, _LAST + 1), generator=torch.Generator().manual_seed(0))
        ids[:, 0] = start_token(model)
        mask = torch.ones_like(ids)
    ids, mask = ids[:_ROWS, -_TOKENS:], mask[:_ROWS, -_TOKENS:]
    named = {f"{_SOURCE}{name}": tensor for name, tensor in sources.items()}
    probe = {"ids": ids, "mask": mask, **named}
    return {**probe, "logits": eager_logits(model, ids, mask, _sources(probe))[:, -_LAST:].float()}


def is_probe(probe: Mapping[str, torch.Tensor]) -> bool:
    """Whether tensors are what :func:`probe_for` gave."""
    return probe.keys() >= _KEYS and all(name in _KEYS or name.startswith(_SOURCE) for name in probe)


def prompts_of(probe: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The example that a probe was made of."""
    sources = {name.removeprefix(_SOURCE): tensor for name, tensor in probe.items() if name.startswith(_SOURCE)}
    return sources or {"input_ids": probe["ids"], "attention_mask": probe["mask"]}


def _sources(probe: Mapping[str, torch.Tensor]) -> Sourced | None:
    found = {name.removeprefix(_SOURCE): tensor for name, tensor in probe.items() if name.startswith(_SOURCE)}
    names = [name for name in found if name != MASK]
    return Sourced(names[0], found[names[0]], found.get(MASK)) if names else None


def check_same_model(model: torch.nn.Module, probe: Mapping[str, torch.Tensor]) -> None:
    """Raise where a model does not give the logits any more that it gave when it was prepared.

    Raises
    ------
    ArtifactError
    """
    now = eager_logits(model, probe["ids"], probe["mask"], _sources(probe))[:, -_LAST:]
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
    state = state_for(step, len(ids), ids.shape[1], _sources(probe))
    for count in pieces:
        start, end = state.length, state.length + count
        fed_mask = mask[:, :end]
        seen.append(step.feed(ids[:, start:end], fed_mask, positions_of(fed_mask, count), state, last=None))
    return torch.cat(seen, dim=1)[:, -_LAST:].float()


def _worst(probe: Mapping[str, torch.Tensor], seen: torch.Tensor) -> float:
    valid = probe["mask"][:, -_LAST:].bool()
    return closeness(probe["logits"][valid], seen[valid], 1.0).worst
