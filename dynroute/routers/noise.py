"""The noise of a router, which affects the choice of sources and not their weights."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_generator

__all__ = ["RouterNoise", "draw_normal", "draw_uniform"]


class RouterNoise(NamedTuple):
    """The random numbers of one pass of a router, drawn by :meth:`Router.draw_noise`; None for noise it does not use.

    Pass them as ``router_noise=`` to repeat a pass, or to draw outside of a compiled function.

    Example:
        >>> router = LinearRouter(5, Topology.parallel(4), noise=1.0)
        >>> isinstance(router.draw_noise(torch.zeros(7, 5)), RouterNoise)
        True
    """

    jitter: Tensor | None
    """Uniform in [-1, 1), with the shape of the context."""

    normal: Tensor | None
    """Standard normal, with shape ``[*, num_edges]``."""

    uniform: Tensor | None
    """Uniform in [0, 1), with shape ``[*, num_edges]``.

    A source is dropped if its number is below the rate and is not the largest of its node.
    """


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draws from [0, 1), in float32."""
    check_generator(generator)
    if generator is None:  # passing generator=None breaks torch.compile with dynamic sizes
        return torch.rand(shape, dtype=torch.float32, device=device)
    return torch.rand(shape, dtype=torch.float32, device=device, generator=generator)


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draws from a standard normal distribution, in float32."""
    check_generator(generator)
    if generator is None:
        return torch.randn(shape, dtype=torch.float32, device=device)
    return torch.randn(shape, dtype=torch.float32, device=device, generator=generator)
