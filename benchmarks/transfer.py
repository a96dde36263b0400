"""Learns a new task with modules trained on old ones: imitation of 8 tasks of MT10, then few demonstrations of others.

The parameters that learn the new task are one of these:

- `embedding`: only the weights of the new task's one-hot, so old tasks cannot change.
- `route`: the router too, with frozen modules and a frozen trunk.
- `route + module`: a new module as well, which is opened over the first half of the updates.
- `all`: all parameters.
- `scratch`: all parameters of a new network.

mt-sac has no routes and uses the last two. All are evaluated at goals that no demonstration had, in the new task and in
the old ones, with the success of the old ones before. Called again, the program resumes with missing rows.
"""

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynroute import freeze_modules, grow, open_nodes
from dynroute.growth import CLOSED
from dynroute.networks import build
from dynroute_metaworld import Configuration, collect
from dynroute_metaworld.imitation.cloning import _one_cycle
from dynroute_metaworld.runs.extraction import run_episodes
from dynroute_metaworld.runs.presets import QUICK_SIZES
from dynroute_metaworld.runs.provenance import commit, machine, versions
from dynroute_sb3.normalizer import StateNormalizer

from .extraction import load, save
from .outputs import file

FORMAT = "dynroute transfer 1"

WAYS = {"d2r": ("embedding", "route", "route + module", "all", "scratch"), "mt-sac": ("all", "scratch")}

Shown = dict[int, tuple[Tensor, Tensor]]
"""States and actions by the number of their task."""


class Learner(nn.Module):
    """A network for all ten tasks with a normalizer of states."""

    def __init__(self, method: str, sizes: str) -> None:
        super().__init__()
        self.normalizer = StateNormalizer(39)
        self.net = build(method, 39, 10, 8, **(QUICK_SIZES[method] if sizes == "quick" else {}))

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        return torch.tanh(self.net(self.normalizer(state), task)[..., :4])

    def success(self, task: int, seed: int, episodes: int) -> float:
        """Evaluates the success in a task along the best routes."""
        configuration, ids = Configuration(benchmark="MT10"), torch.tensor([task])
        self.eval()
        name = configuration.tasks[task]
        solved = run_episodes(lambda s: self(s, ids), configuration, name, episodes=episodes, seed=seed).solved
        return float(solved.mean())


