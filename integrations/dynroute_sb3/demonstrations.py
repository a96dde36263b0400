"""Replay buffers with demonstrations, which make up a part of every batch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from dynroute import Topology

from .attributes import MultiTaskAttributes
from .replay import GOES_ON, OUT_OF_TIME, RouteReplayBuffer, RouteReplaySamples, to_device
from .returns import ReturnBounds
from .storage import Member, read_rows, write_rows

__all__ = ["DemonstrationBuffer", "add_demonstrations", "add_returns", "check_share", "shown_first"]

ROWS = 4096
"""The number of observations that the actor routes at once."""


ROUNDING = 1e-5
"""How far rounding may bring scaled actions outside of [-1, 1]."""


class DemonstrationBuffer(RouteReplayBuffer):
    """A replay buffer with demonstrations, which are never overwritten and make up a share of every batch.

    Without demonstrations it is a :class:`RouteReplayBuffer`.

    Args:
        buffer_size: The number of collected transitions of all tasks together.
        observation_space: The space of the observations, which end with the one-hot of the task.
        action_space: The space of the actions.
        args: The other arguments of :class:`RouteReplayBuffer`.
        demonstrations: The number of demonstrated transitions of each task.
        demonstration_share: Their share of each task's part of a batch, or of a batch that is not balanced.
        kwargs: The other keywords of :class:`RouteReplayBuffer`.

    Attributes:
        shown: The demonstrations.
        wanted: The demonstrator's intended actions, without noise, with shape ``[tasks, demonstrations, action_dim]``.

    Example:
        >>> env = DummyVecEnv(point_tasks())
        >>> shapes = env.observation_space, env.action_space
        >>> buffer = DemonstrationBuffer(100, *shapes, n_envs=4, num_tasks=4, demonstrations=5)
        >>> buffer.capacity, buffer.shown.capacity  # of each task
        (25, 5)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        *args: Any,
        demonstrations: int,
        demonstration_share: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if demonstrations < 1:
            raise ValueError(f"`demonstrations` must be at least 1 transition of each task, got {demonstrations}.")
        if not 0 <= demonstration_share < 1:
            raise ValueError(
                f"`demonstration_share` must be in 0..1, so that some of a batch is own experience, got "
                f"{demonstration_share}."
            )
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        count = demonstrations * self.num_tasks
        self.shown = RouteReplayBuffer(count, observation_space, action_space, *args, **kwargs)
        self.wanted = np.zeros((self.num_tasks, demonstrations, self.action_dim), np.float32)
        self.demonstration_share = demonstration_share

    def keep_paths(self, topology: Topology) -> None:
        super().keep_paths(topology)
        self.shown.keep_paths(topology)

    def lift_paths(self, topology: Topology) -> None:
        super().lift_paths(topology)
        self.shown.lift_paths(topology)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> RouteReplaySamples:  # type: ignore[override]
        """Draws transitions as :meth:`RouteReplayBuffer.sample` does, demonstrations first."""
        _, each = self.parts(batch_size)
        if not each:
            return super().sample(batch_size, env)
        own = super().sample(batch_size - each * self._drawn_alike, env)
        tasks, places = self.shown.draw(each)
        shown = self.shown.gather(tasks, places, env)
        return shown_first(shown, own, to_device(self.wanted[tasks, places], self.device))

    def parts(self, batch_size: int) -> tuple[int, int]:
        whole = batch_size // self._drawn_alike
        each = round(whole * self.demonstration_share) if self.shown.size() else 0
        if whole and each == whole:
            check_share(self.demonstration_share, whole, balanced=self.balanced)
        return self.each_task(batch_size - each * self._drawn_alike), each

    @property
    def _drawn_alike(self) -> int:
        """The number of equal parts of a batch: the number of tasks if it is balanced, else 1."""
        return self.num_tasks if self.balanced else 1

    def _shape(self) -> dict[str, Any]:
        return {**super()._shape(), "demonstrations": self.wanted.shape[1]}

    def save(self, folder: Path | Member) -> dict[str, Any]:
        (inner := folder / "demonstrations").mkdir()
        write_rows(inner / "wanted.npy", self.wanted, self.shown.counts)
        return {**super().save(folder), "shown": self.shown.save(inner)}

    def load(self, folder: Path | Member, state: dict[str, Any]) -> None:
        super().load(folder, state)
        inner = folder / "demonstrations"
        self.shown.load(inner, state["shown"])
        read_rows(inner / "wanted.npy", self.wanted, self.shown.counts)


def check_share(share: float, count: int, *, balanced: bool) -> None:
    """Raises an error if a share leaves no demonstration or no own transition in the `count` of a task or a batch."""
    if not 0 < round(count * share) < count:
        raise ValueError(
            f"`demonstration_share` must leave a demonstration and an own transition in the {count} of "
            f"{'each task in a' if balanced else 'a'} batch, got {share!r}; raise `batch_size`, or change the share."
        )


