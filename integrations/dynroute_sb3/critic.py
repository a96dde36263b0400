"""The critics: networks that read state, action and task."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from torch import Tensor, nn

from dynroute import Route

from .categorical import expectation
from .normalizer import StateNormalizer
from .observation import TaskSpace
from .own_networks import run_network, takes_routing

__all__ = ["MultiTaskCritic"]


class MultiTaskCritic(BaseModel):
    """Several Q-functions of observations and actions.

    Args:
        observation_space: The space of the observations.
        action_space: The space of the actions.
        nets: One network for each Q-function, from state, action and task to a value or to the logits of bins.
        task_space: Splits observations into state and task.
        value_range: The values of the first bin and of the last; None for networks that predict values.

    Attributes:
        normalizer: Normalizes states.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        nets: Sequence[nn.Module],
        task_space: TaskSpace,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.nets = nn.ModuleList(nets)
        self.routing = [takes_routing(net) for net in nets]
        self.task_space = task_space
        self.value_range = value_range
        self.normalizer = StateNormalizer(task_space.state_features, dtype=next(self.parameters()).dtype)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Computes the values of actions along the best routes, with shape ``[critics, batch]``.

        The arguments are as in :meth:`outputs`. The value of a distribution is its expectation.
        """
        outputs, _ = self.outputs(observations, actions)
        return outputs.squeeze(-1) if self.value_range is None else expectation(outputs, self.value_range)

    def outputs(
        self,
        observations: Tensor,
        actions: Tensor,
        *,
        path: Tensor | None = None,
        sample: bool = False,
        temperature: float | Tensor = 1.0,
    ) -> tuple[Tensor, list[Route]]:
        """Computes the outputs of the networks, and the routes of those that have routes.

        Outputs are values or logits of bins, with shape ``[critics, batch, 1 or bins]``.

        Args:
            observations: Observations with shape ``[batch, state_features + num_tasks]``.
            actions: Actions with shape ``[batch, n]``.
            path: Recorded paths to replay (Eq. 8).
            sample: Whether a gate that can sample does so.
            temperature: The temperature of sampling, one for each sample or for all (Eq. 13).
        """
        state, task = self.task_space.split(observations)
        inputs = torch.cat([self.normalizer(state), actions], dim=-1)
        sampling = {"temperature": temperature} if sample and path is None else {}
        outputs, routes = zip(
            *(
                run_network(net, inputs, task, routing=routing, path=path, sample=sample, **sampling)
                for net, routing in zip(self.nets, self.routing, strict=True)
            ),
            strict=True,
        )
        return torch.stack(outputs).to(inputs.dtype), [route for route in routes if route is not None]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # The networks themselves are stored, since new ones would not share parameters.
        names = ("observation_space", "action_space", "task_space", "value_range")
        return {"nets": list(self.nets), **{name: getattr(self, name) for name in names}}
