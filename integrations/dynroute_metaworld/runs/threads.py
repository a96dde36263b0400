"""The number of threads of torch in a run, chosen by the size of its networks and batches."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import torch

from dynroute_command import WAITING

from .configuration import Configuration
from .methods import build_actor

__all__ = ["SMALL", "choose_threads", "describe_threads", "one_thread", "pass_size", "waiting"]

SMALL = 2e8
"""With fewer multiply-adds in a pass over a batch, one thread is as fast as two, and leaves a core free."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def pass_size(configuration: Configuration) -> int:
    """Estimates the multiply-adds of a pass over a batch: the parameters of a network times the rows of the batch.

    The network is the actor's, or a network of the critics' size if that is larger.

    Example:
        >>> from dynroute_metaworld.runs.threads import pass_size
        >>> pass_size(Configuration(method="mt-sac", benchmark="MT10"))
        850954240
    """
    nets = [build_actor(configuration), build_actor(configuration, **configuration.critic_network)]
    return max(sum(p.numel() for p in net.parameters()) for net in nets) * configuration.batch_rows


def choose_threads(configuration: Configuration, environment: Mapping[str, str] = os.environ) -> int:
    """The configured threads; else one if a pass is small and no environment variable sets threads; else torch's."""
    if configuration.threads is not None:
        return configuration.threads
    if not any(environment.get(name) for name in THREAD_VARIABLES) and pass_size(configuration) < SMALL:
        return 1
    return torch.get_num_threads()


def waiting() -> dict[str, str]:
    """The environment variables that set how threads wait for each other."""
    return {name: os.environ[name] for name in (*WAITING, "GOMP_SPINCOUNT") if name in os.environ}


def describe_threads(configuration: Configuration, threads: int) -> str:
    """A sentence about the threads of a run."""
    settings = ", ".join(f"{name}={value}" for name, value in waiting().items()) or "spinning, OpenMP's default"
    how = f"; they wait for each other by {settings}" if threads > 1 else ""
    millions = pass_size(configuration) / 1e6
    size = f"{millions:,.0f} million" if millions >= 1 else "under a million"
    return f"{threads} thread{'s' * (threads > 1)} for {size} multiply-adds a pass over a batch{how}"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch use one thread inside the block: a batch of a few tasks is too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
