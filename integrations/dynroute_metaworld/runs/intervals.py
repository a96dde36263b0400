"""How sure a success rate is: intervals over episodes, and over runs with different seeds."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_interval", "iqm", "whole_run_interval", "wilson_interval"]


def wilson_interval(
    successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""The interval of Wilson's score for the probability of a success.

    .. math:: \frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}}}{1 + z^2/n}

    It stays inside of 0 and 1, and is no point where all episodes succeed or none does. It tells of the episodes of one
    policy, and nothing of what another seed would have learned.

    Args:
        successes: The numbers of successes.
        trials: The numbers of episodes :math:`n`.
        confidence: How often the interval shall hold the probability.

    Returns:
        The lower and the upper ends.

    Example:
        >>> low, high = wilson_interval([20, 10], 20)
        >>> low.round(2), high.round(2)
        (array([0.84, 0.3 ]), array([1. , 0.7]))
    """
    hits, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    if not ((n >= 1) & (hits >= 0) & (hits <= n)).all():
        raise ValueError(
            f"`successes` must be in 0..`trials`, and `trials` at least 1, got {successes!r} of {trials!r}."
        )
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    rate = hits / n
    center = rate + z**2 / (2 * n)
    half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    low, high = (center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)
    # The ends are exact there, but for rounding.
    return np.where(hits == 0, 0.0, low), np.where(hits == n, 1.0, high)


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: that of all scores without the lowest and the highest quarter of them.

    Runs and tasks are taken together, and a quarter is rounded down to whole scores, as in rliable and in
    ``scipy.stats.trim_mean``.

    Args:
        scores: The scores, with any shape.

    Example:
        >>> iqm([0.0, 0.5, 0.75, 1.0])
        0.625
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    if not ordered.size or not np.isfinite(ordered).all():
        raise ValueError(f"`scores` must be finite, and at least one, got {scores!r}.")
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], Any] = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a stratified bootstrap over runs, as rliable computes it by default.

    A resample has as many runs as there are; each task draws its runs with replacement and independently of the other
    tasks, while the tasks stay what they are. The ends are percentiles of the statistic over the resamples,
    interpolated linearly. It is about training with other seeds on the same tasks; with few runs it is too narrow.

    Args:
        scores: One score of each run and task, with shape ``[runs, tasks]``: for instance the success rates of each
            seed.
        statistic: What is computed of such an array; :func:`iqm` or ``numpy.mean``.
        confidence: How often the interval shall hold the statistic.
        resamples: The number of resamples.
        seed: What the resamples depend on.

    Returns:
        The lower and the upper end.

    Example:
        >>> low, high = bootstrap_interval([[0.9, 0.4], [1.0, 0.6], [0.8, 0.5]])
        >>> low < iqm([[0.9, 0.4], [1.0, 0.6], [0.8, 0.5]]) < high
        True
    """
    table = _by_run("scores", scores)
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    tail = (1 - _checked(confidence)) / 2
    rng = np.random.default_rng(seed)
    tasks = np.arange(table.shape[1])
    drawn = [float(statistic(table[rng.integers(len(table), size=table.shape), tasks])) for _ in range(resamples)]
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def whole_run_interval(
    figures: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the IQM by a bootstrap that draws whole runs.

    It is for figures that vary together in a run, such as those of pairs of tasks, which :func:`bootstrap_interval`
    would take for independent.

    Args:
        figures: The figures of each run, with shape ``[runs, figures]``.
        confidence: How often the interval shall hold the IQM.
        resamples: The number of resamples.
        seed: What the resamples depend on.

    Returns:
        The lower and the upper end.

    Example:
        >>> from dynroute_metaworld.runs.intervals import whole_run_interval
        >>> whole_run_interval([[0.3, 0.3], [0.5, 0.5]])
        (0.3, 0.5)
    """
    table = _by_run("figures", figures)
    tail = (1 - _checked(confidence)) / 2
    draws = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    pooled = np.sort(table[draws].reshape(resamples, -1), axis=1)
    cut = pooled.shape[1] // 4
    low, high = np.quantile(pooled[:, cut : pooled.shape[1] - cut].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _by_run(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Figures of several runs as an array, or an error that says why they cannot tell how much runs differ."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"`{name}` must have shape [runs, tasks], got shape {table.shape}.")
    if len(table) < 2:
        raise ValueError(
            f"`{name}` must be those of at least two runs, got {len(table)}: one run does not tell how much seeds "
            "differ. For the episodes of one run there is wilson_interval."
        )
    if not np.isfinite(table).all():
        raise ValueError(
            f"`{name}` must be finite, those of run {int((~np.isfinite(table)).any(axis=1).argmax())} are not."
        )
    return table


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}; 0.95 means 95 %.")
    return confidence
