"""Meta-World's tasks as one vectorized environment of Stable-Baselines3."""

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from dynroute.arguments import check_choice
from dynroute_command.choices import GOALS, MAX_HORIZON, REWARD_VERSIONS, task_names

from .environment import STATE_FEATURES, TaskEnvironment
from .tasks import derive_seed, goals_of
from .workers import DeadWorkerError, Group, Remote, Shared, Specification, deal, processes

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
    render_mode: str | None = None,
    only: Sequence[str] | None = None,
) -> "MetaWorldVecEnv":
    """Makes an environment for each task of a benchmark, as one vectorized environment.

    Args:
        benchmark: "MT10", "MT25", "MT50", a task, or a list of tasks.
        goals: Where the goal of an episode comes from. "random" draws a new one from the whole space of goals, "fixed"
            takes the first of the benchmark's, "benchmark" takes each of its 50 once before one comes again.
        horizon: The number of steps of an episode, at most 500.
        seed: The seed of the goals; each task draws its own.
        workers: The number of processes that run the environments; 0 runs them in this process.
        reward_version: "v2" or "v1".
        reward_scale: Multiplies the rewards, but not the returns in the infos.
        restart: Whether a worker that dies is replaced and its episodes are truncated; otherwise an error is raised.
        render_mode: "rgb_array" for ``render()`` and ``get_images()``, which need OpenGL.
        only: The tasks to make, with the same goals and one-hots as in the whole benchmark; all if None.

    Example:
        >>> env = make_envs(["reach", "window-open"], goals="fixed", horizon=150)
        >>> env.reset().shape  # 39 numbers of state, and the one-hot of the task
        (2, 41)
    """
    names = task_names(benchmark)
    for name in only or ():
        check_choice("only", name, names)
    rows = [row for row, name in enumerate(names) if only is None or name in only]
    check_choice("goals", goals, GOALS)
    _check_integer("horizon", horizon, 1, MAX_HORIZON, "where Meta-World ends an episode")
    _check_integer("workers", workers, 0, len(rows), "the number of environments")
    _check_integer("seed", seed, 0, 2**32 - 1, "the seeds of numpy")
    if reward_version not in REWARD_VERSIONS:
        raise ValueError(f"`reward_version` must be 'v1' or 'v2', got {reward_version!r}; v3 is the tasks' version.")
    if not 0 < reward_scale < np.inf:
        raise ValueError(f"`reward_scale` must be positive, got {reward_scale!r}.")
    check_choice("render_mode", render_mode, (None, "rgb_array"))
    drawn = goals_of(benchmark, int(seed))
    rest = (goals, horizon, reward_version, render_mode)
    specifications = [Specification(names[row], row, len(names), drawn[names[row]], *rest) for row in rows]
    return MetaWorldVecEnv(specifications, seed=seed, workers=workers, reward_scale=reward_scale, restart=restart)


