"""Replace a linear layer by a routed one.

One nn.Linear of an nn.Sequential becomes a routed layer, and nothing else changes. The right answer follows one of
eight linear rules; which one is hidden in the signs of the first three inputs. The program prints parameters and test
error before and after the swap, and those of a plain network that was widened until it has as many parameters.
"""

import torch
from torch import Tensor, nn

from dynroute import LinearRouter, ModelRouting, Soft, Topology

FEATURES, RULES, WIDTH = 16, 8, 16


def plain(width: int) -> nn.Sequential:
    """An ordinary network."""
    return nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, 1))


def sample(rules: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Draws inputs and their targets, whose variance is about 1."""
    x = torch.randn(size, FEATURES)
    regime = ((x[:, :3] > 0) * torch.tensor([1, 2, 4])).sum(dim=1)
    return x, (rules[regime] * x).sum(dim=1, keepdim=True)


def train(net: nn.Module, rules: Tensor, steps: int) -> float:
    """Trains a network on fresh samples and returns its test error."""
    torch.manual_seed(1)  # every network sees the same samples
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        x, y = sample(rules, 256)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    x, y = sample(rules, 4096)
    return nn.functional.mse_loss(net.eval()(x), y).item()


def main(steps: int = 800) -> dict[str, float]:
    """Trains a network before and after the swap and returns the test errors."""
    torch.manual_seed(0)
    rules = torch.randn(RULES, FEATURES) / FEATURES**0.5

    # The swap replaces one linear layer by eight. Without a context the router reads the input of the layer, so
    # nn.Sequential can call it.
    routed = plain(WIDTH)
    routed[0] = ModelRouting(
        models=[nn.Linear(FEATURES, WIDTH) for _ in range(RULES)],
        gate=Soft(),
        router=LinearRouter(FEATURES, Topology.parallel(RULES)),
    )

    size = sum(parameter.numel() for parameter in routed.parameters())
    wide = -(-size // (FEATURES + 2))  # a hidden unit of the plain network has FEATURES + 2 parameters
    nets = {"plain": plain(WIDTH), "routed": routed, "plain, wider": plain(wide)}

    print(f"{'network':14}{'parameters':>12}{'test error':>12}")
    errors = {}
    for name, net in nets.items():
        errors[name] = train(net, rules, steps)
        print(f"{name:14}{sum(parameter.numel() for parameter in net.parameters()):12,}{errors[name]:12.3f}")
    return errors


if __name__ == "__main__":
    main()
