"""Looks inside SAC at the last checkpoints of runs: gradients, how tasks agree on them, and what routes do.

    python -m benchmarks.inside runs/scratch-mt10-fixed/MT10-* --output docs/results/inside-mt10-fixed.json

Nothing is learned, and no file of a run is changed. An existing file of results is continued.

Gradients are those of one update with transitions of one task, `each` of them, with the weight of the task; they are
not clipped, and no task is left out for its loss. Two tasks agree as far as the cosine of their gradients, beside which
that of two batches of one task shows what chance leaves. Parameters that actor and critics share are a part of their
own. While only critics learn, gradients of the actor are 0.

Routes are those of gates that choose sources, on stored transitions, and only sources of nodes that run count. Paths
are drawn anew and compared with the stored ones by the age of the transition, at `age` to `age` + 500 steps of its
task: the agreement of two paths is the share of the sources of either that is in both. A source is unsuitable by Eq.
10; training stops its gradient unless it protects nothing.
"""

import argparse
import dataclasses
import itertools
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute import Route, Topology, inspect
from dynroute.functional import suitable
from dynroute_metaworld import Run
from dynroute_metaworld.runs.learner import algorithm
from dynroute_metaworld.runs.training import environments
from dynroute_sb3 import MultiTaskSAC, latest_checkpoint
from dynroute_sb3.replay import RouteReplayBuffer, RouteReplaySamples
from dynroute_sb3.update import update

from .outputs import file
from .rows import Rows

AGES = (0, 3000, 10_000, 30_000)
"""The ages at which stored paths are looked at, in steps of their task."""

WINDOW = 500
"""The steps from the newest to the oldest transition of an age."""


def open_model(run: Run, checkpoint: Path | None = None) -> MultiTaskSAC:
    """The model of a checkpoint, or of the last one, with its transitions; its parameters cannot change."""
    checkpoint = checkpoint or latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise SystemExit(f"{run.folder} has no checkpoint")
    with closing(environments(dataclasses.replace(run.configuration, workers=0))) as env:
        model = algorithm(run.configuration).load_checkpoint(checkpoint, env, "cpu")
    networks = model._networks()
    optimizers = (model.actor.optimizer, model.critic.optimizer, networks.alpha_optimizer, networks.shared_optimizer)
    for optimizer in filter(None, optimizers):
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    model.policy.set_training_mode(True)
    return model


