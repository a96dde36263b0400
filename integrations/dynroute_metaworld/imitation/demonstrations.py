"""Demonstrations: the observations and actions of episodes of every task."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynroute_sb3.storage import check_folder, writing_folder

__all__ = ["Demonstrations"]

SETTINGS = "settings.json"
ARRAYS = ("observations", "actions", "executed", "rewards", "next_observations", "solved")


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes with the scripted policies' actions at every step, the same number for each task.

    :func:`~dynroute_metaworld.collect` makes them.

    Attributes:
        tasks: The tasks, in the order of the rows.
        settings: All settings of the collection, as plain data.
        observations: The observations, without the one-hot, with shape [tasks, episodes, horizon, 39].
        actions: The scripted policy's actions at these observations, without noise, to be learned. [..., 4]
        executed: The actions that were executed, with noise. [..., 4]
        rewards: The rewards. [tasks, episodes, horizon]
        next_observations: The observations after each step, also after the last one. [..., 39]
        solved: Whether the task was solved at any step. [tasks, episodes]
        fingerprint: The SHA-256 of the settings and all arrays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     demonstrations = collect("reach", episodes=2, horizon=30, folder=folder)
        >>> parts = demonstrations.split(held_out=1)
        >>> [part.rewards.shape for part in parts], isinstance(parts[0], Demonstrations)
        ([(1, 1, 30), (1, 1, 30)], True)
    """

    tasks: tuple[str, ...]
    settings: dict[str, Any]
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    executed: NDArray[np.float32]
    rewards: NDArray[np.float32]
    next_observations: NDArray[np.float32]
    solved: NDArray[np.bool_]
    fingerprint: str

    def split(self, held_out: int) -> tuple["Demonstrations", "Demonstrations"]:
        """The demonstrations to learn from, and the last `held_out` episodes of each task to check with."""
        episodes = self.solved.shape[1]
        if not 0 <= held_out < episodes:
            why = f"to leave some of the {episodes} episodes of a task to learn from"
            raise ValueError(f"`held_out` must be at least 0 and less than {episodes}, {why}, got {held_out}.")
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        parts = (slice(episodes - held_out), slice(episodes - held_out, None))
        first, last = ({name: array[:, part] for name, array in arrays.items()} for part in parts)
        return Demonstrations.of(self.settings, first), Demonstrations.of(self.settings, last)

    @classmethod
    def of(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> "Demonstrations":
        """Makes demonstrations from settings and arrays, and computes their fingerprint."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return cls(tuple(settings["tasks"]), settings, **arrays, fingerprint=digest.hexdigest())

    def save(self, folder: Path) -> None:
        """Writes them to a new folder, whole or not at all."""
        with writing_folder(folder) as part:
            for name in ARRAYS:
                np.save(part / f"{name}.npy", getattr(self, name), allow_pickle=False)
            (part / SETTINGS).write_text(json.dumps(self.settings, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Demonstrations":
        """Reads a folder that :meth:`save` wrote; raises an error that names a damaged file."""
        check_folder(folder, f"remove {folder}, and collect them again")
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
        return cls.of(json.loads((folder / SETTINGS).read_text()), arrays)
