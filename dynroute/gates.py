"""Gates turn the scores of a router into the sources that are read and the weights that mix them."""

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from .arguments import (
    check_count,
    check_flag,
    check_floating,
    check_logits,
    check_mask,
    check_number,
    check_temperature,
    expand_allowed,
    shown,
)
from .checks import backward_pass, checks_values, is_own, refuse_where, under_transform
from .functional import best_k, chosen_by_sources, likeliest, limited, mask_softmax, samplek_path
from .route import Route, path_of
from .topology import Topology

__all__ = ["BalancedTopK", "ExpertChoice", "Gate", "Hard", "SampleK", "Soft", "TopK", "TopP"]


class Processes(Protocol):
    """The group of processes that a gate shares its load with, see :func:`dynroute.distributed.share_load`."""

    def sum(self, counts: Tensor) -> Tensor:
        """Sums counts over all processes."""

    def decide(self, choose: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """Applies a function to the samples of all processes, ``[samples, T, S]``; returns the rows of this process."""


class Gate(nn.Module, ABC):
    """Decides a route from logits; a gate has no parameters.

    To write a gate, override :meth:`choose`, and :meth:`weigh` if its weights differ from Eq. 5.

    Example:
        >>> class Near(Gate):
        ...     def choose(self, logits, allowed, **_):
        ...         return logits >= logits.amax(dim=-1, keepdim=True) - 1
        >>> Near()(torch.tensor([[2.0, 1.5, -3.0]])).path
        tensor([[ True,  True, False]])
    """

    takes_noise = False
    """Whether :meth:`choose` adds Gumbel noise when it samples; a graph then draws it for the edges alone."""

    _processes: Processes | None = None

    dropped: Tensor
    """The number of choices that the last pass dropped; only gates with a :attr:`~dynroute.Gate.capacity` have it."""

    @property
    def capacity(self) -> float | None:
        """The number of samples a source takes when the gate samples, as a multiple of an even load; None for no limit.

        Choices beyond it are dropped, the lowest weights first (:func:`~dynroute.functional.limit_path`), and
        counted in the tensor ``gate.dropped``. Nothing is dropped in evaluation or on replay. It can be set on any
        gate. Each layer needs a gate of its own: a gate that layers share holds the count of the layer that ran last.
        """
        capacity: float | None = vars(self).get("_capacity")
        return capacity

    @capacity.setter
    def capacity(self, capacity: float | None) -> None:
        if capacity is not None:
            check_number("capacity", capacity, above=0.0)
            if "dropped" not in self._buffers:
                with torch.inference_mode(False):  # training changes it
                    self.register_buffer("dropped", torch.zeros((), dtype=torch.long), persistent=False)
        self._capacity = capacity

    @property
    def max_sources(self) -> int | None:
        """The largest number of sources that a node reads; None for no limit."""
        return None

    @property
    def may_be_empty(self) -> bool:
        """Whether a path may have rows without a source, whose mix is zero."""
        return self.capacity is not None

    @property
    def couples_samples(self) -> bool:
        """Whether a path may depend on other samples too; a node that holds such a gate runs on all of them."""
        return self.capacity is not None

    @property
    def sums_to_one(self) -> bool:
        """Whether the weights of every row follow Eq. 5 and so sum to 1."""
        return type(self).weigh is Gate.weigh and not self.may_be_empty

    def bind(self, topology: Topology, device: torch.device | None = None) -> None:
        """Attaches the gate to a graph; a gate with state allocates it here.

        Args:
            topology: The graph.
            device: The device of the parameters of the graph.
        """
        if "dropped" in self._buffers and device is not None:
            self.dropped = self.dropped.to(device)

    def unbound(self) -> Self:
        """Returns a gate for another graph; a gate with state returns a copy without it."""
        return self

    def follow(self, weights: Tensor) -> None:
        """Receives the weights of a path that the gate chose; a gate with state may wait for their gradient.

        Args:
            weights: The weights, with shape ``[*, T, S]``.
        """

    def resize(self, change: Callable[[Tensor], Tensor]) -> None:
        """Adapts the state of the gate to other nodes of its graph.

        Args:
            change: Maps numbers for the slots of the old graph, with shape ``[T, S]``, to the new graph; a new
                edge gets the smallest number of its neighbours.
        """

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
        scores: Tensor | None = None,
    ) -> Route:
        """Decides a route.

        Args:
            logits: The router's scores, with shape ``[*, T, S]``; 16-bit logits are widened to float32.
            allowed: The slots that exist, boolean with the shape of the last dimensions of `logits`.
            path: A recorded path, boolean with the shape of `logits`, or the route that holds it. It fixes the choice,
                and the weights are recomputed from the live logits (Eq. 8).
            temperature: Divides the logits when a path is sampled, and only then; a number, or one value per sample.
            sample: Whether a gate that can sample does so; default: in training mode.
            generator: The random generator of a gate that samples.
            noise: Gumbel noise that was drawn before, with the shape of `logits`.
            scores: Scores that choose in place of the logits, with their shape, for instance with the noise of a
                router. The weights still come from the logits. A source of score -inf is chosen only if the row has no
                other; one with a logit of -inf never is.

        Returns:
            The route. Its logits are -inf in slots that do not exist.
        """
        check_logits(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        allowed = expand_allowed(allowed, logits)
        check_temperature(temperature, logits)  # also if nothing is sampled
        logits = torch.where(allowed, logits, -torch.inf)
        _check_values(logits, allowed, self.may_be_empty)
        if sample is not None:
            check_flag("sample", sample)
        sample = self.training if sample is None else sample

        if path is not None:
            path = path_of(path)
            _check_replay(path, logits, allowed, self.may_be_empty)
            self._count_dropped(None)
            return Route(logits, path, _with_nan(logits, self._weights(logits, path)))
        scores, candidates = (logits, allowed) if scores is None else _with_scores(scores, logits, allowed)
        path = self.choose(scores, candidates, temperature=temperature, sample=sample, generator=generator, noise=noise)
        if is_own(type(self).choose):
            _check_choice(f"{type(self).__name__}.choose", path, scores, candidates, self.may_be_empty)
        path = path & (logits != -torch.inf)  # gates choose closed sources in a row with few open ones
        path = self._limit(logits, path, allowed, sample)
        weights = _with_nan(logits, self._weights(logits, path))
        self.follow(weights)
        return Route(logits, path, weights)

    def _weights(self, logits: Tensor, path: Tensor) -> Tensor:
        """The weights of a path, checked if they come from a gate of one's own."""
        weights = self.weigh(logits, path)
        if is_own(type(self).weigh):
            _check_weights(f"{type(self).__name__}.weigh", weights, path)
        return weights

    def _limit(self, logits: Tensor, path: Tensor, allowed: Tensor, sample: bool) -> Tensor:
        """Drops the choices beyond the capacity, and counts them."""
        capacity = self.capacity
        if capacity is None or not sample:
            self._count_dropped(None)
            return path

        def limit(path: Tensor, weights: Tensor, allowed: Tensor) -> Tensor:
            return limited(path, weights, capacity, allowed)

        with torch.no_grad():
            kept = self._decide(limit, path, self._weights(logits, path), allowed)
        self._count_dropped(path.sum() - kept.sum())
        return kept

    def _decide(self, choose: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """Calls a function of all samples, also of other processes if the load is shared."""
        return choose(*values) if self._processes is None else self._processes.decide(choose, *values)

    def _count_dropped(self, count: Tensor | None) -> None:
        # Under a transform such as vmap each sample is a batch of one, and nothing is dropped.
        if "dropped" in self._buffers and (torch.compiler.is_compiling() or not under_transform()):
            with torch.no_grad():
                if count is None:
                    self.dropped.zero_()
                    return
                if self.dropped.device != count.device:  # a capacity may be set on a gate that has moved
                    with torch.inference_mode(False):  # training changes it
                        self.dropped = torch.zeros_like(count)
                self.dropped.copy_(count)

    def extra_repr(self) -> str:
        return "" if self.capacity is None else f"capacity={self.capacity}"

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
        """Returns the weights of a path (Eq. 5), finite and 0 off the path.

        A source with a weight of exactly 0 is not read, even if the path has it, and its weight gets no gradient. A
        weight that is to grow must therefore start slightly above 0.
        """
        return mask_softmax(logits, path)


class _Mixing(Gate):
    """Reads k sources, at least 2, whose weights sum to 1."""

    def __init__(self, k: int, *, capacity: float | None = None) -> None:
        super().__init__()
        self.k = k
        self.capacity = capacity

    @property
    def k(self) -> int:
        """The number of sources to read, at least 2."""
        k: int = vars(self)["k"]
        return k

    @k.setter
    def k(self, k: int) -> None:
        if isinstance(k, int) and not isinstance(k, bool) and k == 1:
            raise ValueError(
                f"`k` must be at least 2 for {type(self).__name__}, got 1: a single weight renormalises to a constant "
                "1 and gives the router no gradient; use Hard() for one source."
            )
        check_count("k", k, at_least=2)
        vars(self)["k"] = operator.index(k)

    @property
    def max_sources(self) -> int | None:
        """The number `k`; None for a subclass with its own :meth:`choose`."""
        return self.k if type(self).choose.__module__ == __name__ else None

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [str(self.k), super().extra_repr()]))


