"""Replay buffers with known rows."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dynroute import Topology
from dynroute_sb3 import RouteReplayBuffer

TASKS, STATE, ACTION = 3, 2, 2


TOPOLOGY = Topology.dag(6)  # 15 edges: two bytes, of which the last bit is not used


def make(capacity: int = 4, *, tasks: int = TASKS, paths: bool = True, **kwargs: Any) -> RouteReplayBuffer:
    """A buffer for so many transitions of each task."""
    observation_space = spaces.Box(-np.inf, np.inf, (STATE + tasks,))
    action_space = spaces.Box(-1, 1, (ACTION,))
    buffer = RouteReplayBuffer(capacity * tasks, observation_space, action_space, "cpu", num_tasks=tasks, **kwargs)
    if paths:
        buffer.keep_paths(TOPOLOGY)
    return buffer


def observe(states: Any, tasks: Any, num_tasks: int = TASKS) -> NDArray[np.float32]:
    return np.concatenate([states, np.eye(num_tasks)[tasks]], axis=1).astype(np.float32)


def transitions(ids: Any, tasks: Any, num_tasks: int = TASKS) -> dict[str, Any]:
    """Transitions in all of whose parts their ids can be read."""
    ids = np.asarray(ids)
    return {
        "obs": observe(np.stack([ids, -ids], axis=1), tasks, num_tasks),
        "next_obs": observe(np.stack([ids + 0.5, ids], axis=1), tasks, num_tasks),
        "action": np.stack([ids / 2**14, -ids / 2**14], axis=1).astype(np.float32),
        "reward": ids.astype(np.float64),
        "done": ids % 2 == 1,
        "infos": [{}] * len(ids),
        "paths": np.stack([ids % 256, ids // 256], axis=1).astype(np.uint8),
    }


def fill(buffer: RouteReplayBuffer, steps: int, tasks: Any = range(TASKS), first: int = 1) -> RouteReplayBuffer:
    """Adds vector steps with ids that count up."""
    for step in range(steps):
        rows = transitions(first + step * len(tasks) + np.arange(len(tasks)), tasks, buffer.num_tasks)
        buffer.add(**{**rows, "paths": None if buffer.paths is None else rows["paths"]})
    return buffer
