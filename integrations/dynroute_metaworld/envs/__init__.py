"""Tasks, environments and the processes that run them."""

__all__ = []
