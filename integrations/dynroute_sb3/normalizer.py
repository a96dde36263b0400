"""Normalized states, inside the policy, so that whoever has the policy has the statistics."""

import torch
from torch import Tensor, nn

__all__ = ["StateNormalizer"]


class StateNormalizer(nn.Module):
    """Subtracts a mean from states and divides by a deviation; at first it changes nothing.

    Args:
        features: The width of a state.
        device: Where it is.
        dtype: The type of its buffers.

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
    def fit(self, states: Tensor, *, least: float = 1e-3) -> None:
        """Takes over the mean and the deviation of states; a feature that varies less than that is only centred."""
        deviation = states.std(dim=0, correction=0)
        self.mean.copy_(states.mean(dim=0))
        self.scale.copy_(torch.where(deviation < least, 1.0, 1 / deviation))

    def forward(self, state: Tensor) -> Tensor:
        """The normalized states."""
        return (state - self.mean) * self.scale
