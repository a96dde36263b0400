"""The plain and gated MLPs that the builders of the levels use as nodes."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import Makes, check_counts, check_dtype, check_flag, make_activation
from ..resetting import reset_parts

__all__ = ["GatedPerceptron", "perceptron"]


def perceptron(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module],
    *,
    out_features: int | None = None,
    bias: bool = True,
    layer_norm: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Builds linear layers, each followed by the activation, and a linear output if `out_features` is given.

    With `layer_norm`, what enters an activation is normalized.
    """
    check_dtype(dtype)
    layers: list[nn.Module] = []
    for width, following in pairwise(sizes):
        layers.append(nn.Linear(width, following, bias=bias, device=device, dtype=dtype))
        if layer_norm:
            layers.append(nn.LayerNorm(following, device=device, dtype=dtype))
        layers.append(make_activation(activation))
    if out_features is not None:
        layers.append(nn.Linear(sizes[-1], out_features, bias=bias, device=device, dtype=dtype))
    return nn.Sequential(*layers)


class GatedPerceptron(nn.Module):
    r"""An MLP whose hidden layer is gated by a second one: SwiGLU with SiLU, GEGLU with GELU (Shazeer, 2020).

    .. math:: y = W_d \bigl( a(W_g x) \cdot W_u x \bigr)

    The experts of Mixtral and DeepSeek are of this kind.

    Args:
        in_features: The width of the input.
        hidden_features: The width of the hidden layer.
        out_features: The width of the output; default: the width of the input.
        activation: Makes the activation :math:`a`.
        bias: Whether the linear layers have a bias.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> GatedPerceptron(64, 128)(torch.zeros(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_features = in_features if out_features is None else out_features
        check_counts(in_features=in_features, hidden_features=hidden_features, out_features=out_features)
        check_flag("bias", bias)
        check_dtype(dtype)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.gate = nn.Linear(in_features, hidden_features, bias=bias, device=device, dtype=dtype)
        self.up = nn.Linear(in_features, hidden_features, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(hidden_features, out_features, bias=bias, device=device, dtype=dtype)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to ``[*, in_features]``."""
        output: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return output

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal MLP."""
        widths = {name: getattr(self, name) for name in ("in_features", "hidden_features", "out_features")}
        return {**widths, "activation": Makes(self.activation), "bias": self.up.bias is not None}

    def reset_parameters(self) -> None:
        """Resets all parameters as ``nn.Linear`` does."""
        reset_parts(self)
