"""Runs that differ in their seeds alone, taken together: their curves, figures and routes, with intervals."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # scipy.stats is imported when it is used, as in runs/intervals.py
from numpy.typing import NDArray

from dynroute import Topology
from dynroute_command.options import KEYWORDS

from ..runs.configuration import Configuration
from ..runs.seeds import over_seeds, settings_key, without_seed
from .data import RunData
from .routes import THRESHOLD, Routes

__all__ = ["Band", "Group", "GroupRoutes", "group_runs"]

POINTS, RESAMPLES = 50, 500

TOLD = 3
"""The largest number of settings in the name of a group."""

LEARNED = 0.5
"""A task is learned as soon as this share of its newest episodes succeeds, all of a window of them."""


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
    runs: tuple[RunData, ...]

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
        counted = [part.mean(axis=1) for part in used if part is not None]
        return np.array(counted).reshape(len(counted), len(self.tasks))

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
            **over_seeds(scores),
            "modules_used": None if used is None else float(used.mean()),
            "late_correlations": self.late_correlations(),
            "minutes": float(np.mean(minutes)) if minutes else None,
        }

    def task_rows(self) -> list[dict[str, Any]]:
        """The figures of each task: Wilson's interval with one seed, a bootstrap over seeds with several."""
        results = [one.result for one in self.runs if one.result is not None]
        if not results:
            return []
        scores, modules, rows = self.scores, self.modules_of_runs, []
        for i, task in enumerate(self.tasks):
            interval, over = over_seeds(scores[:, i, None])["mean_interval"], "seeds"
            if interval is None and results[0].goals != "fixed":  # all episodes with a fixed goal are the same
                interval, over = np.array(results[0].intervals())[:, i].tolist(), "episodes"
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
                    "modules_interval": over_seeds(modules[:, i, None])["mean_interval"],
                    "interval_over": None if interval is None else over,
                }
            )
        return rows

    def learned_rows(self) -> list[dict[str, Any]]:
        """When each run learned each task, in steps of a task, and how many modules its evaluation uses.

        A task that was never learned has None. Tasks without a curve of success are left out, and so are runs that were
        not evaluated or have no routes.
        """
        return [row for one in self.runs for row in _learned_rows(one)]

    def late_correlations(self) -> list[float]:
        """For each run the rank correlation of how late tasks were learned with how many modules they use.

        Tasks that were never learned are the latest. Two tasks are too few for it, and so are any that were all learned
        at once or use equally many modules: such a run has none.
        """
        found = []
        for one in self.runs:
            rows = _learned_rows(one)
            late = [np.inf if row["learned"] is None else row["learned"] for row in rows]
            used = [row["modules_used"] for row in rows]
            if len(rows) > 2 and len(set(late)) > 1 and len(set(used)) > 1:
                found.append(float(scipy.stats.spearmanr(late, used).statistic))
        return found

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
        figures = [over_seeds(table[..., k], resamples=RESAMPLES) for k in whole]
        limits = np.array([one["iqm_interval"] or (np.nan, np.nan) for one in figures]).T
        return Band(steps[..., whole].mean(axis=(0, 1)), np.array([one["iqm"] for one in figures]), *limits)


def _learned_rows(one: RunData) -> list[dict[str, Any]]:
    """The rows of :meth:`Group.learned_rows` of one run."""
    configuration = one.run.configuration
    if one.result is None or one.result.modules_used is None:
        return []
    whole = configuration.window * configuration.horizon  # before it, the newest episodes are fewer
    rows = []
    for task, curve in one.curves("success").items():
        reached = curve.steps[(curve.values >= LEARNED) & (curve.steps >= whole)]
        place = one.tasks.index(task)
        rows.append(
            {
                "run": one.name,
                "seed": configuration.seed,
                "task": task,
                "learned": float(reached.min()) if len(reached) else None,
                "success": float(one.result.success_rates[place]),
                "modules_used": float(one.result.modules_used[place].mean()),
            }
        )
    return rows


def _means(curve: Any, edges: NDArray[np.float64], of: int = 1) -> NDArray[np.float64]:
    """The mean of the values, or of the steps, of the points in each span; NaN in a span without points."""
    span = np.searchsorted(edges, curve.steps, side="right") - 1
    inside = (span >= 0) & (span < len(edges) - 1)
    numbers = (curve.steps, curve.values)[of][inside]
    size = len(edges) - 1
    sums = np.bincount(span[inside], weights=numbers, minlength=size)
    counts = np.bincount(span[inside], minlength=size)
    return np.asarray(sums / counts)


def group_runs(runs: Sequence[RunData]) -> tuple[list[Group], list[str]]:
    """Takes runs together that differ in their seeds alone.

    Returns:
        The groups, and in sentences what their intervals do not tell.
    """
    found: dict[object, list[RunData]] = {}
    for one in runs:
        configuration = one.run.configuration
        found.setdefault(settings_key(configuration), []).append(one)
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


def _names(groups: Sequence[Sequence[RunData]]) -> list[str]:
    """The methods; where one comes twice, the directories, or with several seeds the settings."""
    configurations = [group[0].run.configuration for group in groups]
    methods = [configuration.method for configuration in configurations]
    alone = all(len(group) == 1 for group in groups)
    names: list[str] = []
    for (one, *_), configuration in zip(groups, configurations, strict=True):
        name = configuration.method
        alike = [other for other in configurations if other.method == configuration.method]
        if len(alike) > 1 and alone:
            name = (
                f"{configuration.method} in {one.name}" if one.name in {*methods} - {configuration.method} else one.name
            )
        elif len(alike) > 1:
            name += _differences(configuration, alike)
        if name in names:
            name = next(other for k in itertools.count(2) if (other := f"{name} #{k}") not in names)
        names.append(name)
    return names


