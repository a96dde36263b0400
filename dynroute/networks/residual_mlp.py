r"""BRC: a wide residual network with layer normalization, which reads a learned embedding of the task.

The network differs from the released code of "Bigger, Regularized, Categorical" in two ways:

1. The released actor draws the layer of log-standard deviations with gain 1 and the layer of means with gain
   :math:`\sqrt 2`; here one layer computes both, with gain :math:`\sqrt 2`.
2. The released networks read no embedding if there is a single task; here they do.
"""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_count
from ..route import Route
from .encoder import TaskEncoder
from .network import Network, Routing
from .residual import ResidualBlock, orthogonal_linear

__all__ = ["ResidualMLP"]


class ResidualMLP(Network):
    r"""An MLP of residual blocks with layer normalization (the network of BRC).

    .. math:: x_0 = \operatorname{ReLU}(\operatorname{LN}(W\,[s, e_{\mathcal T}] + b)), \qquad
              x_{l+1} = x_l + \operatorname{LN}(V_l \operatorname{ReLU}(\operatorname{LN}(U_l\, x_l))), \qquad y = H x_L

    Only the embedding :math:`e_{\mathcal T}`, of norm 1, is specific to a task. Networks can share it. In BRC both
    critics learn one embedding, and the actor reads it without its gradient (:meth:`become_actor`).

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        width: The width of all layers; 4096 in the critics of BRC, 256 in its actor.
        blocks: The number of residual blocks; 2 in the critics of BRC, 1 in its actor.
        embedding_features: The width of the embedding of the task.
        embedding: The table of another network to share, with shape ``[num_tasks, embedding_features]``; a new one if
            None.
        learn_embedding: Whether the gradient reaches the table.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> critic = ResidualMLP(43, 10, 101, width=512)
        >>> actor = ResidualMLP(39, 10, 8, blocks=1, learn_embedding=False, **critic.shared)
        >>> actor.encoder.embedding is critic.encoder.embedding
        True
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        width: int = 256,
        blocks: int = 2,
        embedding_features: int = 32,
        embedding: nn.Parameter | None = None,
        learn_embedding: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_count("width", width, at_least=1)
        check_count("blocks", blocks, at_least=0)
        self.width, self.embedding_features = width, embedding_features
        self.encoder = TaskEncoder(
            state_features,
            num_tasks,
            width,
            embedding_features=embedding_features,
            embedding=embedding,
            learn_embedding=learn_embedding,
            **factory,
        )
        self.blocks = nn.Sequential(*(ResidualBlock(width, **factory) for _ in range(blocks)))
        self.head = orthogonal_linear(width, out_features, **factory)

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        counts = {"blocks": len(self.blocks), "learn_embedding": self.encoder.learn_embedding}
        return super().constructor_arguments(**counts, **others)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        return self.head(self.blocks(self.encoder(state, task))), None

    @property
    def shared(self) -> dict[str, nn.Parameter]:
        return {"embedding": self.encoder.embedding}

    def become_actor(self) -> None:
        self.encoder.learn_embedding = False
