"""The multiply-adds of networks, counted while they run."""

import math
from typing import Any

import torch
from torch import nn

from dynroute_metaworld import Configuration
from dynroute_metaworld.envs.environment import STATE_FEATURES
from dynroute_metaworld.runs.methods import ACTIONS, build_actor, build_critic

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_")
"""The operators that are counted. Their last two tensors are the factors."""

ROWS = 64
"""The samples of each task in a pass that is counted: as many as in an update of the preset night."""


def multiply_adds(net: nn.Module, *inputs: torch.Tensor, **keywords: Any) -> int:
    """Counts the multiply-adds of all matrix products in a pass.

    The profiler sees the products of every backend, and only of the rows that run; a mode that catches operators, such
    as torch's counter of FLOPs, makes routed layers run every module for every sample.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        net(*inputs, **keywords)
    total = 0
    for event in profile.events() or ():
        if event.name in PRODUCTS:
            left, right = [shape for shape in event.input_shapes if len(shape) > 1][-2:]
            total += math.prod(left) * right[-1]
    return total


def of_critic(configuration: Configuration) -> float:
    """The multiply-adds of a critic for a sample in training, with new parameters and random states.

    They depend on the routes where modules that no output depends on are skipped, as in D2R, and not in a mixture whose
    gate chooses a fixed number of experts.
    """
    tasks = len(configuration.tasks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critic = build_critic(configuration, build_actor(configuration, "cpu"), "cpu")
        states = torch.randn(ROWS * tasks, STATE_FEATURES + ACTIONS, requires_grad=True)
        return multiply_adds(critic, states, torch.arange(ROWS * tasks) % tasks) / (ROWS * tasks)
