"""Ctrl-C that waits for a moment."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["uninterrupted"]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait while a message passes: after half of one, nothing that follows could be understood."""
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted
        yield
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(*came[-1])
