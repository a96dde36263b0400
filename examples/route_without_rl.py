"""Find out which tasks share modules.

Each image holds a horizontal and a vertical bar in noise. Three tasks ask how high the one lies, three how far to the
left the other. Tasks about the same bar come to share models and modules, although the router knows a task by its
number alone. The mean routes of all tasks are drawn. No reinforcement learning is involved.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dynroute import ModelRouting, ModuleRouting, inspect, record

TASKS = ["row < 3", "row < 4", "row < 5", "column < 3", "column < 4", "column < 5"]
CONTEXT = torch.eye(len(TASKS)).unsqueeze(1)  # [task, sample, feature]
OTHER_BAR = torch.arange(6).unsqueeze(1) // 3 != torch.arange(6) // 3  # [task, task]
SAME_BAR = ~OTHER_BAR & ~torch.eye(6, dtype=torch.bool)  # excludes the task itself


def draw_images(n: int) -> tuple[Tensor, Tensor]:
    """Draws flat images of 8 x 8 pixels, the same for all tasks, and the answers with shape [task, n, 1]."""
    row, column = torch.randint(8, (2, n))
    images = 0.5 * torch.randn(n, 8, 8)
    images[torch.arange(n), row] += 1.0
    images[torch.arange(n), :, column] += 1.0
    answers = torch.stack([place < limit for place in (row, column) for limit in (3, 4, 5)])
    return images.flatten(1).expand(len(TASKS), -1, -1), answers.unsqueeze(-1).float()


def main(steps: int = 300, folder: str = "demo") -> dict[str, tuple[float, float, float]]:
    """Prints and returns the accuracy of each level and the similarity of routes within and between the bars."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads do not help with small tensors
    sizes = {"context_features": len(TASKS), "router_sizes": [32]}
    nets = nn.ModuleDict()
    nets["model"] = ModelRouting.mlp(64, 32, 4, 1, depth=1, **sizes)  # fewer networks than tasks, which must share
    nets["module"] = ModuleRouting.mlp(64, 32, 8, 1, **sizes)

    optimizer = torch.optim.Adam(nets.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        x, answers = draw_images(32)
        context = CONTEXT.expand(-1, 32, -1)
        losses = [nn.functional.binary_cross_entropy_with_logits(net(x, context), answers) for net in nets.values()]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: " + ", ".join(f"{name} {loss:.3f}" for name, loss in zip(nets, losses, strict=True)))

    nets.eval()  # paths are no longer sampled
    x, answers = draw_images(500)
    with torch.no_grad(), record(nets) as routes:  # records every routed layer
        accuracy = {
            name: ((net(x, CONTEXT.expand(-1, 500, -1)) > 0) == answers.bool()).float().mean().item()
            for name, net in nets.items()
        }
    routes.label(torch.arange(len(TASKS)).unsqueeze(1).expand(-1, 500), names=TASKS)

    Path(folder).mkdir(parents=True, exist_ok=True)
    print(f"\n{'level':8}{'accuracy':>10}{'nodes run':>12}{'same bar':>10}{'other bar':>11}   (similarity of routes)")
    results = {}
    for name in nets:
        summary = routes[name].summary()
        alike = inspect.similarity(summary.weights)
        same, other = alike[SAME_BAR].mean().item(), alike[OTHER_BAR].mean().item()
        results[name] = (accuracy[name], same, other)
        run = f"{summary.num_used.mean():.1f} of {routes[name].topology.num_nodes}"
        print(f"{name:8}{accuracy[name]:10.3f}{run:>12}{same:10.2f}{other:11.2f}")
        Path(folder, f"{name}_level.svg").write_text(routes[name].draw(title=f"Mean routes, {name} level"))
    print(f"\nThe mean routes of the tasks are in {folder}/model_level.svg and {folder}/module_level.svg")
    return results


if __name__ == "__main__":
    main()
