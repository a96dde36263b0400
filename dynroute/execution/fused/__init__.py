"""The fused backend: graphs of linear modules and mixtures of MLPs as autograd functions of the whole graph."""

from .dense import run_dense, runs_dense
from .experts import run_experts
from .graph import run_fused
from .grouped import groups, run_grouped
from .linear import LinearNode, Perceptron, linear_nodes, perceptrons
from .tile import run_tile, tiles

__all__ = [
    "LinearNode",
    "Perceptron",
    "groups",
    "linear_nodes",
    "perceptrons",
    "run_dense",
    "run_experts",
    "run_fused",
    "run_grouped",
    "run_tile",
    "runs_dense",
    "tiles",
]
