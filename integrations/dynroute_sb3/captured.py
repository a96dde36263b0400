"""Updates as CUDA graphs: sampling, losses, gradients, optimizers and targets in one launch.

The update of a small network is some hundred kernels of a few microseconds each, and launching them takes longer than
running them. A graph launches them all at once. Addresses, shapes, the numbers of
:class:`~dynroute_sb3.update.Coefficients` and how far n-step returns look are fixed in a graph, so each set of them has
one. Learning rates are tensors that are set before a replay. Each replay draws the random numbers that an eager update
would draw.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .attributes import MultiTaskAttributes
from .demonstrations import DemonstrationBuffer
from .device_replay import DeviceReplay
from .replay import RouteReplayBuffer
from .report import Report
from .update import Coefficients, Networks, follow, update

__all__ = ["CaptureError", "CapturedUpdate", "cuda_graph", "obstacle"]

CAPTURING_DEVICE = "cuda"
"""The type of device whose updates are captured."""

WARM_UP = 3
"""The number of updates before a capture, which allocate all lasting state."""

MOST_GRAPHS = 8
"""The number of graphs to keep, for actors that learn or wait, targets that follow or stay, and changed options."""


class CaptureError(RuntimeError):
    """An update cannot be captured.

    Example:
        >>> from dynroute_sb3.captured import CaptureError
        >>> raise CaptureError("an operation read a value")
        Traceback (most recent call last):
            ...
        dynroute_sb3.captured.CaptureError: an operation read a value
    """


def cuda_graph(step: Callable[[], object]) -> Callable[[], object]:
    """Captures a step as a CUDA graph after some eager steps on another stream; returns a function that replays it.

    Example:
        >>> from dynroute_sb3.captured import cuda_graph
        >>> total = torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
        >>> replay = cuda_graph(lambda: total.add_(1)) if total.is_cuda else lambda: total.add_(4)
        >>> replay().item() if not total.is_cuda else (replay(), total.item())[1]  # three steps warmed up
        4.0
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:  # the original error says more than the error of the capture
        raise CaptureError(str(error.__context__ or error).partition("\n")[0]) from error
    finally:
        torch.cuda.set_stream(current)  # a failed capture does not restore the stream
    return graph.replay


def obstacle(model: MultiTaskAttributes) -> str | None:
    """Returns the reason why the updates of a model cannot be captured, or None if they can."""
    buffer = model.replay_buffer
    if model.compile_networks:
        return "`compile_networks` runs them by a compiler"
    if model._vec_normalize_env is not None:
        return "VecNormalize normalizes each batch by current statistics, which are not on the device"
    if model.demonstration_weight and model.demonstration_decay is not None:
        return "`demonstration_decay` changes a number of each update"
    kind = DemonstrationBuffer if isinstance(buffer, DemonstrationBuffer) else RouteReplayBuffer
    for name in ("sample", "draw", "gather", "_get_samples", "look_ahead", "unpack"):
        if getattr(type(buffer), name) is not getattr(kind, name):
            return f"{type(buffer).__name__} overrides `{name}`, which runs on the CPU"
    for optimizer in _optimizers(model.actor.optimizer, model.critic.optimizer, model.policy.shared_optimizer):
        if not (type(optimizer) in (Adam, AdamW) and all(group["fused"] for group in optimizer.param_groups)):
            return f"a {type(optimizer).__name__} that is not fused may keep its steps on the CPU"
    return None


class CapturedUpdate:
    """Updates networks from a copy of the replay buffer on their device.

    The updates that warm up a graph are undone. Every update that counts is therefore a replay, and a run that resumes
    from a checkpoint computes the same as without interruption.

    Args:
        networks: The networks to update.
        buffer: The replay buffer.
        report: Accumulates the results of updates.
        device: The device of all of them.
        record: Turns a step, which it may run, into a function that repeats it; default: :func:`cuda_graph`.
    """

    def __init__(
        self,
        networks: Networks,
        buffer: RouteReplayBuffer,
        report: Report,
        device: torch.device,
        record: Callable[[Callable[[], object]], Callable[[], object]] | None = None,
    ) -> None:
        self.networks, self.report, self.device = networks, report, device
        self.replay = DeviceReplay(buffer, device)
        self._record = record or cuda_graph
        self._optimizers = _optimizers(
            networks.actor.optimizer, networks.critic.optimizer, networks.alpha_optimizer, networks.shared_optimizer
        )
        self._graphs: dict[object, Callable[[], object]] = {}
        self._forget()

    def __call__(self, given: Coefficients, batch_size: int, tau: float | None) -> None:
        """Updates the networks from a new batch.

        Args:
            given: The numbers and rules of the update.
            batch_size: The size of the batch.
            tau: The fraction by which the target critics follow; None for no update of them.
        """
        own, shown = self.replay.buffer.parts(batch_size)
        self.replay.update()
        if self._is_stale():
            self._forget()
        self._write_rates()
        key = (given, own, shown, tau, *self.replay.reach)
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]

            def step() -> None:
                self.report.add_up(update(self.replay.sample(own, shown), self.networks, given))
                if tau is not None:
                    follow(self.networks.critic_target, self.networks.critic, tau)

            with self._undone(), self._rates_on_device():
                self._graphs[key] = self._record(step)
            self._states = [optimizer.state for optimizer in self._optimizers]
        self._graphs[key]()
        self.report.updates += 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_graphs": {}}  # a copy captures its own graphs

    def _forget(self) -> None:
        """Drops all graphs, because their addresses are no longer valid."""
        self._graphs.clear()
        self._parameters = self._find_parameters()
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]
        self._states = [optimizer.state for optimizer in self._optimizers]
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        self._rates = [(group, torch.zeros((), device=self.device)) for group in groups]
        self._written: list[float | None] = [None] * len(groups)

    def _find_parameters(self) -> list[Tensor]:
        networks = self.networks
        modules = (networks.actor, networks.critic, networks.critic_target)
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [*tensors, networks.log_alpha]

    def _is_stale(self) -> bool:
        # An optimizer's load_state_dict() makes new tensors, and SB3's load() replaces the data of tensors.
        states = [optimizer.state for optimizer in self._optimizers]
        if any(now is not before for now, before in zip(states, self._states, strict=True)):
            return True
        return [parameter.data_ptr() for parameter in self._parameters] != self._addresses

    def _write_rates(self) -> None:
        for i, (group, rate) in enumerate(self._rates):
            if group["lr"] != self._written[i]:
                rate.fill_(group["lr"])
                self._written[i] = group["lr"]

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Makes optimizers read learning rates from the device; restores the stored ones afterwards."""
        before = [(group["lr"], group["capturable"]) for group, _ in self._rates]
        for group, rate in self._rates:
            group["lr"], group["capturable"] = rate, True
        try:
            yield
        finally:
            for (group, _), (rate, capturable) in zip(self._rates, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Restores parameters, optimizer states, totals and random generators after the block."""
        before = {tensor: tensor.detach().clone() for tensor in self._changing()}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            try:
                yield
            finally:
                for tensor in self._changing():
                    old = before.get(tensor)  # tensors that Adam made in the block start at zero
                    tensor.detach().copy_(old) if old is not None else tensor.detach().zero_()

    def _changing(self) -> list[Tensor]:
        """The tensors that an update changes."""
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self._parameters, *moments, *self.report.totals.values()]


def _optimizers(*optimizers: Optimizer | None) -> list[Optimizer]:
    return [optimizer for optimizer in optimizers if optimizer is not None]
