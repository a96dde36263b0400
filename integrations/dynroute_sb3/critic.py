"""The critics: networks of the registry that read state, action and task."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from torch import Tensor, nn

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
        together: Whether the networks run as one, with batched products. If None they do on a GPU, where nothing is
            routed; on the CPU that takes 1.04 to 3.8 times as long as one after the other (mt-sac, PaCo).
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

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        *,
        path: Tensor | None = None,
        sample: bool = False,
        temperature: float | Tensor = 1.0,
    ) -> Tensor:
        """The values of actions, with shape ``[critics, batch]``; the keywords are those of the networks."""
        state, task = self.task_space.split(observations)
        inputs = torch.cat([state, actions], dim=-1)
        routed = any(getattr(net, "topology", None) is not None for net in self.nets)
        if self.together if self.together is not None else inputs.device.type != "cpu" and not routed:
            return self._values_together(inputs, task).squeeze(-1)
        values = [net(inputs, task, path=path, sample=sample, temperature=temperature) for net in self.nets]
        return torch.stack(values).squeeze(-1)

    def _values_together(self, inputs: Tensor, task: Tensor) -> Tensor:
        named = [dict(net.named_parameters()) for net in self.nets]
        stacked = {name: torch.stack([parameters[name] for parameters in named]) for name in named[0]}

        def values(parameters: dict[str, Tensor]) -> Tensor:
            value: Tensor = torch.func.functional_call(self.nets[0], parameters, (inputs, task), {"sample": False})
            return value

        result: Tensor = torch.vmap(values)(stacked)
        return result
