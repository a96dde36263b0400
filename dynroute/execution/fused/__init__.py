"""Graphs of equal linear modules as one autograd function that writes its own gradients."""

from .graph import run_fused
from .layers import run_dense, runs_dense
from .linear import ACTIVATIONS, LinearNode, linear_node, linear_nodes
from .tile import run_tile, tiles

__all__ = [
    "ACTIVATIONS",
    "LinearNode",
    "linear_node",
    "linear_nodes",
    "run_dense",
    "run_fused",
    "run_tile",
    "runs_dense",
    "tiles",
]
