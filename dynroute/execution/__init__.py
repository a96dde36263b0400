"""The ways to execute a routed graph. A backend never changes what is computed, only how."""

from .layers import layers_of
from .selection import BACKENDS, backend, check_backend, run_graph

__all__ = ["BACKENDS", "backend", "check_backend", "layers_of", "run_graph"]
