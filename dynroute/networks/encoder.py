"""The encoder of BRC: a layer that reads the state beside a learned embedding of the task."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import Factory, check_count, check_dtype, check_flag
from .network import check_table
from .residual import normalized_linear

__all__ = ["TaskEncoder"]


class TaskEncoder(nn.Module):
    r"""Reads the state and an embedding of the task of norm 1 (BRC).

    .. math:: y = \operatorname{ReLU}(\operatorname{LN}(W\,[s, e_{\mathcal T} / \|e_{\mathcal T}\|] + b))

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        width: The width of the output.
        embedding_features: The width of the embedding.
        embedding: The table of another network to share, with shape ``[num_tasks, embedding_features]``; a new normally
            distributed one with rows of norm about 1 if None.
        learn_embedding: Whether the gradient reaches the table; it can be set later.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Attributes:
        embedding: The table; its rows may have any norm.

    Example:
        >>> TaskEncoder(39, 10, 256)(torch.zeros(7, 39), torch.eye(10)[:7]).shape
        torch.Size([7, 256])
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        width: int,
        *,
        embedding_features: int = 32,
        embedding: nn.Parameter | None = None,
        learn_embedding: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: Factory = {"device": device, "dtype": dtype}
        check_count("embedding_features", embedding_features, at_least=1)
        check_flag("learn_embedding", learn_embedding)
        check_dtype(dtype)
        if embedding is None:
            drawn = torch.randn(num_tasks, embedding_features, **factory)
            embedding = nn.Parameter(drawn / embedding_features**0.5)
        self.layer = normalized_linear(state_features + embedding_features, width, **factory)
        check_table("embedding", embedding, (num_tasks, embedding_features), "features", self.layer)
        self.embedding = embedding
        self.learn_embedding = learn_embedding

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        """Computes the output from states ``[*, state_features]`` and one-hots ``[*, num_tasks]`` of their tasks."""
        output: Tensor = self.layer(torch.cat([state, self.embed(task)], dim=-1))
        return output

    def embed(self, task: Tensor) -> Tensor:
        """Embeds one-hots ``[*, num_tasks]`` as vectors of norm 1, with shape ``[*, embedding_features]``."""
        table = self.embedding if self.learn_embedding else self.embedding.detach()
        return task @ F.normalize(table, dim=-1)

    def extra_repr(self) -> str:
        rows, features = self.embedding.shape
        return f"{rows} tasks x {features}, learn_embedding={self.learn_embedding}"
