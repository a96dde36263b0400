r"""Linear layers with layer normalization, and the residual blocks that BRC stacks.

They are initialized as in BRC, with orthogonal weights of gain :math:`\sqrt 2` and biases of 0.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_counts, check_dtype
from ..levels.perceptron import perceptron

__all__ = [
    "EPSILON",
    "MODULE_KINDS",
    "ResidualBlock",
    "make_module",
    "make_orthogonal",
    "normalized_linear",
    "orthogonal_linear",
    "residual_body",
]

EPSILON = 1e-6
"""The epsilon of layer normalization in the released code of BRC; torch's default is 1e-5."""

MODULE_KINDS = ("linear", "layer-norm", "residual")
"""The kinds of modules of routed networks."""


class ResidualBlock(nn.Module):
    r"""Adds a normalized MLP of one hidden layer to its input (BRC).

    .. math:: y = x + \operatorname{LN}\bigl(W_2 \operatorname{ReLU}(\operatorname{LN}(W_1 x + b_1)) + b_2\bigr)

    Args:
        width: The width of input, hidden layer and output.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> ResidualBlock(8)(torch.zeros(7, 8)).shape
        torch.Size([7, 8])
    """

    def __init__(
        self, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.body = residual_body(width, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the output, with the shape of the input ``[*, width]``."""
        y: Tensor = x + self.body(x)
        return y


def residual_body(width: int, **factory: Unpack[Factory]) -> nn.Sequential:
    """Makes the part of a residual block that is added to its input: Linear - LayerNorm - ReLU - Linear - LayerNorm."""
    return nn.Sequential(
        *normalized_linear(width, width, **factory),
        orthogonal_linear(width, width, **factory),
        nn.LayerNorm(width, EPSILON, **factory),
    )


def normalized_linear(
    in_features: int, out_features: int, *, activation: bool = True, **factory: Unpack[Factory]
) -> nn.Sequential:
    """Makes Linear - LayerNorm, followed by ReLU if `activation` is True."""
    return nn.Sequential(
        orthogonal_linear(in_features, out_features, **factory),
        nn.LayerNorm(out_features, EPSILON, **factory),
        *([nn.ReLU()] if activation else []),
    )


def orthogonal_linear(in_features: int, out_features: int, **factory: Unpack[Factory]) -> nn.Linear:
    r"""Makes a linear layer with orthogonal weights of gain :math:`\sqrt 2` and a bias of 0."""
    check_counts(in_features=in_features, out_features=out_features)
    check_dtype(factory.get("dtype"))
    layer = nn.Linear(in_features, out_features, **factory)
    make_orthogonal(layer)
    return layer


@torch.no_grad()
def make_orthogonal(module: nn.Module) -> None:
    r"""Draws orthogonal weights of gain :math:`\sqrt 2` for the linear layers of a module, and sets biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            # Matrices of 16 bits have no QR decomposition.
            drawn = torch.empty_like(layer.weight, dtype=torch.promote_types(layer.weight.dtype, torch.float32))
            layer.weight.copy_(nn.init.orthogonal_(drawn, gain=math.sqrt(2)))
            layer.bias.zero_()


def make_module(
    kind: str, in_features: int, width: int, *, first: bool, shortcut: bool, **factory: Unpack[Factory]
) -> nn.Module:
    """Makes a module of a routed network, with its activation.

    Args:
        kind: One of :data:`MODULE_KINDS`: Linear - ReLU, Linear - LayerNorm - ReLU, or a residual block.
        in_features: The width of its input.
        width: The width of its output.
        first: Whether the module reads the input of the graph; Linear - LayerNorm - ReLU then replaces a residual
            block.
        shortcut: Whether the graph adds the input to the output; if not, a residual block does.
        factory: The `device` and `dtype` of the parameters.
    """
    if kind == "linear":
        return perceptron((in_features, width), nn.ReLU, **factory)
    if kind == "layer-norm" or first:
        return normalized_linear(in_features, width, **factory)
    if shortcut:
        return residual_body(width, **factory)
    return ResidualBlock(width, **factory)
