"""Put operators that a trace cannot hold into a form that it can, while a model is traced."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch._functorch.vmap
from torch.overrides import TorchFunctionMode

from cpuinfer_helpers.errors import TraceError
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.receipts import BRANCH

_RANDOM = (torch.randn, torch.rand, torch.randint, torch.randperm, torch.randn_like, torch.rand_like)
_FROM_NUMBERS = (torch.tensor, torch.as_tensor)
_NONZERO = (torch.nonzero, torch.Tensor.nonzero)
# What Python asks a tensor before it takes one way or the other. Whole numbers are sizes as a rule.
_DECISIONS = (torch.Tensor.__bool__, torch.Tensor.item)
_AROUND = ("torch", "cpuinfer_helpers", "intel_extension_for_pytorch")
_OF_LIBRARIES = (*_AROUND, "transformers")
_SCATTERS = (torch.scatter, torch.Tensor.scatter, torch.Tensor.scatter_)


@contextmanager
def traceable_operators(
    *, random_is_constant: bool = False, experts: int | None = None, own_code: Container[str] = ()
) -> Iterator[None]:
    """Have what is traced inside written down as plain operators; other threads do not see it.

    Parameters
    ----------
    random_is_constant
        Hold random tensors as constants. For models that give the same answers under any seed because they set one
        themselves (Reformer with ``hash_seed``): a trace would draw other numbers on each call.
    experts
        Number of experts of a mixture: a loop over those that the tokens have hit, ``for expert in hit.nonzero()``,
        goes over all of them; one that no token has hit adds nothing. A trace holds the loop for its own example.
    own_code
        Names of the modules whose branches are told: each that the example decides gives a TracerWarning of ours.

    Notes
    -----
    Some things that models do have no form in TorchScript:

    * ``torch.autograd.Function``: its call becomes a call of Python, which can be neither saved nor run without Python
      (Bloom's GELU, YOSO), or makes tracing fail (Reformer, masks that transformers 5 makes with ``vmap``). Without
      gradients only its forward matters, so that is traced instead.
    * ``scatter`` with a truth value, which TorchScript's signatures do not know: it gets a number.
    * ``tolist`` of whole numbers, which become constants of the trace: it gets a list of traced numbers, which
      operators take as sizes (JetMoE's tokens of each expert, X-MOD's rows of each language).
    * ``tensor`` and ``as_tensor`` of traced sizes, which become constants: the sizes are stacked (TAPAS).
    * ``vmap``, with which transformers 5 makes some masks: a trace of it holds the batched tensors of that one call,
      and running it has been seen to end the process. The same masks are made by broadcasting; whatever else calls
      ``vmap`` is refused.

    Raises
    ------
    TraceError
        From inside, where the model uses ``vmap`` for something else.
    """
    replaced = [(torch.autograd.Function, "apply", classmethod(_forward_only))]
    replaced += [(torch._functorch.vmap, "_flat_vmap", _refuse_vmap)]
    masks = sys.modules.get("transformers.masking_utils")
    if hasattr(masks, "_vmap_expansion_sdpa") and hasattr(masks, "_non_vmap_expansion_sdpa"):
        replaced.append((masks, "_vmap_expansion_sdpa", _broadcast_mask))
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(switches.patched(owner, name, value))
        stack.enter_context(_Replaced(random_is_constant, experts, own_code))
        yield


class _Replaced(TorchFunctionMode):
    """Hands other values to some operators, or takes their place; see :func:`traceable_operators`."""

    def __init__(self, random_is_constant: bool, experts: int | None, own_code: Container[str]) -> None:
        super().__init__()
        self.own_code = own_code
        self.experts = experts
        self.random_is_constant = random_is_constant

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DECISIONS and torch.jit.is_tracing() and not (func is torch.Tensor.item and _is_whole(args[0])):
            _warn_of_branch(self.own_code)
        if func in _SCATTERS:
            args = tuple(int(value) if isinstance(value, bool) else value for value in args)
            kwargs = {name: int(v) if isinstance(v, bool) else v for name, v in (kwargs or {}).items()}
        elif self.random_is_constant and func in _RANDOM:
            return _not_traced(func, args, kwargs or {})
        elif func is torch.Tensor.tolist and _is_list_of_sizes(args[0]):
            return list(args[0].unbind())
        elif func in _FROM_NUMBERS and args and _holds_traced(args[0]):
            stacked = torch.stack([torch.as_tensor(number) for number in args[0]])
            return stacked.to((kwargs or {}).get("dtype") or stacked.dtype)
        elif func in _NONZERO and args and args[0].dtype == torch.bool and args[0].shape == (self.experts,):
            every = _not_traced(torch.arange, (self.experts,), {})
            return (every,) if (kwargs or {}).get("as_tuple") else every[:, None]
        return func(*args, **(kwargs or {}))


def own_code_of(model: torch.nn.Module) -> frozenset[str]:
    """Names of the modules in which a model's classes stand, without PyTorch's."""
    classes = {kind for part in model.modules() for kind in type(part).__mro__}
    return frozenset(kind.__module__ for kind in classes if kind.__module__.partition(".")[0] != "torch")


def _warn_of_branch(own_code: Container[str]) -> None:
    """Tell the place, if it is the model's own code, or its user's, that has asked."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and _library(frame) in _AROUND:
        frame = frame.f_back
    if frame is None or (_library(frame) in _OF_LIBRARIES and frame.f_globals.get("__name__") not in own_code):
        return
    path, line = frame.f_code.co_filename, frame.f_lineno
    text = f"{BRANCH} {os.path.basename(path)}:{line}"
    warnings.warn_explicit(text, torch.jit.TracerWarning, path, line)


def _library(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _is_whole(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _is_list_of_sizes(tensor: torch.Tensor) -> bool:
    return torch.jit.is_tracing() and tensor.dim() == 1 and tensor.dtype in (torch.int32, torch.int64)


def _holds_traced(numbers: Any) -> bool:
    return (
        torch.jit.is_tracing()
        and isinstance(numbers, (list, tuple))
        and any(isinstance(number, torch.Tensor) and number.dim() == 0 for number in numbers)
    )


def _not_traced(function: Any, args: Any, kwargs: Any) -> Any:
    """Call a function so that the trace holds its value and not the call."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        return function(*args, **kwargs)
    finally:
        torch._C._set_tracing_state(state)


def number_of_experts(model: torch.nn.Module) -> int | None:
    """How many experts a transformers model's configuration says that each of its mixtures has; None if none."""
    config = getattr(model, "config", None)
    numbers = (getattr(config, name, None) for name in ("num_local_experts", "num_experts"))
    return next((number for number in numbers if isinstance(number, int)), None)


def without_loops_over_experts(model: torch.nn.Module) -> bool:
    """Have a mixture of experts compute in one operator, where it loops over the experts that its tokens have hit.

    A trace holds the loop for the experts of its example. Transformers 5 has operators for it; what they answer differs
    by the order of additions.

    Parameters
    ----------
    model
        A copy: it is changed.

    Returns
    -------
    bool
        Whether there was such a loop and it is replaced.
    """
    looping = getattr(getattr(model, "config", None), "_experts_implementation", None) == "eager"
    if looping and hasattr(model, "set_experts_implementation") and model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")
        return True
    return False


def _forward_only(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """What ``function.apply`` computes, without what it would keep for gradients."""
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args, **kwargs)
    context = types.SimpleNamespace(
        needs_input_grad=tuple(False for _ in args),
        save_for_backward=_ignore,
        save_for_forward=_ignore,
        mark_dirty=_ignore,
        mark_non_differentiable=_ignore,
        set_materialize_grads=_ignore,
        saved_tensors=(),
    )
    return function.forward(context, *args, **kwargs)


def _broadcast_mask(mask_function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What transformers' own expansion gives, a mask of batch x heads x queries x keys, without ``vmap``."""

    def expanded(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        indices = sys.modules["transformers.masking_utils"]._non_vmap_expansion_sdpa(batch, head, query, key)
        return mask_function(*indices).expand(batch.shape[0], head.shape[0], query.shape[0], key.shape[0])

    return expanded


def _refuse_vmap(*_: Any, **__: Any) -> None:
    raise TraceError("the model calls torch.vmap, which a trace cannot hold")


def _ignore(*_: Any) -> None:
    return None