def _differences(configuration: Configuration, alike: Sequence[Configuration]) -> str:
    """The benchmark and the fewest settings that tell a configuration from others of its method."""
    near = [other for other in alike if other.benchmark == configuration.benchmark]
    count = configuration.benchmark.count(",") + 1
    where = f" on {configuration.benchmark if count == 1 else f'{count} tasks'}" if len(near) < len(alike) else ""
    settings = [_settings(other) for other in near]
    all_names = dict.fromkeys(name for setting in settings for name in setting)
    # A network has keywords that others lack.
    values = {name: [setting.get(name, "none") for setting in settings] for name in all_names}
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
    differences = ", ".join(f"{name}={values[name][near.index(configuration)]}" for name in chosen)
    return f"{where} ({differences})" if differences else where


def _settings(configuration: Configuration) -> dict[str, str]:
    """The options as words that are short enough for a name."""
    critics = {f"critic_{name}": value for name, value in configuration.critic_network.items()}
    asked = {**configuration.result_options, **configuration.network_kwargs, **critics}
    options = {name: value for name, value in asked.items() if name not in KEYWORDS}
    if configuration.warm_start is not None:
        name = without_seed(Path(configuration.warm_start).name, configuration.seed)
        options["warm_start"] = re.sub(r"[-_]?seed$", "", name)
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return {name: "none" if word == "null" else word for name, word in words.items()}


@dataclass(frozen=True, eq=False)
class GroupRoutes:
    """The routes of the runs of a group.

    Modules have no order that seeds have in common, so that mean routes over seeds would mean nothing. What is taken
    together is what does not depend on it.

    Attributes:
        group: The runs that differ in their seeds alone.
        routes: What the policies of those do that have learned routes and can act, by the name of the run.
    """

    group: Group
    routes: Mapping[str, Routes]

    @classmethod
    def of(cls, group: Group, routes: Mapping[str, Routes]) -> "GroupRoutes | None":
        """The routes of a group; None if no run of it has any."""
        routed = {one.name: routes[one.name] for one in group.runs if one.name in routes}
        routed = {name: one for name, one in routed.items() if one.route is not None}
        return cls(group, routed) if routed else None

    @property
    def topology(self) -> Topology | None:
        """The graph of all runs; None if they differ, as those of networks that grew may."""
        first, *others = (one.topology for one in self.routes.values())
        return first if all(other == first for other in others) else None

    @property
    def similarity(self) -> NDArray[np.float64]:
        """How alike the routes of each two tasks are, with shape ``[runs, tasks, tasks]``."""
        return np.stack([one.similarity().double().numpy() for one in self.routes.values()])

    @property
    def sources(self) -> NDArray[np.float64]:
        """How many sources weigh more than 0.01 in the mean, with shape ``[runs, nodes that read others]``."""
        return np.stack([one.sources().double().mean(dim=0).numpy() for one in self.routes.values()])

    @property
    def unread(self) -> NDArray[np.float64]:
        """The share of edges that weigh at most 0.01, with shape ``[runs, 1]``."""
        shares = []
        for one in self.routes.values():
            assert one.route is not None
            assert one.topology is not None
            weights = one.topology.to_edges(one.route.weights)
            shares.append([float((weights <= THRESHOLD).double().mean())])
        return np.array(shares)

    def similarity_rows(self) -> list[dict[str, Any]]:
        """The similarity of each two tasks, of each task with all others, and of all; these have no `other`."""
        similarity, tasks = self.similarity, self.group.tasks
        if len(tasks) < 2:
            return []
        pairs = np.triu_indices(len(tasks), k=1)
        tables = [("", "", similarity[(slice(None), *pairs)])]
        for i, task in enumerate(tasks):
            tables.append((task, "", np.delete(similarity[:, i], i, axis=1)))
        for i, j in itertools.combinations(range(len(tasks)), 2):
            tables.append((tasks[i], tasks[j], similarity[:, i, j, None]))
        return [{"task": task, "other": other, **_over_seeds(table)} for task, other, table in tables]

    def sparsity_rows(self) -> list[dict[str, Any]]:
        """How many sources each node may read, and how many it does; nothing if runs have other graphs."""
        if (topology := self.topology) is None:
            return []
        columns = self.sources.T
        return [
            {"node": node, "may_read": len(topology.parents[node]), **_over_seeds(column[:, None])}
            for node, column in zip(topology.destinations, columns, strict=True)
        ]

    def row(self) -> dict[str, Any]:
        """The similarity over all pairs of tasks, and the share of edges that are not read, as plain data."""
        pairs = np.triu_indices(len(self.group.tasks), k=1)
        tables = {"similarity": self.similarity[(slice(None), *pairs)], "edges_unread": self.unread}
        summary: dict[str, Any] = {"seeds_with_routes": len(self.routes)}
        for name, table in tables.items():
            figures = over_seeds(table, resamples=RESAMPLES, whole_runs=True)
            summary |= {name: figures["iqm"], f"{name}_interval": figures["iqm_interval"]}
        return summary


def _over_seeds(table: NDArray[np.float64]) -> dict[str, float | None]:
    """The IQM of figures with shape ``[runs, columns]``, and its interval; one run has none."""
    figures = over_seeds(table, resamples=RESAMPLES, whole_runs=True)
    low, high = figures["iqm_interval"] or (None, None)
    return {"iqm": figures["iqm"], "low": low, "high": high}
