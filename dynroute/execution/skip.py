"""Inference that runs a module only for the samples whose output needs it; modules of any kind."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..topology import Topology
from .linear import linear_node
from .reference import check_shortcut, run_reference
from .rows import rows_of

__all__ = ["run_skip"]

ROWS_FROM = 64
"""The smallest batch for which rows are sorted by node; below, a node that one sample needs runs for all of them."""


def run_skip(
    nodes: Sequence[nn.Module],
    topology: Topology,
    x: Tensor,
    weights: Tensor,
    *,
    shortcuts: Sequence[bool],
) -> Tensor:
    """Runs a routed graph without gradients; the arguments are those of `run_reference`.

    A module sees the samples that need it, so that it must treat each of them on its own.
    """
    batch = weights.shape[:-2]
    if batch.numel() == 0:  # nothing to skip
        return run_reference(nodes, topology, x, weights, None, shortcuts=shortcuts, protect="none")
    if batch.numel() == 1:
        return _run_one(nodes, topology, x, weights, shortcuts)
    if batch.numel() < ROWS_FROM:
        few = _run_few(nodes, topology, x, weights, shortcuts)
        if few is not None:
            return few

    last = topology.num_nodes - 1
    features = x.shape[len(batch) :]
    x = x.reshape(batch.numel(), *features)
    rows = rows_of(topology, weights.reshape(-1, *topology.path_shape) != 0)
    edge_weights = weights.reshape(-1)[rows.slots]

    # Node outputs by the shape of their features, each matrix with all rows: what is never written takes no memory.
    outputs: dict[torch.Size, Tensor] = {}
    shapes: list[torch.Size] = []
    for i, module in enumerate(nodes):
        parents = topology.parents[i]
        if not rows.counts[i]:
            shapes.append(torch.Size())
            continue
        if not parents:
            samples = rows.samples(i)
            output: Tensor = module(x if samples is None else x.index_select(0, samples))
        else:
            shape = next(shapes[j] for j in parents if rows.counts[j])
            values = outputs[shape]
            mixed = rows.mixes.sum(i, values, edge_weights.to(values.dtype)).reshape(-1, *shape)
            output = _with_shortcut(i, module, mixed, shortcuts)
        if i == last:
            return output.reshape(*batch, *output.shape[1:])

        shape = output.shape[1:]
        shapes.append(shape)
        if shape not in outputs:
            outputs[shape] = output.new_empty(rows.first[last], shape.numel())
        if outputs[shape].dtype != output.dtype:  # a mix of several types follows the rules of the reference
            paths = weights.reshape(-1, *topology.path_shape)
            whole = run_reference(nodes, topology, x, paths, None, shortcuts=shortcuts, protect="none")
            return whole.reshape(*batch, *whole.shape[1:])
        outputs[shape][rows.first[i] : rows.first[i + 1]] = output.reshape(-1, shape.numel())
    raise AssertionError("the last node is the output")


def _run_one(
    nodes: Sequence[nn.Module],
    topology: Topology,
    x: Tensor,
    weights: Tensor,
    shortcuts: Sequence[bool],
) -> Tensor:
    """One sample: the nodes of its route and nothing else, with the weights as plain numbers."""
    shares: list[list[float]] = weights.reshape(topology.path_shape).tolist()
    outputs: dict[int, Tensor] = {}
    for node, t, slots in _needed(topology, weights.reshape(topology.path_shape) != 0):
        if not topology.parents[node]:
            outputs[node] = _lean(nodes[node])(x)
            continue
        first, *others = slots
        parents, share = topology.parents[node], shares[t]
        mixed = outputs[parents[first]] * share[first]
        for s in others:
            mixed = torch.add(mixed, outputs[parents[s]], alpha=share[s])
        outputs[node] = _with_shortcut(node, nodes[node], mixed, shortcuts)
    return outputs[topology.num_nodes - 1]


def _run_few(
    nodes: Sequence[nn.Module],
    topology: Topology,
    x: Tensor,
    weights: Tensor,
    shortcuts: Sequence[bool],
) -> Tensor | None:
    """A few samples: every node that one of them needs, for all of them, since calls cost more than sums here.

    None if that is not possible: nodes of other shapes than vectors of one width, parents with gaps between them, or an
    output that is no number, which would spoil the sums of samples that do not read it.
    """
    batch, last = weights.shape[:-2], topology.num_nodes - 1
    x = x.reshape(batch.numel(), *x.shape[len(batch) :])
    weights = weights.reshape(-1, *topology.path_shape)
    shares: tuple[Tensor, ...] = ()  # of each destination, with shape [batch, 1, S]
    outputs: Tensor | None = None
    for node, t, _ in _needed(topology, (weights != 0).any(dim=0)):
        parents = topology.parents[node]
        mixed: Tensor | None = None
        if parents:
            first, stop = parents[0], parents[-1] + 1
            if outputs is None or parents != tuple(range(first, stop)):
                return None
            if not shares:
                shares = weights.to(outputs.dtype).unsqueeze(2).unbind(1)
            # What has no weight is zero, also where nothing was computed yet.
            share = shares[t] if (first, topology.path_shape[1]) == (0, last) else shares[t][..., : stop - first]
            read = outputs if share is shares[t] else outputs[first:stop]
            mixed = torch.bmm(share, read.transpose(0, 1)).squeeze(1)
        output: Tensor = _lean(nodes[node])(x if mixed is None else mixed)
        if node == last:
            assert outputs is not None
            finite = bool(outputs.sum().isfinite())
            return output.reshape(*batch, *output.shape[1:]) if finite else None
        if output.dim() != 2:
            return None
        if outputs is not None and (output.shape[-1] != outputs.shape[-1] or output.dtype != outputs.dtype):
            return None
        if outputs is None:
            outputs = output.new_zeros(last, batch.numel(), output.shape[-1])
        if mixed is not None and shortcuts[node]:
            check_shortcut(node, mixed, output)
            torch.add(output, mixed, out=outputs[node])
        else:
            outputs[node] = output
    raise AssertionError("the last node is the output")


def _with_shortcut(node: int, module: nn.Module, mixed: Tensor, shortcuts: Sequence[bool]) -> Tensor:
    output: Tensor = _lean(module)(mixed)
    if not shortcuts[node]:
        return output
    check_shortcut(node, mixed, output)
    return mixed + output


def _lean(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module, or something that computes the same at a lower cost for each call."""
    return linear_node(module) or module


def _needed(topology: Topology, path: Tensor) -> list[tuple[int, int, list[int]]]:
    """The nodes that a path of shape ``[T, S]`` uses: their number, their row of the path and the slots they read."""
    chosen: list[list[bool]] = path.tolist()
    found: list[tuple[int, int, list[int]]] = []
    needed = {topology.num_nodes - 1}
    t = len(topology.destinations)
    for node in reversed(range(topology.num_nodes)):
        parents = topology.parents[node]
        t -= bool(parents)
        if node in needed:
            slots = [s for s, read in enumerate(chosen[t]) if read] if parents else []
            if parents and not slots:
                raise ValueError(f"`weights` must read a source at every node, but node {node} reads none.")
            needed.update(parents[s] for s in slots)
            found.append((node, t, slots))
    return found[::-1]
