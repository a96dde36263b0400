"""Let a network grow for new tasks, beside modules that stay as they are.

A network with four modules learns three curves. Then three others arrive: the four modules are frozen, and four are
added. The new tasks learn by points that are drawn, the old ones their routes by eight kept points each. The mean
routes are drawn, and routes over the frozen modules alone are the comparison.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from dynroute import ModuleRouting, SampleK, TableRouter, Topology, freeze_modules, grow, inspect, open_nodes
from dynroute.growth import CLOSED

CURVES = [lambda x: torch.sin(3 * x), torch.abs, torch.square, lambda x: torch.cos(4 * x), torch.exp, lambda x: -x]
OLD, NEW = range(3), range(3, 6)


def draw_samples(tasks: range, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws points, their tasks and the curves there."""
    x = torch.rand(len(tasks), n, 1) * 2 - 1
    y = torch.stack([CURVES[task](points) for task, points in zip(tasks, x, strict=True)])
    return x.flatten(0, 1), torch.tensor(tasks).repeat_interleave(n), y.flatten(0, 1)


def learn(net: nn.Module, steps: int, kept: tuple[Tensor, ...] = (), added: tuple[int, ...] = ()) -> None:
    """Learns the old tasks, or the new ones with points that were kept; new nodes come in over the first 100 steps."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    net.train()
    for step in range(steps):
        if step < 100:
            open_nodes(net, added, by=CLOSED / 100)
        batch = draw_samples(NEW if kept else OLD, 64)
        x, task, y = (torch.cat(parts) for parts in zip(batch, kept, strict=True)) if kept else batch
        optimizer.zero_grad()
        (net(x, task) - y).square().mean().backward()
        optimizer.step()
    net.eval()


@torch.no_grad()
def measure(net: nn.Module) -> list[float]:
    """The root of the mean squared error in the old tasks and in the new ones."""
    samples = [draw_samples(tasks, 500) for tasks in (OLD, NEW)]
    return [(net(x, task) - y).square().mean().sqrt().item() for x, task, y in samples]


def draw_routes(net: ModuleRouting, tasks: range, title: str) -> str:
    """The mean route of some tasks."""
    return inspect.draw(net.topology, net.route(torch.tensor(tasks)).weights.mean(dim=0), title=title)


def main(steps: int = 600, folder: str = "demo") -> dict[str, list[float]]:
    """Prints and returns the error in the old tasks and in the new ones."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads do not help with small tensors
    modules = [nn.Sequential(nn.Linear(width, 32), nn.ReLU()) for width in (1, 32, 32, 32)]
    net = ModuleRouting([*modules, nn.Linear(32, 1)], SampleK(2), TableRouter(len(CURVES), Topology.dag(5)))
    learn(net, steps)
    results, pictures = {"before": measure(net)}, [draw_routes(net, OLD, "Before: old tasks")]
    freeze_modules(net)
    alone, grown, kept = copy.deepcopy(net), grow(net, 4), draw_samples(OLD, 8)
    pictures.append(draw_routes(net, OLD, "Grown: old tasks"))
    for name, learner, added in (("new routes alone", alone, ()), ("new routes and modules", net, grown.added)):
        learn(learner, steps, kept, added)
        results[name] = measure(learner)
    pictures.append(draw_routes(net, NEW, "Afterwards: new tasks"))

    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Path(folder, f"grow_{number}.svg").write_text(picture)
    print(f"{'error':24} old tasks  new tasks")
    print(*(f"{name:24}{old:10.3f} {new:10.3f}" for name, (old, new) in results.items()), sep="\n")
    return results


if __name__ == "__main__":
    main()
