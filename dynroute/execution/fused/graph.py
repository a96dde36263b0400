"""An autograd function for graphs of equal linear modules.

It computes forward and backward only the rows that the output of their sample depends on (see `rows`). Let :math:`m_j`
be the output of node j and :math:`u_j` its shortcut. The gradient from the readers of j consists of two sums: the
*live* sum reaches :math:`m_j`, and the *stopped* sum, over the readers for which j is unsuitable, reaches only
:math:`u_j` (Eq. 12). The second sum is the only cost of `protect`.
"""

from typing import Any

import torch
from torch import Tensor

from ...checks import full_precision
from ..plan import Pass, Plan
from ..rows import Rows, rows_of
from .double_backward import Equations, in_full_precision, wants_more
from .linear import IDENTITY, LinearNode, entering, row_multiple

__all__ = ["run_fused"]


def run_fused(call: Pass, linear: list[LinearNode]) -> Tensor:
    """Runs a routed graph, given the linear form of all nodes but the last."""
    flat = call.flat()
    x, parameters = entering(flat, [(node,) for node in linear])
    rows = rows_of(call, row_multiple(x.dtype))
    program = _Program(call.plan, linear, call.protect if call.suitable is not None else "none", rows)
    with full_precision(x):  # all tensors are converted already
        mixed: Tensor = _FusedGraph.apply(program, x, flat.weights, flat.suitable, *parameters)  # type: ignore[no-untyped-call]
    return call.nodes[-1](call.unflat(mixed))


class _Program:
    """The arguments of the function that are not tensors."""

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
        kept: list[Tensor] = []  # for the derivative of each node's activation
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
    @in_full_precision
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

        # The gradient of the mix of each row, through its module and through its shortcut; separate only for "input".
        width = outputs.shape[-1]
        through = outputs.new_empty(rows.first[-1], width)
        carried = outputs.new_zeros(rows.first[-1], width) if program.protect == "input" else None
        through[rows.first[last] :] = gradients[0]

        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grads: list[Tensor | None] = [None] * len(parameters)
        for i in reversed(range(last)):
            node, own = program.linear[i], slice(rows.first[i], rows.first[i + 1])
            weight, bias = parameters[2 * i : 2 * i + 2]

            # The gradient of the shortcut is stored in the place of the gradient of the mix.
            around = through if carried is None else carried
            past = None if carried is None else readers.sum(i, carried, sent)  # from shortcuts, which are not protected
            passed = program.shortcuts[i] and suitable is not None and program.protect != "sg"
            if passed:  # the live and the stopped sum together
                around[own] = _plus(readers.sum(i, through, sent), past)
            live = _plus(readers.sum(i, through, live_weights), past)
            if program.shortcuts[i] and not passed:
                around[own] = live

            # Recomputing the mix is cheaper than storing it.
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
            del live, past, mixed, entered, inner, read  # lowers the peak of memory

        grad_weights = None
        if ctx.needs_input_grad[2]:
            total = through if carried is None else through + carried
            grad_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
            grad_weights.view(-1)[rows.slots] = _edge_products(rows, total, outputs).to(weights.dtype)
        return (None, grad_x, grad_weights, None, *grads)


def _inputs(program: _Program, i: int, x: Tensor, outputs: Tensor, edge_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mix of a node, and the input of its linear layer."""
    rows, before = program.rows, program.linear[i].before
    if program.roots[i]:
        samples = rows.samples(i)
        mixed = x if samples is None else x.index_select(0, samples)
    else:
        mixed = rows.mixes.sum(i, outputs, edge_weights)
    if before is IDENTITY:
        return mixed, mixed
    needed = mixed is x or program.shortcuts[i]  # the mix must not be overwritten
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
    """Computes, for each edge, the product of the reader's gradient with the source's output."""
    reading = rows.first[-1]
    sizes = torch.bincount(rows.readers, minlength=reading)
    offsets = sizes.cumsum(0) - sizes
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, outputs, rows.mixes.members, offsets, rows.readers, 0
    )
    return products
