"""Times each network of the literature beside a plain MLP of the same size."""

import torch
from torch import nn

from dynroute import networks

from .textbook import equal_mlp
from .timing import Job, interleave, medians, ratios

STATE, TASKS, OUT, BATCH = 39, 10, 8, 1280


def time_network(name: str, seconds: float) -> dict[str, object]:
    """Times a training step of a network, and of MLPs of its size and of the size of MT-SAC."""
    net = networks.build(name, STATE, TASKS, OUT)
    size = sum(parameter.numel() for parameter in net.parameters())
    width = equal_mlp(net, STATE + TASKS, OUT)[0].out_features
    jobs = {
        "network": _step(net),
        "equal MLP": _step(networks.build("mt-sac", STATE, TASKS, OUT, hidden_sizes=(width,) * 5)),
        "mt-sac": _step(networks.build("mt-sac", STATE, TASKS, OUT)),
    }
    times = interleave(jobs, seconds=seconds)
    ms, to = medians(times), {other: ratios(times, other)["network"] for other in ("equal MLP", "mt-sac")}
    cells = ", ".join(f"{ratio:.2f} x {other}" for other, ratio in to.items())
    print(f"{name:14} {size:9,} parameters  {ms['network']:.2f} ms  {cells}", flush=True)
    return {"network": name, "parameters": size, "ms": ms, "to": to}


def _step(net: nn.Module) -> Job:
    """Makes a job of forward and backward for a batch balanced by task, with sampled paths."""
    state, parameters = torch.randn(BATCH, STATE), list(net.train().parameters())
    task = torch.eye(TASKS)[torch.arange(TASKS).repeat_interleave(BATCH // TASKS)]
    return lambda: torch.autograd.grad(net(state, task).square().sum(), parameters, allow_unused=True)
