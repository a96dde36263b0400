"""The ``dynroute`` command: the work that must be done before importing torch, which takes a second or two."""

import importlib
import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from types import FrameType

__all__ = ["WAITING", "main", "run", "wait_without_spinning"]

WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
}
"""Environment variables that make torch's threads sleep while they wait for each other. GNU's OpenMP, and LLVM's and
Intel's, read them when torch is imported. By default threads spin, which wastes cores if other programs run."""


def main() -> int:
    """Runs the command of this program and returns its exit status."""
    wait_without_spinning(os.environ)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Imports do not expect an exception, and nothing has started that must be ended: exit at once.
        signal.signal(signal.SIGINT, _leave)
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 1
    return status


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit status; help and errors of usage import neither torch nor an extra."""
    from .parser import completion, parse

    try:
        options = parse(arguments)
    except ValueError as error:
        return _refuse(error)
    try:
        if options.command == "completion":
            print(completion(options.shell))
            return 0
        commands = importlib.import_module("dynroute_metaworld.cli")
    except ImportError as error:
        return _refuse(error)
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return int(commands.run(options))


def wait_without_spinning(environment: MutableMapping[str, str]) -> None:
    """Sets the variables of :data:`WAITING` in an environment, unless it sets the waiting of threads already.

    Example:
        >>> from dynroute_command import wait_without_spinning
        >>> environment = {"GOMP_SPINCOUNT": "1000"}
        >>> wait_without_spinning(environment)
        >>> environment
        {'GOMP_SPINCOUNT': '1000'}
    """
    if not {"GOMP_SPINCOUNT", *WAITING} & set(environment):
        environment.update(WAITING)


def _refuse(error: Exception) -> int:
    print(f"dynroute: {error}", file=sys.stderr)
    return 1


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\ndynroute: stopped at once\n")
    os._exit(130)
