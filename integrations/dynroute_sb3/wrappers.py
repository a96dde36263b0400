"""The states of wrappers around an environment, by their positions, also in another process."""

import dis
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Env, Wrapper
from gymnasium import wrappers as gymnasium_wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from .observation import OneHotTask

__all__ = [
    "WrapperState",
    "data_attributes",
    "own_attributes",
    "set_wrapper_states",
    "unstored_attributes",
    "wrapper_states",
]

WRAPPERS: dict[type[Wrapper[Any, Any, Any, Any]], tuple[str, ...]] = {
    Monitor: ("rewards", "needs_reset"),
    OneHotTask: ("task", "_first_task"),
    gymnasium_wrappers.TimeLimit: ("_elapsed_steps",),
    gymnasium_wrappers.OrderEnforcing: ("_has_reset",),
    gymnasium_wrappers.Autoreset: ("autoreset",),
    gymnasium_wrappers.DelayObservation: ("observation_queue",),
    gymnasium_wrappers.FrameStackObservation: ("obs_queue", "padding_value"),
    gymnasium_wrappers.MaxAndSkipObservation: ("_obs_buffer",),
    gymnasium_wrappers.NormalizeObservation: ("obs_rms",),
    gymnasium_wrappers.NormalizeReward: ("return_rms", "discounted_reward"),
    gymnasium_wrappers.RecordEpisodeStatistics: (
        "episode_count",
        "episode_returns",
        "episode_lengths",
        "return_queue",
        "length_queue",
        "time_queue",
    ),
    gymnasium_wrappers.StickyAction: ("last_action", "is_sticky_actions", "num_repeats", "repeats_taken"),
    gymnasium_wrappers.TimeAwareObservation: ("timesteps",),
}
"""The state attributes of the wrappers that a checkpoint stores."""

DATA = (bool, int, float, list, dict, set, deque, np.ndarray, np.generic, np.random.Generator)
"""The types of attributes in which a wrapper can remember something."""

KNOWN = ("gymnasium.wrappers.", "stable_baselines3.", "dynroute_sb3.")
"""The packages whose other wrappers are taken to remember nothing for training."""

USUAL = ("_saved_kwargs", "venv", "num_envs", "reset_infos", "_seeds", "_options", "class_attributes", "metadata")
"""The attributes that each wrapper has."""


class WrapperState(NamedTuple):
    """The state of a wrapper.

    Example:
        >>> from dynroute_sb3.wrappers import wrapper_states
        >>> env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(point_tasks()[0](), 15)])
        >>> _ = env.reset()
        >>> wrapper_states(env, 0)[0]
        WrapperState(kind='TimeLimit', attributes={'_elapsed_steps': 0})
    """

    kind: str
    attributes: dict[str, Any]


def wrapper_states(env: VecEnv, i: int) -> list[WrapperState]:
    """Returns the states of the known wrappers of an environment, the outermost first."""
    return list(_in_worker(env, i, "_wrapper_states"))


def set_wrapper_states(env: VecEnv, i: int, states: Sequence[WrapperState]) -> None:
    """Sets states of :func:`wrapper_states`, one for each known wrapper."""
    _in_worker(env, i, "_set_wrapper_states", states)


def unstored_attributes(env: VecEnv, i: int) -> dict[str, list[str]]:
    """Returns attributes in which other wrappers can remember something, by the names of the wrappers."""
    return dict(_in_worker(env, i, "_unstored_attributes"))


def data_attributes(wrapper: object) -> list[str]:
    """Returns the attributes in which a wrapper of a user can remember something.

    Example:
        >>> from dynroute_sb3.wrappers import data_attributes
        >>> data_attributes(gym.wrappers.TimeLimit(point_tasks()[0](), 15))  # it is not a user's
        []
    """
    usual = {*USUAL, *(vars(Wrapper(wrapper.env)) if isinstance(wrapper, Wrapper) else ())}
    own = own_attributes(wrapper)
    return [name for name in own if name not in usual and isinstance(vars(wrapper)[name], DATA)]


def own_attributes(instance: object) -> list[str]:
    """Returns the attributes of an instance that only the class of a user sets, not the known classes it derives from.

    Example:
        >>> from dynroute_sb3.wrappers import own_attributes
        >>> own_attributes(MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks())))  # its class is not a user's
        []
    """
    modules = {base: f"{base.__module__}." for base in type(instance).__mro__}
    bases = [base for base, name in modules.items() if name.startswith(KNOWN) and "base_vec_env" not in name]
    if type(instance) in bases:
        return []
    functions = [part for base in bases for part in vars(base).values() if isinstance(part, FunctionType)]
    steps = (step for function in functions for step in dis.get_instructions(function))
    known = {step.argval for step in steps if step.opname == "STORE_ATTR"}
    return [name for name in vars(instance) if name not in known]


class _Guest:
    """Gives an environment the functions below as attributes, also in a process of SubprocVecEnv.

    These processes run no function that they are given, but ``env_is_wrapped(kind)`` asks in them whether the
    outermost wrapper is an instance of `kind`.
    """

    def __instancecheck__(self, env: Any) -> bool:
        for function in (_wrapper_states, _set_wrapper_states, _unstored_attributes):
            setattr(env, function.__name__, partial(function, env))
        return True


def _in_worker(env: VecEnv, i: int, name: str, *args: Any) -> Any:
    """Calls one of the functions below on an environment, wherever it runs."""
    if not env.env_is_wrapped(_Guest(), indices=[i])[0]:  # type: ignore[arg-type]
        return []
    return env.env_method(name, *args, indices=[i])[0]


def _wrapper_states(env: Env[Any, Any]) -> list[WrapperState]:
    return [
        WrapperState(type(wrapper).__name__, {name: _plain(name, getattr(wrapper, name)) for name in names})
        for wrapper, names in _known(env)
    ]


def _set_wrapper_states(env: Env[Any, Any], states: Sequence[WrapperState]) -> None:
    for (wrapper, _), (_, attributes) in zip(_known(env), states, strict=True):
        for name, value in attributes.items():
            if name.endswith("_rms"):
                vars(getattr(wrapper, name)).update(value)
            else:
                setattr(wrapper, name, value)


def _unstored_attributes(env: Env[Any, Any]) -> dict[str, list[str]]:
    unstored: dict[str, list[str]] = {}
    for wrapper in _wrappers(env):
        if hasattr(wrapper, "get_state"):  # it answers for all inside
            break
        if attributes := data_attributes(wrapper):
            unstored[type(wrapper).__name__] = attributes
    return unstored


def _known(env: Env[Any, Any]) -> Iterator[tuple[Wrapper[Any, Any, Any, Any], list[str]]]:
    for wrapper in _wrappers(env):
        names = [name for kind, stored in WRAPPERS.items() if isinstance(wrapper, kind) for name in stored]
        if names:
            yield wrapper, names


def _wrappers(env: Env[Any, Any]) -> Iterator[Wrapper[Any, Any, Any, Any]]:
    while isinstance(env, Wrapper):
        yield env
        env = env.env


def _plain(name: str, value: Any) -> Any:
    return dict(vars(value)) if name.endswith("_rms") else value
