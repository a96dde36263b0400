"""SB3's keywords `net_arch` and `activation_fn` as keywords of networks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from dynroute import networks
from dynroute.arguments import shown

__all__ = ["NetArch", "layer_keywords"]

NetArch = Sequence[int] | Mapping[str, Sequence[int]]
"""The widths of hidden layers, for actor and critics together, or separately under `pi` and `qf`."""

LAYERED: tuple[type[nn.Module], ...] = (networks.MultiTaskMLP, networks.MultiHead)
"""The networks whose hidden layers form one MLP."""


def layer_keywords(
    network: str | Callable[..., nn.Module],
    network_kwargs: Mapping[str, Any],
    net_arch: NetArch | None,
    activation_fn: Callable[[], nn.Module] | None,
    critic_kwargs: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the keywords of the actor's network and of the critics' networks.

    Args:
        network: The name of a network, or a function that makes one.
        network_kwargs: The keywords of both.
        net_arch: The widths of hidden layers in SB3's form, if any.
        activation_fn: Makes the activation between them, if any.
        critic_kwargs: The keywords of the critics that differ.

    Example:
        >>> from dynroute_sb3.layers import layer_keywords
        >>> layer_keywords("mt-sac", {}, {"pi": [64], "qf": [256, 256]}, None)
        ({'hidden_sizes': (64,)}, {'hidden_sizes': (256, 256)})
    """
    given_kwargs = {"network_kwargs": network_kwargs, "critic_kwargs": critic_kwargs or {}}
    actor, critic = dict(network_kwargs), {**network_kwargs, **given_kwargs["critic_kwargs"]}
    given = {"net_arch": net_arch, "activation_fn": activation_fn}
    for (name, value), keyword in zip(given.items(), ("hidden_sizes", "activation"), strict=True):
        if value is None:
            continue
        _check_network(name, network)
        for place, keywords in given_kwargs.items():
            if keyword in keywords:
                raise ValueError(
                    f"`{name}` and `{keyword}` of `{place}` say the same; give one of them, got {shown(value)} and "
                    f"{shown(keywords[keyword])}."
                )
        actor[keyword], critic[keyword] = _widths(value) if name == "net_arch" else (value, value)
    return actor, critic


def _check_network(name: str, network: str | Callable[..., nn.Module]) -> None:
    """Raises an error unless a network has layers to which a keyword of SB3 can apply."""
    kind = networks.PRESETS[network].network if isinstance(network, str) and network in networks.PRESETS else network
    if isinstance(kind, type) and issubclass(kind, LAYERED):
        return
    sizes = "the keywords of the function that makes it"
    if isinstance(kind, type) and issubclass(kind, networks.Network):
        sizes = ", ".join(list(inspect.signature(kind).parameters)[3:])
    title = repr(network) if isinstance(network, str) else getattr(network, "__name__", type(network).__name__)
    raise ValueError(
        f"`{name}` needs a network that is one MLP, such as 'mt-sac' or 'mh-sac', got it with "
        f"{title}; give the keywords of {title} in `network_kwargs`: {sizes}."
    )


def _widths(net_arch: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the widths of the actor's and of the critics' layers."""
    parts = net_arch if isinstance(net_arch, Mapping) else {"pi": net_arch, "qf": net_arch}
    if set(parts) != {"pi", "qf"}:
        raise ValueError(
            "`net_arch` must be a list of widths, or a dictionary with the actor's under 'pi' and the "
            f"critics' under 'qf', got the keys {sorted(map(str, parts))}."
        )
    for widths in parts.values():
        listed = isinstance(widths, Sequence) and not isinstance(widths, str)
        if not listed or any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError(f"`net_arch` must list widths of layers, integers of at least 1, got {shown(widths)}.")
    return tuple(parts["pi"]), tuple(parts["qf"])