class MetaWorldVecEnv(VecEnv):
    """One environment for each task, in this process or in workers; made by :func:`make_envs`.

    Observations are float32 and end with the one-hot of the task. The infos name the task. At the end of an episode
    they have the entries that SB3 reads; `is_success` is whether the task was solved at any step.

    Args:
        specifications: How the environments are made.
        seed: The seed of the goals.
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
        count, self.num_tasks = len(specifications), specifications[0].num_tasks
        self.horizon = specifications[0].horizon
        self.task_names = [specification.name for specification in specifications]
        self.reward_scale, self.restart = np.float32(reward_scale), restart
        self._attributes: dict[str, list[Any]] = {
            "num_tasks": [self.num_tasks] * count,
            "task_name": self.task_names,
            "render_mode": [specification.render_mode for specification in specifications],
        }
        context = processes()
        shared = Shared(count, context)
        self._rows = shared.arrays()
        self._parts: Sequence[Group | Remote]
        dealt = deal(count, workers)
        self._parts = [Remote([specifications[i] for i in rows], rows, shared, context) for rows in dealt]
        self._parts = self._parts or [Group(specifications, range(count), shared)]
        self._finalizer = weakref.finalize(self, _close, self._parts)
        self._lost: list[Group | Remote] = []
        self._replaced = 0
        self._task_rows = [specification.row for specification in specifications]
        self._one_hots = np.eye(self.num_tasks, dtype=np.float32)[self._task_rows]
        self._started = time.time()
        low, high = np.repeat([[-np.inf, 0], [np.inf, 1]], [STATE_FEATURES, self.num_tasks], axis=1).astype(np.float32)
        super().__init__(count, spaces.Box(low, high), spaces.Box(-1, 1, (4,), dtype=np.float32))
        try:
            self.seed(seed)
        except BaseException:
            self.close()
            raise

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds the generators of goals of each task; fixed goals do not depend on them."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}.")
        self._seed = int(seed)
        seeds = [derive_seed(self._seed, row) for row in self._task_rows]
        self._ask("seed", seeds)
        return seeds

    def reset(self) -> NDArray[np.float32]:
        """Starts an episode in every environment."""
        self._ask("reset")
        self._lost.clear()
        self.reset_infos = [{"task": name} for name in self.task_names]
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Sends the actions; workers step until :meth:`step_wait` asks for the results."""
        self._check_open()
        if np.shape(actions) != (self.num_envs, 4):
            raise ValueError(f"`actions` must have shape ({self.num_envs}, 4), got {np.shape(actions)}.")
        if not np.isfinite(actions).all():
            task = self.task_names[int((~np.isfinite(actions)).any(axis=1).argmax())]
            raise ValueError(f"`actions` must be finite, got NaN or infinity in task {task!r}.")
        self._rows["actions"][:] = actions
        self._begin()
        for part in self._parts:
            if part not in self._lost:
                self._lost_in(part, part.send, "step")
        self._stepping = True

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Waits for all environments."""
        self._check_open()
        if not self._stepping:
            raise RuntimeError("step_wait() must follow step_async(), with nothing between them.")
        self._stepping = False
        for part in self._parts:
            if part not in self._lost:
                self._lost_in(part, part.receive)
        rows = self._rows
        lost = [row for part in self._lost for row in part.rows]
        rows["dones"][lost] = True
        dones = rows["dones"].copy()
        infos: list[dict[str, Any]] = [
            {"task": name, "success": solved, "TimeLimit.truncated": False}
            for name, solved in zip(self.task_names, rows["solved"].tolist(), strict=True)
        ]
        for i in np.flatnonzero(dones):
            # The horizon is not a property of the task: an episode that reaches it is truncated, not terminated.
            infos[i]["TimeLimit.truncated"] = True
            infos[i]["terminal_observation"] = np.concatenate([rows["last"][i], self._one_hots[i]])
            infos[i]["is_success"] = bool(rows["successes"][i])
            infos[i]["episode"] = {
                "r": float(rows["returns"][i]),
                "l": int(rows["lengths"][i]),
                "t": round(time.time() - self._started, 6),
            }
            rows["returns"][i], rows["lengths"][i], rows["successes"][i] = 0, 0, 0
        for row in lost:
            infos[row]["worker_replaced"] = True
        self._lost.clear()
        return self._observations(), rows["rewards"] * self.reward_scale, dones, infos

    @property
    def environments(self) -> Sequence[TaskEnvironment]:
        """The environments in this process; none if workers run them."""
        return [environment for part in self._parts if isinstance(part, Group) for environment in part.environments]

    def get_images(self) -> list[NDArray[np.uint8] | None]:
        """A picture of each environment; ``render()`` puts them side by side."""
        if self.render_mode is None:
            raise RuntimeError('these environments draw nothing; make_envs(..., render_mode="rgb_array") does.')
        return self._ask("frame")

    def get_state(self) -> dict[str, Any]:
        """The states of all environments, as plain data and arrays; they fit any number of workers."""
        return {"states": self._ask("get_state"), "seed": self._seed, "replaced": self._replaced}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of :meth:`get_state`, exactly: the same actions then lead to the same results."""
        tasks = [saved["task"] for saved in state["states"]]
        if tasks != self.task_names:
            raise ValueError(f"`state` must be a state of the tasks {self.task_names}, got {tasks}.")
        self._ask("reset")
        self._ask("set_state", state["states"])
        self._lost.clear()
        self._seed, self._replaced = state["seed"], state["replaced"]

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attributes `num_tasks`, `task_name` and `render_mode` of environments."""
        if attr_name not in self._attributes:
            raise AttributeError(f"environments of Meta-World have no attribute {attr_name!r} that can be read here.")
        return [self._attributes[attr_name][i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"{attr_name!r} cannot be set; make_envs sets how environments are.")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise AttributeError(f"environments of Meta-World have no method {method_name!r} that can be called here.")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Episodes are reported as SB3's Monitor reports them."""
        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))

    def _observations(self) -> NDArray[np.float32]:
        return np.concatenate([self._rows["observations"], self._one_hots], axis=1)

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("these environments are closed; make_envs makes new ones.")

    def _ask(self, command: str, arguments: Sequence[Any] | None = None) -> list[Any]:
        """Sends a command to every environment and waits for the answers."""
        self._check_open()
        self._begin()
        given = [None if arguments is None else [arguments[row] for row in part.rows] for part in self._parts]
        for part, of_part in zip(self._parts, given, strict=True):
            self._lost_in(part, part.send, command, of_part)
        answers: dict[int, Any] = {}
        for part, of_part in zip(self._parts, given, strict=True):
            if part in self._lost or self._lost_in(part, lambda part=part: answers.update(_by_row(part))):
                part.send(command, of_part)
                answers.update(_by_row(part))
        return [answers[row] for row in range(self.num_envs)]

    def _begin(self) -> None:
        """Stores the figures that a dying worker's episodes would end with; drops a step that was not waited for."""
        self._stepping = False
        self._rows["dones"][:] = False
        self._before = {"returns": self._rows["returns"].copy(), "lengths": self._rows["lengths"] + 1}

    def _lost_in(self, part: Group | Remote, call: Callable[..., Any], *arguments: Any) -> bool:
        """Calls a worker; with `restart`, replaces it if it dies. Returns whether it was replaced."""
        try:
            call(*arguments)
        except DeadWorkerError:
            if not self.restart:
                raise
            assert isinstance(part, Remote)  # a group is in this process
            self._replace(part)
            return True
        return False

    def _replace(self, part: Remote) -> None:
        """Starts a worker in the place of one that died, and truncates its episodes."""
        rows, own_rows = self._rows, list(part.rows)
        cut = [row for row in own_rows if not rows["dones"][row]]  # the other episodes ended before it died
        endings = {name: rows[name].copy() for name in ("last", "returns", "lengths")}
        endings["last"][cut] = rows["observations"][cut]
        for name, before in self._before.items():
            endings[name][cut] = before[cut]
        self._replaced += 1
        part.close()
        part.start()
        seeds = [derive_seed(self._seed, self._task_rows[row], self._replaced) for row in own_rows]  # new goals
        for command, arguments in (("seed", seeds), ("reset", None)):
            part.send(command, arguments)
            part.receive()
        for name, values in endings.items():
            rows[name][own_rows] = values[own_rows]
        rows["rewards"][cut], rows["solved"][cut] = 0, False
        self._lost.append(part)


def _by_row(part: Group | Remote) -> dict[int, Any]:
    return dict(zip(part.rows, part.receive(), strict=True))


def _close(parts: Sequence[Group | Remote]) -> None:
    for part in parts:
        part.close()


def _check_integer(name: str, value: Any, least: int, most: int, why: str) -> None:
    if type(value) is bool or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"`{name}` must be an integer in {least}..{most}, {why}, got {value!r}.")
