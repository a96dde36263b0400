"""See when routing pays: tasks that conflict as much as you like.

Each of sixteen tasks is a regression on a function of its inputs. At conflict 0 all tasks have the same function, at
conflict 1 each has its own, and between the functions are mixtures of both. Networks of equal size learn them: a single
MLP, eight that a router of the task mixes (soft) or runs two of (top-2), and a separate MLP for each
task. The program prints their test errors, as fractions of the variance of the targets.
"""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dynroute import ModelRouting, OutputRouting, Soft, TopK

TASKS, FEATURES = 16, 16


def perceptron(features: int, width: int) -> nn.Sequential:
    """An ordinary network of two hidden layers."""
    hidden = [nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def size(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def make_networks() -> dict[str, nn.Module]:
    """Makes networks of equal size: 32 features in the routed models, and as many elsewhere as the size allows."""
    sizes = {"context_features": TASKS, "router_sizes": [], "depth": 2}
    soft, top2 = (ModelRouting.mlp(FEATURES + TASKS, 32, 8, 1, gate=gate, **sizes) for gate in (Soft(), TopK(2)))
    single, separate = (
        max(width for width in range(1, 200) if count * size(perceptron(features, width)) <= size(soft))
        for count, features in ((1, FEATURES + TASKS), (TASKS, FEATURES))
    )
    heads = OutputRouting(perceptron(FEATURES, separate) for _ in range(TASKS))
    return {"single": perceptron(FEATURES + TASKS, single), "soft": soft, "top-2": top2, "separate": heads}


def run(net: nn.Module, x: Tensor) -> Tensor:
    """The output of a network for x with shape [task, sample, feature]; all but separate ones read the task too."""
    task = torch.eye(TASKS).unsqueeze(1).expand(-1, x.shape[1], -1)
    inputs = x if isinstance(net, OutputRouting) else torch.cat([x, task], dim=-1)
    return net(inputs) if isinstance(net, nn.Sequential) else net(inputs, task)


def draw_functions(conflict: float):
    """Draws the functions of all tasks, from x with shape [task, sample, feature] to targets."""
    hidden = [torch.randn(count, FEATURES, 16) / 2 for count in (1, TASKS)]
    output = [torch.randn(count, 16, 1) / 4 for count in (1, TASKS)]
    parts = (1 - conflict) ** 0.5, conflict**0.5
    return lambda x: sum(part * ((x @ a).tanh() @ b) for part, a, b in zip(parts, hidden, output, strict=True))


def main(steps: int = 2000, conflicts=(0.0, 0.25, 0.5, 1.0), seed: int = 0) -> list[dict[str, float | str | int]]:
    """Trains every network at every conflict, and returns a row for each: two minutes on one core."""
    rows = []
    print("network   parameters  conflict   error")
    for conflict in conflicts:
        torch.manual_seed(seed)
        functions, networks, x_test = draw_functions(conflict), make_networks(), torch.randn(TASKS, 2000, FEATURES)
        for name, net in networks.items():
            torch.manual_seed(seed)  # all networks see the same samples
            optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in tqdm(range(steps), name, leave=False, disable=None):
                optimizer.zero_grad()
                nn.functional.mse_loss(run(net, x := torch.randn(TASKS, 64, FEATURES)), functions(x)).backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                error = ((run(net.eval(), x_test) - (y := functions(x_test))).square().mean() / y.var()).item()
            print(f"{name:10}{size(net):10,}{conflict:10}{error:8.4f}")
            rows.append({"network": name, "parameters": size(net), "conflict": conflict, "error": error, "seed": seed})
    return rows


if __name__ == "__main__":
    main()
