"""The plain perceptron that the convenience builders of the levels put into their nodes."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from ..arguments import check_dtype, make_activation

__all__ = ["perceptron"]


def perceptron(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module],
    *,
    out_features: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Linear layers of these sizes, each followed by the activation, and a linear output if it is given a width."""
    check_dtype(dtype)
    layers: list[nn.Module] = []
    for width, following in pairwise(sizes):
        layers += [nn.Linear(width, following, device=device, dtype=dtype), make_activation(activation)]
    if out_features is not None:
        layers.append(nn.Linear(sizes[-1], out_features, device=device, dtype=dtype))
    return nn.Sequential(*layers)
