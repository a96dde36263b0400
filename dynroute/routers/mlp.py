"""An MLP that scores all edges at once (Eq. 4)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..arguments import check_count, check_dtype, check_sizes
from ..checks import hooks_everywhere, is_hooked
from ..topology import Topology
from .base import EdgeParameter, Router

__all__ = ["LinearRouter", "MLPRouter", "chain", "linear", "real"]


class MLPRouter(Router):
    r"""An MLP with ReLU between its layers and one output for each edge (Eq. 4).

    .. math:: z = G(F(s) \cdot H(\mathcal T))

    The context is :math:`F(s) \cdot H(\mathcal T)` in the paper; here the caller passes it.

    Args:
        context_features: The width of the context.
        topology: The graph whose edges are scored.
        hidden_sizes: The widths of the hidden layers; D2R uses 256 and 256.
        jitter: As for :class:`Router`.
        noise: As for :class:`Router`.
        dropout: As for :class:`Router`.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> MLPRouter(10, Topology.dag(17))(torch.zeros(3, 10)).shape
        torch.Size([3, 16, 16])
    """

    takes_ids = False

    def __init__(
        self,
        context_features: int,
        topology: Topology,
        hidden_sizes: Sequence[int] = (256, 256),
        *,
        jitter: float = 0.0,
        noise: float = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(topology, jitter=jitter, noise=noise, dropout=dropout)
        check_count("context_features", context_features, at_least=1)
        check_sizes("hidden_sizes", hidden_sizes, at_least=0)
        check_dtype(dtype)
        self.context_features = context_features
        self.hidden_sizes = tuple(hidden_sizes)
        sizes = (context_features, *hidden_sizes, topology.num_edges)
        self.layers = nn.ModuleList(
            nn.Linear(width, following, device=device, dtype=dtype) for width, following in pairwise(sizes)
        )

    def score(self, context: Tensor) -> Tensor:
        return chain(real(context), self.layers)

    def edge_parameters(self) -> list[EdgeParameter]:
        last = self.layers[-1]
        biases = [] if getattr(last, "bias", None) is None else [EdgeParameter(last, "bias", 0, True)]
        return [EdgeParameter(last, "weight", 0, False), *biases]


class LinearRouter(MLPRouter):
    """A single linear layer from the context to the logits.

    Args:
        context_features: The width of the context.
        topology: The graph whose edges are scored.
        jitter: As for :class:`Router`.
        noise: As for :class:`Router`.
        dropout: As for :class:`Router`.
        device: The device of the parameters.
        dtype: The type of the parameters.

    Example:
        >>> LinearRouter(10, Topology.parallel(4))(torch.zeros(3, 10)).shape
        torch.Size([3, 1, 4])
    """

    def __init__(
        self,
        context_features: int,
        topology: Topology,
        *,
        jitter: float = 0.0,
        noise: float = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"jitter": jitter, "noise": noise, "dropout": dropout}
        super().__init__(context_features, topology, (), **options, device=device, dtype=dtype)


def real(context: Tensor) -> Tensor:
    """Returns a context of real numbers; booleans become 0 and 1."""
    if context.is_complex():
        raise TypeError(f"`context` must hold real numbers, got {context.dtype}.")
    return context.float() if context.dtype == torch.bool else context


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """Applies a linear layer in float32 or wider; calls a layer that is hooked or has a forward of its own."""
    width = getattr(layer, "in_features", None)
    if isinstance(width, int) and x.shape[-1:] != (width,):
        ids = not (x.is_floating_point() or x.dim() > 1)
        raise ValueError(
            f"`context` must have shape (*, {width}) for this router, got {tuple(x.shape)}; "
            + (
                "pass ids of tasks as a one-hot, or to a TableRouter."
                if ids
                else "where no context was given, the router reads the input: pass one by `net(x, context)`."
            )
        )
    if (
        not isinstance(layer, nn.Linear)
        or type(layer).forward is not nn.Linear.forward
        or is_hooked(layer)
        or hooks_everywhere()
    ):
        return _called(layer, x)
    weight, bias = layer.weight, layer.bias
    if x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _called(layer: nn.Module, x: Tensor) -> Tensor:
    """Calls a layer; one whose parameters are plain and have 16 bits computes in float32."""
    parameters = {name: part for name, part in layer.named_parameters() if part.is_floating_point()}
    wide = {name: part.to(torch.promote_types(part.dtype, torch.float32)) for name, part in parameters.items()}
    if wide and all(type(part) is nn.Parameter for part in parameters.values()):
        output: Tensor = functional_call(layer, wide, (x.to(next(iter(wide.values())).dtype),))
    else:
        output = layer(x.to(next(iter(parameters.values())).dtype) if parameters else x)
    return output.to(torch.promote_types(output.dtype, torch.float32))


def chain(x: Tensor, layers: nn.ModuleList) -> Tensor:
    """Applies linear layers in float32 or wider, with ReLU between them."""
    for i, layer in enumerate(layers):
        x = linear(x.relu() if i > 0 else x, layer)
    return x
