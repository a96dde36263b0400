"""The whole graph as one autograd function, for graphs of equal linear modules.

What the reference does node by node with autograd is done here with the rows that are needed (see `rows`): rows that
the output of their sample does not depend on are computed neither forward nor backward. With :math:`m_j` the output of
node j, :math:`u_j` what its shortcut carried and :math:`x_j` what its module read, the gradient that the readers of j
send falls into two sums: the *live* one, which reaches :math:`m_j`, and the *stopped* one of the readers to which j is
unsuitable, which by Eq. 12 reaches :math:`u_j` alone. The second sum is all that `protect` costs.
"""

from typing import Any

import torch
from torch import Tensor

from ...routers import full_precision
from ..plan import Pass, Plan
from ..rows import Rows, rows_of
from .double_backward import Equations, wants_more
from .linear import IDENTITY, LinearNode, entering, row_multiple

__all__ = ["run_fused"]


def run_fused(call: Pass, linear: list[LinearNode]) -> Tensor:
    """Runs a routed graph whose nodes, the last one left out, were read as linear ones."""
    flat = call.flat()
    x, parameters = entering(flat, [(node,) for node in linear])
    rows = rows_of(call, row_multiple(x.dtype))
    program = _Program(call.plan, linear, call.protect if call.suitable is not None else "none", rows)
    with full_precision(x):  # every product has its type by now
        mixed: Tensor = _FusedGraph.apply(program, x, flat.weights, flat.suitable, *parameters)  # type: ignore[no-untyped-call]
    return call.nodes[-1](call.unflat(mixed))


class _Program:
    """The arguments of the function that are no tensors."""

    def __init__(self, plan: Plan, linear: list[LinearNode], protect: str, rows: Rows) -> None:
        self.equations = Equations(plan, [(node,) for node in linear], protect)
        self.linear = linear
        self.roots = [not parents for parents in plan.topology.parents]
        self.shortcuts = plan.shortcuts
        self.protect = protect
        self.rows = rows


