"""Worker processes, each with several environments, which share memory with the process that learns.

SubprocVecEnv does not suffice: shared memory was measured to be 1.5 to 1.7 times as fast as its pipes.
"""

import atexit
import contextlib
import ctypes
import itertools
import multiprocessing
import signal
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from metaworld.types import Task
from numpy.typing import NDArray

from .environment import STATE_FEATURES, TaskEnvironment
from .signals import shielded, uninterrupted

__all__ = [
    "LAYOUT",
    "DeadWorkerError",
    "Group",
    "Remote",
    "Shared",
    "Specification",
    "WorkerError",
    "deal",
    "processes",
    "with_restart",
]

T = TypeVar("T")


class WorkerError(RuntimeError):
    """A process that holds environments has died, or an environment has raised an error.

    Example:
        >>> env = make_envs("reach")
        >>> env.set_state({**env.get_state(), "states": [{"task": "reach"}]})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        dynroute_metaworld.envs.workers.WorkerError: task 'reach' failed in set_state after 0 steps of its episode: ...
    """


class DeadWorkerError(WorkerError):
    """A process that holds environments has died."""


@dataclass(frozen=True)
class Specification:
    """How an environment is made.

    Attributes:
        name: The task.
        row: Its row in the benchmark, which decides its seed and its one-hot.
        num_tasks: The number of tasks of the benchmark.
        tasks: The goals of the benchmark.
        goals: Where goals come from.
        horizon: The number of steps of an episode.
        reward_version: The version of the reward.
        render_mode: "rgb_array", or None without pictures.
    """

    name: str
    row: int
    num_tasks: int
    tasks: tuple[Task, ...]
    goals: str
    horizon: int
    reward_version: str
    render_mode: str | None = None

    def make(self) -> TaskEnvironment:
        """Makes the environment."""
        options = ("goals", "horizon", "reward_version", "render_mode")
        return TaskEnvironment(self.name, self.tasks, **{name: getattr(self, name) for name in options})