def learn(
    learner: Learner,
    shown: Shown,
    settings: dict[str, Any],
    *,
    updates: int,
    seed: int,
    parameters: Iterable[nn.Parameter],
    added: tuple[int, ...] = (),
) -> None:
    """Clones demonstrations with equally many samples of each task, and opens added nodes meanwhile."""
    generator, learning = torch.Generator().manual_seed(seed), list(parameters)
    optimizer = torch.optim.Adam(learning, lr=settings["rate"])
    learner.train()
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = settings["rate"] * _one_cycle(update / updates)
        if added and update < updates // 2:
            open_nodes(learner.net, added, by=CLOSED / (updates // 2))
        batch = []
        for task, (states, actions) in shown.items():
            rows = torch.randint(len(states), (settings["batch"],), generator=generator)
            batch.append((states[rows], actions[rows], torch.full((settings["batch"],), task)))
        state, action, ids = map(torch.cat, zip(*batch, strict=True))
        loss = (learner(state, ids) - action).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()


def adapt(learner: Learner, way: str, task: int, shown: Shown, settings: dict[str, Any], seed: int) -> Learner:
    """Trains a copy of a learner on a new task in one of the ways."""
    learner, added = copy.deepcopy(learner), ()
    if way not in ("all", "scratch"):
        net = learner.net
        if way == "route + module":
            added = grow(net, 1).added
        graph = net.routed
        assert graph is not None
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        embedding = net.task
        assert isinstance(embedding, nn.Linear)
        embedding.weight.requires_grad_(True)
        mask = torch.zeros(embedding.weight.shape)
        mask[:, task] = 1
        embedding.weight.register_hook(lambda gradient: gradient * mask)  # weights of old tasks stay fixed
        if way != "embedding":
            graph.router.requires_grad_(True)
            freeze_modules(net)
        for node in added:
            graph.nodes[node].requires_grad_(True)
    learning = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    learn(learner, shown, settings, updates=settings["updates"], seed=seed, parameters=learning, added=added)
    return learner


def old_learner(method: str, shown: Shown, settings: dict[str, Any], seed: int, folder: Path) -> Learner:
    """Trains a network on the old tasks, or loads it from its file after an interruption."""
    torch.manual_seed(seed)
    learner, path = Learner(method, settings["sizes"]), folder / f"{method}-{settings['sizes']}-seed{seed}.pt"
    learner.normalizer.fit(torch.cat([states for states, _ in shown.values()]))
    if path.exists():
        learner.load_state_dict(torch.load(path, weights_only=True))
    else:
        learn(learner, shown, settings, updates=settings["pretraining"], seed=seed, parameters=learner.parameters())
        torch.save(learner.state_dict(), part := path.with_suffix(".part"))
        part.replace(path)
    return learner


def measure(settings: dict[str, Any], seeds: list[int], output: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    stored = load(output, settings, FORMAT)
    names = Configuration(benchmark="MT10").tasks
    new = [names.index(task) for task in settings["held_out"]]
    old = [task for task in range(len(names)) if task not in new]
    done = {(row["seed"], row["method"], row["way"], row["task"], row["shown"]) for row in stored["rows"]}
    session = {
        "command": shlex.join(["python", "-m", "benchmarks.transfer", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "load": os.getloadavg()[0],
    }

    def keep(row: dict[str, Any]) -> None:
        stored["rows"].append(row)
        if session not in stored["sessions"]:
            stored["sessions"].append(session)
        save(output, stored)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    goals = 1_000_000  # as in an evaluation of a run
    for seed in seeds:
        demonstrations = collect("MT10", episodes=max(settings["shown"]), seed=seed)
        states, actions = (torch.as_tensor(a) for a in (demonstrations.observations, demonstrations.actions))

        def shown(task: int, count: int, states: Tensor = states, actions: Tensor = actions) -> Shown:
            return {task: (states[task, :count].flatten(0, 1), actions[task, :count].flatten(0, 1))}

        old_shown = {task: shown(task, max(settings["shown"]))[task] for task in old}
        for method, ways in WAYS.items():
            learner = old_learner(method, old_shown, settings, seed, folder)

            def of_old(learner: Learner) -> float:
                rates = [learner.success(task, goals, settings["old_episodes"]) for task in old]
                return sum(rates) / len(rates)

            before = f"{method}-seed{seed}"
            if before not in stored["runs"]:
                stored["runs"][before] = of_old(learner)
            for task in new:
                for count in settings["shown"]:
                    for way in ways:
                        key = {"seed": seed, "method": method, "way": way, "task": names[task], "shown": count}
                        if tuple(key.values()) in done:
                            continue
                        start = learner
                        if way == "scratch":
                            torch.manual_seed(seed)
                            start = Learner(method, settings["sizes"])
                            start.normalizer.fit(shown(task, count)[task][0])
                        adapted = adapt(start, way, task, shown(task, count), settings, seed)
                        success = adapted.success(task, goals, settings["episodes"])
                        after = None if way == "scratch" else of_old(adapted)
                        keep({**key, "success": success, "old before": stored["runs"][before], "old after": after})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file, required=True, help="the JSON file; existing rows are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="(1)")
    parser.add_argument("--held-out", nargs="+", default=["drawer-open", "window-close"], help="the new tasks")
    parser.add_argument("--shown", type=int, nargs="+", default=[1, 5, 20], help="demonstrations of a new task")
    parser.add_argument("--sizes", choices=("quick", "paper"), default="quick", help="of networks (quick)")
    parser.add_argument("--pretraining", type=int, default=2000, help="updates with the old tasks (2000)")
    parser.add_argument("--updates", type=int, default=500, help="updates with the new one (500)")
    parser.add_argument("--batch", type=int, default=64, help="samples of each task in an update (64)")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate (1e-3)")
    parser.add_argument("--episodes", type=int, default=20, help="of the new task (20)")
    parser.add_argument("--old-episodes", type=int, default=5, help="of each old task (5)")
    options = vars(parser.parse_args())
    seeds, output = options.pop("seeds"), options.pop("output")
    measure(options, seeds, output, output.parent)


if __name__ == "__main__":
    main()
