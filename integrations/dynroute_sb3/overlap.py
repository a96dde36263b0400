"""Updates that run while the environments step."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn, VecEnvWrapper

from .sac import MultiTaskSAC

__all__ = ["OverlappedSAC"]


class OverlappedSAC(MultiTaskSAC):
    """A :class:`MultiTaskSAC` that learns while the environments step.

    Updates that are due after a step run during the next one, so the actions of that step come from the networks before
    these updates. This saves time if environments run in separate processes with idle cores, or if the networks are on
    a GPU. Results depend only on the seed, not on timing, and checkpoints store the updates that are due. Updates
    that are due while the replay buffer is empty, as after ``load``, are dropped.

    Example:
        >>> model = OverlappedSAC("MlpPolicy", DummyVecEnv(point_tasks()), learning_starts=8)
        >>> model.learn(40).updates_due
        1
    """

    overlaps: ClassVar[bool] = True
    updates_due: int = 0

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "OverlappedSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        return super().collect_rollouts(_OverlappedVecEnv(env, self._catch_up), callback, *args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        if self._learning:
            self.updates_due += gradient_steps
        else:
            super().train(gradient_steps, batch_size)

    def _catch_up(self) -> None:
        if self.replay_buffer is not None and not self.replay_buffer.size():
            self.updates_due = 0  # the model was loaded without its buffer, or the buffer was reset
        if self.updates_due:
            before = self._n_updates
            try:
                super().train(self.updates_due, self.batch_size)
            except BaseException:
                self.updates_due -= self._n_updates - before
                raise
            self.updates_due = 0
            self.policy.set_training_mode(False)


class _OverlappedVecEnv(VecEnvWrapper):
    """Environments that call a function while they step."""

    def __init__(self, venv: VecEnv, work: Callable[[], None]) -> None:
        super().__init__(venv)
        self.work = work

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: Any) -> None:
        self.venv.step_async(actions)
        try:
            self.work()
        except BaseException:
            self.venv.step_wait()  # else the next step would get the results of this one
            raise

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()
