"""Where the weights of a transformer encoder layer stand in the models that have one, and what else such a layer holds.

A layer is known by the names of its parts, not by its class: RoBERTa, ELECTRA, CamemBERT and many more have BERT's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import gelu, relu

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.interface.copies import has_own_code

# What each part does, in the order in which the layer uses them; norm1 belongs to the attention, norm2 to the rest.
LINEARS = ("query", "key", "value", "out", "linear1", "linear2")
NORMS = ("norm1", "norm2")


@dataclass(frozen=True)
class Layout:
    """Paths of the six linear layers and the two norms inside an encoder layer."""

    query: str
    key: str
    value: str
    out: str
    norm1: str
    linear1: str
    linear2: str
    norm2: str

    def paths(self) -> dict[str, str]:
        """The paths by what the part does."""
        return {role: getattr(self, role) for role in (*LINEARS, *NORMS)}


def _layout(attention: str, out: str, norm1: str, linear1: str, linear2: str, norm2: str) -> Layout:
    query, key, value = (attention.format(*names) for names in (("query", "q"), ("key", "k"), ("value", "v")))
    return Layout(query, key, value, out, norm1, linear1, linear2, norm2)


LAYOUTS = (
    # BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, BertGeneration, ERNIE, Data2VecText, Splinter, LayoutLM ...
    _layout("attention.self.{0}", "attention.output.dense", "attention.output.LayerNorm",
            "intermediate.dense", "output.dense", "output.LayerNorm"),
    # RoBERTa-PreLayerNorm
    _layout("attention.self.{0}", "attention.output.dense", "attention.LayerNorm",
            "intermediate.dense", "output.dense", "intermediate.LayerNorm"),
    # XLM-RoBERTa-XL
    _layout("attention.self.{0}", "attention.output.dense", "attention.self_attn_layer_norm",
            "intermediate.dense", "output.dense", "LayerNorm"),
    # Megatron-BERT
    _layout("attention.self.{0}", "attention.output.dense", "attention.ln", "intermediate.dense", "output.dense", "ln"),
    # DistilBERT
    _layout("attention.{1}_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    # ALBERT
    _layout("attention.{0}", "attention.dense", "attention.LayerNorm",
            "ffn", "ffn_output", "full_layer_layer_norm"),
    # ViT, DeiT and the audio spectrogram transformer, in transformers 4 and 5
    _layout("attention.attention.{0}", "attention.output.dense", "layernorm_before",
            "intermediate.dense", "output.dense", "layernorm_after"),
    _layout("attention.{1}_proj", "attention.o_proj", "layernorm_before", "mlp.fc1", "mlp.fc2", "layernorm_after"),
    # Wav2Vec2, HuBERT, UniSpeech, SEW, Data2VecAudio
    _layout("attention.{1}_proj", "attention.out_proj", "layer_norm",
            "feed_forward.intermediate_dense", "feed_forward.output_dense", "final_layer_norm"),
    # The encoder of Whisper and of speech-to-text models
    _layout("self_attn.{1}_proj", "self_attn.out_proj", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"),
    # CLIP-like image encoders
    _layout("self_attn.{1}_proj", "self_attn.out_proj", "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"),
)  # fmt: skip

_ACTIVATIONS = ("intermediate_act_fn", "activation_fn", "activation", "act_fn", "act")
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
# Arguments of a layer's forward that change nothing where they are None or False.
_KNOWN_ARGUMENTS = frozenset(
    "hidden_states x attention_mask attn_mask head_mask layer_head_mask encoder_hidden_states encoder_attention_mask "
    "past_key_value past_key_values cache_position use_cache output_attentions output_hidden_states".split()
)


@dataclass(frozen=True)
class Parts:
    """The parts of one encoder layer, and what the fast path needs to know of them.

    Attributes
    ----------
    linears, norms
        By what they do; see :class:`Layout`.
    heads
        Number of attention heads.
    eps
        Of both norms.
    activation
        ``gelu`` or ``relu``.
    """

    linears: dict[str, torch.nn.Linear]
    norms: dict[str, torch.nn.LayerNorm]
    heads: int
    eps: float
    activation: str

    @property
    def width(self) -> int:
        """Length of a hidden state."""
        return self.linears["query"].in_features

    @property
    def inner_width(self) -> int:
        """Length between the two linear layers after the attention."""
        return self.linears["linear1"].out_features


def layout_of(layer: torch.nn.Module) -> Layout | None:
    """The layout whose parts the layer has, all of them; None if there is none."""
    names = {name for name, _ in layer.named_modules()}
    return next((layout for layout in LAYOUTS if names.issuperset(layout.paths().values())), None)


def parts_of(layer: torch.nn.Module, layout: Layout) -> Parts:
    """The parts of a layer.

    Raises
    ------
    RecipeError
        If the fast path cannot compute what the layer does; it says why.
    """
    kind = type(layer).__name__
    found = {role: layer.get_submodule(path) for role, path in layout.paths().items()}
    for role, part in found.items():
        wanted = torch.nn.Linear if role in LINEARS else torch.nn.LayerNorm
        if type(part) is not wanted:
            path = layout.paths()[role]
            raise RecipeError(
                f"{kind}: {path} is a {type(part).__name__}, the fast path takes torch's {wanted.__name__}"
            )
    _refuse_own_code(layer)
    _refuse_further_weights(layer, layout)
    _refuse_settings(layer)
    linears = {role: found[role] for role in LINEARS}
    norms = {role: found[role] for role in NORMS}
    _check_sizes(kind, linears, norms)
    parts = Parts(linears, norms, _heads(layer), norms["norm1"].eps, _activation(layer))
    if parts.heads % 2 or parts.width % parts.heads:
        raise RecipeError(
            f"{kind} has {parts.heads} attention heads for {parts.width} features; the fast path takes even numbers of "
            "heads that divide them"
        )
    return parts


def _refuse_further_weights(layer: torch.nn.Module, layout: Layout) -> None:
    known = {f"{path}.{name}" for path in layout.paths().values() for name in ("weight", "bias")}
    further = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers()) if name not in known]
    if further:
        raise RecipeError(f"{type(layer).__name__} has {further[0]}, for which the fast path has no place")


def _refuse_settings(layer: torch.nn.Module) -> None:
    kind = type(layer).__name__
    for part in layer.modules():
        if getattr(part, "is_decoder", False) or getattr(part, "is_causal", False):
            raise RecipeError(f"{kind} is a decoder's (causal or cross attention); the fast path is for encoders")
        positions = getattr(part, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise RecipeError(f"{kind} has relative position embeddings ({positions}); the fast path has none")
    for name, parameter in inspect.signature(layer.forward).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in _KNOWN_ARGUMENTS:
            raise RecipeError(f"{kind} takes {name!r}, which the fast path does not know")


def _refuse_own_code(layer: torch.nn.Module) -> None:
    for name, part in layer.named_modules():
        code = has_own_code(part) or _forward_outside_transformers(part)
        if code:
            where = name or "itself"
            raise RecipeError(f"{type(layer).__name__} has {code} on {where}, which the fast path would lose")


def _forward_outside_transformers(part: torch.nn.Module) -> str | None:
    """Whether a class of somebody else's changes what one of transformers computes."""
    origin = type(part).forward.__module__.partition(".")[0]
    of_transformers = any(kind.__module__.startswith("transformers.") for kind in type(part).__mro__)
    return f"a forward of {type(part).__name__}'s own" if of_transformers and origin != "transformers" else None


