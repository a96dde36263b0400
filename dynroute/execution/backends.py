"""The choice of the backend: by a context, by the setting of the module, or automatic."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules import pooling
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..arguments import check_choice
from ..checks import hiding_mode, in_forward_mode, is_traced, under_transform
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
from .reference import refuse_output, run_reference
from .sparse import needs_no_rows, run_sparse, touch

__all__ = ["BACKENDS", "backend", "check_backend", "coupled", "run_graph"]

BACKENDS = ("auto", "fused", "reference", "skip", "sparse")
"""The names of the backends."""

FAST_FROM = 256
"""`auto` leaves the reference if the batch times the square of the number of destinations reaches this number.

Sorting rows has a fixed cost, and its savings grow with the batch, the nodes and their edges. Measured on two cores, it
pays for sixteen destinations from one sample, for three from 30, for one from a few hundred.
"""

TILED_DEVICE = "cuda"
"""The type of device that runs the tile kernel."""


class _Context(threading.local):
    """The backend of the current context, one for each thread."""

    name: str | None = None


_context = _Context()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every routed graph inside the context with one backend, overriding their settings.

    Args:
        name: "reference", "sparse", "fused", "skip" (the sparse form, only for inference), or "auto" for the fastest
            one that can run a graph.

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
    """Returns the name of a backend; raises an error unless it is known."""
    check_choice("backend", name, BACKENDS)
    return name


def run_graph(call: Pass, setting: str) -> Tensor:
    """Runs a routed graph with the backend of the context, or else of the setting.

    It raises an error if a backend named explicitly cannot run the graph; `auto` takes one that can.
    """
    output = _choose(_context.name or setting, call)(call)
    if not isinstance(output, Tensor):  # fused forms call the last node themselves
        refuse_output(f"node {len(call.nodes) - 1}", output)
    if call.plan.unread and torch.is_grad_enabled() and not in_forward_mode():
        return touch(output, [call.nodes[node] for node in call.plan.unread])
    return output


Form = Callable[[Pass], Tensor]
"""A function that runs a pass."""


def _choose(name: str, call: Pass) -> Form:
    """Chooses the form for a backend; raises an error that says why a named backend cannot run the graph."""
    if name == "reference":
        return run_reference
    hidden, obstacle = _hidden_values(call.x), _no_fast_backend()
    if name == "auto" and (obstacle or torch.compiler.is_compiling()):
        return run_reference
    if name == "auto":
        return _fitting(call, hidden)

    form: Form | str
    if obstacle is not None:
        form = obstacle
    elif name == "fused":
        form = _fusing(call, hidden)
    elif name == "skip" and torch.is_grad_enabled():
        form = 'gradients are being recorded; run it inside `torch.no_grad()`, or take "sparse"'
    else:
        form = hidden or coupled(call) or run_sparse
    if isinstance(form, str):
        raise ValueError(f'`backend` must be able to run the graph, "{name}" cannot: {form}; "auto" can.')
    return form


def _fitting(call: Pass, hidden: str | None) -> Form:
    """Chooses the form of `auto`."""
    if hidden is not None:
        form = _fusing(call, hidden)
        if isinstance(form, str):
            return run_reference
        if form.func is not run_tile:
            return form
        linear = form.keywords["linear"]  # the tile kernel has not been tried on a GPU
        return partial(run_dense, linear=linear) if runs_dense(linear, call.plan.layers) else run_reference
    plan, batch = call.plan, call.batch.numel()
    pays = batch * len(plan.topology.destinations) ** 2 >= FAST_FROM
    inference = not torch.is_grad_enabled()
    if not pays and not (inference and batch == 1):
        return run_reference
    small = inference and needs_no_rows(call)
    if not small or (batch > 1 and _is_full(call)):  # if all nodes run, products pay even for a few samples
        form = _fusing(call, None)
        if not isinstance(form, str) and not (small and form.func is not run_dense):
            return form
    return run_reference if coupled(call) else run_sparse


def _fusing(call: Pass, hidden: str | None) -> partial[Tensor] | str:
    """Chooses the form of `fused`, or returns the reason why it cannot run."""
    plan, linear = call.plan, linear_nodes(call)
    experts = perceptrons(call) if plan.is_mixture else "it is not a mixture"
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
    """Chooses the form of `fused` if values must not be read, or returns the reason why it cannot run."""
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
    """Whether every node runs for every sample and reads the whole layer before it, so nothing can be skipped."""
    edges = call.batch.numel() * call.plan.topology.num_edges
    return call.plan.reads_whole_layers and int(call.read().count_nonzero()) == edges


def _hidden_values(x: Tensor) -> str | None:
    """The reason why values must not be read, so that nothing may depend on the path; None if they may."""
    if torch.compiler.is_compiling():
        return "it reads the path, which is unknown while a graph is compiled or exported"
    if x.device.type != "cpu":
        return f"it runs on the CPU only, and the input is on {x.device}"
    return None


def _no_fast_backend() -> str | None:
    """The reason why only the reference can run, whatever the modules; None if others can."""
    if under_transform():
        return "it reads the path, which a transform such as vmap hides"
    if in_forward_mode():
        return "it has no forward-mode derivative"
    if not torch.compiler.is_compiling() and (mode := hiding_mode()):
        return f"it reads the path, which the dispatch mode {mode} may hide"
    if is_traced():
        return "it reads the path, which torch.jit.trace would keep for all inputs"
    return None


def coupled(call: Pass) -> str | None:
    """The reason why a module must not be called on a part of the samples; None if it treats each sample separately."""
    batch = call.batch
    dims = len(batch)
    if batch.numel() == 1 and dims < 2:
        return None
    for i, node in enumerate(call.nodes[:-1]):
        reason = _couples(node, dims, call.x.dim() - dims) if isinstance(node, nn.Module) else None
        if reason is not None:
            return f"module {i} {reason}"
    return None


def _couples(module: nn.Module, dims: int, features: int) -> str | None:
    """The way a part of a module couples samples; `modules()` would be too slow for every call.

    Args:
        module: The module.
        dims: The number of batch dimensions.
        features: The number of feature dimensions of its input.
    """
    if type(module) is nn.Linear:
        return None
    declared = getattr(type(module), "couples_samples", None)
    if declared is not None:
        return "couples samples, as its `couples_samples` says" if module.couples_samples else None
    tracks = vars(module).get("track_running_stats")
    # Dynamic quantization uses one scale for all rows.
    quantized = type(module).__module__.startswith("torch.ao.nn.quantized.dynamic")
    if quantized or tracks is False or (tracks is True and module.training):
        return "computes statistics of the batch"
    per_channel = isinstance(module, nn.PReLU) and module.num_parameters > 1
    if dims > 1 and (per_channel or isinstance(module, _OF_SEVERAL_DIMENSIONS)):
        return f"is a {type(module).__name__}, which reads batch dimensions as its own"
    if isinstance(module, _OF_SEQUENCES) and not module.batch_first:
        return f"is a {type(module).__name__} with batch_first=False, which reads the batch as a sequence"
    if isinstance(module, _OF_SEQUENCES) and features < 2:
        return f"is a {type(module).__name__}, which reads a batch of vectors as one sequence"
    if isinstance(module, _SOFTMAXES) and module.dim != -1 and (dims > 1 or module.dim is None or module.dim <= 0):
        return f"is a {type(module).__name__} over what may be a batch dimension; dim=-1 is not"
    for part in module._modules.values():
        reason = None if part is None else _couples(part, dims, features)
        if reason is not None:
            return reason
        features = 1 if isinstance(part, nn.Flatten) else features + isinstance(part, _ADD_A_DIMENSION)
    return None


_OF_SEVERAL_DIMENSIONS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.RNNBase,
    _ConvNd,
    _NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AvgPoolNd,
    pooling._LPPoolNd,
    pooling._MaxPoolNd,
)
"""Modules that work on the last two or more dimensions together, or take the second one as channels."""

_OF_SEQUENCES = (nn.MultiheadAttention, nn.RNNBase)
"""Modules that read sequences; the layers of transformers contain them."""

_ADD_A_DIMENSION = (nn.Embedding, nn.Unflatten)
"""Modules whose output has a feature dimension more than their input."""

_SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
