"""Routers: from a context to the logits of a topology. They hold the parameters of routing."""

from .base import Router, full_precision
from .cascade import CascadeRouter
from .mlp import LinearRouter, MLPRouter
from .noise import RouterNoise
from .task import TableRouter, TaskRouter

__all__ = [
    "CascadeRouter",
    "LinearRouter",
    "MLPRouter",
    "Router",
    "RouterNoise",
    "TableRouter",
    "TaskRouter",
    "full_precision",
]
