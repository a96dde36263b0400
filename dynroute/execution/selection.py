"""Which backend runs: the setting of a module, that of a surrounding context, or what fits best."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..arguments import check_choice
from ..checks import under_transform
from ..topology import Topology
from .dense import run_dense, runs_dense
from .fused import run_fused
from .layers import Layer, reads_whole_layers
from .linear import ACTIVATIONS, LinearNode, linear_nodes
from .reference import run_reference
from .skip import run_skip

__all__ = ["BACKENDS", "backend", "check_backend", "run_graph"]

BACKENDS = ("auto", "fused", "reference", "skip")
"""The names of the backends."""

FAST_FROM = 256
"""`auto` leaves the reference where the batch times the square of the number of destinations reaches this.

Sorting rows costs the same for any graph, and saves what grows with the batch, the nodes and the edges between them.
Measured on two cores: sixteen destinations pay for a single sample, three from 30, one from a few hundred.
"""


class _Context(threading.local):
    """The backend of the surrounding context, one for each thread."""

    name: str | None = None


_context = _Context()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every routed graph inside the context with one backend, whatever their own settings say.

    Args:
        name: "reference", "fused", "skip", or "auto" for the fastest that can run a graph.

    Example:
        >>> with dynroute.backend("reference"):
        ...     pass
    """
    previous, _context.name = _context.name, check_backend(name)
    try:
        yield
    finally:
        _context.name = previous


def check_backend(name: str) -> str:
    """Returns the name of a backend, or raises an error that lists them."""
    check_choice("backend", name, BACKENDS)
    return name


def run_graph(
    nodes: Sequence[nn.Module],
    topology: Topology,
    layers: Sequence[Layer] | None,
    x: Tensor,
    weights: Tensor,
    suitable: Tensor | None,
    *,
    shortcuts: Sequence[bool],
    protect: str,
    setting: str,
) -> Tensor:
    """Runs a routed graph, its layers given, with the backend of the context, or else of the setting.

    A backend that is asked for by name and cannot run the graph is an error; `auto` takes one that can.
    """
    kind, linear = _choose(_context.name or setting, nodes, topology, layers, x, weights)
    if kind == "dense":
        assert layers is not None
        return run_dense(nodes, linear, topology, layers, x, weights, suitable, shortcuts=shortcuts, protect=protect)
    if kind == "fused":
        return run_fused(nodes, linear, topology, x, weights, suitable, shortcuts=shortcuts, protect=protect)
    if kind == "skip":
        return run_skip(nodes, topology, x, weights, shortcuts=shortcuts)
    return run_reference(nodes, topology, x, weights, suitable, shortcuts=shortcuts, protect=protect)


Choice = tuple[str, list[LinearNode]]
"""What runs, and the nodes read as linear ones where it needs them."""


def _choose(
    name: str,
    nodes: Sequence[nn.Module],
    topology: Topology,
    layers: Sequence[Layer] | None,
    x: Tensor,
    weights: Tensor,
) -> Choice:
    """What runs for a name, or an error that says why a backend cannot that was asked for by its own."""
    if name == "reference":
        return "reference", []
    hidden, obstacle, wanted = _hidden_values(x), _no_fast_backend(x), name
    if name == "auto":
        wanted = "reference" if hidden or obstacle else _fitting(topology, weights)
        if wanted == "reference":
            return "reference", []

    found: Choice | str
    if obstacle is not None:
        found = obstacle
    elif wanted == "skip":
        found = _skipping(nodes, topology, layers, x, weights, hidden, asked=name == "skip")
    else:
        found = _fusing(nodes, topology, layers, x, weights, hidden)
    if not isinstance(found, str):
        return found
    if name == "auto":
        return "reference", []
    raise ValueError(f'`backend` must be able to run the graph, "{name}" cannot: {found}; "auto" can.')


def _skipping(
    nodes: Sequence[nn.Module],
    topology: Topology,
    layers: Sequence[Layer] | None,
    x: Tensor,
    weights: Tensor,
    hidden: str | None,
    *,
    asked: bool,
) -> Choice | str:
    """How `skip` runs, or why it cannot."""
    if torch.is_grad_enabled():
        return "gradients are being recorded; run it inside `torch.no_grad()`"
    obstacle = hidden or _coupled(nodes, topology, weights, asked=asked)
    if obstacle is not None:
        return obstacle
    if _is_full(topology, layers, weights):
        linear = _fusable(nodes, topology, x, weights)
        if not isinstance(linear, str) and runs_dense(linear, layers):
            return "dense", linear
    return "skip", []


