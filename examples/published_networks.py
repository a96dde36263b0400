"""Compare published networks on seven tasks.

MT-SAC, PaCo and D2R learn tasks that want different answers to the same states, so that a network has to separate them
and may share the rest. Errors are those on unseen states. The networks differ in size, which the table shows. For D2R
the program prints how many modules each task uses.
"""

import torch
from torch import Tensor

from dynroute.networks import build

TASKS, STATE, OUT = 7, 6, 2


def answers(state: Tensor, task: Tensor) -> Tensor:
    """Rotates one shared feature of the state by an angle for each task."""
    feature = torch.tanh(state @ torch.linspace(-1, 1, 2 * STATE).reshape(STATE, 2))
    angle = task * (2 * torch.pi / TASKS)
    across = torch.stack([feature[:, 1], -feature[:, 0]], dim=1)
    return feature * angle.cos().unsqueeze(1) + across * angle.sin().unsqueeze(1)


def main(steps: int = 600) -> dict[str, float]:
    """Trains each network and returns its squared error; prints a table."""
    torch.manual_seed(0)
    task, unseen = torch.arange(700) % TASKS, torch.randn(700, STATE)
    errors = {}
    for name, sizes in {
        "mt-sac": {"hidden_sizes": (64, 64)},
        "paco": {"hidden_sizes": (64, 64)},
        "d2r": {"trunk_sizes": (32, 32), "width": 32, "num_modules": 6, "router_sizes": (32,)},
    }.items():
        net = build(name, STATE, TASKS, OUT, **sizes)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(steps):
            state = torch.randn(700, STATE)
            loss = (net(state, task) - answers(state, task)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            output, route = net.eval()(unseen, task, return_route=True)
        errors[name] = (output - answers(unseen, task)).square().mean().item()
        print(f"{name:8} error {errors[name]:.4f}   {net.describe()}")
        if route is not None:
            used = net.topology.used(route.path).sum(dim=-1).float()
            print(f"\nnodes that {name} uses, of {net.topology.num_nodes}")
            for i in range(TASKS):
                print(f"  task {i}: {used[task == i].mean():.1f}")
    return errors


if __name__ == "__main__":
    main()
