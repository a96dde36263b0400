"""Which rows of which nodes have to be computed, and which of them feed each other.

A row is one sample at one node. Only rows from which the output of their sample can be reached are numbered, node by
node, so that the rows of a node lie side by side in one matrix, and a mix is a sum over a few rows of that matrix: a
bag. Everything here is lists of integers, found with a handful of calls for the whole graph.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from ..topology import Topology

__all__ = ["Bags", "Rows", "rows_of"]


@dataclass(frozen=True)
class Bags:
    """A bag for every row: the edges whose weighted sum it is, grouped by node.

    Attributes:
        members: The row that each edge adds.
        offsets: The first edge of each bag, counted from the first edge of its node.
        first_edge: The first edge of each node, then the number of edges.
        first_row: The first bag of each node, then the number of bags.
    """

    members: Tensor
    offsets: Tensor
    first_edge: list[int]
    first_row: list[int]

    def sum(self, node: int, values: Tensor, weights: Tensor) -> Tensor:
        """The bags of one node: sums over rows of `values`, weighted by edge."""
        edges = slice(self.first_edge[node], self.first_edge[node + 1])
        offsets = self.offsets[self.first_row[node] : self.first_row[node + 1]]
        return F.embedding_bag(self.members[edges], values, offsets, mode="sum", per_sample_weights=weights[edges])


class Rows:
    """The rows that a batch of paths needs.

    Args:
        topology: The graph.
        path: The boolean paths, with shape ``[batch, T, S]``.
    """

    def __init__(self, topology: Topology, path: Tensor) -> None:
        batch, _, width = path.shape
        nodes = topology.num_nodes

        used = _used(topology, path)
        self.counts: list[int] = used.sum(dim=1).tolist()
        """The number of rows of each node."""
        self.first: list[int] = [0, *accumulate(self.counts)]
        """The first row of each node, then the number of rows."""
        cells = used.flatten().nonzero().squeeze(1)  # a cell is a position in [num_nodes, batch], used or not
        self._samples = cells - torch.arange(nodes).repeat_interleave(torch.tensor(self.counts)) * batch
        self._batch = batch
        row_of_cell = used.flatten().cumsum(0) - 1

        reads = path.new_zeros((nodes, batch, width))
        reads[list(topology.destinations)] = path.transpose(0, 1)
        reads &= used.unsqueeze(-1)
        position = reads.flatten().nonzero().squeeze(1)
        cell, slot = _divide(position, width)
        node, sample = _divide(cell, batch)

        self.slots: Tensor = (sample * len(topology.destinations) + _destination_of(topology)[node]) * width + slot
        """The position of each edge in the flattened ``[batch, T, S]``."""
        self.readers: Tensor = row_of_cell[cell]
        """The row that reads each edge."""
        sources = row_of_cell[_sources_of(topology)[node, slot] * batch + sample]
        sizes = reads.sum(dim=-1)
        first_edge = [0, *accumulate(sizes.sum(dim=1).tolist())]
        self.mixes = Bags(sources, (sizes.cumsum(dim=1) - sizes)[used], first_edge, self.first)
        """For each row, the rows that it mixes."""

    def samples(self, node: int) -> Tensor | None:
        """The samples of the rows of a node; None where these are all samples in order."""
        if self.counts[node] == self._batch:
            return None
        return self._samples[self.first[node] : self.first[node + 1]]

    @cached_property
    def by_source(self) -> tuple[Bags, Tensor]:
        """For each row, the rows that read it; and the order that sorts the edges so."""
        sources, order = self.mixes.members.sort(stable=True)
        sizes = torch.bincount(sources, minlength=self.first[-1])
        starts = sizes.cumsum(0) - sizes
        bounds = torch.searchsorted(sources, torch.tensor(self.first)).tolist()
        shift = torch.tensor(bounds[:-1]).repeat_interleave(torch.tensor(self.counts))
        return Bags(self.readers[order], starts - shift, bounds, self.first), order


def rows_of(topology: Topology, path: Tensor) -> Rows:
    """The rows of a batch of paths; those of paths that take every edge are kept, since only the batch size tells."""
    if path.shape[0] and bool((path.sum(dim=(1, 2)) == topology.num_edges).all()):
        return _full_rows(topology, path.shape[0])
    return Rows(topology, path)


@lru_cache(maxsize=8)
def _full_rows(topology: Topology, batch: int) -> Rows:
    return Rows(topology, topology.allowed.expand(batch, -1, -1))


def _used(topology: Topology, path: Tensor) -> Tensor:
    """The nodes that each sample uses, with shape ``[num_nodes, batch]``."""
    reads = path.permute(1, 2, 0).contiguous()
    used = path.new_zeros((topology.num_nodes, path.shape[0]))
    used[-1] = True
    for t in reversed(range(len(topology.destinations))):
        node = topology.destinations[t]
        parents = topology.parents[node]
        behind = used[node] & reads[t, : len(parents)]
        if parents == tuple(range(parents[0], parents[0] + len(parents))):
            used[parents[0] : parents[0] + len(parents)] |= behind
        else:
            used[list(parents)] |= behind
    return used


def _divide(position: Tensor, by: int) -> tuple[Tensor, Tensor]:
    quotient = torch.div(position, max(by, 1), rounding_mode="floor")
    return quotient, position - quotient * by


def _destination_of(topology: Topology) -> Tensor:
    """The row of a path that belongs to each node, with shape ``[num_nodes]``."""
    index = torch.zeros(topology.num_nodes, dtype=torch.long)
    index[list(topology.destinations)] = torch.arange(len(topology.destinations))
    return index


def _sources_of(topology: Topology) -> Tensor:
    """The source in every slot of every node, with shape ``[num_nodes, S]``."""
    sources = torch.zeros(topology.num_nodes, topology.path_shape[1], dtype=torch.long)
    sources[list(topology.destinations)] = topology.sources
    return sources
