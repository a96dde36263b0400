"""The result of an evaluation, as a table, as arrays and as a file."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynroute.files import writing_file
from dynroute_sb3 import DamagedError

from .intervals import wilson_interval

__all__ = ["ARRAYS", "EvaluationResult", "format_table"]

ARRAYS: dict[str, Any] = {
    "first_success": np.int64,
    "success_last": np.bool_,
    "returns": np.float64,
    "lengths": np.int64,
    "goal_positions": np.float32,
    "modules_used": np.float64,
}
"""The arrays of a result, and their types."""

FORMAT = "dynroute evaluation 1"
WHEN = {"any": "at any step", "last": "at the last step"}
SETTINGS: dict[str, type] = {
    **dict.fromkeys(("benchmark", "goals", "reward_version", "criterion"), str),
    **dict.fromkeys(("horizon", "seed"), int),
    "tasks": list,
    "versions": dict,
}


GOALS_OF_A_TASK = {"fixed": 1, "benchmark": 50}
"""The number of goals of each task, by the kind of goals; random goals are all different."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The results of all episodes of an evaluation, and its settings.

    Arrays have the shape ``[tasks, episodes]``.

    Attributes:
        benchmark: The benchmark, or the tasks if it was a list of them.
        tasks: The tasks, in the order of the one-hot.
        goals: Where goals came from.
        horizon: The number of steps of an episode.
        seed: The seed of the goals.
        reward_version: The version of the reward.
        criterion: Which steps count as a success, "any" or "last".
        versions: The versions of dynroute, metaworld and mujoco.
        first_success: After how many steps the task was first solved, -1 if never. An episode with a shorter horizon
            and the same goal is the start of this one, so that ``(first_success > 0) & (first_success <= 150)`` is
            its success at any step.
        success_last: Whether the task was solved at the last step.
        returns: The sums of rewards.
        lengths: The numbers of steps.
        goal_positions: The goals in the observations, with shape ``[tasks, episodes, 3]``. In bin-picking, hammer and
            sweep-into the goal is always the same, and the positions of objects are drawn.
        modules_used: The mean number of modules on the route, the output among them, over the steps; None if the
            policy has no routes or does not return them.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/result.json"
        >>> evaluate("scripted", "reach", horizon=100, episodes=2).save(path)
        >>> EvaluationResult.load(path).success_rates
        array([1.])
    """

    benchmark: str
    tasks: tuple[str, ...]
    goals: str
    horizon: int
    seed: int
    reward_version: str
    criterion: str
    versions: dict[str, str]
    first_success: NDArray[np.int64]
    success_last: NDArray[np.bool_]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    goal_positions: NDArray[np.float32]
    modules_used: NDArray[np.float64] | None

    @property
    def episodes(self) -> int:
        """The number of episodes of each task."""
        return len(self.returns[0])

    @property
    def success_any(self) -> NDArray[np.bool_]:
        """Whether the task was solved at any step of the episode."""
        return self.first_success > 0

    @property
    def success(self) -> NDArray[np.bool_]:
        """Whether an episode is a success by the criterion."""
        return self.success_any if self.criterion == "any" else self.success_last

    @property
    def success_rates(self) -> NDArray[np.float64]:
        """The success rate of each task."""
        rates: NDArray[np.float64] = self.success.mean(axis=1)
        return rates

    @property
    def mean_success(self) -> float:
        """The mean of the success rates."""
        return float(self.success_rates.mean())

    def intervals(self, confidence: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lower and upper ends of :func:`wilson_interval` for the success rate of each task.

        Episodes that repeat a goal do not make an interval narrower: a benchmark has 50 goals of each task, and fixed
        goals are one.
        """
        different = min(self.episodes, GOALS_OF_A_TASK.get(self.goals, self.episodes))
        return wilson_interval(np.rint(different * self.success_rates), different, confidence)

    def table(self, confidence: float = 0.95) -> str:
        """The settings in a line, and a table with a row for each task and a row for their mean.

        The first success is a mean over the episodes that succeed at any step.
        """

        def show_interval(low: float, high: float) -> str:
            # With a fixed goal all episodes are equal: there is no interval.
            return "-" if self.goals == "fixed" else f"{low:.2f} to {high:.2f}"

        rows = [["task", "success", f"{100 * confidence:g} % interval", "return", "first success", "modules used"]]
        for i, (name, low, high) in enumerate(zip(self.tasks, *self.intervals(confidence), strict=True)):
            rows.append([name, f"{self.success_rates[i]:.2f}", show_interval(low, high), *self._cells(i)])
        rows.append(["mean", f"{self.mean_success:.3f}", "", *self._cells(slice(None))])
        return f"{self._settings()}\n{format_table(rows)}"

    def __str__(self) -> str:
        return self.table()

    def save(self, path: str | Path) -> None:
        """Writes the result to a JSON file, whole or not at all."""
        stored = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        }
        with writing_file(Path(path)) as part:
            part.write_text(json.dumps({"format": FORMAT, **stored}, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "EvaluationResult":
        """Reads a file that :meth:`save` wrote; raises an error that names the file if it is damaged."""
        try:
            return _restored(json.loads(Path(path).read_bytes()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise DamagedError(
                f"`path` must be a file that EvaluationResult.save wrote, got {path}: not one, or damaged ({error!r})."
            ) from error

    def _settings(self) -> str:
        """The settings in a line."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        episodes = f"{self.episodes} episode{'s' * (self.episodes > 1)} a task"
        return (
            f"{self.benchmark}, {self.goals} goals, horizon {self.horizon}, success {WHEN[self.criterion]}, "
            f"{episodes}, seed {self.seed}, reward {self.reward_version} ({versions})"
        )

    def _cells(self, rows: int | slice) -> list[str]:
        """The cells of a row of the table after the success."""
        first, solved = self.first_success[rows], self.success_any[rows]
        return [
            f"{self.returns[rows].mean():.1f}",
            f"{first[solved].mean():.0f}" if solved.any() else "-",
            "-" if self.modules_used is None else f"{self.modules_used[rows].mean():.2f}",
        ]


def _restored(stored: dict[str, Any]) -> EvaluationResult:
    """The result that was stored as JSON."""
    if (form := stored.pop("format", None)) != FORMAT:
        raise ValueError(f"its format is {form!r} and not {FORMAT!r}")
    for name, kind in SETTINGS.items():
        if not isinstance(stored[name], kind) or (name == "criterion" and stored[name] not in WHEN):
            raise ValueError(f"{name} is {stored[name]!r}")
    shape = (len(stored["tasks"]), len(stored["returns"][0]))
    for name, dtype in ARRAYS.items():
        if name == "modules_used" and stored[name] is None:
            continue
        numbers = np.array(stored[name])
        stored[name] = numbers.astype(dtype)
        if not np.array_equal(stored[name], numbers):  # for instance NaN
            raise ValueError(f"{name} holds {numbers[stored[name] != numbers].flat[0]!r}")
        expected = (*shape, 3) if name == "goal_positions" else shape
        if stored[name].shape != expected:
            raise ValueError(f"{name} has shape {stored[name].shape} and not {expected}")
    return EvaluationResult(**{**stored, "tasks": tuple(stored["tasks"])})


def format_table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    """Formats rows as a text table; `align` aligns all columns but the first.

    Example:
        >>> from dynroute_metaworld.runs.result import format_table
        >>> print(format_table([["task", "success"], ["reach", "1.00"]]))
        task   success
        reach     1.00
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])]).rstrip() for row in rows)
    return "\n".join(lines)
