"""Routers turn a context into the logits of a topology; they hold the parameters of routing."""

from .base import EdgeParameter, Router
from .cascade import CascadeRouter
from .mlp import LinearRouter, MLPRouter
from .noise import RouterNoise
from .task import TableRouter, TaskRouter

__all__ = [
    "CascadeRouter",
    "EdgeParameter",
    "LinearRouter",
    "MLPRouter",
    "Router",
    "RouterNoise",
    "TableRouter",
    "TaskRouter",
]
