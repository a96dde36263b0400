"""The four levels on one problem.

Six regression tasks give different answers to the same inputs. Only the context, the one-hot of the task, tells them
apart, and a network without it learns their mean. The program prints a table and draws curves and routes.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure  # unlike pyplot, it needs no display
from torch import nn
from tqdm import trange

from dynroute import LayerRouting, ModelRouting, ModuleRouting, OutputRouting, inspect

TASKS = ["wave", "vee", "bump", "wave + vee", "wave + bump", "vee + bump"]
INPUTS = torch.linspace(-1, 1, 65).reshape(1, 65, 1).expand(len(TASKS), -1, -1)  # [task, sample, feature]
CONTEXT = torch.eye(len(TASKS)).unsqueeze(1).expand(-1, 65, -1)
WAVE, VEE, BUMP = (4 * INPUTS[0]).sin(), 1 - 2 * INPUTS[0].abs(), 2 * (-20 * (INPUTS[0] - 0.4) ** 2).exp() - 1
ANSWERS = torch.stack([WAVE, VEE, BUMP, WAVE + VEE, WAVE + BUMP, VEE + BUMP])


def picture(errors: dict[int, list[float]], nets: nn.ModuleDict) -> Figure:
    """Draws the learning curves, and the nodes that the module level uses for each task."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2, 1])
    curves, nodes = top.subplots(1, 2)
    curves.semilogy(list(errors), list(errors.values()), label=list(nets))
    curves.set(title="Four levels and a single network", xlabel="training step", ylabel="mean squared error")
    curves.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.7))
    weights = nn.functional.pad(nets["module"].route(CONTEXT[:, 0]).weights.detach(), (0, 1, 1, 0))  # node 0 reads none
    share = (torch.eye(weights.shape[-1]) - weights).inverse()[:, -1]  # the sum over all chains of nodes to the output
    nodes.imshow(share.numpy(), cmap="Purples", vmin=0, vmax=1.2, aspect="auto")
    nodes.set(title="Share of a task's answer that passes through each node", xlabel="node of the module level")
    nodes.set(xticks=range(weights.shape[-1]), yticks=range(len(TASKS)), yticklabels=TASKS)
    panels, learned = bottom.subplots(1, len(TASKS), sharey=True), nets["module"](INPUTS, CONTEXT).detach()
    for panel, task, wanted, got in zip(panels, TASKS, ANSWERS, learned, strict=True):
        panel.plot(INPUTS[0], wanted, color="lightgrey", linewidth=7)
        panel.plot(INPUTS[0], got, color="C4")
        panel.set(title=task, xticks=[], yticks=[])
    return figure


def main(steps: int = 1000, folder: str = "demo") -> dict[str, float]:
    """Trains all networks side by side and returns the last error of each."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads do not help with small tensors
    sizes, nets = {"context_features": len(TASKS), "router_sizes": [32]}, nn.ModuleDict()
    nets["single"] = ModelRouting.mlp(1, 66, 1, 1, depth=2, **sizes)  # a mixture of one network has no routes
    nets["output"] = OutputRouting.mlp(1, 26, len(TASKS), 1, depth=2)
    nets["model"] = ModelRouting.mlp(1, 32, 4, 1, depth=2, **sizes)
    nets["layer"] = LayerRouting.mlp(1, 22, [3, 3, 3], 1, **sizes)
    nets["module"] = ModuleRouting.mlp(1, 22, 8, 1, **sizes)

    optimizer, errors = torch.optim.Adam(nets.parameters()), {}  # one for all networks, which share no parameter
    for step in trange(1, steps + 1, desc="training", unit="step"):
        optimizer.param_groups[0]["lr"] = 6e-3 * (1.02 - step / steps)
        optimizer.zero_grad()
        sum((net(INPUTS, CONTEXT) - ANSWERS).square().mean() for net in nets.values()).backward()
        optimizer.step()
        if step % 10 == 0 or step == steps:
            nets.eval()  # routes are no longer sampled
            errors[step] = [(net(INPUTS, CONTEXT) - ANSWERS).square().mean().item() for net in nets.values()]
            nets.train(step < steps)
    print(f"\n{'level':8}{'parameters':>12}{'error':>10}{'nodes run':>13}")
    for (level, net), error in zip(nets.items(), errors[steps], strict=True):
        run = net.topology.used(net.route(CONTEXT[:, 0]).path).sum(dim=-1).float().mean()
        size = sum(parameter.numel() for parameter in net.parameters())
        print(f"{level:8}{size:12,}{error:10.5f}{run:7.1f} of {net.topology.num_nodes:2}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    picture(errors, nets).savefig(Path(folder, "four_levels.png"), dpi=120)
    for task in (3, 4):  # `net` is the module level, the last in the table
        svg = inspect.draw(net.topology, net.route(CONTEXT[task, 0]), title=f"Module level: {TASKS[task]}")
        Path(folder, f"route_{TASKS[task].replace(' + ', '_')}.svg").write_text(svg)
    print(f"\nThis is a toy with one seed and not a benchmark of the levels. The pictures are in {folder}/")
    return dict(zip(nets, errors[steps], strict=True))


if __name__ == "__main__":
    main()
