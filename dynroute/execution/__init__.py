"""Backends that execute a routed graph; they change how it is computed and not the result."""

from .backends import BACKENDS, backend, check_backend, coupled, run_graph
from .plan import Pass, Plan
from .sparse import call_on_none, touch

__all__ = ["BACKENDS", "Pass", "Plan", "backend", "call_on_none", "check_backend", "coupled", "run_graph", "touch"]
