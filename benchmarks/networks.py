"""What each network of the literature costs beside a plain perceptron of the same size."""

from itertools import pairwise

import torch
from torch import nn

from dynroute import networks

from .timing import Job, interleave

STATE, TASKS, OUT, BATCH = 39, 10, 8, 1280


def time_network(name: str, seconds: float) -> dict[str, object]:
    """The milliseconds of a training step of a network, and of perceptrons of its size and of the size of MT-SAC."""
    net = networks.build(name, STATE, TASKS, OUT)
    size = sum(parameter.numel() for parameter in net.parameters())
    jobs = {
        "network": _step(net),
        "equal MLP": _step(networks.build("mt-sac", STATE, TASKS, OUT, hidden_sizes=_equal(size))),
        "mt-sac": _step(networks.build("mt-sac", STATE, TASKS, OUT)),
    }
    times = interleave(jobs, seconds=seconds)
    ratios = ", ".join(f"{times['network'] / times[other]:.2f} x {other}" for other in ("equal MLP", "mt-sac"))
    print(f"{name:14} {size:9,} parameters  {times['network']:.2f} ms  {ratios}", flush=True)
    return {"network": name, "parameters": size, "ms": times}


def _step(net: nn.Module) -> Job:
    """Forward and backward of a batch that is balanced by task, paths drawn as in training."""
    state, parameters = torch.randn(BATCH, STATE), list(net.train().parameters())
    task = torch.eye(TASKS)[torch.arange(TASKS).repeat_interleave(BATCH // TASKS)]
    return lambda: torch.autograd.grad(net(state, task).square().sum(), parameters, allow_unused=True)


def _equal(size: int) -> tuple[int, ...]:
    """Five hidden layers of the width that comes nearest to a number of parameters."""

    def count(width: int) -> int:
        return sum((a + 1) * b for a, b in pairwise((STATE + TASKS, *[width] * 5, OUT)))

    return (min(range(16, 2048), key=lambda width: abs(count(width) - size)),) * 5
