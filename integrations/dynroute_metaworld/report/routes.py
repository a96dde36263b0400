"""Collects some of the routes that a trained policy takes in its tasks, with frames of the scene."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynroute import Route, Topology
from dynroute.arguments import check_count
from dynroute.files import writing_file
from dynroute.inspect import Summary, live_path, similarity, summarize
from dynroute_sb3 import MultiTaskSAC

from ..envs.episodes import play
from ..envs.vec_env import make_envs
from ..runs.evaluation import act_with_route, predicts_by_route, unseen
from ..runs.run import Run
from .scene import Camera

__all__ = ["THRESHOLD", "TOGETHER", "Rollout", "RouteStep", "Routes", "collect_routes", "embed"]

THRESHOLD = 0.01
"""A source counts as read if its weight is above this (D2R, Fig. 10)."""

EMBEDDED = 1000
"""About the largest number of routes that t-SNE places."""

TOGETHER = 10
"""The number of tasks that run at a time; each needs about 100 MB while frames are taken."""


@dataclass(frozen=True, eq=False)
class RouteStep:
    """A step of the first episode of a task, with its route and the scene before the step.

    Attributes:
        task: The number of the task.
        step: The step, from 1 on.
        route: The route of the step; None in a network without learned routes.
        frame: The picture of the scene; None if nothing can be drawn.
    """

    task: int
    step: int
    route: Route | None
    frame: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class Routes:
    """The routes that a policy took in some episodes of each task.

    Attributes:
        tasks: The tasks.
        topology: The graph; None in a network without learned routes.
        route: The routes at evenly spaced steps, with shape ``[samples, T, S]``; None without learned routes.
        task: The number of the task of each sample.
        step: The step of each sample in its episode.
        first_success: After how many steps each episode solved its task, -1 if never, with shape ``[tasks, episodes]``.
        moments: Steps of the first episode of each task.
    """

    tasks: tuple[str, ...]
    topology: Topology | None
    route: Route | None
    task: Tensor
    step: Tensor
    first_success: NDArray[np.int64]
    moments: tuple[RouteStep, ...]

    def summary(self) -> Summary:
        """The figures of the routes of each task, see :func:`dynroute.inspect.summarize`."""
        topology, route = self._checked()
        return summarize(topology, route, self.task, num_tasks=len(self.tasks))

    def features(self) -> Tensor:
        """The numbers to compare routes by, with shape ``[samples, num_edges]``: paths, or weights if all are read."""
        topology, route = self._checked()
        path = live_path(topology, route)
        dense = bool((route.path == topology.allowed).all())
        return topology.to_edges(route.weights * path if dense else path.float())

    def similarity(self) -> Tensor:
        """The similarity of the routes of each two tasks, see :func:`dynroute.inspect.similarity`."""
        features = self.features()
        return similarity(torch.stack([features[self.task == i].mean(dim=0) for i in range(len(self.tasks))]))

    def modules_used(self) -> Tensor:
        """The number of modules on the route of each sample, the output among them."""
        topology, route = self._checked()
        return topology.used(route.path).sum(dim=-1)

    def sources(self) -> Tensor:
        """The number of sources with a weight above :data:`THRESHOLD`, for each sample and node that reads others."""
        return (self._checked()[1].weights > THRESHOLD).sum(dim=-1)

    def save(self, path: Path) -> None:
        """Writes everything but the frames to an npz file, whose arrays need no pickle."""
        arrays: dict[str, Any] = {
            "tasks": np.array(self.tasks),
            "first_success": self.first_success,
            "task": self.task.numpy(),
            "step": self.step.numpy(),
        }
        if self.topology is not None and self.route is not None:
            summary = self.summary()
            arrays |= {f"summary_{name}": value.numpy() for name, value in summary._asdict().items()}
            arrays |= {name: value.numpy() for name, value in self.route._asdict().items()}
            arrays["modules_used"] = self.modules_used().numpy()
            arrays["similarity"], arrays["sources"] = self.similarity().numpy(), self.sources().numpy()
            arrays["parents"] = np.array([",".join(map(str, row)) for row in self.topology.parents])
        with writing_file(path) as part:
            np.savez_compressed(part, **arrays)

    def _checked(self) -> tuple[Topology, Route]:
        if self.topology is None or self.route is None:
            raise ValueError("this network has no learned routes.")
        return self.topology, self.route


class Rollout:
    """The environments of some tasks of a run, in which the policy of a model acts along its best routes.

    By default, the first episodes of :func:`~dynroute_metaworld.runs.recorder.evaluate_run` have the same goals.
    """

    def __init__(self, run: Run, model: MultiTaskSAC, tasks: Sequence[str], seed: int | None = None) -> None:
        if not predicts_by_route(model):
            raise TypeError(
                f"`model` must act by the `predict` of this library, since its routes are not known otherwise, got a "
                f"{type(model).__name__} with a {type(model.policy).__name__}."
            )
        configuration = run.configuration
        seed = unseen(configuration.goals, configuration.seed) if seed is None else seed
        problem = {**configuration.problem, "workers": 0}
        self.policy = model.policy
        self.env = make_envs(configuration.benchmark_or_tasks, only=tasks, seed=seed, **problem)
        self._cameras: dict[int, Camera] = {}

    def run(
        self,
        episodes: int,
        before: Callable[[int, int, Route | None], object],
        progress: Callable[[int, int], object] | None = None,
    ) -> NDArray[np.int64]:
        """Runs episodes, and returns the step that first solved each, -1 for none.

        Args:
            episodes: The number of episodes of each task.
            before: Called before each step with the number of the episode, from 0 on, the number of the step, from 1
                on, and the routes, which are None without learned routes.
            progress: Called after each step with the number of steps that are done and the total.

        Returns:
            The numbers, with shape ``[tasks, episodes]``.
        """
        self.first_success = first_success = np.full((self.env.num_envs, episodes), -1)
        episode = -1

        def act(observations: NDArray[np.float32], number: int) -> NDArray[Any]:
            nonlocal episode
            episode += number == 1
            actions, route = act_with_route(self.policy, observations)
            before(episode, number, route)
            return actions

        for step in play(self.env, act, episodes, progress):
            first_success[step.solved & (first_success[:, episode] < 0), episode] = step.number
        return first_success

    def frame(self, index: int, size: int = 240) -> NDArray[np.uint8]:
        """A picture of the scene of a task, see :class:`~dynroute_metaworld.report.scene.Camera`."""
        if index not in self._cameras:
            self._cameras[index] = Camera(self.env.environments[index], size)
        return self._cameras[index].frame()

    def close(self) -> None:
        """Closes the environments and the cameras."""
        for camera in self._cameras.values():
            camera.close()
        self.env.close()


def collect_routes(
    run: Run,
    model: MultiTaskSAC,
    *,
    episodes: int = 2,
    samples: int = 100,
    moments: int = 12,
    frames: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Routes:
    """Runs the policy of a model, and keeps some of its routes.

    Args:
        run: The run.
        model: Its model.
        episodes: The number of episodes of each task; with fixed goals one is run, since all would be equal.
        samples: About the number of routes of each task to keep.
        moments: The number of steps of the first episode of each task to keep for pictures.
        frames: Whether to take a picture of the scene at each of these steps; call
            :func:`~dynroute_metaworld.report.scene.find_opengl` first.
        progress: Called after each step of all tasks with the number of steps that are done and the total.
    """
    check_count("episodes", episodes, at_least=1)
    tasks, horizon = run.configuration.tasks, run.configuration.horizon
    episodes = 1 if run.configuration.goals == "fixed" else episodes
    sampled = _spread(horizon, -(-samples // episodes))
    shown = _spread(horizon, moments)
    kept: list[Route] = []
    task: list[int] = []
    steps: list[int] = []
    seen: list[RouteStep] = []
    solved = np.full((len(tasks), episodes), -1)
    groups = [range(start, min(start + TOGETHER, len(tasks))) for start in range(0, len(tasks), TOGETHER)]

    def visit(group: int, rows: range) -> None:
        def before(episode: int, number: int, route: Route | None) -> None:
            if route is not None and number in sampled:
                kept.append(route)
                task.extend(rows)
                steps.extend([number] * len(rows))
            if episode == 0 and number in shown:
                for i, row in enumerate(rows):
                    frame = rollout.frame(i) if frames else None
                    seen.append(RouteStep(row, number, None if route is None else route.sample(i), frame))

        def advance(done: int, total: int) -> None:
            if progress is not None:
                progress(group * total + done, len(groups) * total)

        with contextlib.closing(Rollout(run, model, [tasks[row] for row in rows])) as rollout:
            solved[list(rows)] = rollout.run(episodes, before, advance)

    for group, rows in enumerate(groups):
        visit(group, rows)
    return Routes(
        tasks=tasks,
        topology=model.policy.topology if kept else None,
        route=Route(*map(torch.cat, zip(*kept, strict=True))) if kept else None,
        task=torch.tensor(task, dtype=torch.long),
        step=torch.tensor(steps, dtype=torch.long),
        first_success=solved,
        moments=tuple(sorted(seen, key=lambda moment: (moment.task, moment.step))),
    )


def _spread(horizon: int, count: int) -> set[int]:
    """The numbers of `count` evenly spaced steps of an episode, from the first to the last."""
    return set(np.linspace(1, horizon, min(count, horizon)).round().astype(int).tolist())


def embed(routes: Routes) -> tuple[NDArray[np.float64] | None, str | None]:
    """Places routes on a plane by t-SNE, similar ones near each other.

    Returns:
        A row for each task and each of its different routes: the number of the task, the two coordinates, and the
        number of samples. If there are no rows, the second value is a sentence with the reason.
    """
    features = routes.features()
    # Samples alternate between tasks, so that a stride over them as they come could pass over some tasks.
    kept = routes.task.argsort(stable=True)[:: -(-len(features) // EMBEDDED)]
    # Equal routes are placed once: t-SNE would spread copies in meaningless rings, and take longer.
    different, which = torch.unique(features[kept], dim=0, return_inverse=True)
    if len(different) < 3:
        return None, "There is no t-SNE: fewer than three different routes were taken."
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None, "There is no t-SNE, which needs scikit-learn; type: pip install 'dynroute[report]'"
    with threadpool_limits(1):  # threads wait for each other longer than they compute
        start = {"init": "random", "random_state": 0, "perplexity": min(30.0, (len(different) - 1) / 3)}
        places = TSNE(**start).fit_transform(different.double().numpy())
    pairs, counts = torch.unique(torch.stack([routes.task[kept], which]), dim=1, return_counts=True)
    columns = [pairs[0].numpy(), *places[pairs[1].numpy()].T, counts.numpy()]
    return np.stack(columns, axis=1).astype(np.float64), None
