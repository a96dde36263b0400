"""See when routing pays: tasks that conflict as much as you like.

Sixteen tasks each ask for a function. Without conflict it is the same for all; with a conflict of 1 each task has its
own; between, a task asks for a mixture of both. Networks of equal size learn them: one perceptron that is told the task
(one), eight that a router of the task mixes (soft) or runs two of (top-2), and one perceptron for each task (apart).
The program prints their test errors, as parts of the variance.
"""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dynroute import ModelRouting, OutputRouting, Soft, TopK

TASKS, FEATURES, WIDTH = 16, 16, 32


def perceptron(features: int, width: int) -> nn.Sequential:
    """An ordinary network of two hidden layers."""
    hidden = [nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def size(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def make_networks() -> dict[str, nn.Module]:
    """Networks of equal size: the widths of plain perceptrons follow from those of the routed ones."""
    sizes = {"context_features": TASKS, "router_sizes": [], "depth": 2}
    soft, top2 = (ModelRouting.mlp(FEATURES + TASKS, WIDTH, 8, 1, gate=gate, **sizes) for gate in (Soft(), TopK(2)))
    wide, narrow = (
        max(width for width in range(1, 200) if count * size(perceptron(features, width)) <= size(soft))
        for count, features in ((1, FEATURES + TASKS), (TASKS, FEATURES))
    )
    apart = OutputRouting(perceptron(FEATURES, narrow) for _ in range(TASKS))
    return {"one": perceptron(FEATURES + TASKS, wide), "soft": soft, "top-2": top2, "apart": apart}


def run(net: nn.Module, x: Tensor) -> Tensor:
    """The output of a network for inputs with shape [task, sample, feature]."""
    task = torch.eye(TASKS).unsqueeze(1).expand(-1, x.shape[1], -1)
    told = x if isinstance(net, OutputRouting) else torch.cat([x, task], dim=-1)
    return net(told) if isinstance(net, nn.Sequential) else net(told, task)


def draw_tasks(conflict: float):
    """Draws the functions of all tasks, from inputs with shape [task, sample, feature] to answers."""
    hidden = [torch.randn(count, FEATURES, 16) / 2 for count in (1, TASKS)]
    output = [torch.randn(count, 16, 1) / 4 for count in (1, TASKS)]
    parts = (1 - conflict) ** 0.5, conflict**0.5
    return lambda x: sum(part * ((x @ a).tanh() @ b) for part, a, b in zip(parts, hidden, output, strict=True))


def main(steps: int = 2000, conflicts=(0.0, 0.25, 0.5, 1.0), seed: int = 0) -> list[dict[str, float | str | int]]:
    """Trains every network at every conflict, and returns a row for each: two minutes of one core."""
    rows = []
    print("network  parameters  conflict  error")
    for conflict in conflicts:
        torch.manual_seed(seed)
        tasks, networks = draw_tasks(conflict), make_networks()
        for name, net in networks.items():
            optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in tqdm(range(steps), name, leave=False, disable=None):
                optimizer.zero_grad()
                nn.functional.mse_loss(run(net, x := torch.randn(TASKS, 64, FEATURES)), tasks(x)).backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                y = tasks(x := torch.randn(TASKS, 500, FEATURES))
                error = ((run(net.eval(), x) - y).square().mean() / y.var()).item()
            print(f"{name:9}{size(net):10,}{conflict:10}{error:8.4f}")
            rows.append({"network": name, "parameters": size(net), "conflict": conflict, "error": error, "seed": seed})
    return rows


if __name__ == "__main__":
    main()
