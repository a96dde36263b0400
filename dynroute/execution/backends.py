"""Which backend runs: the setting of a module, that of a surrounding context, or what fits best."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..arguments import check_choice
from ..checks import under_transform
from .fused import (
    LinearNode,
    Perceptron,
    groups,
    linear_nodes,
    perceptrons,
    run_dense,
    run_experts,
    run_fused,
    run_grouped,
    run_tile,
    runs_dense,
    tiles,
)
from .plan import Pass
from .reference import run_reference
from .sparse import needs_no_rows, run_sparse

__all__ = ["BACKENDS", "backend", "check_backend", "coupled", "run_graph"]

BACKENDS = ("auto", "fused", "reference", "skip", "sparse")
"""The names of the backends."""

FAST_FROM = 256
"""`auto` leaves the reference where the batch times the square of the number of destinations reaches this.

Sorting rows costs the same for any graph, and saves what grows with the batch, the nodes and the edges between them.
Measured on two cores: sixteen destinations pay for a single sample, three from 30, one from a few hundred.
"""

TILED_DEVICE = "cuda"
"""The kind of device where the kernel runs that walks all nodes of a graph."""


class _Context(threading.local):
    """The backend of the surrounding context, one for each thread."""

    name: str | None = None


_context = _Context()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every routed graph inside the context with one backend, whatever their own settings say.

    Args:
        name: "reference", "sparse", "fused", "skip" (the sparse form, in inference alone), or "auto" for the
            fastest that can run a graph.

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


def run_graph(call: Pass, setting: str) -> Tensor:
    """Runs a routed graph with the backend of the context, or else of the setting.

    A backend that is asked for by name and cannot run the graph is an error; `auto` takes one that can.
    """
    return _choose(_context.name or setting, call)(call)


Form = Callable[[Pass], Tensor]
"""A function that runs a pass."""


def _choose(name: str, call: Pass) -> Form:
    """What runs for a name, or an error that says why a backend cannot that was asked for by its own."""
    if name == "reference":
        return run_reference
    hidden, obstacle = _hidden_values(call.x), _no_fast_backend(call.x)
    if name == "auto" and (obstacle or torch.compiler.is_compiling()):
        return run_reference
    if name == "auto":
        return _fitting(call, hidden)

    found: Form | str
    if obstacle is not None:
        found = obstacle
    elif name == "fused":
        found = _fusing(call, hidden)
    elif name == "skip" and torch.is_grad_enabled():
        found = 'gradients are being recorded; run it inside `torch.no_grad()`, or take "sparse"'
    else:
        found = hidden or coupled(call) or run_sparse
    if isinstance(found, str):
        raise ValueError(f'`backend` must be able to run the graph, "{name}" cannot: {found}; "auto" can.')
    return found


def _fitting(call: Pass, hidden: str | None) -> Form:
    """What `auto` takes for a pass."""
    if hidden is not None:
        form = _fusing(call, hidden)
        if isinstance(form, str):
            return run_reference
        if form.func is not run_tile:
            return form
        linear = form.keywords["linear"]  # no GPU has run the kernel yet
        return partial(run_dense, linear=linear) if runs_dense(linear, call.plan.layers) else run_reference
    plan, batch = call.plan, call.batch.numel()
    pays = batch * len(plan.topology.destinations) ** 2 >= FAST_FROM
    inference = not torch.is_grad_enabled()
    if not pays and not (inference and batch == 1):
        return run_reference
    small = inference and needs_no_rows(call)
    if not small or (batch > 1 and _is_full(call)):  # where all run, even a few samples are a product
        form = _fusing(call, None)
        if not isinstance(form, str) and not (small and form.func is not run_dense):
            return form
    return run_reference if coupled(call) else run_sparse


def _fusing(call: Pass, hidden: str | None) -> partial[Tensor] | str:
    """How `fused` runs, or why it cannot."""
    plan, linear = call.plan, linear_nodes(call)
    experts = perceptrons(call) if plan.is_mixture else "it is no mixture"
    if hidden is not None:
        return _fusing_unseen(call, linear, experts, hidden)
    if not isinstance(linear, str) and runs_dense(linear, plan.layers) and _is_full(call):
        return partial(run_dense, linear=linear)
    if not isinstance(experts, str):
        return partial(run_experts, experts=experts)
    if not isinstance(linear, str):
        return partial(run_fused, linear=linear)
    return experts if plan.is_mixture else linear


def _fusing_unseen(
    call: Pass, linear: list[LinearNode] | str, experts: list[Perceptron] | str, hidden: str
) -> partial[Tensor] | str:
    """How `fused` runs where values must not be read, or why it cannot."""
    if not isinstance(experts, str) and groups(call, experts) is None:
        return partial(run_grouped, experts=experts)
    if isinstance(linear, str):
        return linear
    dense = runs_dense(linear, call.plan.layers)
    tiled = call.x.device.type == TILED_DEVICE and not torch.compiler.is_compiling() and tiles(call, linear) is None
    if tiled and not (dense and call.plan.reads_whole_layers):
        return partial(run_tile, linear=linear)
    return partial(run_dense, linear=linear) if dense else f"{hidden}, and its nodes do not form layers of one kind"


def _is_full(call: Pass) -> bool:
    """Whether every node runs for every sample and reads the whole layer before it: then there is nothing to skip."""
    edges = call.weights.shape[:-2].numel() * call.plan.topology.num_edges
    return call.plan.reads_whole_layers and int(call.read().count_nonzero()) == edges


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
    return None


def coupled(call: Pass) -> str | None:
    """Why a module may not be called on some of the samples; None if it treats each sample on its own."""
    dims = len(call.weights.shape) - 2
    if call.weights.shape[:-2].numel() == 1 and dims < 2:
        return None
    for i, node in enumerate(call.nodes[:-1]):
        reason = _couples(node, dims) if isinstance(node, nn.Module) else None
        if reason is not None:
            return f"module {i} {reason}"
    return None


def _couples(module: nn.Module, dims: int) -> str | None:
    """How a part of a module couples samples; asked at every call, hence no `modules()`."""
    if type(module) is nn.Linear:
        return None
    tracks = vars(module).get("track_running_stats")
    # Dynamic quantization has one scale for all rows.
    quantized = type(module).__module__.startswith("torch.ao.nn.quantized.dynamic")
    if quantized or tracks is False or (tracks is True and module.training):
        return "computes statistics of the batch"
    if dims > 1 and isinstance(module, _OF_SEVERAL_DIMENSIONS):
        return f"is a {type(module).__name__}, which reads batch dimensions as its own"
    for part in module._modules.values():
        reason = None if part is None else _couples(part, dims)
        if reason is not None:
            return reason
    return None


_OF_SEVERAL_DIMENSIONS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.RNNBase,
    _ConvNd,
)
"""Modules that treat the last two or more dimensions together, so that they must see a batch in its own shape."""
