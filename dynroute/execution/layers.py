"""Layers: nodes that read the same nodes, so that one product computes them and one mixes their inputs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ..topology import Topology

__all__ = ["Layer", "Span", "blocks_of", "layers_of", "reads_whole_layers"]

Span = tuple[int, int]
"""The first of neighbouring nodes or rows, and the one behind the last."""


class Layer(NamedTuple):
    """Nodes that read the same nodes, their rows of a path, and their sources; no sources if they read the input."""

    nodes: Span
    rows: Span
    sources: Span


def layers_of(topology: Topology) -> tuple[Layer, ...] | None:
    """The layers of a graph, the output node alone in the last.

    None if the sources of a node have gaps between them, or if nobody reads a node.
    """
    if set(range(topology.num_nodes - 1)) - {j for parents in topology.parents for j in parents}:
        return None
    layers: list[Layer] = []
    row = 0
    for node, parents in enumerate(topology.parents):
        sources = (parents[0], parents[-1] + 1) if parents else (0, 0)
        if parents != tuple(range(*sources)):
            return None
        start, first = node, row
        row += bool(parents)
        if layers and parents == topology.parents[node - 1] and node < topology.num_nodes - 1:
            start, first = layers[-1].nodes[0], layers.pop().rows[0]
        layers.append(Layer((start, node + 1), (first, row), sources))
    return tuple(layers)


def reads_whole_layers(layers: Sequence[Layer]) -> bool:
    """Whether each layer reads just the layer before it, so that running every node copies nothing."""
    return all(later.sources == earlier.nodes for earlier, later in pairwise(layers))


def blocks_of(layers: Sequence[Layer]) -> list[Span]:
    """The nodes but the last, cut where neither a layer nor the sources of one lie across."""
    stop = layers[-1].nodes[0]
    spans = [layer.nodes for layer in layers] + [layer.sources for layer in layers]
    cuts = [cut for cut in range(1, stop) if not any(first < cut < last for first, last in spans)]
    return list(pairwise([0, *cuts, stop]))
