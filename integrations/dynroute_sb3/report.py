"""Statistics of each task for SB3's logger."""

import dataclasses
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .attributes import MultiTaskAttributes
from .losses import weigh_tasks
from .own_networks import samples_routes
from .update import TaskReport

__all__ = ["Report"]

NEWEST_PATHS = 100
"""The number of newest paths of each task over which the number of modules used is averaged."""


class Report:
    """Accumulates results of updates and episodes for the logger.

    Args:
        num_tasks: The number of tasks.
        window: The number of episodes of each task over which returns and successes are averaged.
        device: The device on which losses are accumulated without being read.
    """

    def __init__(self, num_tasks: int, window: int, device: torch.device) -> None:
        self.returns: list[deque[float]] = [deque(maxlen=window) for _ in range(num_tasks)]
        self.successes: list[deque[float]] = [deque(maxlen=window) for _ in range(num_tasks)]
        names = [field.name for field in dataclasses.fields(TaskReport)]
        self.totals = {name: torch.zeros(num_tasks, dtype=torch.float64, device=device) for name in names}
        self.updates = 0
        self.told_of_range = False

    def add(self, report: TaskReport) -> None:
        """Adds an update."""
        self.add_up(report)
        self.updates += 1

    def add_up(self, report: TaskReport) -> None:
        """Adds the numbers of an update to the totals without counting it."""
        for name, total in self.totals.items():
            total += getattr(report, name)

    def add_episode(self, task: int, info: dict[str, Any]) -> None:
        """Adds a finished episode from the info of its last step."""
        self.returns[task].append(float(info["episode"]["r"]))
        if "is_success" in info:
            self.successes[task].append(float(info["is_success"]))

    def log(self, model: MultiTaskAttributes) -> None:
        """Logs the means over the updates since the last call, and over the last episodes."""
        for what, kept in (("return", self.returns), ("success", self.successes)):
            _by_task(model, what, [float(np.mean(values)) if values else None for values in kept])
        self.record_updates(model)
        for total in self.totals.values():
            total.zero_()
        self.updates = 0
        topology, buffer = model.policy.topology, model.replay_buffer
        if topology is not None and buffer is not None and buffer.paths is not None:
            newest = buffer.latest_paths(NEWEST_PATHS)
            used = [topology.used(paths).sum(dim=-1).float().mean().item() if len(paths) else None for paths in newest]
            if means := [mean for mean in used if mean is not None]:
                model.logger.record("rollout/modules_used", float(np.mean(means)))
            _by_task(model, "modules_used", used)

    def record_updates(self, model: MultiTaskAttributes) -> None:
        """Logs the means over the updates since the last :meth:`log`, without resetting them.

        Only here are the values of updates read.
        """
        model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
        if not self.updates:
            return
        # A batch over all tasks may have no sample of one, and an update then tells nothing of it.
        present = self.totals["present"]
        counts = present.tolist()
        means = {
            name: [value if count else None for value, count in zip((total / present).tolist(), counts, strict=True)]
            for name, total in self.totals.items()
            if name != "present"
        }
        masked, outside = means.pop("masked"), means.pop("outside_range")
        for name, values in means.items():
            model.logger.record(f"train/{name}", _mean(values))
            _by_task(model, name, values)
        model.logger.record("train/masked_tasks", float(self.totals["masked"].sum()) / self.updates)
        _by_task(model, "masked", masked)
        if model.critic_loss == "categorical":
            model.logger.record("train/outside_range", _mean(outside))
            _by_task(model, "outside_range", outside)
            self._warn_of_range(model, outside)
        alpha = model.entropy_coefficients
        model.logger.record("train/ent_coef", alpha.mean().item())
        _by_task(model, "ent_coef", alpha.tolist())
        _by_task(model, "weight", weigh_tasks(model.task_weights, alpha).tolist())
        if samples_routes(model.actor.net):
            _by_task(model, "route_temperature", model.actor.temperature.tolist())

    def _warn_of_range(self, model: MultiTaskAttributes, outside: Sequence[float | None]) -> None:
        """Warns once about tasks with most of their values outside of the range."""
        assert model.task_names is not None
        tasks = {name: share for name, share in zip(model.task_names, outside, strict=True) if share and share > 0.5}
        if not tasks or self.told_of_range:
            return
        self.told_of_range = True
        worst = max(tasks, key=lambda name: tasks[name])
        advice = "make another model with a wider one"
        advice += "" if model.normalize_returns else ", or with normalize_returns=True"
        warnings.warn(
            f"`value_range` must hold the values that critics learn, and at step {model.num_timesteps} most of them "
            f"lie outside of {model.value_range} for the tasks {list(tasks)} ({tasks[worst]:.0%} for {worst}): they "
            f"count as the outermost bin; {advice}. `outside_range` in the log tells how many.",
            stacklevel=2,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the attributes of another report."""
        self.returns, self.successes, self.updates = state["returns"], state["successes"], state["updates"]
        for name, total in self.totals.items():
            total.copy_(state["totals"][name])
        self.told_of_range = bool(state["told_of_range"])


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _by_task(model: MultiTaskAttributes, what: str, values: Sequence[float | None]) -> None:
    """Logs a value of each task that has one."""
    assert model.task_names is not None
    for task, value in zip(model.task_names, values, strict=True):
        if value is not None:
            model.logger.record(f"{what}/{task}", float(value), exclude="stdout")  # too many lines for a screen
