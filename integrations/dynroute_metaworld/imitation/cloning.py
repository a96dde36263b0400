"""Cloning: the actor learns the actions of demonstrations, before a run goes on with SAC."""

import copy
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynroute import Route
from dynroute.growth import CLOSED
from dynroute.losses import importance, load_balance, route_entropy, router_z_loss
from dynroute_sb3 import GrowOnDemand, MultiTaskSAC
from dynroute_sb3.growth import grow_networks, network_size, open_newest
from dynroute_sb3.storage import check_folder, numbered, remove_leftovers, writing_folder
from dynroute_sb3.tree import read_tree, write_tree

from .demonstrations import Demonstrations

__all__ = ["ROUTE_LOSSES", "Cloning", "CloningOptions", "one_cycle"]

CHECK_EVERY = 100
"""The number of updates from one check on held-out episodes to the next."""

SHOW_EVERY = 10

ROUTE_LOSSES: dict[str, Callable[[Route], Tensor]] = {
    "cloning_balance": load_balance,
    "cloning_importance": importance,
    "cloning_z_loss": router_z_loss,
    "cloning_entropy": lambda route: -route_entropy(route),
}
"""The losses of routes that may be added to the loss of cloning, by the names of the options with their weights."""


@dataclass(frozen=True, kw_only=True)
class CloningOptions:
    """The options of cloning.

    Attributes:
        held_out: The number of held-out episodes of each task, which decide when to stop; the last ones of each part.
            A part with a single episode has none.
        batch_size: The samples of each task in an update.
        rate: The highest learning rate, see :func:`one_cycle`.
        sample: Whether routes are sampled, as in SAC.
        std: The standard deviation of the policy afterwards, before tanh.
        patience: Hundreds of updates without a gain before cloning stops.
        seed: The seed of the batches.
        route_losses: The weights of :data:`ROUTE_LOSSES` that are not 0.
        grow_to: The largest number of modules, for a network that grows if a task stalls; None for a fixed size.
    """

    held_out: int
    batch_size: int
    rate: float
    sample: bool
    std: float
    patience: int
    seed: int
    route_losses: Mapping[str, float]
    grow_to: int | None = None

    @property
    def growth(self) -> GrowOnDemand | None:
        """The rule by which the network grows, in updates; None for a network of a fixed size.

        It measures a task by the negative logarithm of its squared error, so that a gain is a share of the error.
        """
        if self.grow_to is None:
            return None
        patience, solved = 3, -2 * math.log(0.05)
        every, opening = CHECK_EVERY, patience * CHECK_EVERY
        return GrowOnDemand(every, self.grow_to, patience=patience, gain=0.1, solved=solved, opening=opening)


