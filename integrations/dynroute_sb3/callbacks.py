"""Callbacks for training that may be interrupted."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from .checkpoint import checkpoint_steps, checkpoints, latest_checkpoint
from .sac import MultiTaskSAC
from .storage import remove_leftovers

__all__ = ["CheckpointDirectory"]


class CheckpointDirectory(BaseCallback):
    """Writes a checkpoint from time to time, from which :meth:`MultiTaskSAC.load_checkpoint` goes on exactly.

    A checkpoint is a folder ``step_...`` that appears when it is whole, so that a process can be killed at any moment.
    They are written between rollouts, where the environments, the buffer and the networks agree; SB3 itself
    writes in the middle of a step.

    Args:
        every: The number of environment steps from one checkpoint to the next.
        folder: Where they are written.
        keep: How many of them stay.
        notes: What to keep beside each, plain data that is asked for when it is written; see
            :meth:`MultiTaskSAC.save_checkpoint`.
        verbose: Whether each is told.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> model = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks()), learning_starts=8)
        >>> model = model.learn(40, callback=CheckpointDirectory(20, folder))
        >>> latest_checkpoint(folder).name
        'step_40'
    """

    model: MultiTaskSAC

    def __init__(
        self,
        every: int,
        folder: str | Path,
        *,
        keep: int = 2,
        notes: Callable[[], Mapping[str, Any]] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, number in (("every", every), ("keep", keep)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        self.every = every
        self.folder = Path(folder)
        self.keep = keep
        self.notes = notes

    def _init_callback(self) -> None:
        if self.model.action_noise is not None:
            raise ValueError("`action_noise` must be None: checkpoints cannot hold what noise remembers.")
        remove_leftovers(self.folder, "step_*")
        last = latest_checkpoint(self.folder)
        self._last = checkpoint_steps(last) if last else 0
        if self._last > self.model.num_timesteps:
            raise ValueError(
                f"`folder` must hold no checkpoints of a later time, got {last} at {self.model.num_timesteps} steps; "
                "go on from it with MultiTaskSAC.load_checkpoint, or take another folder."
            )

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._last >= self.every:
            self.write()

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._last:
            self.write()

    def _on_step(self) -> bool:
        return True

    def write(self) -> None:
        """Writes a checkpoint now, for other callbacks, between rollouts."""
        steps = self.model.num_timesteps
        self.model.save_checkpoint(self.folder / f"step_{steps}", self.notes() if self.notes else None)
        self._last = steps
        if self.verbose:
            print(f"checkpoint at {steps} steps in {self.folder}")
        for old in checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)
