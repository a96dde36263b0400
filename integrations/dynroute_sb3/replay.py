"""A replay buffer with a ring for each task, which stores the path of the behaviour policy with each transition."""

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import DTypeLike, NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from dynroute import Topology
from dynroute.arguments import check_count, check_flag, check_number
from dynroute.files import FULL

from .multi_step import look_ahead
from .observation import TaskSpace
from .storage import Member, read_rows, write_rows

__all__ = ["RouteReplayBuffer", "RouteReplaySamples", "to_device"]


GOES_ON, ENDED, OUT_OF_TIME = 0.0, 1.0, -1.0
"""The values of the last column of a row, which tells whether the episode ended."""


class RouteReplaySamples(NamedTuple):
    """A batch, demonstrations first, grouped by task if the buffer is balanced; the first six fields are SB3's.

    Attributes:
        observations: Observations with their one-hots.
        actions: Actions, scaled to [-1, 1].
        next_observations: The next observations, of the last step if there are several.
        dones: 1 if the episode terminated there, with shape ``[batch, 1]``.
        rewards: Rewards, or the discounted sums of several, with shape ``[batch, 1]``.
        discounts: The discounts of the values of the next observations, with shape ``[batch, 1]``; None for single
            steps.
        tasks: The task ids, with shape ``[batch]``.
        paths: The paths of the behaviour policy, with shape ``[batch, T, S]``, or None.
        wanted: The intended actions of a demonstrator, for the first rows of the batch, or None.
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    dones: Tensor
    rewards: Tensor
    discounts: Tensor | None
    tasks: Tensor
    paths: Tensor | None
    wanted: Tensor | None = None


class RouteReplayBuffer(ReplayBuffer):
    """Stores transitions by task, so that every batch can have equally many of each task.

    A transition is a row of numbers: state, next state, action, reward and the end of the episode. Its ring tells its
    task, and its path takes one bit per edge. Memory is allocated as rows are written.

    The arrays of SB3's buffers are available under the same names, with tasks in the place of environments and shape
    ``[capacity, num_tasks, ...]``. `actions` and `rewards` are views of the rows and can be changed in place. The
    others are computed from the rows and read-only.

    Args:
        buffer_size: The number of transitions of all tasks together.
        observation_space: The space of the observations, which end with the one-hot of the task.
        action_space: The space of the actions.
        device: The device of batches.
        n_envs: The number of environments, any number for each task.
        optimize_memory_usage: Not supported.
        handle_timeout_termination: Whether an episode that ended by a time limit counts as continuing.
        num_tasks: The number of tasks.
        n_steps: The number of steps of n-step returns, see :mod:`dynroute_sb3.multi_step`.
        gamma: The discount factor of these returns.
        balanced: Whether a batch has equally many transitions of each task. If not, it is drawn from the transitions of
            all tasks, and its size need not be a multiple of their number.
        memory_map: A folder for an unnamed file that replaces memory and is deleted with the buffer. The file takes
            its whole room on the disk at once.

    Example:
        >>> env = DummyVecEnv(point_tasks())
        >>> buffer = MultiTaskSAC("MlpPolicy", env, buffer_size=400).learn(20).replay_buffer
        >>> buffer.pos, buffer.size(), buffer.observations[: buffer.pos].shape  # four tasks took five steps each
        (5, 20, (5, 4, 8))
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        num_tasks: int,
        n_steps: int = 1,
        gamma: float = 0.99,
        balanced: bool = True,
        memory_map: str | Path | None = None,
    ) -> None:
        check_flag("balanced", balanced)
        check_count("n_steps", n_steps, at_least=1)
        check_number("gamma", gamma, at_least=0, at_most=1)
        self.n_steps, self.gamma = n_steps, gamma
        if optimize_memory_usage:
            raise ValueError("`optimize_memory_usage` must be False: rows of one task do not follow one another.")
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.task_space = TaskSpace(observation_space, num_tasks)
        self.handle_timeout_termination = handle_timeout_termination
        self.optimize_memory_usage = False
        self.memory_map = memory_map
        self.capacity = self.buffer_size = max(buffer_size // num_tasks, 1)  # of a task, as SB3's is of an environment
        self.num_tasks = num_tasks
        self.balanced = balanced
        self.topology: Topology | None = None
        self.paths: NDArray[np.uint8] | None = None
        self.back: NDArray[np.int32] | None = None
        if n_steps > 1:
            self.back = self._allocate((num_tasks, self.capacity, 1), np.int32)
        width = 2 * self.task_space.state_features + self.action_dim + 2
        self.rows = self._allocate((num_tasks, self.capacity, width), np.float32)
        self.reset()

    def keep_paths(self, topology: Topology) -> None:
        """Allocates a path for each transition; call it while the buffer is empty."""
        if self.vector_steps:
            raise ValueError("`keep_paths` must be called before the first transition is added.")
        self.topology = topology
        self.paths = self._allocate((self.num_tasks, self.capacity, -(-topology.num_edges // 8)), np.uint8)

    def lift_paths(self, topology: Topology) -> None:
        """Converts stored paths to a larger graph that :func:`dynroute.grow` made of the current one."""
        if self.topology is None or self.paths is None:
            return
        old, before = self.paths, self.topology
        self.topology = topology
        self.paths = self._allocate((self.num_tasks, self.capacity, -(-topology.num_edges // 8)), np.uint8)
        for task, count in enumerate(self.counts):  # rows without a transition stay unwritten
            bits = before.lift_packed(torch.from_numpy(np.ascontiguousarray(old[task, :count])), topology)
            self.paths[task, :count] = bits.numpy()
        self.version += 1

    def reset(self) -> None:
        """Removes all transitions."""
        self.positions: NDArray[np.int64] = np.zeros(self.num_tasks, dtype=np.int64)
        """The position of the next transition of each task."""
        self.counts: NDArray[np.int64] = np.zeros(self.num_tasks, dtype=np.int64)
        """The number of transitions of each task."""
        self.vector_steps = 0
        """The number of calls of :meth:`add`."""
        self.added: NDArray[np.int64] = np.zeros(self.num_tasks, dtype=np.int64)
        """The number of transitions of each task that were added since all rows were replaced."""
        self.most_at_once = 1
        """The largest number of transitions of a task that one call of :meth:`add` stored."""
        self._latest: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)  # task and place, for each environment
        self.version: int = getattr(self, "version", -1) + 1
        """The number of times all rows were replaced. Raise it after changes in place, to update a device copy."""

    def size(self) -> int:
        """The number of transitions of all tasks."""
        return int(self.counts.sum())

    @property
    def full(self) -> bool:
        """Whether old transitions of every task are overwritten."""
        return bool((self.counts == self.capacity).all())

    @full.setter
    def full(self, value: bool) -> None:
        self._refuse_to_set("full", value)

    @property
    def pos(self) -> int:
        """The position of the next transition in the rings of all tasks; an error if `positions` differ."""
        if (self.positions != self.positions[0]).any():
            raise AttributeError(
                f"`pos` is one place for all tasks, which are at {self.positions.tolist()}; use `positions`, and "
                "`counts` for the number of transitions of each."
            )
        return int(self.positions[0])

    @pos.setter
    def pos(self, value: int) -> None:
        self._refuse_to_set("pos", value)

    def _refuse_to_set(self, name: str, value: Any) -> None:
        if hasattr(self, "counts"):  # SB3's constructor sets it earlier
            raise AttributeError(f"`{name}` follows from what is stored and cannot be set, got {value!r}; see reset().")

    @property
    def observations(self) -> NDArray[np.float32]:  # type: ignore[override]
        """Observations with their one-hots, with shape ``[capacity, num_tasks, state_features + num_tasks]``."""
        return self._observations(0)

    @property
    def next_observations(self) -> NDArray[np.float32]:  # type: ignore[override]
        """The next observations, with the same shape."""
        return self._observations(self.task_space.state_features)

    @property
    def actions(self) -> NDArray[np.float32]:  # type: ignore[override]
        """Actions, scaled to [-1, 1], with shape ``[capacity, num_tasks, action_dim]``."""
        first = 2 * self.task_space.state_features
        return self.rows[..., first : first + self.action_dim].swapaxes(0, 1)

    @property
    def rewards(self) -> NDArray[np.float32]:  # type: ignore[override]
        """Rewards, with shape ``[capacity, num_tasks]``."""
        return self.rows[..., -2].T

    @property
    def dones(self) -> NDArray[np.float32]:  # type: ignore[override]
        """1 if an episode ended for any reason, with shape ``[capacity, num_tasks]``."""
        return _read_only(self.rows[..., -1].T != GOES_ON)

    @property
    def timeouts(self) -> NDArray[np.float32]:  # type: ignore[override]
        """1 if an episode ended by a time limit and counts as continuing, with shape ``[capacity, num_tasks]``."""
        return _read_only(self.rows[..., -1].T == OUT_OF_TIME)

    def _observations(self, first: int) -> NDArray[np.float32]:
        n, tasks = self.task_space.state_features, self.num_tasks
        one_hots = np.broadcast_to(np.eye(tasks, dtype=np.float32), (self.capacity, tasks, tasks))
        return _read_only(np.concatenate([self.rows[..., first : first + n].swapaxes(0, 1), one_hots], axis=-1))

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
        paths: NDArray[np.uint8] | None = None,
    ) -> None:
        """Adds one transition of each environment, or none if one of them is invalid.

        Args:
            obs: Observations, one row for each environment, whatever their number.
            next_obs: The next observations, also at the end of an episode.
            action: The actions, scaled to [-1, 1], in the shape of the action space or flat.
            reward: The rewards.
            done: Whether the episode ended.
            infos: The infos of the environments, of which ``TimeLimit.truncated`` is read.
            paths: The paths of the behaviour policy, packed by :meth:`dynroute.Topology.pack`.
        """
        with np.errstate(over="ignore"):  # infinite values are refused below
            obs, next_obs, action, reward = (
                np.asarray(values, dtype=np.float32) for values in (obs, next_obs, action, reward)
            )
        tasks: NDArray[np.int64] = self.task_space.tasks(obs, name="an observation")
        after = self.task_space.tasks(next_obs, name="a next observation")
        if action.shape == (len(tasks), *(self.action_space.shape or ())):
            action = action.reshape(len(tasks), self.action_dim)
        self._check_shapes(len(tasks), next_obs=next_obs, action=action, reward=reward, done=done, infos=infos)
        self._check_paths(len(tasks), paths)
        self._refuse("observation", obs, tasks)
        self._refuse("next observation", next_obs, tasks)
        self._refuse("reward", reward, tasks)
        self._refuse("action", action, tasks)
        if (tasks != after).any():
            i = int((tasks != after).argmax())
            raise ValueError(
                f"an environment must keep its task within an episode, environment {i} went from task {tasks[i]} to "
                f"{after[i]} at vector step {self.vector_steps}; nothing was stored of that step."
            )

        ended = np.where(np.asarray(done, dtype=bool).reshape(len(tasks)), ENDED, GOES_ON)
        ended = np.where(self.truncated(done, infos), OUT_OF_TIME, ended).astype(np.float32)
        n = self.task_space.state_features
        rows = np.concatenate([obs[:, :n], next_obs[:, :n], action, reward[:, None], ended[:, None]], axis=1)
        # Environments of the same task write to consecutive places.
        earlier = np.tril(tasks[:, None] == tasks, -1).sum(axis=1)
        places = (self.positions[tasks] + earlier) % self.capacity
        added = np.bincount(tasks, minlength=self.num_tasks)
        if int(added.max()) > self.most_at_once or not self.vector_steps:
            self.most_at_once = max(self.most_at_once, int(added.max()))
            self._warn_of_short_rings()
        if self.back is not None:
            self.back[tasks, places, 0] = self._distances(tasks, places, rows[:, :n])
            self._latest = np.stack([tasks, places], axis=1)
        self.rows[tasks, places] = rows
        if self.paths is not None and paths is not None:
            self.paths[tasks, places] = paths
        self.positions = (self.positions + added) % self.capacity
        self.counts = np.minimum(self.counts + added, self.capacity)
        self.added = self.added + added
        self.vector_steps += 1

    def _warn_of_short_rings(self) -> None:
        """Warns if rings are too short to tell which transitions follow one another."""
        if self.n_steps > 1 and 1 < self.capacity <= self.reach:
            warnings.warn(
                f"returns are of single steps, not of {self.n_steps}: with up to {self.most_at_once} transitions of a "
                f"task at once, its ring must hold more than {2 * self.most_at_once - 1}, got {self.capacity}; raise "
                "`buffer_size`.",
                stacklevel=3,
            )

    def _distances(
        self, tasks: NDArray[np.int64], places: NDArray[np.int64], states: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """The distance of each new transition to the transition before it in its episode; 0 if there is none."""
        if len(self._latest) != len(tasks) or self.reach >= self.capacity:
            return np.zeros_like(places)
        n, (tasks_before, before) = self.task_space.state_features, self._latest.T
        rows = self.rows[tasks_before, before]
        goes_on = (tasks_before == tasks) & (rows[:, -1] == GOES_ON)
        goes_on &= (rows[:, n : 2 * n] == states).all(axis=1)  # the environment may have been reset in between
        return np.where(goes_on, (places - before) % self.capacity, 0)

    @property
    def reach(self) -> int:
        """The largest distance of two transitions of a task that follow one another; 1 for single steps."""
        # At most k - 1 others are behind a transition in its step, and k - 1 before the next transition.
        return min(2 * self.most_at_once - 1, self.capacity) if self.n_steps > 1 else 1

    def truncated(self, done: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[np.bool_]:
        """Whether the episode of each environment ended by a time limit and counts as continuing."""
        ended: NDArray[np.bool_] = np.array(done, dtype=bool).reshape(len(infos))
        if not self.handle_timeout_termination:
            return np.zeros_like(ended)
        for i, info in enumerate(infos):
            ended[i] &= bool(info.get("TimeLimit.truncated", False))
        return ended

    def extend(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: Sequence[list[dict[str, Any]]],
        paths: NDArray[np.uint8] | None = None,
    ) -> None:
        """Adds several steps; the arguments are as in :meth:`add`, with a first dimension of steps.

        The buffer of a model with `normalize_returns` needs ``model.return_bounds.add_buffer(buffer)`` afterwards.
        """
        parts = {"next_obs": next_obs, "action": action, "reward": reward, "done": done, "infos": infos, "paths": paths}
        for name, values in parts.items():
            if values is not None and len(values) != len(obs):
                raise ValueError(f"`{name}` must have as many steps as `obs`, {len(obs)}, got {len(values)}.")
        for i in range(len(obs)):
            path = None if paths is None else paths[i]
            self.add(obs[i], next_obs[i], action[i], reward[i], done[i], infos[i], path)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> RouteReplaySamples:  # type: ignore[override]
        """Draws transitions with replacement; a balanced buffer draws equally many of each task, grouped by task."""
        tasks, places = self.draw(self.each_task(batch_size))
        return self._get_samples(tasks * self.capacity + places, env)

    def parts(self, batch_size: int) -> tuple[int, int]:
        """Returns the numbers of transitions and demonstrations in a batch, per task, or in all if not balanced."""
        return self.each_task(batch_size), 0

    def each_task(self, batch_size: int) -> int:
        """Returns the number of transitions per task in a batch, or in all if the buffer is not balanced.

        It raises an error if the batch cannot be drawn.
        """
        if not self.balanced:
            if batch_size < 1:
                raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
            if not self.size():
                raise ValueError("there must be transitions before learning starts, got none; raise `learning_starts`.")
            return batch_size
        each, rest = divmod(batch_size, self.num_tasks)
        if rest or not each:
            raise ValueError(
                f"`batch_size` must be a multiple of the {self.num_tasks} tasks, got {batch_size}; "
                f"for instance {max(each, 1) * self.num_tasks}."
            )
        if not self.counts.all():
            missing = np.flatnonzero(self.counts == 0).tolist()
            raise ValueError(
                f"every task must have transitions before learning starts, tasks {missing} have none; "
                "raise `learning_starts`, or give each task an environment."
            )
        return each

    def draw(self, each: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws tasks and places of transitions with replacement, `each` per task, or in all if not balanced."""
        if not self.balanced:
            ends = self.counts.cumsum()
            drawn = (np.random.random_sample(each) * ends[-1]).astype(np.int64)
            tasks = np.searchsorted(ends, drawn, side="right")
            return tasks, drawn - (ends - self.counts)[tasks]
        places = (np.random.random_sample((self.num_tasks, each)) * self.counts[:, None]).astype(np.int64)
        return np.repeat(np.arange(self.num_tasks), each), places.reshape(-1)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None
    ) -> RouteReplaySamples:
        """Returns the transitions with indices task * capacity + place; :meth:`sample` calls it, as in SB3."""
        indices = np.asarray(batch_inds)
        tasks, places = np.divmod(indices, self.capacity)
        wrong = (tasks < 0) | (tasks >= self.num_tasks)
        wrong |= places >= self.counts[np.where(wrong, 0, tasks)]
        if wrong.any():
            raise IndexError(
                f"`batch_inds` must be task * {self.capacity} + place of stored transitions, of which the tasks have "
                f"{self.counts.tolist()}, got {indices[wrong][0]}."
            )
        return self.gather(tasks, places, env)

    def gather(
        self, tasks: NDArray[np.int64], places: NDArray[np.int64], env: VecNormalize | None = None
    ) -> RouteReplaySamples:
        """Returns the transitions at given places of the rings of given tasks."""
        n, discounts = self.task_space.state_features, None
        if self.back is not None and self.n_steps > 1:
            rings, back, positions = map(torch.from_numpy, (self.rows, self.back[..., 0], self.positions))
            at = torch.from_numpy(tasks), torch.from_numpy(places)
            rewards = None if env is None else _on_arrays(env.normalize_reward)
            sums, ahead = self.look_ahead(rings, back, positions, *at, rewards)
            rows, discounts = sums.numpy(), to_device(ahead.numpy(), self.device)
        else:
            rows = self.rows[tasks, places]
            if env is not None:
                rows[:, -2] = env.normalize_reward(rows[:, -2])
        if env is not None and env.norm_obs:
            one_hots = np.eye(self.num_tasks, dtype=np.float32)[tasks]
            for part in (rows[:, :n], rows[:, n : 2 * n]):
                normalized = env.normalize_obs(np.concatenate([part, one_hots], axis=1))
                assert isinstance(normalized, np.ndarray)
                part[:] = normalized[:, :n]
        packed = None if self.paths is None else to_device(self.paths[tasks, places], self.device)
        return self.unpack(to_device(rows, self.device), to_device(tasks, self.device), packed, discounts)

    def look_ahead(
        self,
        rows: Tensor,
        back: Tensor,
        positions: Tensor,
        tasks: Tensor,
        places: Tensor,
        normalize: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sums up rewards in the buffer or in a copy of it, see :func:`dynroute_sb3.multi_step.look_ahead`."""
        return look_ahead(
            rows,
            back,
            tasks,
            places,
            (positions[tasks] - 1 - places) % self.capacity,
            state_features=self.task_space.state_features,
            reach=self.reach,
            n_steps=self.n_steps,
            gamma=self.gamma,
            normalize=normalize,
        )

    def unpack(
        self, rows: Tensor, tasks: Tensor, packed: Tensor | None, discounts: Tensor | None = None
    ) -> RouteReplaySamples:
        """Makes a batch from rows, the ids of their tasks, their packed paths and their discounts, on any device."""
        n, join = self.task_space.state_features, self.task_space.join
        paths = None if packed is None or self.topology is None else self.topology.unpack(packed)
        states, next_states, actions, rewards, ended = torch.split(rows, [n, n, self.action_dim, 1, 1], dim=1)
        dones = (ended == ENDED).to(rows.dtype)
        return RouteReplaySamples(
            join(states, tasks), actions, join(next_states, tasks), dones, rewards, discounts, tasks, paths
        )

    def latest_paths(self, number: int) -> list[Tensor]:
        """Returns the newest paths of each task, at most `number`, for reports."""
        assert self.paths is not None
        assert self.topology is not None
        rows = []
        for task, (position, count) in enumerate(zip(self.positions, self.counts, strict=True)):
            places = (position - 1 - np.arange(min(number, count))) % self.capacity
            rows.append(self.topology.unpack(torch.from_numpy(self.paths[task, places])))
        return rows

    def save(self, folder: Path | Member) -> dict[str, Any]:
        """Writes the transitions to files of a folder or an archive.

        Returns:
            The rest of the state, plain data and arrays, for :meth:`load`.
        """
        for name, array in self._arrays().items():
            write_rows(folder / f"{name}.npy", array, self.counts)
        numbers = {name: getattr(self, name) for name in ("positions", "counts", "vector_steps", "most_at_once")}
        return {**self._shape(), **numbers, "latest": self._latest}

    def load(self, folder: Path | Member, state: dict[str, Any]) -> None:
        """Restores a buffer that :meth:`save` wrote; raises an error if it has another shape."""
        for name, expected in self._shape().items():
            if (stored := state[name]) != expected:
                hint = ", or from before the model grew" if name in ("graph", "parents") else ""
                raise ValueError(
                    f"the stored buffer must have {name} {expected}, got {stored}; is it from another run{hint}?"
                )
        counts = np.asarray(state["counts"], dtype=np.int64)
        for name, array in self._arrays().items():
            read_rows(folder / f"{name}.npy", array, counts)
        self.positions, self.counts = np.asarray(state["positions"], dtype=np.int64).copy(), counts.copy()
        self.vector_steps, self.added, self.version = int(state["vector_steps"]), counts.copy(), self.version + 1
        self.most_at_once, self._latest = int(state["most_at_once"]), np.asarray(state["latest"], dtype=np.int64)

    def _shape(self) -> dict[str, Any]:
        return {
            "num_tasks": self.num_tasks,
            "capacity": self.capacity,
            "state_features": self.task_space.state_features,
            "action_dim": self.action_dim,
            "graph": str(self.topology),
            "parents": None if self.topology is None else [list(row) for row in self.topology.parents],
            "order_bytes": 0 if self.back is None else self.back.itemsize,
            "demonstrations": 0,  # which a DemonstrationBuffer has
        }

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {"rows": self.rows, "paths": self.paths, "back": self.back}
        return {name: array for name, array in arrays.items() if array is not None}

    def _allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        if self.memory_map is None:
            return np.zeros(shape, dtype=dtype)  # the system allocates the pages when they are written
        if not Path(self.memory_map).is_dir():
            raise FileNotFoundError(
                f"`memory_map` must be an existing directory, got {self.memory_map}; make it, or name another."
            )
        with tempfile.TemporaryFile(dir=self.memory_map) as file:  # the array keeps the file open
            _reserve(file.fileno(), math.prod(shape) * np.dtype(dtype).itemsize, self.memory_map)
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

    def _check_shapes(self, count: int, **parts: Any) -> None:
        shapes = {"next_obs": self.obs_shape, "action": (self.action_dim,)}
        for name, values in parts.items():
            got, expected = (len(values),) if name == "infos" else np.shape(values), (count, *shapes.get(name, ()))
            if got != expected:
                raise ValueError(f"`{name}` must have shape {expected} for {count} environments, got {got}.")

    def _check_paths(self, count: int, paths: NDArray[np.uint8] | None) -> None:
        if self.paths is None and paths is None:
            return
        if self.paths is None or paths is None:
            raise ValueError(
                "`paths` must be given where the buffer keeps paths, and only there; it keeps "
                f"{'none' if self.paths is None else 'them'}."
            )
        expected = (count, self.paths.shape[-1])
        if paths.shape != expected or paths.dtype != np.uint8:
            raise ValueError(
                f"`paths` must be uint8 with shape {expected}, got {paths.dtype} with shape {paths.shape}; "
                "were they packed by another topology?"
            )

    def _refuse(self, what: str, values: NDArray[Any], tasks: NDArray[np.int64]) -> None:
        wrong = ~np.isfinite(values.reshape(len(tasks), -1)).all(axis=1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"every {what} must be finite, got {values[i].tolist()} of task {tasks[i]} (environment {i}) at vector "
                f"step {self.vector_steps}; nothing was stored of that step."
            )


def _reserve(descriptor: int, size: int, folder: str | Path) -> None:
    """Takes the room of a file on its disk, since a full disk kills a process that writes to a sparse map."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS and Windows have none
        return
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        # The disk cannot reserve room.


def to_device(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """Copies an array to a device without waiting for a GPU."""
    tensor, device = torch.from_numpy(array), torch.device(device)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # copies from unpinned memory wait


def _on_arrays(function: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensor], Tensor]:
    """Turns a function of arrays into a function of tensors."""
    return lambda tensor: torch.from_numpy(function(tensor.numpy()))


def _read_only(array: NDArray[Any]) -> NDArray[np.float32]:
    """Makes an array read-only, because writing to it would not change the rows."""
    array = array.astype(np.float32, copy=False)
    array.flags.writeable = False
    return array