class Soft(Gate):
    """Reads every source, weighted by the softmax of the logits.

    Example:
        >>> Soft()(torch.tensor([[0.0, 0.0]])).weights
        tensor([[0.5000, 0.5000]])
    """

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns all allowed sources."""
        return allowed.clone()


class _Probabilities(Gate):
    """Weighs sources by their probability among all sources, not rescaled."""

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        """Returns the probabilities of the full softmax on the path."""
        # The logits of missing slots are -inf, so the full softmax leaves them out.
        return mask_softmax(logits, logits > -torch.inf).masked_fill(~path, 0.0)


class Hard(_Probabilities):
    """Reads the best source, weighted by its probability among all of them, not rescaled.

    The weight is the probability, so the router learns although a single source is read. With a capacity this is the
    gate of the Switch Transformer.

    Args:
        capacity: The limit of samples per source in training, see :attr:`dynroute.Gate.capacity`.

    Example:
        >>> Hard()(torch.tensor([[0.0, 0.0]])).weights
        tensor([[0.5000, 0.0000]])
    """

    def __init__(self, *, capacity: float | None = None) -> None:
        super().__init__()
        self.capacity = capacity

    @property
    def max_sources(self) -> int | None:
        """One; None for a subclass with its own :meth:`choose`."""
        return 1 if type(self).choose is Hard.choose else None

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the best source of every row."""
        return best_k(logits, 1, allowed)


