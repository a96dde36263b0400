"""A trained policy that acts in some tasks of its run, step by step, with its routes and frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from dynroute import Route
from dynroute_sb3 import MultiTaskSAC

from ..runs.episodes import make_task
from ..runs.evaluation import unseen
from ..runs.run import Run
from .scene import Camera

__all__ = ["Stage", "Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """What the policy does at a step of all its tasks.

    Attributes:
        number: The number of the step in the episode, from 1 on.
        route: The routes of the actor, a row for each task; None in a network without learned routes.
        modules_used: The number of nodes that each route reaches; None without routes.
    """

    number: int
    route: Route | None
    modules_used: NDArray[np.int64] | None


class Stage:
    """The environments of some tasks of a run, in which the policy of a model acts along its best routes.

    Goals are those of :func:`~dynroute_metaworld.runs.recorder.evaluate_run`, whose first episodes are the first here.

    Args:
        run: The run.
        model: Its model.
        tasks: The numbers of the tasks; all of them if None.
        seed: What the goals depend on; as in an evaluation of the run if None.
    """

    def __init__(self, run: Run, model: MultiTaskSAC, tasks: Sequence[int] | None = None, seed: int | None = None):
        configuration = run.configuration
        self.model, self.horizon = model, configuration.horizon
        self.rows = list(range(len(configuration.tasks))) if tasks is None else list(tasks)
        self.tasks = [configuration.tasks[row] for row in self.rows]
        if seed is None:
            seed = unseen(configuration.goals, configuration.seed)
        self.environments = [make_task(configuration, name, seed) for name in self.tasks]
        self.first_success = np.full(len(self.rows), -1)
        self._one_hots = np.eye(len(configuration.tasks), dtype=np.float32)[self.rows]
        self._cameras: dict[int, Camera] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for camera in self._cameras.values():
            camera.close()
        for environment in self.environments:
            environment.close()

    def episode(self) -> Iterator[Step]:
        """Runs an episode of each task; a step is told before it is taken, so that frames show what routes are for."""
        policy, topology = self.model.policy, self.model.policy.topology
        policy.set_training_mode(False)
        states = np.stack([environment.reset() for environment in self.environments])
        self.first_success[:] = -1
        for number in range(1, self.horizon + 1):
            observations = np.concatenate([states, self._one_hots], axis=1)
            with torch.no_grad():
                actions, route = policy.actor.act(
                    torch.as_tensor(observations, device=policy.device), deterministic=True
                )
            if topology is None or route is None:
                yield Step(number, None, None)
            else:
                route = Route(*(part.cpu() for part in route))
                yield Step(number, route, topology.used(route.path).sum(dim=-1).numpy())
            taken = [
                environment.step(action)
                for environment, action in zip(
                    self.environments, policy.unscale_action(actions.cpu().numpy()), strict=True
                )
            ]
            states = np.stack([state for state, *_ in taken])
            solved = np.array([solved for *_, solved in taken])
            self.first_success[solved & (self.first_success < 0)] = number

    def frame(self, index: int, size: int = 240) -> NDArray[np.uint8]:
        """A picture of the scene of a task, see :class:`~dynroute_metaworld.report.scene.Camera`."""
        if index not in self._cameras:
            self._cameras[index] = Camera(self.environments[index], size)
        return self._cameras[index].frame()
