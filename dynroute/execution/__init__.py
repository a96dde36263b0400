"""The ways to execute a routed graph. A backend never changes what is computed, only how."""

from .backends import BACKENDS, backend, check_backend, run_graph
from .plan import Pass, Plan

__all__ = ["BACKENDS", "Pass", "Plan", "backend", "check_backend", "run_graph"]
