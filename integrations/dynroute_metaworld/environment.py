"""One task of Meta-World: its goals, its horizon, its state."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task
from numpy.typing import NDArray

__all__ = ["GOALS", "MAX_HORIZON", "STATE_FEATURES", "TaskEnvironment"]

GOALS = ("fixed", "random", "benchmark")
"""Where goals come from. They are the first of the benchmark's; new ones, drawn for each episode; or its 50 in turn."""

STATE_FEATURES = 39
"""The width of an observation without the one-hot."""

MAX_HORIZON = 500
"""Meta-World itself ends an episode there."""

STATE = mujoco.mjtState.mjSTATE_INTEGRATION
PLAIN = (bool, int, float, str, np.generic, np.ndarray, type(None))


class TaskEnvironment:
    """An environment of Meta-World with goals of one kind and a horizon.

    Args:
        name: The task, without "-v3".
        tasks: The goals that the benchmark drew for it.
        goals: Where the goal of an episode comes from, one of :data:`GOALS`.
        horizon: The number of steps of an episode.
        reward_version: "v2" for rewards of at most 10 a step, "v1" for the older ones.
    """

    def __init__(self, name: str, tasks: Sequence[Task], *, goals: str, horizon: int, reward_version: str) -> None:
        self.name, self.tasks, self.goals, self.horizon = name, tasks, goals, horizon
        self.env = ALL_V3_ENVIRONMENTS[f"{name}-v3"](reward_function_version=reward_version)
        self.env.set_task(tasks[0])
        self.steps = 0
        self.success = False
        self.order: list[int] = []
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Seeds what draws goals."""
        self.rng = np.random.default_rng(seed)
        self.env.seed(seed)
        self.order = []

    def reset(self) -> NDArray[np.float32]:
        """Starts an episode with its goal."""
        if self.goals == "benchmark":
            # Every goal comes once before one comes again.
            self.order = self.order or self.rng.permutation(len(self.tasks)).tolist()
            self.env.set_task(self.tasks[self.order.pop()])
        elif self.goals == "random":
            self.env._freeze_rand_vec = False
            self.env.seeded_rand_vec = True
        self.steps, self.success = 0, False
        observation, _ = self.env.reset()
        return observation.astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Takes a step.

        Returns:
            The observation, the reward, whether the horizon is reached, and whether the task is solved at this step.
        """
        observation, reward, _, _, info = self.env.step(action)
        self.steps += 1
        solved = bool(info["success"])
        self.success |= solved
        return observation.astype(np.float32), float(reward), self.steps >= self.horizon, solved

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as plain data and arrays."""
        env = self.env
        integration = np.empty(mujoco.mj_stateSize(env.model, STATE))
        mujoco.mj_getState(env.model, env.data, integration, STATE)
        return {
            "integration": integration,
            # Meta-World moves these two when an episode starts.
            "body_pos": env.model.body_pos.copy(),
            "site_pos": env.model.site_pos.copy(),
            "attributes": {name: value for name, value in vars(env).items() if _is_plain(value)},
            "generator": env.np_random.bit_generator.state,
            "own": {"steps": self.steps, "success": self.success, "order": list(self.order)},
            "own_generator": self.rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`get_state` returned, in an environment of the same task."""
        env = self.env
        env.model.body_pos[:], env.model.site_pos[:] = state["body_pos"], state["site_pos"]
        for name, value in state["attributes"].items():
            if _is_plain(vars(env).get(name)):
                vars(env)[name] = value.copy() if isinstance(value, np.ndarray) else value
        for _ in range(2):  # what follows from the state is computed, which changes where the solver starts next time
            mujoco.mj_setState(env.model, env.data, state["integration"], STATE)
            mujoco.mj_forward(env.model, env.data)
        mujoco.mj_setState(env.model, env.data, state["integration"], STATE)
        env.np_random.bit_generator.state = state["generator"]
        self.steps, self.success, self.order = (state["own"][name] for name in ("steps", "success", "order"))
        self.order = list(self.order)
        self.rng.bit_generator.state = state["own_generator"]

    def close(self) -> None:
        """Frees what the simulator holds."""
        self.env.close()  # type: ignore[no-untyped-call]


def _is_plain(value: Any) -> bool:
    """Whether a value is data of its own, and not a view of the simulator's memory, which follows that by itself."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, np.ndarray):
        base: Any = value
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        return isinstance(base, np.ndarray) and value.dtype != object
    return isinstance(value, PLAIN)
