"""Finds runs that differ only in their seeds, and summarizes their figures."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .configuration import Configuration
from .intervals import bootstrap_interval, iqm
from .run import Run

__all__ = ["origin", "over_seeds", "settings_key", "without_seed"]


def over_seeds(scores: NDArray[np.float64], **options: Any) -> dict[str, Any]:
    """The mean and the IQM of figures of several runs, with 95 % intervals over seeds; None for one run.

    Args:
        scores: The figures, with shape ``[runs, tasks]``.
        options: Other keywords of :func:`~dynroute_metaworld.bootstrap_interval`.

    Example:
        >>> import numpy as np
        >>> from dynroute_metaworld.runs.seeds import over_seeds
        >>> over_seeds(np.array([[0.0, 0.5, 0.75, 1.0]]))
        {'mean': 0.5625, 'mean_interval': None, 'iqm': 0.625, 'iqm_interval': None}
    """
    figures: dict[str, Any] = {}
    several = len(scores) > 1 and scores.size > 0
    for name, statistic in (("mean", np.mean), ("iqm", iqm)):
        figures[name] = float(statistic(scores)) if scores.size else None
        figures[f"{name}_interval"] = list(bootstrap_interval(scores, statistic, **options)) if several else None
    return figures


def settings_key(configuration: Configuration) -> object:
    """A key that is equal for runs that differ only in their seeds and in options that change no result."""
    return _comparable(configuration), origin(configuration)


def origin(configuration: Configuration) -> object:
    """The run that a run started from, as a key that is equal for runs that differ only in their seeds.

    The key has the options of the other run that can change its actor, and those of the run which that one started
    from, and so on. If the directory of the other run is gone, the key has its path instead, without the number of the
    seed: ``seed1`` becomes ``seed``.

    Returns:
        A value that can be compared and hashed; None for a run that started from no other run.

    Example:
        >>> from dynroute_metaworld.runs.seeds import origin
        >>> first, second = (Configuration(seed=n, warm_start=f"runs/imitation-seed{n}") for n in (1, 2))
        >>> origin(first) == origin(second), origin(Configuration()) is None
        (True, True)
    """
    return _origin(configuration, frozenset())


def _origin(configuration: Configuration, passed: frozenset[Path]) -> object:
    if configuration.warm_start is None:
        return None
    folder = Path(configuration.warm_start)
    try:
        start, place = Run.open(folder).configuration, folder.resolve()
    except (OSError, ValueError):  # it is gone, or damaged
        return without_seed(str(folder), configuration.seed)
    if place in passed:  # directories that were renamed may lead in a circle
        return without_seed(str(folder), configuration.seed)
    return _comparable(start, without=("final_episodes",)), _origin(start, passed | {place})


def _comparable(configuration: Configuration, without: Collection[str] = ()) -> str:
    options = {name: value for name, value in configuration.result_options.items() if name not in without}
    return json.dumps(options, sort_keys=True)


def without_seed(text: str, seed: int) -> str:
    """A path without the number of the seed in it.

    Example:
        >>> from dynroute_metaworld.runs.seeds import without_seed
        >>> without_seed("runs/MT10-d2r-seed1", 1)
        'runs/MT10-d2r-seed'
    """
    return re.sub(rf"seed{seed}(?!\d)", "seed", text)
