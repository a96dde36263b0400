"""Bounds of the returns of each task, which normalize rewards."""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .replay import GOES_ON, OUT_OF_TIME, RouteReplayBuffer, to_device

__all__ = ["ReturnBounds", "discounted_returns"]


def discounted_returns(rewards: Sequence[float], gamma: float, *, truncated: bool) -> NDArray[np.float64]:
    r"""Computes the discounted return of every step of an episode.

    .. math:: R_t = r_t + \gamma R_{t + 1}, \qquad
              R_n = \begin{cases} \frac{1}{n (1 - \gamma)} \sum_t r_t & \text{truncated} \\ 0 & \text{else} \end{cases}

    Args:
        rewards: The rewards of the episode.
        gamma: The discount factor, below 1.
        truncated: Whether the episode was truncated; it is then assumed to continue with its mean reward.

    Example:
        >>> from dynroute_sb3.returns import discounted_returns
        >>> discounted_returns([1.0, 1.0], 0.5, truncated=True), discounted_returns([1.0, 1.0], 0.5, truncated=False)
        (array([2., 2.]), array([1.5, 1. ]))
    """
    returns = np.empty(len(rewards))
    following = float(np.mean(rewards)) / (1 - gamma) if truncated else 0.0
    for i in reversed(range(len(rewards))):
        following = returns[i] = rewards[i] + gamma * following
    return returns


class ReturnBounds:
    """Tracks the smallest and the largest discounted return of each task, from the episodes that ended.

    Until the first episode of a task ends, the bounds are the returns of its extreme rewards, repeated for ever. Zero
    counts as a return of every task.

    Args:
        num_tasks: The number of tasks.
        gamma: The discount factor, below 1.
        device: The device on which updates read the bounds.

    Example:
        >>> from dynroute_sb3.returns import ReturnBounds
        >>> bounds = ReturnBounds(num_tasks=2, gamma=0.5, device="cpu")
        >>> one, going_on, ends = np.array([0]), np.array([False]), np.array([True])
        >>> bounds.add(one, np.array([-1.0]), going_on, going_on)
        >>> bounds.update()
        tensor([[-2.,  0.],
                [ 0.,  0.]], dtype=torch.float64)
        >>> bounds.add(one, np.array([3.0]), ends, going_on)
        >>> bounds.update()
        tensor([[0., 3.],
                [0., 0.]], dtype=torch.float64)
    """

    def __init__(self, num_tasks: int, gamma: float, device: torch.device | str) -> None:
        self.gamma = gamma
        self.returns = np.zeros((num_tasks, 2))
        """The bounds from episodes that ended, with shape ``[num_tasks, 2]``."""
        self.rewards = np.zeros((num_tasks, 2))
        """The extreme rewards."""
        self.ended = np.zeros(num_tasks, dtype=bool)
        """Whether an episode of each task has ended."""
        self.running: list[list[float]] = []
        """The rewards of the episode that each environment is in."""
        self.on_device = torch.zeros(num_tasks, 2, dtype=torch.float64, device=device)
        self._changed = False

    def add(
        self, tasks: NDArray[np.int64], rewards: NDArray[Any], dones: NDArray[np.bool_], truncated: NDArray[np.bool_]
    ) -> None:
        """Adds a step of all environments.

        Args:
            tasks: The task of each environment.
            rewards: The rewards.
            dones: Whether the episode ended.
            truncated: Whether it ended by truncation.
        """
        if len(self.running) != len(tasks):
            self.running = [[] for _ in tasks]
        for i, task in enumerate(tasks):
            self.running[i].append(float(rewards[i]))
            _widen(self.rewards[task], rewards[i : i + 1])
            if dones[i]:
                self._end(int(task), self.running[i], bool(truncated[i]))
                self.running[i] = []
        self._changed = True

    def add_episodes(
        self, task: int, rewards: NDArray[Any], dones: NDArray[np.bool_], truncated: NDArray[np.bool_]
    ) -> None:
        """Adds the steps of consecutive episodes of a task; the last one counts as truncated if it has not ended."""
        truncated = truncated | ~dones
        ends = sorted({*np.flatnonzero(dones).tolist(), len(rewards) - 1})
        for before, end in zip([-1, *ends], ends, strict=False):
            self._end(task, rewards[before + 1 : end + 1].tolist(), bool(truncated[end]))
        _widen(self.rewards[task], rewards)
        self._changed = True

    def add_buffer(self, buffer: RouteReplayBuffer) -> None:
        """Adds the transitions of a replay buffer, whose episodes are followed from state to state.

        Episodes that have not ended count by their extreme rewards alone, as in :meth:`add`, and so do those that were
        truncated and whose beginning the ring may have overwritten: the mean of what is left says little.
        """
        n = buffer.task_space.state_features
        for task, (ring, count) in enumerate(zip(buffer.rows, buffer.counts, strict=True)):
            oldest_first = (buffer.positions[task] - count + np.arange(count)) % buffer.capacity
            cut = buffer.most_at_once if count == buffer.capacity else 0  # episodes that may have begun before
            open_episodes: dict[bytes, deque[tuple[list[float], bool]]] = defaultdict(deque)  # several in one state
            for number, row in enumerate(ring[oldest_first]):
                before = open_episodes[row[:n].tobytes()]
                rewards, whole = before.popleft() if before else ([], number >= cut)
                rewards.append(float(row[-2]))
                if row[-1] == GOES_ON:
                    open_episodes[row[n : 2 * n].tobytes()].append((rewards, whole))
                elif whole or row[-1] != OUT_OF_TIME:
                    self._end(task, rewards, bool(row[-1] == OUT_OF_TIME))
            if count:
                _widen(self.rewards[task], ring[:count, -2])
        self._changed = True

    def forget_running(self) -> None:
        """Drops the episodes that have not ended, for environments that are reset."""
        self.running = []

    def update(self) -> Tensor:
        """Updates the bounds on the device and returns them, always the same tensor, with shape ``[num_tasks, 2]``."""
        if self._changed:
            horizon = 1 / (1 - self.gamma)
            bounds = np.where(self.ended[:, None], self.returns, horizon * self.rewards)
            self.on_device.copy_(to_device(bounds, self.on_device.device), non_blocking=True)
            self._changed = False
        return self.on_device

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that later bounds depend on."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("returns", "rewards", "ended")}
        return {**arrays, "running": [list(rewards) for rewards in self.running], "gamma": self.gamma}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restores the state returned by :meth:`state_dict`; it must be complete, whatever `strict` says.

        Of bounds with another discount factor only the extreme rewards are taken, until an episode ends.
        """
        for name in ("returns", "rewards", "ended"):
            current, stored = getattr(self, name), state[name].cpu().numpy()
            if stored.shape != current.shape:
                raise ValueError(f"`{name}` of bounds must have shape {current.shape}, got {stored.shape}.")
            current[...] = stored
        if state["gamma"] != self.gamma:
            self.returns[...], self.ended[...] = 0, False
        self.running = [[float(reward) for reward in rewards] for rewards in state["running"]]
        self._changed = True

    def _end(self, task: int, rewards: Sequence[float], truncated: bool) -> None:
        _widen(self.returns[task], discounted_returns(rewards, self.gamma, truncated=truncated))
        self.ended[task] = True


def _widen(bounds: NDArray[np.float64], values: NDArray[Any]) -> None:
    bounds[:] = min(bounds[0], float(np.min(values))), max(bounds[1], float(np.max(values)))
