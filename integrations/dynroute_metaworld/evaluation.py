"""Success rates of a policy on Meta-World, by one protocol whose every choice is told with the result."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import nn

import dynroute
from dynroute_sb3 import DamagedError, MultiTaskPolicy
from dynroute_sb3.randomness import random_state, set_random_state

from .environment import STATE_FEATURES
from .intervals import wilson_interval
from .scripted import ScriptedPolicy
from .tasks import BENCHMARKS, task_names
from .vec_env import MetaWorldVecEnv, make_envs

__all__ = ["SEEDS", "EvaluationResult", "evaluate"]

SEEDS = {"random": 1_000_000, "fixed": 0, "benchmark": 0}
"""The seed where none is given. Random goals are then none that training draws with the small seeds that people take;
fixed goals and those of the benchmark belong to the problem, and are those that `make_envs` trains on by default."""

FORMAT = "dynroute evaluation 1"
ARRAYS: dict[str, Any] = {
    "first_success": np.int64,
    "success_last": np.bool_,
    "returns": np.float64,
    "lengths": np.int64,
    "goal_positions": np.float32,
    "modules_used": np.float64,
}

Act = Callable[[NDArray[Any], Any, NDArray[np.bool_]], tuple[NDArray[Any], Any, NDArray[Any] | None]]


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What every episode of an evaluation came to, and how it was evaluated.

    Arrays have the shape ``[tasks, episodes]``.

    Attributes:
        benchmark: The benchmark, or the tasks if it was a list of them.
        tasks: The tasks, in the order of the one-hot.
        goals: Where goals came from.
        horizon: The number of steps of an episode.
        seed: What the goals depend on.
        reward_version: The version of the reward.
        criterion: Which steps count as a success, "any" or "last".
        versions: The versions of dynroute, metaworld and mujoco.
        first_success: After how many steps the task was first solved, -1 if never. An episode with a shorter horizon and
            the same goal is the start of this one, so that ``(first_success > 0) & (first_success <= 150)`` is its
            success at any step.
        success_last: Whether the task was solved at the last step.
        returns: The sums of rewards.
        lengths: The numbers of steps.
        goal_positions: The goals as observations tell them, with shape ``[tasks, episodes, 3]``.
        modules_used: The number of modules that the route reached, a mean over steps; None for policies of which it is not
            known or which have no routes.
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
        return self.returns.shape[1]

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
        return self.success.mean(axis=1)

    @property
    def mean_success(self) -> float:
        """The mean of the success rates."""
        return float(self.success_rates.mean())

    def intervals(self, confidence: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lower and upper ends of :func:`wilson_interval` for the success rate of each task."""
        return wilson_interval(self.success.sum(axis=1), self.episodes, confidence)

    def table(self, confidence: float = 0.95) -> str:
        """A line that says how it was evaluated, and a row for each task and for the mean over them.

        The first success is the mean over the episodes that have one.
        """
        rows = [["task", "success", f"{100 * confidence:g} % interval", "return", "first success", "modules used"]]
        for i, (name, low, high) in enumerate(zip(self.tasks, *self.intervals(confidence), strict=True)):
            rows.append([name, f"{self.success_rates[i]:.2f}", f"{low:.2f} to {high:.2f}", *self._cells(i)])
        rows.append(["mean", f"{self.mean_success:.3f}", "", *self._cells(slice(None))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
        ]
        return "\n".join([self._settings(), *lines])

    def __str__(self) -> str:
        return self.table()

    def save(self, path: str | Path) -> None:
        """Writes everything to a JSON file, which appears whole or not at all."""
        path = Path(path)
        stored = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        }
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps({"format": FORMAT, **stored}, allow_nan=False), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "EvaluationResult":
        """Reads what :meth:`save` wrote; a file that is damaged or holds something else is refused by name."""
        try:
            stored = json.loads(Path(path).read_bytes())
            if (told := stored.pop("format", None)) != FORMAT:
                raise ValueError(f"its format is {told!r}")
            for name, dtype in ARRAYS.items():
                if stored[name] is not None:
                    stored[name] = np.array(stored[name], dtype=dtype)
            result = cls(**{**stored, "tasks": tuple(stored["tasks"])})
            shape = (len(result.tasks), result.episodes)
            for name, rest in [*dict.fromkeys(ARRAYS, ()).items(), ("goal_positions", (3,))]:
                ...
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path} must be a file that EvaluationResult.save wrote, got: {error}.") from error
        return result
