"""The layout of observations: a state followed by the one-hot of its task. No other file relies on it."""

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from dynroute.arguments import check_count, shown

__all__ = ["OneHotTask", "TaskSpace", "check_observation_space", "count_tasks"]


class TaskSpace:
    """Splits observations into states and tasks.

    Args:
        observation_space: The space of the observations, whose last `num_tasks` numbers are the one-hot of the task.
        num_tasks: The number of tasks.

    Example:
        >>> space = TaskSpace(spaces.Box(-1, 1, (39 + 10,)), num_tasks=10)
        >>> space.state_features
        39
    """

    def __init__(self, observation_space: spaces.Space[Any], num_tasks: int) -> None:
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, (int, np.integer)) or num_tasks < 1:
            raise ValueError(f"`num_tasks` must be a positive integer, got {num_tasks!r}.")
        check_observation_space(observation_space)
        assert observation_space.shape is not None
        if observation_space.shape[0] <= num_tasks:
            raise ValueError(
                f"an observation must hold a state and the one-hot of one of {num_tasks} tasks, got vectors of "
                f"{observation_space.shape[0]} numbers; is the one-hot missing (see OneHotTask), or `num_tasks` wrong?"
            )
        self.num_tasks = int(num_tasks)
        self.state_features: int = observation_space.shape[0] - self.num_tasks

    def split(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states and the one-hots of observations with shape ``[*, state_features + num_tasks]``."""
        return observations[..., : self.state_features], observations[..., self.state_features :]

    def join(self, states: Tensor, tasks: Tensor) -> Tensor:
        """Joins states and task ids to observations."""
        one_hots = torch.eye(self.num_tasks, dtype=states.dtype, device=states.device)[tasks]
        return torch.cat([states, one_hots], dim=-1)

    def tasks(self, observations: NDArray[Any], *, name: str = "the observation") -> NDArray[np.int64]:
        """Returns the task of each observation; raises an error if one does not end with a one-hot."""
        if observations.shape[-1:] != (self.state_features + self.num_tasks,):
            raise ValueError(
                f"{name} must hold {self.state_features} numbers of state and the one-hot of one of "
                f"{self.num_tasks} tasks, got shape {observations.shape}."
            )
        rows = observations.reshape(-1, observations.shape[-1])[:, self.state_features :]
        ones = rows == 1
        wrong = (ones.sum(axis=1) != 1) | ((rows != 0).sum(axis=1) != 1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"{name} must end with the one-hot of one of {self.num_tasks} tasks, row {i} ends with "
                f"{rows[i].tolist()}; is the one-hot missing (see OneHotTask), normalized, or `num_tasks` wrong?"
            )
        tasks: NDArray[np.int64] = ones.argmax(axis=1)
        return tasks

    def check(self, observations: NDArray[Any], *, name: str) -> None:
        """Raises an error unless observations end with a one-hot and are finite."""
        tasks = self.tasks(observations, name=name)
        wrong = ~np.isfinite(observations).all(axis=-1).reshape(-1)
        if wrong.any():
            i = int(wrong.argmax())
            row = observations.reshape(-1, observations.shape[-1])[i].tolist()
            raise ValueError(f"{name} must be finite, row {i} of task {tasks[i]} is {row}.")

    def read(self, observation: Any) -> Any:
        """Returns an observation for `predict`, a list or a tensor as an array; raises an error if it is invalid."""
        if isinstance(observation, (list, Tensor)):
            observation = np.asarray(observation) if isinstance(observation, list) else observation.numpy(force=True)
        if isinstance(observation, np.ndarray):  # SB3 refuses others
            self.check(observation, name="the observation")
        return observation


def check_observation_space(space: spaces.Space[Any]) -> None:
    """Raises an error unless observations are vectors."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            "the observation space must be a Box of vectors that end with the one-hot of the task, "
            f"got {space}; flatten them with gymnasium.wrappers.FlattenObservation, and wrap that in OneHotTask."
        )


class OneHotTask(gym.Wrapper[NDArray[np.float32], Any, NDArray[Any], Any]):
    """Appends the one-hot of its task to the observations of an environment.

    Args:
        env: An environment whose observations are vectors.
        task: The index of its task.
        num_tasks: The number of tasks.

    Example:
        >>> env = OneHotTask(gym.make("Pendulum-v1"), task=1, num_tasks=3)
        >>> env.reset(seed=0)[0][-3:]
        array([0., 1., 0.], dtype=float32)
    """

    def __init__(self, env: gym.Env[Any, Any], task: int, num_tasks: int) -> None:
        super().__init__(env)
        check_count("num_tasks", num_tasks, at_least=1)
        if isinstance(task, bool) or not isinstance(task, (int, np.integer)):
            raise TypeError(f"`task` must be an integer, got {shown(task)}.")
        if not 0 <= task < num_tasks:
            raise ValueError(f"`task` must be in 0..{num_tasks - 1}, got {task}.")
        inner = env.observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise ValueError(f"`env` must have vectors as observations, got {inner}.")
        self.task, self.num_tasks = task, num_tasks
        self._first_task = int(task)  # for checkpoints: it stays where a subclass changes the task with each episode
        low, high = (
            np.concatenate([bound, np.full(num_tasks, end)]) for bound, end in ((inner.low, 0), (inner.high, 1))
        )
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode of the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_task(observation), info

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a step of the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_task(observation), reward, terminated, truncated, info

    def _with_task(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        one_hot = np.zeros(self.num_tasks, dtype=np.float32)
        one_hot[self.task] = 1
        return np.concatenate([observation.astype(np.float32), one_hot])


def count_tasks(
    env: VecEnv | None, num_tasks: int | None, *, policy_kwargs: dict[str, Any], of: str = "MultiTaskSAC"
) -> int:
    """Determines the number of tasks from the arguments and the attribute `num_tasks` of the environments."""
    sources: dict[str, Sequence[int | None]] = {
        "`num_tasks`": [num_tasks],
        "`num_tasks` of `policy_kwargs`": [policy_kwargs.get("num_tasks")],
        "`num_tasks` of the environments": env.get_attr("num_tasks") if env and env.has_attr("num_tasks") else [],
    }
    counts = {name: {n for n in values if n is not None} for name, values in sources.items()}
    distinct = set().union(*counts.values())
    if not distinct:
        raise ValueError(
            f"`num_tasks` must say how many tasks there are: pass `num_tasks=` to {of}, or let the environments have "
            "an attribute `num_tasks` (OneHotTask has it)."
        )
    if len(distinct) > 1:
        said = ", ".join(f"{name} says {' and '.join(map(str, sorted(n)))}" for name, n in counts.items() if n)
        raise ValueError(f"the number of tasks must be the same everywhere, but {said}.")
    (count,) = distinct
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"`num_tasks` must be a positive integer, got {count!r}.")
    return int(count)
