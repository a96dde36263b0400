"""Routing between parameters: a linear layer whose weights are a weighted sum of several sets (PaCo)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import check_counts, check_dtype, check_input

__all__ = ["CompositionalLinear"]


class CompositionalLinear(nn.Module):
    r"""A linear layer composed of several sets of parameters (parameter-compositional, PaCo).

    .. math:: y = \sum_k w_k \, (W_k x + b_k)

    The composition :math:`w` is an argument, so layers and networks can share it. All sets start equal.

    Args:
        num_sets: The number of sets of parameters.
        in_features: The width of the input.
        out_features: The width of the output.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> layer = CompositionalLinear(5, 39, 400)
        >>> layer(torch.zeros(7, 39), torch.randn(7, 5)).shape  # a composition for each sample
        torch.Size([7, 400])
        >>> layer(torch.zeros(3, 7, 39), torch.randn(3, 5)).shape  # one for each group of samples
        torch.Size([3, 7, 400])
    """

    def __init__(
        self,
        num_sets: int,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_counts(num_sets=num_sets, in_features=in_features, out_features=out_features)
        check_dtype(dtype)
        self.num_sets = num_sets
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(num_sets, out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_sets, out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws one set as ``nn.Linear`` does, and copies it to the others."""
        linear = nn.Linear(self.in_features, self.out_features, device=self.weight.device, dtype=self.weight.dtype)
        with torch.no_grad():
            self.weight.copy_(linear.weight)
            self.bias.copy_(linear.bias)

    def forward(self, x: Tensor, composition: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: The input, with shape ``[*, in_features]``, or ``[*, n, in_features]`` in groups of n samples.
            composition: The weights of the sets, with shape ``[*, num_sets]``. For groups the layer is composed once
                per group, at the cost of one linear layer; for samples it computes all sets.

        Returns:
            The output, with the shape of the input but for its last dimension.
        """
        check_input("x", x, self.weight)
        check_input("composition", composition, self.weight)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"`x` must have shape (*, {self.in_features}), got {tuple(x.shape)}.")
        batch = composition.shape[:-1]
        if composition.shape[-1:] != (self.num_sets,) or batch not in (x.shape[:-1], x.shape[:-2]):
            raise ValueError(
                f"`composition` must have shape {(*x.shape[:-1], self.num_sets)}, one row for each sample, or "
                f"{(*x.shape[:-2], self.num_sets)}, one for each group, got {tuple(composition.shape)}."
            )

        if batch == x.shape[:-1]:
            sets = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            sets = sets.reshape(*batch, self.num_sets, self.out_features)
            return torch.matmul(composition.unsqueeze(-2), sets).squeeze(-2)
        weight = torch.matmul(composition, self.weight.flatten(1)).reshape(*batch, *self.weight.shape[1:])
        bias = torch.matmul(composition, self.bias)
        return torch.matmul(x, weight.transpose(-1, -2)) + bias.unsqueeze(-2)

    def extra_repr(self) -> str:
        return f"{self.num_sets}, in_features={self.in_features}, out_features={self.out_features}"
