"""One language model that writes text: is it prepared or refused, and does it write what the model writes?"""

from __future__ import annotations

import copy
from typing import Any

import torch

from cpuinfer_helpers.generation.encoding.sources import has_encoder, source_name, start_token
from sweep.subject import Subject

WRITING = "writing text, torchscript-fp32"
RECIPE = "torchscript-fp32"
# Beyond the package's own tolerance by as much as a longer text may add.
_TOLERANCE = 1e-3
# Logits nearer than this to each other, as a share of their spread, are a tie that rounding decides.
_TIE = 1e-3
_WAYS: dict[str, dict[str, Any]] = {
    "padded": {"rows": 3, "length": 9, "padding": 4, "max_new_tokens": 7},
    "one token": {"rows": 1, "length": 1, "padding": 0, "max_new_tokens": 5},
    "long": {"rows": 1, "length": 21, "padding": 0, "max_new_tokens": 60},
    "beams": {"rows": 2, "length": 6, "padding": 2, "max_new_tokens": 5, "num_beams": 3},
    "begun": {"rows": 3, "length": 12, "padding": 3, "max_new_tokens": 5, "begun": 4},
}


def write_and_check(subject: Subject) -> dict[str, Any]:
    """Prepare a language model to write, and compare it with the model in ways that verification does not ask."""
    import cpuinfer_helpers as cpu
    from sweep.trial import FOREIGN, NO_EAGER, OWN_SIZE, REFUSED, RIGHT, WRONG, text_of

    head = {"checked": 0, "varies": True, "random": subject.random}
    ways = [name for name, way in _WAYS.items() if "begun" not in way or has_encoder(subject.model)]
    wanted = {name: found for name in ways if (found := _written_or_none(subject.model, name)) is not None}
    if not wanted:
        return {**head, "outcome": NO_EAGER, "reason": "its own generate() fails on every prompt"}
    head["checked"] = len(wanted)
    try:
        generator = cpu.prepare_generator(RECIPE, subject.model, _prompts(subject.model, rows=2, length=8, padding=3))
    except cpu.CpuInferError as error:
        return {**head, "outcome": REFUSED, "reason": text_of(error)}
    except Exception as error:  # whatever is not ours is what we look for
        return {**head, "outcome": FOREIGN, "reason": f"while it is prepared: {text_of(error)}"}
    if not generator.prepared:
        return {**head, "outcome": REFUSED, "reason": generator.reason}
    refused = ""
    for name, expected in wanted.items():
        try:
            problem = differs(expected, write(generator, subject.model, name))
        except cpu.InputError as error:
            # An encoder is compared at some sizes only, and some decoders' beginnings cannot be padded.
            if not has_encoder(subject.model):
                return {**head, "outcome": FOREIGN, "reason": f"{name}: {text_of(error)}"}
            refused = refused or f"{name}: {text_of(error)}"
            continue
        except Exception as error:  # its own generate() has done this, so nothing may be refused
            return {**head, "outcome": FOREIGN, "reason": f"{name}: {text_of(error)}"}
        if problem:
            return {**head, "outcome": WRONG, "reason": f"{name}: {problem}"}
    if refused:
        return {**head, "outcome": OWN_SIZE, "reason": refused, "verified": generator.receipt.verified}
    return {**head, "outcome": RIGHT, "verified": generator.receipt.verified, "traces": 1}


def write(writer: Any, model: Any, name: str) -> Any:
    """What a model or generator writes, with its logits, in one of the ways."""
    way = dict(_WAYS[name])
    prompts = _prompts(model, **{key: way.pop(key) for key in ("rows", "length", "padding", "begun") if key in way})
    settings = {
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    return writer.generate(**prompts, **settings, **way, output_logits=True)


def differs(expected: Any, seen: Any) -> str | None:
    """What is wrong with what was written; None if nothing. After a tie the texts may part."""
    if "beam_indices" in expected:
        same = torch.equal(expected.sequences, seen.sequences)
        near = torch.allclose(expected.sequences_scores, seen.sequences_scores, atol=_TOLERANCE, rtol=_TOLERANCE)
        return None if same or near else "other beams with other scores"
    going_on = torch.ones(len(expected.sequences), dtype=torch.bool)
    length = expected.sequences.shape[1] - len(expected.logits)
    for number, (wanted, got) in enumerate(zip(expected.logits, seen.logits, strict=True)):
        scale = (wanted - wanted.mean(dim=-1, keepdim=True)).std(dim=-1).clamp(min=1e-30)
        error = ((got - wanted).abs().amax(dim=-1) / scale)[going_on]
        if error.numel() and not bool((error <= 10 * _TOLERANCE).all()):
            return f"token {number}: logits differ by {error.max():.1e} of their spread"
        same = expected.sequences[:, length + number] == seen.sequences[:, length + number]
        best = wanted.topk(2, dim=-1).values
        clear = (best[:, 0] - best[:, 1]) > _TIE * scale
        if bool((going_on & ~same & clear).any()):
            return f"token {number}: another token, though the model's choice is clear"
        going_on &= same
    return None


def _written_or_none(model: Any, name: str) -> Any:
    try:
        return write(copy.deepcopy(model), model, name)
    except Exception:  # a class may be unable to write in some way; the others are compared
        return None


def _prompts(model: Any, *, rows: int, length: int, padding: int, begun: int = 0) -> dict[str, torch.Tensor]:
    if has_encoder(model):
        prompts = _sources(model, rows, length, padding)
        return prompts | _beginnings(model, rows, begun) if begun else prompts
    ids, mask = _tokens(model.config.get_text_config(decoder=True).vocab_size, rows, length)
    if padding:
        mask[1:, :padding] = 0
        ids[1:, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _tokens(size: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(min(5, size - 1), size, (rows, length), generator=torch.Generator().manual_seed(rows + length))
    return ids, torch.ones_like(ids)


def _beginnings(model: Any, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Tokens that a decoder begins with, of which all rows but the first are padded on the left."""
    ids, mask = _tokens(model.config.get_text_config(decoder=True).vocab_size, rows, length)
    ids[:, 0], mask[1:, 0] = start_token(model), 0
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


def _sources(model: Any, rows: int, length: int, padding: int) -> dict[str, torch.Tensor]:
    """What an encoder reads, with padding on the right of all rows but the first."""
    name = source_name(model)
    if name == "input_ids":
        content, mask = _tokens(_vocabulary(model), rows, length)
    else:
        generator = torch.Generator().manual_seed(rows + length)
        content = torch.randn(rows, *_size_of_sound(model, name, length), generator=generator)
        mask = torch.ones(content.shape[:2], dtype=torch.long)
    if padding and mask.shape[1] >= length:
        hidden = padding * mask.shape[1] // length
        mask[1:, mask.shape[1] - hidden :] = 0
        content[mask == 0] = 0
    return {name: content, "attention_mask": mask}


def _vocabulary(model: Any) -> int:
    return getattr(model.config, "src_vocab_size", None) or model.config.get_text_config(decoder=True).vocab_size


def _size_of_sound(model: Any, name: str, length: int) -> tuple[int, ...]:
    """Of one row: samples, or frames of so many bins."""
    config = model.config
    if getattr(config, "max_source_positions", None) and hasattr(config, "num_mel_bins"):
        # Whisper's encoder takes one length.
        return config.num_mel_bins, 2 * config.max_source_positions
    if name != "input_features":
        return (400 + 320 * length,)
    encoder = getattr(config, "encoder", None) or getattr(config, "encoder_config", None) or config
    names = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins")
    return 8 * length, next((size for key in names if (size := getattr(encoder, key, None))), 80)
