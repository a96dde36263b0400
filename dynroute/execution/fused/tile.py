"""The tile form: one Triton kernel forward and one backward, which run all nodes for a tile of samples.

On a GPU a graph of many small nodes is bound by kernel launches. Here torch computes the large products, for the roots
and the gradients of the parameters, and one kernel everything between. Every node runs for every sample, nothing
depends on the path, and no value is read, so a CUDA graph can capture it. `protect` works as in `graph`, by a live sum
and, for the shortcut, a sum over every reader. The tests run the kernels in Triton's interpreter and compile them for
GPUs; they were never tried on a real GPU.
"""

import functools
import importlib.util
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...banks import stacked
from ...checks import full_precision
from ...topology import Topology
from ..plan import Pass, Plan
from .double_backward import Equations, in_full_precision, wants_more
from .linear import IDENTITY, Activation, LinearNode, computed_type, entering

__all__ = ["ACTIVATIONS", "MAX_WIDTH", "SMALL_BATCH", "run_tile", "tiles"]

MAX_WIDTH = 128
"""The widest supported node; the sums of wider ones do not fit the registers, and their products justify a launch."""

SMALL_BATCH = 4096
"""The largest batch with tiles of 16 samples, which give more programs; above it tiles have 32."""

ACTIVATIONS = ("gelu", "identity", "relu", "sigmoid", "silu", "tanh")
"""The activations that the kernel supports."""


def tiles(call: Pass, linear: Sequence[LinearNode]) -> str | None:
    """Returns the reason why the kernel cannot run a graph of these nodes, or None if it can."""
    plan, dtype, width = call.plan, computed_type(call.x), linear[0].linear.out_features
    roots, inside = _split(plan.topology, linear)
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its kernel computes in float32 or bfloat16, not in {dtype}"
    if width > MAX_WIDTH:
        return f"its kernel is for nodes of at most {MAX_WIDTH} features, not {width}"
    if not inside:
        return "no node but the output reads another"
    for nodes, name in ((roots, "read the input"), (inside, "read others")):
        if len({(node.before, node.behind, node.linear.bias is None) for node in nodes}) > 1:
            return f"the nodes that {name} differ in their activations or in having a bias"
        if unknown := {nodes[0].before.name, nodes[0].behind.name}.difference(ACTIVATIONS):
            return f"its kernel does not know the activation {min(unknown)}"
    if len({plan.shortcuts[node] for node in plan.topology.destinations[:-1]}) > 1:
        return "only some nodes have a shortcut"
    if not _has_triton():
        return "Triton is not installed"
    return _no_kernel(call.x.device) if call.x.is_cuda else None


def run_tile(call: Pass, linear: Sequence[LinearNode]) -> Tensor:
    """Runs a routed graph for which :func:`tiles` returns None."""
    flat = call.flat()
    program = _Program(call.plan, linear, call.protect if call.suitable is not None else "none")
    x, parameters = entering(flat, [(node,) for node in linear])
    with full_precision(x), torch.cuda.device(x.device if x.is_cuda else -1):  # -1 changes nothing
        mixed: Tensor = _TileGraph.apply(program, x, flat.weights, flat.suitable, *parameters)  # type: ignore[no-untyped-call]
    return call.nodes[-1](call.unflat(mixed))


class _Tables(NamedTuple):
    """The edges of a graph for the kernels, by reader and by source."""

    root_nodes: Tensor
    nodes: Tensor
    first: Tensor
    parents: Tensor
    reader_first: Tensor
    reader_rows: Tensor
    reader_slots: Tensor


