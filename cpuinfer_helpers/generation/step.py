"""What a backend of text generation is: a step, which is fed tokens and gives logits, and the state that it keeps.

A backend is one module of ``generation.backends`` with a ``RECIPES`` tuple, which is found by itself. It makes a
:class:`Step`; everything else comes with that: transformers' ``generate()`` on top of it, verification, the receipt,
measuring and fallback. ``backends/eager.py`` is the shortest example.

Where an encoder reads a source and a decoder writes of it, the step is an :class:`EncodingStep`: it also encodes, once
for each source, and a state begins with what came of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.recipes.base import Recipe

# Room for tokens grows by whole blocks, and at least to twice of what it was, so that a long answer is copied rarely.
BLOCK = 64


class State(ABC):
    """What a step keeps of the tokens that it was fed: keys and values for each row.

    Attributes
    ----------
    batch
        Number of rows.
    length
        Tokens that each row has, padding included.
    capacity
        Tokens for which there is room.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch, self.length, self.capacity = batch, 0, capacity

    def crop(self, length: int) -> None:
        """Forget all tokens after the first ``length``, such as a draft that was wrong."""
        if not 0 <= length <= self.length:
            raise InputError(f"there are {self.length} tokens, which cannot be cropped to {length}")
        self._crop(length)
        self.length = length

    def reorder(self, rows: torch.Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was; there may be more or fewer rows than before."""
        self._reorder(rows)
        self.batch = len(rows)

    def grow(self, capacity: int) -> None:
        """Make room for so many tokens; what was fed stays."""
        if capacity > self.capacity:
            self._grow(capacity)
            self.capacity = capacity

    @abstractmethod
    def _crop(self, length: int) -> None: ...

    @abstractmethod
    def _reorder(self, rows: torch.Tensor) -> None: ...

    @abstractmethod
    def _grow(self, capacity: int) -> None: ...


@dataclass(frozen=True)
class Sources:
    """What an encoder has read, a source for each row.

    Attributes
    ----------
    states
        What the encoder gives, (batch, places, width).
    mask
        1 for what of the encoder's inputs is content and 0 for padding, as the model takes it: (batch, inputs). None
        where the model reads no mask.
    """

    states: torch.Tensor
    mask: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.states)


class Step(ABC):
    """Feeds tokens to a model and keeps what it has to know of them in a state.

    Attributes
    ----------
    limit
        The most tokens that a row may have; None where the model sets no limit.
    """

    limit: int | None = None

    def new_state(self, batch: int, length: int, sources: Sources | None = None) -> State:
        """A state without tokens.

        Parameters
        ----------
        batch
            Number of rows.
        length
            Number of tokens for which there should be room; it grows where that is not enough.
        sources
            What is written of, of an :class:`EncodingStep` alone.
        """
        if sources is not None:
            raise InputError("a decoder alone writes of no sources")
        return self._new_state(batch, self._rounded(length))

    def feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: State, *, last: int | None = 1
    ) -> torch.Tensor:
        """Feed the next tokens of every row.

        Parameters
        ----------
        ids
            Token ids (batch, new tokens), whole numbers of 64 bits.
        mask
            1 for tokens and 0 for padding, of all tokens from the first one on: (batch, tokens with the new ones).
        positions
            Each new token's place in its text, (batch, new tokens).
        state
            Of this step; it has the new tokens afterwards.
        last
            For how many of the new tokens, counted from the end, logits are wanted; None for all.

        Returns
        -------
        torch.Tensor
            Logits (batch, ``last`` or new tokens, vocabulary).

        Raises
        ------
        InputError
            If there would be more tokens than the model takes.
        """
        fed = ids.shape[1]
        needed = state.length + fed
        if self.limit is not None and needed > self.limit:
            raise InputError(
                f"{needed} tokens are more than the {self.limit} that are possible here; shorten the prompt or "
                "ask for fewer new tokens"
            )
        if needed > state.capacity:
            state.grow(self._rounded(max(needed, 2 * state.capacity)))
        logits = self._feed(ids, mask, positions, state, fed if last is None else min(last, fed))
        state.length = needed
        return logits

    def _rounded(self, length: int) -> int:
        rounded = -(-max(length, 1) // BLOCK) * BLOCK
        return rounded if self.limit is None else min(rounded, self.limit)

    @abstractmethod
    def _new_state(self, batch: int, capacity: int) -> State: ...

    @abstractmethod
    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any, last: int
    ) -> torch.Tensor: ...


class EncodingStep(Step):
    """A step of a model that has an encoder beside its decoder.

    What cross-attention reads of a source is computed when a state begins, and is part of that: rows that are reordered
    take it with them.

    Attributes
    ----------
    inputs_name
        The argument that the encoder reads: ``input_ids``, ``input_features`` ...
    reads_mask
        Whether the model reads a mask of its sources.
    takes_padding
        Whether beginnings of what is written may be padded.
    """

    inputs_name: str
    reads_mask: bool
    takes_padding: bool = True

    def encode(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> Sources:
        """Have the encoder read, once for each source.

        Parameters
        ----------
        inputs
            Token ids (batch, tokens), or features.
        mask
            1 for content and 0 for padding, on either side; None where there is no padding.

        Raises
        ------
        InputError
            If the encoder does not take them.
        """
        if not self.reads_mask:
            mask = None
        elif mask is None:
            mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        try:
            return Sources(self._encode(inputs, mask), mask)
        except InputError:
            raise
        except Exception as error:  # of a backend, or the model's own Python, which say in many ways what does not fit
            raise InputError(
                f"the encoder does not take {self.inputs_name} of shape {tuple(inputs.shape)}: {first_line(error)}"
            ) from error

    def new_state(self, batch: int, length: int, sources: Sources | None = None) -> State:
        """A state without tokens, that begins with sources; see :meth:`Step.new_state`."""
        if sources is None:
            raise InputError("there is no source to write of; encode one first")
        if sources.batch != batch:
            raise InputError(f"there are {sources.batch} sources and {batch} rows; give a source for each row")
        return self._begin(sources, self._rounded(length))

    def _new_state(self, batch: int, capacity: int) -> State:
        raise NotImplementedError("a state begins with sources")

    @abstractmethod
    def _encode(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor: ...

    @abstractmethod
    def _begin(self, sources: Sources, capacity: int) -> State: ...


@dataclass(frozen=True)
class StepBuild:
    """What a backend hands back.

    Attributes
    ----------
    step
        What generates.
    runs
        What computes, in a few words: ``ScriptModule, frozen``, ``OpenVINO compiled model`` ...
    weights, compute, cache
        Dtypes in which weights are stored, products are computed, and keys and values are kept, as they were seen.
    attention
        What computes attention.
    converted, layers
        How many linear layers have weights of the recipe's kind, and how many there are in all.
    weight_bytes
        Bytes of all weights that a token reads: those of linear layers, and of the rest without embeddings that are
        only looked up.
    token_bytes
        Bytes of the keys and values of one token in one row, all of which every later token reads.
    source_bytes
        Bytes of what cross-attention keeps of one place of a source in one row, all of which every token reads; 0
        without an encoder.
    evidence, graph_nodes, warnings, module
        For the receipt; see :class:`~cpuinfer_helpers.receipts.Receipt`.
    otherwise
        Makes the same in another way, for when this one's answers turn out not to be the model's.
    """

    step: Step
    runs: str
    weights: str
    compute: str
    cache: str
    attention: str
    converted: int
    layers: int
    weight_bytes: int
    token_bytes: int
    source_bytes: int = 0
    evidence: Mapping[str, str] = field(default_factory=dict)
    graph_nodes: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    module: torch.jit.ScriptModule | None = None
    otherwise: Callable[[], StepBuild] | None = None


@dataclass(frozen=True)
class StepRequest:
    """What a backend is given.

    Attributes
    ----------
    recipe
        The recipe's name.
    precision
        ``fp32``, ``fp16w``, ``bf16``, ``int8`` or ``int4``.
    model
        The eager model in evaluation mode: a copy with the user's own parameters, which a backend never changes.
    prompts
        Example prompts: ``input_ids`` and ``attention_mask``, padded on the left; of a model with an encoder what that
        reads, see :mod:`cpuinfer_helpers.generation.encoding.sources`.
    """

    recipe: str
    precision: str
    model: torch.nn.Module
    prompts: Mapping[str, torch.Tensor]

    @property
    def config(self) -> Any:
        """The configuration of what writes the text."""
        return self.model.config.get_text_config(decoder=True)


@dataclass(frozen=True)
class StoredStep:
    """What a backend is told when it is to run what it has exported.

    Attributes
    ----------
    precision
        As in :class:`StepRequest`.
    model_class, config
        Of the model: the class of transformers, and its configuration.
    limit
        The most tokens that a row may have.
    details
        What the backend's ``export`` returned.
    prompts
        Of the example, as in :class:`StepRequest`.
    """

    precision: str
    model_class: type
    config: Any
    limit: int | None
    details: Mapping[str, Any]
    prompts: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationRecipe(Recipe):
    """One way to generate text: ``build`` takes a :class:`StepRequest` and returns a :class:`StepBuild`.

    ``export`` takes the request, the build and a folder, and ``restore`` a :class:`StoredStep` and the folder. The name
    ends in ``fp32``, ``bf16``, ``fp16w`` (weights stored in FP16, computed in FP32), ``int8`` or ``int4`` (weights
    stored in 8 or 4 bits).

    Attributes
    ----------
    in_8_bits
        Whether products are of whole numbers of 8 bits, not only weights stored in them.
    """

    in_8_bits: bool = False

    @property
    def emulation(self) -> str | None:
        """Which instructions for its precision this CPU lacks; weights that are only stored in fewer bits need none."""
        return super().emulation if self.precision == "bf16" or self.in_8_bits else None
