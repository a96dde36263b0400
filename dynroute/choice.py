"""Which sources are read: the k best (Eq. 6), or k that are drawn (Eq. 7, 13). Imported by `functional`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_count, expand_allowed, temperature_like
from .checks import under_transform

__all__ = ["gumbel_noise", "samplek_path", "topk_path"]

# The smallest step of a uniform float32 is 2**-24: a draw below it is a rounded zero, whose logarithm is infinite.
_SMALLEST_DRAW = 2.0**-25
_FEW = 4  # up to so many sources are found one by one


def topk_path(logits: Tensor, k: int, *, allowed: Tensor | None = None) -> Tensor:
    r"""Chooses the k best sources of every row (Eq. 6).

    .. math:: d_j = 1 \text{ if } z_j \text{ is among the } k \text{ largest of } z \text{, else } 0

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        k: How many sources to choose; a row with fewer allowed sources takes all of them.
        allowed: The sources that may be chosen, a boolean mask with the shape of the last dimensions of `logits`.

    Returns:
        The boolean path :math:`d` with :math:`\min(k, \text{allowed})` sources per row; ties go to the lowest index.

    Example:
        >>> topk_path(torch.tensor([2.0, 5.0, 2.0]), 2)
        tensor([ True,  True, False])
    """
    check_count("k", k, at_least=1)
    allowed = expand_allowed(allowed, logits)

    # Finite scores keep an allowed source of probability 0 (logit -inf) ahead of the forbidden ones.
    scores = logits.detach().clamp(min=torch.finfo(logits.dtype).min)
    return _best(_fill(scores, ~allowed, -math.inf), k) & allowed


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
    :math:`\operatorname{softmax}(z / \tau)`, and stay so where that softmax underflows.

    Args:
        logits: The logits :math:`z`, with shape :math:`(*, n)`.
        k: How many sources to draw; a row with fewer allowed sources takes all of them.
        temperature: :math:`\tau > 0`, a number or a tensor with the batch shape of `logits`, one value per sample.
        allowed: The sources that may be drawn, a boolean mask with the shape of the last dimensions of `logits`.
        generator: The source of randomness; the default generator of the device if None.
        noise: Gumbel noise that was drawn before (see :func:`gumbel_noise`), with the shape of `logits`. It lets a
            compiled, vectorised or checkpointed function replay a draw.

    Returns:
        The boolean path :math:`d` with :math:`\min(k, \text{allowed})` sources per row.

    Example:
        >>> samplek_path(torch.tensor([0.0, 500.0, -900.0]), 2, noise=torch.zeros(3))
        tensor([ True,  True, False])
    """
    check_count("k", k, at_least=1)
    allowed = expand_allowed(allowed, logits)
    if noise is None:
        noise = gumbel_noise(logits.shape, generator=generator, device=logits.device)
    elif generator is not None:
        raise ValueError("`generator` and `noise` exclude each other: the noise was already drawn; drop one of them.")
    elif noise.shape != logits.shape:
        raise ValueError(f"`noise` must have the shape of the logits {tuple(logits.shape)}, got {tuple(noise.shape)}.")

    if not logits.shape[-1]:
        return allowed.clone()

    # In float64, measured from the best source: beside a score of a million, float32 would round the noise away.
    scores = logits.detach().masked_fill(~allowed, -math.inf)
    best = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    never = scores == -math.inf
    wide = scores.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    temperature = temperature_like(temperature, logits)
    lowest = torch.finfo(wide.dtype).min
    if _in_place():
        wide.sub_(best).div_(temperature).add_(noise).clamp_(min=lowest / 2)
    else:
        wide = ((wide - best) / temperature + noise).clamp(min=lowest / 2)

    # A logit of -inf stays the last resort at any temperature, and ahead of what is forbidden.
    wide = _fill(wide, never, lowest)
    return _best(_fill(wide, ~allowed, -math.inf), k) & allowed


def gumbel_noise(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draws standard Gumbel noise :math:`g = -\log(-\log u)` with :math:`u` uniform in (0, 1), always in float32.

    Args:
        shape: The shape of the noise, that of the logits it will perturb.
        generator: The source of randomness; the default generator of the device if None.
        device: The device of the noise.

    Returns:
        The noise; always finite.

    Example:
        >>> gumbel_noise((2, 3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    # Not exponential_(), which takes five times as long on the CPU.
    if generator is None:  # named as None, it keeps torch.compile from sizes that change
        uniform = torch.rand(tuple(shape), dtype=torch.float32, device=device)
    else:
        uniform = torch.rand(tuple(shape), dtype=torch.float32, device=device, generator=generator)
    return -(-uniform.clamp(min=_SMALLEST_DRAW).log()).log()


def _best(scores: Tensor, k: int) -> Tensor:
    """The k best of every row, ties to the lowest index; the scores are overwritten."""
    path = torch.zeros_like(scores, dtype=torch.bool)
    if k > _FEW:
        best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
        return path.scatter(-1, best, True)

    # One by one costs less than a sort while k is small; argmax takes the first of equals.
    for left in reversed(range(min(k, scores.shape[-1]))):
        path = path.scatter(-1, scores.argmax(dim=-1, keepdim=True), True)
        scores = _fill(scores, path, -math.inf) if left else scores
    return path


def _fill(scores: Tensor, where: Tensor, value: float) -> Tensor:
    return scores.masked_fill_(where, value) if _in_place() else scores.masked_fill(where, value)


def _in_place() -> bool:
    """Whether scores may be overwritten: not under a transform, where a mask may have a dimension that they lack."""
    return not torch.compiler.is_compiling() and not under_transform()
