"""Episodes of one task of a run, for policies that know only its states."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..envs.environment import STATE_FEATURES, TaskEnvironment
from ..envs.tasks import goals_of
from .configuration import Configuration

__all__ = ["Episodes", "make_task", "run_episodes"]


class Episodes(NamedTuple):
    """What a policy saw, and whether it solved the task."""

    states: NDArray[np.float32]
    """The states before each step, with shape ``[episodes, horizon, 39]``."""

    solved: NDArray[np.bool_]
    """Whether the task was solved at any step, with shape ``[episodes]``."""


def make_task(configuration: Configuration, task: str, seed: int) -> TaskEnvironment:
    """The environment of one task, with the goals that :func:`~dynroute_metaworld.make_envs` gives it.

    Args:
        configuration: The configuration of a run.
        task: The task.
        seed: What the goals depend on.
    """
    row = configuration.tasks.index(task)
    environment = TaskEnvironment(
        task,
        goals_of(configuration.benchmark_or_tasks, seed)[task],
        goals=configuration.goals,
        horizon=configuration.horizon,
        reward_version=configuration.reward_version,
    )
    environment.seed(int(np.random.SeedSequence([seed, row]).generate_state(1)[0]))  # as make_envs does
    return environment


def run_episodes(
    policy: Callable[[Tensor], Tensor],
    configuration: Configuration,
    task: str,
    *,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> Episodes:
    """Lets a policy act in one task; goals are those of an evaluation of the run with the same seed.

    Args:
        policy: Turns states with shape ``[1, 39]`` into actions.
        configuration: The configuration of the run.
        task: The task.
        episodes: The number of episodes; with fixed goals all would be equal, and one is run.
        seed: What the goals depend on.
        progress: Called after each step with the number of steps that are done and that of all.
    """
    episodes = 1 if configuration.goals == "fixed" else episodes
    environment, horizon = make_task(configuration, task, seed), configuration.horizon
    states = np.empty((episodes, horizon, STATE_FEATURES), np.float32)
    solved = np.zeros(episodes, np.bool_)
    try:
        for episode in range(episodes):
            state = environment.reset()
            for step in range(horizon):
                states[episode, step] = state
                with torch.inference_mode():
                    action = policy(torch.from_numpy(state[None].copy()))[0]
                state, *_ = environment.step(action.numpy())
                if progress is not None:
                    progress(episode * horizon + step + 1, episodes * horizon)
            solved[episode] = environment.success
    finally:
        environment.close()
    return Episodes(states, solved)
