"""Callbacks for training that may be interrupted."""

import shutil
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from .checkpoint import latest_checkpoint
from .sac import MultiTaskSAC

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
        verbose: Whether each is told.
    """

    model: MultiTaskSAC

    def __init__(self, every: int, folder: str | Path, *, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, number in (("every", every), ("keep", keep)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        self.every = every
        self.folder = Path(folder)
        self.keep = keep

    def _init_callback(self) -> None:
        for left in self.folder.glob(".step_*.part"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        last = latest_checkpoint(self.folder)
        self._last = int(last.name.removeprefix("step_")) if last else 0

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._last >= self.every:
            self._write()

    def _on_training_end(self) -> None:
        # A callback that stopped training did so in the middle of a step.
        if self.model._stored_timesteps == self.model.num_timesteps > self._last:
            self._write()

    def _on_step(self) -> bool:
        return True

    def _write(self) -> None:
        steps = self.model.num_timesteps
        self.model.save_checkpoint(self.folder / f"step_{steps}")
        self._last = steps
        if self.verbose:
            print(f"checkpoint at {steps} steps in {self.folder}")
        written = sorted(self.folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
        for old in written[: -self.keep]:
            shutil.rmtree(old)
