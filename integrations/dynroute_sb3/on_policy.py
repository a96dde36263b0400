"""A policy with the networks for SB3's on-policy algorithms, such as PPO."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from dynroute.checks import checks_values

from .observation import TaskSpace
from .own_networks import check_apart, run_network, takes_routing
from .policies import NetworkLike, build_network

__all__ = ["MultiTaskActorCriticPolicy"]


USED = {"use_sde", "optimizer_class", "optimizer_kwargs", "normalize_images"}
"""The keywords of SB3's policy that have an effect here."""


class MultiTaskActorCriticPolicy(ActorCriticPolicy):
    """A policy and a value function for several tasks, for ``PPO(MultiTaskActorCriticPolicy, env, ...)``.

    Routes are the best ones and not sampled, since an on-policy update compares the probability of an action before and
    after the update under the same routing rule.

    Args:
        observation_space: The space of the observations, which end with the one-hot of the task.
        action_space: The space of the actions, a Box.
        lr_schedule: The learning rate as a function of the remaining progress.
        num_tasks: The number of tasks, which SB3 passes on from `policy_kwargs`; it must be given.
        network: A name of :func:`dynroute.networks.available`, or a function that makes a network.
        network_kwargs: Keywords of the network.
        log_std_init: The initial logarithm of the standard deviation of the actions.
        kwargs: The keywords `optimizer_class`, `optimizer_kwargs` and `normalize_images` of SB3's ActorCriticPolicy;
            its others are about networks that are not there.

    Example:
        >>> from stable_baselines3 import PPO
        >>> sizes = {"num_tasks": 4, "network_kwargs": {"num_modules": 4, "width": 16}}
        >>> env = DummyVecEnv(point_tasks())
        >>> model = PPO(MultiTaskActorCriticPolicy, env, n_steps=16, policy_kwargs=sizes, device="cpu")
        >>> model.learn(64).predict(env.reset(), deterministic=True)[0].shape
        (4, 2)
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        num_tasks: int | None = None,
        network: NetworkLike = "d2r",
        network_kwargs: Mapping[str, Any] | None = None,
        log_std_init: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Box) or kwargs.get("use_sde"):
            raise ValueError("`action_space` must be a Box, and `use_sde` False, for these networks.")
        useless = sorted(name for name in set(kwargs) - USED if kwargs[name] not in (None, False, {}))
        if useless:
            raise ValueError(
                f"`{useless[0]}` must not be given: `network` and `network_kwargs` say all of the networks."
            )
        if num_tasks is None:
            raise ValueError(
                "`num_tasks` must be given in `policy_kwargs`, since a policy does not see the environments: "
                'policy_kwargs={"num_tasks": 4}, for instance.'
            )
        self.num_tasks = num_tasks
        self.network = network
        self.network_kwargs = dict(network_kwargs or {})
        used = {name: value for name, value in kwargs.items() if name in USED}
        super().__init__(observation_space, action_space, lr_schedule, log_std_init=log_std_init, **used)

    def _build(self, lr_schedule: Schedule) -> None:
        space = TaskSpace(self.observation_space, self.num_tasks)
        assert isinstance(self.action_space, spaces.Box)
        actions = int(np.prod(self.action_space.shape))
        actor = build_network(self.network, space, actions, **self.network_kwargs)
        shared: dict[str, nn.Parameter] = getattr(actor, "shared", {})
        value = build_network(self.network, space, 1, **{**self.network_kwargs, **shared})
        check_apart([actor, value])
        self.mlp_extractor = _Networks(space, actor, value)  # type: ignore[assignment]
        # The networks compute the final outputs, so the layers that SB3 adds are identities.
        self.action_net = self.value_net = nn.Identity()  # type: ignore[assignment]
        self.log_std = nn.Parameter(torch.full((actions,), self.log_std_init))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Acts on observations, as in SB3, which must end with a one-hot."""
        self._check_tasks(obs)
        return super().forward(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        self._check_tasks(observation)
        return super()._predict(observation, deterministic)

    def _check_tasks(self, observations: PyTorchObs) -> None:
        """Raises an error unless observations end with the one-hot of one of the tasks."""
        assert isinstance(observations, Tensor)
        if checks_values(observations):
            TaskSpace(self.observation_space, self.num_tasks).tasks(observations.numpy(force=True))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        spaces_and_networks = ("observation_space", "action_space", "num_tasks", "network", "network_kwargs")
        names = (*spaces_and_networks, "log_std_init", "optimizer_class", "optimizer_kwargs")
        return {**{name: getattr(self, name) for name in names}, "lr_schedule": self._dummy_schedule}


class _Networks(nn.Module):
    """The extractor of SB3, from features to the latent vectors of policy and value."""

    def __init__(self, space: TaskSpace, actor: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.space = space
        self.actor, self.value = actor, value
        self.actor_routing, self.value_routing = takes_routing(actor), takes_routing(value)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return self._run(self.actor, features, routing=self.actor_routing)

    def forward_critic(self, features: Tensor) -> Tensor:
        return self._run(self.value, features, routing=self.value_routing)

    def _run(self, net: nn.Module, features: Tensor, *, routing: bool) -> Tensor:
        """Runs a network in the type of its parameters, and returns its output in the type of the features."""
        state, task = self.space.split(features.to(next(net.parameters()).dtype))
        return run_network(net, state, task, routing=routing, sample=False)[0].to(features.dtype)
