"""A causal language model as an OpenVINO model that keeps keys and values itself, in variables of each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation.layout import Layout, OwnCache
from cpuinfer_helpers.generation.traced_step import TraceableStep, example_of, traced

IDS, POSITIONS, SLOTS, WANTED, ROWS, LOGITS = "ids", "positions", "slots", "wanted", "rows", "logits"


def mask_name(kind: str) -> str:
    """The input that is the mask of a kind of attention."""
    return f"mask.{kind}"


class _AppendingCache(OwnCache):
    """Appends keys and values to those there are, which is the form that OpenVINO's kernel for attention takes in."""

    def __init__(self, kept: Sequence[torch.Tensor], slots: torch.Tensor) -> None:
        half = len(kept) // 2
        self.stored = list(zip(kept[:half], kept[half:], strict=True))
        self.slots = slots

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        pairs = zip(self.stored[layer_idx], (key, value), strict=True)
        self.stored[layer_idx] = tuple(torch.cat([kept, new], dim=2) for kept, new in pairs)
        return self.stored[layer_idx]

    def get_seq_length(self, layer_idx: int | None = 0) -> Any:
        # Not the size of what is kept: forgotten tokens may still be in there.
        return self.slots[0]


class _AppendingStep(TraceableStep):
    """Returns the keys of each layer, then the values, after the logits."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = super().forward(*tensors)
        return logits, *(t for part in zip(*self._cache.stored, strict=True) for t in part)

    def cache_of(self, kept: Sequence[torch.Tensor], slots: torch.Tensor, total: Any) -> OwnCache:
        self._cache = _AppendingCache(kept, slots)
        return self._cache


def convert(model: torch.nn.Module, kinds: dict[str, int | None], layout: Layout) -> tuple[Any, tuple[str, ...]]:
    """Convert a causal language model to an OpenVINO model with variables.

    Its inputs are those of a :class:`~cpuinfer_helpers.generation.traced_step.TraceableStep` without keys and values,
    and ``rows``: which of the rows that were fed before each row goes on with.

    Parameters
    ----------
    model
        A copy that nobody else uses; it is changed.
    kinds
        Kinds of attention, see :func:`~cpuinfer_helpers.generation.positions.attention_kinds`.
    layout
        What it stores of each token.

    Returns
    -------
    converted : openvino.Model
    warnings : tuple of str
        Those that tracing raised.

    Raises
    ------
    RecipeError
        If it cannot be traced.
    """
    import openvino

    example = example_of(layout, kinds, torch.float32)
    module, warnings = traced(_AppendingStep(model, tuple(kinds)), example)
    converted = openvino.convert_model(module, example_input=example)
    _name(converted, kinds, layout)
    _reorder_rows(converted, layout)
    _keep(converted, layout)
    return converted, warnings


def _kept(layout: Layout) -> list[str]:
    layers = range(len(layout.keys))
    return [f"{part}.{layer}" for part in ("keys", "values") for layer in layers]


def _name(converted: Any, kinds: dict[str, int | None], layout: Layout) -> None:
    """Give inputs and outputs names and sizes; the converter keeps their order and knows nothing else of them."""
    import openvino

    of_any_size = [
        *((name, [-1, -1]) for name in (IDS, POSITIONS)),
        *((name, [-1]) for name in (SLOTS, WANTED)),
        *((mask_name(kind), [-1, 1, -1, -1]) for kind in kinds),
    ]
    sizes = [[-1, heads, -1, size] for heads, size in (*layout.keys, *layout.values)]
    inputs = [*of_any_size, *zip(_kept(layout), sizes, strict=True)]
    outputs = [LOGITS, *(f"new {name}" for name in _kept(layout))]
    if len(converted.inputs) != len(inputs) or len(converted.outputs) != len(outputs):
        raise RecipeError(
            f"OpenVINO made {len(converted.inputs)} inputs of {len(inputs)} and {len(converted.outputs)} outputs of "
            f"{len(outputs)}, so that nobody knows which is which"
        )
    for port, (name, shape) in zip(converted.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(converted.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()


def _reorder_rows(converted: Any, layout: Layout) -> None:
    """Put a choice of rows behind everything that is kept: OpenVINO's kernel takes it in and copies nothing for it."""
    import numpy as np
    from openvino import opset13

    rows = opset13.parameter([-1], dtype=np.int32, name=ROWS)
    rows.output(0).get_tensor().set_names({ROWS})
    converted.add_parameters([rows])
    for name in _kept(layout):
        port = converted.input(name)
        readers = list(port.get_target_inputs())
        chosen = opset13.gather(port, rows, opset13.constant(0, dtype=np.int64))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    converted.validate_nodes_and_infer_types()


def _keep(converted: Any, layout: Layout) -> None:
    """Make variables of what is kept, which begin without tokens, in as many rows as are fed."""
    import numpy as np
    from openvino import opset13
    from openvino.passes import MakeStateful, Manager

    manager = Manager()
    manager.register_pass(MakeStateful({name: f"new {name}" for name in _kept(layout)}))
    manager.run_passes(converted)
    first = opset13.constant(np.array([0], dtype=np.int64)), opset13.constant(0, dtype=np.int64)
    batch = opset13.gather(opset13.shape_of(converted.input(IDS), output_type="i64"), *first)
    for node in [node for node in converted.get_ops() if node.get_type_name() == "ReadValue"]:
        _, heads, _, size = (int(dimension.get_min_length()) for dimension in node.get_output_partial_shape(0))
        rest = opset13.constant(np.array([heads, 0, size], dtype=np.int64))
        shape = opset13.concat([batch, rest], axis=0)
        node.set_arguments([opset13.broadcast(opset13.constant(0.0, dtype=np.float32), shape)])
    converted.validate_nodes_and_infer_types()
