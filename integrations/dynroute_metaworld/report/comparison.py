"""Groups runs that differ only in their seeds, and computes their curves, figures and routes, with intervals."""

import contextlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # scipy.stats is imported when it is used, as in runs/intervals.py
from numpy.typing import NDArray

from dynroute import Topology
from dynroute_command.options import KEYWORDS

from ..runs.configuration import NETWORK_FLAGS, Configuration
from ..runs.intervals import bootstrap_interval
from ..runs.result import EvaluationResult
from ..runs.seeds import over_seeds, settings_key, without_seed
from .data import RunData
from .routes import THRESHOLD, Routes

__all__ = ["Band", "Group", "GroupRoutes", "group_runs", "setting_rows"]

POINTS, RESAMPLES = 50, 500
QUARTILES = (0.25, 0.5, 0.75)

MAX_SETTINGS = 3
"""The largest number of settings in the name of a group."""

SHORT = 0.9
"""A run with less than this share of the steps of the longest run shortens the curves of its group by much."""

LEARNED = 0.5
"""A task is learned at the first full window of episodes in which this share succeeds."""


@dataclass(frozen=True, eq=False)
class Band:
    """A curve of several runs: the mean over tasks and seeds, with its interval.

    It is not the IQM, which is 1 where a quarter of the tasks is never solved and all others always.

    Attributes:
        steps: The steps of each task.
        center: The mean.
        low: The lower ends of the intervals; NaN with one run.
        high: The upper ends.
        first_quartile: The first quartile over seeds of the mean over tasks (D2R, Fig. 5); NaN with one run.
        median: Their median.
        third_quartile: Their third quartile.
    """

    steps: NDArray[np.float64]
    center: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    first_quartile: NDArray[np.float64]
    median: NDArray[np.float64]
    third_quartile: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        name: The method, and what distinguishes it from other groups.
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
        return [run.run.configuration.seed for run in self.runs]

    @property
    def results(self) -> list[EvaluationResult]:
        """The final evaluations of the runs; if no run is finished, their newest ones."""
        final = [run.result for run in self.runs if run.result is not None and run.is_finished]
        return final or [run.result for run in self.runs if run.result is not None]

    @property
    def scores(self) -> NDArray[np.float64]:
        """The success rates in :attr:`results`, with shape ``[runs, tasks]``."""
        rates = [result.success_rates for result in self.results]
        return np.array(rates).reshape(len(rates), len(self.tasks))

    @property
    def modules_of_runs(self) -> NDArray[np.float64]:
        """The mean number of modules in :attr:`results` that recorded it, with shape ``[runs, tasks]``."""
        used = [result.modules_used for result in self.results]
        counted = [part.mean(axis=1) for part in used if part is not None]
        return np.array(counted).reshape(len(counted), len(self.tasks))

    @property
    def modules_used(self) -> NDArray[np.float64] | None:
        """The mean of :attr:`modules_of_runs` over runs; None if no run recorded it."""
        used = self.modules_of_runs
        return used.mean(axis=0) if len(used) else None

    def row(self) -> dict[str, Any]:
        """The figures of the group as plain data; unknown values are None, and so are intervals with one seed."""
        scores, used = self.scores, self.modules_used
        minutes = [run.minutes for run in self.runs if run.minutes is not None]
        return {
            "method": self.name,
            "benchmark": self.runs[0].run.configuration.result_options["benchmark"],
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
        if not (results := self.results):
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
        """The steps until each run learned each task, and the number of modules in its evaluation.

        The steps are None for a task that was never learned. Tasks without a curve of success are left out, and so are
        runs that were not evaluated or have no routes.
        """
        return [row for run in self.runs for row in _learned_rows(run)]

    def late_correlations(self) -> list[float]:
        """The rank correlation, in each run, between the steps until tasks were learned and the modules they use.

        Tasks that were never learned count as the latest. A run has no correlation if it has fewer than three tasks, if
        all were learned at the same step, or if all use the same number of modules.
        """
        found = []
        for run in self.runs:
            rows = _learned_rows(run)
            late = [np.inf if row["learned"] is None else row["learned"] for row in rows]
            used = [row["modules_used"] for row in rows]
            if len(rows) > 2 and len(set(late)) > 1 and len(set(used)) > 1:
                found.append(float(scipy.stats.spearmanr(late, used).statistic))
        return found

    def band(self, metric: str) -> Band | None:
        """A metric over steps, averaged in at most 50 spans; None if no span has points of all runs.

        A span without points of a run is left out. The interval is for the mean over tasks and seeds.
        """
        curves = [run.curves(metric) for run in self.runs]
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
        steps, table = steps[..., whole], table[..., whole]
        spread = np.full((5, len(whole)), np.nan)
        if len(curves) > 1:
            intervals = [bootstrap_interval(now, np.mean, resamples=RESAMPLES) for now in table.transpose(2, 0, 1)]
            spread = np.concatenate([np.transpose(intervals), np.quantile(table.mean(axis=1), QUARTILES, axis=0)])
        return Band(steps.mean(axis=(0, 1)), table.mean(axis=(0, 1)), *spread)


def _learned_rows(run: RunData) -> list[dict[str, Any]]:
    """The rows of :meth:`Group.learned_rows` of one run."""
    configuration = run.run.configuration
    if run.result is None or run.result.modules_used is None:
        return []
    whole = configuration.window * configuration.horizon  # the first window is full
    rows = []
    for task, curve in run.curves("success").items():
        reached = curve.steps[(curve.values >= LEARNED) & (curve.steps >= whole)]
        place = run.tasks.index(task)
        rows.append(
            {
                "run": run.name,
                "seed": configuration.seed,
                "task": task,
                "learned": float(reached.min()) if len(reached) else None,
                "success": float(run.result.success_rates[place]),
                "modules_used": float(run.result.modules_used[place].mean()),
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
    """Groups runs that differ only in their seeds.

    Returns:
        The groups, and notes about the limits of their figures.
    """
    found: dict[object, list[RunData]] = {}
    for run in runs:
        configuration = run.run.configuration
        found.setdefault(settings_key(configuration), []).append(run)
    parts = [part for same in found.values() for part in _parts(same)]
    groups = [sorted(part, key=lambda run: run.run.configuration.seed) for part in parts]
    named = [Group(name, tuple(same)) for name, same in zip(_names(groups), groups, strict=True)]
    notes = []
    for group in named:
        if len(group.runs) == 1:
            notes.append(f"{group.name}: one seed does not show how much seeds differ, so there is no interval.")
        elif twice := sorted({seed for seed in group.seeds if group.seeds.count(seed) > 1}):
            notes.append(
                f"{group.name}: seed {', '.join(map(str, twice))} comes more than once, and intervals count each as "
                "another seed."
            )
        if missing := [run.name for run in group.runs if run.result is None]:
            notes.append(f"{group.name}: not evaluated yet and left out of its success: {', '.join(missing)}.")
        early = [run.name for run in group.runs if run.result is not None and not run.is_finished]
        if any(run.is_finished for run in group.runs) and early:
            notes.append(f"{group.name}: not finished and left out of its success: {', '.join(early)}.")
        notes += [
            f"{run.name}: its time was up before {run.run.configuration.steps:,} steps; its curves end at "
            f"{run.last_step:,.0f}."
            for run in group.runs
            if run.time_was_up
        ]
        ends = {run.name: run.last_step for run in group.runs if run.last_step is not None}
        if ends and (new := [run.name for run in group.runs if run.name not in ends]):
            notes.append(f"{group.name}: no curves of means, since these runs have not logged yet: {', '.join(new)}.")
        shortest = min(ends, key=lambda name: ends[name], default="")
        if ends and ends[shortest] < SHORT * (longest := max(ends.values())):
            notes.append(
                f"{group.name}: its curves of means end at {ends[shortest]:,.0f} steps, where {shortest} ends; the "
                f"longest run came to {longest:,.0f}."
            )
    return named, notes


def _parts(same: Sequence[RunData]) -> list[Sequence[RunData]]:
    """Splits runs of the same settings by their hours if a seed comes twice: then the hours are what is compared."""
    if len({run.run.configuration.seed for run in same}) == len(same):
        return [same]
    hours = dict.fromkeys(run.run.configuration.hours for run in same)
    return [[run for run in same if run.run.configuration.hours == each] for each in hours]


def _names(groups: Sequence[Sequence[RunData]]) -> list[str]:
    """The names of groups: the method. If it comes twice, the directory, or with several seeds the settings."""
    configurations = [group[0].run.configuration for group in groups]
    methods = [configuration.method for configuration in configurations]
    alone = all(len(group) == 1 for group in groups)
    names: list[str] = []
    for (run, *_), configuration in zip(groups, configurations, strict=True):
        name = configuration.method
        alike = [other for other in configurations if other.method == configuration.method]
        if len(alike) > 1 and alone:
            name = (
                f"{configuration.method} in {run.name}" if run.name in {*methods} - {configuration.method} else run.name
            )
        elif len(alike) > 1:
            name += _differences(configuration, alike)
        if name in names:
            name = next(other for k in itertools.count(2) if (other := f"{name} #{k}") not in names)
        names.append(name)
    return names


def _differences(configuration: Configuration, alike: Sequence[Configuration]) -> str:
    """The benchmark and the fewest settings that distinguish a configuration from others of its method."""
    benchmark = configuration.result_options["benchmark"]
    near = [other for other in alike if other.result_options["benchmark"] == benchmark]
    count = benchmark.count(",") + 1
    where = f" on {benchmark if count == 1 else f'{count} tasks'}" if len(near) < len(alike) else ""
    values = _differing(near)
    differ = list(values)
    chosen: Sequence[str] | None = next(
        (
            names
            for count in range(1, MAX_SETTINGS + 1)
            for names in itertools.combinations(differ, count)
            if len(set(zip(*(values[name] for name in names), strict=True))) == len(near)
        ),
        None,
    )
    if chosen is None:  # as in an ablation, where each group may change another setting
        usual = {name: statistics.mode(texts) for name, texts in values.items()}
        chosen = [name for name in differ if values[name][near.index(configuration)] != usual[name]][:MAX_SETTINGS]
    differences = ", ".join(f"{name}={values[name][near.index(configuration)]}" for name in chosen)
    return f"{where} ({differences})" if differences else where


def _differing(configurations: Sequence[Configuration]) -> dict[str, list[str]]:
    """The options that differ, each with its values as texts."""
    settings = [_settings(configuration) for configuration in configurations]
    names = dict.fromkeys(name for setting in settings for name in setting)
    values = {name: [setting.get(name, "default") for setting in settings] for name in names}
    return {name: texts for name, texts in values.items() if len(set(texts)) > 1}


def _settings(configuration: Configuration) -> dict[str, str]:
    """The options as texts for a name."""
    critics = {f"critic_{name}": value for name, value in configuration.critic_network.items()}
    unset = dict.fromkeys(NETWORK_FLAGS, "default")  # none is a value of some of them
    merged = {**configuration.result_options, **unset, **configuration.network_kwargs, **critics}
    options = {name: value for name, value in merged.items() if name not in KEYWORDS}
    options |= {"metadata": "none", "warm_start": "none"}
    if configuration.metadata is not None:
        options["metadata"] = Path(configuration.metadata).name
    if configuration.warm_start is not None:
        name = without_seed(Path(configuration.warm_start).name, configuration.seed)
        options["warm_start"] = re.sub(r"[-_]?seed$", "", name)
    options["hours"] = configuration.hours  # the last, since groups that differ otherwise may have several
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return {name: "none" if word == "null" else word for name, word in words.items()}


def setting_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The success of each group that was evaluated, a mean over tasks and seeds; empty with fewer than two groups.

    If the groups differ in exactly one option, whose values are numbers, `setting` is its name, and the rows are in the
    order of `value`; otherwise both are None.
    """
    evaluated = [group for group in groups if group.results]
    if len(evaluated) < 2:
        return []
    name, values = _numeric_setting([group.runs[0].run.configuration for group in evaluated])
    rows = []
    for group, value in zip(evaluated, values, strict=True):
        figures = over_seeds(scores := group.scores)
        low, high = figures["mean_interval"] or (None, None)
        row = {"method": group.name, "setting": name, "value": value, "seeds": len(scores)}
        rows.append({**row, "success": figures["mean"], "low": low, "high": high})
    return rows if name is None else sorted(rows, key=lambda row: row["value"])


def _numeric_setting(configurations: Sequence[Configuration]) -> tuple[str | None, list[float | None]]:
    """The one option that differs and its values, if they are numbers; otherwise None, and None for each value."""
    differing = _differing(configurations)
    hours = differing.pop("hours", None)  # they distinguish groups that are otherwise equal
    if not differing and hours is not None:
        differing = {"hours": hours}
    if len(differing) == 1 and not differing.keys() & {"warm_start", "metadata"}:  # a path may be a number
        (name, texts), *_ = differing.items()
        with contextlib.suppress(ValueError):
            values = [float(text) for text in texts]
            if len({*values}) == len(values) and all(map(math.isfinite, values)):
                return name, [*values]
    return None, [None] * len(configurations)


@dataclass(frozen=True, eq=False)
class GroupRoutes:
    """The routes of the runs of a group.

    Module 1 of one seed does not correspond to module 1 of another, so that a mean route over seeds has no meaning. The
    figures here do not depend on the order of modules.

    Attributes:
        group: The runs that differ only in their seeds.
        routes: The routes of each run that has learned routes and can act, by its name.
    """

    group: Group
    routes: Mapping[str, Routes]

    @classmethod
    def of(cls, group: Group, routes: Mapping[str, Routes]) -> "GroupRoutes | None":
        """The routes of a group; None if none of its runs has any."""
        routed = {run.name: routes[run.name] for run in group.runs if run.name in routes}
        routed = {name: found for name, found in routed.items() if found.route is not None}
        return cls(group, routed) if routed else None

    @property
    def topology(self) -> Topology | None:
        """The graph of all runs; None if the graphs differ, which may happen if networks grew."""
        first, *others = (routes.topology for routes in self.routes.values())
        return first if all(other == first for other in others) else None

    @property
    def similarity(self) -> NDArray[np.float64]:
        """The similarity of the routes of each two tasks, with shape ``[runs, tasks, tasks]``."""
        return np.stack([routes.similarity().double().numpy() for routes in self.routes.values()])

    @property
    def sources(self) -> NDArray[np.float64]:
        """The mean number of sources with a weight above 0.01, with shape ``[runs, nodes that read others]``."""
        return np.stack([routes.sources().double().mean(dim=0).numpy() for routes in self.routes.values()])

    @property
    def unread(self) -> NDArray[np.float64]:
        """The share of edges with a weight of at most 0.01, with shape ``[runs, 1]``."""
        shares = []
        for routes in self.routes.values():
            assert routes.route is not None
            assert routes.topology is not None
            weights = routes.topology.to_edges(routes.route.weights)
            shares.append([float((weights <= THRESHOLD).double().mean())])
        return np.array(shares)

    def similarity_rows(self) -> list[dict[str, Any]]:
        """The similarity of each pair of tasks, of each task with all others (no `other`), and of all (no `task`)."""
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
        """The number of sources that each node may read, and that it reads; empty if the graphs of runs differ."""
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
    """The IQM of figures with shape ``[runs, columns]``, and its interval, which is None for one run."""
    figures = over_seeds(table, resamples=RESAMPLES, whole_runs=True)
    low, high = figures["iqm_interval"] or (None, None)
    return {"iqm": figures["iqm"], "low": low, "high": high}
