"""Handlers of Ctrl-C and SIGTERM inside a block, and processes that are shielded from Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["handling", "shielded", "uninterrupted"]


@contextlib.contextmanager
def handling(handler: Callable[..., object], *numbers: signal.Signals) -> Iterator[None]:
    """Handles signals by a function inside the block; does nothing in other threads than the main one."""
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
    """Delays Ctrl-C while a message passes: after half a message, the receiver could not read the next ones."""
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
    """Blocks Ctrl-C in processes that start inside the block, until they ignore it themselves."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
