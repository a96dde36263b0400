"""What a gate decided: the logits it saw, the sources it chose and the weights that mix them."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Route"]


class Route(NamedTuple):
    """The decision of a gate for a batch of samples.

    All three tensors have shape ``[*, T, S]``: a row for each node that reads other nodes, a column for each source of
    that node. Slots that a node does not have hold a logit of -inf, a path of False and a weight of exactly 0.
    """

    logits: Tensor
    """The router's clean scores, z in the paper, in float32 or wider."""

    path: Tensor
    """The chosen sources, d in the paper, boolean."""

    weights: Tensor
    """The weights that mix the chosen sources, p in the paper."""

    def sample(self, *index: int) -> "Route":
        """The route of one sample; ``route[i]`` is a field of the tuple, not a sample.

        Args:
            index: The position of the sample in each batch dimension.

        Example:
            >>> Soft()(torch.zeros(7, 2, 2)).sample(3).path.shape
            torch.Size([2, 2])
        """
        return Route(self.logits[index], self.path[index], self.weights[index])
