"""Ctrl-C and SIGTERM: what they do for a while, and processes that are shielded from them."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["handling", "shielded", "uninterrupted"]


@contextlib.contextmanager
def handling(handler: Callable[..., object], *numbers: signal.Signals) -> Iterator[None]:
    """Handles signals by a function; threads but the main one are never interrupted, and change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C while a message passes: after half of one, nothing that follows could be understood."""
    came: list[Any] = []
    former = signal.getsignal(signal.SIGINT)
    try:
        with handling(lambda *what: came.append(what), signal.SIGINT):
            yield
    finally:
        if came and callable(former):
            former(*came[-1])


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
