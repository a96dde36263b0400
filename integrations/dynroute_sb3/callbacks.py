"""Callbacks that write checkpoints and log the plasticity of critics."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from dynroute.arguments import check_count
from dynroute.files import check_not_file

from .checkpoint import checkpoint_steps, checkpoints, latest_checkpoint
from .plasticity import critic_plasticity
from .sac import MultiTaskSAC
from .storage import remove_leftovers

__all__ = ["CheckpointDirectory", "PlasticityLogger"]


class PlasticityLogger(BaseCallback):
    """Logs the plasticity of the critics at intervals, see :func:`critic_plasticity`.

    It logs means over the critics: ``plasticity/dormant``, the share of dormant units, and ``plasticity/rank``, the
    effective rank of the features. For critics with routes it logs ``plasticity/flow_<critic>_<node>`` for each of
    them, in a mixture the mean weight of an expert, or ``plasticity/flow_<critic>_<layer>_<node>`` if they have several
    routed layers. Training is not affected.

    Args:
        every: The number of environment steps between measurements.
        batch_size: The number of transitions to measure on.
        verbose: As in SB3.

    Example:
        >>> from stable_baselines3.common.logger import Logger
        >>> model = MultiTaskSAC("ScaleMoEPolicy", DummyVecEnv(point_tasks()), learning_starts=8)
        >>> model.set_logger(Logger(None, []))
        >>> model = model.learn(40, callback=PlasticityLogger(20, 64))
        >>> [name for name in model.logger.name_to_value if name.startswith("plasticity")][:3]
        ['plasticity/dormant', 'plasticity/rank', 'plasticity/flow_0_0']
    """

    model: MultiTaskSAC

    def __init__(self, every: int, batch_size: int = 1024, *, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, number in (("every", every), ("batch_size", batch_size)):
            check_count(name, number, at_least=1)
        self.every = every
        self.batch_size = batch_size
        self._last: int | None = None

    def _init_callback(self) -> None:
        self._last = None  # another learn() may have had the same step numbers

    def _on_rollout_start(self) -> None:
        steps, buffer = self.model.num_timesteps, self.model.replay_buffer
        due = self._last is None or steps - self._last >= self.every
        if due and self.model._n_updates and buffer is not None and buffer.size():
            self.write()

    def _on_step(self) -> bool:
        return True

    def write(self) -> None:
        """Measures now and logs the values."""
        self._last = self.model.num_timesteps
        critics = critic_plasticity(self.model, self.batch_size)
        self.logger.record("plasticity/dormant", sum(critic.dormant for critic in critics) / len(critics))
        self.logger.record("plasticity/rank", sum(critic.rank for critic in critics) / len(critics))
        for number, critic in enumerate(critics):
            for layer, flows in enumerate(critic.flow.values()):
                place = f"{number}_{layer}" if len(critic.flow) > 1 else f"{number}"
                for node, share in enumerate(flows[:-1].tolist()):  # the flow of the output is always 1
                    self.logger.record(f"plasticity/flow_{place}_{node}", share, exclude="stdout")


class CheckpointDirectory(BaseCallback):
    """Writes checkpoints at intervals, from which :meth:`MultiTaskSAC.load_checkpoint` resumes exactly.

    A checkpoint is a folder ``step_...`` that appears only when it is complete, so the process may be killed at any
    time. Checkpoints are written between rollouts, when environments, buffer and networks agree; SB3's own callback
    writes in the middle of a step.

    Args:
        every: The number of environment steps between checkpoints.
        folder: The folder that receives them.
        keep: The number of checkpoints to keep.
        notes: Returns plain data to store with each checkpoint, see :meth:`MultiTaskSAC.save_checkpoint`.
        verbose: Whether to print a line for each checkpoint.

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
        check_not_file("folder", self.folder)
        self.keep = keep
        self.notes = notes

    def _init_callback(self) -> None:
        if self.model.action_noise is not None:
            raise ValueError("`action_noise` must be None: checkpoints do not store the state of action noise.")
        remove_leftovers(self.folder, "step_*")
        last = latest_checkpoint(self.folder)
        self._last = checkpoint_steps(last) if last else 0
        if self._last > self.model.num_timesteps:
            raise ValueError(
                f"`folder` must not hold later checkpoints, got {last} at {self.model.num_timesteps} steps; "
                "resume from it with MultiTaskSAC.load_checkpoint, or use another folder."
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
        """Writes a checkpoint now; call it between rollouts."""
        steps = self.model.num_timesteps
        self.model.save_checkpoint(self.folder / f"step_{steps}", self.notes() if self.notes else None)
        self._last = steps
        if self.verbose:
            print(f"checkpoint at {steps} steps in {self.folder}")
        for old in checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)
