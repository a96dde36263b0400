"""Gates: from the scores of a router to the sources that are read and the weights that mix them."""

import operator
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .arguments import check_count, check_flag, check_logits, check_mask, check_temperature, expand_allowed
from .checks import refuse_where
from .functional import best_k, mask_softmax, samplek_path
from .route import Route

__all__ = ["Gate", "Hard", "SampleK", "Soft", "TopK"]


class Gate(nn.Module, ABC):
    """Decides a route from logits; it has no parameters.

    A gate of your own overrides :meth:`choose`, and :meth:`weigh` if its weights are not those of Eq. 5.

    Example:
        >>> class Near(Gate):
        ...     def choose(self, logits, allowed, **_):
        ...         return logits >= logits.amax(dim=-1, keepdim=True) - 1
        >>> Near()(torch.tensor([[2.0, 1.5, -3.0]])).path
        tensor([[ True,  True, False]])
    """

    takes_noise = False
    """Whether :meth:`choose` adds Gumbel noise when it samples; a graph then draws it for the edges alone."""

    @property
    def max_sources(self) -> int | None:
        """The most sources that a node reads; None if any number may be."""
        return None

    def forward(
        self,
        logits: Tensor,
        *,
        allowed: Tensor | None = None,
        path: Tensor | Route | None = None,
        temperature: float | Tensor = 1.0,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Route:
        """Decides a route.

        Args:
            logits: The router's scores, with shape ``[*, T, S]``; 16-bit logits are widened to float32.
            allowed: The slots that exist, boolean with the shape of the last dimensions of `logits`.
            path: A recorded path, boolean with the shape of `logits`, or the route that holds it. It fixes the choice,
                and the weights are recomputed from the live logits (Eq. 8).
            temperature: Divides the logits when a path is sampled, and only then; a number, or one value per sample.
            sample: Whether a gate that can sample does so; in training mode if None.
            generator: The source of randomness of a gate that samples.
            noise: Gumbel noise drawn before, with the shape of `logits`, for a gate that samples.

        Returns:
            The route. Its logits hold -inf where no slot is.
        """
        check_logits(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        allowed = expand_allowed(allowed, logits)
        check_temperature(temperature, logits)  # a wrong one is an error also where nothing is sampled
        logits = torch.where(allowed, logits, -torch.inf)
        _check_values(logits)
        if sample is not None:
            check_flag("sample", sample)

        if path is None:
            path = self.choose(
                logits,
                allowed,
                temperature=temperature,
                sample=self.training if sample is None else sample,
                generator=generator,
                noise=noise,
            )
        else:
            path = path.path if isinstance(path, Route) else path
            _check_replay(path, logits, allowed)
        return Route(logits, path, self.weigh(logits, path))

    @abstractmethod
    def choose(
        self,
        logits: Tensor,
        allowed: Tensor,
        *,
        temperature: float | Tensor,
        sample: bool,
        generator: torch.Generator | None,
        noise: Tensor | None,
    ) -> Tensor:
        """Returns the boolean path, a subset of `allowed` with a source in every row."""

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        """Returns the weights of a path (Eq. 5)."""
        return mask_softmax(logits, path)


class Soft(Gate):
    """Reads every source, weighted by the softmax of the logits.

    Example:
        >>> Soft()(torch.tensor([[0.0, 0.0]])).weights
        tensor([[0.5000, 0.5000]])
    """

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns all allowed sources."""
        return allowed.clone()


class Hard(Gate):
    """Reads the best source, weighted by its probability among all of them, not rescaled.

    The probability stays in the output, so that the router learns although a single source is read.

    Example:
        >>> Hard()(torch.tensor([[0.0, 0.0]])).weights
        tensor([[0.5000, 0.0000]])
    """

    @property
    def max_sources(self) -> int | None:
        """One, unless another class chooses otherwise."""
        return 1 if type(self).choose is Hard.choose else None

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the best source of every row."""
        return best_k(logits, 1, allowed)

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        """Returns the probabilities of the full softmax on the path."""
        # The gate has set the logits of missing slots to -inf, which is how the full softmax leaves them out.
        return mask_softmax(logits, logits > -torch.inf).masked_fill(~path, 0.0)


class TopK(Gate):
    """Reads the k best sources (Eq. 6), weighted by the softmax over them (Eq. 5).

    Args:
        k: How many sources to read, at least 2; a node with fewer reads all it has.

    Example:
        >>> TopK(2)(torch.tensor([[1.0, 1.0, 0.0]])).path
        tensor([[ True,  True, False]])
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = _check_mixing_k(type(self).__name__, k)

    @property
    def max_sources(self) -> int | None:
        """The number `k`, unless another class chooses otherwise."""
        return self.k if type(self).choose is TopK.choose else None

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the k best sources of every row."""
        return best_k(logits, self.k, allowed)

    def extra_repr(self) -> str:
        return str(self.k)


class SampleK(Gate):
    """Draws k sources without replacement when sampling (Eq. 7, 13), and is :class:`TopK` otherwise.

    Args:
        k: How many sources to read, at least 2; a node with fewer reads all it has.

    Example:
        >>> gate = SampleK(2).eval()
        >>> gate(torch.tensor([[1.0, 1.0, 0.0]])).path
        tensor([[ True,  True, False]])
        >>> gate(torch.zeros(1, 3), sample=True, noise=torch.tensor([[0.0, 1.0, 2.0]])).path
        tensor([[False,  True,  True]])
    """

    takes_noise = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = _check_mixing_k(type(self).__name__, k)

    @property
    def max_sources(self) -> int | None:
        """The number `k`, unless another class chooses otherwise."""
        return self.k if type(self).choose is SampleK.choose else None

    def choose(
        self,
        logits: Tensor,
        allowed: Tensor,
        *,
        temperature: float | Tensor,
        sample: bool,
        generator: torch.Generator | None,
        noise: Tensor | None,
    ) -> Tensor:
        """Returns k sources of every row, drawn or best."""
        if not sample:
            return best_k(logits, self.k, allowed)
        return samplek_path(logits, self.k, temperature=temperature, allowed=allowed, generator=generator, noise=noise)

    def extra_repr(self) -> str:
        return str(self.k)


def _check_mixing_k(gate: str, k: int) -> int:
    if isinstance(k, int) and not isinstance(k, bool) and k == 1:
        raise ValueError(
            f"`k` must be at least 2 for {gate}, got 1: a single weight renormalises to a constant 1 and gives the "
            "router no gradient; use Hard() for one source."
        )
    check_count("k", k, at_least=2)
    return operator.index(k)


def _check_values(logits: Tensor) -> None:
    def explain(_: tuple[int, ...]) -> str:
        index = tuple(int(i) for i in (logits.isnan() | (logits == torch.inf)).nonzero()[0])
        return (
            f"`logits` must be finite, got {logits[index].item()} at index {index}; "
            "did the router's input or its parameters diverge?"
        )

    if logits.numel():
        refuse_where(logits, lambda z: ~(z.amax() < torch.inf), explain)  # the largest is NaN if any is


def _check_replay(path: Tensor, logits: Tensor, allowed: Tensor) -> None:
    if not isinstance(path, Tensor):
        raise TypeError(f"`path` must be a boolean tensor or a Route, got {type(path).__name__}.")
    check_mask("path", path, logits)
    refuse_where(
        path,
        lambda path: path & ~allowed,
        lambda index: (
            f"`path` must only use edges of the topology, but row {index[:-1]} uses the missing slot {index[-1]}; "
            "was it recorded by another topology?"
        ),
    )
    refuse_where(
        path,
        lambda path: ~(path & (logits > -torch.inf)).any(dim=-1),
        lambda index: (
            f"`path` must choose a source of non-zero probability in every row, but row {index} has none; "
            "was an empty record replayed, or the path of another task?"
        ),
    )