class TopK(_Mixing):
    """Reads the k best sources (Eq. 6), weighted by the softmax over them (Eq. 5).

    Args:
        k: The number of sources to read, at least 2; a node with fewer reads them all.
        capacity: The limit of samples per source in training, see :attr:`dynroute.Gate.capacity`.

    Example:
        >>> TopK(2)(torch.tensor([[1.0, 1.0, 0.0]])).path
        tensor([[ True,  True, False]])
        >>> gate = TopK(2, capacity=1.0)
        >>> gate(torch.tensor([3.0, 2.0, 1.0]).expand(6, 1, 3)).path.sum(dim=0), gate.dropped  # room for 4 samples each
        (tensor([[4, 4, 0]]), tensor(4))
    """

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the k best sources of every row."""
        return best_k(logits, self.k, allowed)


class SampleK(_Mixing):
    """Draws k sources without replacement when sampling (Eq. 7, 13), and is :class:`TopK` otherwise.

    Args:
        k: The number of sources to read, at least 2; a node with fewer reads them all.
        capacity: The limit of samples per source in training, see :attr:`dynroute.Gate.capacity`.

    Example:
        >>> gate = SampleK(2).eval()
        >>> gate(torch.tensor([[1.0, 1.0, 0.0]])).path
        tensor([[ True,  True, False]])
        >>> gate(torch.zeros(1, 3), sample=True, noise=torch.tensor([[0.0, 1.0, 2.0]])).path
        tensor([[False,  True,  True]])
    """

    takes_noise = True

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


class TopP(_Probabilities):
    """Reads the fewest sources whose probabilities sum to p, weighted by these probabilities, not rescaled.

    Samples for which the router is uncertain read more sources (Huang et al., 2024). The weights are the probabilities,
    so the router learns even if a single source is read.

    Args:
        p: The probability to reach, above 0 and at most 1.
        capacity: The limit of samples per source in training, see :attr:`dynroute.Gate.capacity`.

    Example:
        >>> TopP(0.6)(torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]).log()).path
        tensor([[ True,  True, False],
                [ True, False, False]])
    """

    def __init__(self, p: float, *, capacity: float | None = None) -> None:
        super().__init__()
        check_number("p", p, above=0.0, at_most=1.0)
        self.p = p
        self.capacity = capacity

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the likeliest sources of every row."""
        return likeliest(logits, self.p, allowed)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [str(self.p), super().extra_repr()]))