class Cloning:
    r"""Supervised learning of the actor from demonstrations; every task has the same share of a batch.

    .. math:: L = \lVert \tanh \mu(s, \mathcal T) - a \rVert^2 + c \, (\log \sigma - \log \bar\sigma)^2

    Routes are sampled as in SAC, and the second term sets how much the policy explores when SAC goes on from it.
    :data:`ROUTE_LOSSES` may be added. The networks with the smallest error on held-out episodes, along the best routes,
    are kept; a network that grows goes on from these. Cloning can be interrupted: its state is written every
    :data:`CHECK_EVERY` updates.

    Args:
        model: The model with the actor.
        demonstrations: The demonstrations, in parts: the first ones, and the corrections of each round of DAgger.
        options: The options.
        steps: The number of updates.
        folder: The folder for the state of cloning.
    """

    def __init__(
        self,
        model: MultiTaskSAC,
        demonstrations: Sequence[Demonstrations],
        options: CloningOptions,
        steps: int,
        folder: Path,
    ) -> None:
        self.model, self.actor, self.options, self.folder = model, model.actor, options, folder
        self.steps = steps
        self.fingerprint = " ".join(part.fingerprint for part in demonstrations)
        # A part with one episode holds corrections at fixed goals: they are learned, as much as the first part.
        single = [part.solved.shape[1] == 1 for part in demonstrations]
        splits = [part.split(0 if one else options.held_out) for part, one in zip(demonstrations, single, strict=True)]
        learned, held_out = zip(*splits, strict=True)
        episodes = learned[0].solved.shape[1]
        self.learned = self._tensors(learned, [episodes if one else 1 for one in single])
        self.held_out = self._tensors(held_out, [1] * len(splits))
        self.optimizer = self._optimizer()
        self.growth = options.growth
        if self.growth is not None:
            self.growth.init_callback(model)
            self.growth.on_training_start({}, {})
        self.generator = torch.Generator().manual_seed(options.seed)  # of the CPU, so that any device can go on
        self.update = self.best_update = 0
        self.best, self.best_error = self._networks(), math.inf
        self.best_growth = copy.deepcopy(model.growth_state)
        self._read()

    def run(
        self,
        progress: Callable[[int, int], object] | None = None,
        checked: Callable[[int, Tensor], object] | None = None,
    ) -> float:
        """Learns until the updates are done, or until the error on held-out episodes has not fallen for `patience`.

        Args:
            progress: Called with the number of updates that are done and the total.
            checked: Called with the number of updates and the squared error of each task on held-out episodes.

        Returns:
            The smallest root mean squared error over tasks; infinite if it was never finite.
        """
        self.model.policy.set_training_mode(True)
        while self.update < self.steps and self.update - self.best_update < self.options.patience * CHECK_EVERY:
            if self.growth is not None:
                self.growth.open(self.update)
            self._learn()
            if progress is not None and self.update % SHOW_EVERY == 0:
                progress(self.update, self.steps)
            if self.update % CHECK_EVERY == 0 or self.update == self.steps:
                squared = self._check()
                if checked is not None:
                    checked(self.update, squared)
                self._grow(squared)
                self._write()
        self.actor.load_state_dict(self.best)
        if self.growth is not None:
            self._close_critics()
        self.model.critic_target.load_state_dict(self.model.critic.state_dict())  # what it shares with the actor
        self.model.policy.set_training_mode(False)
        return math.sqrt(self.best_error)

    def _learn(self) -> None:
        """Makes an update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * one_cycle(self.update / self.steps)
        loss = self._loss(*self._batch())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Draws a batch, with the same number of samples of each task."""
        states, actions = self.learned
        tasks, count = states.shape[:2]
        shape = (tasks, self.options.batch_size)
        rows = torch.randint(count, shape, generator=self.generator).to(states.device)
        which = torch.arange(tasks, device=states.device).unsqueeze(1)
        observations = self.actor.task_space.join(states[which, rows].flatten(0, 1), which.expand(shape).flatten())
        return observations, actions[which, rows].flatten(0, 1)

    def _loss(self, observations: Tensor, actions: Tensor) -> Tensor:
        sample, generator = self.options.sample, self._route_generator()
        mean, log_std, route = self.actor.distribution(observations, sample=sample, generator=generator)
        loss = (torch.tanh(mean) - actions).square().mean()
        loss = loss + 0.01 * (log_std - math.log(self.options.std)).square().mean()
        if route is not None:
            for name, weight in self.options.route_losses.items():
                loss = loss + weight * ROUTE_LOSSES[name](route)
        return loss

    def _route_generator(self) -> torch.Generator:
        """The generator of routes: on a CPU that of batches, on another device a new one with a seed from that."""
        if self.model.device.type == "cpu":
            return self.generator
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator(self.model.device).manual_seed(seed)

    @torch.no_grad()
    def _check(self) -> Tensor:
        """Returns the squared error of each task on held-out episodes; keeps the networks if the mean is lowest."""
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
            self.best_growth = copy.deepcopy(self.model.growth_state)
        return by_task

    def _grow(self, squared: Tensor) -> None:
        """Lets the best networks grow if a task has stalled and enough updates are left to open a new module.

        No module is added while the best networks are from before the last one was fully open: it has not helped yet.
        """
        growth = self.growth
        if growth is None or self.update + growth.opening > self.steps or not squared.isfinite().all():
            return
        if self.best_growth is not None and self.best_growth["nodes"]:
            return
        now = self._networks()
        self.actor.load_state_dict(self.best)
        if (grown := growth.look(self.update, (-squared.log()).tolist())) is None:
            self.actor.load_state_dict(now)
            return
        grown.carry(self.optimizer)
        self.best, self.best_growth = self._networks(), copy.deepcopy(self.model.growth_state)
        self.best_update = self.update

    def _close_critics(self) -> None:
        """Opens the new modules of the critics as far as in the best actor; SAC then opens both further."""
        best, now = self.best_growth, self.model.growth_state
        assert best is not None
        assert now is not None
        raised = now["raised"] if now["nodes"] else CLOSED
        nets = (*self.model.critic.nets, *self.model.critic_target.nets)
        open_newest(nets, len(best["nodes"]), by=best["raised"] - raised)
        self.model.growth_state = {**best, "measured": []}

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self.actor.parameters()), lr=self.options.rate, fused=True)

    def _networks(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.actor.state_dict().items()}

    def _tensors(self, parts: Sequence[Demonstrations], times: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The states and the actions of each task, with shape ``[tasks, steps, features]``, each part so many times."""
        arrays = [
            np.concatenate([np.repeat(getattr(p, name), n, axis=1) for p, n in zip(parts, times, strict=True)], axis=1)
            for name in ("observations", "actions")
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
        if self.growth is not None:
            modules = network_size(self.actor.net)[1]
            state["growth"] = {"modules": modules, "now": self.model.growth_state, "best": self.best_growth}
            state["critics"] = self.model.critic.state_dict()
        with writing_folder(self.folder / f"update_{self.update}") as temporary:
            write_tree(temporary, "cloning", state)
        for old in self._written()[:-1]:
            shutil.rmtree(old)

    def _read(self) -> None:
        """Reads the last state that was written, if there is one."""
        remove_leftovers(self.folder, "update_*")
        if not (written := self._written()):
            return
        check_folder(written[-1], f"remove {written[-1]}, and --resume clones again from where it began")
        state = read_tree(written[-1], "cloning")
        if state["demonstrations"] != self.fingerprint:
            raise ValueError(
                f"{written[-1]} was learned from other demonstrations than the present ones; "
                "start another run, or restore the former demonstrations."
            )
        if (growth := state.get("growth")) is not None:
            if missing := growth["modules"] - network_size(self.actor.net)[1]:
                grow_networks(self.model, missing)
                self.optimizer = self._optimizer()
            self.model.growth_state, self.best_growth = growth["now"], growth["best"]
            self.model.critic.load_state_dict(state["critics"])
        self.actor.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        for name in ("update", "best", "best_error", "best_update"):
            setattr(self, name, state[name])

    def _written(self) -> list[Path]:
        return list(numbered(self.folder, "update").values())


def one_cycle(progress: float) -> float:
    """The learning rate as a share of the highest: it rises over the first tenth, and then falls as a cosine.

    Example:
        >>> from dynroute_metaworld.imitation.cloning import one_cycle
        >>> [round(one_cycle(progress), 2) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / 0.1 if progress < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.1) / 0.9)