class Shared:
    """The actions and the results of environments, in memory that processes share."""

    def __init__(self, count: int, context: Any) -> None:
        self.count = count
        self.raw = {
            name: context.RawArray(ctypes.c_byte, count * width * np.dtype(dtype).itemsize)
            for name, (width, dtype) in LAYOUT.items()
        }

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Shared":
        """Uses the memory that another process allocated."""
        shared = cls.__new__(cls)
        shared.raw, shared.count = raw, len(raw["dones"])
        return shared

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The same memory as arrays, one row for each environment."""
        return {
            name: np.frombuffer(self.raw[name], dtype=dtype).reshape((self.count, width) if width > 1 else self.count)
            for name, (width, dtype) in LAYOUT.items()
        }


LAYOUT: dict[str, tuple[int, type]] = {
    "actions": (4, np.float32),
    "observations": (STATE_FEATURES, np.float32),
    "last": (STATE_FEATURES, np.float32),
    "rewards": (1, np.float32),
    "dones": (1, np.bool_),
    "solved": (1, np.bool_),
    "successes": (1, np.bool_),
    "returns": (1, np.float64),
    "lengths": (1, np.int64),
}
"""The width and the type of each shared array. `last` is the last observation of an episode that ended with the step.
`solved` is for the step alone; `successes`, `returns` and `lengths` are for the episode so far."""


REMOTES: "weakref.WeakSet[Remote]" = weakref.WeakSet()


@atexit.register
def _close_remotes() -> None:
    """Ends the workers before multiprocessing tries to, with a signal that they ignore."""
    for remote in list(REMOTES):
        remote.close()


class Group:
    """Some of the environments, in the process that runs them."""

    def __init__(self, specifications: Sequence[Specification], rows: Sequence[int], shared: Shared) -> None:
        self.specifications, self.rows = specifications, rows
        self.environments = [specification.make() for specification in specifications]
        self.shared = shared.arrays()

    def send(self, command: str, arguments: Sequence[Any] | None = None) -> None:
        """Stores a command; :meth:`receive` executes it, as a worker does."""
        self.command = command, arguments

    def receive(self) -> list[Any]:
        """Executes the last command."""
        return self.call(*self.command)

    def call(self, command: str, arguments: Sequence[Any] | None = None) -> list[Any]:
        """Executes a command in each environment: step, reset, seed, get_state, set_state or frame."""
        given = arguments or [None] * len(self.rows)
        answers = []
        for row, environment, argument in zip(self.rows, self.environments, given, strict=True):
            try:
                answers.append(self._execute(command, row, environment, argument))
            except Exception as error:
                where = f"task {environment.name!r} failed in {command} after {environment.steps} steps of its episode"
                raise WorkerError(f"{where}: {error!r}") from error
        return answers

    def close(self) -> None:
        """Frees what the environments hold."""
        for environment in self.environments:
            environment.close()

    def _execute(self, command: str, row: int, environment: TaskEnvironment, argument: Any) -> Any:
        shared = self.shared
        if command == "step":
            observation, reward, done, solved = environment.step(shared["actions"][row])
            shared["rewards"][row], shared["dones"][row], shared["solved"][row] = reward, done, solved
            shared["successes"][row] = environment.success
            shared["returns"][row], shared["lengths"][row] = environment.total, environment.steps
            if done:
                shared["last"][row] = observation
                observation = environment.reset()
            shared["observations"][row] = observation
            return None
        answer = getattr(environment, command)(*([] if argument is None else [argument]))
        if command in ("reset", "set_state"):
            shared["observations"][row] = environment.observation
            shared["returns"][row], shared["lengths"][row] = environment.total, environment.steps
            shared["successes"][row] = environment.success
        return answer if command in ("get_state", "frame") else None


class Remote:
    """Some of the environments, in a process of their own."""

    def __init__(
        self, specifications: Sequence[Specification], rows: Sequence[int], shared: Shared, context: Any
    ) -> None:
        self.specifications, self.rows, self.shared, self.context = specifications, rows, shared, context
        self.start()

    def start(self) -> None:
        """Starts the process, or another one in its place."""
        # Importing Meta-World and torch takes seconds: one process imports them, and the workers are forks of it.
        self.context.set_forkserver_preload(["__main__", __name__])
        REMOTES.add(self)
        self.connection, far_end = self.context.Pipe()
        self.waiting = False
        self.process = self.context.Process(
            target=_work, args=(far_end, self.specifications, self.rows, self.shared.raw), daemon=True
        )
        with shielded():
            self.process.start()
        far_end.close()

    def send(self, command: str, arguments: Sequence[Any] | None = None) -> None:
        """Sends a command; :meth:`receive` waits for the answer."""
        if self.waiting:  # an interruption left an answer unread
            with contextlib.suppress(WorkerError):
                self.receive()
        try:
            with uninterrupted():
                self.connection.send((command, arguments))
                self.waiting = True
        except (BrokenPipeError, ConnectionError) as error:
            raise self._dead() from error

    def receive(self) -> list[Any]:
        """Waits for the answer to the last command."""
        try:
            self.connection.poll(None)
            with uninterrupted():
                failure, answer = self.connection.recv()
                self.waiting = False
        except (EOFError, ConnectionError) as error:
            raise self._dead() from error
        if failure is not None:
            failed = WorkerError(failure)
            failed.add_note(f"In the worker:\n{answer}")
            raise failed
        assert isinstance(answer, list)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.connection.close()  # the process then ends by itself, after its step
        self.process.join(timeout=1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        REMOTES.discard(self)

    def _dead(self) -> DeadWorkerError:
        self.waiting = False
        self.process.join(timeout=5)
        names, code = ", ".join(specification.name for specification in self.specifications), self.process.exitcode
        hint = "was it killed, or short of memory? --restart of a run, in Python make_envs(restart=True), replaces it."
        if code == 1:
            hint = "workers import the main program: its code must be under `if __name__ == '__main__':`."
        return DeadWorkerError(f"the worker of the tasks {names} has died with exit code {code}; {hint}")


def deal(count: int, workers: int) -> list[list[int]]:
    """The rows of each worker, dealt out forwards and backwards in turn.

    Neighbours in a benchmark often take equally long: this balances MT10's slow tasks, push, pick-place and peg-insert.

    Example:
        >>> from dynroute_metaworld.envs.workers import deal
        >>> deal(10, workers=2)
        [[0, 3, 4, 7, 8], [1, 2, 5, 6, 9]]
    """
    rows: list[list[int]] = [[] for _ in range(workers)]
    for row, dealt in zip(range(count), itertools.cycle([*rows, *reversed(rows)]), strict=False):
        dealt.append(row)
    return rows


def with_restart(call: Callable[[], T], *, restart: bool) -> T:
    """Calls a function that makes environments and closes them; with `restart`, once more if a worker dies.

    It is for episodes that must be whole, where those of a dead worker cannot be cut short. An error of an environment
    is raised at once: a second call would most likely end in it too.
    """
    try:
        return call()
    except DeadWorkerError:
        if not restart:
            raise
    return call()


def processes() -> Any:
    """The context of multiprocessing whose processes inherit neither threads nor locks."""
    kinds = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")


def _work(connection: Connection, specifications: Sequence[Specification], rows: Sequence[int], raw: Any) -> None:
    """Makes the environments of a process, and answers until the connection ends."""
    # Ctrl-C and signals to all processes of a job are for the process that learns, which ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    group: Group | None = None
    while True:
        try:
            command, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            group = group or Group(specifications, rows, Shared.of(raw))
            answer: tuple[str | None, Any] = (None, group.call(command, arguments))
        except Exception as error:
            failure = str(error) if isinstance(error, WorkerError) else f"a worker could not start: {error}"
            answer = (failure, traceback.format_exc())
        try:
            connection.send(answer)
        except ConnectionError:
            return
