"""The start of a run from demonstrations: the actor clones them, and the replay buffer keeps them."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynroute.networks import Network
from dynroute_sb3 import MultiTaskSAC, add_demonstrations
from dynroute_sb3.growth import network_size
from dynroute_sb3.storage import remove_leftovers

from ..envs.workers import with_restart
from ..imitation.cloning import Cloning
from ..imitation.collection import collect
from ..imitation.dagger import correct
from ..imitation.demonstrations import Demonstrations
from .metrics import MetricsFile, forget_after
from .progress import Display
from .run import Run, RunError

__all__ = ["ERRORS", "describe", "start_from_demonstrations"]

ERRORS = "errors.jsonl"
"""The file of the root mean squared errors on held-out episodes, by task and update."""


def start_from_demonstrations(run: Run, model: MultiTaskSAC, *, rebuild: bool) -> Path:
    """Collects demonstrations, clones them or stores them for SAC as configured, and writes the first checkpoint.

    Returns:
        The checkpoint.
    """
    configuration = run.configuration
    count = configuration.demonstrations * configuration.horizon * len(configuration.tasks)
    with Display(count, configuration.tasks) as display:
        display.tell(f"{run.folder}: {describe(model)}")

        def collected() -> Demonstrations:
            nonlocal rebuild
            anew, rebuild = rebuild, False  # a second call keeps the tasks that the first one stored
            return collect(
                configuration.benchmark_or_tasks,
                episodes=configuration.demonstrations,
                noise=configuration.noise_levels,
                seed=configuration.seed,
                rebuild=anew,
                progress=lambda done, total: display.advance(done * count // total, "demonstrations"),
                **configuration.problem,
            )

        demonstrations = with_restart(collected, restart=configuration.restart)
    if configuration.warm_start is None:
        learned, _ = demonstrations.split(configuration.held_out if configuration.cloning_steps else 0)
        for part in (model.actor, model.critic, model.critic_target):
            part.normalizer.fit(torch.as_tensor(learned.observations, device=model.device).flatten(0, 2))
    if configuration.cloning_steps:
        _clone(run, model, demonstrations)
    if configuration.demonstration_share:
        _keep(model, demonstrations)
    checkpoint = run.checkpoints / "step_0"
    model.save_checkpoint(checkpoint, run.seal())
    return checkpoint


def _clone(run: Run, model: MultiTaskSAC, demonstrations: Demonstrations) -> None:
    """Lets the actor imitate demonstrations, and then the scripts' corrections to its own episodes (DAgger)."""
    configuration, parts, rounds = run.configuration, [demonstrations], 1 + run.configuration.dagger_rounds
    with Display(configuration.cloning_steps, configuration.tasks) as display:
        for number in range(rounds):
            if number:
                display.tell(f"round {number} of corrections")
                parts.append(_corrections(run, model, number, display))
            first, last = (configuration.cloning_steps * i // rounds for i in (number, number + 1))
            folder = run.folder / "cloning" / f"round_{number}"
            cloning = Cloning(model, parts, configuration.cloning, last - first, folder)
            if not math.isfinite(_clone_round(cloning, configuration.tasks, display)):
                raise RunError(
                    f"cloning in {folder} diverged: its error on held-out episodes is not finite; start "
                    f"another run with a `cloning_rate` below {configuration.cloning_rate:g}."
                )


def _clone_round(cloning: Cloning, tasks: Sequence[str], display: Display) -> float:
    """Runs one round of cloning; writes, shows and returns the error on held-out episodes."""
    cloning.folder.mkdir(parents=True, exist_ok=True)
    forget_after(cloning.folder / ERRORS, cloning.update)
    with contextlib.closing(MetricsFile(cloning.folder / ERRORS)) as errors:

        def checked(update: int, squared: Tensor) -> None:
            error = squared.mean().sqrt()
            size = "" if cloning.growth is None else f", {network_size(cloning.actor.net)[1]} modules"
            display.tell(f"{update:>9,} of {cloning.steps:,} updates, error {error:.3f} on held-out episodes{size}")
            by_task = zip(tasks, squared.sqrt().tolist(), strict=True)
            errors.write({f"cloning_error/{task}": error for task, error in by_task}, {}, update)

        return cloning.run(lambda done, total: display.advance(done, "cloning", total), checked)


def _corrections(run: Run, model: MultiTaskSAC, number: int, display: Display) -> Demonstrations:
    """The episodes of a round of DAgger; they are stored, so that a resumed run has the same ones."""
    configuration, folder = run.configuration, run.folder / "cloning" / f"corrections_{number}"
    remove_leftovers(folder.parent, folder.name)
    if folder.exists():
        return Demonstrations.load(folder)

    def collected() -> Demonstrations:
        return correct(
            model,
            configuration.benchmark_or_tasks,
            episodes=configuration.demonstrations,
            seed=configuration.seed,
            number=number,
            progress=lambda done, total: display.advance(done, "corrections", total),
            **configuration.problem,
        )

    corrections = with_restart(collected, restart=configuration.restart)
    corrections.save(folder)
    return corrections


def _keep(model: MultiTaskSAC, demonstrations: Demonstrations) -> None:
    """Adds demonstrations to the replay buffer."""
    tasks, episodes, horizon = demonstrations.actions.shape[:3]
    ids = torch.arange(tasks).repeat_interleave(episodes * horizon)

    def join(states: NDArray[np.float32]) -> NDArray[np.float32]:
        joined = model.policy.task_space.join(torch.as_tensor(states).flatten(0, 2), ids)
        return joined.numpy().reshape(tasks, episodes * horizon, -1)

    ends = np.zeros((tasks, episodes, horizon), np.bool_)
    ends[:, :, -1] = True  # by the horizon, as in the environments
    flat = (tasks, episodes * horizon)
    add_demonstrations(
        model,
        join(demonstrations.observations),
        demonstrations.executed.reshape(*flat, -1),
        join(demonstrations.next_observations),
        demonstrations.rewards.reshape(flat),
        ends.reshape(flat),
        timeouts=ends.reshape(flat),
        wanted=demonstrations.actions.reshape(*flat, -1),
    )


def describe(model: MultiTaskSAC) -> str:
    """The network of a model and its device, in words."""
    net = model.actor.net
    assert isinstance(net, Network)
    return f"{net.describe()}, on {model.device}"
