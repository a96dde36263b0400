"""Saving and restoring the states of environments."""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from .wrappers import WrapperState, data_attributes, set_wrapper_states, unstored_attributes, wrapper_states

__all__ = ["environment_states", "set_environment_states", "unstored_states"]

VECTOR_WRAPPERS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecNormalize: ("returns", "old_reward", "old_obs"),
    VecFrameStack: ("stacked_obs.stacked_obs",),
}
"""The state attributes of common wrappers of vectorized environments."""


def environment_states(env: VecEnv) -> dict[str, Any] | None:
    """Returns the states of environments and of the common wrappers of SB3 and gymnasium.

    Other wrappers must be stateless, see :func:`unstored_states`. If neither environments nor the VecEnv have
    `get_state` and `set_state`, there are only the statistics by which wrappers normalize, or None if there are none.
    """
    if not (_is_whole(env) or (env.has_attr("get_state") and env.has_attr("set_state"))):
        normalizing = _normalizing(env)
        return {"statistics": [_statistics(wrapper) for wrapper in normalizing]} if normalizing else None
    return {
        "states": _whole(env).get_state() if _is_whole(env) else env.env_method("get_state"),
        "seeds": list(env.unwrapped._seeds),  # for the next reset
        "wrappers": _wrapper_states(env),
        "vector_wrappers": [_vector_state(wrapper) for wrapper in _vector_wrappers(env)],
        "wrapped_in": [type(wrapper).__name__ for wrapper in _vector_wrappers(env)],
    }


def set_environment_states(env: VecEnv, state: dict[str, Any]) -> None:
    """Restores the states returned by :func:`environment_states`."""
    if "statistics" in state:
        normalizing, statistics = _normalizing(env), state["statistics"]
        if len(normalizing) != len(statistics):
            raise ValueError(
                f"`env` must normalize as it did when the checkpoint was written, by {len(statistics)} VecNormalize, "
                f"got {len(normalizing)}."
            )
        _check_attributes(normalizing, statistics, [_statistics(wrapper) for wrapper in normalizing])
        _set_attributes(normalizing, statistics)
        return
    wrapped_in, present = [type(wrapper).__name__ for wrapper in _vector_wrappers(env)], _wrapper_states(env)
    for i, (saved, own) in enumerate(zip(state["wrappers"], present, strict=True)):
        if wrapped_in != state["wrapped_in"] or not _fits(saved, own):
            raise ValueError(
                f"`env` must be wrapped as it was when the checkpoint was written, in {state['wrapped_in']} and with "
                f"wrappers that remember {_attribute_names(saved)}, got {wrapped_in} and "
                f"{_attribute_names(own)} of environment {i}."
            )
        if (made := _first_tasks(saved)) != (got := _first_tasks(own)):
            raise ValueError(
                f"`env` must have its tasks in the order in which the checkpoint was written: environment {i} was made "
                f"for task {', '.join(made)}, got one for task {', '.join(got)}."
            )
    env.reset()  # some wrappers require a reset before the first step
    wrappers = list(_vector_wrappers(env))
    _check_attributes(wrappers, state["vector_wrappers"], [_vector_state(wrapper) for wrapper in wrappers])
    if _is_whole(env):
        _whole(env).set_state(state["states"])
    for i in range(env.num_envs):
        if not _is_whole(env):
            env.env_method("set_state", state["states"][i], indices=[i])
            set_wrapper_states(env, i, [WrapperState(*saved) for saved in state["wrappers"][i]])
    env.unwrapped._seeds = list(state["seeds"])
    _set_attributes(wrappers, state["vector_wrappers"])


def unstored_states(env: VecEnv) -> dict[str, list[str]]:
    """Returns attributes that :func:`environment_states` does not store, by the names of the wrappers of a user."""
    unstored = {type(wrapper).__name__: data_attributes(wrapper) for wrapper in _vector_wrappers(env)}
    if not _is_whole(env):
        for i in range(env.num_envs):
            unstored |= unstored_attributes(env, i)
    return {name: attributes for name, attributes in unstored.items() if attributes}


def _check_attributes(
    wrappers: Sequence[VecEnvWrapper], states: Sequence[dict[str, Any]], present: Sequence[dict[str, Any]]
) -> None:
    """Raises an error unless the saved attributes of wrappers are those that they have."""
    for wrapper, saved, own in zip(wrappers, states, present, strict=True):
        if _names(saved) != _names(own):  # a file must not set arbitrary attributes
            raise ValueError(f"the state of {type(wrapper).__name__} must hold {_names(own)}, got {_names(saved)}.")


def _set_attributes(wrappers: Sequence[VecEnvWrapper], states: Sequence[dict[str, Any]]) -> None:
    for wrapper, saved in zip(wrappers, states, strict=True):
        for name, value in saved.items():
            if name.endswith("_rms"):
                vars(getattr(wrapper, name)).update(value)
            else:
                place, _, attribute = name.rpartition(".")
                setattr(attrgetter(place)(wrapper) if place else wrapper, attribute, value)


def _normalizing(env: VecEnv) -> list[VecEnvWrapper]:
    """The wrappers that keep statistics."""
    return [wrapper for wrapper in _vector_wrappers(env) if _statistics(wrapper)]


def _is_whole(env: VecEnv) -> bool:
    """Whether a vectorized environment itself saves the states of all its environments."""
    return hasattr(_whole(env), "get_state") and hasattr(_whole(env), "set_state")


def _whole(env: VecEnv) -> Any:
    return env.unwrapped


def _wrapper_states(env: VecEnv) -> list[list[WrapperState]]:
    """The states of the wrappers of each environment."""
    return [[] if _is_whole(env) else wrapper_states(env, i) for i in range(env.num_envs)]


def _fits(saved: Sequence[Any], own: list[WrapperState]) -> bool:
    """Whether the saved states are of the wrappers that there are."""
    return [(kind, _names(state)) for kind, state in saved] == [(kind, _names(state)) for kind, state in own]


def _first_tasks(states: Sequence[WrapperState]) -> list[str]:
    """The tasks for which the wrappers of an environment were made."""
    return [str(attributes["_first_task"]) for _, attributes in states if "_first_task" in attributes]


def _attribute_names(states: Sequence[Any]) -> list[str]:
    """The attributes in the states of the wrappers of an environment, for an error."""
    return [f"{kind}.{name}" for kind, attributes in states for name in attributes]


def _vector_wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _names(state: dict[str, Any]) -> list[Any]:
    """The names in the state of a wrapper, including nested ones."""
    return sorted([name, *sorted(value if isinstance(value, dict) else ())] for name, value in state.items())


def _vector_state(wrapper: VecEnvWrapper) -> dict[str, Any]:
    names = [name for kind, kept in VECTOR_WRAPPERS.items() if isinstance(wrapper, kind) for name in kept]
    return {name: attrgetter(name)(wrapper) for name in names} | _statistics(wrapper)


def _statistics(wrapper: VecEnvWrapper) -> dict[str, Any]:
    """The means and variances by which a wrapper normalizes."""
    if not isinstance(wrapper, VecNormalize):
        return {}
    names = ("ret_rms", "obs_rms") if wrapper.norm_obs else ("ret_rms",)
    return {name: dict(vars(getattr(wrapper, name))) for name in names}
