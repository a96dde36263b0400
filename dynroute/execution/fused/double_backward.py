"""Gradients that can be differentiated again, for autograd functions with hand-written gradients."""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...checks import full_precision
from ..plan import Pass, Plan
from ..reference import run_reference
from .linear import Perceptron

__all__ = ["Equations", "in_full_precision", "wants_more"]

Gradients = tuple[Tensor | None, ...]


def in_full_precision(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Suspends autocast in a hand-written backward pass; its tensors have their types already."""

    @wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Gradients:
        with full_precision(gradients[0]):
            return backward(ctx, *gradients)

    return run


def wants_more(gradient: Tensor) -> bool:
    """Whether a hand-written gradient is not enough, because of a second derivative or batched gradients."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    functorch = torch._C._functorch
    batched = functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)
    return torch.is_grad_enabled() or batched


class Equations(NamedTuple):
    """A graph for the reference backend, for gradients that can be differentiated again."""

    plan: Plan
    """The graph."""

    nodes: Sequence[Perceptron]
    """The layers of all nodes but the last."""

    protect: str
    """The way to stop the gradient of unsuitable sources."""

    def gradients(
        self,
        wanted: Sequence[bool],
        gradient: Tensor,
        x: Tensor,
        weights: Tensor,
        suitable: Tensor | None,
        parameters: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, ...]:
        """Computes the gradients of the inputs of a fused function.

        Args:
            wanted: Whether each input needs a gradient; the first one is not a tensor.
            gradient: The gradient of the mix of the last node.
            x: The input.
            weights: The weights of the route.
            suitable: The sources that keep their gradient.
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
            # Each place needs a separate view, since tensors may be repeated, have hooks or depend on each other, and
            # the gradient of each place is of this function only.
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
            grads = iter(torch.autograd.grad(mixed, needed, gradient, create_graph=again, materialize_grads=True))
        return tuple(
            next(grads) if want and place is not None else None for place, want in zip(places, wanted, strict=True)
        )
