"""The policies of MultiTaskSAC: an actor, its critics and their targets, all made from one kind of network."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from dynroute import Topology, networks
from dynroute.arguments import check_count, shown

from .actor import MultiTaskActor
from .categorical import VALUE_RANGE
from .critic import MultiTaskCritic
from .gaussian import LOG_STD_RANGE
from .layers import NetArch, layer_keywords
from .observation import TaskSpace
from .own_networks import check_apart, check_factory, try_network

__all__ = [
    "POLICIES",
    "BRCPolicy",
    "CAREPolicy",
    "D2RPolicy",
    "HardRoutingPolicy",
    "MlpPolicy",
    "MoEPolicy",
    "MultiHeadPolicy",
    "MultiTaskPolicy",
    "PaCoPolicy",
    "ScaleMoEPolicy",
    "SoftModularPolicy",
    "build_network",
]

NetworkLike = str | Callable[..., nn.Module]

NO_SDE = (
    "`use_sde` must be False: state-dependent exploration draws a matrix for the last features of one MLP and keeps it "
    "for many steps, and a routed network has no such features for all routes. For noise that lasts, give "
    "`action_noise`, for instance OrnsteinUhlenbeckActionNoise."
)
"""The error of an option of SB3 that no policy supports."""


def build_network(
    network: NetworkLike, space: TaskSpace, out_features: int, *, extra_features: int = 0, **sizes: Any
) -> nn.Module:
    """Builds a network for the tasks of a space; raises an error if a user's network does not fit them."""
    check_factory(network)
    net = networks.build(network, space.state_features + extra_features, space.num_tasks, out_features, **sizes)
    for name, expected in (
        ("num_tasks", space.num_tasks),
        ("state_features", space.state_features + extra_features),
        ("out_features", out_features),
    ):
        if (got := getattr(net, name, expected)) != expected:
            raise ValueError(
                f"`network` must make networks with {name}={expected}, as the observations and actions have it, "
                f"got one with {name}={got}; pass the arguments of the factory on."
            )
    if not isinstance(network, str):
        try_network(net, space.state_features + extra_features, space.num_tasks, out_features)
    return net


