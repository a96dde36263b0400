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
from .plan import Pass, Span

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

    def of(self, nodes: Span) -> tuple[slice, Tensor]:
        """The edges of the bags of neighbouring nodes, and the first edge of each bag, counted from the first."""
        first = self.first_edge[nodes[0]]
        shifts = [self.first_edge[node] - first for node in range(*nodes)]
        counts = [self.first_row[node + 1] - self.first_row[node] for node in range(*nodes)]
        offsets = self.offsets[self.first_row[nodes[0]] : self.first_row[nodes[1]]]
        if any(shifts):
            device = offsets.device
            shift = torch.tensor(shifts, device=device).repeat_interleave(torch.tensor(counts, device=device))
            offsets = offsets + shift
        return slice(first, self.first_edge[nodes[1]]), offsets


class Rows:
    """The rows that a batch of paths needs.

    Args:
        topology: The graph.
        path: The boolean paths, with shape ``[batch, T, S]``.
    """

    def __init__(self, topology: Topology, path: Tensor) -> None:
        batch, _, width = path.shape
        nodes = topology.num_nodes

        chosen = path.transpose(0, 1).contiguous()  # for a batch of 1 still the caller's memory: never written
        used = _used(topology, chosen)
        self.counts: list[int] = used.sum(dim=1).tolist()
        """The number of rows of each node."""
        self.first: list[int] = [0, *accumulate(self.counts)]
        """The first row of each node, then the number of rows."""
        cells = used.flatten().nonzero().squeeze(1)  # a cell is a position in [num_nodes, batch], used or not
        self._samples = cells - torch.arange(nodes, device=path.device).repeat_interleave(used.sum(dim=1)) * batch
        self._batch = batch
        row_of_cell = used.flatten().cumsum(0) - 1

        destinations = topology.on(path.device).destinations
        position = (chosen & used[destinations].unsqueeze(-1)).flatten().nonzero().squeeze(1)
        reading, slot = _divide(position, width)
        t, sample = _divide(reading, batch)
        cell = destinations[t] * batch + sample

        self.slots: Tensor = (sample * len(destinations) + t) * width + slot
        """The position of each edge in the flattened ``[batch, T, S]``."""
        self.readers: Tensor = row_of_cell[cell]
        """The row that reads each edge."""
        sources = row_of_cell[topology.sources[t, slot] * batch + sample]
        sizes = torch.bincount(cell, minlength=nodes * batch).reshape(nodes, batch)
        first_edge = [0, *accumulate(sizes.sum(dim=1).tolist())]
        self.mixes = Bags(sources, (sizes.cumsum(dim=1) - sizes)[used], first_edge, self.first)
        """For each row, the rows that it mixes."""

    def samples(self, node: int) -> Tensor | None:
        """The samples of the rows of a node; None where these are all samples in order."""
        if self.counts[node] == self._batch:
            return None
        return self._samples[self.first[node] : self.first[node + 1]]

    def samples_of(self, nodes: Span) -> Tensor:
        """The samples of the rows of neighbouring nodes."""
        return self._samples[self.first[nodes[0]] : self.first[nodes[1]]]

    @cached_property
    def by_source(self) -> tuple[Bags, Tensor]:
        """For each row, the rows that read it; and the order that sorts the edges so."""
        sources, order = self.mixes.members.sort(stable=True)
        sizes = torch.bincount(sources, minlength=self.first[-1])
        starts = sizes.cumsum(0) - sizes
        bounds = torch.searchsorted(sources, torch.tensor(self.first, device=sources.device)).tolist()
        shift = torch.tensor(bounds[:-1], device=sources.device).repeat_interleave(
            torch.tensor(self.counts, device=sources.device)
        )
        return Bags(self.readers[order], starts - shift, bounds, self.first), order


def rows_of(call: Pass) -> Rows:
    """The rows of a pass; those of paths that take every edge are kept, since only the batch size tells."""
    topology, path = call.plan.topology, call.read()
    if path.shape[0] and int(path.count_nonzero()) == path.shape[0] * topology.num_edges:
        return _full_rows(topology, path.shape[0])
    return Rows(topology, path)


@lru_cache(maxsize=2)  # an entry takes a few bytes for each edge of each sample
def _full_rows(topology: Topology, batch: int) -> Rows:
    with torch.inference_mode(False):  # they outlive the call, and training must be able to use them
        return Rows(topology, topology.allowed.expand(batch, -1, -1))


def _used(topology: Topology, reads: Tensor) -> Tensor:
    """The nodes that each sample uses, with shape ``[num_nodes, batch]``, from paths ``[T, batch, S]``."""
    used = reads.new_zeros((topology.num_nodes, reads.shape[1]))
    used[-1] = True
    for t in reversed(range(len(topology.destinations))):
        node = topology.destinations[t]
        parents = topology.parents[node]
        behind = used[node] & reads[t, :, : len(parents)].t()
        if parents == tuple(range(parents[0], parents[0] + len(parents))):
            used[parents[0] : parents[0] + len(parents)] |= behind
        else:
            used[list(parents)] |= behind
    return used


def _divide(position: Tensor, by: int) -> tuple[Tensor, Tensor]:
    quotient = torch.div(position, max(by, 1), rounding_mode="floor")
    return quotient, position - quotient * by
