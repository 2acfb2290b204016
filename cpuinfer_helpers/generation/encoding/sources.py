"""What an encoder reads, and how a model of an encoder and a decoder is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from cpuinfer_helpers.errors import InputError, RecipeError, first_line
from cpuinfer_helpers.generation.layout import named_arguments
from cpuinfer_helpers.generation.positions import check_left_padding
from cpuinfer_helpers.interface.inputs import BoundInputs

TOKENS = "input_ids"
MASK = "attention_mask"
PROMPT, PROMPT_MASK = "decoder_input_ids", "decoder_attention_mask"
# Traced with a row or a token alone, sizes of one would become constants.
_FEWEST_ROWS, _FEWEST_TOKENS = 2, 8


@dataclass
class EncoderStates(BaseModelOutput):
    """What an encoder gave, as a model takes it in ``encoder_outputs``; a mixture's routers are not told of again."""

    router_logits: Any = None
    router_probs: Any = None


def has_encoder(model: Any) -> bool:
    """Whether a model's encoder reads before its decoder writes."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def source_name(model: Any) -> str:
    """The argument that the encoder of a model reads: ``input_ids``, ``input_features`` ..."""
    own = getattr(model.get_encoder(), "main_input_name", None)
    return own or model.main_input_name


def bound_sources(inputs: Mapping[str, Any], name: str) -> BoundInputs:
    """An example of what an encoder reads, with the beginnings of what is to be written where there are any.

    Parameters
    ----------
    inputs
        What ``name`` says, ``attention_mask`` with padding on either side, and ``decoder_input_ids`` and
        ``decoder_attention_mask`` with padding on the left.
    name
        See :func:`source_name`.

    Raises
    ------
    InputError
        If there is anything else among them, shapes do not fit, or beginnings are padded on the right.
    """
    known = (name, MASK, PROMPT, PROMPT_MASK)
    unknown = [given for given in inputs if given not in known]
    if unknown:
        raise InputError(f"{unknown[0]} is nothing that the encoder reads; give {', '.join(known)}")
    source = _source(inputs.get(name), name)
    bound = {name: source}
    mask = inputs.get(MASK)
    if mask is None and name == TOKENS:
        mask = torch.ones_like(source)
    if mask is not None:
        bound[MASK] = _mask(mask, source, name)
    if inputs.get(PROMPT) is not None:
        bound |= _prompt(inputs, len(source))
    elif inputs.get(PROMPT_MASK) is not None:
        raise InputError(f"{PROMPT_MASK} is given without {PROMPT}")
    return BoundInputs(bound, {})


def _source(source: Any, name: str) -> torch.Tensor:
    of_tokens = name == TOKENS
    usable = isinstance(source, torch.Tensor) and source.dim() >= 2 and 0 not in source.shape
    if not usable or source.is_floating_point() is of_tokens or (of_tokens and source.dim() != 2):
        wanted = "token ids of shape (rows, tokens)" if of_tokens else "numbers of shape (rows, ...)"
        raise InputError(f"{name} of the example are missing, which the encoder reads; give {wanted}")
    return source.long() if of_tokens else source


def _mask(mask: Any, source: torch.Tensor, name: str) -> torch.Tensor:
    mask = torch.as_tensor(mask)
    if mask.dim() != 2 or len(mask) != len(source) or (name == TOKENS and mask.shape != source.shape):
        raise InputError(f"{MASK} has the shape {tuple(mask.shape)} and {name} {tuple(source.shape)}")
    return mask.long()


def _prompt(inputs: Mapping[str, Any], rows: int) -> dict[str, torch.Tensor]:
    ids = inputs[PROMPT]
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
        raise InputError(f"{PROMPT} are no token ids of shape (rows, tokens)")
    mask = inputs.get(PROMPT_MASK)
    mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
    if mask.shape != ids.shape or len(ids) != rows:
        raise InputError(
            f"{PROMPT_MASK} has the shape {tuple(mask.shape)} and {PROMPT} {tuple(ids.shape)}, for {rows} sources"
        )
    check_left_padding(mask, PROMPT_MASK)
    return {PROMPT: ids.long(), PROMPT_MASK: mask.long()}


def start_token(model: Any) -> int:
    """The token with which a decoder begins."""
    decoder = model.config.get_text_config(decoder=True)
    for config in (getattr(model, "generation_config", None), model.config, decoder):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if isinstance(token, list) and token:
                token = token[0]
            if isinstance(token, int):
                return token
    return 0


def called(
    model: torch.nn.Module,
    sources: Mapping[str, Any],
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    **further: Any,
) -> Any:
    """A model's output.

    Parameters
    ----------
    model
        Of an encoder and a decoder.
    sources
        ``encoder_outputs``, or what the encoder reads, and ``attention_mask``.
    ids, mask, positions
        Tokens of the decoder, what they attend to, and where they stand.
    **further
        ``past_key_values`` ...
    """
    arguments = {
        **sources,
        PROMPT: ids,
        PROMPT_MASK: mask,
        "decoder_position_ids": positions,
        "return_dict": True,
        **further,
    }
    return model(**{name: value for name, value in named_arguments(model, arguments).items() if value is not None})


def encoded(model: torch.nn.Module, name: str, source: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What a model's own encoder gives, (batch, places, width)."""
    encoder = model.get_encoder()
    arguments = {name: source, MASK: mask, "return_dict": True}
    return encoder(**{key: value for key, value in named_arguments(encoder, arguments).items() if value is not None})[0]


def reads_mask(model: torch.nn.Module, name: str, source: torch.Tensor) -> bool:
    """Whether a model answers otherwise where a mask hides some of its source.

    Raises
    ------
    RecipeError
        If the model does not run on the source, or reads a mask of another shape than (rows, places).
    """
    if not named_arguments(model, {MASK: 0}):
        return False
    if name == TOKENS:
        return True
    try:
        plain = _first_logits(model, {name: source})
    except Exception as error:  # the model's own Python may raise anything
        raise RecipeError(f"the model itself fails on {name} of {tuple(source.shape)}: {first_line(error)}") from error
    failed: Exception | None = None
    # Whisper, which reads none, is given its frames last.
    for places in dict.fromkeys((source.shape[1], source.shape[-1])):
        mask = torch.ones(len(source), places, dtype=torch.long)
        mask[:, places // 2 :] = 0
        try:
            seen = _first_logits(model, {name: source, MASK: mask})
        except Exception as error:  # a mask of this shape may be none for the model
            failed = error
            continue
        if torch.equal(plain, seen):
            return False
        if places == source.shape[1]:
            return True
        raise RecipeError(f"it reads a mask of its sources of shape {tuple(mask.shape)}, where (rows, places) is known")
    raise RecipeError(f"the model itself fails with a mask of its sources: {first_line(failed)}") from failed


def _first_logits(model: torch.nn.Module, sources: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows = len(next(iter(sources.values())))
    ids, positions = torch.full((rows, 1), start_token(model)), torch.zeros(rows, 1, dtype=torch.long)
    with torch.no_grad():
        return called(model, sources, ids, None, positions).logits


def example_sources(prompts: Mapping[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Inputs of an encoder and their mask, of two rows at least, and of several tokens."""
    source, mask = prompts[name], prompts.get(MASK)
    if name == TOKENS and source.shape[1] < _FEWEST_TOKENS:
        times = -(-_FEWEST_TOKENS // source.shape[1])
        source, mask = source.repeat(1, times), mask.repeat(1, times)
    rows = torch.arange(max(len(source), _FEWEST_ROWS)) % len(source)
    return source[rows], None if mask is None else mask[rows]
