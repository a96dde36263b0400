"""The networks by name, at their published sizes."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..arguments import check_choice, shown
from .care import CARE
from .depth import DynamicDepthRouting
from .hard import HardRouting
from .mixture import MixtureOfExperts
from .mlp import MultiTaskMLP
from .multi_head import MultiHead
from .network import Network
from .paco import PaCo
from .residual_mlp import ResidualMLP
from .scale_moe import ScaleMoE
from .soft_modularization import SoftModularization

__all__ = ["PRESETS", "Preset", "available", "build"]


@dataclass(frozen=True)
class Preset:
    """A network class with sizes.

    Attributes:
        network: The class.
        summary: A description in one line.
        sizes: The keywords that differ from the defaults of the class.
    """

    network: type[Network]
    summary: str
    sizes: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    "mt-sac": Preset(MultiTaskMLP, "one MLP for all tasks"),
    "mh-sac": Preset(MultiHead, "one trunk, a head for each task"),
    "moe": Preset(MixtureOfExperts, "whole networks, mixed by a learned gate"),
    "hard": Preset(HardRouting, "one module of each layer for each task"),
    "sm": Preset(SoftModularization, "Soft Modularization as released, four layers of four", {"output_init": 3e-3}),
    "sm-shallow": Preset(
        SoftModularization,
        "Soft Modularization as released, two layers of two wider modules",
        {"layer_sizes": (2, 2), "width": 256, "output_init": 3e-3},
    ),
    "care": Preset(CARE, "a mixture of encoders, attended by metadata of the task or by a learned embedding"),
    "paco": Preset(PaCo, "every layer composed of shared parameter sets"),
    "d2r": Preset(DynamicDepthRouting, "dynamic depth routing by the rules of the paper"),
    "d2r-released": Preset(
        DynamicDepthRouting, "dynamic depth routing with the protection of the released code", {"protect": "input"}
    ),
    "d2r-layer": Preset(DynamicDepthRouting, "the parts of D2R at layer level", {"level": "layer"}),
    "d2r-model": Preset(DynamicDepthRouting, "the parts of D2R at model level", {"level": "model"}),
    "brc": Preset(ResidualMLP, "residual blocks that read an embedding of the task"),
    "scalemoe-feature": Preset(ScaleMoE, "residual experts, their features merged"),
    "scalemoe-output": Preset(ScaleMoE, "residual experts, their outputs merged", {"level": "output"}),
}
"""The networks of :func:`build` by name."""


def available() -> tuple[str, ...]:
    """Lists the names of networks for :func:`build`.

    Example:
        >>> available()[:3]
        ('mt-sac', 'mh-sac', 'moe')
    """
    return tuple(PRESETS)


def build(
    name: str | Callable[..., nn.Module], state_features: int, num_tasks: int, out_features: int, **sizes: Any
) -> nn.Module:
    """Builds a network by its name.

    Args:
        name: A name of :func:`available`, or a function that makes a network from the same arguments.
        state_features: The width of the state, without the task.
        num_tasks: The number of tasks.
        out_features: The width of the output.
        sizes: Keywords of the network's class, in place of the preset's.

    Example:
        >>> build("d2r", 39, 10, 8, num_modules=8).describe()
        'DynamicDepthRouting (module level): 526,444 parameters, 9 nodes, 36 routed edges, SampleK(2), rsg'
    """
    if not isinstance(name, str):
        if isinstance(name, nn.Module) or not callable(name):
            raise TypeError(f"`name` must be a name of `available()` or make a network, got {shown(name)}.")
        return name(state_features, num_tasks, out_features, **sizes)
    check_choice("name", name, PRESETS)
    preset = PRESETS[name]
    keywords = list(inspect.signature(preset.network).parameters)[3:]
    for keyword in sizes:
        if keyword not in keywords:
            near = difflib.get_close_matches(keyword, keywords, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(keywords)}."
            raise ValueError(f"`{keyword}` is not a keyword of the network {name}; {hint}")
    return preset.network(state_features, num_tasks, out_features, **{**preset.sizes, **sizes})
