"""Routing layers for torch: choose, for every sample, which modules run and how their outputs are mixed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import distributed, functional, losses, networks, plasticity, testing
    from . import inspect as inspect  # not in `__all__`: an import of * would hide Python's module
    from .banks import LinearBank
    from .budget import Budget, limit_modules
    from .checks import set_checks
    from .compositional import CompositionalLinear
    from .execution import backend
    from .extraction import Extracted, Extraction, TaskNetwork, extract
    from .freezing import Frozen, freeze_modules
    from .gates import BalancedTopK, ExpertChoice, Gate, Hard, SampleK, Soft, TopK, TopP
    from .growth import Resized, grow, open_nodes, prune
    from .levels import GatedPerceptron, LayerRouting, ModelRouting, ModuleRouting, OutputRouting, RoutedGraph
    from .program import Program, trace_program
    from .recording import Record, Recording, record
    from .route import Route
    from .routers import CascadeRouter, LinearRouter, MLPRouter, Router, RouterNoise, TableRouter, TaskRouter
    from .saving import from_pretrained, save_pretrained
    from .surgery import swap, upcycle
    from .topology import Topology

__all__ = [
    "BalancedTopK",
    "Budget",
    "CascadeRouter",
    "CompositionalLinear",
    "ExpertChoice",
    "Extracted",
    "Extraction",
    "Frozen",
    "Gate",
    "GatedPerceptron",
    "Hard",
    "LayerRouting",
    "LinearBank",
    "LinearRouter",
    "MLPRouter",
    "ModelRouting",
    "ModuleRouting",
    "OutputRouting",
    "Program",
    "Record",
    "Recording",
    "Resized",
    "Route",
    "RoutedGraph",
    "Router",
    "RouterNoise",
    "SampleK",
    "Soft",
    "TableRouter",
    "TaskNetwork",
    "TaskRouter",
    "TopK",
    "TopP",
    "Topology",
    "backend",
    "distributed",
    "extract",
    "freeze_modules",
    "from_pretrained",
    "functional",
    "grow",
    "limit_modules",
    "losses",
    "networks",
    "open_nodes",
    "plasticity",
    "prune",
    "record",
    "save_pretrained",
    "set_checks",
    "swap",
    "testing",
    "trace_program",
    "upcycle",
]

__version__ = "0.1.0"

_MODULES = (
    *("banks", "budget", "checks", "compositional", "distributed", "execution", "extraction", "freezing", "functional"),
    *("gates", "growth", "inspect", "levels", "losses", "networks", "plasticity", "program", "recording", "route"),
    *("routers", "saving", "surgery", "testing", "topology"),
)

if not TYPE_CHECKING:  # otherwise a type checker accepts any name

    def __getattr__(name: str) -> Any:
        """Imports torch and the library when a name is first asked for; `python -m dynroute --help` asks for none."""
        if not name.startswith("_"):
            for module in [importlib.import_module(f".{module}", __name__) for module in _MODULES]:
                for public in set(module.__all__) & set(__all__):
                    globals().setdefault(public, getattr(module, public))  # what a user put there stays
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