def columns(run: Run, model: MultiTaskSAC) -> dict[str, Any]:
    """The columns that tell the row of a model apart: its network, as the folder names it, its seed and its steps."""
    configuration = run.configuration
    network = run.folder.name.removeprefix(f"{configuration.benchmark}-").removesuffix(f"-seed{configuration.seed}")
    return {"network": network, "seed": configuration.seed, "steps": model.num_timesteps // len(configuration.tasks)}


def gradients(model: MultiTaskSAC, batch: RouteReplaySamples) -> dict[str, Tensor]:
    """The gradients of an update, by parts of the actor and of the first critic, and of each as a whole."""
    unchanged: dict[str, Any] = {"max_grad_norm": None, "max_ent_coef_grad_norm": None, "max_task_loss": None}
    update(batch, model._networks(), dataclasses.replace(model._coefficients(), **unchanged))
    shared = set(getattr(model.actor.net, "shared", {}).values())
    parts: dict[str, list[Tensor]] = {}
    for net, module in (("actor", model.actor.net), ("critic", model.critic.nets[0])):
        for name, parameter in module.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if parameter in shared:
                names = ["shared"] if net == "actor" else []
            else:
                part = "router" if "router" in name.split(".") else "modules" if ".nodes." in name else "rest"
                names = [f"{net} {part}", f"{net} all"]
            for each in names:
                parts.setdefault(each, []).append(gradient.flatten().clone())
    return {part: torch.cat(pieces) for part, pieces in parts.items()}


def draw(
    buffer: RouteReplayBuffer, task: int, each: int, age: int | None = None, seed: int = 0
) -> RouteReplaySamples | None:
    """Transitions of one task: of all that are stored, or of an age; None if not so many are that old."""
    count = int(buffer.counts[task])
    first, end = (0, count) if age is None else (age, age + WINDOW)
    if end > count:
        return None
    ages = np.random.default_rng((task, seed)).integers(first, end, each)
    return buffer.gather(np.full(each, task), (buffer.positions[task] - 1 - ages) % buffer.capacity)


def look_at_gradients(model: MultiTaskSAC, each: int) -> dict[str, float]:
    """Norms of the gradients by part, averaged over tasks, and how tasks agree on them."""

    def of_task(task: int, seed: int) -> dict[str, Tensor]:
        batch = draw(model.replay_buffer, task, each, seed=seed)
        assert batch is not None
        return gradients(model, batch)

    tasks = range(model.replay_buffer.num_tasks)
    first, second = ([of_task(task, seed) for task in tasks] for seed in (0, 1))
    figures = {}
    for part in first[0]:
        vectors, others = ([of_one[part] for of_one in batches] for batches in (first, second))
        cosines = [cosine(*pair) for pair in itertools.combinations(vectors, 2)]
        figures[f"{part} norm"] = fmean(float(vector.norm()) for vector in vectors)
        figures[f"{part} cosine"] = fmean(cosines)
        figures[f"{part} opposed"] = fmean(value < 0 for value in cosines)
        figures[f"{part} itself"] = fmean(map(cosine, vectors, others))
    return figures


def cosine(one: Tensor, other: Tensor) -> float:
    """The cosine of the angle of two vectors."""
    return float(torch.cosine_similarity(one, other, dim=0))


def agreement(topology: Topology, one: Route, other: Route) -> float:
    """The share of the sources of either path that is in both."""
    first, second = inspect.live_path(topology, one), inspect.live_path(topology, other)
    both, either = (part.flatten(1).sum(dim=1) for part in (first & second, first | second))
    return float((both / either).mean())


def unsuitable(topology: Topology, route: Route) -> float:
    """The share of the chosen sources that are unsuitable."""
    chosen = inspect.live_path(topology, route.path)
    return float((chosen & ~suitable(route.logits, allowed=topology.allowed)).sum() / chosen.sum())


@torch.no_grad()
def look_at_routes(model: MultiTaskSAC, each: int) -> dict[str, Any]:
    """Measures the actor's routes, and how stored paths of each age agree with them; empty without stored paths."""
    buffer, critic = model.replay_buffer, model.critic.nets[0]
    topology = buffer.topology
    if topology is None:
        return {}
    torch.manual_seed(0)

    def route(batch: RouteReplaySamples, **how: Any) -> Route:
        chosen: Route = model.actor.action_log_prob(batch.observations, **how)[-1]
        return chosen

    def of_age(age: int) -> list[RouteReplaySamples]:
        return [batch for task in range(buffer.num_tasks) if (batch := draw(buffer, task, each, age)) is not None]

    newest = of_age(0)
    drawn, again = ([route(batch, sample=True) for batch in newest] for _ in range(2))
    summaries = [inspect.summarize(topology, one) for one in drawn]
    figures: dict[str, Any] = {
        "entropy": fmean(float(summary.entropy) for summary in summaries),
        "modules": fmean(float(summary.num_used) for summary in summaries),
        "drawn again": fmean(agreement(topology, *pair) for pair in zip(drawn, again, strict=True)),
        "temperature": model.actor.temperature.tolist(),
    }
    if getattr(critic, "topology", None) is not None:
        judged = [model.critic.outputs(batch.observations, batch.actions)[1][0] for batch in newest]
        figures["critic entropy"] = fmean(float(inspect.summarize(critic.topology, one).entropy) for one in judged)
    for age in AGES:
        if len(batches := of_age(age)) < buffer.num_tasks:
            break
        replayed = [route(batch, path=batch.paths) for batch in batches]
        pairs = [(one, route(batch, sample=True)) for one, batch in zip(replayed, batches, strict=True)]
        figures[f"agreement {age}"] = fmean(agreement(topology, *pair) for pair in pairs)
        figures[f"unsuitable {age}"] = fmean(unsuitable(topology, one) for one in replayed)
    return figures


def measure(folders: list[Path], each: int, output: Path) -> None:
    torch.set_num_threads(1)
    settings = {"each": each, "ages": list(AGES)}
    rows = Rows(output, "dynroute inside 1", settings, program="benchmarks.inside", key=("network", "seed", "steps"))
    for folder in folders:
        run = Run.open(folder)
        model = open_model(run)
        if (fewest := int(model.replay_buffer.counts.min())) < WINDOW:
            raise SystemExit(f"{folder} must have at least {WINDOW} transitions of each task, got {fewest}")
        row = columns(run, model)
        if row not in rows:
            rows.keep({**row, **look_at_gradients(model, each), **look_at_routes(model, each)}, shown=str(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs with a checkpoint")
    parser.add_argument("--output", type=file, required=True, help="the JSON file, continued if it is there")
    parser.add_argument("--each", type=int, default=256, help="transitions of each task (256)")
    options = parser.parse_args()
    measure(options.folders, options.each, options.output)


if __name__ == "__main__":
    main()