class _Program:
    """The arguments of the function that are not tensors."""

    def __init__(self, plan: Plan, linear: Sequence[LinearNode], protect: str) -> None:
        roots, inside = _split(plan.topology, linear)
        self.equations = Equations(plan, [(node,) for node in linear], protect)
        self.plan = plan
        self.linear = linear
        self.protect = protect
        self.roots = [i for i, parents in enumerate(plan.topology.parents[:-1]) if not parents]
        self.inside = plan.topology.destinations[:-1]
        self.shortcut = plan.shortcuts[self.inside[0]]
        self.root_before, self.before = roots[0].before, inside[0].before
        self.width = linear[0].linear.out_features
        self.keep = torch.is_grad_enabled()
        self.kinds = {
            "ROOT_BEHIND": roots[0].behind.name,
            "BEFORE": inside[0].before.name,
            "BEHIND": inside[0].behind.name,
        }

    def launch(self, kernel: Any, batch: int, tensors: Sequence[Tensor], **options: Any) -> None:
        """Launches a kernel with one program for each tile of samples."""
        rows = 16 if batch <= SMALL_BATCH else 32
        cols = max(16, 1 << (self.width - 1).bit_length())
        block = min(cols, 32 if tensors[0].dtype == torch.float32 else 64)
        kernel[(-(-batch // rows),)](
            *tensors,
            batch,
            len(self.roots),
            *self.plan.topology.path_shape,
            WIDTH=self.width,
            ROWS=rows,
            COLS=cols,
            BLOCK=block,
            SHORTCUT=self.shortcut,
            **self.kinds,
            **options,
            num_warps=4,
            num_stages=1,
        )


class _TileGraph(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: _Program, x: Tensor, weights: Tensor, suitable: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        from .tile_kernels import walk_forward

        batch, inside, width = len(x), len(program.inside), program.width
        shares, tables = weights.contiguous(), _tables(program.plan.topology, x.device)
        matrix, bias = _stack(parameters, program.roots)
        roots = nn.functional.linear(
            _entered(program.root_before, x), matrix.flatten(0, 1), None if bias is None else bias.flatten()
        )
        matrices, biases = _stack(parameters, program.inside)

        kept = inside if program.keep else 0
        outputs = x.new_empty(len(program.linear), batch, width)
        inner, mixed = x.new_empty(kept, batch, width), x.new_empty(kept or int(program.shortcut), batch, width)
        result = x.new_empty(batch, width)
        read = [roots, shares, matrices, matrices if biases is None else biases]
        written = [outputs, inner if kept else outputs, mixed if len(mixed) else outputs, result]
        flags = {"BIASED": biases is not None, "KEEP": int(program.keep)}
        program.launch(walk_forward, batch, [*read, *written, *tables[:4]], **flags)
        ctx.program = program
        ctx.save_for_backward(x, weights, suitable, roots, outputs, inner, mixed, *parameters)
        return result

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from .tile_kernels import walk_backward

        program: _Program = ctx.program
        x, weights, suitable, roots, outputs, inner, mixed, *parameters = ctx.saved_tensors
        if wants_more(gradients[0]):
            return program.equations.gradients(ctx.needs_input_grad, gradients[0], x, weights, suitable, parameters)

        batch, (num_rows, _) = len(x), program.plan.topology.path_shape
        shares, tables = weights.contiguous(), _tables(program.plan.topology, x.device)
        # Without shortcuts a stopped gradient goes nowhere.
        protect = program.protect if program.shortcut or program.protect == "none" else "sg"
        through = outputs.new_empty(num_rows, batch, program.width)
        around = torch.empty_like(through) if protect == "input" else torch.empty_like(through[0])
        grad_roots, grad_inner = torch.empty_like(roots), torch.empty_like(inner)
        grad_weights = torch.zeros_like(shares)
        kept = shares if suitable is None else suitable.contiguous()
        matrices = _stack(parameters, program.inside)[0]
        read = [gradients[0].contiguous(), roots, shares, kept, matrices, outputs, inner, mixed]
        written = [through, around, grad_roots, grad_inner, grad_weights]
        program.launch(walk_backward, batch, [*read, *written, *tables], PROTECT=protect)

        wanted = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * len(parameters)
        if any(wanted[4 + 2 * i] for i in program.inside):
            entered = _entered(program.before, mixed)
            for i, grad in zip(program.inside, torch.bmm(grad_inner.transpose(1, 2), entered), strict=True):
                grads[2 * i] = grad
        if any(wanted[5 + 2 * i] for i in program.inside):
            for i, grad in zip(program.inside, grad_inner.sum(dim=1), strict=True):
                grads[2 * i + 1] = grad
        if any(wanted[4 + 2 * i] for i in program.roots):
            matrix = grad_roots.t() @ _entered(program.root_before, x)
            for i, grad in zip(program.roots, matrix.reshape(-1, program.width, x.shape[-1]), strict=True):
                grads[2 * i] = grad
        if any(wanted[5 + 2 * i] for i in program.roots):
            for i, grad in zip(program.roots, grad_roots.sum(dim=0).reshape(-1, program.width), strict=True):
                grads[2 * i + 1] = grad
        grad_x = None
        if wanted[1]:
            grad_x = grad_roots @ _stack(parameters, program.roots)[0].flatten(0, 1)
            sloped = x if program.root_before.from_input else _entered(program.root_before, x)
            grad_x = program.root_before.backward(grad_x, sloped, None)
        return (None, grad_x, grad_weights if wanted[2] else None, None, *grads)


def _split(topology: Topology, linear: Sequence[LinearNode]) -> tuple[list[LinearNode], list[LinearNode]]:
    """Splits nodes into those that read the input and those that read others."""
    pairs = list(zip(linear, topology.parents, strict=False))
    return [node for node, parents in pairs if not parents], [node for node, parents in pairs if parents]


def _stack(parameters: Sequence[Tensor | None], nodes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Stacks the weights and biases of nodes, contiguous with shapes ``[nodes, out, in]`` and ``[nodes, out]``."""
    weights = [weight for i in nodes if (weight := parameters[2 * i]) is not None]
    biases = [bias for i in nodes if (bias := parameters[2 * i + 1]) is not None]
    return stacked(weights).contiguous(), stacked(biases).contiguous() if biases else None


def _entered(before: Activation, read: Tensor) -> Tensor:
    """Applies the activation before a linear layer to its input."""
    return read if before is IDENTITY else before.forward(read if before.from_input else read.clone())


@functools.lru_cache(maxsize=256)
def _tables(topology: Topology, device: torch.device) -> _Tables:
    """The tables of a graph on a device, copied once; never while a CUDA graph is captured."""
    rows = [topology.parents[node] for node in topology.destinations]
    readers: list[list[tuple[int, int]]] = [[] for _ in topology.parents]
    for row, parents in enumerate(rows):
        for slot, source in enumerate(parents):
            readers[source].append((row, slot))
    edges = [edge for node in readers for edge in node]
    lists: list[Sequence[int]] = [
        [i for i, parents in enumerate(topology.parents[:-1]) if not parents],
        topology.destinations,
        [0, *accumulate(map(len, rows))],
        [source for parents in rows for source in parents],
        [0, *accumulate(map(len, readers))],
        [row for row, _ in edges],
        [slot for _, slot in edges],
    ]
    with torch.inference_mode(False):  # training uses the cached tables too
        return _Tables(*(torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in lists))


def _no_kernel(device: torch.device) -> str | None:
    """The reason why a GPU cannot run the kernel; None if it can."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"its kernel needs a GPU of compute capability 8.0, and {device} has {major}.{minor}" if major < 8 else None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
