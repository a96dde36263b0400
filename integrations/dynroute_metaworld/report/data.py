"""Reads the files of a run: its curves, its evaluation, and notes about what is missing."""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynroute_sb3 import DamagedError, latest_checkpoint
from dynroute_sb3.storage import numbered

from ..runs.metrics import read_lines
from ..runs.result import EvaluationResult
from ..runs.run import Run
from ..runs.start import ERRORS

__all__ = [
    "BY_TASK",
    "SHARES",
    "Curve",
    "Metrics",
    "RunData",
    "read_curves",
    "read_run",
    "read_runs",
    "thin",
    "unit_of",
]

LIMIT = 2000
"""The largest number of points of a curve that is drawn or exported."""

FARTHEST = 2**53
"""A line with a step from here on is damaged."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve over steps.

    Attributes:
        steps: The steps of its points.
        values: The values of its points; all are finite.
    """

    steps: Floats
    values: Floats


@dataclass(frozen=True, eq=False)
class Metrics:
    """The curves of a file of metrics.

    Attributes:
        curves: The curves, by the names of the metrics.
        notes: Sentences about what is wrong with the file.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_curves(path: Path, names: Iterable[str], group: str | None = None) -> Metrics:
    """Reads some metrics of a file, line by line.

    Damaged lines are left out and noted; :func:`~dynroute_metaworld.read_metrics` raises an error instead.

    Args:
        path: The file, which may be missing.
        names: The metrics.
        group: A group of which all metrics are read, too, such as "plasticity" for ``plasticity/rank``.
    """
    if not path.exists():
        return Metrics(notes=(f"There is no {path.name}: nothing was logged.",))
    points = {name: (array("d"), array("d")) for name in names}
    gaps = dict.fromkeys(points, 0)
    lines, damaged, notes = 0, 0, []
    for line in read_lines(path):
        entry = line.value or {}
        if not isinstance(step := entry.get("step"), (int, float)) or not 0 <= step < FARTHEST:
            if line.is_cut:
                notes.append(f"The last line of {path.name}, line {line.number}, is cut short and left out.")
                continue
            damaged += 1
            if damaged <= 3:
                notes.append(f"{path.name} is damaged in line {line.number}, which is left out.")
            continue
        lines += 1
        for name in entry if group is not None else ():
            if name not in points and name.startswith(f"{group}/"):
                points[name], gaps[name] = (array("d"), array("d")), 0
        for name in points.keys() & entry.keys():
            if isinstance(value := entry[name], (int, float)) and abs(value) <= sys.float_info.max:
                points[name][0].append(step)
                points[name][1].append(value)
            else:
                gaps[name] += 1
    if damaged > 3:
        notes.append(f"{damaged - 3} more damaged lines of {path.name} are left out.")
    if not lines:
        notes.append(f"{path.name} holds no whole line: nothing was logged.")
    notes += [
        f"{name} was not finite {'once' if count == 1 else f'{count} times'}; those points are left out."
        for name, count in gaps.items()
        if count
    ]
    curves = {name: Curve(np.array(steps), np.array(values)) for name, (steps, values) in points.items() if steps}
    return Metrics(curves, tuple(notes))


def thin(steps: Floats, values: Floats, limit: int = LIMIT) -> tuple[Floats, Floats]:
    """Thins a curve to at most `limit` points, evenly over its steps.

    The steps are divided into ``limit // 4`` equal spans. Each keeps its first, last, lowest and highest point: no
    point is interpolated, and neither ends nor extremes are lost.

    Example:
        >>> import numpy as np
        >>> from dynroute_metaworld.report.data import thin
        >>> steps, values = thin(np.arange(1000.0), np.sin(np.arange(1000.0)), limit=100)
        >>> len(steps) <= 100, steps[0], steps[-1]
        (True, np.float64(0.0), np.float64(999.0))
    """
    if len(steps) <= limit:
        return steps, values
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    spans = limit // 4
    width = (steps[-1] - steps[0]) / spans or 1.0
    span = np.minimum(((steps - steps[0]) / width).astype(int), spans - 1)
    first = np.flatnonzero(np.append(True, span[1:] != span[:-1]))
    last = np.append(first[1:], len(steps)) - 1
    ranked = np.lexsort((values, span))  # in each span, from the lowest to the highest
    kept = np.unique(np.concatenate([first, last, ranked[first], ranked[last]]))
    return steps[kept], values[kept]


BY_TASK = {
    "evaluation": "success in evaluations, deterministic actions",
    "success": "success of the newest episodes, sampled actions",
    "evaluation_return": "return in evaluations",
    "return": "return of the newest episodes",
    "modules_used": "modules used, the output among them",
    "route_temperature": "route temperature τ",
    "ent_coef": "coefficient of entropy",
    "critic_loss": "loss of the critics",
    "outside_range": "share of the critics' targets outside of their range",
    "cloning_error": "error of cloning on held-out episodes",
}
"""The metrics that are shown, with titles. Each has a curve for each task, such as ``success/reach``."""

OF_CRITICS = {
    "dormant": "share of dormant units in the critics",
    "rank": "effective rank of the critics' features",
}
"""The measures of plasticity that critics without routes have, too, with titles."""

SHARES = ("evaluation", "success", "outside_range")
"""The metrics that are shares, from 0 to 1."""


def unit_of(metric: str) -> str:
    """The unit of the horizontal axis for a metric.

    Example:
        >>> from dynroute_metaworld.report.data import unit_of
        >>> unit_of("success"), unit_of("cloning_error")
        ('steps of each task', 'updates of cloning')
    """
    return "updates of cloning" if metric == "cloning_error" else "steps of each task"


@dataclass(frozen=True, eq=False)
class RunData:
    """The curves, the evaluation and the sessions of a run, read from its files.

    Attributes:
        run: The run.
        name: The name of the run in tables and figures.
        metrics: The curves, over the steps of each task.
        result: The final evaluation, or else the newest one.
        sessions: The record of each start of the run.
        notes: Sentences about what is missing or wrong.
        is_finished: Whether the evaluation is the final one.
    """

    run: Run
    name: str
    metrics: Metrics
    result: EvaluationResult | None
    sessions: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    is_finished: bool

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the one-hot."""
        return self.run.configuration.tasks

    @property
    def minutes(self) -> float | None:
        """The minutes of all sessions together; None if one was killed or still runs."""
        return self.run.minutes

    @property
    def last_step(self) -> float | None:
        """The last step of each task that the run logged; None if it logged no success or return."""
        curves = [*self.curves("success").values(), *self.curves("return").values()]
        return max((float(curve.steps[-1]) for curve in curves), default=None)

    @property
    def time_was_up(self) -> bool:
        """Whether the hours ended before the steps, so that the run has its last evaluation and lacks a log."""
        own, last = self.run.configuration, self.last_step
        if own.hours is None or own.steps is None or last is None:
            return False
        return last <= own.steps - own.log_every and (self.run.evaluations / "final.json").exists()

    def curves(self, metric: str) -> dict[str, Curve]:
        """The curves of a metric of :data:`BY_TASK`, by task, with all their points; tasks without one are left out."""
        found = {task: self.metrics.curves.get(f"{metric}/{task}") for task in self.tasks}
        return {task: curve for task, curve in found.items() if curve is not None}

    def drawn(self, metric: str, limit: int = LIMIT) -> dict[str, Curve]:
        """The same curves with at most `limit` points each, see :func:`thin`."""
        return {task: Curve(*thin(curve.steps, curve.values, limit)) for task, curve in self.curves(metric).items()}

    def plasticity(self, limit: int = LIMIT) -> dict[str, Curve]:
        """Measures of the critics, such as ``plasticity/rank``, thinned; a run has them with ``--plasticity-every``."""
        curves = {name: curve for name, curve in self.metrics.curves.items() if name.startswith("plasticity/")}
        return {name: Curve(*thin(curve.steps, curve.values, limit)) for name, curve in curves.items()}

    def of_critics(self, limit: int = LIMIT) -> dict[str, dict[str, Curve]]:
        """The same measures by the titles of their panels; the flow through nodes by the names of the nodes, too."""
        panels: dict[str, dict[str, Curve]] = {}
        for name, curve in self.plasticity(limit).items():
            place, _, node = name.removeprefix("plasticity/flow_").rpartition("_")
            if place.replace("_", "").isdecimal() and node.isdecimal():
                title = f"mean flow through the nodes of critic {place.replace('_', ', routed layer ')}"
                panels.setdefault(title, {})[f"node {node}"] = curve
            elif (measure := name.removeprefix("plasticity/")) in OF_CRITICS:
                panels[OF_CRITICS[measure]] = {"mean over critics": curve}
        return panels

    def all_drawn(self) -> Iterator[tuple[str, str, Curve]]:
        """Metric, task and thinned curve of all curves; measures of critics have no task, and an empty name for it."""
        for metric in BY_TASK:
            for task, curve in self.drawn(metric).items():
                yield metric, task, curve
        for name, curve in self.plasticity().items():
            yield name, "", curve


