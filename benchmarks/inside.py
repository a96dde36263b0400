"""Looks inside SAC at the last checkpoints of runs: gradients, how tasks agree on them, and what routes do.

    python -m benchmarks.inside runs/scratch-mt10-fixed/MT10-* --output docs/results/inside-mt10-fixed.json

Each task gives one batch of its own transitions, and the gradients are those of one update, before they are clipped.
The agreement of two tasks is the cosine of their gradients. Routes of the actor are drawn anew for stored transitions
and compared with the paths that the buffer holds, by the age of the transition: the agreement of two paths is the share
of the sources of either that is in both, and two paths drawn anew tell how much of it chance takes. Nothing is learned,
and no file of a run is changed.
"""

import argparse
import dataclasses
import itertools
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute import Topology, inspect
from dynroute.functional import suitable
from dynroute_metaworld import Run
from dynroute_metaworld.runs.training import environments
from dynroute_sb3 import MultiTaskSAC
from dynroute_sb3.checkpoint import latest_checkpoint
from dynroute_sb3.replay import RouteReplaySamples
from dynroute_sb3.update import update

from .outputs import file
from .rows import Rows

AGES = (0, 1000, 3000, 10_000, 30_000, 100_000)
"""The ages at which stored paths are looked at, in steps of their task."""


def open_model(run: Run) -> MultiTaskSAC:
    """The model of the last checkpoint with its transitions, unable to change."""
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise SystemExit(f"{run.folder} has no checkpoint")
    with closing(environments(dataclasses.replace(run.configuration, workers=0))) as env:
        model = MultiTaskSAC.load_checkpoint(checkpoint, env, "cpu")
    networks = model._networks()
    optimizers = (model.actor.optimizer, model.critic.optimizer, networks.alpha_optimizer, networks.shared_optimizer)
    for optimizer in filter(None, optimizers):
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    model.policy.set_training_mode(True)
    return model


def gradients(model: MultiTaskSAC, batch: RouteReplaySamples) -> dict[str, Tensor]:
    """The gradients of one update: those of the router, of the modules and of the rest, of actor and first critic."""
    whole = {"max_grad_norm": None, "max_ent_coef_grad_norm": None, "max_task_loss": None}
    update(batch, model._networks(), dataclasses.replace(model._coefficients(), **whole))
    parts: dict[str, list[Tensor]] = {}
    for net, module in (("actor", model.actor.net), ("critic", model.critic.nets[0])):
        for name, parameter in module.named_parameters():
            part = "router" if "router" in name else "modules" if ".nodes." in name else "rest"
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts.setdefault(f"{net} {part}", []).append(gradient.flatten().clone())
    return {part: torch.cat(pieces) for part, pieces in parts.items()}


def draw(model: MultiTaskSAC, task: int, each: int, age: int | None = None) -> RouteReplaySamples | None:
    """Transitions of one task: of all that are stored, or of about an age; None if none is that old."""
    buffer = model.replay_buffer
    assert buffer is not None
    count = int(buffer.counts[task])
    first, end = (0, count) if age is None else (age, min(age + 500, count))
    if first >= end:
        return None
    ages = np.random.default_rng(task).integers(first, end, each)
    return buffer.gather(np.full(each, task), (buffer.positions[task] - 1 - ages) % buffer.capacity)


def look_at_gradients(model: MultiTaskSAC, each: int) -> dict[str, float]:
    """Norms of the gradients by part, averaged over tasks, and how tasks agree on them."""
    found = []
    for task in range(model.replay_buffer.num_tasks):
        batch = draw(model, task, each)
        assert batch is not None
        found.append(gradients(model, batch))
    figures = {}
    for part in found[0]:
        vectors = [of_task[part] for of_task in found]
        pairs = itertools.combinations(vectors, 2)
        cosines = [float(torch.cosine_similarity(one, other, dim=0)) for one, other in pairs]
        figures[f"{part} norm"] = fmean(float(vector.norm()) for vector in vectors)
        figures[f"{part} cosine"] = fmean(cosines)
        figures[f"{part} opposed"] = fmean(cosine < 0 for cosine in cosines)
    return figures


def agreement(topology: Topology, one: Tensor, other: Tensor) -> float:
    """The share of the sources of either path that is in both, among those of nodes that run."""
    one, other = inspect.live_path(topology, one), inspect.live_path(topology, other)
    both, either = (part.flatten(1).sum(dim=1) for part in (one & other, one | other))
    return float((both / either).mean())


@torch.no_grad()
def look_at_routes(model: MultiTaskSAC, each: int) -> dict[str, Any]:
    """What the actor's routes do today, and how stored paths of each age agree with them."""
    actor, tasks = model.actor, range(model.replay_buffer.num_tasks)
    topology: Topology | None = model.replay_buffer.topology
    if topology is None:
        return {}
    torch.manual_seed(0)

    def route(batch: RouteReplaySamples, **how: Any) -> Any:
        return actor.action_log_prob(batch.observations, **how)[-1]

    def judge(batch: RouteReplaySamples) -> Any:
        return model.critic.outputs(batch.observations, batch.actions)[1][0]

    def over_tasks(age: int | None) -> Iterator[RouteReplaySamples]:
        return filter(None, (draw(model, task, each, age) for task in tasks))

    newest = [(batch, route(batch, sample=True)) for batch in over_tasks(AGES[0])]
    summaries = [inspect.summarize(topology, drawn) for _, drawn in newest]
    judged = [inspect.summarize(topology, judge(batch)) for batch, _ in newest]
    figures: dict[str, Any] = {
        "entropy": fmean(float(summary.entropy) for summary in summaries),
        "critic entropy": fmean(float(summary.entropy) for summary in judged),
        "modules": fmean(float(summary.num_used) for summary in summaries),
        "temperature": [float(value) for value in actor.temperature],
        "drawn again": fmean(
            agreement(topology, drawn.path, route(batch, sample=True).path) for batch, drawn in newest
        ),
        "best": fmean(agreement(topology, drawn.path, route(batch).path) for batch, drawn in newest),
    }
    for age in AGES:
        if len(batches := list(over_tasks(age))) < len(tasks):
            break
        today = [(batch, route(batch, sample=True).path) for batch in batches]
        figures[f"agreement {age}"] = fmean(agreement(topology, batch.paths, path) for batch, path in today)
        replayed = [route(batch, path=batch.paths) for batch in batches]
        figures[f"stopped {age}"] = fmean(
            float((known.path & ~suitable(known.logits, allowed=topology.allowed)).sum() / known.path.sum())
            for known in replayed
        )
    return figures


def measure(folders: list[Path], each: int, output: Path) -> None:
    torch.set_num_threads(1)
    rows = Rows(output, "dynroute inside 1", {"each": each}, program="benchmarks.inside", key=("run", "steps"))
    for folder in folders:
        run = Run.open(folder)
        model = open_model(run)
        steps = model.num_timesteps // len(run.configuration.tasks)
        if {"run": run.folder.name, "steps": steps} in rows:
            continue
        row = {"run": run.folder.name, "network": re.sub(r"-seed\d+$", "", run.folder.name), "seed": model.seed}
        row |= {"steps": steps, **look_at_gradients(model, each), **look_at_routes(model, each)}
        rows.keep(row, shown=f"{run.folder.name}: {steps:,} steps of each task")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs with a checkpoint")
    parser.add_argument("--output", type=file, required=True, help="the JSON file, which is gone on with")
    parser.add_argument("--each", type=int, default=256, help="transitions of each task (256)")
    options = parser.parse_args()
    measure(options.folders, options.each, options.output)


if __name__ == "__main__":
    main()