class BalancedTopK(_Mixing):
    r"""Reads the k best sources after adding a bias that balances the load (DeepSeek-V3).

    .. math:: d = \operatorname{TopK}(\operatorname{softmax}(z) + b, k), \qquad
              b_j \leftarrow b_j + \gamma \operatorname{sign}(\bar n - n_j)

    :math:`n_j` is the number of samples that chose source :math:`j`, and :math:`\bar n` the mean over the sources of
    its node. The bias affects only the choice. The weights are the softmax of the logits over the path (Eq. 5). No
    auxiliary loss is needed that would disturb the gradient (Wang et al., 2024).

    A pass counts if the gate is in training mode, gradients are recorded and no path is replayed. Loads accumulate, and
    the first pass after a backward pass moves the bias, once for all passes before. Replay, evaluation and
    ``torch.no_grad()`` leave it unchanged. A backward pass counts if it reaches the weights of the route, unlike
    ``loss.backward(inputs=...)`` with the parameters of modules alone. If the weights need no gradient, as with a
    frozen router, the bias moves at every pass. Activation checkpointing repeats a pass along the same path, if no
    other pass moved the bias in between; with ``use_reentrant=True`` no pass counts, and neither do functions under
    ``torch.func``. Compiled code moves the bias at every pass. In a layer that is a module of another one, samples are
    those that the module is called with: the ones routed to it, or all under the backend "reference", which "auto"
    takes for small batches; ``backend="sparse"`` of the outer layer counts the routed ones at any size. Bias and load
    are in the state dict. The bias stays in float32 if the layer is converted to 16 bits.

    On several processes, :func:`dynroute.distributed.share_load` makes the load of all of them count. Without it, each
    process of FSDP moves a bias of its own, and in DDP only the load of rank 0 counts.

    Args:
        k: The number of sources to read, at least 2; a node with fewer reads them all.
        rate: The step :math:`\gamma` of the bias, in units of probability.
        capacity: The limit of samples per source in training, see :attr:`dynroute.Gate.capacity`.

    Example:
        >>> net = ModelRouting([nn.Linear(5, 2) for _ in range(4)], BalancedTopK(2, rate=0.1))
        >>> for _ in range(2):
        ...     net(torch.ones(8, 5)).sum().backward()
        >>> net.gate.load, net.gate.bias.abs()
        (tensor([[...]]), tensor([[0.1000, 0.1000, 0.1000, 0.1000]]))
    """

    bias: Tensor | None
    load: Tensor | None
    learned: Tensor | None
    exists: Tensor | None
    """The slots that exist; no buffer, so that a gate on the meta device keeps its values."""

    def __init__(self, k: int, rate: float = 1e-3, *, capacity: float | None = None) -> None:
        super().__init__(k, capacity=capacity)
        check_number("rate", rate, at_least=0.0)
        self.rate = rate
        self.register_buffer("bias", None)
        self.register_buffer("load", None)
        self.register_buffer("learned", None)  # 1 if a backward pass ran since the last pass that counted
        self.exists = None

    def bind(self, topology: Topology, device: torch.device | None = None) -> None:
        """Makes the bias for a graph; a gate belongs to one graph only."""
        if self.bias is not None:
            raise ValueError(
                "`gate` must belong to one graph, but this BalancedTopK has a bias for another one; make a gate for "
                "each layer."
            )
        super().bind(topology, device)
        self._make_bias(topology.allowed, device)

    def unbound(self) -> Self:
        """Returns a copy without a bias."""
        gate = copy.copy(self)
        gate._buffers = dict(self._buffers)
        gate.bias = gate.load = gate.learned = gate.exists = None
        return gate

    def resize(self, change: Callable[[Tensor], Tensor]) -> None:
        """Adapts the bias; the load starts at zero again."""
        if self.bias is not None:
            bias = change(self.bias)
            exists = change(torch.ones(self.bias.shape, device="cpu")) > 0
            self._make_bias(exists, bias.device)
            self.bias = bias

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the k best sources of every row, with the bias added."""
        if self.bias is None:
            self._make_bias(allowed.reshape(-1, *allowed.shape[-2:]).any(dim=0) if allowed.dim() > 2 else allowed)
        assert self.bias is not None
        if self.bias.shape != logits.shape[-2:]:
            raise ValueError(
                f"`logits` must have shape (*, {', '.join(map(str, self.bias.shape))}) like the bias of this gate, "
                f"got {tuple(logits.shape)}; make a gate for each graph."
            )
        counts = self._counts
        with torch.no_grad():
            if counts:
                self._move_bias()
            probability = mask_softmax(logits, allowed)
            open_ = logits > -torch.inf
            path = best_k(torch.where(open_, probability + self.bias, -torch.inf), self.k, allowed)
            if counts:
                assert self.load is not None
                load = (path & open_).reshape(-1, *path.shape[-2:]).sum(dim=0)
                self.load.add_(load if self._processes is None else self._processes.sum(load))
        return path

    def follow(self, weights: Tensor) -> None:
        """Registers a hook on a pass that counts, which tells when its backward pass has run."""
        if not self._counts:
            return
        if weights.requires_grad and not torch.compiler.is_compiling():
            weights.register_hook(self._learn)  # type: ignore[no-untyped-call]
        else:
            self._learn()

    def reset_parameters(self) -> None:
        """Sets the bias and the load to zero."""
        for buffer in (self.bias, self.load, self.learned):
            if buffer is not None:
                buffer.zero_()

    @property
    def _counts(self) -> bool:
        return self.training and torch.is_grad_enabled() and _is_first_run()

    def _make_bias(self, exists: Tensor, device: torch.device | None = None) -> None:
        device = exists.device if device is None else device
        with torch.inference_mode(False):  # training changes them
            self.exists = exists.clone()
            self.bias = torch.zeros(exists.shape, dtype=torch.float32, device=device)
            self.load = torch.zeros(exists.shape, dtype=torch.long, device=device)
            self.learned = torch.zeros((), dtype=torch.long, device=device)  # `AveragedModel` cannot average bools

    def _learn(self, _: Tensor | None = None) -> None:
        assert self.learned is not None
        with torch.no_grad():
            self.learned.fill_(1)

    def _move_bias(self) -> None:
        """Moves the bias by the load if a backward pass ran; reads no value."""
        assert self.bias is not None
        assert self.load is not None
        assert self.learned is not None
        assert self.exists is not None
        exists = self.exists
        if exists.device != self.bias.device:
            exists = exists.to(self.bias.device)
            self.exists = self.exists if exists.is_meta else exists
        mean = self.load.sum(dim=-1, keepdim=True) / exists.sum(dim=-1, keepdim=True).clamp(min=1)
        learned = self.learned.bool()
        self.bias.add_(torch.where(exists & learned, (mean - self.load).sign(), 0.0), alpha=self.rate)
        self.load.mul_(~learned)
        self.learned.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        bias = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if bias is not None and self.bias is not None and self.bias.dtype.itemsize < 4:  # 16 bits lose small steps
            self.bias = bias.to(self.bias.device)
        return self

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [str(self.k), f"rate={self.rate}", Gate.extra_repr(self)]))


class ExpertChoice(_Probabilities):
    r"""Lets every source choose its samples, so that the load is even by construction (Zhou et al., 2022).

    Of :math:`N` samples each of :math:`n` sources takes the :math:`\lceil c N / n \rceil` with the largest probability,
    which is also their weight. Any number of sources may choose a sample. If none does, the mix is zero and
    ``gate.dropped`` counts the sample.

    The path of a sample depends on the rest of its batch, in training and in evaluation. Do not use this gate where a
    sample must not depend on others, such as later tokens of a text. A replayed path makes samples independent.

    Args:
        capacity: The mean number of sources of a sample, :math:`c`.

    Example:
        >>> ExpertChoice(1.0)(torch.randn(8, 1, 4)).path.sum(dim=0)
        tensor([[2, 2, 2, 2]])
    """

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity

    @property
    def capacity(self) -> float:
        """The mean number of sources of a sample."""
        capacity: float = vars(self)["_capacity"]
        return capacity

    @capacity.setter
    def capacity(self, capacity: float) -> None:
        check_number("capacity", capacity, above=0.0)  # None is no limit of the other gates
        Gate.capacity.fset(self, capacity)  # type: ignore[attr-defined]  # mypy does not know that it is a property

    @property
    def may_be_empty(self) -> bool:
        """True, since a sample may be left without a source."""
        return True

    @property
    def couples_samples(self) -> bool:
        """True, since samples compete for a source."""
        return True

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        """Returns the path on which every source has chosen its samples."""

        def choose(logits: Tensor, allowed: Tensor) -> Tensor:
            return chosen_by_sources(logits, self.capacity, allowed)

        return self._decide(choose, logits, allowed)

    def _limit(self, logits: Tensor, path: Tensor, allowed: Tensor, sample: bool) -> Tensor:
        self._count_dropped((~path.any(dim=-1)).sum())
        return path  # within the capacity by construction

    def extra_repr(self) -> str:
        return str(self.capacity)


def _is_first_run() -> bool:
    """Whether the pass is not a recomputation in a backward pass, nor under a transform."""
    if torch.compiler.is_compiling():
        return True
    return backward_pass() == -1 and not under_transform()


def _with_scores(scores: Tensor, logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The scores that choose, and the slots they may choose from; rows with all scores -inf fall back to the logits."""
    check_floating("scores", scores)
    if scores.shape != logits.shape:
        raise ValueError(
            f"`scores` must have the shape of the logits {tuple(logits.shape)}, got {tuple(scores.shape)}."
        )
    refuse_where(
        torch.where(allowed, scores, 0.0),
        lambda scores: scores.isnan() | (scores == torch.inf),
        lambda index: f"`scores` must be finite or -inf, got {scores[index].item()} at index {index}.",
    )
    scores = torch.where(allowed, scores.to(logits.dtype), -torch.inf)
    candidates = allowed & (scores > -torch.inf) & (logits != -torch.inf)
    any_left = candidates.any(dim=-1, keepdim=True)
    return torch.where(any_left, scores, logits), torch.where(any_left, candidates, allowed)


