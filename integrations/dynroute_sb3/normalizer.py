"""Normalization of states inside the policy, which stores the statistics."""

import torch
from torch import Tensor, nn

__all__ = ["StateNormalizer"]


class StateNormalizer(nn.Module):
    """Subtracts a mean from states and divides by a standard deviation; initially the identity.

    Args:
        features: The width of a state.
        device: The device of the buffers.
        dtype: The type of the buffers.

    Example:
        >>> from dynroute_sb3.normalizer import StateNormalizer
        >>> normalizer = StateNormalizer(2)
        >>> normalizer.fit(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> normalizer(torch.tensor([2.0, 5.0]))
        tensor([1., 0.])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, features: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, device=device, dtype=dtype))
        self.register_buffer("scale", torch.ones(features, device=device, dtype=dtype))

    @torch.no_grad()
    def fit(self, states: Tensor) -> None:
        """Sets mean and deviation from states; a feature with a deviation below 0.001 is only centred."""
        deviation = states.std(dim=0, correction=0)
        self.mean.copy_(states.mean(dim=0))
        self.scale.copy_(torch.where(deviation < 1e-3, 1.0, 1 / deviation))

    def forward(self, state: Tensor) -> Tensor:
        """Normalizes states."""
        return (state - self.mean) * self.scale
