"""What demonstrations are for before the first step of a run: they are cloned, and kept beside what is to come."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dynroute.networks import Network
from dynroute_sb3 import MultiTaskSAC, add_demonstrations
from dynroute_sb3.storage import remove_leftovers

from ..runs.configuration import Configuration
from ..runs.progress import Display
from ..runs.run import Run
from .cloning import Cloning
from .collection import collect
from .dagger import correct
from .demonstrations import Demonstrations

__all__ = ["describe", "start_from_demonstrations"]


def start_from_demonstrations(run: Run, model: MultiTaskSAC, *, rebuild: bool) -> Path:
    """Clones demonstrations, keeps them for SAC, as the configuration says, and writes the first checkpoint.

    Args:
        run: The run.
        model: Its model, untrained.
        rebuild: Whether they are collected anew where they were collected before.

    Returns:
        The checkpoint.
    """
    configuration = run.configuration
    count = configuration.demonstrations * configuration.horizon * len(configuration.tasks)
    with Display(count, configuration.tasks) as display:
        display.tell(f"{run.folder}: {describe(model)}")
        demonstrations = collect(
            configuration.benchmark_or_tasks,
            episodes=configuration.demonstrations,
            noise=configuration.noise_levels,
            seed=configuration.seed,
            rebuild=rebuild,
            progress=lambda done, total: display.advance(done * count // total, "demonstrations"),
            **configuration.problem,
        )
    if configuration.warm_start is None:
        learned, _ = demonstrations.split(configuration.held_out if configuration.cloning_steps else 0)
        for part in (model.actor, model.critic, model.critic_target):
            part.normalizer.fit(torch.as_tensor(learned.observations, device=model.device).flatten(0, 2))
    if configuration.cloning_steps:
        _clone(run, model, demonstrations)
    if configuration.demonstration_share:
        _keep(configuration, model, demonstrations)
    checkpoint = run.checkpoints / "step_0"
    model.save_checkpoint(checkpoint, run.seal())
    return checkpoint


def _clone(run: Run, model: MultiTaskSAC, demonstrations: Demonstrations) -> None:
    """Lets the actor imitate demonstrations, and what scripts say where that leads it (DAgger)."""
    configuration, folder, parts = run.configuration, run.folder / "cloning", [demonstrations]
    rounds = 1 + configuration.dagger_rounds
    with Display(configuration.cloning_steps, configuration.tasks) as display:
        for number in range(rounds):
            if number:
                display.tell(f"round {number} of corrections")
                parts.append(_corrections(run, model, number, display))
            steps = (
                configuration.cloning_steps * (number + 1) // rounds - configuration.cloning_steps * number // rounds
            )
            Cloning(model, parts, configuration, steps, folder / f"round_{number}").run(display)


def _corrections(run: Run, model: MultiTaskSAC, number: int, display: Display) -> Demonstrations:
    """The episodes of a round of DAgger, which are kept so that an interruption changes nothing."""
    configuration, folder = run.configuration, run.folder / "cloning" / f"corrections_{number}"
    remove_leftovers(folder.parent, folder.name)
    if folder.exists():
        return Demonstrations.load(folder)
    corrections = correct(
        model,
        configuration.benchmark_or_tasks,
        episodes=configuration.demonstrations,
        seed=configuration.seed,
        number=number,
        progress=lambda done, total: display.advance(done, "corrections", total),
        **configuration.problem,
    )
    corrections.save(folder)
    return corrections


def _keep(configuration: Configuration, model: MultiTaskSAC, demonstrations: Demonstrations) -> None:
    """Puts demonstrations beside the experience that is to come."""
    tasks, episodes, horizon = demonstrations.actions.shape[:3]
    ids = torch.arange(tasks).repeat_interleave(episodes * horizon)

    def join(states: NDArray[np.float32]) -> NDArray[np.float32]:
        joined = model.policy.task_space.join(torch.as_tensor(states).flatten(0, 2), ids)
        return joined.numpy().reshape(tasks, episodes * horizon, -1)

    ends = np.zeros((tasks, episodes, horizon), np.bool_)
    ends[:, :, -1] = True  # for want of time, as in the environments
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
    """The network of a model and where it is."""
    net = model.actor.net
    assert isinstance(net, Network)
    return f"{net.describe()}, on {model.device}"