def _fusing(
    nodes: Sequence[nn.Module],
    topology: Topology,
    layers: Sequence[Layer] | None,
    x: Tensor,
    weights: Tensor,
    hidden: str | None,
) -> Choice | str:
    """How `fused` runs, or why it cannot."""
    linear = _fusable(nodes, topology, x, weights)
    if isinstance(linear, str):
        return linear
    if (hidden is not None or _is_full(topology, layers, weights)) and runs_dense(linear, layers):
        return "dense", linear
    if hidden is not None:
        return f"{hidden}, and its nodes do not form layers of one kind"
    return "fused", linear


def _fitting(topology: Topology, weights: Tensor) -> str:
    """What `auto` takes for a batch, if the modules allow it."""
    batch = weights.shape[:-2].numel()
    pays = batch * len(topology.destinations) ** 2 >= FAST_FROM
    if torch.is_grad_enabled():
        return "fused" if pays else "reference"
    return "skip" if pays or batch == 1 else "reference"


def _is_full(topology: Topology, layers: Sequence[Layer] | None, weights: Tensor) -> bool:
    """Whether every node runs for every sample and reads the whole layer before it: then there is nothing to skip."""
    edges = weights.shape[:-2].numel() * topology.num_edges
    return layers is not None and reads_whole_layers(layers) and int(weights.count_nonzero()) == edges


def _hidden_values(x: Tensor) -> str | None:
    """Why values must not be read here, so that nothing may depend on the path; None if they may."""
    if torch.compiler.is_compiling():
        return "it reads the path, which is unknown while a graph is compiled or exported"
    if x.device.type != "cpu":
        return f"it runs on the CPU only, and the input is on {x.device}"
    return None


def _no_fast_backend(x: Tensor) -> str | None:
    """Why only the reference can run here, whatever the modules; None if others can."""
    if under_transform():
        return "it reads the path, which a transform such as vmap hides"
    if torch.autograd.forward_ad._current_level >= 0:
        return "it has no forward-mode derivative"
    if is_in_torch_dispatch_mode() and not torch.compiler.is_compiling():
        return "it reads the path, which a traced or fake tensor hides"
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        return "it does not run under autocast"
    return None


def _coupled(nodes: Sequence[nn.Module], topology: Topology, weights: Tensor, *, asked: bool) -> str | None:
    """Why a module may not be left out for some samples; None if it treats each sample on its own.

    In training mode modules may draw noise or collect statistics, so that `auto` skips none but linear ones there.
    """
    if weights.shape[:-2].numel() > 1:
        for i, node in enumerate(nodes[:-1]):
            if _sees_the_batch(node):
                return f"module {i} computes statistics of the batch"
    if not asked and any(node.training for node in nodes[:-1]) and isinstance(linear_nodes(nodes, topology), str):
        return "its modules are in training mode"
    return None


def _sees_the_batch(module: nn.Module) -> bool:
    """Whether a part of the module normalises by the batch; asked at every call, hence no `modules()`."""
    if type(module) in _SAMPLE_BY_SAMPLE:
        return False
    tracks = vars(module).get("track_running_stats")
    return (
        tracks is False
        or (tracks is True and module.training)
        or any(_sees_the_batch(part) for part in module._modules.values() if part is not None)
    )


_SAMPLE_BY_SAMPLE = {nn.Linear, *ACTIVATIONS}


def _fusable(nodes: Sequence[nn.Module], topology: Topology, x: Tensor, weights: Tensor) -> list[LinearNode] | str:
    """The nodes as equal linear ones, or why they or their input do not fit."""
    linear = linear_nodes(nodes, topology)
    if isinstance(linear, str):
        return linear
    if x.dim() != weights.dim() - 1:
        return f"the input {tuple(x.shape)} has more than one feature dimension behind the batch of the context"
    for i, node in enumerate(linear):
        if node.linear.weight.dtype != x.dtype or x.dtype not in (torch.float32, torch.float64):
            return f"module {i} is {node.linear.weight.dtype} and the input {x.dtype}, not both float32 or both float64"
        if not topology.parents[i] and node.linear.in_features != x.shape[-1]:
            return f"module {i} reads {node.linear.in_features} features and the input has {x.shape[-1]}"
    return linear
