"""What the files of a run tell, and in plain sentences what they do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynroute_sb3 import DamagedError, latest_checkpoint

from ..runs.result import EvaluationResult
from ..runs.run import Run
from ..runs.start import ERRORS
from .series import LIMIT, Curve, Metrics, read_curves

__all__ = ["BY_TASK", "SHARES", "Evidence", "gather", "gather_all", "unit_of"]

BY_TASK = {
    "evaluation": "success in evaluations, along the best routes",
    "success": "success of the newest episodes, along sampled routes",
    "evaluation_return": "return in evaluations",
    "return": "return of the newest episodes",
    "modules_used": "modules used, the output among them",
    "route_temperature": "route temperature τ",
    "ent_coef": "coefficient of entropy",
    "critic_loss": "loss of the critics",
    "cloning_error": "error of cloning on held-out episodes",
}
"""The metrics that are looked at, with titles. Each has a curve for each task, such as ``success/reach``."""

SHARES = ("evaluation", "success")
"""Those of them that are shares of 1."""


def unit_of(metric: str) -> str:
    """What the curves of a metric go over.

    Example:
        >>> from dynroute_metaworld.report.evidence import unit_of
        >>> unit_of("success"), unit_of("cloning_error")
        ('steps of each task', 'updates of cloning')
    """
    return "updates of cloning" if metric == "cloning_error" else "steps of each task"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the files of a run tell.

    Attributes:
        run: The run.
        name: What it is called among others.
        metrics: The curves, over the steps of each task.
        result: The newest evaluation, that at the end if there is one.
        sessions: What was noted each time the run was started.
        notes: What is missing or wrong, in sentences.
    """

    run: Run
    name: str
    metrics: Metrics
    result: EvaluationResult | None
    sessions: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the one-hot."""
        return self.run.configuration.tasks

    @property
    def minutes(self) -> float | None:
        """How long it took; None where it was killed, or goes on now."""
        return self.run.minutes

    def curves(self, metric: str) -> dict[str, Curve]:
        """The curves of a metric of :data:`BY_TASK`, by task; tasks without one are left out."""
        found = {task: self.metrics.curves.get(f"{metric}/{task}") for task in self.tasks}
        return {task: curve for task, curve in found.items() if curve is not None}


def gather(folder: str | Path, *, name: str | None = None, limit: int = LIMIT) -> Evidence:
    """Reads the files of a run; what is missing or damaged is noted, except for ``config.json``.

    Args:
        folder: The directory of the run.
        name: What to call it; the name of the directory if None.
        limit: The largest number of points of a curve.
    """
    run = Run.open(folder)
    tasks = run.configuration.tasks
    notes: list[str] = []
    names = [f"{metric}/{task}" for metric in BY_TASK if not metric.startswith("evaluation") for task in tasks]
    metrics = read_curves(run.metrics, names, limit)
    if run.configuration.steps:  # imitation alone logs nothing else
        notes += metrics.notes
    evaluations = _evaluations(run, notes)
    curves = {metric: Curve(curve.steps / len(tasks), curve.values) for metric, curve in metrics.curves.items()}
    curves |= _evaluation_curves(run, evaluations)
    curves |= _cloning_curves(run, limit)
    result = _newest(run, evaluations, notes)
    if result is not None and (
        never := [task for task, rate in zip(tasks, result.success_rates, strict=True) if not rate]
    ):
        count = "the one episode" if result.episodes == 1 else f"{result.episodes} episodes"
        notes.append(f"Never solved in {count} of the evaluation: {', '.join(never)}.")
    if latest_checkpoint(run.checkpoints) is None:
        notes.append("There is no checkpoint: no policy can act, so that there are neither routes nor frames.")
    return Evidence(
        run,
        name or run.folder.resolve().name,
        Metrics(curves, metrics.notes),
        result,
        _sessions(run, notes),
        tuple(notes),
    )


def gather_all(folders: Sequence[str | Path], *, limit: int = LIMIT) -> list[Evidence]:
    """Reads several runs, each once, and calls them by as much of their paths as tells them apart."""
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [gather(path, name="/".join(path.parts[-depth:]), limit=limit) for path in paths]


def _evaluations(run: Run, notes: list[str]) -> dict[int, EvaluationResult]:
    """The evaluations on the way, by steps of all tasks."""
    found = {}
    for path in run.evaluations.glob("step_*.json"):
        number = path.stem.removeprefix("step_")
        if number.isdecimal() and (result := _load(run, path, notes)) is not None:
            found[int(number)] = result
    return dict(sorted(found.items()))


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


def _cloning_curves(run: Run, limit: int) -> dict[str, Curve]:
    """The errors of cloning; a round of DAgger goes on where the one before ended."""
    names = [f"cloning_error/{task}" for task in run.configuration.tasks]
    rounds = sorted(run.folder.glob("cloning/round_*"), key=lambda path: int(path.name.removeprefix("round_")))
    curves: dict[str, Curve] = {}
    for folder in rounds:
        for name, curve in read_curves(folder / ERRORS, names, limit).curves.items():
            before = curves.get(name, Curve(np.zeros(0), np.zeros(0)))
            start = before.steps[-1] if len(before.steps) else 0.0
            curves[name] = Curve(
                np.concatenate([before.steps, start + curve.steps]), np.concatenate([before.values, curve.values])
            )
    return curves


def _newest(run: Run, evaluations: dict[int, EvaluationResult], notes: list[str]) -> EvaluationResult | None:
    """The evaluation at the end, or the last one on the way."""
    path = run.evaluations / "final.json"
    if path.exists() and (result := _load(run, path, notes)) is not None:
        return result
    if not evaluations:
        notes.append("There is no evaluation yet: success is not known.")
        return None
    step, result = list(evaluations.items())[-1]
    each = step // len(run.configuration.tasks)
    notes.append(
        f"There is no evaluation at the end: success is that of the evaluation at {each:,} steps of each task."
    )
    return result


def _sessions(run: Run, notes: list[str]) -> tuple[dict[str, Any], ...]:
    sessions, damaged = run.read_sessions()
    notes += [f"sessions.jsonl is damaged in line {number}, which is left out." for number in damaged]
    if not sessions:
        notes.append("There is no sessions.jsonl: it is not known where the run was trained.")
    return tuple(sessions)
