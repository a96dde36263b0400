"""Checks of the content of checkpoints, which may be damaged or forged in ways that the manifest does not show."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .options import LIMITS, OPTIONS
from .policies import POLICIES
from .storage import DamagedError, Member

__all__ = ["check_buffer", "check_network", "check_state", "restoring"]

STATE = ("options", "policy", "network", "critics", "spaces", "progress", "report", "parameters", "random", "buffer")

COUNTERS: Mapping[str, int] = {
    "n_envs": 1,
    "num_tasks": 1,
    "batch_size": 1,
    "num_timesteps": 0,
    "_total_timesteps": 0,
    "_episode_num": 0,
    "_n_updates": 0,
    "updates_due": 0,
}
"""The smallest value of integers that a model takes as they are; it checks its other options itself.

A model may be made without a batch size, but has one.
"""

SIZES = ("network_kwargs", "critic_kwargs", "net_arch", "n_critics", "num_tasks", "bins")
"""The keywords of a policy that are sizes of its networks, or hold them."""


@contextlib.contextmanager
def restoring(folder: Path | Member) -> Iterator[None]:
    """Turns all errors while a model is restored into errors that name the folder."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ValueError(f"{folder} needs more memory than there is: {error}.") from error
    except ValueError as error:
        if isinstance(error, DamagedError) or str(folder) in str(error):
            raise
        raise ValueError(f"{folder} cannot be restored: {error}") from error
    except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        reason = " ".join(f"{error}".split()) or "no reason given"
        raise DamagedError(
            f"{folder} cannot be restored, since what it holds does not fit together ({type(error).__name__}: "
            f"{reason:.300}); take another checkpoint."
        ) from error


def check_state(state: Any, folder: Path, progress: Collection[str]) -> None:
    """Raises an error that names the first part of a stored state that is missing, unknown or invalid.

    Args:
        state: The content of ``model.json`` and ``model.safetensors``.
        folder: The checkpoint.
        progress: The names of attributes that change while a model learns.
    """
    path = folder / "model.json"
    if not isinstance(state, dict):
        raise _wrong(path, "the parts of a model", state)
    for name in STATE:
        if name not in state:
            raise DamagedError(f"{path} must hold the part {name!r}, and has none; take another checkpoint.")
        if not isinstance(state[name], str if name in ("policy", "network", "critics") else dict):
            raise _wrong(path, f"{name!r} as it was written", state[name])
    options = state["options"]
    for name in sorted({*OPTIONS, "replay_buffer_class"} - set(options)):
        raise DamagedError(f"{path} must hold the option {name!r}, and has none; take another checkpoint.")
    for names, part in (((*OPTIONS, "replay_buffer_class"), "options"), (progress, "progress")):
        for name, value in state[part].items():
            if name not in names:
                raise DamagedError(f"{path} holds {name!r}, which is none of the {part}; take another checkpoint.")
            _check_number(path, name, value)
            unlimited = name in LIMITS and isinstance(value, float) and value == math.inf
            if part == "options" and name != "policy_kwargs" and not unlimited:
                _check_finite(path, name, value)
    if not isinstance(policy_kwargs := options["policy_kwargs"], dict):
        raise _wrong(path, "`policy_kwargs` as they were written", policy_kwargs)
    network = policy_kwargs.get("network") or getattr(POLICIES.get(state["policy"]), "default_network", None)
    if not isinstance(network, str):  # what the keywords of another network mean is not known
        own = ("network_kwargs", "critic_kwargs")
        policy_kwargs = {name: value for name, value in policy_kwargs.items() if name not in own}
    _check_finite(path, "policy_kwargs", policy_kwargs)
    stored = sum(tensor.numel() for tensor in _tensors(state["parameters"]))
    sizes = {name: value for name, value in policy_kwargs.items() if name in SIZES}
    if place := _too_large(sizes, "policy_kwargs", stored):
        raise DamagedError(
            f"{path} must hold sizes of the network that is stored, which has {stored:,} numbers in all, and {place} "
            "is more; take another checkpoint."
        )


def check_network(stored: Any, expected: Mapping[str, Tensor], folder: Path) -> None:
    """Raises an error that names the first tensor of a policy that is not stored in the expected shape."""
    for name, tensor in expected.items():
        saved = stored.get(name) if isinstance(stored, dict) else None
        if not isinstance(saved, Tensor) or saved.shape != tensor.shape:
            got = tuple(saved.shape) if isinstance(saved, Tensor) else "none"
            raise DamagedError(
                f"{folder / 'model.safetensors'} must hold {name} with the shape {tuple(tensor.shape)} that the "
                f"options of the network ask for, got {got}; take another checkpoint."
            )


def check_buffer(state: Any, num_tasks: int, capacity: int, path: Path | Member) -> None:
    """Raises an error unless the counts and positions of a replay buffer are valid.

    Args:
        state: The state of the buffer.
        num_tasks: The number of rings.
        capacity: Their size.
        path: The file that holds the state.
    """
    for name, most in (("counts", capacity), ("positions", capacity - 1)):
        numbers = np.asarray(state[name])
        valid = numbers.shape == (num_tasks,) and numbers.dtype.kind in "iu"
        if not valid or (numbers < 0).any() or (numbers > most).any():
            raise _wrong(path, f"{name!r} of a buffer, {num_tasks} integers in 0..{most}", numbers.tolist())
    most, latest = state["most_at_once"], np.asarray(state["latest"])
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:  # it may be more than a ring holds
        raise _wrong(path, "as 'most_at_once' of a buffer an integer of at least 1", most)
    valid = latest.ndim == 2 and latest.shape[1] == 2 and latest.dtype.kind in "iu"
    if not valid or (latest < 0).any() or (latest >= (num_tasks, capacity)).any():
        raise _wrong(path, "as 'latest' of a buffer a task and a place for each environment", latest.tolist())


def _check_number(path: Path | Member, name: str, value: Any) -> None:
    if name in COUNTERS:
        rule, valid = f"an integer of at least {COUNTERS[name]}", isinstance(value, int) and value >= COUNTERS[name]
    elif name == "_current_progress_remaining":
        rule, valid = "a number of at most 1", isinstance(value, (int, float)) and value <= 1
    else:
        return
    if not valid or isinstance(value, bool):
        raise _wrong(path, f"as `{name.lstrip('_')}` {rule}", value)


def _check_finite(path: Path, name: str, value: Any) -> None:
    if place := _not_finite(value, name):
        raise DamagedError(f"{path} must hold finite numbers, {place} is not; take another checkpoint.")


def _wrong(path: Path | Member, rule: str, value: Any) -> DamagedError:
    return DamagedError(f"{path} must hold {rule}, got {value!r:.80}; take another checkpoint.")


def _not_finite(tree: Any, place: str) -> str | None:
    """The place in a tree of a number that is NaN or infinite."""
    if isinstance(tree, float) and not math.isfinite(tree):
        return f"{place}={tree}"
    return next((wrong for key, value in _items(tree) if (wrong := _not_finite(value, f"{place}.{key}"))), None)


def _too_large(tree: Any, place: str, most: int) -> str | None:
    """The place in a tree of an integer that is too large to be a size of the network."""
    if isinstance(tree, int) and not isinstance(tree, bool) and abs(tree) > most:
        return f"{place}={tree}"
    return next((wrong for key, value in _items(tree) if (wrong := _too_large(value, f"{place}.{key}", most))), None)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    for _, value in _items(tree):
        yield from _tensors(value)


def _items(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tree.items()
    return enumerate(tree) if isinstance(tree, (list, tuple)) else ()
