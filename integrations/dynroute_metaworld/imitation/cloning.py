"""Cloning: the actor learns the actions of demonstrations, and is the start of a run."""

import contextlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynroute_sb3 import MultiTaskSAC
from dynroute_sb3.storage import check_folder, remove_leftovers, writing_folder
from dynroute_sb3.tree import read_tree, write_tree

from ..runs.configuration import ROUTE_LOSSES, Configuration
from ..runs.metrics import MetricsFile, forget_after
from ..runs.progress import Display
from ..runs.run import RunError
from .demonstrations import Demonstrations

__all__ = ["ERRORS", "Cloning"]

CHECK_EVERY = 100
"""The number of updates between two looks at what was held out."""

ERRORS = "errors.jsonl"
"""The file of the error on held-out episodes, the root of the squared one, by task and update."""

SHOW_EVERY = 10


class Cloning:
    r"""Supervised learning of the actor from demonstrations, every task in equal parts.

    .. math:: L = \lVert \tanh \mu(s, \mathcal T) - a \rVert^2 + c \, (\log \sigma - \log \bar\sigma)^2

    Routes are sampled as in training, and the second term sets how much a policy explores that goes on with SAC. The
    configuration may add losses of routes, :data:`~dynroute_metaworld.runs.configuration.ROUTE_LOSSES`. The networks with
    the smallest error on held-out episodes are kept, along the best routes. It can be interrupted: what it depends on
    is written every :data:`CHECK_EVERY` updates.

    Args:
        model: The model whose actor learns.
        demonstrations: What it learns from; the last episodes of each part are held out.
        configuration: How it learns.
        steps: The number of updates.
        folder: Where it is written.
    """

    def __init__(
        self,
        model: MultiTaskSAC,
        demonstrations: Sequence[Demonstrations],
        configuration: Configuration,
        steps: int,
        folder: Path,
    ) -> None:
        self.model, self.actor, self.configuration, self.folder = model, model.actor, configuration, folder
        self.steps = steps
        self.fingerprint = " ".join(part.fingerprint for part in demonstrations)
        learned, held_out = zip(*(part.split(configuration.held_out) for part in demonstrations), strict=True)
        self.learned, self.held_out = self._tensors(learned), self._tensors(held_out)
        parameters = list(self.actor.parameters())
        self.optimizer = torch.optim.Adam(parameters, lr=configuration.cloning_rate, fused=True)
        self.generator = torch.Generator(model.device).manual_seed(configuration.seed)
        self.update = self.best_update = 0
        self.best, self.best_error = self._networks(), math.inf
        self._read()

    def run(self, display: Display) -> None:
        """Learns until the updates are done, or until nothing held out was gained for long."""
        configuration, steps = self.configuration, self.steps
        self.model.policy.set_training_mode(True)
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_after(self.folder / ERRORS, self.update)
        with contextlib.closing(MetricsFile(self.folder / ERRORS)) as errors:
            while self.update < steps and self.update - self.best_update < configuration.patience * CHECK_EVERY:
                self._learn()
                if self.update % SHOW_EVERY == 0:
                    display.advance(self.update, "cloning", steps)
                if self.update % CHECK_EVERY == 0 or self.update == steps:
                    squared = self._check()
                    told = f"error {squared.mean().sqrt():.3f} on held-out episodes"
                    display.tell(f"{self.update:>9,} of {steps:,} updates, {told}")
                    by_task = zip(self.model.task_names or (), squared.sqrt().tolist(), strict=True)
                    errors.write({f"cloning_error/{task}": error for task, error in by_task}, {}, self.update)
                    self._write()
        if not math.isfinite(self.best_error):
            raise RunError(
                f"cloning in {self.folder} came to nothing: its error on held-out episodes is not finite; start "
                f"another run with a `cloning_rate` below {configuration.cloning_rate:g}."
            )
        self.actor.load_state_dict(self.best)
        self.model.critic_target.load_state_dict(self.model.critic.state_dict())  # what it shares with the actor
        self.model.policy.set_training_mode(False)

    def _learn(self) -> None:
        """An update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.configuration.cloning_rate * _one_cycle(self.update / self.steps)
        loss = self._loss(*self._batch())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1

    def _batch(self) -> tuple[Tensor, Tensor]:
        """As many samples of each task."""
        states, actions = self.learned
        tasks, count = states.shape[:2]
        shape = (tasks, self.configuration.cloning_batch_size)
        rows = torch.randint(count, shape, generator=self.generator, device=states.device)
        which = torch.arange(tasks, device=states.device).unsqueeze(1)
        observations = self.actor.task_space.join(states[which, rows].flatten(0, 1), which.expand(shape).flatten())
        return observations, actions[which, rows].flatten(0, 1)

    def _loss(self, observations: Tensor, actions: Tensor) -> Tensor:
        sample = self.configuration.cloning_sample
        mean, log_std, route = self.actor.distribution(observations, sample=sample, generator=self.generator)
        loss = (torch.tanh(mean) - actions).square().mean()
        loss = loss + 0.01 * (log_std - math.log(self.configuration.cloning_std)).square().mean()
        if route is not None:
            for name, weight in self.configuration.route_losses.items():
                loss = loss + weight * ROUTE_LOSSES[name](route)
        return loss

    @torch.no_grad()
    def _check(self) -> Tensor:
        """The squared error of each task on what was held out; the networks are kept if the mean is the smallest."""
        states, actions = self.held_out
        self.model.policy.set_training_mode(False)
        errors = []
        for task in range(len(states)):
            ids = torch.full(states[task].shape[:1], task, device=states.device)
            mean, *_ = self.actor.distribution(self.actor.task_space.join(states[task], ids))
            errors.append((torch.tanh(mean) - actions[task]).square().mean())
        self.model.policy.set_training_mode(True)
        by_task = torch.stack(errors)
        if (error := by_task.mean()) < self.best_error:
            self.best, self.best_error, self.best_update = self._networks(), error.item(), self.update
        return by_task

    def _networks(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.actor.state_dict().items()}

    def _tensors(self, parts: Sequence[Demonstrations]) -> tuple[Tensor, Tensor]:
        """The states and the actions of each task, with shape ``[tasks, steps, features]``."""
        arrays = [
            np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("observations", "actions")
        ]
        states, actions = (torch.as_tensor(array, device=self.model.device).flatten(1, 2) for array in arrays)
        return states, actions

    def _write(self) -> None:
        state = {
            "demonstrations": self.fingerprint,
            "update": self.update,
            "networks": self._networks(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "best": self.best,
            "best_error": self.best_error,
            "best_update": self.best_update,
        }
        with writing_folder(self.folder / f"update_{self.update}") as temporary:
            write_tree(temporary, "cloning", state)
        for old in self._written()[:-1]:
            shutil.rmtree(old)

    def _read(self) -> None:
        """Goes on from what was written last."""
        remove_leftovers(self.folder, "update_*")
        if not (written := self._written()):
            return
        check_folder(written[-1], f"remove {written[-1]}, and --resume clones again from where it began")
        state = read_tree(written[-1], "cloning")
        if state["demonstrations"] != self.fingerprint:
            raise ValueError(
                f"{written[-1]} was learned from other demonstrations than those that are there now; "
                "start another run, or bring the former ones back."
            )
        self.actor.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        for name in ("update", "best", "best_error", "best_update"):
            setattr(self, name, state[name])

    def _written(self) -> list[Path]:
        return sorted(self.folder.glob("update_*"), key=lambda path: int(path.name.removeprefix("update_")))


def _one_cycle(progress: float) -> float:
    """The share of the highest learning rate: it rises over a tenth of the time, and falls as a cosine.

    Example:
        >>> [round(_one_cycle(progress), 2) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / 0.1 if progress < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.1) / 0.9)
