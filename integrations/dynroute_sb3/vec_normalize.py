"""SB3's VecNormalize for observations that end with the one-hot of a task, which is not normalized."""

from typing import Any

from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from .observation import TaskSpace, count_tasks

__all__ = ["MultiTaskVecNormalize"]


class MultiTaskVecNormalize(VecNormalize):
    """Normalizes rewards and states like VecNormalize, with one mean and deviation for all tasks.

    Args:
        venv: The environments.
        args: The other arguments of VecNormalize.
        num_tasks: The number of tasks; default: the attribute `num_tasks` of the environments.
        kwargs: The other keywords of VecNormalize.

    Example:
        >>> env = MultiTaskVecNormalize(DummyVecEnv(point_tasks()))
        >>> env.reset()[:2, 4:]
        array([[1., 0., 0., 0.],
               [0., 1., 0., 0.]], dtype=float32)
    """

    def __init__(self, venv: VecEnv, *args: Any, num_tasks: int | None = None, **kwargs: Any) -> None:
        num_tasks = count_tasks(venv, num_tasks, policy_kwargs={}, of="MultiTaskVecNormalize")
        self.task_space = TaskSpace(venv.observation_space, num_tasks)
        super().__init__(venv, *args, **kwargs)

    def _normalize_obs(self, obs: NDArray[Any], obs_rms: RunningMeanStd) -> NDArray[Any]:
        return self._with_tasks(super()._normalize_obs(obs, obs_rms), obs)

    def _unnormalize_obs(self, obs: NDArray[Any], obs_rms: RunningMeanStd) -> NDArray[Any]:
        return self._with_tasks(super()._unnormalize_obs(obs, obs_rms), obs)

    def _with_tasks(self, changed: NDArray[Any], obs: NDArray[Any]) -> NDArray[Any]:
        n = self.task_space.state_features
        changed[..., n:] = obs[..., n:]
        return changed
