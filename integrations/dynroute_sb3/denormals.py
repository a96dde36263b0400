"""Denormal numbers in optimizers, which make a processor slow.

Adam multiplies its moments of a parameter by less than one at every step. Without a gradient, as for a unit that no
longer answers or an expert that is no longer chosen, they fall below the smallest normal number and stay there, since
the smallest denormals round back to themselves. A processor takes about a hundred times as long for them.
"""

import torch
from torch.nn.functional import hardshrink
from torch.optim import Optimizer

__all__ = ["CLEAR_EVERY", "clear_denormals"]

CLEAR_EVERY = 64
"""The updates of :class:`~dynroute_sb3.MultiTaskSAC` from one clearing to the next: few become denormal in between."""


def clear_denormals(*optimizers: Optimizer | None) -> None:
    """Sets the denormal numbers in the state of optimizers to zero, on the CPU.

    Steps stay what they were: at Adam's default epsilon a moment that small moves a parameter by less than 1e-30, and
    adds nothing to the epsilon beside it.

    Args:
        *optimizers: The optimizers, whose state is changed in place; None is left out.

    Example:
        >>> import torch
        >>> from dynroute_sb3.denormals import clear_denormals
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.grad = torch.tensor([1.0, 1e-20])  # its square is denormal
        >>> optimizer.step()
        >>> clear_denormals(optimizer)
        >>> (optimizer.state[weight]["exp_avg_sq"] > 0).tolist()
        [True, False]
    """
    for optimizer in filter(None, optimizers):
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.device.type == "cpu":
                    value.copy_(hardshrink(value, torch.finfo(value.dtype).tiny))
