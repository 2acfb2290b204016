"""Transformers' own ``generate()`` over a step of ours: the model's own class, without its weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation.layout import OwnCache
from cpuinfer_helpers.generation.positions import check_left_padding, positions_of
from cpuinfer_helpers.generation.step import EncodingStep, Sources, State, Step
from cpuinfer_helpers.machine import switches

# What ``generate`` may pass on that has nothing to say where it is None or false.
_SILENT = (None, False)
_COUNTS_WHAT_TO_TAKE = hasattr(Cache, "activate_past_recording")
# What ``generate`` hands to an encoder that says nothing to it.
_SET_ASIDE = ("return_dict", "past_key_values", "use_cache", "cache_position")


class StepCache(OwnCache):
    """A step's state, for transformers to hand from one token to the next, crop and reorder.

    Parameters
    ----------
    step
        Whose state it is.
    room
        Number of tokens for which there should be room at first.
    """

    def __init__(self, step: Step, room: int = 1) -> None:
        self.step, self.room = step, room
        self.state: State | None = None

    def state_for(self, batch: int, sources: Callable[[], Sources] | None = None) -> State:
        """The state, which is made for the first tokens that come.

        Parameters
        ----------
        batch
            Number of rows.
        sources
            Gives what it begins with, where an encoder reads first.

        Raises
        ------
        InputError
            If it has another number of rows.
        """
        if self.state is None:
            self.state = self.step.new_state(batch, self.room, sources() if sources else None)
        if self.state.batch != batch:
            raise InputError(f"the cache has {self.state.batch} rows and is given tokens of {batch}; make a new cache")
        return self.state

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens so far."""
        return self.state.length if self.state else 0

    def crop(self, max_length: int) -> None:
        """Keep so many tokens, or take away so many where the number is negative.

        Zero takes nothing away in transformers 5, which counts what to take, and everything in version 4.
        """
        if self.state is not None and (max_length or not _COUNTS_WHAT_TO_TAKE):
            self.state.crop(min(self.state.length, max_length) if max_length >= 0 else self.state.length + max_length)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Give each row what another had."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        if self.state is not None:
            self.state.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.state is not None:
            self.state.reorder(torch.arange(self.state.batch).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget all tokens."""
        self.state = None


class _Stepping:
    """What a model's class does otherwise where a step of ours computes."""

    _supports_cache_class = True
    step: Step

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: StepCache | None = None,
        use_cache: bool | None = None,
        cache_position: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens, as :meth:`Step.feed` gives them."""
        _refuse_others(input_ids, others)
        cache = _our_cache(past_key_values, self.step)
        state = cache.state_for(len(input_ids))
        mask = _whole_mask(attention_mask, input_ids, state.length)
        if position_ids is None or position_ids.shape != input_ids.shape:
            position_ids = positions_of(mask, input_ids.shape[1])
        logits = self.step.feed(input_ids, mask, position_ids, state, last=logits_to_keep or None)
        return CausalLMOutputWithPast(logits=logits, past_key_values=None if use_cache is False else cache)

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Transformers' own, with a cache of ours."""
        _refuse_other_cache(named)
        settings = named.get("generation_config") or self.generation_config
        cached = named.get("use_cache", settings.use_cache) is not False
        if cached and named.get("past_key_values") is None:
            named["past_key_values"] = StepCache(self.step)
        return super().generate(*arguments, **named)

    def _reorder_cache(self, past_key_values: StepCache, beam_idx: torch.Tensor) -> StepCache:
        past_key_values.reorder_cache(beam_idx)
        return past_key_values


@dataclass
class Encoded(BaseModelOutput):
    """What an encoder gave, with the mask of what it had read; rows that are repeated for beams take that with them."""

    mask: torch.Tensor | None = None


class _Encoder:
    """What ``generate()`` asks to read, in the place of a model's encoder."""

    def __init__(self, step: EncodingStep) -> None:
        self.step, self.main_input_name = step, step.inputs_name

    def forward(self, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Encoded:
        """What it has read, once for each source."""
        inputs = kwargs.pop(self.main_input_name, None)
        _refuse_unknown({name: value for name, value in kwargs.items() if name not in _SET_ASIDE})
        if not isinstance(inputs, torch.Tensor):
            raise InputError(f"{self.main_input_name} is missing, which the encoder reads")
        sources = self.step.encode(inputs, attention_mask)
        return Encoded(last_hidden_state=sources.states, mask=sources.mask)

    __call__ = forward


class _EncodingStepping(_Stepping):
    """The same where an encoder reads first."""

    step: EncodingStep

    def get_encoder(self, *_: Any, **__: Any) -> _Encoder:
        """What reads."""
        return _Encoder(self.step)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        inputs: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: StepCache | None = None,
        use_cache: bool | None = None,
        cache_position: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Seq2SeqLMOutput:
        """Logits of the next tokens of the decoder, as :meth:`Step.feed` gives them."""
        others |= {
            "input_ids": input_ids,
            "input_features": input_features,
            "input_values": input_values,
            "inputs": inputs,
            "pixel_values": pixel_values,
        }
        source = others.pop(self.step.inputs_name, None)
        if _takes_anything(super(_Stepping, self).forward):
            # Whisper's detection of silence gives it the decoder's tokens by this name too.
            others.pop("input_ids", None)
        positions = others.pop("decoder_position_ids", None)
        _refuse_others(decoder_input_ids, others, "decoder_input_ids")
        cache = _our_cache(past_key_values, self.step)

        def sources() -> Sources:
            if encoder_outputs is None:
                if source is None:
                    raise InputError(f"{self.step.inputs_name} is missing, which the encoder reads")
                return self.step.encode(source, attention_mask)
            mask = getattr(encoder_outputs, "mask", None)
            return _sources_of(encoder_outputs[0], attention_mask if mask is None else mask, self.step)

        state = cache.state_for(len(decoder_input_ids), sources)
        mask = _whole_mask(decoder_attention_mask, decoder_input_ids, state.length, "decoder_attention_mask")
        if not self.step.takes_padding and not bool(mask.all()):
            raise InputError(
                "decoder_attention_mask has padding, with which the model's own generate() gives other logits than one "
                "pass over the same tokens does; give beginnings of one length"
            )
        if positions is None or positions.shape != decoder_input_ids.shape:
            positions = positions_of(mask, decoder_input_ids.shape[1])
        logits = self.step.feed(decoder_input_ids, mask, positions, state, last=None)
        return Seq2SeqLMOutput(logits=logits, past_key_values=None if use_cache is False else cache)

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Transformers' own, or what a class has in its place."""
        _refuse_other_cache(named)
        return super(_Stepping, self).generate(*arguments, **named)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        # A class's own generate() may write many texts in one call, each of which needs a cache.
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = StepCache(self.step)


class _KeepsNoCache(GenerationMixin):
    """Below a class's own ``generate()``, which would take apart a cache of transformers' kind."""

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Transformers' own, without the cache in what it returns."""
        written = super().generate(*arguments, **named)
        return written if isinstance(written, torch.Tensor) else replace(written, past_key_values=None)


def stand_in(own: type, config: Any, generation_config: Any, step: Step) -> Any:
    """An object of a model's own class that has no weights, and asks a step for logits.

    Parameters
    ----------
    own
        A class of transformers' models that write text.
    config, generation_config
        The model's; they are copied.
    step
        What computes in its place.

    Returns
    -------
    transformers.PreTrainedModel
        With the model's configuration; its ``generate()`` is transformers' own.
    """
    encodes = isinstance(step, EncodingStep)
    own_generate = encodes and own.generate is not GenerationMixin.generate
    bases = (_EncodingStepping if encodes else _Stepping, own, *((_KeepsNoCache,) if own_generate else ()))
    made = type(own.__name__, bases, {"__module__": own.__module__, "__doc__": own.__doc__})
    model = made.__new__(made)
    torch.nn.Module.__init__(model)
    model.config = copy.deepcopy(config)
    model.generation_config = copy.deepcopy(generation_config)
    # Such as Gemma 2's, which transformers 4 would make a cache for.
    model.generation_config.cache_implementation = None
    # Some, such as MPT's, say that they compute every token anew.
    model.generation_config.use_cache = True
    model.name_or_path = getattr(config, "name_or_path", "")
    model.step = step
    if encodes:
        model.main_input_name = step.inputs_name
    if own_generate:
        # It may look at parts of the model, as Whisper's does at its strides.
        _give_parts(model, own)
    return model.eval()


def _give_parts(model: Any, own: type) -> None:
    """The parts of a model of a class, without weights."""
    with switches.random_state_kept(), switches.held(), torch.device("meta"):
        parts = own._from_config(copy.deepcopy(model.config))._modules
    for name, part in parts.items():
        model.add_module(name, part)


def _takes_anything(forward: Any) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(forward).parameters.values())


def _sources_of(states: torch.Tensor, mask: torch.Tensor | None, step: EncodingStep) -> Sources:
    if step.reads_mask and mask is None:
        if step.inputs_name != "input_ids":
            raise InputError(f"give attention_mask of the {step.inputs_name} that encoder_outputs were made of")
        mask = torch.ones(states.shape[:2], dtype=torch.long)
    return Sources(states, mask if step.reads_mask else None)


def _refuse_other_cache(named: dict[str, Any]) -> None:
    if named.get("cache_implementation") is not None:
        raise InputError(
            f"cache_implementation={named['cache_implementation']!r} is not possible: the step has its own cache"
        )


def _our_cache(cache: Any, step: Step) -> StepCache:
    if cache is None:
        return StepCache(step)
    if not isinstance(cache, StepCache) or cache.step is not step:
        raise InputError(
            f"past_key_values is a {type(cache).__name__} of something else; give what this model returned"
        )
    return cache


def _whole_mask(
    mask: torch.Tensor | None, ids: torch.Tensor, before: int, name: str = "attention_mask"
) -> torch.Tensor:
    total = before + ids.shape[1]
    if mask is None:
        return torch.ones(len(ids), total, dtype=torch.long)
    if mask.shape != (len(ids), total):
        raise InputError(
            f"{name} has the shape {tuple(mask.shape)}, not {(len(ids), total)}: one number for each token so far, "
            "those in past_key_values included"
        )
    if ids.shape[1] > 1:
        check_left_padding(mask, name)
    return mask


def _refuse_others(ids: torch.Tensor | None, others: dict[str, Any], name: str = "input_ids") -> None:
    if ids is None:
        raise InputError(f"{name} is missing; embeddings cannot be given in its place")
    if ids.dim() != 2 or 0 in ids.shape:
        raise InputError(f"{name} has the shape {tuple(ids.shape)}; give one of (rows, tokens), at least one each")
    _refuse_unknown(others)


def _refuse_unknown(others: dict[str, Any]) -> None:
    wanted = [name for name, value in others.items() if not any(value is silent for silent in _SILENT)]
    if wanted:
        raise InputError(f"{wanted[0]} is not known here: a prepared generator gives logits, of token ids and sources")
