"""How many operations a model asks of the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cpuinfer_helpers.interface.inputs import bind_inputs


def count_flops(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """Floating-point operations of one call, matrix products only (a multiply and an add are two).

    Parameters
    ----------
    model
        An eager model, not a ScriptModule.
    inputs
        Tensors by name.

    Returns
    -------
    int
        As PyTorch's own ``torch.utils.flop_counter`` counts them; attention included.

    Raises
    ------
    InputError
        If an input cannot be used; the message names it.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # A prepared model checks its inputs itself.
    if isinstance(model, torch.nn.Module):
        bind_inputs(model, inputs)
    # The counter does not know the CPU's fused attention kernel; the MATH backend runs the products it knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())
