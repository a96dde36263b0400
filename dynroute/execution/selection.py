"""Which backend runs: the setting of a module, or that of a surrounding context."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["BACKENDS", "backend", "check_backend", "chosen_backend"]

BACKENDS = ("auto", "reference")
"""The names of the backends."""

_override: str | None = None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every routed graph inside the context with one backend, whatever their own settings say.

    Args:
        name: "reference", or "auto" for the fastest that can run the graph.

    Example:
        >>> with dynroute.backend("reference"):
        ...     pass
    """
    global _override
    previous, _override = _override, check_backend(name)
    try:
        yield
    finally:
        _override = previous


def check_backend(name: str) -> str:
    """Returns the name of a backend, or raises an error that lists them."""
    if name not in BACKENDS:
        names = ", ".join(repr(known) for known in BACKENDS)
        raise ValueError(f"`backend` must be one of {names}, got {name!r}.")
    return name


def chosen_backend(setting: str) -> str:
    """The backend that applies to a module with this setting."""
    name = setting if _override is None else _override
    return "reference" if name == "auto" else name
