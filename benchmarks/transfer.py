"""New tasks over modules that old ones taught, by imitation with few demonstrations.

A seed splits the tasks of a benchmark: it draws those that are held out, and the network learns the others first. The
way in which it then learns one of those held out is one of these:

- `embedding`: what d2r reads of the new task's one-hot, and nothing else; old tasks cannot change.
- `route`: the router too, over frozen modules and a frozen trunk.
- `route + module`: and a module that is grown and comes in over the first half of the updates.
- `head`: the new task's head of mh-sac, and nothing else; old tasks cannot change.
- `all`: everything.
- `scratch`: everything, in a network that has learned nothing.

Success is that of the new task at goals that no demonstration had, and of some old tasks before and after. Called
again, it goes on with what is missing.
"""

import argparse
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynroute import freeze_modules, grow
from dynroute.files import writing_file
from dynroute_metaworld import BENCHMARKS

from .imitating import Learner, Shown, first, learn, read_demonstrations
from .outputs import file
from .rows import Rows

WAYS = {
    "d2r": ("embedding", "route", "route + module", "all", "scratch"),
    "mh-sac": ("head", "all", "scratch"),
    "mt-sac": ("all", "scratch"),
}
UNCHANGED = ("embedding", "head", "scratch")
"""The ways that leave old tasks as they were, or do not know them."""


def adapt(learner: Learner, way: str, task: int, shown: Shown, settings: dict[str, Any], seed: int) -> Learner:
    """A copy of a learner that has learned a new task in one of the ways."""
    learner, added = copy.deepcopy(learner), ()
    net = learner.net
    if way in ("embedding", "route", "route + module"):
        if way == "route + module":
            added = grow(net, 1).added
        graph, embedding = net.routed, net.task
        assert graph is not None
        assert isinstance(embedding, nn.Linear)
        net.requires_grad_(False)
        embedding.weight.requires_grad_(True)
        own = torch.zeros(embedding.weight.shape)
        own[:, task] = 1
        embedding.weight.register_hook(lambda gradient: gradient * own)  # those of old tasks stay
        if way != "embedding":
            graph.router.requires_grad_(True)
            freeze_modules(net)
        for node in added:
            graph.nodes[node].requires_grad_(True)
    elif way == "head":
        net.requires_grad_(False)
        heads = net.heads
        assert isinstance(heads, nn.Module)
        for parameter in heads.parameters():  # Adam leaves the heads alone that have no gradient
            parameter.requires_grad_(True)
    learn(
        learner,
        shown,
        updates=settings["updates"],
        batch=settings["batch"],
        rate=settings["rate"],
        seed=seed,
        added=added,
    )
    return learner


def learn_old(method: str, shown: Shown, settings: dict[str, Any], seed: int, folder: Path) -> Learner:
    """The network that has learned the old tasks, kept in a file, so that an interruption costs little."""
    torch.manual_seed(seed)
    learner, settled = Learner(method, settings["benchmark"]), json.dumps(settings, sort_keys=True).encode()
    mark = hashlib.sha256(settled).hexdigest()[:8]  # another study learns its own
    path = folder / f"{settings['benchmark']}-{method}-seed{seed}-{mark}.pt"
    learner.fit(shown)
    if path.exists():
        learner.load_state_dict(torch.load(path, weights_only=True))
    else:
        learn(
            learner,
            shown,
            updates=settings["pretraining"],
            batch=settings["old_batch"],
            rate=settings["rate"],
            seed=seed,
        )
        with writing_file(path) as part:
            torch.save(learner.state_dict(), part)
    return learner


def measure(settings: dict[str, Any], seeds: list[int], output: Path) -> None:
    torch.set_num_threads(1)
    key = ("seed", "method", "way", "task", "shown")
    rows = Rows(output, "dynroute transfer 2", settings, program="benchmarks.transfer", key=key)
    names = BENCHMARKS[settings["benchmark"]]
    for seed in seeds:
        drawn = np.random.default_rng(seed).permutation(len(names)).tolist()
        new, old = sorted(drawn[: settings["held_out"]]), sorted(drawn[settings["held_out"] :])
        asked = drawn[settings["held_out"] :][: settings["old_tasks"]]
        shown = read_demonstrations(settings["benchmark"], max(settings["shown"]), seed)
        for method, ways in WAYS.items():
            learner = learn_old(method, first(shown, old, max(settings["shown"])), settings, seed, output.parent)

            def ask_old(net: Learner, asked: list[int] = asked) -> float:
                return float(np.mean(list(net.success(asked, settings["old_episodes"]).values())))

            before = f"{method}-seed{seed}"
            if before not in rows.stored["runs"]:
                rows.stored["runs"][before] = {"held out": [names[task] for task in new], "old": ask_old(learner)}
            for task in new:
                for count in settings["shown"]:
                    for way in ways:
                        row = {"seed": seed, "method": method, "way": way, "task": names[task], "shown": count}
                        if row in rows:
                            continue
                        start = learner
                        if way == "scratch":
                            torch.manual_seed(seed)
                            start = Learner(method, settings["benchmark"])
                            start.fit(first(shown, [task], count))
                        adapted = adapt(start, way, task, first(shown, [task], count), settings, seed)
                        success = adapted.success([task], settings["episodes"])[task]
                        row |= {"success": success, "old before": rows.stored["runs"][before]["old"]}
                        rows.keep(row | {"old after": None if way in UNCHANGED else ask_old(adapted)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file, required=True, help="the JSON file, which is gone on with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--benchmark", choices=("MT10", "MT50"), default="MT10", help="(MT10)")
    parser.add_argument("--held-out", type=int, default=2, help="how many tasks are held out (2)")
    parser.add_argument("--shown", type=int, nargs="+", default=[1, 3, 5, 20], help="demonstrations of a new task")
    parser.add_argument("--pretraining", type=int, default=2000, help="updates with the old tasks (2000)")
    parser.add_argument("--old-batch", type=int, default=64, help="samples of each old task in an update (64)")
    parser.add_argument("--updates", type=int, default=500, help="updates with the new one (500)")
    parser.add_argument("--batch", type=int, default=64, help="samples of the new task in an update (64)")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate (1e-3)")
    parser.add_argument("--episodes", type=int, default=10, help="of the new task (10)")
    parser.add_argument("--old-episodes", type=int, default=2, help="of each old task that is asked (2)")
    parser.add_argument("--old-tasks", type=int, default=8, help="how many old tasks are asked (8)")
    options = vars(parser.parse_args())
    seeds, output = options.pop("seeds"), options.pop("output")
    measure(options, seeds, output)


if __name__ == "__main__":
    main()
