"""ScaleMoE: residual experts behind one encoder, whose features or outputs a gate merges.

We know of no released code. Where the paper is open, this is our reading:

1. All experts share the encoder of BRC, including the embedding of the task. An expert is a stack of residual blocks,
   at output level with its own head.
2. The gate reads the encoder's features through a linear layer, or an MLP of `router_sizes`. Its gradient reaches
   the encoder.
3. At output level an actor merges means and standard deviations, where the paper names variances: the exponentials of
   outputs clamped to [-20, 2]. Other bounds of a learner apply after the merge. Critics merge their outputs, values or
   the logits of bins.
4. Actor and critics choose their experts independently.
"""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..arguments import Factory, check_choice, check_counts, check_flag, check_sizes
from ..gates import Gate
from ..levels import ModelRouting
from ..route import Route
from ..routers import MLPRouter
from ..topology import Topology
from .encoder import TaskEncoder
from .network import Network, Routing, gate_named
from .residual import ResidualBlock, make_orthogonal, orthogonal_linear

__all__ = ["ScaleMoE"]

LEVELS = ("feature", "output")
LOWEST = -20.0  # the logarithm of the smallest deviation


class ScaleMoE(Network):
    r"""A mixture of residual experts with the encoder of BRC (ScaleMoE).

    .. math:: y = H \sum_j p_j\, B^j(x) \quad\text{(feature)}, \qquad y = \sum_j p_j\, H^j B^j(x) \quad\text{(output)},
              \qquad p = \operatorname{gate}(G(x))

    :math:`x` is the output of :class:`TaskEncoder`, and :math:`B^j` are residual blocks. With one expert and the gate
    "soft" it is a :class:`ResidualMLP`.

    Args:
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        level: "feature" if the experts' features are merged and one head reads them, "output" if each expert has a head
            and their outputs are merged.
        num_experts: The number of experts.
        width: The width of the encoder and of the experts.
        blocks: The number of residual blocks of an expert.
        router_sizes: The hidden widths of the router G; empty for a linear router.
        gate: Turns logits into a route, a :class:`~dynroute.Gate` or a name of :func:`~dynroute.networks.gate_named`;
            "hard" reads one expert.
        protect: "sg" stops the gradient to unsuitable experts in training, "none" does not.
        embedding_features: The width of the embedding of the task.
        embedding: The table of another network to share, with shape ``[num_tasks, embedding_features]``; a new one if
            None.
        learn_embedding: Whether the gradient reaches the table.
        merge_deviations: Whether, at output level, the second half of the outputs are logarithms of standard deviations
            that are merged as deviations; :meth:`become_actor` sets it.
        backend: How the graph is executed.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> ScaleMoE(39, 10, 8, num_experts=16, width=64).describe()
        'ScaleMoE (feature level): 143,832 parameters, 17 nodes, 16 routed edges, TopK(2)'
    """

    def __init__(
        self,
        state_features: int,
        num_tasks: int,
        out_features: int,
        *,
        level: str = "feature",
        num_experts: int = 8,
        width: int = 256,
        blocks: int = 1,
        router_sizes: Sequence[int] = (),
        gate: Gate | str = "top-2",
        protect: str = "none",
        embedding_features: int = 32,
        embedding: nn.Parameter | None = None,
        learn_embedding: bool = True,
        merge_deviations: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_features, num_tasks, out_features)
        factory: Factory = {"device": device, "dtype": dtype}
        check_choice("level", level, LEVELS)
        check_counts(num_experts=num_experts, width=width, blocks=blocks)
        check_sizes("router_sizes", router_sizes, at_least=0)
        check_flag("merge_deviations", merge_deviations)
        if merge_deviations and level != "output":
            raise ValueError(
                f'`merge_deviations` must be False with level="{level}", whose experts put out no deviations, got True.'
            )
        self.level = level
        self.width, self.blocks, self.router_sizes = width, blocks, router_sizes
        self.embedding_features = embedding_features
        self.variant = f"{level} level"
        self.encoder = TaskEncoder(
            state_features,
            num_tasks,
            width,
            embedding_features=embedding_features,
            embedding=embedding,
            learn_embedding=learn_embedding,
            **factory,
        )

        self.deviations = _Deviations()  # the experts share it, since it only holds a flag

        def head() -> nn.Linear:
            return orthogonal_linear(width, out_features, **factory)

        def expert() -> nn.Sequential:
            stack = [ResidualBlock(width, **factory) for _ in range(blocks)]
            return nn.Sequential(*stack, *([head(), self.deviations] if level == "output" else []))

        self.experts = ModelRouting(
            [expert() for _ in range(num_experts)],
            gate_named(gate),
            MLPRouter(width, Topology.parallel(num_experts), router_sizes, **factory),
            protect=protect,
            backend=backend,
        )
        self.head = head() if level == "feature" else None
        if merge_deviations:
            self._merge_deviations()

    @property
    def num_experts(self) -> int:
        """The number of experts."""
        return len(self.experts.nodes) - 1

    def constructor_arguments(self, **others: Any) -> dict[str, Any]:
        flags = {"learn_embedding": self.encoder.learn_embedding, "merge_deviations": self.merges_deviations}
        return super().constructor_arguments(**flags, **others)

    def reset_module(self, module: nn.Module) -> None:
        super().reset_module(module)
        make_orthogonal(module)

    def compute(self, state: Tensor, task: Tensor, **routing: Unpack[Routing]) -> tuple[Tensor, Route | None]:
        merged, route = self.experts(self.encoder(state, task), return_route=True, **routing)
        if self.head is not None:
            return self.head(merged), route
        if self.merges_deviations:
            mean, deviation = merged.chunk(2, dim=-1)
            # A gate may leave a sample without an expert, whose deviation would be 0.
            least = max(math.exp(LOWEST), torch.finfo(deviation.dtype).tiny)
            merged = torch.cat([mean, deviation.clamp(min=least).log()], dim=-1)
        return merged, route

    @property
    def merges_deviations(self) -> bool:
        """Whether the second half of the outputs are logarithms of standard deviations, merged as deviations."""
        return self.deviations.active

    @property
    def shared(self) -> dict[str, nn.Parameter]:
        return {"embedding": self.encoder.embedding}

    def become_actor(self) -> None:
        if self.level == "output":
            self._merge_deviations()
        self.encoder.learn_embedding = False

    def _merge_deviations(self) -> None:
        if self.out_features % 2:
            raise ValueError(
                "`out_features` must be even in an actor, a mean and a log-standard deviation for each number of "
                f"an action, got {self.out_features}."
            )
        for part in self.modules():  # experts added by growth have copies
            if isinstance(part, _Deviations):
                part.active = True


class _Deviations(nn.Module):
    """Exponentiates the second half of an expert's outputs, log-standard deviations, if it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.active = False

    def forward(self, outputs: Tensor) -> Tensor:
        if not self.active:
            return outputs
        mean, log_std = outputs.chunk(2, dim=-1)
        return torch.cat([mean, log_std.clamp(LOWEST, 2.0).exp()], dim=-1)
