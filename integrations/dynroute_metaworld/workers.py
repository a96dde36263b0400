"""Processes that hold several environments each and share memory with the process that learns."""

import ctypes
import multiprocessing
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from metaworld.types import Task
from numpy.typing import NDArray

from .environment import STATE_FEATURES, TaskEnvironment

__all__ = ["LAYOUT", "Group", "Remote", "Shared", "Specification", "WorkerError", "processes"]


class WorkerError(RuntimeError):
    """A process that holds environments has died, or an environment has raised an error there."""


@dataclass(frozen=True)
class Specification:
    """How an environment is made.

    Attributes:
        name: The task.
        tasks: The goals of the benchmark.
        goals: Where goals come from.
        horizon: The number of steps of an episode.
        reward_version: The version of the reward.
    """

    name: str
    tasks: tuple[Task, ...]
    goals: str
    horizon: int
    reward_version: str

    def make(self) -> TaskEnvironment:
        """Makes the environment."""
        return TaskEnvironment(
            self.name, self.tasks, goals=self.goals, horizon=self.horizon, reward_version=self.reward_version
        )


class Shared:
    """What environments are told and tell, in memory that processes share.

    Args:
        count: The number of environments.
        context: What makes the processes.
    """

    def __init__(self, count: int, context: Any) -> None:
        self.count = count
        self.raw = {
            name: context.RawArray(ctypes.c_byte, count * width * np.dtype(dtype).itemsize)
            for name, (width, dtype) in LAYOUT.items()
        }

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Shared":
        """The memory that another process made."""
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
}
"""The width and the type of what is shared. `last` is the last observation of an episode that ended with the step,
`solved` tells of the step alone, `successes` of the episode up to it."""


class Group:
    """Some of the environments, in the process that runs them.

    Args:
        specifications: How they are made.
        first: The row of the first one.
        shared: The rows of all environments.
    """

    def __init__(self, specifications: Sequence[Specification], first: int, shared: Shared) -> None:
        self.environments = [specification.make() for specification in specifications]
        self.first = first
        self.arrays = shared.arrays()

    def call(self, command: str, argument: Any = None) -> Any:
        """Does what is asked, the verbs of a worker."""
        if command == "step":
            return self._step()
        if command == "reset":
            for i, environment in enumerate(self.environments, start=self.first):
                self.arrays["observations"][i] = environment.reset()
            return None
        if command == "seed":
            for environment, seed in zip(self.environments, argument, strict=True):
                environment.seed(seed)
            return None
        if command == "get_state":
            return [environment.get_state() for environment in self.environments]
        if command == "set_state":
            for environment, state in zip(self.environments, argument, strict=True):
                environment.set_state(state)
            return None
        assert command == "close"
        for environment in self.environments:
            environment.close()
        return None

    def _step(self) -> None:
        rows = self.arrays
        for i, environment in enumerate(self.environments, start=self.first):
            try:
                observation, reward, done, solved = environment.step(rows["actions"][i])
                rows["rewards"][i], rows["dones"][i], rows["solved"][i] = reward, done, solved
                rows["successes"][i] = environment.success
                if done:
                    rows["last"][i] = observation
                    observation = environment.reset()
                rows["observations"][i] = observation
            except Exception as error:
                raise WorkerError(f"task {environment.name!r} failed at step {environment.steps}: {error!r}") from error


class Remote:
    """Some of the environments, in a process of their own.

    Args:
        specifications: How they are made.
        first: The row of the first one.
        shared: The rows of all environments.
        context: What makes the process.
    """

    def __init__(self, specifications: Sequence[Specification], first: int, shared: Shared, context: Any) -> None:
        self.specifications, self.first, self.shared, self.context = specifications, first, shared, context
        self.start()

    def start(self) -> None:
        """Starts the process, or another one in its place."""
        self.connection, theirs = self.context.Pipe()
        self.process = self.context.Process(
            target=_work, args=(theirs, self.specifications, self.first, self.shared.raw), daemon=True
        )
        self.process.start()
        theirs.close()

    def send(self, command: str, argument: Any = None) -> None:
        """Asks for something; :meth:`receive` waits for the answer."""
        try:
            self.connection.send((command, argument))
        except (BrokenPipeError, ConnectionError) as error:
            raise self._dead() from error

    def receive(self) -> Any:
        """The answer to what was asked last."""
        try:
            failure, answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._dead() from error
        if failure is not None:
            raise WorkerError(failure)
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()
        self.connection.close()

    def _dead(self) -> WorkerError:
        self.process.join(timeout=5)
        names, code = ", ".join(specification.name for specification in self.specifications), self.process.exitcode
        hint = "was it killed, or short of memory? make_envs(restart=True) replaces such workers."
        if code == 1:
            hint = "workers import the program first: what it does must stand under `if __name__ == '__main__':`."
        return WorkerError(f"the worker of the tasks {names} has died with exit code {code}; {hint}")


def processes() -> Any:
    """What makes processes that do not inherit threads and locks."""
    kinds = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")


def _work(connection: Connection, specifications: Sequence[Specification], first: int, raw: dict[str, Any]) -> None:
    """What a process does: makes its environments and answers until the connection ends."""
    shared = Shared.of(raw)
    group: Group | None = None
    while True:
        try:
            command, argument = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            group = group or Group(specifications, first, shared)
            connection.send((None, group.call(command, argument)))
        except KeyboardInterrupt:
            return
        except WorkerError as error:
            connection.send((str(error), None))
        except Exception:
            connection.send((f"a worker failed:\n{traceback.format_exc()}", None))
