"""The base class of routers, which compute a logit for each edge in float32 or wider."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import check_number, check_tensor, shown
from ..checks import full_precision, is_own
from ..resetting import reset_parts
from ..topology import Topology
from .noise import RouterNoise, draw_normal, draw_uniform

__all__ = ["EdgeParameter", "Router"]


class EdgeParameter(NamedTuple):
    """A parameter with a slice for each edge, in which the logit of that edge is linear."""

    owner: nn.Module
    """The module that holds the parameter."""

    name: str
    """Its name in that module."""

    dim: int
    """The dimension of the edges."""

    shifts: bool
    """Whether a number added to a slice is added to the logit of its edge, as for a bias."""


class Router(nn.Module, ABC):
    """Scores every edge of a topology for a context.

    To write a router, override :meth:`score`. It runs in float32 or wider, whatever the type of the parameters and also
    under autocast, because a choice must not depend on the rounding of 16 bits.

    Noise changes only the scores that choose, and only if the layer samples, by default in training. Weights come from
    the clean logits, so a replayed path gives the same output and evaluation is deterministic. A gate that reads every
    source, such as :class:`Soft`, has no choice to change: jitter and noise have no effect there, and dropout leaves
    sources out.

    Args:
        topology: The graph whose edges are scored.
        jitter: Multiplies the context by numbers from [1 - jitter, 1 + jitter] (Switch Transformer).
        noise: The standard deviation of normal noise added to the logits (noisy top-k of Shazeer et al., 2017, with a
            fixed deviation as in V-MoE).
        dropout: The probability that a source is left out of the choice of a sample. One source of a node, drawn at
            random, stays where all would be left out.

    Example:
        >>> class Even(Router):
        ...     def score(self, context):
        ...         return context.new_zeros(*context.shape[:-1], self.topology.num_edges)
        >>> Even(Topology.dag(3))(torch.randn(5))
        tensor([[0., -inf],
                [0., 0.]])
    """

    takes_ids = True
    """Whether an integer context holds ids of tasks, which have no dimension of features."""

    def __init__(self, topology: Topology, *, jitter: float = 0.0, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(topology, Topology):
            raise TypeError(
                f"`topology` must be a Topology, got {type(topology).__name__}; for instance Topology.dag(8)."
            )
        check_number("jitter", jitter, at_least=0.0)
        check_number("noise", noise, at_least=0.0)
        check_number("dropout", dropout, at_least=0.0, at_most=1.0)
        self.topology = topology
        self.jitter = jitter
        self.noise = noise
        self.dropout = dropout

    def forward(self, context: Tensor) -> Tensor:
        """Returns the logits, with shape ``[*, T, S]`` and -inf in slots that do not exist.

        Args:
            context: The input of the router, with shape ``[*, context_features]``.
        """
        check_tensor("context", context)
        with full_precision(context):
            scores = self.score(context)
        if is_own(type(self).score):
            self._check_scores(scores, context)
        return self.topology.from_edges(scores, fill=-torch.inf)

    def _check_scores(self, scores: Tensor, context: Tensor) -> None:
        edges = self._edges_of(context)
        rule = f"`{type(self).__name__}.score` must return floating-point logits of shape {edges}, one for each edge"
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            hint = "; convert them with `.float()`." if isinstance(scores, Tensor) else "."
            raise TypeError(f"{rule}, got {shown(scores)}{hint}")
        batch = scores.shape[:-1]  # a router may pool dimensions of the context behind the first
        pooled = batch == context.shape[: len(batch)] and (len(batch) > 0 or len(edges) == 1)
        if scores.shape[-1:] != edges[-1:] or not pooled:
            same = f"; `.expand({', '.join(map(str, edges[:-1]))}, -1)` repeats one route for all samples."
            hint = same if scores.shape == edges[-1:] else "."
            raise ValueError(f"{rule}, got {tuple(scores.shape)}{hint}")

    @property
    def adds_noise(self) -> bool:
        """Whether the router has jitter, noise or dropout."""
        return any((self.jitter, self.noise, self.dropout))

    def draw_noise(self, context: Tensor, generator: torch.Generator | None = None) -> RouterNoise:
        """Draws the random numbers of one pass.

        Args:
            context: The context of the pass.
            generator: The random generator; default: the device's.
        """
        check_tensor("context", context)
        edges = self._edges_of(context)
        if self.jitter and not context.is_floating_point():
            raise TypeError(f"`context` must be a floating tensor for a router with jitter, got {context.dtype}.")
        return RouterNoise(
            2.0 * draw_uniform(tuple(context.shape), generator, context.device) - 1.0 if self.jitter else None,
            draw_normal(edges, generator, context.device) if self.noise else None,
            draw_uniform(edges, generator, context.device) if self.dropout else None,
        )

    def perturb(self, context: Tensor, logits: Tensor, drawn: RouterNoise) -> Tensor:
        """Returns the scores that choose in place of the logits.

        Args:
            context: The context of the pass.
            logits: Its logits, with shape ``[*, T, S]``.
            drawn: The noise of :meth:`draw_noise` for this context.

        Example:
            >>> router = LinearRouter(5, Topology.parallel(4), noise=1.0)
            >>> context = torch.zeros(7, 5)
            >>> router.perturb(context, router(context), router.draw_noise(context)).shape
            torch.Size([7, 1, 4])
        """
        self.check_noise(context, drawn)
        if (self.noise or self.dropout) and logits.shape[:-2] != self._edges_of(context)[:-1]:
            raise ValueError(
                "`noise` and `dropout` must be 0 for a router that pools dimensions of its context, got logits of "
                f"batch shape {tuple(logits.shape[:-2])} for a context of shape {tuple(context.shape)}; use `jitter`, "
                "or set `takes_ids = True` in the class of a router that reads ids of tasks."
            )
        with torch.no_grad():
            scores = logits.detach()
            if drawn.jitter is not None:
                wide = context.to(torch.promote_types(context.dtype, torch.float32))
                scores = self(wide * (1.0 + self.jitter * drawn.jitter))
            if drawn.normal is not None:
                scores = scores + self.noise * self.topology.from_edges(drawn.normal, fill=0.0)
            if drawn.uniform is not None:
                numbers = self.topology.from_edges(drawn.uniform, fill=-1.0).masked_fill(scores == -torch.inf, -1.0)
                stays = numbers == numbers.amax(dim=-1, keepdim=True)
                scores = scores.masked_fill((numbers < self.dropout) & ~stays, -torch.inf)
        return scores

    def _edges_of(self, context: Tensor) -> tuple[int, ...]:
        """The shape of one number for each edge."""
        ids = self.takes_ids and not (context.is_floating_point() or context.dtype == torch.bool)
        return (*(context.shape if ids else context.shape[:-1]), self.topology.num_edges)

    def check_noise(self, context: Tensor, drawn: RouterNoise) -> None:
        """Raises an error unless the noise is one of :meth:`draw_noise` for a context of this shape."""
        if not isinstance(drawn, RouterNoise):
            raise TypeError(f"`router_noise` must be a RouterNoise, got {shown(drawn)}; `router.draw_noise` draws it.")
        for option, numbers in zip(("jitter", "noise", "dropout"), drawn, strict=True):
            if (numbers is not None) != bool(getattr(self, option)):
                raise ValueError(
                    f"`router_noise` must be drawn for this router, with {option}={getattr(self, option)}; "
                    "`router.draw_noise` draws it."
                )
        edges = self._edges_of(context)
        for numbers, shape in zip(drawn, (context.shape, edges, edges), strict=True):
            if numbers is not None and numbers.shape != shape:
                raise ValueError(
                    f"`router_noise` must be drawn for a context of shape {tuple(context.shape)}, got numbers of shape "
                    f"{tuple(numbers.shape)}, not {tuple(shape)}."
                )

    def reset_parameters(self) -> None:
        """Resets the parameters of all modules inside; override it in a router with direct parameters."""
        reset_parts(self)

    @abstractmethod
    def score(self, context: Tensor) -> Tensor:
        """Returns one logit for each edge, with shape ``[*, num_edges]``, ordered by destination, then by slot."""

    def edge_parameters(self) -> list[EdgeParameter]:
        """The parameters that grow and shrink with the edges; all others fit any topology.

        Override it in a router that is to be grown, pruned or extracted with fewer rows. A subclass that overrides
        ``score`` or ``forward`` without it counts as a router without such parameters, since its logits may not be
        linear in them.

        Example:
            >>> [(name, dim) for _, name, dim, _ in LinearRouter(5, Topology.dag(3)).edge_parameters()]
            [('weight', 0), ('bias', 0)]
        """
        return []
