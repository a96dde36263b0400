"""The scripted policies of Meta-World as one policy for several tasks."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from dynroute_command.choices import task_names
from dynroute_sb3 import TaskSpace

from .environment import STATE_FEATURES

__all__ = ["ScriptedPolicy"]


class ScriptedPolicy:
    """Meta-World's own policies, written by hand for each task, with the `predict` of SB3.

    It does not learn, and knows the meaning of each number of an observation. It shows what can be reached within a
    horizon, tests environments and evaluation, and gives demonstrations.

    Args:
        benchmark: The tasks in the order of the one-hot: "MT10", "MT25", "MT50", a task, or a list of tasks.

    Attributes:
        task_names: The tasks.
        observation_space: The space of the observations, which end with the one-hot.

    Example:
        >>> import numpy as np
        >>>
        >>> policy = ScriptedPolicy(["reach", "window-open"])
        >>> actions, _ = policy.predict(np.eye(2, 39 + 2, k=39, dtype=np.float32))
        >>> actions.shape, actions.dtype
        ((2, 4), dtype('float32'))
    """

    def __init__(self, benchmark: str | Sequence[str]) -> None:
        self.task_names = task_names(benchmark)
        kinds: dict[str, Any] = ENV_POLICY_MAP
        self.policies = [kinds[f"{name}-v3"]() for name in self.task_names]
        width = STATE_FEATURES + len(self.task_names)
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.task_space = TaskSpace(self.observation_space, len(self.task_names))

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], None]:
        """The actions for observations that end with the one-hot, clipped into -1..1 as Meta-World does."""
        observations = np.asarray(observation)
        tasks = self.task_space.tasks(observations, name="the observation")
        states = observations.reshape(len(tasks), -1)[:, :STATE_FEATURES].astype(np.float64)
        with warnings.catch_warnings():
            # The scripts warn of actions beyond 1, although they are written to be clipped.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high", category=UserWarning)
            actions = [self.policies[task].get_action(row) for task, row in zip(tasks, states, strict=True)]
        clipped = np.clip(np.array(actions, dtype=np.float32), -1, 1)
        return clipped.reshape(*observations.shape[:-1], -1), None
