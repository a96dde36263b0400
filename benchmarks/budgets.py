"""D2R at several budgets, by imitation of MT10: success against modules that run and against milliseconds.

One network learns without a budget, one at each target, an expected number of modules that a :class:`dynroute.Budget`
holds, and one for any budget: in each update its routes are cut to another number of modules. Each is evaluated as it
is, and again with its routes cut (:func:`dynroute.limit_modules`). Milliseconds are those of an action in one state of
each task, the cutting of routes included. Called again, it goes on with what is missing.
"""

import argparse
import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute import Budget, Gate, Route, Topology, limit_modules
from dynroute.losses import compute_cost
from dynroute_metaworld.runs.extraction import measure_in_turns

from .imitating import Learner, Shown, learn, read_demonstrations
from .outputs import file
from .rows import Rows

ANY = "any"
"""The target of the network that learns along routes of all lengths."""


def train(
    target: float | str | None, shown: Shown, settings: dict[str, Any], seed: int
) -> tuple[Learner, float, float]:
    """A network that was held to a target; with its expected cost over the last tenth of its updates, and the price."""
    torch.manual_seed(seed)
    learner = Learner("d2r", "MT10", num_modules=settings["modules"])
    learner.fit(shown)
    topology = learner.net.topology
    assert topology is not None
    costs: list[float] = []
    budget = Budget(target if isinstance(target, float) else 1.0, initial=settings["first_price"])
    prices = torch.optim.Adam(budget.parameters(), lr=settings["price_rate"])

    def price(route: Route, tasks: Tensor) -> Tensor:
        cost = compute_cost(route, topology)
        costs.append(float(cost.detach().mean()))
        if target is None:
            return torch.zeros(())
        prices.zero_grad()
        budget.multiplier_loss(cost).backward()
        prices.step()
        return budget(cost)

    lengths = np.random.default_rng(seed)

    def cut(route: Route) -> Tensor:
        """The routes themselves, or cut to one of the limits."""
        costs.append(float(compute_cost(route, topology).mean()))
        limit = lengths.choice([0, *settings["limits"]])
        return limit_modules(route, topology, int(limit)) if limit else route.path

    learn(
        learner,
        shown,
        updates=settings["updates"],
        batch=settings["batch"],
        rate=settings["rate"],
        seed=seed,
        **({"cut": cut} if target == ANY else {"cost": price}),
    )
    return learner.eval(), float(np.mean(costs[-len(costs) // 10 :])), float(budget.multiplier)


def count_modules(learner: Learner, shown: Shown) -> float:
    """The mean number of modules that run in a state of the demonstrations, the output included."""
    states = torch.cat([states[:2].flatten(0, 1) for states, _ in shown.values()])
    tasks = torch.cat([torch.full((states[:2].shape[:2].numel(),), task) for task, (states, _) in shown.items()])
    topology = learner.net.topology
    assert topology is not None
    with torch.no_grad():
        route = learner(states, tasks, return_route=True)[1]
    return float(topology.used(route.path).sum(dim=-1).float().mean())


class Limited(Gate):
    """A gate whose paths are cut to a number of modules, so that the network decides a route once.

    Args:
        gate: What chooses the paths.
        topology: Their graph.
        limit: The largest number of modules.
    """

    def __init__(self, gate: Gate, topology: Topology, limit: int) -> None:
        super().__init__()
        self.gate, self.topology, self.limit = gate, topology, limit

    @property
    def max_sources(self) -> int | None:
        return self.gate.max_sources

    def choose(self, logits: Tensor, allowed: Tensor, **how: Any) -> Tensor:
        path = self.gate.choose(logits, allowed, **how)
        return limit_modules(Route(logits, path, self.gate.weigh(logits, path)), self.topology, self.limit)


def limited(learner: Learner, limit: int | None) -> Learner:
    """A learner whose routes are cut to a number of modules; the learner itself if there is no limit."""
    if limit is None:
        return learner
    learner = copy.deepcopy(learner)
    graph = learner.net.routed
    assert graph is not None
    graph.gate = Limited(graph.gate, graph.topology, limit)
    return learner.eval()


def measure(settings: dict[str, Any], seeds: list[int], output: Path) -> None:
    torch.set_num_threads(1)
    key = ("seed", "target", "limit")
    rows = Rows(output, "dynroute budgets 2", settings, program="benchmarks.budgets", key=key)
    tasks = list(range(10))
    ids = torch.as_tensor(tasks)
    for seed in seeds:
        shown = read_demonstrations("MT10", settings["demonstrations"], seed)
        for target in (None, *settings["targets"], ANY):
            kept = [None, *settings["limits"]]
            if all({"seed": seed, "target": target, "limit": limit} in rows for limit in kept):
                continue
            learner, cost, price = train(target, shown, settings, seed)
            learners = {limit: limited(learner, limit) for limit in kept}
            halfway = torch.stack([states[0, states.shape[1] // 2] for states, _ in shown.values()])
            jobs = {str(limit): functools.partial(policy, task=ids) for limit, policy in learners.items()}
            taken = measure_in_turns(jobs, halfway)
            for limit, policy in learners.items():
                row = {"seed": seed, "target": target, "limit": limit}
                if row in rows:
                    continue
                success = policy.success(tasks, settings["episodes"])
                row |= {"expected": cost, "price": price, "modules": count_modules(policy, shown)}
                rows.keep(row | {"ms": taken[str(limit)], "success": float(np.mean(list(success.values())))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file, required=True, help="the JSON file, which is gone on with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--targets", type=float, nargs="+", default=[5.0, 4.0, 3.0], help="modules a sample")
    parser.add_argument("--limits", type=int, nargs="+", default=[4, 3], help="modules a sample in inference")
    parser.add_argument("--modules", type=int, default=8, help="of the network (8)")
    parser.add_argument("--demonstrations", type=int, default=10, help="of each task (10)")
    parser.add_argument("--updates", type=int, default=2000, help="(2000)")
    parser.add_argument("--batch", type=int, default=64, help="samples of each task in an update (64)")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate (1e-3)")
    parser.add_argument("--price-rate", type=float, default=1e-2, help="the learning rate of the price (1e-2)")
    parser.add_argument("--first-price", type=float, default=1e-5, help="of a module, in squared error (1e-5)")
    parser.add_argument("--episodes", type=int, default=10, help="of each task in an evaluation (10)")
    options = vars(parser.parse_args())
    seeds, output = options.pop("seeds"), options.pop("output")
    measure(options, seeds, output)


if __name__ == "__main__":
    main()
