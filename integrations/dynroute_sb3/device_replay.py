"""A copy of the replay buffer in the memory of a device, which draws batches there."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .demonstrations import DemonstrationBuffer, shown_first
from .replay import RouteReplayBuffer, RouteReplaySamples, to_device

__all__ = ["DeviceReplay"]


class DeviceReplay:
    """A copy of a :class:`~dynroute_sb3.RouteReplayBuffer` on a device, where batches are drawn.

    Drawing a batch reads no values on the host, and only new transitions are copied. Memory for a full buffer is
    allocated at once. Checkpoints store the original buffer.

    Args:
        buffer: The buffer; demonstrations are copied too.
        device: The device of the copy.
        generator: The random generator; default: the device's, whose state is in every checkpoint.

    Example:
        >>> from dynroute_sb3.device_replay import DeviceReplay
        >>> buffer = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks())).learn(20).replay_buffer
        >>> replay = DeviceReplay(buffer, "cpu")
        >>> replay.update()
        >>> replay.sample(*buffer.parts(8)).tasks
        tensor([0, 0, 1, 1, 2, 2, 3, 3])
    """

    def __init__(
        self, buffer: RouteReplayBuffer, device: torch.device | str, generator: torch.Generator | None = None
    ) -> None:
        self.buffer = buffer
        self._own = _Rings(buffer, device, generator)
        self._shown = _Rings(buffer.shown, device, generator) if isinstance(buffer, DemonstrationBuffer) else None
        self._wanted = torch.empty(0)
        if isinstance(buffer, DemonstrationBuffer):
            self._wanted = torch.empty(buffer.wanted.shape, device=device)

    def update(self) -> None:
        """Copies the transitions that were added since the last time."""
        self._own.update()
        if self._shown is not None and self._shown.update():
            assert isinstance(self.buffer, DemonstrationBuffer)
            self._wanted.copy_(torch.from_numpy(self.buffer.wanted))

    @property
    def reach(self) -> tuple[int, ...]:
        """How far n-step returns look for the next transition, in each ring of rings; a captured sample fixes it."""
        return tuple(rings.buffer.reach for rings in (self._own, self._shown) if rings is not None)

    def sample(self, own: int, shown: int = 0) -> RouteReplaySamples:
        """Draws transitions with replacement, as :meth:`~dynroute_sb3.RouteReplayBuffer.sample` does.

        Args:
            own: The number of transitions of each task, or in all if the buffer is not balanced.
            shown: The number of demonstrations of each task or in all, which come first.
        """
        batch, _ = self._own.sample(own)
        if not shown:
            return batch
        assert self._shown is not None
        demonstrations, indices = self._shown.sample(shown)
        return shown_first(demonstrations, batch, self._wanted.flatten(0, 1)[indices])


class _Rings:
    """The rings of one buffer."""

    def __init__(
        self, buffer: RouteReplayBuffer, device: torch.device | str, generator: torch.Generator | None
    ) -> None:
        self.buffer, self.device, self.generator = buffer, torch.device(device), generator
        self.arrays: dict[str, Tensor] = {}
        self._allocate()
        self.numbers = torch.zeros(2, buffer.num_tasks, dtype=torch.int64, device=device)
        """The counts of the tasks, and their positions."""
        self.version, self.added = -1, buffer.added

    def _allocate(self) -> None:
        """Allocates the copies, anew where an array has another shape, as paths have after growth."""
        for name, array in self.buffer._arrays().items():
            if name not in self.arrays or self.arrays[name].shape != array.shape:
                dtype = torch.from_numpy(array[:0]).dtype
                self.arrays[name] = torch.empty(array.shape, dtype=dtype, device=self.device)

    def update(self) -> bool:
        """Copies new transitions; returns whether there were any."""
        buffer = self.buffer
        if buffer.version != self.version:
            self._copy_all()
        elif not (new := np.minimum(buffer.added - self.added, buffer.capacity)).any():
            return False
        else:
            tasks = np.repeat(np.arange(buffer.num_tasks), new)
            back = np.arange(len(tasks)) - np.repeat(new.cumsum() - new, new) + 1  # 1 for the newest of a task
            self._copy(tasks, (buffer.positions[tasks] - back) % buffer.capacity)
        self.numbers.copy_(to_device(np.stack([buffer.counts, buffer.positions]), self.device), non_blocking=True)
        self.version, self.added = buffer.version, buffer.added
        return True

    def _copy(self, tasks: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        at = to_device(tasks, self.device), to_device(places, self.device)
        for name, array in self.buffer._arrays().items():
            self.arrays[name].index_put_(at, to_device(array[tasks, places], self.device))

    def _copy_all(self) -> None:
        self._allocate()
        for name, array in self.buffer._arrays().items():
            for task, count in enumerate(self.buffer.counts):
                self.arrays[name][task, :count].copy_(torch.from_numpy(array[task, :count]))

    def sample(self, each: int) -> tuple[RouteReplaySamples, Tensor]:
        """Draws a batch with this number of transitions, per task or in all, and returns their flat indices too."""
        tasks, places = self._draw(each)
        rows, discounts = self.arrays["rows"], None
        packed = self.arrays["paths"][tasks, places] if "paths" in self.arrays else None
        if self.buffer.n_steps > 1:
            back = self.arrays["back"][..., 0]
            drawn, discounts = self.buffer.look_ahead(rows, back, self.numbers[1], tasks, places)
        else:
            drawn = rows[tasks, places]
        return self.buffer.unpack(drawn, tasks, packed, discounts), tasks * self.buffer.capacity + places

    def _draw(self, each: int) -> tuple[Tensor, Tensor]:
        """Draws tasks and places like :meth:`RouteReplayBuffer.draw`."""
        # The 24 random bits of float32 would draw unevenly from a million transitions.
        counts = self.numbers[0]
        shape = (self.buffer.num_tasks, each) if self.buffer.balanced else (each,)
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.device)
        if not self.buffer.balanced:
            ends = counts.cumsum(dim=0)
            numbers = torch.minimum((drawn * ends[-1]).long(), ends[-1] - 1)
            tasks = torch.searchsorted(ends, numbers, right=True)
            return tasks, numbers - (ends - counts)[tasks]
        places = torch.minimum((drawn * counts[:, None]).long(), counts[:, None] - 1)
        tasks = torch.arange(self.buffer.num_tasks, device=self.device).unsqueeze(1).expand(shape)
        return tasks.flatten(), places.flatten()
