"""DAgger: the policy acts, and the scripted policies say what they would have done where it came to."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynroute_sb3 import MultiTaskSAC

from ..envs.environment import STATE_FEATURES
from ..envs.scripted import ScriptedPolicy
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
    """Episodes in which a policy acts, along its best routes, with the actions that the scripts want at each step.

    Args:
        model: The policy.
        benchmark: The tasks, as for :func:`~dynroute_metaworld.make_envs`.
        episodes: The number of episodes of each task.
        goals: Where goals come from.
        horizon: The number of steps of an episode.
        seed: What goals depend on, together with the number of the round.
        number: The number of the round.
        workers: The number of processes that run the environments.
        reward_version: "v2" or "v1".
        progress: Called after each step of all environments with the number of steps that are done and that of all.
    """
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    env = make_envs(benchmark, goals=goals, horizon=horizon, seed=drawn, workers=workers, reward_version=reward_version)
    shape = (env.num_envs, episodes, horizon)
    observations, following = (np.empty((*shape, STATE_FEATURES), np.float32) for _ in range(2))
    actions, executed = (np.empty((*shape, 4), np.float32) for _ in range(2))
    rewards, solved = np.empty(shape, np.float32), np.zeros(shape[:2], np.bool_)
    script = ScriptedPolicy(env.task_names)
    try:
        now: Any = env.reset()
        for episode in range(episodes):
            for t in range(horizon):
                at = (slice(None), episode, t)
                observations[at] = now[:, :STATE_FEATURES]
                actions[at], _ = script.predict(now)
                executed[at] = np.asarray(model.predict(now, deterministic=True)[0])
                now, rewards[at], dones, infos = env.step(executed[at])
                for i, info in enumerate(infos):
                    solved[i, episode] |= info["success"]
                    after = info["terminal_observation"] if dones[i] else now[i]
                    following[i, episode, t] = after[:STATE_FEATURES]
                if progress is not None:
                    progress(episode * horizon + t + 1, episodes * horizon)
    finally:
        env.close()
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