def _check_sizes(kind: str, linears: dict[str, torch.nn.Linear], norms: dict[str, torch.nn.LayerNorm]) -> None:
    width, inner = linears["query"].in_features, linears["linear1"].out_features
    wanted = {role: (width, width) for role in ("query", "key", "value", "out")}
    wanted.update(linear1=(inner, width), linear2=(width, inner))
    for role, shape in wanted.items():
        if tuple(linears[role].weight.shape) != shape:
            raise RecipeError(
                f"{kind}: the weight of {role} has shape {list(linears[role].weight.shape)}, not {list(shape)}; "
                "the fast path takes heads that share the hidden size evenly"
            )
    for role, norm in norms.items():
        if norm.normalized_shape != (width,) or norm.weight is None or norm.bias is None:
            raise RecipeError(f"{kind}: {role} does not normalise {width} features with a weight and a bias")
    if norms["norm1"].eps != norms["norm2"].eps:
        raise RecipeError(f"{kind}: its norms have eps {norms['norm1'].eps} and {norms['norm2'].eps}; both must be one")


def _heads(layer: torch.nn.Module) -> int:
    found = set(_attributes(layer, _HEADS, int))
    if len(found) != 1:
        raise RecipeError(f"{type(layer).__name__} does not say how many attention heads it has")
    return found.pop()


def _activation(layer: torch.nn.Module) -> str:
    found = [function for function in _attributes(layer, _ACTIVATIONS, object) if callable(function)]
    if not found:
        raise RecipeError(f"{type(layer).__name__} does not say what its activation is")
    # gelu_new and other approximations differ from GELU by up to 5e-4 on this range, rounding by 1e-6.
    values = torch.linspace(-6, 6, 601)
    kinds = {"gelu": gelu(values), "relu": relu(values)}
    with torch.no_grad():
        seen = [function(values) for function in found]
    for kind, expected in kinds.items():
        if all(torch.allclose(one, expected, atol=2e-6, rtol=0) for one in seen):
            return kind
    name = getattr(found[0], "__name__", type(found[0]).__name__)
    raise RecipeError(f"the activation of {type(layer).__name__} is {name}; the fast path has ReLU and the exact GELU")


def _attributes(layer: torch.nn.Module, names: tuple[str, ...], kind: type) -> Iterator[object]:
    for part in layer.modules():
        for name in names:
            value = part.__dict__.get(name, part._modules.get(name))
            if value is not None and isinstance(value, kind):
                yield value
