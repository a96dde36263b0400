"""Confidence intervals of success rates, over episodes, and over runs with different seeds.

The bootstrap is written here since ``scipy.stats.bootstrap`` cannot draw the runs of each task independently.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # scipy.stats is loaded at its first use, which saves most commands a third of a second
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_interval", "iqm", "wilson_interval"]


def wilson_interval(
    successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""The interval of Wilson's score for the probability of a success.

    .. math:: \frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}}}{1 + z^2/n}

    It stays between 0 and 1, and is wider than a point even if all episodes succeed or none does. It describes the
    episodes of one policy, not what another seed would learn.

    Args:
        successes: The numbers of successes.
        trials: The numbers of episodes :math:`n`.
        confidence: The coverage of the interval, between 0 and 1.

    Returns:
        The lower and the upper ends.

    Example:
        >>> low, high = wilson_interval([20, 10], 20)
        >>> low.round(2), high.round(2)
        (array([0.84, 0.3 ]), array([1. , 0.7]))
    """
    hits, n = np.broadcast_arrays(np.asarray(successes), np.asarray(trials))
    if not (np.equal(np.floor(hits), hits) & np.equal(np.floor(n), n)).all():
        raise ValueError(f"`successes` and `trials` must be whole numbers, got {successes!r} of {trials!r}.")
    if not ((n >= 1) & (hits >= 0) & (hits <= n)).all():
        raise ValueError(
            f"`successes` must be in 0..`trials`, and `trials` at least 1, got {successes!r} of {trials!r}."
        )
    _check_confidence(confidence)

    def interval(successes: int, trials: int) -> tuple[float, float]:
        return tuple(scipy.stats.binomtest(int(successes), int(trials)).proportion_ci(confidence, "wilson"))

    low, high = np.vectorize(interval, otypes=[np.float64, np.float64])(hits, n)
    return low, high


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: the mean of the scores without the lowest and the highest quarter.

    It pools the scores of all runs and tasks; a quarter is rounded down to whole scores, as in rliable.

    Args:
        scores: The scores, with any shape.

    Example:
        >>> iqm([0.0, 0.5, 0.75, 1.0])
        0.625
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"`scores` must be finite, and at least one, got {scores!r}.")
    return float(scipy.stats.trim_mean(values, 0.25, axis=None))


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], Any] = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    whole_runs: bool = False,
) -> tuple[float, float]:
    """The percentile interval of a stratified bootstrap over runs, as rliable computes it by default.

    A resample has as many runs as `scores`. Each task draws its runs with replacement, independently of the other
    tasks; the tasks themselves are not drawn. The ends are percentiles of the statistic over the resamples,
    interpolated linearly. The interval is for training with other seeds on the same tasks; with few runs it is too
    narrow.

    Args:
        scores: One score of each run and task, with shape ``[runs, tasks]``: for instance the success rates of each
            seed.
        statistic: A function from such an array to a number: :func:`iqm` or ``numpy.mean``.
        confidence: The coverage of the interval, between 0 and 1.
        resamples: The number of resamples.
        seed: The seed of the resamples.
        whole_runs: Whether a resample draws whole runs, instead of runs for each task independently. It is for columns
            that vary together in a run, such as the similarities of pairs of tasks.

    Returns:
        The lower and the upper end.

    Example:
        >>> low, high = bootstrap_interval([[0.9, 0.4], [1.0, 0.6], [0.8, 0.5]])
        >>> low < iqm([[0.9, 0.4], [1.0, 0.6], [0.8, 0.5]]) < high
        True
    """
    table = _by_run(scores)
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    _check_confidence(confidence)
    tail, rng = (1 - confidence) / 2, np.random.default_rng(seed)
    shape = (len(table), 1) if whole_runs else table.shape
    tasks = np.arange(table.shape[1])
    samples = table[rng.integers(len(table), size=(resamples, *shape)), tasks]
    drawn: Any
    if statistic is iqm:
        drawn = scipy.stats.trim_mean(samples.reshape(resamples, -1), 0.25, axis=1)  # a loop takes far longer
    else:
        drawn = [float(statistic(sample)) for sample in samples]
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _by_run(scores: ArrayLike) -> NDArray[np.float64]:
    """Checks the scores of several runs, and returns them as an array."""
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"`scores` must have shape [runs, tasks], got shape {table.shape}.")
    if len(table) < 2:
        raise ValueError(
            f"`scores` must have at least two runs, got {len(table)}: one run does not show how much seeds differ; "
            "use wilson_interval for the episodes of one run."
        )
    if not np.isfinite(table).all():
        raise ValueError(
            f"`scores` must be finite, got NaN or infinity in run {int((~np.isfinite(table)).any(axis=1).argmax())}."
        )
    return table


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}; 0.95 means 95 %.")
