"""The ways to execute a routed graph. A backend never changes what is computed, only how."""

from .reference import run_reference
from .selection import BACKENDS, backend, check_backend, chosen_backend

__all__ = ["BACKENDS", "backend", "check_backend", "chosen_backend", "run_reference"]
