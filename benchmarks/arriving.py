"""Tasks that arrive group by group: nets that grow beside nets of the initial and of the final size, by imitation.

Every network is D2R's. With each group it learns from demonstrations of the new tasks and of a few that it keeps of the
old ones (`--kept`). These are compared:

- `initial`: as many modules as the first group has, all the time.
- `final`: as many as a net that grows has in the end, from the start.
- `grow`: modules are added for each group, and everything learns.
- `grow, frozen`: old modules and the trunk are frozen; the router, the new modules and the new tasks' embeddings learn.

Each row has the success in all tasks so far, at goals that no demonstration had. Called again, it goes on with what is
missing.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from dynroute import freeze_modules, grow
from dynroute_metaworld import BENCHMARKS

from .imitating import Learner, first, learn, read_demonstrations
from .outputs import file
from .rows import Rows

ARMS = ("initial", "final", "grow", "grow, frozen")


def prepare(learner: Learner, arm: str, modules: int) -> tuple[int, ...]:
    """Grows a net for a new group as its arm does; returns the new nodes."""
    if not arm.startswith("grow"):
        return ()
    added = grow(learner.net, modules).added
    if arm == "grow, frozen":
        net, graph = learner.net, learner.net.routed
        assert graph is not None
        embedding = net.task
        assert isinstance(embedding, nn.Linear)
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        graph.router.requires_grad_(True)
        embedding.weight.requires_grad_(True)  # old tasks have no gradient where none of their samples is kept
        freeze_modules(net)
        for node in added:
            graph.nodes[node].requires_grad_(True)
    return added


def follow(arm: str, seed: int, kept: int, settings: dict[str, Any], rows: Rows) -> None:
    """Lets one network learn group after group, and keeps a row for each."""
    names, benchmark = BENCHMARKS[settings["benchmark"]], settings["benchmark"]
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    groups = [order[i : i + settings["group"]] for i in range(0, len(order), settings["group"])]
    key = {"seed": seed, "arm": arm, "kept": kept}
    if {**key, "groups": len(groups)} in rows:
        return
    shown = read_demonstrations(benchmark, settings["demonstrations"], seed)
    count = settings["modules"] + (settings["added"] * (len(groups) - 1) if arm == "final" else 0)
    torch.manual_seed(seed)
    learner = Learner("d2r", benchmark, num_modules=count)
    learner.fit(first(shown, groups[0], settings["demonstrations"]))
    best: dict[int, float] = {}
    for number, group in enumerate(groups):
        start, old = time.process_time(), [task for earlier in groups[:number] for task in earlier]
        added = prepare(learner, arm, settings["added"]) if number else ()
        batches = {**first(shown, group, settings["demonstrations"])}
        if kept:  # as many episodes of an old task as of a new one, from those that are kept
            again = -(-settings["demonstrations"] // kept)
            for task, (states, actions) in first(shown, old, kept).items():
                whole = settings["demonstrations"]
                batches[task] = (states.repeat(again, 1, 1)[:whole], actions.repeat(again, 1, 1)[:whole])
        learn(
            learner,
            batches,
            updates=settings["updates"],
            batch=settings["batch"],
            rate=settings["rate"],
            seed=seed,
            added=added,
        )
        minutes = (time.process_time() - start) / 60
        success = learner.success([*old, *group], settings["episodes"])
        best.update({task: success[task] for task in group})
        parameters = list(learner.net.parameters())
        row = {
            **key,
            "groups": number + 1,
            "modules": len(learner.net.topology.parents) - 1 if learner.net.topology else 0,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "learning": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "minutes": minutes,
            "new": float(np.mean([success[task] for task in group])),
            "all": float(np.mean(list(success.values()))),
            "forgotten": float(np.mean([best[task] - success[task] for task in old])) if old else 0.0,
            "success": {names[task]: rate for task, rate in success.items()},
        }
        shown_row = f"{arm}, seed {seed}, kept {kept}: {number + 1} groups, new {row['new']:.2f}, all {row['all']:.2f}"
        rows.keep(row, f"{shown_row}, forgotten {row['forgotten']:.2f}, {row['parameters']:,} parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file, required=True, help="the JSON file, which is gone on with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="(all)")
    parser.add_argument("--kept", type=int, nargs="+", default=[0, 1], help="demonstrations of an old task (0 1)")
    parser.add_argument("--benchmark", choices=("MT10", "MT50"), default="MT10", help="(MT10)")
    parser.add_argument("--group", type=int, default=5, help="the tasks that arrive together (5)")
    parser.add_argument("--modules", type=int, default=4, help="of the first group (4)")
    parser.add_argument("--added", type=int, default=4, help="modules with each group (4)")
    parser.add_argument("--demonstrations", type=int, default=10, help="of a new task (10)")
    parser.add_argument("--updates", type=int, default=1500, help="with each group (1500)")
    parser.add_argument("--batch", type=int, default=64, help="samples of each task in an update (64)")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate (1e-3)")
    parser.add_argument("--episodes", type=int, default=10, help="of each task in an evaluation (10)")
    settings = vars(parser.parse_args())
    seeds, arms, kept, output = (settings.pop(name) for name in ("seeds", "arms", "kept", "output"))
    torch.set_num_threads(1)
    key = ("seed", "arm", "kept", "groups")
    rows = Rows(output, "dynroute arriving 1", settings, program="benchmarks.arriving", key=key)
    for seed in seeds:
        for count in kept:
            for arm in arms:
                follow(arm, seed, count, settings, rows)


if __name__ == "__main__":
    main()
