"""The dense form: an autograd function that runs every node for every sample, a layer at a time.

Nodes that read the same nodes form a layer, which is one batched product. Mixing is a batched product of the weights of
a sample with the outputs of its sources. Shapes depend only on the batch and not on the path, so nothing is read from a
device. The gradients from the readers of a node are summed as in :mod:`~dynroute.execution.fused.graph`: the *live* sum
reaches the node, and with `protect` a second sum over *every* reader goes only to its shortcut.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...banks import stacked
from ...checks import full_precision
from ..plan import Layer, Pass, Plan
from .double_backward import Equations, in_full_precision, wants_more
from .linear import IDENTITY, LinearNode, entering
from .products import Scratch, Vectors, entered_gradient, parameter_gradients, products

__all__ = ["run_dense", "runs_dense"]


def runs_dense(linear: Sequence[LinearNode], layers: Sequence[Layer] | None) -> bool:
    """Whether the nodes of each layer are alike, so that one product computes them."""
    if layers is None:
        return False
    kinds = [(node.before, node.behind, node.linear.in_features, node.linear.bias is None) for node in linear]
    return all(kinds[i] == kinds[layer.nodes[0]] for layer in layers[:-1] for i in range(*layer.nodes))


class _Program:
    """The arguments of the function that are not tensors."""

    def __init__(self, plan: Plan, linear: Sequence[LinearNode], protect: str) -> None:
        assert plan.layers is not None
        self.equations = Equations(plan, [(node,) for node in linear], protect)
        self.linear = linear
        self.layers = plan.layers
        self.shortcuts = plan.shortcuts
        self.protect = protect
        self.blocks = plan.blocks
        self.reuse = plan.reads_whole_layers and not torch.compiler.is_compiling()


def run_dense(call: Pass, linear: Sequence[LinearNode]) -> Tensor:
    """Runs a routed graph in layers, given the linear form of all nodes but the last."""
    flat = call.flat()
    program = _Program(call.plan, linear, call.protect if call.suitable is not None else "none")
    x, parameters = entering(flat, [(node,) for node in linear])
    with full_precision(x):  # all tensors are converted already
        mixed: Tensor = _DenseGraph.apply(program, x, flat.weights, flat.suitable, *parameters)  # type: ignore[no-untyped-call]
    return call.nodes[-1](call.unflat(mixed.squeeze(1)))


class _DenseGraph(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: _Program, x: Tensor, weights: Tensor, suitable: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        shares = weights.to(x.dtype)
        outputs, scratch = Vectors(program.blocks), Scratch(x, reuse=program.reuse)
        kept: list[Tensor] = []  # for the derivative of each layer's activation
        for layer in program.layers[:-1]:
            node = program.linear[layer.nodes[0]]
            mixed, entered = _inputs(program, layer, x, outputs, shares, scratch)
            inner = products(entered, *_stack(parameters, layer))
            left = node.behind.forward(inner)
            if program.shortcuts[layer.nodes[0]]:
                kept.append(inner if node.behind.from_input else node.behind.condense(left))
                left = left + mixed
            else:
                kept.append(inner if node.behind.from_input else left)
            outputs.put(layer.nodes, left)
        last = program.layers[-1]
        mixed = torch.bmm(_shares(last, shares), outputs.at(last.sources).transpose(0, 1))

        ctx.program = program
        ctx.save_for_backward(x, weights, suitable, *outputs.whole(), *kept, *parameters)
        return mixed

    @staticmethod
    @in_full_precision
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        program: _Program = ctx.program
        x, weights, suitable, *rest = ctx.saved_tensors
        count = len(program.blocks)
        outputs = Vectors(program.blocks, rest[:count])
        kept, parameters = rest[count : count + len(program.layers) - 1], rest[count + len(program.layers) - 1 :]
        if wants_more(gradients[0]):
            return program.equations.gradients(
                ctx.needs_input_grad, gradients[0].squeeze(1), x, weights, suitable, parameters
            )

        shares = weights.to(x.dtype)
        live_shares = shares if suitable is None else shares * suitable
        protected, apart = program.protect in ("rsg", "input"), program.protect == "input"
        live, every, scratch = Vectors(program.blocks), Vectors(program.blocks), Scratch(x, reuse=program.reuse)
        grad_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
        grad_x: Tensor | None = None
        grads: list[Tensor | None] = [None] * len(parameters)

        # The gradient of the mix of each node, through its module and through its shortcut; separate only for "input".
        through, past = gradients[0].transpose(0, 1), None
        for i in reversed(range(len(program.layers))):
            layer = program.layers[i]
            first, is_root = layer.nodes[0], layer.sources[0] == layer.sources[1]
            if i < len(program.layers) - 1:
                node, shortcut = program.linear[first], program.shortcuts[first]
                weight, bias = _stack(parameters, layer)
                mixed, entered = _inputs(program, layer, x, outputs, shares, scratch)
                reached = live.take(layer.nodes)
                keep = shortcut and not protected  # the shortcut needs the same gradient
                inner = node.behind.backward(reached, kept[i], None if keep else reached)
                own = slice(2 * first, 2 * layer.nodes[1])
                if any(ctx.needs_input_grad[4:][own]):  # critics are frozen while the actor learns
                    grads[own] = parameter_gradients(inner, entered, bias is not None)
                if is_root and not ctx.needs_input_grad[1]:
                    continue
                read = mixed if node.before.from_input else entered
                through = entered_gradient(inner, weight, entered, scratch)
                through = node.before.backward(through, read, through)
                around = (every.take(layer.nodes) if protected else reached) if shortcut else None
                past = around if apart else None
                through = through + around if around is not None and not apart else through
            if is_root:
                grad_x = through[0] if grad_x is None else grad_x + through[0]
                continue

            total = through if past is None else through + past
            sources = outputs.at(layer.sources).transpose(0, 1)
            rows, slots = slice(*layer.rows), slice(layer.sources[1] - layer.sources[0])
            if ctx.needs_input_grad[2]:
                grad_weights[:, rows, slots] = torch.bmm(total.transpose(0, 1), sources.transpose(1, 2))
            live.add(layer.sources, _spread(layer, live_shares, through, scratch))
            if past is not None:
                live.add(layer.sources, _spread(layer, shares, past))
            if protected and any(program.shortcuts[slice(*layer.sources)]):
                every.add(layer.sources, _spread(layer, shares, total))
        return (None, grad_x, grad_weights, None, *grads)


def _stack(parameters: Sequence[Tensor | None], layer: Layer) -> tuple[Tensor, Tensor | None]:
    """The weights and biases of a layer, with shapes ``[nodes, out, in]`` and ``[nodes, out]``."""
    first, stop = 2 * layer.nodes[0], 2 * layer.nodes[1]
    weights = [tensor for tensor in parameters[first:stop:2] if tensor is not None]
    biases = [tensor for tensor in parameters[first + 1 : stop : 2] if tensor is not None]
    return stacked(weights), stacked(biases) if biases else None


def _inputs(
    program: _Program, layer: Layer, x: Tensor, outputs: Vectors, shares: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """The mixes of a layer, and the inputs of its linear layers; a single one if all read the input of the graph."""
    before, is_root = program.linear[layer.nodes[0]].before, layer.sources[0] == layer.sources[1]
    if is_root:
        mixed = x.unsqueeze(0)
    else:
        sources = outputs.at(layer.sources).transpose(0, 1)
        mixed = scratch.bmm("mixed", _shares(layer, shares), sources).transpose(0, 1)
    if before is IDENTITY:
        return mixed, mixed
    needed = is_root or program.shortcuts[layer.nodes[0]]  # the mix must not be overwritten
    return mixed, before.forward(mixed.clone() if needed and not before.from_input else mixed)


def _shares(layer: Layer, shares: Tensor) -> Tensor:
    """The weights of a layer, with shape ``[batch, nodes, sources]``."""
    return shares[:, slice(*layer.rows), : layer.sources[1] - layer.sources[0]]


def _spread(layer: Layer, shares: Tensor, vectors: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Distributes vectors of nodes to their sources by weight."""
    shares, vectors = _shares(layer, shares).transpose(1, 2), vectors.transpose(0, 1)
    return (torch.bmm(shares, vectors) if scratch is None else scratch.bmm("live", shares, vectors)).transpose(0, 1)
