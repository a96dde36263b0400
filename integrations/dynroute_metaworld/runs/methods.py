"""The table of methods: what each is, and how many parameters it has."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from dynroute import Soft
from dynroute.networks import PRESETS, build
from dynroute_sb3.growth import network_size
from dynroute_sb3.options import check_balance, check_router_rate
from dynroute_sb3.own_networks import samples_routes

from ..envs.environment import STATE_FEATURES
from .configuration import Configuration

__all__ = ["build_actor", "build_critic", "check_network", "check_routes", "count_parameters", "methods_table"]

ACTIONS = 4
PUBLISHED = {
    "mt-sac": (1.33, 1.36),
    "mh-sac": (1.36, 1.54),
    "sm": (1.59, 1.62),
    "care": (1.23, 1.26),
    "paco": (3.39, 3.39),
    "d2r": (1.37, 1.40),
}
"""Millions of parameters in D2R's table 8, for 10 and 50 tasks."""


def build_actor(configuration: Configuration, device: str = "meta", **sizes: Any) -> nn.Module:
    """The network of a configuration's actor, by default without memory; `sizes` override its keywords."""
    shape = (STATE_FEATURES, len(configuration.tasks), 2 * ACTIONS)
    return build(configuration.method, *shape, device=device, **{**configuration.given_kwargs, **sizes})


def build_critic(configuration: Configuration, actor: nn.Module, device: str = "meta") -> nn.Module:
    """The network of a critic beside an actor on the same device, by default without memory."""
    sizes = {**configuration.given_kwargs, **configuration.critic_network, **getattr(actor, "shared", {})}
    outputs = configuration.bins if configuration.critic_loss == "categorical" else 1
    shape = (STATE_FEATURES + ACTIONS, len(configuration.tasks), outputs)
    return build(configuration.method, *shape, device=device, **sizes)


def check_network(configuration: Configuration) -> None:
    """Raises an error if the networks of a configuration cannot be built, or do not support its options."""
    network = build_actor(configuration)
    critic = build_critic(configuration, network)
    _check_growth(configuration, network, critic)
    _check_gates(configuration, network, critic)
    routed = getattr(network, "routed", None)
    if configuration.router_lr is not None:
        check_router_rate(configuration.router_lr, [network, critic])
    if configuration.route_balance:
        check_balance(configuration.route_balance, [network, critic])
    for name, weight in configuration.cloning.route_losses.items():
        rule = f"`{name}` must be 0"
        if not configuration.cloning_steps:
            raise ValueError(f"{rule} without cloning, which `dynroute imitate` does, got {weight:g}.")
        if routed is None:
            raise ValueError(
                f"{rule} for the method {configuration.method}, which has no learned routes, got {weight:g}."
            )
        if name == "cloning_balance" and isinstance(routed.gate, Soft):
            raise ValueError(
                f"{rule} with the gate soft, which reads all sources, got {weight:g}; --cloning-importance balances "
                "their weights."
            )


def check_routes(configurations: Sequence[Configuration], given: Collection[str]) -> None:
    """Raises an error if an option of routes was given that has no effect in any of several runs."""
    if not (names := [name for name in ("actor_paths", "critic_paths", "route_temperature") if name in given]):
        return
    actors = [build_actor(each) for each in configurations]
    nets = [*actors, *map(build_critic, configurations, actors)]
    routed = any(getattr(net, "routed", None) is not None for net in nets)
    for name in names:
        sampled = name == "route_temperature"
        if not (any(map(samples_routes, nets)) if sampled else routed):
            kind = "that sample no paths" if sampled else "without routes"
            value, methods = getattr(configurations[0], name), dict.fromkeys(each.method for each in configurations)
            raise ValueError(f"`{name}` must be left out for networks {kind}, got {value!r} for {', '.join(methods)}.")


def _check_growth(configuration: Configuration, network: nn.Module, critic: nn.Module) -> None:
    """Raises an error if a network cannot grow to the modules that are asked for."""
    if (most := configuration.grow_to) is None:
        return
    try:
        keyword, modules = network_size(network)
        critic_keyword, _ = network_size(critic)
    except ValueError:
        raise ValueError(
            f"`grow_to` needs a network that routes at module or model level, such as those of d2r and moe by default, "
            f"got {most} with the method {configuration.method}."
        ) from None
    if keyword != critic_keyword:
        raise ValueError(f"`grow_to` needs critics that route at the level of their actor, got {most}.")
    if most <= modules:
        raise ValueError(
            f"`grow_to` must be more than the {modules} modules that the network starts with, got {most}; start with "
            f"fewer, for instance --network {keyword}=2."
        )
    for name in ("overlap", "compile"):
        if getattr(configuration, name):
            raise ValueError(f"`grow_to` cannot be used with --{name}, which needs networks of a fixed size.")


def _check_gates(configuration: Configuration, network: nn.Module, critic: nn.Module) -> None:
    """Raises an error if a gate that was given reads more sources than a node will ever have."""
    added = 0
    if configuration.grow_to is not None:
        added = configuration.grow_to - network_size(network)[1]
    elif configuration.warm_start is not None:  # its network may have grown
        return
    given = configuration.network_kwargs
    for net, kwargs, where in (
        (network, given, ""),
        (critic, {**given, **configuration.critic_network}, " of the critics"),
    ):
        gate, routed = kwargs.get("gate"), getattr(net, "routed", None)
        if gate is None or routed is None:
            continue
        most, sources = routed.gate.max_sources, routed.topology.path_shape[-1] + added
        if most is not None and most > sources:
            raise ValueError(
                f"`gate` must read at most the {sources} sources of a node{where}, got {gate!r}; soft reads all."
            )


def count_parameters(method: str, num_tasks: int) -> tuple[int, int]:
    """The parameters of a method's actor, and of actor and one critic together, as in D2R's table 8.

    Example:
        >>> from dynroute_metaworld.runs.methods import count_parameters
        >>> count_parameters("d2r", 10)
        (684240, 1369177)
    """
    actor = build(method, STATE_FEATURES, num_tasks, 2 * ACTIONS, device="meta")
    shared = getattr(actor, "shared", {})
    critic = build(method, STATE_FEATURES + ACTIONS, num_tasks, 1, device="meta", **shared)
    both = {id(parameter): parameter.numel() for net in (actor, critic) for parameter in net.parameters()}
    return sum(parameter.numel() for parameter in actor.parameters()), sum(both.values())


def methods_table(num_tasks: int = 10) -> str:
    """A row for each method of :func:`dynroute.networks.available`."""
    published = dict(zip((10, 50), zip(*PUBLISHED.values(), strict=True), strict=True)).get(num_tasks)
    millions = dict(zip(PUBLISHED, published, strict=True)) if published else {}
    lines = [f"{'method':16} {'actor':>9} {'with critic':>11} {'published':>9}  what it is, for {num_tasks} tasks"]
    for name, preset in PRESETS.items():
        actor, both = count_parameters(name, num_tasks)
        paper = f"{millions[name]:.2f} M" if name in millions else ""
        lines.append(f"{name:16} {actor:>9,} {both:>11,} {paper:>9}  {preset.summary}")
    return "\n".join(lines)
