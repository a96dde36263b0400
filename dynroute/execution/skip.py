"""Inference that runs a module only for the samples whose output needs it; modules of any kind."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..topology import Topology
from .reference import run_reference
from .rows import Rows

__all__ = ["run_skip"]


def run_skip(
    nodes: Sequence[nn.Module],
    topology: Topology,
    x: Tensor,
    path: Tensor,
    weights: Tensor,
    *,
    shortcuts: Sequence[bool],
) -> Tensor:
    """Runs a routed graph without gradients; the arguments are those of `run_reference`, and the path."""
    batch = weights.shape[:-2]
    if batch.numel() == 0:  # nothing to skip
        return run_reference(nodes, topology, x, weights, None, shortcuts=shortcuts, protect="none")
    if batch.numel() == 1:
        return _run_one(nodes, topology, x, path, weights, shortcuts)

    last = topology.num_nodes - 1
    features = x.shape[len(batch) :]
    x = x.reshape(batch.numel(), *features)
    rows = Rows(topology, path.reshape(-1, *topology.path_shape))
    edge_weights = weights.reshape(-1)[rows.slots].to(x.dtype)

    # Node outputs by their number of features, each matrix with all rows: what is never written takes no memory.
    outputs: dict[int, Tensor] = {}
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
            mixed = rows.mixes.sum(i, outputs[shape.numel()], edge_weights).reshape(-1, *shape)
            output = module(mixed)
            output = mixed + output if shortcuts[i] else output
        if i == last:
            return output.reshape(*batch, *output.shape[1:])

        shapes.append(output.shape[1:])
        width = output.shape[1:].numel()
        if width not in outputs:
            outputs[width] = output.new_empty(rows.first[last], width)
        outputs[width][rows.first[i] : rows.first[i + 1]] = output.reshape(-1, width)
    raise AssertionError("the last node is the output")


def _run_one(
    nodes: Sequence[nn.Module],
    topology: Topology,
    x: Tensor,
    path: Tensor,
    weights: Tensor,
    shortcuts: Sequence[bool],
) -> Tensor:
    """One sample: the nodes of its route and nothing else, with the route as plain numbers."""
    chosen: list[list[bool]] = path.reshape(topology.path_shape).tolist()
    numbers: list[list[float]] = weights.reshape(topology.path_shape).tolist()

    sources: dict[int, list[tuple[int, float]]] = {}
    needed = {topology.num_nodes - 1}
    for t in reversed(range(len(topology.destinations))):
        node = topology.destinations[t]
        if node in needed:
            row, share = chosen[t], numbers[t]
            sources[node] = [(j, share[s]) for s, j in enumerate(topology.parents[node]) if row[s]]
            needed.update(j for j, _ in sources[node])

    outputs: dict[int, Tensor] = {}
    for node in sorted(needed):
        if node not in sources:
            outputs[node] = nodes[node](x)
            continue
        (first, weight), *others = sources[node]
        mixed = outputs[first] * weight
        for j, other in others:
            mixed = torch.add(mixed, outputs[j], alpha=other)
        output = nodes[node](mixed)
        outputs[node] = mixed + output if shortcuts[node] else output
    return outputs[topology.num_nodes - 1]
