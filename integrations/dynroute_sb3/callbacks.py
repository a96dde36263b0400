"""Callbacks: checkpoints for training that may be interrupted, and the capacity that critics use."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from dynroute.arguments import check_count

from .capacity import critic_capacity
from .checkpoint import checkpoint_steps, checkpoints, latest_checkpoint
from .sac import MultiTaskSAC
from .storage import remove_leftovers

__all__ = ["CapacityLogger", "CheckpointDirectory"]


class CapacityLogger(BaseCallback):
    """Logs from time to time how much of their capacity the critics use, see :func:`critic_capacity`.

    The logger gets ``capacity/dormant``, the share of dormant units, and ``capacity/rank``, the effective rank of the
    features, both as means over the critics, and ``capacity/load_<node>`` where critics have routes: of a mixture it is
    the mean weight of an expert. Training is not changed by it.

    Args:
        every: The number of environment steps from one measurement to the next.
        batch_size: The number of transitions that are measured on.
        verbose: As in SB3.

    Example:
        >>> from stable_baselines3.common.logger import Logger
        >>> model = MultiTaskSAC("ScaleMoEPolicy", DummyVecEnv(point_tasks()), learning_starts=8)
        >>> model.set_logger(Logger(None, []))
        >>> model = model.learn(40, callback=CapacityLogger(20, 64))
        >>> [name for name in model.logger.name_to_value if name.startswith("capacity")][:3]
        ['capacity/dormant', 'capacity/rank', 'capacity/load_0']
    """

    model: MultiTaskSAC

    def __init__(self, every: int, batch_size: int = 1024, *, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, number in (("every", every), ("batch_size", batch_size)):
            check_count(name, number, at_least=1)
        self.every = every
        self.batch_size = batch_size
        self._last: int | None = None

    def _on_rollout_start(self) -> None:
        steps, buffer = self.model.num_timesteps, self.model.replay_buffer
        due = self._last is None or steps - self._last >= self.every
        if due and self.model._n_updates and buffer is not None and buffer.size():
            self.write()

    def _on_step(self) -> bool:
        return True

    def write(self) -> None:
        """Measures now, and hands the values to the logger."""
        self._last = self.model.num_timesteps
        found = critic_capacity(self.model, self.batch_size)
        self.logger.record("capacity/dormant", sum(each.dormant for each in found) / len(found))
        self.logger.record("capacity/rank", sum(each.rank for each in found) / len(found))
        for loads in zip(*(each.load.values() for each in found), strict=True):
            mean = sum(loads) / len(loads)
            for node, share in enumerate(mean[:-1].tolist()):  # the output carries everything
                self.logger.record(f"capacity/load_{node}", share, exclude="stdout")


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
            check_count(name, number, at_least=1)
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
