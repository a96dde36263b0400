"""The default size of routers, in proportion to the modules that they route."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from ..routers import Router

__all__ = ["HIDDEN", "SHARE", "proportioned"]

HIDDEN = (256, 128, 64, 32, 16, 8)
"""The widths that the hidden layer of a router may have."""

SHARE = 0.25
"""The largest size of a router with a hidden layer, as a share of the parameters of the modules."""


def proportioned(
    make: Callable[..., Router],
    modules: Iterable[nn.Module],
    sizes: Sequence[int] | None,
    *,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Router:
    """Makes a router with given hidden widths, or one in proportion to the modules if `sizes` is None.

    It then has one hidden layer, the widest of :data:`HIDDEN` with which the router has at most :data:`SHARE` of the
    parameters of the modules, or no hidden layer if even the narrowest has more. A larger router costs time and memory
    and rarely decides better.

    Args:
        make: Takes hidden widths, `device` and `dtype`, and returns a router.
        modules: The modules to route.
        sizes: The hidden widths, or None.
        device: The device of the parameters.
        dtype: The type of the parameters.
    """
    if sizes is None:
        limit = SHARE * sum(map(_size, modules))
        sizes = next(((width,) for width in HIDDEN if _size(make((width,), device="meta")) <= limit), ())
    return make(sizes, device=device, dtype=dtype)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