def shown_first(shown: RouteReplaySamples, own: RouteReplaySamples, wanted: Tensor) -> RouteReplaySamples:
    """Concatenates demonstrations, with the demonstrator's intended actions, and collected transitions."""
    both = [None if a is None or b is None else torch.cat([a, b]) for a, b in zip(shown, own, strict=True)]
    return RouteReplaySamples(*both)._replace(wanted=wanted)  # type: ignore[arg-type]


def add_demonstrations(
    model: MultiTaskAttributes,
    observations: NDArray[np.float32],
    actions: NDArray[np.float32],
    next_observations: NDArray[np.float32],
    rewards: NDArray[np.float32],
    dones: NDArray[np.bool_],
    *,
    timeouts: NDArray[np.bool_] | None = None,
    wanted: NDArray[np.float32] | None = None,
) -> None:
    """Adds demonstrations to the :class:`DemonstrationBuffer` of a model, with paths sampled by its actor.

    All arrays begin with ``[tasks, transitions]``.

    Args:
        model: The model.
        observations: The observations with the one-hots, not normalized.
        actions: The actions, scaled to [-1, 1], in the shape of the action space or flat.
        next_observations: The next observations, also at the end of an episode.
        rewards: The rewards.
        dones: Whether the episode ended there.
        timeouts: Whether it ended by a time limit; never if None.
        wanted: The intended actions, if they differ from the actions.
    """
    buffer = model.replay_buffer
    if not isinstance(buffer, DemonstrationBuffer):
        raise TypeError(
            "`model` must have been made with replay_buffer_class=DemonstrationBuffer, got one with a "
            f"{type(buffer).__name__}."
        )
    tasks, count, actions_of = buffer.wanted.shape
    if np.shape(actions)[2:] == model.action_space.shape:
        actions = np.reshape(actions, (*np.shape(actions)[:2], -1))
    if wanted is not None and np.shape(wanted)[2:] == model.action_space.shape:
        wanted = np.reshape(wanted, (*np.shape(wanted)[:2], -1))
    wanted, timeouts = actions if wanted is None else wanted, np.zeros_like(dones) if timeouts is None else timeouts
    parts: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        "observations": (observations, buffer.obs_shape),
        "next_observations": (next_observations, buffer.obs_shape),
    }
    parts |= {"actions": (actions, (actions_of,)), "wanted": (wanted, (actions_of,))}
    parts |= {"rewards": (rewards, ()), "dones": (dones, ()), "timeouts": (timeouts, ())}
    for name, (array, shape) in parts.items():
        if np.shape(array) != (tasks, count, *shape):
            raise ValueError(
                f"`{name}` must have shape {(tasks, count, *shape)}, {count} transitions for each of {tasks} tasks as "
                f"in the buffer, got {np.shape(array)}."
            )
        if not np.isfinite(array).all():
            task, i = np.argwhere(~np.isfinite(array))[0, :2]
            raise ValueError(f"`{name}` must be finite, got NaN or infinity in transition {i} of task {task}.")
    if (outside := np.abs(actions) > 1 + ROUNDING).any():
        task, i = np.argwhere(outside)[0, :2]
        raise ValueError(
            f"`actions` must be scaled to [-1, 1], got {np.asarray(actions)[task, i].tolist()} in transition {i} of "
            f"task {task}; model.policy.scale_action scales those of the environments."
        )
    rows = np.arange(tasks)[:, None]
    for name in ("observations", "next_observations"):
        if (buffer.task_space.tasks(parts[name][0].reshape(tasks * count, -1)).reshape(tasks, count) != rows).any():
            raise ValueError(f"`{name}` must begin with all transitions of task 0, and so on; their one-hots differ.")
    paths = _paths(model, observations) if buffer.paths is not None else None
    for i in range(count):
        infos = [{"TimeLimit.truncated": bool(end)} for end in timeouts[:, i]]
        buffer.shown.add(
            observations[:, i],
            next_observations[:, i],
            actions[:, i],
            rewards[:, i],
            dones[:, i],
            infos,
            None if paths is None else paths[:, i],
        )
    buffer.wanted[:] = wanted
    if model.return_bounds is not None:
        add_returns(model.return_bounds, buffer)


def add_returns(bounds: ReturnBounds, buffer: DemonstrationBuffer) -> None:
    """Adds the demonstrations of a buffer to bounds of returns."""
    for task, (rows, count) in enumerate(zip(buffer.shown.rows, buffer.shown.counts, strict=True)):
        if count:
            rewards, ends = rows[:count, -2:].T
            bounds.add_episodes(task, rewards, ends != GOES_ON, ends == OUT_OF_TIME)


@torch.no_grad()
def _paths(model: MultiTaskAttributes, observations: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Samples paths of the actor for observations, and packs them."""
    topology = model.policy.topology
    assert topology is not None
    if (normalizer := model.get_vec_normalize_env()) is not None:
        normalized = normalizer.normalize_obs(observations)
        assert isinstance(normalized, np.ndarray)
        observations = normalized
    rows = torch.split(torch.as_tensor(observations).flatten(0, 1), ROWS)
    routes = [model.actor.distribution(part.to(model.device), sample=True)[2] for part in rows]
    packed = [topology.pack(route.path).cpu().numpy() for route in routes if route is not None]
    return np.concatenate(packed).reshape(*observations.shape[:2], -1)
