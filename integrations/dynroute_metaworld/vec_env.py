"""Meta-World's tasks as one vectorized environment of Stable-Baselines3."""

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from .environment import GOALS, MAX_HORIZON, STATE_FEATURES
from .tasks import goals_of, task_names
from .workers import Group, Remote, Shared, Specification, WorkerError, processes

__all__ = ["MetaWorldVecEnv", "make_envs"]


def make_envs(
    benchmark: str | Sequence[str],
    *,
    goals: str = "random",
    horizon: int = 200,
    seed: int = 0,
    workers: int = 0,
    reward_version: str = "v2",
    reward_scale: float = 1.0,
    restart: bool = False,
) -> "MetaWorldVecEnv":
    """Makes an environment for each task of a benchmark, as one vectorized environment.

    Args:
        benchmark: "MT10", "MT25", "MT50", a task, or a list of tasks.
        goals: Where the goal of an episode comes from. "random" draws a new one from the whole space of goals, "fixed"
            takes the first of the benchmark's, "benchmark" takes each of its 50 once before one comes again.
        horizon: The number of steps of an episode, at most 500.
        seed: What the goals depend on; each task draws its own.
        workers: The number of processes that run the environments; 0 runs them in this one.
        reward_version: "v2" or "v1".
        reward_scale: Multiplies the rewards; the returns in the infos are without it.
        restart: Whether a worker that dies is replaced, its episodes cut short, instead of ending the run.

    Example:
        >>> env = make_envs(["reach", "window-open"], goals="fixed", horizon=150)
        >>> env.reset().shape  # 39 numbers of state, and the one-hot of the task
        (2, 41)
    """
    names = task_names(benchmark)
    if goals not in GOALS:
        raise ValueError(f"`goals` must be one of {', '.join(map(repr, GOALS))}, got {goals!r}.")
    if not 1 <= horizon <= MAX_HORIZON:
        raise ValueError(f"`horizon` must be in 1..{MAX_HORIZON}, where Meta-World ends an episode, got {horizon}.")
    if not 0 <= workers <= len(names):
        raise ValueError(f"`workers` must be in 0..{len(names)}, the number of environments, got {workers}.")
    if reward_version not in ("v1", "v2"):
        raise ValueError(f"`reward_version` must be 'v1' or 'v2', got {reward_version!r}; v3 is that of the tasks.")
    if not reward_scale > 0:
        raise ValueError(f"`reward_scale` must be positive, got {reward_scale}.")
    drawn = goals_of(benchmark if isinstance(benchmark, str) else tuple(benchmark), seed)
    specifications = [Specification(name, drawn[name], goals, horizon, reward_version) for name in names]
    return MetaWorldVecEnv(specifications, seed=seed, workers=workers, reward_scale=reward_scale, restart=restart)


