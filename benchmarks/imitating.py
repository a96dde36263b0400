"""Networks that clone the scripted policies, for the experiments on growth, transfer and budgets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynroute import Route, open_nodes
from dynroute.growth import CLOSED
from dynroute.networks import build
from dynroute_metaworld import collect, evaluate, task_names
from dynroute_metaworld.imitation.cloning import one_cycle
from dynroute_metaworld.runs.presets import QUICK_SIZES
from dynroute_sb3.normalizer import StateNormalizer

__all__ = ["Learner", "Shown", "first", "learn", "read_demonstrations"]

Shown = Mapping[int, tuple[Tensor, Tensor]]
"""States and actions by the number of their task, with shapes ``[episodes, horizon, ...]``."""

Cost = Callable[[Route, Tensor], Tensor]
"""A loss of the routes of samples and their tasks."""


class Learner(nn.Module):
    """A network for the tasks of a benchmark, with what states pass first.

    Args:
        method: The name of the network.
        benchmark: The tasks.
        sizes: Arguments of the network beside those of the preset quick.
    """

    def __init__(self, method: str, benchmark: str | Sequence[str], **sizes: Any) -> None:
        super().__init__()
        self.tasks = task_names(benchmark)
        self.normalizer = StateNormalizer(39)
        self.net = build(method, 39, len(self.tasks), 8, **{**QUICK_SIZES[method], **sizes})

    def forward(self, state: Tensor, task: Tensor, **routing: Any) -> Any:
        """The actions, and the routes with `return_route`."""
        output = self.net(self.normalizer(state), task, **routing)
        if routing.get("return_route"):
            return torch.tanh(output[0][..., :4]), output[1]
        return torch.tanh(output[..., :4])

    @torch.inference_mode()
    def success(self, tasks: Sequence[int], episodes: int) -> dict[int, float]:
        """The success in some tasks, at goals that no demonstration had."""
        self.eval()
        ids = torch.as_tensor(tasks)

        class Policy:
            def predict(self, observation: Any, state: Any = None, **_: Any) -> tuple[Any, Any]:
                return learner(torch.as_tensor(observation[:, :39]), ids).numpy(), state

        learner = self
        rates = evaluate(Policy(), [self.tasks[task] for task in tasks], episodes=episodes).success_rates
        return dict(zip(tasks, map(float, rates), strict=True))

    def fit(self, shown: Shown) -> None:
        """Takes the normalization of states from demonstrations."""
        self.normalizer.fit(torch.cat([states.flatten(0, 1) for states, _ in shown.values()]))


def read_demonstrations(benchmark: str, episodes: int, seed: int) -> Shown:
    """Demonstrations of every task, collected once."""
    demonstrations = collect(benchmark, episodes=episodes, seed=seed)
    arrays = zip(demonstrations.observations, demonstrations.actions, strict=True)
    return {task: (torch.as_tensor(states), torch.as_tensor(actions)) for task, (states, actions) in enumerate(arrays)}


def first(shown: Shown, tasks: Iterable[int], episodes: int) -> Shown:
    """The first demonstrations of some tasks."""
    return {task: (shown[task][0][:episodes], shown[task][1][:episodes]) for task in tasks}


def learn(
    learner: Learner,
    shown: Shown,
    *,
    updates: int,
    batch: int,
    rate: float,
    seed: int,
    added: Sequence[int] = (),
    cost: Cost | None = None,
    cut: Callable[[Route], Tensor] | None = None,
) -> None:
    """Clones demonstrations with every parameter that has a gradient.

    Args:
        learner: The network.
        shown: The demonstrations.
        updates: The number of updates.
        batch: The samples of each task in an update.
        rate: The highest learning rate; it rises over a tenth of the updates and falls as a cosine.
        seed: What batches and sampled routes depend on.
        added: Nodes that were grown, which come in over the first half of the updates.
        cost: A loss of routes to add to the error of actions.
        cut: Makes shorter paths of routes, which the network then learns along.
    """
    rows, tasks = np.random.default_rng(seed), torch.as_tensor(list(shown)).repeat_interleave(batch)
    states, actions = (torch.stack([pair[i].flatten(0, 1) for pair in shown.values()]) for i in (0, 1))
    torch.manual_seed(seed)
    learning = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=rate)
    places = torch.arange(len(shown)).repeat_interleave(batch)
    learner.train()
    for update in range(updates):
        progress = update / updates
        optimizer.param_groups[0]["lr"] = rate * one_cycle(progress)
        if added and progress < 0.5:
            open_nodes(learner.net, added, by=CLOSED / (updates // 2))
        chosen = torch.as_tensor(rows.integers(states.shape[1], size=len(places)))
        state, action = states[places, chosen], actions[places, chosen]
        if cut is not None:
            with torch.no_grad():
                path = cut(learner(state, tasks, return_route=True)[1])
            loss = (learner(state, tasks, path=path) - action).square().mean()
        elif cost is None:
            loss = (learner(state, tasks) - action).square().mean()
        else:
            predicted, route = learner(state, tasks, return_route=True)
            loss = (predicted - action).square().mean() + cost(route, tasks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
