"""The ways to execute a routed graph. A backend never changes what is computed, only how."""

from .backends import BACKENDS, backend, check_backend, coupled, run_graph
from .plan import Pass, Plan
from .sparse import call_on_none, touch

__all__ = ["BACKENDS", "Pass", "Plan", "backend", "call_on_none", "check_backend", "coupled", "run_graph", "touch"]
