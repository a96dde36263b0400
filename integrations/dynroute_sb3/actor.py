"""The actor: a network whose output is the distribution of the action."""

from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from dynroute import Route
from dynroute.arguments import check_choice, check_interval

from .gaussian import LOG_STD_LIMITS, LOG_STD_RANGE, sample_action, split_output
from .normalizer import StateNormalizer
from .observation import TaskSpace
from .own_networks import run_network, takes_routing

__all__ = ["MultiTaskActor"]


class MultiTaskActor(BasePolicy):
    """Computes actions from observations along a route.

    Args:
        observation_space: The space of the observations.
        action_space: The space of the actions.
        net: The network, from state and task to the mean and log-standard deviation.
        task_space: Splits observations into state and task.
        log_std: How the log-standard deviation is kept in its range, "clamp" or "tanh".
        log_std_range: The range.

    Attributes:
        temperature: The temperature of each task's route sampling (Eq. 14). The algorithm updates it, and a policy that
            is loaded alone explores with it.
        normalizer: Normalizes states.
    """

    temperature: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net: nn.Module,
        task_space: TaskSpace,
        log_std: str = "clamp",
        log_std_range: tuple[float, float] = LOG_STD_RANGE,
    ) -> None:
        check_choice("log_std", log_std, LOG_STD_LIMITS)
        super().__init__(observation_space, action_space, squash_output=True)
        self.log_std, self.log_std_range = log_std, check_interval("log_std_range", log_std_range)
        self.net = net
        self.routing = takes_routing(net)
        self.task_space = task_space
        dtype = next(net.parameters()).dtype
        self.register_buffer("temperature", torch.ones(task_space.num_tasks, dtype=dtype))
        self.normalizer = StateNormalizer(task_space.state_features, dtype=dtype)

    def distribution(
        self,
        observations: Tensor,
        *,
        path: Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Route | None]:
        """Computes the mean and log-standard deviation of the actions, and the route.

        Args:
            observations: Observations with shape ``[batch, state_features + num_tasks]``.
            path: Recorded paths to replay (Eq. 8).
            sample: Whether a gate that can sample does so, at the temperature of the task (Eq. 13).
            generator: The random generator for sampled paths.
        """
        state, task = self.task_space.split(observations.to(self.temperature.dtype))
        sampling = {"temperature": self._temperature(task), "generator": generator} if sample and path is None else {}
        state = self.normalizer(state)
        output, route = run_network(self.net, state, task, routing=self.routing, path=path, sample=sample, **sampling)
        output = output.to(self.temperature.dtype)
        return *split_output(output, limit=self.log_std, log_std_range=self.log_std_range), route

    def _temperature(self, task: Tensor) -> Tensor:
        """The temperature of each sample's task; autocast would round a matrix product to 16 bits."""
        return torch.where(task == 1, self.temperature, 0).sum(dim=-1)

    def action_log_prob(
        self,
        observations: Tensor,
        *,
        path: Tensor | None = None,
        sample: bool = False,
        epsilon: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Route | None]:
        """Draws actions; also returns their log-probabilities, the mean actions and the route.

        The keywords are as in :meth:`distribution` and :func:`~dynroute_sb3.gaussian.sample_action`.
        """
        mean, log_std, route = self.distribution(observations, path=path, sample=sample)
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        return *sample_action(mean, log_std, noise, epsilon=epsilon), torch.tanh(mean), route

    def act(self, observations: Tensor, *, deterministic: bool) -> tuple[Tensor, Route | None]:
        """Returns actions and routes, both sampled, or the mean action along the best route."""
        mean, log_std, route = self.distribution(observations, sample=not deterministic)
        if deterministic:
            return torch.tanh(mean), route
        return sample_action(mean, log_std, torch.randn_like(mean))[0], route

    def forward(self, observations: Tensor, deterministic: bool = False) -> Tensor:
        """Returns the actions of :meth:`act`."""
        return self.act(observations, deterministic=deterministic)[0]

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Predicts actions with an actor that was loaded alone, like :meth:`dynroute_sb3.MultiTaskPolicy.predict`."""
        return super().predict(self.task_space.read(observation), state, episode_start, deterministic)

    def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:  # type: ignore[override]
        return self.forward(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # The network itself is stored, which restores a user's network too.
        names = ("observation_space", "action_space", "net", "task_space", "log_std", "log_std_range")
        return {name: getattr(self, name) for name in names}
