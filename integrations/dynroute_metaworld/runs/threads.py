"""How many cores torch uses in a run, by the size of its work."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import torch

from dynroute_command import WAITING

from .configuration import Configuration
from .methods import build_actor

__all__ = ["SMALL", "choose_threads", "describe_threads", "one_thread", "pass_size", "waiting"]

SMALL = 2e8
"""The multiply-adds of a pass over a batch below which one thread is as fast as two, and leaves a core to others."""

ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def pass_size(configuration: Configuration) -> int:
    """About how many multiply-adds a pass of a network over a batch is: its parameters times the rows.

    The network is the actor's, or one of the critics' size where that differs and is larger.

    Example:
        >>> from dynroute_metaworld.runs.threads import pass_size
        >>> pass_size(Configuration(method="mt-sac", benchmark="MT10"))
        850954240
    """
    nets = [build_actor(configuration), build_actor(configuration, **configuration.critic_network)]
    return max(sum(p.numel() for p in net.parameters()) for net in nets) * configuration.batch_rows


def choose_threads(configuration: Configuration, environment: Mapping[str, str] = os.environ) -> int:
    """The threads a run asks for; else those that the environment asks for; else one where the work is small."""
    if configuration.threads is not None:
        return configuration.threads
    if not any(environment.get(name) for name in ASKED) and pass_size(configuration) < SMALL:
        return 1
    return torch.get_num_threads()


def waiting(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of the environment that say how threads wait for each other."""
    return {name: environment[name] for name in (*WAITING, "GOMP_SPINCOUNT") if name in environment}


def describe_threads(configuration: Configuration, threads: int) -> str:
    """A sentence about the threads of a run."""
    settings = ", ".join(f"{name}={value}" for name, value in waiting().items()) or "spinning, as OpenMP does by itself"
    how = f"; they wait for each other by {settings}" if threads > 1 else ""
    size = pass_size(configuration)
    return f"{threads} thread{'s' * (threads > 1)} for {size / 1e6:,.0f} million multiply-adds a pass over a batch{how}"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch use one core for a while: a batch of a few tasks is too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
