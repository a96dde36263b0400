r"""The equations of routing as pure functions, named as in the papers.

Equation numbers are D2R's. The last dimension of logits, paths and weights holds the sources of one destination;
a whole graph is ``[*, destination, source]``. Three rules hold everywhere:

1. Masks are applied before the softmax, so excluded sources affect neither its value nor its gradient.
2. Sources are chosen by index and not by comparing scores, so ties never select too many.
3. Weights come from the clean logits, whatever noise or temperature chose the path.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    check_choice,
    check_count,
    check_floating,
    check_generator,
    check_mask,
    check_noise,
    check_number,
    check_temperature,
    check_tensor,
    expand_allowed,
    shown,
)
from .checks import hides_values, in_forward_mode, refuse_where

__all__ = [
    "expert_choice_path",
    "gumbel_noise",
    "limit_path",
    "mask_softmax",
    "route_temperature",
    "rsg",
    "samplek_path",
    "suitable",
    "task_weights",
    "topk_path",
    "topp_path",
]

# The smallest step of a uniform float32 is 2**-24; a smaller draw was rounded to zero, whose logarithm is infinite.
_SMALLEST_DRAW = 2.0**-25
_FEW = 4  # the largest k for which sources are chosen one by one
_SHORT, _MANY = 16, 4096  # rows shorter than a vector register; the least size of a tensor for which tricks pay


def mask_softmax(logits: Tensor, path: Tensor) -> Tensor:
    r"""Normalises routing logits over the sources of a path (Eq. 5, and Eq. 8 with a replayed path).

    .. math:: p_j = \frac{e^{z_j} d_j}{\sum_k e^{z_k} d_k}

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        path: The boolean path :math:`d`, with the same shape.

    Returns:
        The weights :math:`p`, zero off the path; a row without a source is all zeros. Gradients are always finite.

    Example:
        >>> mask_softmax(torch.tensor([1.0, 1.0, 9.0]), torch.tensor([True, True, False]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    check_mask("path", path, logits)
    if not hides_values(logits) and logits.numel():
        scores = torch.where(path, logits, -math.inf)
        if bool((scores.detach().amax(dim=-1) > -math.inf).all()):
            return _softmax(scores)

    # A row without a source becomes a row of zeros, whose softmax and gradient are finite.
    chosen = path & (logits != -math.inf)  # a NaN stays one, so that divergence shows
    floor = torch.where(chosen.any(dim=-1, keepdim=True), -math.inf, 0.0).to(logits.dtype)
    scores = torch.where(chosen, logits, floor)

    return _softmax(scores).masked_fill(~chosen, 0.0)


def topk_path(logits: Tensor, k: int, *, allowed: Tensor | None = None) -> Tensor:
    r"""Chooses the k best sources of every row (Eq. 6).

    .. math:: d_j = 1 \text{ if } z_j \text{ is among the } k \text{ largest of } z \text{, else } 0

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        k: The number of sources to choose; a row with fewer allowed sources takes all of them.
        allowed: The sources that may be chosen, a boolean mask with the shape of the last dimensions of `logits`.

    Returns:
        The boolean path :math:`d` with :math:`\min(k, \text{allowed})` sources per row; ties go to the lowest index.

    Example:
        >>> topk_path(torch.tensor([2.0, 5.0, 2.0]), 2)
        tensor([ True,  True, False])
    """
    check_count("k", k, at_least=1)
    return best_k(logits, k, _choosable(allowed, logits))


def best_k(logits: Tensor, k: int, allowed: Tensor) -> Tensor:
    """Eq. 6 for checked arguments."""
    if not hides_values(logits):
        path = _clear_best(torch.where(allowed, logits.detach(), -math.inf), k, allowed)
        if path is not None:
            return path

    # Clamped scores keep an allowed source of probability 0 (logit -inf) ahead of the forbidden ones.
    scores = logits.detach().clamp(min=torch.finfo(logits.dtype).min)
    return _best(scores.masked_fill(~allowed, -math.inf), k) & allowed


def samplek_path(
    logits: Tensor,
    k: int,
    *,
    temperature: float | Tensor = 1.0,
    allowed: Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draws k sources of every row without replacement (Eq. 7, and Eq. 13 with a temperature).

    .. math:: d = \operatorname{TopK}(z / \tau + g, k), \qquad g_j \sim \operatorname{Gumbel}(0, 1)

    The k largest of the perturbed logits are distributed as k draws without replacement from
    :math:`\operatorname{softmax}(z / \tau)`, even where that softmax underflows.

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        k: The number of sources to draw; a row with fewer allowed sources takes all of them.
        temperature: :math:`\tau > 0`, a number or a tensor with the batch shape of `logits`, one value per sample.
        allowed: The sources that may be drawn, a boolean mask with the shape of the last dimensions of `logits`.
        generator: The random generator; default: the device's.
        noise: Gumbel noise that was drawn before (see :func:`gumbel_noise`), with the shape of `logits`. With it,
            compiled, vectorised and checkpointed functions replay a draw.

    Returns:
        The boolean path :math:`d` with :math:`\min(k, \text{allowed})` sources per row.

    Example:
        >>> samplek_path(torch.tensor([0.0, 500.0, -900.0]), 2, noise=torch.zeros(3))
        tensor([ True,  True, False])
    """
    check_count("k", k, at_least=1)
    allowed = expand_allowed(allowed, logits)
    check_temperature(temperature, logits)
    if isinstance(temperature, Tensor):
        temperature = temperature.detach().reshape(temperature.shape + (1,) * (logits.dim() - temperature.dim()))
    if noise is None:
        noise = gumbel_noise(logits.shape, generator=generator, device=logits.device)
    elif generator is not None:
        raise ValueError("`generator` and `noise` exclude each other: the noise was already drawn; drop one of them.")
    else:
        check_noise(noise, logits)
    if not logits.shape[-1]:
        return allowed.clone()

    # In float64 and relative to the best source: beside a score of a million, float32 would round the noise away.
    scores = torch.where(allowed, logits.detach(), -math.inf)
    wide = scores.to(torch.float32 if logits.device.type == "mps" else torch.float64, copy=True)
    lowest = torch.finfo(wide.dtype).min
    best = wide.amax(dim=-1, keepdim=True).clamp(min=lowest)
    refuse_where(best, torch.isnan, _nan_in_row)
    if hides_values(logits):
        wide = (wide - best) / temperature + noise
    else:
        wide.sub_(best).div_(temperature).add_(noise)
        path = _clear_best(wide, k, allowed)
        if path is not None:
            return path

    # A logit of -inf comes last at any temperature, but before forbidden sources.
    wide = wide.clamp(min=lowest / 2).masked_fill(scores == -math.inf, lowest)
    return _best(wide.masked_fill(~allowed, -math.inf), k) & allowed


def topp_path(logits: Tensor, p: float, *, allowed: Tensor | None = None) -> Tensor:
    r"""Chooses the fewest sources of every row whose probabilities sum to p (Huang et al., 2024).

    .. math:: d_j = 1 \text{ if } \sum_{i : q_i > q_j} q_i < p \text{, else } 0, \qquad q = \operatorname{softmax}(z)

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        p: The probability that the chosen sources reach, above 0 and at most 1; 1 takes all allowed sources.
        allowed: The sources that may be chosen, a boolean mask with the shape of the last dimensions of `logits`.

    Returns:
        The boolean path :math:`d` with at least one source per row; ties go to the lowest index.

    Example:
        >>> topp_path(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6)
        tensor([ True,  True, False])
    """
    check_number("p", p, above=0.0, at_most=1.0)
    return likeliest(logits, p, _choosable(allowed, logits))


def likeliest(logits: Tensor, p: float, allowed: Tensor) -> Tensor:
    """The path of :func:`topp_path` for checked arguments."""
    if p == 1 or not logits.shape[-1]:
        return allowed.clone()
    scores, order = _masked(logits, allowed).sort(dim=-1, descending=True, stable=True)
    probability = mask_softmax(scores, scores > -math.inf)
    before = torch.nn.functional.pad(probability.cumsum(dim=-1)[..., :-1], (1, 0))
    return torch.zeros_like(allowed).scatter(-1, order, before < p) & allowed


def expert_choice_path(logits: Tensor, capacity: float, *, allowed: Tensor | None = None) -> Tensor:
    r"""Lets every source choose the samples that read it (expert choice, Zhou et al., 2022).

    .. math:: d_{bj} = 1 \text{ if } \operatorname{softmax}(z_b)_j \text{ is among the } \lceil c N / n \rceil
              \text{ largest of all } b \text{, else } 0

    :math:`N` is the number of samples over all batch dimensions. The path of a sample depends on the others.

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, T, n)`.
        capacity: The mean number of sources of a sample, :math:`c`.
        allowed: The sources that exist, a boolean mask with the shape of the last dimensions of `logits`.

    Returns:
        The boolean path :math:`d`; a row may have any number of sources, including none. Ties go to the first sample.

    Example:
        >>> expert_choice_path(torch.tensor([[[2.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]]), 1.0).squeeze()
        tensor([[ True, False],
                [ True, False],
                [False,  True],
                [False,  True]])
    """
    check_number("capacity", capacity, above=0.0)
    return chosen_by_sources(logits, capacity, _choosable(allowed, logits))


def chosen_by_sources(logits: Tensor, capacity: float, allowed: Tensor) -> Tensor:
    """The path of :func:`expert_choice_path` for checked arguments."""
    scores = _masked(logits, allowed)
    scores = (scores - scores.logsumexp(dim=-1, keepdim=True)).nan_to_num(-math.inf, neginf=-math.inf)
    exists = scores > -math.inf
    rows = _samples(exists)
    sources = _samples(allowed).any(dim=0).sum(dim=-1, keepdim=True)
    return exists & _first(scores, _share(rows.shape[0] * sources.new_ones(()), sources, capacity))


def limit_path(path: Tensor, weights: Tensor, capacity: float, *, allowed: Tensor | None = None) -> Tensor:
    r"""Drops the choices beyond the capacity of a source, the lowest weights first.

    .. math:: \text{a source takes at most } \lceil c \, D / n \rceil \text{ samples}

    :math:`D` is the number of choices of all samples for a destination, and :math:`n` the number of its sources. A
    `capacity` of 1 has room for exactly an even load. Samples are counted over all batch dimensions.

    Args:
        path: The boolean path, with shape :math:`(*, T, n)`.
        weights: The weights, with the same shape; the heaviest choices stay.
        capacity: The capacity factor :math:`c`.
        allowed: The sources that exist, a boolean mask with the shape of the last dimensions of `path`.

    Returns:
        The rest of the path, with the same shape; a row may lose all its sources. Ties go to the first sample.

    Example:
        >>> path, weights = torch.ones(4, 1, 1, dtype=torch.bool), torch.tensor([0.1, 0.4, 0.3, 0.2])
        >>> limit_path(path, weights[:, None, None], 0.5).flatten()
        tensor([False,  True,  True, False])
    """
    check_tensor("path", path)
    check_mask("path", path, weights)
    check_number("capacity", capacity, above=0.0)
    return limited(path, weights, capacity, expand_allowed(allowed, weights))


def limited(path: Tensor, weights: Tensor, capacity: float, allowed: Tensor) -> Tensor:
    """The path of :func:`limit_path` for checked arguments."""
    made = _samples(path).sum(dim=0).sum(dim=-1, keepdim=True)
    sources = _samples(allowed).any(dim=0).sum(dim=-1, keepdim=True)
    scores = torch.where(path, weights.detach(), -1.0)
    return path & _first(scores, _share(made, sources, capacity))


def _share(made: Tensor, sources: Tensor, capacity: float) -> Tensor:
    """The number of samples that a source takes, given the numbers of choices made and of sources."""
    wide = torch.float32 if made.device.type == "mps" else torch.float64
    even = made.to(wide) / sources.clamp(min=1)
    return (capacity * even * (1 - 1e-9)).ceil().clamp(min=1)  # the factor keeps rounding errors from adding a sample


def _first(scores: Tensor, limit: Tensor) -> Tensor:
    """Marks the best samples of each slot, up to a limit with shape ``[T, 1]``; ties go to the first."""
    rows = _samples(scores)
    order = rows.argsort(dim=0, descending=True, stable=True)
    return (order.argsort(dim=0) < limit).reshape(scores.shape)


def _samples(values: Tensor) -> Tensor:
    """The values with one batch dimension in front of ``[T, n]``."""
    if values.dim() < 3:
        return values.reshape(1, *values.shape) if values.dim() == 2 else values.reshape(1, 1, *values.shape)
    return values.flatten(0, -3)


def _masked(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits without gradient, in float32 or wider, -inf where nothing is allowed."""
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    return torch.where(allowed, wide, -math.inf)


def gumbel_noise(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draws standard Gumbel noise :math:`g = -\log(-\log u)` with :math:`u` uniform in (0, 1), always in float32.

    Args:
        shape: The shape of the noise, the same as of the logits.
        generator: The random generator; default: the device's.
        device: The device of the noise.

    Returns:
        The noise, which is always finite.

    Example:
        >>> gumbel_noise((2, 3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    check_generator(generator)
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)):
        raise TypeError(f"`shape` must list sizes, got {shown(shape)}; for instance (7, 16, 16).")
    for i, size in enumerate(shape):
        check_count(f"shape[{i}]", size, at_least=0)

    # exponential_() would take five times as long on the CPU.
    if generator is None:  # passing generator=None breaks torch.compile with dynamic sizes
        uniform = torch.rand(tuple(shape), dtype=torch.float32, device=device)
    else:
        uniform = torch.rand(tuple(shape), dtype=torch.float32, device=device, generator=generator)
    # vmap has no rule for clamp_() and warns.
    return uniform.clamp_min_(_SMALLEST_DRAW).log_().neg_().log_().neg_()


def suitable(logits: Tensor, *, allowed: Tensor | None = None) -> Tensor:
    r"""Finds the sources that suit the current policy (Eq. 10).

    .. math:: \operatorname{softmax}(z)_j \ge \sigma, \qquad \sigma = \frac{1}{n + 1}

    The softmax is over all allowed sources, without temperature, whatever path is replayed.

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        allowed: The :math:`n` sources that exist, a boolean mask with the shape of the last dimensions of `logits`.

    Returns:
        A boolean tensor with the shape of `logits`, False where a source is not allowed.

    Example:
        >>> suitable(torch.tensor([0.0, 0.0, -9.0]))
        tensor([ True,  True, False])
    """
    mask = _choosable(allowed, logits)
    sources = logits.shape[-1] if allowed is None else allowed.sum(dim=-1, keepdim=True)
    return suitable_masked(logits.detach().masked_fill(~mask, -math.inf), sources)


def _choosable(allowed: Tensor | None, logits: Tensor) -> Tensor:
    """The mask of the allowed sources in the shape of the logits, none of which may be NaN."""
    mask = expand_allowed(allowed, logits)
    refuse_where(logits, lambda z: (z.isnan() & mask).any(dim=-1, keepdim=True), _nan_in_row)
    return mask


def _nan_in_row(index: tuple[int, ...]) -> str:
    where = f" of row {index[:-1]}" if len(index) > 1 else ""
    return f"`logits` must not be NaN, but one{where} is; did the router's input or its parameters diverge?"


def suitable_masked(logits: Tensor, sources: Tensor | int) -> Tensor:
    """Eq. 10 for logits that are -inf where no source exists, given the number of sources of each row."""
    probabilities = _softmax(logits.detach().to(torch.promote_types(logits.dtype, torch.float32)))
    return probabilities >= 1.0 / (sources + torch.ones_like(probabilities[..., :1]))


def _clear_best(scores: Tensor, k: int, allowed: Tensor) -> Tensor | None:
    """The k best of many rows by comparing scores, at a third of the cost; None if ties selected too many.

    Scores are -inf where a source is not allowed. Call it only where values may be read.
    """
    if k > _FEW or scores.numel() < _MANY:  # for a small tensor the calls cost more than they save
        return None
    worst = scores.amax(dim=-1, keepdim=True)
    for _ in range(min(k, scores.shape[-1]) - 1):
        worst = torch.where(scores < worst, scores, -math.inf).amax(dim=-1, keepdim=True)
    # With >= a row with a NaN would select too few, which could hide rows with too many from the count below.
    path = allowed & (scores < worst).logical_not_()
    return path if int(path.count_nonzero()) == _num_chosen(allowed, k) else None


def _num_chosen(allowed: Tensor, k: int) -> int:
    """The number of sources that all rows choose together."""
    times = 1
    while allowed.dim() > 1 and allowed.stride(0) == 0:  # an expanded mask is counted once
        times *= allowed.shape[0]
        allowed = allowed[0]
    return times * int(allowed.sum(dim=-1).clamp(max=k).sum())


def _best(scores: Tensor, k: int) -> Tensor:
    """The k best of every row, ties to the lowest index."""
    path = torch.zeros_like(scores, dtype=torch.bool)
    if k > _FEW:
        best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
        return path.scatter(-1, best, 1)  # torch.jit.trace does not know the value True

    # For small k, one argmax after the other costs less than a sort; argmax takes the first of equals.
    for left in reversed(range(min(k, scores.shape[-1]))):
        path = path.scatter(-1, scores.argmax(dim=-1, keepdim=True), 1)
        scores = scores.masked_fill(path, -math.inf) if left else scores
    return path


def _softmax(scores: Tensor) -> Tensor:
    """The softmax of every row; on the CPU, many short rows take a sixth of the time when transposed."""
    # Where values are hidden, sizes may be too.
    if hides_values(scores) or scores.shape[-1] >= _SHORT or scores.dim() < 2 or scores.numel() < _MANY:
        return torch.softmax(scores, dim=-1)
    rows = scores.reshape(-1, scores.shape[-1])
    return torch.softmax(rows.t().contiguous(), dim=0).t().reshape(scores.shape).contiguous()


class _ResidualStopGradient(torch.autograd.Function):
    """Eq. 12: the value of the first argument, the gradient to the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, shortcut: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        # Zeros and not None: optimizers treat the two differently, and the data decide which samples are stopped.
        return torch.zeros_like(gradients[0]), gradients[0]


def rsg(output: Tensor, shortcut: Tensor) -> Tensor:
    r"""Applies the residual stop-gradient: the value of the output, the gradient of the shortcut (Eq. 12).

    .. math:: \operatorname{rsg}[m] = x + \operatorname{sg}[M(x)] \quad\text{where}\quad m = x + M(x)

    The module :math:`M` learns nothing from this use of its output; everything before it still learns.

    Args:
        output: The output of a module with its shortcut added, :math:`m`.
        shortcut: The shortcut, :math:`x`, with the same shape.

    Returns:
        A tensor equal to `output`. Its gradient goes to `shortcut` unchanged, and `output` receives exact zeros.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> rsg(x + 3 * x, x).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    check_tensor("output", output)
    check_tensor("shortcut", shortcut)
    if output.shape != shortcut.shape:
        raise ValueError(
            f"`output` and `shortcut` must have one shape, got {tuple(output.shape)} and {tuple(shortcut.shape)}; "
            "a module without a shortcut is stopped with `output.detach()`."
        )
    if in_forward_mode():  # the function below has no jvp, since Dynamo would refuse to compile it
        return output.detach() + torch.where(shortcut.isfinite(), shortcut - shortcut.detach(), 0.0)
    result: Tensor = _ResidualStopGradient.apply(output, shortcut)  # type: ignore[no-untyped-call]
    return result


def route_temperature(alpha: Tensor, *, normalize: str = "sum") -> Tensor:
    r"""Computes the temperature of each task's route sampling from its SAC entropy coefficient (Eq. 14).

    .. math:: \tau_{\mathcal T} = \frac{1 / \alpha_{\mathcal T}}{\sum_j 1 / \alpha_j}
              = \operatorname{softmax}(-\log \alpha)_{\mathcal T}

    Args:
        alpha: The coefficients :math:`\alpha > 0`, with shape :math:`(*, N)` for :math:`N` tasks.
        normalize: "sum" for the paper's rule, whose temperatures sum to 1; "mean" multiplies by :math:`N`, the rule of
            the released code, whose temperatures average 1.

    Returns:
        The temperatures, with the shape of `alpha`.

    Example:
        >>> route_temperature(torch.tensor([0.1, 0.3]))
        tensor([0.7500, 0.2500])
    """
    _check_tasks(alpha)
    refuse_where(
        alpha,
        lambda alpha: ~(alpha > 0),
        lambda index: f"`alpha` must be positive, got {alpha[index].item():g} at {index}; did you pass log alpha?",
    )
    return _normalized(torch.softmax(-alpha.log(), dim=-1), normalize)


def task_weights(alpha: Tensor, *, normalize: str = "sum") -> Tensor:
    r"""Computes the weight of each task's loss from its SAC entropy coefficient (Eq. 15, Soft Modularization Eq. 10).

    .. math:: w_{\mathcal T} = \frac{e^{-\alpha_{\mathcal T}}}{\sum_j e^{-\alpha_j}}

    Args:
        alpha: The coefficients :math:`\alpha`, with shape :math:`(*, N)` for :math:`N` tasks.
        normalize: "sum" for the papers' rule, whose weights sum to 1; "mean" multiplies by :math:`N`.

    Returns:
        The weights, with the shape of `alpha`.

    Example:
        >>> task_weights(torch.tensor([0.2, 0.2]), normalize="mean")
        tensor([1., 1.])
    """
    _check_tasks(alpha)
    return _normalized(torch.softmax(-alpha, dim=-1), normalize)


def _check_tasks(alpha: Tensor) -> None:
    check_floating("alpha", alpha)
    if not alpha.dim():
        raise ValueError(
            "`alpha` must have shape (*, N), one coefficient for each task, got a tensor without dimensions."
        )


def _normalized(shares: Tensor, normalize: str) -> Tensor:
    check_choice("normalize", normalize, ("sum", "mean"))
    return shares if normalize == "sum" else shares * shares.shape[-1]
