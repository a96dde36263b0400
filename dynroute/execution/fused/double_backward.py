"""Gradients that can be differentiated again, for the functions that write their own."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..plan import Pass, Plan
from ..reference import run_reference
from .linear import Perceptron

__all__ = ["Equations", "wants_more"]


def wants_more(gradient: Tensor) -> bool:
    """Whether a gradient written by hand does not do: a second derivative is wanted, or many gradients at once."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    functorch = torch._C._functorch
    batched = functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)
    return torch.is_grad_enabled() or batched


class Equations(NamedTuple):
    """A graph as the reference computes it, for gradients that can be differentiated again."""

    plan: Plan
    """The graph."""

    nodes: Sequence[Perceptron]
    """The nodes but the last, as layers."""

    protect: str
    """How the gradient of an unsuitable source is stopped."""

    def gradients(
        self,
        wanted: Sequence[bool],
        gradient: Tensor,
        x: Tensor,
        weights: Tensor,
        suitable: Tensor | None,
        parameters: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, ...]:
        """The gradients for the inputs of a fused function.

        Args:
            wanted: Which inputs need a gradient, the first of them being no tensor.
            gradient: The gradient of what the last node mixes.
            x: The input.
            weights: The weights of the route.
            suitable: Which sources keep their gradient.
            parameters: Weight and bias of each layer of each node.
        """
        again = torch.is_grad_enabled()

        def module(layers: Perceptron, places: Sequence[Tensor | None]) -> Callable[[Tensor], Tensor]:
            def forward(mixed: Tensor) -> Tensor:
                for k, layer in enumerate(layers):
                    entered = layer.before.forward(mixed.clone())
                    mixed = layer.behind.forward(nn.functional.linear(entered, *places[2 * k : 2 * k + 2]))  # type: ignore[arg-type]
                return mixed

            return forward

        with torch.enable_grad():
            # Views of their own: one tensor may come in several places, carry hooks, or be made from another one of
            # them, and the gradient of each place is that of this function alone.
            places = [
                None if tensor is None else tensor.view_as(tensor) for tensor in (None, x, weights, None, *parameters)
            ]
            x_place, weights_place, rest = places[1], places[2], places[4:]
            assert x_place is not None
            assert weights_place is not None
            firsts = accumulate((2 * len(layers) for layers in self.nodes), initial=0)
            modules = [module(layers, rest[first:]) for layers, first in zip(self.nodes, firsts, strict=False)]
            mixed = run_reference(
                Pass(self.plan, [*modules, nn.Identity()], x_place, weights_place, suitable, self.protect)
            )
            needed = [place for place, want in zip(places, wanted, strict=True) if want and place is not None]
            found = torch.autograd.grad(mixed, needed, gradient, create_graph=again, materialize_grads=True)

        grads = iter(found)
        return tuple(
            next(grads) if want and place is not None else None for place, want in zip(places, wanted, strict=True)
        )
