"""The states of environments, for those that can tell and restore theirs."""

from collections.abc import Iterator
from typing import Any

from gymnasium import Wrapper
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

__all__ = ["environment_states", "set_environment_states"]

WRAPPERS: dict[type[Wrapper[Any, Any, Any, Any]], tuple[str, ...]] = {
    Monitor: ("rewards", "needs_reset"),
    TimeLimit: ("_elapsed_steps",),
    OrderEnforcing: ("_has_reset",),
}
"""What common wrappers remember from one step to the next."""

VECTOR_WRAPPERS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecNormalize: ("returns", "old_reward", "old_obs"),
}
"""The same for wrappers of all environments."""


def environment_states(env: VecEnv) -> dict[str, Any] | None:
    """The states of environments; None where neither they nor the vectorized one have `get_state` and `set_state`.

    What SB3's and gymnasium's common wrappers remember belongs to it; other wrappers must not remember anything.
    """
    if not (_is_whole(env) or (env.has_attr("get_state") and env.has_attr("set_state"))):
        return None
    return {
        "states": _whole(env).get_state() if _is_whole(env) else env.env_method("get_state"),
        "seeds": list(env.unwrapped._seeds),  # what the next reset would be given
        "wrappers": [
            {name: env.get_attr(name, indices=[i])[0] for name in _remembered(env, i)} for i in range(env.num_envs)
        ],
        "vector_wrappers": [_vector_state(wrapper) for wrapper in _vector_wrappers(env)],
        "wrapped_in": [type(wrapper).__name__ for wrapper in _vector_wrappers(env)],
    }


def set_environment_states(env: VecEnv, state: dict[str, Any]) -> None:
    """Restores what :func:`environment_states` returned."""
    wrapped_in = [type(wrapper).__name__ for wrapper in _vector_wrappers(env)]
    remembered = [sorted(_remembered(env, i)) for i in range(env.num_envs)]
    if (wrapped_in, remembered) != (state["wrapped_in"], [sorted(kept) for kept in state["wrappers"]]):
        raise ValueError(
            f"`env` must be wrapped as it was when the checkpoint was written, in {state['wrapped_in']} and with "
            f"wrappers that remember {state['wrappers'] and sorted(state['wrappers'][0])}, got {wrapped_in} and "
            f"{remembered[0]}."
        )
    env.reset()  # wrappers that want to be reset first have been so
    for wrapper, saved in zip(_vector_wrappers(env), state["vector_wrappers"], strict=True):
        if _names(saved) != (expected := _names(_vector_state(wrapper))):  # or any attribute could be replaced
            raise ValueError(f"the state of {type(wrapper).__name__} must hold {expected}, got {_names(saved)}.")
    if _is_whole(env):
        _whole(env).set_state(state["states"])
    for i in range(env.num_envs):
        if not _is_whole(env):
            env.env_method("set_state", state["states"][i], indices=[i])
        for name in _remembered(env, i):
            env.env_method("set_wrapper_attr", name, state["wrappers"][i][name], indices=[i])
    env.unwrapped._seeds = list(state["seeds"])
    for wrapper, saved in zip(_vector_wrappers(env), state["vector_wrappers"], strict=True):
        for name, value in saved.items():
            if name.endswith("_rms"):
                vars(getattr(wrapper, name)).update(value)
            else:
                setattr(wrapper, name, value)


def _is_whole(env: VecEnv) -> bool:
    """Whether a vectorized environment tells the states of all its environments by itself."""
    return hasattr(_whole(env), "get_state") and hasattr(_whole(env), "set_state")


def _whole(env: VecEnv) -> Any:
    return env.unwrapped


def _remembered(env: VecEnv, i: int) -> list[str]:
    """The names of what the wrappers of one environment remember."""
    if _is_whole(env):
        return []
    return [name for kind, names in WRAPPERS.items() if env.env_is_wrapped(kind, indices=[i])[0] for name in names]


def _vector_wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _names(state: dict[str, Any]) -> list[Any]:
    """The names in the state of a wrapper, and in what it keeps beside numbers."""
    return sorted([name, *sorted(value if isinstance(value, dict) else ())] for name, value in state.items())


def _vector_state(wrapper: VecEnvWrapper) -> dict[str, Any]:
    names = [name for kind, kept in VECTOR_WRAPPERS.items() if isinstance(wrapper, kind) for name in kept]
    state = {name: getattr(wrapper, name) for name in names}
    if isinstance(wrapper, VecNormalize):
        state["ret_rms"] = dict(vars(wrapper.ret_rms))
        if wrapper.norm_obs:
            state["obs_rms"] = dict(vars(wrapper.obs_rms))
    return state