class MultiTaskPolicy(SACPolicy):
    """An actor, critics and target critics for several tasks.

    Args:
        observation_space: The space of the observations, which end with the one-hot of the task.
        action_space: The space of the actions.
        lr_schedule: The learning rate as a function of the remaining progress.
        num_tasks: The number of tasks; MultiTaskSAC sets it, and it must be given.
        network: A name of :func:`dynroute.networks.available`, or a function that makes a network from
            ``(state_features, num_tasks, out_features, **network_kwargs)``; see :mod:`dynroute_sb3.own_networks`.
        network_kwargs: Keywords of the network, for instance ``{"num_modules": 8}``.
        critic_kwargs: Keywords of the critics' networks that differ, for instance ``{"width": 4096, "blocks": 2}`` with
            ``network_kwargs={"width": 256, "blocks": 1}``.
        n_critics: The number of critics.
        use_sde: Not supported.
        optimizer_class: The optimizer.
        optimizer_kwargs: Keywords of the optimizer; default: the fused form of Adam.
        net_arch: The widths of the hidden layers of the networks "mt-sac" and "mh-sac", as in SB3: a list, or a
            dictionary with the actor's under "pi" and the critics' under "qf".
        activation_fn: The activation between these layers; ReLU if None.
        bins: The number of bins over which the critics predict distributions of values; None for values. MultiTaskSAC
            sets it.
        value_range: The values of the first bin and of the last.
        log_std: How the log-standard deviation is kept in its range: "clamp" clips it, "tanh" squashes it (BRC).
        log_std_range: The range; (-10, 2) in BRC.
        normalize_images: As in SB3; it has no effect on vectors.
        others: SB3's other keywords, which do not apply to these networks; each raises an error that says why.

    Example:
        >>> model = MultiTaskSAC(MultiTaskPolicy, DummyVecEnv(point_tasks()), policy_kwargs={"network": "hard"})
        >>> model.actor.net.describe()
        'HardRouting: 566,580 parameters, 17 nodes, 52 routed edges, Hard()'
    """

    default_network: NetworkLike = "mt-sac"
    """The default network."""

    actor: MultiTaskActor  # type: ignore[assignment]
    critic: MultiTaskCritic  # type: ignore[assignment]
    critic_target: MultiTaskCritic  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        num_tasks: int | None = None,
        network: NetworkLike | None = None,
        network_kwargs: Mapping[str, Any] | None = None,
        n_critics: int = 2,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        *,
        net_arch: NetArch | None = None,
        activation_fn: Callable[[], nn.Module] | None = None,
        bins: int | None = None,
        value_range: tuple[float, float] = VALUE_RANGE,
        log_std: str = "clamp",
        log_std_range: tuple[float, float] = LOG_STD_RANGE,
        critic_kwargs: Mapping[str, Any] | None = None,
        normalize_images: bool = True,
        **others: Any,
    ) -> None:
        if num_tasks is None:
            raise ValueError(
                "`num_tasks` must be given, which MultiTaskSAC does: the policy is for MultiTaskSAC, not for SB3's "
                "algorithms; with PPO and A2C take MultiTaskActorCriticPolicy."
            )
        if use_sde:
            raise ValueError(NO_SDE)
        _refuse_others(others)
        if optimizer_kwargs is None:
            optimizer_kwargs = {"fused": True} if optimizer_class in (torch.optim.Adam, torch.optim.AdamW) else {}
        if not isinstance(action_space, spaces.Box) or not action_space.shape or 0 in action_space.shape:
            raise ValueError(f"the action space must be a Box of vectors or arrays of numbers, got {action_space}.")
        # The networks replace everything that SACPolicy builds, so its constructor is skipped.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            squash_output=True,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
        )
        self.task_space = TaskSpace(observation_space, num_tasks)
        check_count("n_critics", n_critics, at_least=1)
        self.network = self.default_network if network is None else network
        check_factory(self.network)
        for name, keywords in (("network_kwargs", network_kwargs), ("critic_kwargs", critic_kwargs)):
            if not isinstance(keywords, Mapping | None):
                raise TypeError(f"`{name}` must be a dictionary of keywords, got {shown(keywords)}.")
        self.network_kwargs = dict(network_kwargs or {})
        self.critic_kwargs = dict(critic_kwargs or {})
        self.net_arch, self.activation_fn = net_arch, activation_fn  # type: ignore[assignment]
        self.n_critics = n_critics
        self.bins, self.value_range = bins, value_range
        self._distribution: dict[str, Any] = {"log_std": log_std, "log_std_range": log_std_range}
        self._build(lr_schedule)

    @property
    def topology(self) -> Topology | None:
        """The graph that the actor routes; None in a network without learned routes."""
        topology: Topology | None = getattr(self.actor.net, "topology", None)
        return topology

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self.critic = self.make_critic()
        # Shared parameters belong to several networks, so they have a separate optimizer; the targets hold a copy.
        shared = {id(parameter) for parameter in self._shared().values()}
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_target.set_training_mode(False)

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            own = [parameter for parameter in parameters if id(parameter) not in shared]
            return self.optimizer_class(own, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

        self.actor.optimizer = optimizer(list(self.actor.parameters()))
        self.critic.optimizer = optimizer(list(self.critic.parameters()))
        self.shared_optimizer = (
            self.optimizer_class(self._shared().values(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
            if shared
            else None
        )

    def _shared(self) -> dict[str, nn.Parameter]:
        shared: dict[str, nn.Parameter] = getattr(self.actor.net, "shared", {})
        return shared

    def _keywords(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keywords of the actor's network and of the critics' networks."""
        layers = self.net_arch, self.activation_fn
        return layer_keywords(self.network, self.network_kwargs, *layers, self.critic_kwargs)

    def make_actor(self, features_extractor: object = None) -> MultiTaskActor:  # type: ignore[override]
        """Makes the actor; SB3's features extractor is not used."""
        assert isinstance(self.action_space, spaces.Box)
        kwargs, actions = self._keywords()[0], get_action_dim(self.action_space)
        net = build_network(self.network, self.task_space, 2 * actions, **kwargs)
        if (become_actor := getattr(net, "become_actor", None)) is not None:
            become_actor()
        return MultiTaskActor(self.observation_space, self.action_space, net, self.task_space, **self._distribution)

    def make_critic(self, features_extractor: object = None) -> MultiTaskCritic:  # type: ignore[override]
        """Makes the critics, which share the shared parameters of the actor's network."""
        assert isinstance(self.action_space, spaces.Box)
        kwargs, actions = {**self._keywords()[1], **self._shared()}, get_action_dim(self.action_space)
        nets = [
            build_network(self.network, self.task_space, self.bins or 1, extra_features=actions, **kwargs)
            for _ in range(self.n_critics)
        ]
        check_apart([self.actor.net, *nets])
        value_range = None if self.bins is None else self.value_range
        return MultiTaskCritic(self.observation_space, self.action_space, nets, self.task_space, value_range)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Predicts actions, sampled along a sampled route, or the mean along the best route."""
        return super().predict(self.task_space.read(observation), state, episode_start, deterministic)

    def compile_networks(self, backend: str) -> None:
        """Compiles the networks with torch.compile; their parameters keep their names."""
        for net in (self.actor.net, *self.critic.nets, *self.critic_target.nets):
            net.compile(backend=backend)

    def set_training_mode(self, mode: bool) -> None:
        """Sets the mode of actor and critics only if it changes, since setting it costs more than acting."""
        if not self.actor.training == self.critic.training == mode:
            super().set_training_mode(mode)

    def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:  # type: ignore[override]
        return self.actor(observation, deterministic)  # type: ignore[no-any-return]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        spaces_and_networks = ("observation_space", "action_space", "network", "network_kwargs", "critic_kwargs")
        layers = ("net_arch", "activation_fn", "n_critics", "bins", "value_range")
        names = (*spaces_and_networks, *layers, "optimizer_class", "optimizer_kwargs")
        attributes = {name: getattr(self, name) for name in names}
        num_tasks = self.task_space.num_tasks
        return {**attributes, **self._distribution, "num_tasks": num_tasks, "lr_schedule": self._dummy_schedule}


ELSEWHERE: Mapping[str, str] = {
    "log_std_init": "SB3's SAC reads it for `use_sde` alone; the standard deviation is an output of the network here",
    "use_expln": "SB3's SAC reads it for `use_sde` alone; the standard deviation is an output of the network here",
    "clip_mean": "SB3's SAC reads it for `use_sde` alone; the mean is an output of the network here",
    "features_extractor_class": "a network reads the state as it is; what comes before belongs into `network`",
    "features_extractor_kwargs": "a network reads the state as it is; what comes before belongs into `network`",
    "share_features_extractor": "actor and critics have no part in common, except for what their networks share",
}
"""SB3's policy keywords that do not apply here, with the reason."""


SB3_DEFAULTS: Mapping[str, Any] = {
    "log_std_init": -3,
    "use_expln": False,
    "clip_mean": 2.0,
    "features_extractor_class": FlattenExtractor,
    "share_features_extractor": False,
}
"""Their defaults in SB3, which may be given."""


def _refuse_others(others: Mapping[str, Any]) -> None:
    """Raises an error for a keyword that does not apply, unless it has SB3's default."""
    for name, value in others.items():
        if name not in ELSEWHERE:
            raise TypeError(
                f"`policy_kwargs` must be keywords of MultiTaskPolicy, got `{name}`; keywords of the network belong in "
                "`network_kwargs`."
            )
        if value is not None and value != {} and value != SB3_DEFAULTS.get(name):
            raise ValueError(
                f"`{name}` must not be given in `policy_kwargs`, got {shown(value)}: {ELSEWHERE[name]}, whose keywords "
                "are `network_kwargs`."
            )


class MlpPolicy(MultiTaskPolicy):
    """An MLP that reads the one-hot of the task (multi-task SAC)."""

    default_network = "mt-sac"


class MultiHeadPolicy(MultiTaskPolicy):
    """One trunk and a head for each task (multi-head SAC)."""

    default_network = "mh-sac"


class MoEPolicy(MultiTaskPolicy):
    """A mixture of whole networks by a learned gate."""

    default_network = "moe"


class HardRoutingPolicy(MultiTaskPolicy):
    """A learned choice of one module in each layer for each task."""

    default_network = "hard"


class SoftModularPolicy(MultiTaskPolicy):
    """Soft Modularization as released."""

    default_network = "sm"


class CAREPolicy(MultiTaskPolicy):
    """A mixture of encoders with attention that depends on metadata of the task."""

    default_network = "care"


class PaCoPolicy(MultiTaskPolicy):
    """Parameter-compositional networks; actor and critics share the table of compositions."""

    default_network = "paco"


class D2RPolicy(MultiTaskPolicy):
    """Dynamic depth routing by the rules of the paper."""

    default_network = "d2r"


class BRCPolicy(MultiTaskPolicy):
    """Residual networks with layer normalization; the actor reads the critics' embedding of the task (BRC).

    The default sizes are as in ``dynroute.networks.build("brc", ...)``; the paper's sizes are
    ``network_kwargs={"blocks": 1}, critic_kwargs={"width": 4096, "blocks": 2}``.
    """

    default_network = "brc"


class ScaleMoEPolicy(MultiTaskPolicy):
    """Mixtures of residual experts whose features are merged (ScaleMoE)."""

    default_network = "scalemoe-feature"


POLICIES: Mapping[str, type[MultiTaskPolicy]] = {
    cls.__name__: cls
    for cls in (
        MultiTaskPolicy,
        MlpPolicy,
        MultiHeadPolicy,
        MoEPolicy,
        HardRoutingPolicy,
        SoftModularPolicy,
        CAREPolicy,
        PaCoPolicy,
        D2RPolicy,
        BRCPolicy,
        ScaleMoEPolicy,
    )
}
"""The policies of MultiTaskSAC by name."""
