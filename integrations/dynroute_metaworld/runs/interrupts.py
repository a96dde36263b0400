"""Ctrl-C and SIGTERM: what waits for a moment, what is shielded from them, and what they end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["shielded", "terminable", "uninterrupted"]


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


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM end what runs here as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Keeps Ctrl-C from processes that are started here, which are only told to ignore it once they have begun."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
