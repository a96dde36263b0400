"""The encoder of BRC: a layer that reads the state beside a learned embedding of the task."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import check_count, check_dtype, check_flag
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
        embedding: The table of another network to share, with shape ``[num_tasks, embedding_features]``; a new one if
            None, drawn from a normal distribution with rows of a norm of about 1.
        learn_embedding: Whether the gradient reaches the table, a flag that can be set.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Attributes:
        embedding: The table, whose rows may have any norm.

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
        check_count("embedding_features", embedding_features, at_least=1)
        check_flag("learn_embedding", learn_embedding)
        check_dtype(dtype)
        if embedding is not None and not isinstance(embedding, nn.Parameter):
            raise TypeError(
                f"`embedding` must be a parameter, that of another network, got {type(embedding).__name__}."
            )
        if embedding is None:
            drawn = torch.randn(num_tasks, embedding_features, device=device, dtype=dtype)
            embedding = nn.Parameter(drawn / embedding_features**0.5)
        elif embedding.shape != (num_tasks, embedding_features):
            raise ValueError(
                f"`embedding` must have shape ({num_tasks}, {embedding_features}), a row for each task, "
                f"got {tuple(embedding.shape)}; share the table of a network with as many tasks and features."
            )
        self.embedding = embedding
        self.learn_embedding = learn_embedding
        self.layer = normalized_linear(state_features + embedding_features, width, device=device, dtype=dtype)
        if embedding.dtype != self.layer[0].weight.dtype:
            raise TypeError(
                f"`embedding` must have the type of the parameters {self.layer[0].weight.dtype}, "
                f"got {embedding.dtype}; pass `dtype` to both networks."
            )

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        """Computes the output from states ``[*, state_features]`` and one-hots ``[*, num_tasks]`` of their tasks."""
        output: Tensor = self.layer(torch.cat([state, self.embed(task)], dim=-1))
        return output

    def embed(self, task: Tensor) -> Tensor:
        """The embeddings of one-hots ``[*, num_tasks]``, each of norm 1, with shape ``[*, embedding_features]``."""
        table = self.embedding if self.learn_embedding else self.embedding.detach()
        return task @ F.normalize(table, dim=-1)

    def extra_repr(self) -> str:
        rows, features = self.embedding.shape
        return f"{rows} tasks x {features}, learn_embedding={self.learn_embedding}"
