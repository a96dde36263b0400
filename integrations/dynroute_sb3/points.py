"""A tiny multi-task problem for tests and examples: a point that is pushed to the goal of its task."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .observation import OneHotTask

__all__ = ["PointTask", "point_tasks"]

GOALS = ((0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7))


class PointTask(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A point in the square [-1, 1]² with position and velocity, whose goal is not part of the state.

    An action pushes it, and the reward is minus the distance to the goal. An episode takes 20 steps and is a success if
    the point ends within 0.2 of the goal. The goals of four tasks lie in four directions, so the right action for one
    task is wrong for the others. The state can be saved and restored.

    Args:
        goal: The goal.
        horizon: The number of steps of an episode.

    Example:
        >>> env = PointTask(goal=(0.7, 0.0))
        >>> state, _ = env.reset(seed=0)
        >>> state, reward, terminated, truncated, info = env.step(env.action_space.high)
        >>> state.shape, truncated, info
        ((4,), False, {'is_success': False})
    """

    def __init__(self, goal: tuple[float, float], horizon: int = 20) -> None:
        self.goal = np.asarray(goal)
        self.horizon = horizon
        self.observation_space = spaces.Box(-2, 2, (4,), dtype=np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), dtype=np.float32)
        self.position: NDArray[np.float64] = np.zeros(2)
        self.velocity: NDArray[np.float64] = np.zeros(2)
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Puts the point near the middle, at rest."""
        super().reset(seed=seed)
        self.position, self.velocity, self.steps = self.np_random.uniform(-0.2, 0.2, size=2), np.zeros(2), 0
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pushes the point."""
        self.velocity = 0.5 * self.velocity + 0.15 * np.clip(action, -1, 1)
        self.position = np.clip(self.position + self.velocity, -1, 1)
        self.steps += 1
        distance = float(np.linalg.norm(self.position - self.goal))
        return self._observation(), -distance, False, self.steps >= self.horizon, {"is_success": distance < 0.2}

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on, as plain data and arrays."""
        generator = self.np_random.bit_generator.state
        return {"position": self.position, "velocity": self.velocity, "steps": self.steps, "generator": generator}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state returned by :meth:`get_state`."""
        self.position, self.velocity, self.steps = state["position"].copy(), state["velocity"].copy(), state["steps"]
        self.np_random.bit_generator.state = state["generator"]

    def _observation(self) -> NDArray[np.float32]:
        return np.concatenate([self.position, self.velocity]).astype(np.float32)


def point_tasks(num_tasks: int = 4, *, one_hot: bool = True) -> list[Any]:
    """Returns a function for each task that makes its environment, for DummyVecEnv or SubprocVecEnv.

    Args:
        num_tasks: The number of tasks, at most four.
        one_hot: Whether observations end with the one-hot of the task.

    Example:
        >>> env = DummyVecEnv(point_tasks())
        >>> env.reset().shape
        (4, 8)
    """
    if not 1 <= num_tasks <= len(GOALS):
        raise ValueError(f"`num_tasks` must be in 1..{len(GOALS)}, got {num_tasks}.")

    def make(task: int) -> gym.Env[Any, Any]:
        env = PointTask(GOALS[task])
        return OneHotTask(env, task, num_tasks) if one_hot else env

    return [lambda task=task: make(task) for task in range(num_tasks)]
