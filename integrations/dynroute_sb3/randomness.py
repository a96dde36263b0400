"""Saving and restoring the random generators that training uses."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """Returns the states of the generators of Python, numpy and torch as plain data."""
    kind, *numpy_state = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, *numpy_state),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the states returned by :func:`random_state`; skips GPUs if their number differs."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