class _FusedGraph(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: _Program, x: Tensor, weights: Tensor, suitable: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        rows, last = program.rows, len(program.linear)
        edge_weights = weights.flatten()[rows.slots].to(x.dtype)

        outputs = x.new_empty(rows.first[last], program.linear[0].linear.out_features)  # m
        kept: list[Tensor] = []  # what the derivative of each node's activation reads
        for i, node in enumerate(program.linear):
            weight, bias = parameters[2 * i : 2 * i + 2]
            assert weight is not None
            mixed, entered = _inputs(program, i, x, outputs, edge_weights)

            own = outputs[rows.first[i] : rows.first[i + 1]]
            inner = own if not program.shortcuts[i] and not node.behind.from_input else torch.empty_like(own)
            if bias is None:
                torch.mm(entered, weight.t(), out=inner)
            else:
                torch.addmm(bias, entered, weight.t(), out=inner)
            left = node.behind.forward(inner)
            if program.shortcuts[i]:
                torch.add(mixed, left, out=own)
                kept.append(inner if node.behind.from_input else node.behind.condense(left))
            else:
                if left is not own:
                    own.copy_(left)
                kept.append(inner if node.behind.from_input else own)
        mixed = rows.mixes.sum(last, outputs, edge_weights)

        ctx.program = program
        ctx.save_for_backward(x, weights, suitable, edge_weights, outputs, *kept, *parameters)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        program: _Program = ctx.program
        rows, last = program.rows, len(program.linear)
        x, weights, suitable, edge_weights, outputs, *rest = ctx.saved_tensors
        kept, parameters = rest[:last], rest[last:]
        if wants_more(gradients[0]):
            return program.equations.gradients(ctx.needs_input_grad, gradients[0], x, weights, suitable, parameters)

        readers, order = rows.by_source
        sent = edge_weights[order]
        live_weights = sent if suitable is None else sent * suitable.flatten()[rows.slots][order]

        # The gradient of what each row mixed: through its module, and (apart only for "input") through its shortcut.
        width = outputs.shape[-1]
        through = outputs.new_empty(rows.first[-1], width)
        carried = outputs.new_zeros(rows.first[-1], width) if program.protect == "input" else None
        through[rows.first[last] :] = gradients[0]

        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grads: list[Tensor | None] = [None] * len(parameters)
        for i in reversed(range(last)):
            node, own = program.linear[i], slice(rows.first[i], rows.first[i + 1])
            weight, bias = parameters[2 * i : 2 * i + 2]

            # What goes around the module waits where the gradient of what it mixed will be.
            around = through if carried is None else carried
            past = None if carried is None else readers.sum(i, carried, sent)  # shortcuts of readers, never protected
            passed = program.shortcuts[i] and suitable is not None and program.protect != "sg"
            if passed:  # the live and the stopped sum together
                around[own] = _plus(readers.sum(i, through, sent), past)
            live = _plus(readers.sum(i, through, live_weights), past)
            if program.shortcuts[i] and not passed:
                around[own] = live

            # Mixing again is cheaper than keeping what was mixed.
            mixed, entered = _inputs(program, i, x, outputs, edge_weights)
            inner = node.behind.backward(live, kept[i], live)
            if ctx.needs_input_grad[4 + 2 * i]:
                grads[2 * i] = inner.t() @ entered
            if bias is not None and ctx.needs_input_grad[5 + 2 * i]:
                grads[2 * i + 1] = inner.sum(dim=0)
            read = mixed if node.before.from_input else entered
            if program.roots[i]:
                if grad_x is not None:
                    _add_root(rows, i, grad_x, node.before.backward(inner @ weight, read, None))
            elif node.before is not IDENTITY:
                entering = node.before.backward(inner @ weight, read, None)
                through[own] = _plus(entering, through[own] if program.shortcuts[i] and carried is None else None)
            elif program.shortcuts[i] and carried is None:
                through[own].addmm_(inner, weight)
            else:
                torch.mm(inner, weight, out=through[own])
            del live, past, mixed, entered, inner, read  # the next node's come on top of the peak of memory

        grad_weights = None
        if ctx.needs_input_grad[2]:
            total = through if carried is None else through + carried
            grad_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
            grad_weights.view(-1)[rows.slots] = _edge_products(rows, total, outputs).to(weights.dtype)
        return (None, grad_x, grad_weights, None, *grads)


def _inputs(program: _Program, i: int, x: Tensor, outputs: Tensor, edge_weights: Tensor) -> tuple[Tensor, Tensor]:
    """What a node mixed, and what its linear layer read of it."""
    rows, before = program.rows, program.linear[i].before
    if program.roots[i]:
        samples = rows.samples(i)
        mixed = x if samples is None else x.index_select(0, samples)
    else:
        mixed = rows.mixes.sum(i, outputs, edge_weights)
    if before is IDENTITY:
        return mixed, mixed
    needed = mixed is x or program.shortcuts[i]  # by the caller, or to be added behind the module
    return mixed, before.forward(mixed.clone() if needed and not before.from_input else mixed)


def _plus(gradient: Tensor, other: Tensor | None) -> Tensor:
    return gradient if other is None else gradient + other


def _add_root(rows: Rows, node: int, grad_x: Tensor, gradient: Tensor) -> None:
    samples = rows.samples(node)
    if samples is None:
        grad_x += gradient
    else:
        grad_x.index_add_(0, samples, gradient)


def _edge_products(rows: Rows, gradient: Tensor, outputs: Tensor) -> Tensor:
    """For each edge, the product of the gradient of the row that reads with the output of the row that is read."""
    reading = rows.first[-1]
    sizes = torch.bincount(rows.readers, minlength=reading)
    offsets = sizes.cumsum(0) - sizes
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, outputs, rows.mixes.members, offsets, rows.readers, 0
    )
    return products