class MetaWorldVecEnv(VecEnv):
    """One environment for each task, in this process or in workers; made by :func:`make_envs`.

    Observations are float32 and end with the one-hot of the task. The infos name the task; at the end of an episode
    they hold what SB3 reads there, `is_success` telling whether the task was solved at any step.

    Args:
        specifications: How the environments are made.
        seed: What the goals depend on.
        workers: The number of processes.
        reward_scale: Multiplies the rewards.
        restart: Whether a worker that dies is replaced.
    """

    def __init__(
        self,
        specifications: Sequence[Specification],
        *,
        seed: int,
        workers: int,
        reward_scale: float = 1.0,
        restart: bool = False,
    ) -> None:
        count = len(specifications)
        self.num_tasks = count
        self.task_names = [specification.name for specification in specifications]
        self.reward_scale, self.restart = reward_scale, restart
        context = processes()
        shared = Shared(count, context)
        bounds = np.linspace(0, count, max(workers, 1) + 1).astype(int).tolist()
        ranges = list(itertools.pairwise(bounds))
        self._sizes = [stop - start for start, stop in ranges]
        self._parts: list[Remote] | list[Group]
        if workers:
            self._parts = [Remote(specifications[start:stop], start, shared, context) for start, stop in ranges]
        else:
            self._parts = [Group(specifications, 0, shared)]
        self._lost: list[Remote] = []
        self._rows = shared.arrays()
        self._one_hots = np.eye(count, dtype=np.float32)
        self._returns, self._lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._started = time.time()
        bound = np.concatenate([np.full(STATE_FEATURES, np.inf), np.ones(count)]).astype(np.float32)
        low = np.concatenate([np.full(STATE_FEATURES, -np.inf), np.zeros(count)]).astype(np.float32)
        super().__init__(count, spaces.Box(low, bound), spaces.Box(-1, 1, (4,), dtype=np.float32))
        self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds what draws the goals of each task; fixed goals do not depend on it."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1)[0]) for i in range(self.num_envs)]
        self._ask("seed", _split(seeds, self._sizes))
        return seeds

    def reset(self) -> NDArray[np.float32]:
        """Starts an episode in every environment."""
        self._ask("reset")
        self._returns[:], self._lengths[:] = 0, 0
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Hands out the actions."""
        if actions.shape != (self.num_envs, 4):
            raise ValueError(f"`actions` must have shape ({self.num_envs}, 4), got {actions.shape}.")
        if not np.isfinite(actions).all():
            task = self.task_names[int((~np.isfinite(actions)).any(axis=1).argmax())]
            raise ValueError(f"`actions` must be finite, those of task {task!r} are not.")
        self._rows["actions"][:] = actions
        self._lost = []
        for part in self._parts:
            if isinstance(part, Remote):
                with self._replacing(part):
                    part.send("step")

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Waits for all environments."""
        for part in self._parts:
            if isinstance(part, Group):
                part.call("step")
            elif part not in self._lost:
                with self._replacing(part):
                    part.receive()
        rows, dones = self._rows, self._rows["dones"].copy()
        rewards = rows["rewards"].copy()
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [
            {"task": name, "success": bool(solved), "TimeLimit.truncated": False}
            for name, solved in zip(self.task_names, rows["solved"], strict=True)
        ]
        for i in np.flatnonzero(dones):
            # The horizon is no property of the task: an episode that reaches it is cut short, and has not ended.
            infos[i]["TimeLimit.truncated"] = True
            infos[i]["terminal_observation"] = np.concatenate([rows["last"][i], self._one_hots[i]])
            infos[i]["is_success"] = bool(rows["successes"][i])
            infos[i]["episode"] = {
                "r": float(self._returns[i]),
                "l": int(self._lengths[i]),
                "t": round(time.time() - self._started, 6),
            }
            self._returns[i], self._lengths[i] = 0, 0
        for part in self._lost:
            for row in range(part.first, part.first + len(part.specifications)):
                infos[row]["worker_replaced"] = True
        return self._observations(), rewards * np.float32(self.reward_scale), dones, infos

    @contextlib.contextmanager
    def _replacing(self, part: Remote) -> Iterator[None]:
        """Replaces a worker that dies inside, if that is asked for: its episodes are cut short where they were."""
        try:
            yield
        except WorkerError:
            if not self.restart or part.process.is_alive():
                raise
            rows, mine = self._rows, slice(part.first, part.first + len(part.specifications))
            rows["last"][mine] = rows["observations"][mine]
            part.close()
            part.start()
            seeds = np.random.SeedSequence().generate_state(len(part.specifications)).tolist()
            for command, argument in (("seed", seeds), ("reset", None)):
                part.send(command, argument)
                part.receive()
            rows["rewards"][mine], rows["dones"][mine], rows["solved"][mine] = 0, True, False
            self._lost.append(part)

    def get_state(self) -> dict[str, Any]:
        """The states of all environments, as plain data and arrays."""
        states = [state for part in self._ask("get_state") for state in part]
        return {"states": states, "returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`get_state` returned."""
        self._ask("reset")
        self._ask("set_state", _split(state["states"], self._sizes))
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()

    def close(self) -> None:
        """Ends the workers."""
        for part in self._parts:
            if isinstance(part, Remote):
                part.close()
            else:
                part.call("close")
        self._parts = []

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """What the environments have in common: `num_tasks`, `task_name` and `render_mode`."""
        same: dict[str, Any] = {"num_tasks": self.num_tasks, "render_mode": None}
        known: dict[str, list[Any]] = {name: [value] * self.num_envs for name, value in same.items()}
        values = {**known, "task_name": self.task_names}.get(attr_name)
        if values is None:
            raise AttributeError(f"environments of Meta-World have no attribute {attr_name!r} that can be read here.")
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"{attr_name!r} cannot be set: make_envs says how environments are.")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise AttributeError(f"environments of Meta-World have no method {method_name!r} that can be called here.")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Episodes are reported as SB3's Monitor reports them."""
        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))

    def _observations(self) -> NDArray[np.float32]:
        return np.concatenate([self._rows["observations"], self._one_hots], axis=1)

    def _ask(self, command: str, arguments: Sequence[Any] | None = None) -> list[Any]:
        """Asks every part for something and waits for the answers."""
        given = [None] * len(self._parts) if arguments is None else arguments
        if isinstance(self._parts[0], Group):
            return [self._parts[0].call(command, given[0])]
        remotes = [part for part in self._parts if isinstance(part, Remote)]
        for part, argument in zip(remotes, given, strict=True):
            part.send(command, argument)
        return [part.receive() for part in remotes]


def _split(values: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    ends = np.cumsum(sizes).tolist()
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]