def _with_nan(logits: Tensor, weights: Tensor) -> Tensor:
    """Makes the weights of a row NaN if a logit is, where values are not checked, so that divergence shows."""
    if checks_values(logits) and not under_transform():
        return weights
    diverged = logits.isnan().any(dim=-1, keepdim=True) & (logits != -torch.inf)
    return weights.masked_fill(diverged, torch.nan)


def _check_values(logits: Tensor, allowed: Tensor, may_be_empty: bool) -> None:
    if not logits.numel() or not checks_values(logits):
        return
    values = logits.detach()
    try:
        lowest, highest = values.amax(dim=-1).aminmax()  # NaN if any value is
        if highest.item() < torch.inf and (may_be_empty or lowest.item() > -torch.inf):
            return
    except RuntimeError:  # vmap and fake tensors hide their values
        return
    refuse_where(
        logits,
        lambda z: z.isnan() | (z == torch.inf),
        lambda index: (
            f"`logits` must be finite, got {logits[index].item()} at index {index}; "
            "did the router's input or its parameters diverge?"
        ),
    )
    if not may_be_empty:
        refuse_where(
            logits,
            lambda z: (z == -torch.inf).all(dim=-1) & allowed.any(dim=-1),
            lambda index: (
                f"`logits` must be above -inf for a source of every row, got -inf for all sources of row {index}; "
                "a router closes single sources by -inf. A gate whose `may_be_empty` is True takes such rows."
            ),
        )


