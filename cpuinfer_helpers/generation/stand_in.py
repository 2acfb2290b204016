"""Transformers' own ``generate()`` over a step of ours: the model's own class, without its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation.layout import OwnCache
from cpuinfer_helpers.generation.positions import check_left_padding, positions_of
from cpuinfer_helpers.generation.step import State, Step

# What ``generate`` may pass on that has nothing to say where it is None or false.
_SILENT = (None, False)


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

    def state_for(self, batch: int) -> State:
        """The state, which is made for the first tokens that come.

        Raises
        ------
        InputError
            If it has another number of rows.
        """
        if self.state is None:
            self.state = self.step.new_state(batch, self.room)
        if self.state.batch != batch:
            raise InputError(f"the cache has {self.state.batch} rows and is given tokens of {batch}; make a new cache")
        return self.state

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens so far."""
        return self.state.length if self.state else 0

    def crop(self, max_length: int) -> None:
        """Keep so many tokens, or take away so many where the number is negative."""
        if self.state is not None and max_length:
            self.state.crop(min(self.state.length, max_length) if max_length > 0 else self.state.length + max_length)

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
        if named.get("cache_implementation") is not None:
            raise InputError(
                f"cache_implementation={named['cache_implementation']!r} is not possible: the step has its own cache"
            )
        settings = named.get("generation_config") or self.generation_config
        cached = named.get("use_cache", settings.use_cache) is not False
        if cached and named.get("past_key_values") is None:
            named["past_key_values"] = StepCache(self.step)
        return super().generate(*arguments, **named)

    def _reorder_cache(self, past_key_values: StepCache, beam_idx: torch.Tensor) -> StepCache:
        past_key_values.reorder_cache(beam_idx)
        return past_key_values


def stand_in(own: type, config: Any, generation_config: Any, step: Step) -> Any:
    """An object of a model's own class that has no weights, and asks a step for logits.

    Parameters
    ----------
    own
        A class of transformers' causal language models.
    config, generation_config
        The model's; they are copied.
    step
        What computes in its place.

    Returns
    -------
    transformers.PreTrainedModel
        With the model's configuration; its ``generate()`` is transformers' own.
    """
    made = type(own.__name__, (_Stepping, own), {"__module__": own.__module__, "__doc__": own.__doc__})
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
    return model.eval()


def _our_cache(cache: Any, step: Step) -> StepCache:
    if cache is None:
        return StepCache(step)
    if not isinstance(cache, StepCache) or cache.step is not step:
        raise InputError(
            f"past_key_values is a {type(cache).__name__} of something else; give what this model returned"
        )
    return cache


def _whole_mask(mask: torch.Tensor | None, ids: torch.Tensor, before: int) -> torch.Tensor:
    total = before + ids.shape[1]
    if mask is None:
        return torch.ones(len(ids), total, dtype=torch.long)
    if mask.shape != (len(ids), total):
        raise InputError(
            f"attention_mask has the shape {tuple(mask.shape)}, not {(len(ids), total)}: one number for each token so "
            "far, those in past_key_values included"
        )
    if ids.shape[1] > 1:
        check_left_padding(mask)
    return mask


def _refuse_others(ids: torch.Tensor | None, others: dict[str, Any]) -> None:
    if ids is None:
        raise InputError("input_ids is missing; embeddings cannot be given in its place")
    if ids.dim() != 2 or 0 in ids.shape:
        raise InputError(f"input_ids has the shape {tuple(ids.shape)}; give one of (rows, tokens), at least one each")
    wanted = [name for name, value in others.items() if not any(value is silent for silent in _SILENT)]
    if wanted:
        raise InputError(f"{wanted[0]} is not known here: a prepared generator takes token ids and gives logits")
