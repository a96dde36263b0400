"""Model-level routing (mixture of experts; D2R, Fig. 2b): whole networks side by side."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_count, check_counts, check_flag, check_modules
from ..execution.reference import refuse_output
from ..gates import Gate, Soft, TopK
from ..routers import MLPRouter
from ..topology import Topology
from .graph import RoutedGraph, check_input_kept
from .perceptron import GatedPerceptron, perceptron
from .proportion import proportioned

__all__ = ["ModelRouting"]


class ModelRouting(RoutedGraph):
    r"""Mixes the outputs of several networks.

    .. math:: y = \sum_j p_j \, M^j(x) + \sum_i E^i(x)

    The second sum runs over the shared networks :math:`E^i`, if there are any, for every sample. If a gate leaves a
    sample without a network (a full `capacity`, :class:`~dynroute.ExpertChoice`), the first sum is zero: add the layer
    to its input, as a transformer block does, or share a network.

    Args:
        models: At least one network; all give outputs of one shape.
        gate: Turns logits into a route.
        router: Turns a context into the logits of ``Topology.parallel(len(models))``; a
            :class:`~dynroute.LinearRouter` if None.
        protect: How training stops the gradient to unsuitable networks: "sg" or "none". Networks have no shortcut here,
            so "rsg" and "input" are the same as "sg".
        backend: How the graph is executed.
        context_features: The width of the context for the default router; default: the width of the input.
        shared: Networks that run for every sample, whose outputs are added with a weight of one (DeepSeekMoE).

    Example:
        >>> net = ModelRouting([nn.Linear(5, 2) for _ in range(4)], TopK(2), LinearRouter(5, Topology.parallel(4)))
        >>> net(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
        >>> experts = [nn.Linear(5, 2) for _ in range(4)]
        >>> ModelRouting(experts, TopK(2), shared=[nn.Linear(5, 2)]).router
        LinearRouter(
          (layers): ModuleList(
            (0): Linear(in_features=5, out_features=4, bias=True)
          )
        )
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        gate: Gate,
        router: nn.Module | None = None,
        *,
        protect: str = "none",
        backend: str = "auto",
        context_features: int | None = None,
        shared: Iterable[nn.Module] = (),
    ) -> None:
        models = check_modules("models", models)
        if not models:
            raise ValueError("`models` must hold at least one network, got none.")
        shared = check_modules("shared", shared)
        for i, module in enumerate(shared):
            check_input_kept(f"shared[{i}]", module)
        super().__init__(
            [*models, nn.Identity()],
            Topology.parallel(len(models)),
            gate,
            router,
            protect=protect,
            backend=backend,
            context_features=context_features,
        )
        self.shared = nn.ModuleList(shared)

    def _name_of(self, node: int, topology: Topology) -> str:
        return f"models[{node}]"

    def _finish(self, x: Tensor, output: Tensor) -> Tensor:
        for i, module in enumerate(self.shared):
            common = module(x)
            if not isinstance(common, Tensor):
                refuse_output(f"`shared[{i}]`", common)
            if common.shape != output.shape:
                raise ValueError(
                    f"`shared[{i}]` must give outputs of the shape of the models {tuple(output.shape)}, "
                    f"got {tuple(common.shape)}; make their widths equal."
                )
            output = output + common
        return output

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments that construct an equal mixture; override it in a class with another constructor."""
        arguments = super().constructor_arguments()
        models = arguments.pop("modules")[:-1]
        kept = {name: arguments[name] for name in ("gate", "router", "protect", "backend")}
        return {"models": models, **kept, "shared": list(self.shared)}

    @classmethod
    def ffn(
        cls,
        features: int,
        hidden: int,
        num_experts: int,
        gate: Gate | None = None,
        *,
        shared: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        gated: bool = False,
        bias: bool = True,
        context_features: int | None = None,
        protect: str = "none",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ModelRouting":
        """Builds the feed-forward part of a transformer block as a mixture of experts.

        It maps each token of ``[..., features]`` on its own, with a linear router.

        Args:
            features: The width of the input and of the output.
            hidden: The width of the hidden layer of each expert.
            num_experts: The number of experts that are routed.
            gate: Turns logits into a route; ``TopK(2)`` if None.
            shared: The number of further experts that run for every token.
            activation: Makes the activation of the hidden layer; with dropout behind it:
                ``lambda: nn.Sequential(nn.SiLU(), nn.Dropout(0.1))``.
            gated: Whether experts are a :class:`~dynroute.GatedPerceptron` (SwiGLU with the default activation) in
                place of an MLP.
            bias: Whether the linear layers of the experts have a bias.
            context_features: The width of the context; default: the width of the input.
            protect: As for the class.
            backend: As for the class.
            device: The device of the parameters.
            dtype: The type of the parameters.

        Example:
            >>> block = ModelRouting.ffn(64, 128, num_experts=8, gate=TopK(2), shared=1, gated=True)
            >>> tokens = torch.randn(2, 10, 64)
            >>> (tokens + block(tokens)).shape
            torch.Size([2, 10, 64])
        """
        check_counts(features=features, hidden=hidden, num_experts=num_experts)
        check_count("shared", shared, at_least=0)
        check_flag("gated", gated)
        check_flag("bias", bias)

        def expert() -> nn.Module:
            if gated:
                return GatedPerceptron(features, hidden, activation=activation, bias=bias, device=device, dtype=dtype)
            sizes = (features, hidden)
            return perceptron(sizes, activation, out_features=features, bias=bias, device=device, dtype=dtype)

        return cls(
            [expert() for _ in range(num_experts)],
            TopK(2) if gate is None else gate,
            protect=protect,
            backend=backend,
            context_features=features if context_features is None else context_features,
            shared=[expert() for _ in range(shared)],
        )

    @classmethod
    def mlp(
        cls,
        in_features: int,
        width: int,
        num_models: int,
        out_features: int,
        context_features: int | None = None,
        gate: Gate | None = None,
        *,
        depth: int = 2,
        router_sizes: Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        protect: str = "none",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ModelRouting":
        """Builds a mixture of MLPs.

        Args:
            in_features: The width of the input.
            width: The width of the hidden layers.
            num_models: The number of networks.
            out_features: The width of the output.
            context_features: The width of the context; default: the width of the input.
            gate: Turns logits into a route; ``Soft()`` if None.
            depth: The number of hidden layers of each network.
            router_sizes: The hidden widths of the :class:`~dynroute.MLPRouter`, empty for a linear router; chosen by
                :func:`~dynroute.levels.proportion.proportioned` if None.
            activation: Makes the activation of a hidden layer.
            protect: As for the class.
            backend: As for the class.
            device: The device of the parameters.
            dtype: The type of the parameters.

        Example:
            >>> net = ModelRouting.mlp(39, 400, 4, 4, context_features=10, gate=TopK(2))
            >>> net(torch.zeros(7, 39), torch.zeros(7, 10)).shape
            torch.Size([7, 4])
        """
        context_features = in_features if context_features is None else context_features
        check_counts(in_features=in_features, width=width, num_models=num_models, out_features=out_features)
        check_count("depth", depth, at_least=0)
        models = [
            perceptron(
                (in_features, *[width] * depth), activation, out_features=out_features, device=device, dtype=dtype
            )
            for _ in range(num_models)
        ]
        make = partial(MLPRouter, context_features, Topology.parallel(num_models))
        router = proportioned(make, models, router_sizes, device=device, dtype=dtype)
        return cls(models, Soft() if gate is None else gate, router, protect=protect, backend=backend)