def _check_choice(name: str, path: Tensor, logits: Tensor, allowed: Tensor, may_be_empty: bool) -> None:
    rule = f"`{name}` must return a boolean path of shape {tuple(logits.shape)}, like the logits"
    if not isinstance(path, Tensor) or path.dtype != torch.bool:
        raise TypeError(f"{rule}, got {shown(path)}; compare scores with a number to make one.")
    if path.shape != logits.shape:
        raise ValueError(f"{rule}, got {tuple(path.shape)}; `.expand(logits.shape)` repeats one for all samples.")
    refuse_where(
        path,
        lambda path: path & ~allowed,
        lambda index: (
            f"`{name}` must only choose slots in `allowed`, but row {index[:-1]} uses slot {index[-1]}; "
            "add `& allowed`."
        ),
    )
    if not may_be_empty:
        refuse_where(
            path,
            lambda path: ~(path & (logits > -torch.inf)).any(dim=-1) & allowed.any(dim=-1),
            lambda index: (
                f"`{name}` must choose a source of non-zero probability in every row, row {index} has none; "
                "add `| topk_path(logits, 1, allowed=allowed)`, or return True from `may_be_empty`."
            ),
        )


def _check_weights(name: str, weights: Tensor, path: Tensor) -> None:
    rule = f"`{name}` must return floating-point weights of shape {tuple(path.shape)}, like the path"
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise TypeError(f"{rule}, got {shown(weights)}.")
    if weights.shape != path.shape:
        raise ValueError(f"{rule}, got {tuple(weights.shape)}.")
    refuse_where(
        weights,
        lambda weights: ~weights.isfinite(),
        lambda index: f"`{name}` must return finite weights, got {weights[index].item()} at index {index}.",
    )
    refuse_where(
        weights,
        lambda weights: (weights != 0) & ~path,
        lambda index: (
            f"`{name}` must give 0 to sources that are not on the path, got {weights[index].item():g} at index "
            f"{index}; add `.masked_fill(~path, 0.0)`."
        ),
    )


def _check_replay(path: Tensor, logits: Tensor, allowed: Tensor, may_be_empty: bool) -> None:
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
        lambda path: ~(path & (logits > -torch.inf)).any(dim=-1) & (path.any(dim=-1) | (not may_be_empty)),
        lambda index: (
            f"`path` must choose a source of non-zero probability in every row, but row {index} has none; "
            "was an empty record replayed, or the path of another task?"
        ),
    )
