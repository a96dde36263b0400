"""Networks of sizes that a loop over samples can afford."""

from itertools import pairwise

import oracle_networks as naive
from torch import nn

from dynroute.networks import (
    Network,
    build,
)

STATE, TASKS, OUT = 3, 3, 2


SMALL: dict[str, dict[str, object]] = {
    "mt-sac": {"hidden_sizes": (5, 4)},
    "mh-sac": {"hidden_sizes": (5, 4)},
    "moe": {"num_experts": 3, "width": 4, "depth": 2, "router_sizes": (5,)},
    "hard": {"trunk_sizes": (5, 6), "layer_sizes": (2, 3), "width": 4},
    "sm": {"trunk_sizes": (5, 6), "layer_sizes": (2, 3, 2), "width": 4, "router_sizes": (5, 4)},
    "sm-shallow": {"trunk_sizes": (5, 6), "width": 4, "router_sizes": (5, 4)},
    "care": {
        "embedding_features": 3,
        "num_encoders": 3,
        "encoder_sizes": (5, 4),
        "context_sizes": (5, 4),
        "gate_sizes": (5,),
        "hidden_sizes": (6, 5),
    },
    "paco": {"num_sets": 2, "hidden_sizes": (5, 4)},
    "d2r": {"num_modules": 5, "width": 4, "trunk_sizes": (5, 6), "router_sizes": (5, 4)},
    "d2r-released": {"num_modules": 5, "width": 4, "trunk_sizes": (5, 6), "router_sizes": (5, 4)},
    "d2r-layer": {"layer_sizes": (2, 3, 2), "width": 4, "trunk_sizes": (5, 6), "router_sizes": (5, 4)},
    "d2r-model": {"num_models": 3, "model_depth": 2, "width": 4, "trunk_sizes": (5, 6), "router_sizes": (5, 4)},
    "brc": {"width": 5, "blocks": 2, "embedding_features": 3},
    "scalemoe-feature": {"num_experts": 3, "width": 5, "blocks": 2, "embedding_features": 3, "router_sizes": (4,)},
    "scalemoe-output": {"num_experts": 3, "width": 5, "blocks": 1, "embedding_features": 3, "router_sizes": (4,)},
}
"""Sizes that a loop over samples can afford."""


def small(name: str, **sizes: object) -> Network:
    """A small network, its output layer not close to zero."""
    changed = {"output_init": None} if name in ("hard", "sm", "sm-shallow", "paco") or name.startswith("d2r") else {}
    net = build(name, STATE, TASKS, OUT, **{**SMALL[name], **changed, **sizes})
    assert isinstance(net, Network)
    return net


def layers(module: nn.Module) -> list[naive.Layer]:
    return [(part.weight, part.bias) for part in module.modules() if isinstance(part, nn.Linear)]


def normalized(module: nn.Module) -> list[naive.Normalized]:
    """The linear layers that have a layer normalization behind them, with that."""
    parts = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.LayerNorm))]
    followed = [pair for pair in pairwise(parts) if isinstance(pair[1], nn.LayerNorm)]
    return [((layer.weight, layer.bias), (norm.weight, norm.bias)) for layer, norm in followed]


def head(net: Network) -> naive.Layer:
    assert net.routed is not None
    return layers(net.routed.nodes[-1])[0]
