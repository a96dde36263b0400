"""DAgger: the policy acts, and the scripted policies give the right actions in the states that it reaches."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from dynroute_sb3 import MultiTaskSAC

from ..envs.environment import STATE_FEATURES
from ..envs.episodes import play
from ..envs.scripted import ScriptedPolicy
from ..envs.tasks import derive_seed
from ..envs.vec_env import make_envs
from .demonstrations import Demonstrations

__all__ = ["correct"]


def correct(
    model: MultiTaskSAC,
    benchmark: str | Sequence[str],
    *,
    episodes: int,
    goals: str,
    horizon: int,
    seed: int,
    number: int,
    workers: int = 0,
    reward_version: str = "v2",
    progress: Callable[[int, int], object] | None = None,
) -> Demonstrations:
    """Episodes in which a policy acts, along its best routes, with the scripted policies' actions at each step.

    With fixed goals there is one of each task, since all would be equal.
    """
    episodes = 1 if goals == "fixed" else episodes
    own = derive_seed(seed, number)
    drawn = own if goals == "random" else seed  # fixed and benchmark goals never change
    env = make_envs(benchmark, goals=goals, horizon=horizon, seed=drawn, workers=workers, reward_version=reward_version)
    env.seed(own)  # the order of benchmark goals
    shape = (env.num_envs, episodes, horizon)
    observations, following = (np.empty((*shape, STATE_FEATURES), np.float32) for _ in range(2))
    actions, executed = (np.empty((*shape, 4), np.float32) for _ in range(2))
    rewards, solved = np.empty(shape, np.float32), np.zeros(shape[:2], np.bool_)
    script = ScriptedPolicy(env.task_names)
    with contextlib.closing(env):
        for step in play(env, lambda seen, _: model.predict(seen, deterministic=True)[0], episodes, progress):
            at = (slice(None), step.episode, step.number - 1)
            observations[at], following[at] = step.observations[:, :STATE_FEATURES], step.states
            actions[at], _ = script.predict(step.observations)
            executed[at], rewards[at] = step.actions, step.rewards
            solved[:, step.episode] |= step.solved
    settings = {
        "tasks": list(env.task_names),
        "round": number,
        "episodes": episodes,
        "goals": goals,
        "horizon": horizon,
        "seed": seed,
        "reward_version": reward_version,
    }
    arrays = {
        "observations": observations,
        "actions": actions,
        "executed": executed,
        "rewards": rewards,
        "next_observations": following,
        "solved": solved,
    }
    return Demonstrations.of(settings, arrays)
