"""CARE: a mixture of encoders of the state, with attention that depends on metadata of the task.

The paper leaves sizes and some of the wiring open, and its code differs from it:

1. Attention: the dot product of each encoding with the context in the paper (`attention="dot"`), an MLP of the
   context in the code (`attention="gate"`, our default, for which the table of D2R gives sizes).
2. Metadata: the paper embeds descriptions of the tasks with a frozen language model. Here the embeddings are an
   argument, replaced by a learned embedding if missing. The code applies ReLU and a projection to them first.
3. Sizes: the paper has six encoders, and ten for fifty tasks. Our defaults keep every size that D2R states for CARE,
   which has six. Their numbers of parameters, 1,226,757 and 1,260,037,
   round to those that it reports, 1.23 M and 1.26 M for an actor and a critic of 10 and 50 tasks. To reach them, the
   embedding is 16 wide and the trunk also reads the one-hot, which neither paper nor code does (`task_in_trunk=False`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_choice, check_counts, check_dtype, check_flag, check_sizes, check_tensor
from ..checks import full_precision
from ..gates import Gate
from ..levels import ModelRouting
from ..levels.perceptron import perceptron
from ..route import Route
from ..routers import Router
from ..routers.mlp import chain
from ..saving import Filled
from ..topology import Topology
from .network import Network, Routing, gate_named

__all__ = ["CARE"]


class CARE(Network):
    r"""A mixture of encoders whose weights depend on metadata of the task (contextual attention, CARE).

    .. math:: y = \operatorname{trunk}\Bigl(\sum_j a_j\, E^j(s), \; c, \; \mathcal T\Bigr), \qquad
              c = C(\text{metadata}_{\mathcal T})

    The attention :math:`a` reads the context detached, so only the trunk trains it.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        metadata: A vector for each task, for instance an embedding of its description, with shape ``[num_tasks, m]``.
            It is not trained. A learned embedding replaces it if None.
        embedding_features: The width of the learned embedding.
        num_encoders: The number of encoders.
        encoder_sizes: The widths of the layers of an encoder.
        context_sizes: The widths of the MLP C.
        attention: "gate" for an MLP of the context, as in the released code, "dot" for the paper's dot products.
        gate_sizes: The hidden widths of that MLP.
        task_in_trunk: Whether the trunk reads the one-hot too.
        hidden_sizes: The widths of the hidden layers of the trunk.
        gate: Turns attention into a route, a :class:`~dynroute.Gate` or a name of
            :func:`~dynroute.networks.gate_named`. All encoders run, whatever it chooses.
        protect: "sg" stops the gradient to unsuitable encoders in training, "none" does not.
        backend: How the graph is executed.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> CARE(39, 10, 8, metadata=torch.randn(10, 768), attention="dot")(torch.zeros(7, 39), torch.arange(7)).shape
        torch.Size([7, 8])
    """

    metadata: Tensor | None

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        metadata: Tensor | None = None,
        embedding_features: int = 16,
        num_encoders: int = 6,
        encoder_sizes: Sequence[int] = (128, 128),
        context_sizes: Sequence[int] = (128, 128),
        attention: str = "gate",
        gate_sizes: Sequence[int] = (128, 128),
        task_in_trunk: bool = True,
        hidden_sizes: Sequence[int] = (400,) * 3,
        gate: Gate | str = "soft",
        protect: str = "none",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_counts(num_encoders=num_encoders, embedding_features=embedding_features)
        check_sizes("encoder_sizes", encoder_sizes)
        check_sizes("context_sizes", context_sizes)
        check_sizes("gate_sizes", gate_sizes, at_least=0)
        check_sizes("hidden_sizes", hidden_sizes, at_least=0)
        check_choice("attention", attention, ("gate", "dot"))
        check_flag("task_in_trunk", task_in_trunk)
        check_dtype(dtype)
        if attention == "dot" and encoder_sizes[-1] != context_sizes[-1]:
            raise ValueError(
                f'`encoder_sizes` and `context_sizes` must end alike for attention="dot", '
                f"got {encoder_sizes[-1]} and {context_sizes[-1]}."
            )
        if metadata is not None:
            check_tensor("metadata", metadata)
            if metadata.is_complex():
                raise TypeError(f"`metadata` must hold real numbers, got {metadata.dtype}.")
            if metadata.dim() != 2 or metadata.shape[0] != num_tasks or not metadata.shape[1]:
                raise ValueError(
                    f"`metadata` must have shape ({num_tasks}, m), a row for each task, got {tuple(metadata.shape)}."
                )

        def network(sizes: Sequence[int], out: int) -> nn.Sequential:
            return perceptron(sizes, nn.ReLU, out_features=out, **factory)

        self.embedding_features = embedding_features
        self.encoder_sizes, self.context_sizes = encoder_sizes, context_sizes
        self.gate_sizes, self.hidden_sizes = gate_sizes, hidden_sizes
        self.attention = attention
        self.variant = f"{attention} attention"
        self.task_in_trunk = task_in_trunk
        self.embedding: nn.Linear | None = None
        if metadata is None:
            self.register_buffer("metadata", None)
            self.embedding = nn.Linear(num_tasks, embedding_features, bias=False, **factory)
        else:
            like = torch.empty(0, **factory)  # the type of the parameters
            self.register_buffer("metadata", metadata.detach().clone().to(like))
        metadata_features = embedding_features if metadata is None else metadata.shape[1]

        context = context_sizes[-1]
        self.encoders = nn.ModuleList(
            network((state_features, *encoder_sizes[:-1]), encoder_sizes[-1]) for _ in range(num_encoders)
        )
        self.context = network((metadata_features, *context_sizes[:-1]), context)
        self.scores: nn.ModuleList | None = None
        if attention == "gate":
            sizes = (context, *gate_sizes, num_encoders)
            self.scores = nn.ModuleList(nn.Linear(a, b, **factory) for a, b in pairwise(sizes))
        self.mixture = ModelRouting(
            [_Encoding(j, encoder_sizes[-1]) for j in range(num_encoders)],
            gate_named(gate),
            _ScoresAsContext(Topology.parallel(num_encoders)),
            protect=protect,
            backend=backend,
        )
        trunk_features = encoder_sizes[-1] + context + (num_tasks if task_in_trunk else 0)
        self.trunk = network((trunk_features, *hidden_sizes), out_features)

    @property
    def num_encoders(self) -> int:
        """The number of encoders."""
        return len(self.encoders)

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        metadata = None if self.metadata is None else Filled(tuple(self.metadata.shape))
        return super().constructor_arguments(metadata=metadata, **others)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        if self.embedding is not None:
            metadata = self.embedding(task)
        else:
            assert self.metadata is not None
            metadata = task @ self.metadata
        context = self.context(metadata)

        encodings = torch.cat([encoder(state) for encoder in self.encoders], dim=-1)
        with full_precision(state):  # attention is routing, which is computed in float32 or wider
            wide = torch.promote_types(context.dtype, torch.float32)
            query = context.detach().to(wide)
            if self.scores is not None:
                scores = chain(query, self.scores)
            else:
                keys = encodings.to(wide).reshape(*state.shape[:-1], len(self.encoders), -1)
                scores = (keys * query.unsqueeze(-2)).sum(dim=-1)
        mixed, route = self.mixture(encodings, scores, return_route=True, **routing)

        parts = [mixed, context, task] if self.task_in_trunk else [mixed, context]
        return self.trunk(torch.cat(parts, dim=-1)), route


class _Encoding(nn.Module):
    """Selects one of several concatenated encodings."""

    def __init__(self, place: int, width: int) -> None:
        super().__init__()
        self.place = place
        self.width = width

    def forward(self, encodings: Tensor) -> Tensor:
        return encodings.narrow(-1, self.place * self.width, self.width)


class _ScoresAsContext(Router):
    """Returns the context, which holds the scores."""

    def score(self, context: Tensor) -> Tensor:
        return context
