"""The critics: networks of the registry that read state, action and task."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from torch import Tensor, nn

from dynroute.networks import Network

from .observation import TaskSpace

__all__ = ["MultiTaskCritic"]


class MultiTaskCritic(BaseModel):
    """Several Q-functions of observations and actions.

    Args:
        observation_space: The space of the observations.
        action_space: The space of the actions.
        nets: One network for each Q-function, (state and action, task) to a value.
        task_space: How observations are split.

    Attributes:
        together: Whether the networks run as one, with batched products. If None they do on a GPU, those of dynroute
            without routes; on the CPU that takes 1.04 to 3.8 times as long as one after the other (mt-sac, PaCo).
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        nets: Sequence[nn.Module],
        task_space: TaskSpace,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.nets = nn.ModuleList(nets)
        self.task_space = task_space
        self.together: bool | None = None

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The values of actions along the best routes, with shape ``[critics, batch]``."""
        if self.together if self.together is not None else self._may_run_together(observations):
            return self._values_together(observations, actions)
        return torch.stack([self.values(i, observations, actions) for i in range(len(self.nets))])

    def values(
        self,
        i: int,
        observations: Tensor,
        actions: Tensor,
        *,
        path: Tensor | None = None,
        sample: bool = False,
        temperature: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The values that one critic gives to actions; the keywords are those of the networks."""
        state, task = self.task_space.split(observations)
        sampling = {"temperature": temperature, "generator": generator} if sample and path is None else {}
        values: Tensor = self.nets[i](torch.cat([state, actions], dim=-1), task, path=path, sample=sample, **sampling)
        return values.squeeze(-1)

    def _may_run_together(self, observations: Tensor) -> bool:
        plain = all(isinstance(net, Network) and net.topology is None for net in self.nets)
        return observations.device.type != "cpu" and plain

    def _values_together(self, observations: Tensor, actions: Tensor) -> Tensor:
        if any(getattr(net, "topology", None) is not None for net in self.nets):
            raise ValueError("`together` must be False or None for networks with routes.")
        state, task = self.task_space.split(observations)
        inputs = torch.cat([state, actions], dim=-1)
        named = [{**dict(net.named_parameters()), **dict(net.named_buffers())} for net in self.nets]
        stacked = {name: torch.stack([tensors[name] for tensors in named]) for name in named[0]}

        def values(tensors: dict[str, Tensor]) -> Tensor:
            value: Tensor = torch.func.functional_call(self.nets[0], tensors, (inputs, task), {"sample": False})
            return value

        result: Tensor = torch.vmap(values)(stacked)
        return result.squeeze(-1)
