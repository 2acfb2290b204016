"""A model that writes text, prepared by a recipe, or the eager model that writes in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation.encoding.sources import bound_sources, has_encoder, source_name
from cpuinfer_helpers.generation.positions import check_left_padding
from cpuinfer_helpers.generation.saved import ToSave, write_generator
from cpuinfer_helpers.generation.step import StepBuild
from cpuinfer_helpers.interface.carrying import Carried
from cpuinfer_helpers.interface.drop_in import SaysWhatItIs
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.verification.sizes import ANY_SIZE


def _nothing() -> None:
    """There is no eager model to save."""


class Generator(SaysWhatItIs, Carried):
    """Writes text as a model of transformers' does; made by :func:`~cpuinfer_helpers.prepare_generator`.

    ``generate()`` is transformers' own, with sampling, beams, stopping, streamers, prompt lookup and assistants. What
    computes the logits of the next token is what the recipe has made. After a fallback it is the eager model.

    Attributes
    ----------
    recipe : str
        Name of the recipe that was asked for.
    reason : str or None
        Why the eager model writes; None if what the recipe made does.
    receipt : Receipt
        What was requested and what was seen: dtypes of weights, products and cache among it.
    build : StepBuild or None
        What the backend handed back; None after a fallback.
    model : transformers.PreTrainedModel
        What ``generate()`` belongs to, for whatever wants a model of transformers' own class, such as a pipeline: an
        object of the model's class without its weights, or the eager model after a fallback.
    inputs : BoundInputs
        The example prompts, or what an encoder reads.
    config
        The model's configuration.
    probe : dict of str to Tensor
        The example prompts, and the model's own logits of their last tokens; empty after a fallback.
    tolerance : float or None
        Largest relative error of one token's logits, if it was given.
    perplexity : tuple of float or None
        On the held-out texts, with what the recipe made and with the model itself; None where it was not compared.
    comparison : GenerationComparison or None
        Every recipe that was tried, where :func:`~cpuinfer_helpers.optimize_generator` has chosen this one.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    >>> model = transformers.GPT2LMHeadModel(config).eval()
    >>> prompts = {"input_ids": torch.tensor([[1, 2, 3]])}
    >>> generator = prepare_generator("torchscript-fp32", model, prompts)  # doctest: +SKIP
    >>> generator.generate(**prompts, max_new_tokens=4, do_sample=False).shape  # doctest: +SKIP
    torch.Size([1, 7])
    """

    _shared = ("build", "model", "_eager_model")
    _elsewhere = "save(folder) here, and load_optimized(folder) in the other process"

    def __init__(
        self,
        *,
        recipe: str,
        model: Any,
        inputs: BoundInputs,
        receipt: Receipt,
        build: StepBuild | None = None,
        eager: Callable[[], Any] = _nothing,
        probe: Mapping[str, torch.Tensor] | None = None,
        tolerance: float | None = None,
        perplexity: tuple[float, float] | None = None,
        comparison: Any = None,
    ) -> None:
        self.recipe = recipe
        self.build = build
        self.inputs = inputs
        self.receipt = receipt
        self.config = model.config
        self.sizes = ANY_SIZE
        self.model = model
        self.probe = dict(probe or {})
        self.tolerance = tolerance
        self.perplexity = perplexity
        self.comparison = comparison
        # Asked when it is saved. The eager model is not kept in memory for that.
        self._eager_model = eager

    @property
    def prepared(self) -> bool:
        """Whether what the recipe made writes; False if the eager model does."""
        return self.build is not None

    def with_comparison(self, comparison: Any, reason: str | None = None) -> Generator:
        """The same, with the recipes that were tried, and why the eager model stays if it does."""
        self.comparison = comparison
        if reason is not None:
            self.receipt = replace(self.receipt, reason=reason)
        return self

    @property
    def reads_source(self) -> bool:
        """Whether an encoder reads before a decoder writes."""
        return has_encoder(self.model)

    @property
    def generation_config(self) -> Any:
        """Transformers' settings of ``generate()``, which may be changed."""
        return self.model.generation_config

    @property
    def _compiled(self) -> bool:
        return self.prepared

    @property
    def _own_threads(self) -> bool:
        return self.prepared and not self.recipe.startswith(("eager-", "torchscript-"))

    def generate(self, inputs: torch.Tensor | None = None, **named: Any) -> Any:
        """Continue prompts, or write of what an encoder reads, by transformers' own ``generate()``.

        Parameters
        ----------
        inputs
            Token ids of the prompts (rows, tokens); or give ``input_ids``. Of a model with an encoder what that reads.
        **named
            ``attention_mask`` (rows, tokens) with 0 for padding on the left, and everything that transformers knows:
            ``max_new_tokens``, ``do_sample``, ``num_beams``, ``streamer``, ``prompt_lookup_num_tokens``,
            ``assistant_model``, which may be another Generator ... An encoder's ``attention_mask`` may have padding
            on either side, and ``decoder_attention_mask`` has it on the left.

        Returns
        -------
        What transformers returns: token ids (rows, tokens), unless more was asked for. Prompts are among them, and of
        a model with an encoder what its decoder begins with.

        Raises
        ------
        InputError
            If the prompts are padded on the right, there are more tokens than the model takes, or something is asked
            for that only the eager model has, such as hidden states.
        """
        self._refuse_fork()
        name = "decoder_attention_mask" if self.reads_source else "attention_mask"
        if isinstance(named.get(name), torch.Tensor):
            check_left_padding(named[name], name)
        assistant = named.get("assistant_model")
        if isinstance(assistant, Generator):
            named["assistant_model"] = assistant.model
        # Whatever its first argument is called: Whisper has another name for it.
        first = () if inputs is None else (inputs,)
        with torch.no_grad():
            return self.model.generate(*first, **named)

    def __call__(self, **inputs: Any) -> Any:
        """Logits of every token, as ``model(**inputs)`` gives them.

        Parameters
        ----------
        **inputs
            ``input_ids`` (rows, tokens), ``attention_mask`` (rows, tokens so far), ``past_key_values`` that an earlier
            call returned, ``logits_to_keep``. Of a model with an encoder what that reads, or ``encoder_outputs``, and
            ``decoder_input_ids``, ``decoder_attention_mask``.

        Returns
        -------
        transformers.modeling_outputs.CausalLMOutputWithPast, or Seq2SeqLMOutput of a model with an encoder
        """
        self._refuse_fork()
        with torch.no_grad():
            return self.model(**inputs)

    def save(
        self, directory: str | os.PathLike[str], *, model: torch.nn.Module | None = None, tokenizer: Any = None
    ) -> Path:
        """Write what the recipe has made to a folder, whole or not at all; ``load_optimized`` reads it.

        Weights are written as the recipe stores them, so that loading needs no more memory than they do. The trace is
        made anew when it is loaded, for the CPU and the versions that are there then, and its logits are compared with
        those that the model had given here.

        Parameters
        ----------
        directory
            The folder to make. What was saved there by this method is replaced; a folder of anything else is refused.
        model
            The eager model that was prepared. Needed where it is not in memory any more: it is not kept there.
        tokenizer
            Written beside it, for ``AutoTokenizer.from_pretrained`` and ``python -m cpuinfer_helpers generate``.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArtifactError
            If nothing was prepared, the model is gone or was changed since, or the folder cannot be written.
        """
        saved = ToSave(
            recipe=self.recipe,
            build=self.build,
            prompts=self.inputs.tensors,
            receipt=self.receipt,
            probe=self.probe,
            tolerance=self.tolerance,
            settings=self.generation_config,
            tokenizer=tokenizer,
            comparison=self.comparison,
        )
        return write_generator(saved, directory, self._eager_model() if model is None else model)

    def __str__(self) -> str:
        if not self.prepared:
            return f"{self.recipe}: NOT prepared, the eager model writes, because {self.reason}"
        checked = "verified" if self.receipt.verified else "not verified"
        return f"{self.recipe}: {self.receipt.runs}, {checked} ({self.receipt.checks_summary()})"


def bound_example(inputs: Mapping[str, Any], model: Any) -> BoundInputs:
    """An example as a model takes it: prompts, or what its encoder reads.

    Raises
    ------
    InputError
        If it cannot be used.
    """
    return bound_sources(inputs, source_name(model)) if has_encoder(model) else bound_prompts(inputs)


def bound_prompts(inputs: Mapping[str, Any]) -> BoundInputs:
    """Example prompts as ``input_ids`` and ``attention_mask``.

    Raises
    ------
    InputError
        If there is anything else among them, or they are padded on the right.
    """
    unknown = [name for name in inputs if name not in ("input_ids", "attention_mask")]
    if unknown:
        raise InputError(f"{unknown[0]} is no part of a prompt; give input_ids and attention_mask")
    ids = inputs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
        raise InputError("input_ids of the example are missing; give token ids of shape (rows, tokens)")
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has the shape {tuple(mask.shape)} and input_ids {tuple(ids.shape)}")
    check_left_padding(mask)
    return BoundInputs({"input_ids": ids.long(), "attention_mask": mask.long()}, {})
