"""Routers in proportion to what they route, which the builders make unless they are told sizes."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from ..routers import Router

__all__ = ["HIDDEN", "SHARE", "proportioned"]

HIDDEN = (256, 128, 64, 32, 16, 8)
"""The widths that the hidden layer of a router may have."""

SHARE = 0.25
"""The most parameters of a router with a hidden layer, as a share of those of the modules."""


def proportioned(
    make: Callable[..., Router],
    modules: Iterable[nn.Module],
    sizes: Sequence[int] | None,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Router:
    """Makes a router of given hidden widths, or in proportion to modules if they are None.

    In proportion means one hidden layer, the widest of :data:`HIDDEN` with which the router has at most :data:`SHARE`
    of the parameters of the modules; none if even the narrowest has more. A router that is larger than what it routes
    costs time and memory, and rarely decides better.

    Args:
        make: Takes hidden widths, `device` and `dtype`, and returns a router.
        modules: What is routed.
        sizes: The hidden widths, or None.
        device: The device of the parameters.
        dtype: The type of the parameters.
    """
    if sizes is None:
        most = SHARE * sum(parameter.numel() for module in modules for parameter in module.parameters())
        fitting = (width for width in HIDDEN if _size(make((width,), device="meta")) <= most)
        width = next(fitting, None)
        sizes = () if width is None else (width,)
    return make(sizes, device=device, dtype=dtype)


def _size(router: Router) -> int:
    return sum(parameter.numel() for parameter in router.parameters())