def read_run(folder: str | Path, *, name: str | None = None) -> RunData:
    """Reads the files of a run and notes which are missing or damaged; ``config.json`` must be valid."""
    run = Run.open(folder)
    tasks = run.configuration.tasks
    notes: list[str] = []
    names = [f"{metric}/{task}" for metric in BY_TASK if not metric.startswith("evaluation") for task in tasks]
    metrics = read_curves(run.metrics, names, "plasticity")
    if run.configuration.steps:  # a run that only imitates logs no metrics
        notes += metrics.notes
    evaluations = _evaluations(run, notes)
    curves = {metric: Curve(curve.steps / len(tasks), curve.values) for metric, curve in metrics.curves.items()}
    curves |= _evaluation_curves(run, evaluations)
    curves |= _cloning_curves(run)
    final = _final(run, notes)
    result = _newest(run, evaluations, notes) if final is None else final
    if latest_checkpoint(run.checkpoints) is None:
        notes.append("There is no checkpoint, and so there are neither routes nor frames.")
    return RunData(
        run,
        name or run.folder.resolve().name,
        Metrics(curves, metrics.notes),
        result,
        _sessions(run, notes),
        tuple(notes),
        final is not None,
    )


def read_runs(folders: Sequence[str | Path]) -> list[RunData]:
    """Reads several runs, each once; their names are the shortest ends of their paths that differ."""
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [read_run(path, name="/".join(path.parts[-depth:])) for path in paths]


