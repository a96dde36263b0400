"""Runs that differ in their seeds alone, taken together: curves and figures with intervals."""

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynroute_command.options import KEYWORDS

from ..runs.configuration import Configuration
from ..runs.intervals import bootstrap_interval, iqm
from ..runs.run import Run
from .evidence import Evidence

__all__ = ["Band", "Group", "group_runs", "origin"]

APART = (
    *("seed", "device", "workers", "threads", "restart", "compile", "memory_map", "checkpoint_every", "log_every"),
    *("evaluate_every", "evaluation_episodes", "final_episodes", "window", "warm_start"),
)
"""What may differ between runs of one group: it changes what is drawn, stored or told, and not what is asked.

Where they started from has a path of its own for each seed, so that :func:`origin` tells what it has in common."""

POINTS, RESAMPLES = 50, 500

TOLD = 3
"""The largest number of settings in the name of a group."""


@dataclass(frozen=True, eq=False)
class Band:
    """A curve of several runs: the IQM over tasks and seeds, with its interval.

    Attributes:
        steps: The steps of each task.
        center: The IQM.
        low: The lower ends of the intervals; NaN with one run.
        high: The upper ends.
    """

    steps: NDArray[np.float64]
    center: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        name: The method, and what tells it from other groups.
        runs: The runs, by their seeds.
    """

    name: str
    runs: tuple[Evidence, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, the same for all runs."""
        return self.runs[0].tasks

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [one.run.configuration.seed for one in self.runs]

    @property
    def scores(self) -> NDArray[np.float64]:
        """The success rates, with shape ``[runs, tasks]``, of the runs that were evaluated."""
        rates = [one.result.success_rates for one in self.runs if one.result is not None]
        return np.array(rates).reshape(len(rates), len(self.tasks))

    @property
    def modules_of_runs(self) -> NDArray[np.float64]:
        """The mean number of modules that evaluations used, with shape ``[runs, tasks]``, of the runs that know it."""
        used = [one.result.modules_used for one in self.runs if one.result is not None]
        known = [part.mean(axis=1) for part in used if part is not None]
        return np.array(known).reshape(len(known), len(self.tasks))

    @property
    def modules_used(self) -> NDArray[np.float64] | None:
        """Their mean over runs; None where it is not known."""
        used = self.modules_of_runs
        return used.mean(axis=0) if len(used) else None

    def row(self) -> dict[str, Any]:
        """The figures of the group as plain data; None where nothing is known, and for intervals of one seed."""
        scores, used = self.scores, self.modules_used
        minutes = [one.minutes for one in self.runs if one.minutes is not None]
        return {
            "method": self.name,
            "benchmark": self.runs[0].run.configuration.benchmark,
            "goals": self.runs[0].run.configuration.goals,
            "seeds": self.seeds,
            "evaluated": len(scores),
            "mean": float(scores.mean()) if len(scores) else None,
            "iqm": iqm(scores) if len(scores) else None,
            "iqm_interval": list(bootstrap_interval(scores)) if len(scores) > 1 else None,
            "modules_used": None if used is None else float(used.mean()),
            "minutes": float(np.mean(minutes)) if minutes else None,
        }

    def task_rows(self) -> list[dict[str, Any]]:
        """The figures of each task: Wilson's interval with one seed, a bootstrap over seeds with several."""
        results = [one.result for one in self.runs if one.result is not None]
        if not results:
            return []
        scores, modules, rows = self.scores, self.modules_of_runs, []
        for i, task in enumerate(self.tasks):
            interval = _over_seeds(scores[:, i])
            if interval is None and results[0].goals != "fixed":  # all episodes with a fixed goal are the same
                interval = np.array(results[0].intervals())[:, i].tolist()
            first = np.concatenate([result.first_success[i] for result in results])
            rows.append(
                {
                    "task": task,
                    "episodes": sum(result.episodes for result in results),
                    "success": float(scores[:, i].mean()),
                    "interval": interval,
                    "return": float(np.mean([result.returns[i].mean() for result in results])),
                    "first_success": float(first[first > 0].mean()) if (first > 0).any() else None,
                    "modules_used": float(modules[:, i].mean()) if len(modules) else None,
                    "modules_interval": _over_seeds(modules[:, i]),
                }
            )
        return rows

    def band(self, metric: str) -> Band | None:
        """A metric over steps, its points taken together in at most 50 spans; None if no span has points of all runs.

        A span that lacks points of a run is left out. The interval is that of the IQM over tasks and seeds.
        """
        curves = [one.curves(metric) for one in self.runs]
        tasks = [task for task in self.tasks if all(task in of_run for of_run in curves)]
        if not tasks:
            return None
        ends = [of_run[task].steps[[0, -1]] for of_run in curves for task in tasks]
        low, high = max(end[0] for end in ends), min(end[1] for end in ends)
        longest = max(len(of_run[task].steps) for of_run in curves for task in tasks)
        spans = min(POINTS, longest)
        edges = np.linspace(low, np.nextafter(high, np.inf), spans + 1)
        with np.errstate(invalid="ignore"):
            table = np.array([[_means(of_run[task], edges) for task in tasks] for of_run in curves])
            steps = np.array([[_means(of_run[task], edges, of=0) for task in tasks] for of_run in curves])
        whole = np.flatnonzero(np.isfinite(table).all(axis=(0, 1)))
        if not len(whole):
            return None
        center = np.array([iqm(table[..., k]) for k in whole])
        limits = np.full((2, len(whole)), np.nan)
        if len(self.runs) > 1:
            limits = np.array([bootstrap_interval(table[..., k], resamples=RESAMPLES) for k in whole]).T
        return Band(steps[..., whole].mean(axis=(0, 1)), center, *limits)


