"""The states of environments, for those that can tell and restore theirs."""

from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

__all__ = ["environment_states", "set_environment_states"]


def environment_states(env: VecEnv) -> list[Any] | None:
    """The state of each environment; None where they have no methods `get_state` and `set_state`.

    What SB3's Monitor knows of an unfinished episode belongs to the state.
    """
    if not (env.has_attr("get_state") and env.has_attr("set_state")):
        return None
    states = env.env_method("get_state")
    monitored = env.env_is_wrapped(Monitor)
    rewards = env.get_attr("rewards") if all(monitored) else [None] * env.num_envs
    return [{"state": state, "rewards": earned} for state, earned in zip(states, rewards, strict=True)]


def set_environment_states(env: VecEnv, states: list[Any]) -> None:
    """Restores what :func:`environment_states` returned."""
    monitored = all(env.env_is_wrapped(Monitor))
    for i, state in enumerate(states):
        env.env_method("set_state", state["state"], indices=[i])
        if monitored and state["rewards"] is not None:
            # Monitor is the outermost wrapper that SB3 puts around an environment, which is where set_attr writes.
            env.set_attr("rewards", state["rewards"], indices=[i])
            env.set_attr("needs_reset", False, indices=[i])