def _evaluations(run: Run, notes: list[str]) -> dict[int, EvaluationResult]:
    """The evaluations during training, by steps of all tasks."""
    files = numbered(run.evaluations, "step", ".json").items()
    return {number: result for number, path in files if (result := _load(run, path, notes)) is not None}


def _load(run: Run, path: Path, notes: list[str]) -> EvaluationResult | None:
    try:
        result = EvaluationResult.load(path)
    except DamagedError:
        notes.append(f"{path.parent.name}/{path.name} is damaged and left out.")
        return None
    if result.tasks != run.configuration.tasks:
        notes.append(f"{path.parent.name}/{path.name} is of other tasks and left out.")
        return None
    return result


def _evaluation_curves(run: Run, evaluations: dict[int, EvaluationResult]) -> dict[str, Curve]:
    tasks = run.configuration.tasks
    if not evaluations:
        return {}
    steps = np.array([step / len(tasks) for step in evaluations])
    rates = np.array([result.success_rates for result in evaluations.values()])
    returns = np.array([result.returns.mean(axis=1) for result in evaluations.values()])
    return {
        f"{metric}/{task}": Curve(steps, values[:, i])
        for metric, values in (("evaluation", rates), ("evaluation_return", returns))
        for i, task in enumerate(tasks)
    }


def _cloning_curves(run: Run) -> dict[str, Curve]:
    """The errors of cloning; the updates of a round of DAgger are counted on from the round before."""
    names = [f"cloning_error/{task}" for task in run.configuration.tasks]
    curves: dict[str, Curve] = {}
    for folder in numbered(run.folder / "cloning", "round").values():
        for name, curve in read_curves(folder / ERRORS, names).curves.items():
            before = curves.get(name, Curve(np.zeros(0), np.zeros(0)))
            start = before.steps[-1] if len(before.steps) else 0.0
            curves[name] = Curve(
                np.concatenate([before.steps, start + curve.steps]), np.concatenate([before.values, curve.values])
            )
    return curves


def _final(run: Run, notes: list[str]) -> EvaluationResult | None:
    path = run.evaluations / "final.json"
    return _load(run, path, notes) if path.exists() else None


def _newest(run: Run, evaluations: dict[int, EvaluationResult], notes: list[str]) -> EvaluationResult | None:
    """The last evaluation during training."""
    if not evaluations:
        notes.append("There is no evaluation yet: success is unknown.")
        return None
    step, result = list(evaluations.items())[-1]
    each = step // len(run.configuration.tasks)
    notes.append(f"There is no final evaluation: success is from the evaluation at {each:,} steps of each task.")
    return result


def _sessions(run: Run, notes: list[str]) -> tuple[dict[str, Any], ...]:
    sessions, damaged = run.read_sessions()
    notes += [f"sessions.jsonl is damaged in line {number}, which is left out." for number in damaged]
    if not sessions:
        notes.append("There is no sessions.jsonl: the machine of the run is unknown.")
    return tuple(sessions)
