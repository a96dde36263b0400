"""Routing layers for torch: choose, for every sample, which modules run and how their outputs are mixed."""

from . import functional, inspect, losses, networks, testing
from .banks import LinearBank
from .budget import Budget, limit_modules
from .checks import set_checks
from .compositional import CompositionalLinear
from .execution import backend
from .extraction import Extracted, Extraction, TaskNetwork, extract
from .freezing import Frozen, freeze_modules
from .gates import Gate, Hard, SampleK, Soft, TopK
from .growth import Resized, grow, open_nodes, prune
from .levels import LayerRouting, ModelRouting, ModuleRouting, OutputRouting, RoutedGraph
from .recording import Record, Recording, record
from .route import Route
from .routers import CascadeRouter, LinearRouter, MLPRouter, Router, TableRouter, TaskRouter
from .topology import Topology

__all__ = [
    "Budget",
    "CascadeRouter",
    "CompositionalLinear",
    "Extracted",
    "Extraction",
    "Frozen",
    "Gate",
    "Hard",
    "LayerRouting",
    "LinearBank",
    "LinearRouter",
    "MLPRouter",
    "ModelRouting",
    "ModuleRouting",
    "OutputRouting",
    "Record",
    "Recording",
    "Resized",
    "Route",
    "RoutedGraph",
    "Router",
    "SampleK",
    "Soft",
    "TableRouter",
    "TaskNetwork",
    "TaskRouter",
    "TopK",
    "Topology",
    "backend",
    "extract",
    "freeze_modules",
    "functional",
    "grow",
    "inspect",
    "limit_modules",
    "losses",
    "networks",
    "open_nodes",
    "prune",
    "record",
    "set_checks",
    "testing",
]

__version__ = "0.1.0"
