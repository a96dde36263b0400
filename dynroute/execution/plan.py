"""The execution plan of a graph, made once, and a pass through the graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..topology import Topology

__all__ = ["Layer", "Pass", "Plan", "Span"]

Span = tuple[int, int]
"""The first of neighbouring nodes or rows, and the one behind the last."""


class Layer(NamedTuple):
    """Nodes that read the same nodes, with their rows of a path and their sources, empty if they read the input."""

    nodes: Span
    rows: Span
    sources: Span


class Plan:
    """The constants of all passes through a graph.

    Args:
        topology: The edges of the graph.
        shortcuts: Whether each node adds its input to its output.
    """

    def __init__(self, topology: Topology, shortcuts: Sequence[bool]) -> None:
        self.topology = topology
        self.shortcuts = tuple(shortcuts)
        self.groups = _groups(topology)
        """Groups of neighbouring nodes that read the same nodes; the last group is the output node."""
        self.layers = _layers(topology)
        """The groups as layers; None if the sources of a node are not consecutive, or if no node reads a node."""
        self.blocks = _blocks(self.layers or ())
        """The nodes without the last, in blocks that contain whole layers and whole source ranges."""
        self.reads_whole_layers = self.layers is not None and all(
            late.sources == early.nodes for early, late in pairwise(self.layers)
        )
        """Whether each layer reads exactly the layer before it, so running every node needs no copies."""
        self.unread = _unread(topology)
        """The nodes that the output can never read, whatever the path."""
        self.is_mixture = topology == Topology.parallel(topology.num_nodes - 1)
        """Whether the last node mixes all others, and these read the input."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass through a graph, the argument of backends."""

    plan: Plan
    """The constants of the graph."""

    nodes: Sequence[Callable[[Tensor], Tensor]]
    """One module for each node."""

    x: Tensor
    """The input of the nodes without sources, with shape ``[*, ...]``."""

    weights: Tensor
    """The weights of a route, with shape ``[*, T, S]``."""

    suitable: Tensor | None
    """The sources that keep their gradient (Eq. 10), boolean with the shape of the weights; all if None."""

    protect: str
    """The way to stop gradients of unsuitable sources, one of "rsg", "input", "sg" and "none"."""

    max_sources: int | None = None
    """The largest number of sources that a node reads; None if unknown."""

    @property
    def batch(self) -> torch.Size:
        """The batch shape ``*``."""
        return self.weights.shape[:-2]

    def read(self) -> Tensor:
        """Marks the slots with a weight, without padding, in shape ``[samples, T, S]``."""
        topology = self.plan.topology
        chosen = self.weights.detach().reshape(-1, *topology.path_shape) != 0
        return chosen & topology.on(chosen.device).allowed

    def flat(self) -> "Pass":
        """Returns the same pass with one batch dimension."""
        dims = len(self.batch)
        if dims == 1:
            return self

        def flat(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, dims - 1) if dims else tensor.unsqueeze(0)

        suitable = None if self.suitable is None else flat(self.suitable)
        return replace(self, x=flat(self.x), weights=flat(self.weights), suitable=suitable)

    def unflat(self, output: Tensor) -> Tensor:
        """Restores the batch shape of an output of the flat pass; returns it unchanged if the shape is the same."""
        return output if len(self.batch) == 1 else output.reshape(*self.batch, *output.shape[1:])


def _unread(topology: Topology) -> tuple[int, ...]:
    read = {topology.num_nodes - 1}
    for node in reversed(range(topology.num_nodes)):
        read.update(topology.parents[node] if node in read else ())
    return tuple(node for node in range(topology.num_nodes) if node not in read)


def _groups(topology: Topology) -> tuple[Span, ...]:
    groups: list[Span] = []
    for node, parents in enumerate(topology.parents):
        joins = groups and parents == topology.parents[node - 1] and node < topology.num_nodes - 1
        first = groups.pop()[0] if joins else node
        groups.append((first, node + 1))
    return tuple(groups)


def _layers(topology: Topology) -> tuple[Layer, ...] | None:
    if set(range(topology.num_nodes - 1)) - {j for parents in topology.parents for j in parents}:
        return None
    layers: list[Layer] = []
    row = 0
    for first, stop in _groups(topology):
        parents = topology.parents[first]
        sources = (parents[0], parents[-1] + 1) if parents else (0, 0)
        if parents != tuple(range(*sources)):
            return None
        rows = stop - first if parents else 0
        layers.append(Layer((first, stop), (row, row + rows), sources))
        row += rows
    return tuple(layers)


def _blocks(layers: Sequence[Layer]) -> list[Span]:
    if not layers:
        return []
    stop = layers[-1].nodes[0]
    spans = [layer.nodes for layer in layers] + [layer.sources for layer in layers]
    cuts = [cut for cut in range(1, stop) if not any(first < cut < last for first, last in spans)]
    return list(pairwise([0, *cuts, stop]))
