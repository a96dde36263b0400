"""The networks of the literature, from a state and a task to a vector."""

from .care import CARE
from .depth import DynamicDepthRouting
from .encoder import TaskEncoder
from .hard import HardRouting
from .mixture import MixtureOfExperts
from .mlp import MultiTaskMLP
from .multi_head import MultiHead
from .network import Network, gate_named
from .paco import PaCo
from .registry import PRESETS, Preset, available, build
from .residual import ResidualBlock
from .residual_mlp import ResidualMLP
from .scale_moe import ScaleMoE
from .soft_modularization import SoftModularization

__all__ = [
    "CARE",
    "PRESETS",
    "DynamicDepthRouting",
    "HardRouting",
    "MixtureOfExperts",
    "MultiHead",
    "MultiTaskMLP",
    "Network",
    "PaCo",
    "Preset",
    "ResidualBlock",
    "ResidualMLP",
    "ScaleMoE",
    "SoftModularization",
    "TaskEncoder",
    "available",
    "build",
    "gate_named",
]
