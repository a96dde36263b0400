"""Episodes of a policy in the environments, step by step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .environment import STATE_FEATURES
from .vec_env import MetaWorldVecEnv

__all__ = ["Step", "play"]


class Step(NamedTuple):
    """A step of all environments."""

    episode: int
    """The number of the episode, from 0 on."""

    number: int
    """The number of the step in its episode, from 1 on."""

    observations: NDArray[np.float32]
    """The observations before the step, with shape ``[tasks, features]``."""

    actions: NDArray[Any]
    """The actions."""

    rewards: NDArray[np.float32]
    """The rewards."""

    solved: NDArray[np.bool_]
    """Whether each task is solved at this step."""

    states: NDArray[np.float32]
    """The states after the step, without the one-hots; at the end of an episode, its last states."""

    infos: list[dict[str, Any]]
    """The infos of the environments."""


def play(
    env: MetaWorldVecEnv,
    act: Callable[[NDArray[np.float32], int], NDArray[Any]],
    episodes: int,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Step]:
    """Runs a policy for some episodes; all environments have the same horizon, so that their episodes end together.

    Args:
        env: The environments; they are reset first.
        act: The policy, a function from the observations of all environments and the number of the step to actions.
        episodes: The number of episodes of each task.
        progress: Called after each step with the number of steps that are done and the total.

    Example:
        >>> from dynroute_metaworld.envs.episodes import play
        >>> env = make_envs("reach", horizon=3)
        >>> [(step.episode, step.number) for step in play(env, lambda seen, _: np.zeros((1, 4)), episodes=2)]
        [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    """
    following: Any = env.reset()
    for episode in range(episodes):
        for number in range(1, env.horizon + 1):
            observations, actions = following, act(following, number)
            following, rewards, _, infos = env.step(actions)
            solved = np.array([info["success"] for info in infos])
            ended = number == env.horizon
            after: Any = np.stack([info["terminal_observation"] for info in infos]) if ended else following
            yield Step(episode, number, observations, actions, rewards, solved, after[:, :STATE_FEATURES], infos)
            if progress is not None:
                progress(episode * env.horizon + number, episodes * env.horizon)