def _over_seeds(values: NDArray[np.float64]) -> list[float] | None:
    """The interval of a mean over seeds; one seed has none."""
    return list(bootstrap_interval(values[:, None], np.mean)) if len(values) > 1 else None


def _means(curve: Any, edges: NDArray[np.float64], of: int = 1) -> NDArray[np.float64]:
    """The mean of the values, or of the steps, of the points in each span; NaN in a span without points."""
    span = np.searchsorted(edges, curve.steps, side="right") - 1
    inside = (span >= 0) & (span < len(edges) - 1)
    numbers = (curve.steps, curve.values)[of][inside]
    size = len(edges) - 1
    sums = np.bincount(span[inside], weights=numbers, minlength=size)
    counts = np.bincount(span[inside], minlength=size)
    return np.asarray(sums / counts)


def group_runs(runs: Sequence[Evidence]) -> tuple[list[Group], list[str]]:
    """Takes runs together that differ in their seeds alone.

    Returns:
        The groups, and in sentences what their intervals do not tell.
    """
    found: dict[object, list[Evidence]] = {}
    for one in runs:
        configuration = one.run.configuration
        found.setdefault((_asked(configuration), origin(configuration)), []).append(one)
    groups = [sorted(same, key=lambda one: one.run.configuration.seed) for same in found.values()]
    named = [Group(name, tuple(same)) for name, same in zip(_names(groups), groups, strict=True)]
    notes = []
    for group in named:
        if len(group.runs) == 1:
            notes.append(f"{group.name}: one seed does not tell how much seeds differ, so that there is no interval.")
        elif twice := sorted({seed for seed in group.seeds if group.seeds.count(seed) > 1}):
            notes.append(
                f"{group.name}: seed {', '.join(map(str, twice))} comes more than once, and intervals take each for "
                "another seed."
            )
        if missing := [one.name for one in group.runs if one.result is None]:
            notes.append(f"{group.name}: not evaluated yet and left out of its success: {', '.join(missing)}.")
    return named, notes


def origin(configuration: Configuration) -> object:
    """What a run started from, as a value that is equal for runs that differ in their seeds alone.

    It holds what the configuration of the run that it started from asks, and where that one started in turn. Where the
    directory of that run is not there any more it holds its path, in which the run's own seed, as in ``seed1``, does
    not count.

    Args:
        configuration: The configuration of the run.

    Returns:
        A value that can be compared and hashed; None for a run that started from no other one.

    Example:
        >>> from dynroute_metaworld.report.comparison import origin
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
        return _without_seed(str(folder), configuration.seed)
    if place in passed:  # directories that were renamed may lead in a circle
        return _without_seed(str(folder), configuration.seed)
    return _asked(start), _origin(start, passed | {place})


def _asked(configuration: Configuration) -> str:
    """What runs of one group have in common, but for where they started."""
    told = dataclasses.asdict(configuration).items()
    return json.dumps({name: value for name, value in told if name not in APART and value is not None}, sort_keys=True)


def _without_seed(text: str, seed: int) -> str:
    return re.sub(rf"seed{seed}(?!\d)", "seed", text)


def _names(groups: Sequence[Sequence[Evidence]]) -> list[str]:
    """The methods. Those that come twice are called by their directories, or with several seeds by their settings."""
    configurations = [group[0].run.configuration for group in groups]
    methods = [configuration.method for configuration in configurations]
    alone = all(len(group) == 1 for group in groups)
    names: list[str] = []
    for (one, *_), mine in zip(groups, configurations, strict=True):
        name = mine.method
        alike = [other for other in configurations if other.method == mine.method]
        if len(alike) > 1 and alone:
            name = f"{mine.method} in {one.name}" if one.name in {*methods} - {mine.method} else one.name
        elif len(alike) > 1:
            name += _differences(mine, alike)
        if name in names:
            name = next(other for k in itertools.count(2) if (other := f"{name} #{k}") not in names)
        names.append(name)
    return names


def _differences(mine: Configuration, alike: Sequence[Configuration]) -> str:
    """What tells a configuration from others of its method: the benchmark, and as few settings as do."""
    near = [other for other in alike if other.benchmark == mine.benchmark]
    count = mine.benchmark.count(",") + 1
    where = f" on {mine.benchmark if count == 1 else f'{count} tasks'}" if len(near) < len(alike) else ""
    settings = [_settings(other) for other in near]
    known = dict.fromkeys(name for told in settings for name in told)
    # A network has keywords that others lack.
    values = {name: [told.get(name, "none") for told in settings] for name in known}
    differ = [name for name in values if len(set(values[name])) > 1]
    chosen = next(
        (
            names
            for count in range(1, TOLD + 1)
            for names in itertools.combinations(differ, count)
            if len(set(zip(*(values[name] for name in names), strict=True))) == len(near)
        ),
        differ[:TOLD],
    )
    told = ", ".join(f"{name}={values[name][near.index(mine)]}" for name in chosen)
    return f"{where} ({told})" if told else where


def _settings(configuration: Configuration) -> dict[str, str]:
    """What is asked, in words that are short enough for a name."""
    critics = {f"critic_{name}": value for name, value in configuration.critic_network.items()}
    asked = {**dataclasses.asdict(configuration), **configuration.network_kwargs, **critics}
    told = {name: value for name, value in asked.items() if name not in (*APART, *KEYWORDS)}
    if configuration.warm_start is not None:
        name = _without_seed(Path(configuration.warm_start).name, configuration.seed)
        told["warm_start"] = re.sub(r"[-_]?seed$", "", name)
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}
    return {name: "none" if word == "null" else word for name, word in words.items()}
