"""The rows of nodes that a batch needs, and the edges between them.

A row is one sample at one node. Rows that the output of their sample depends on are numbered node by node, so the rows
of a node are consecutive in one matrix. A mix is a weighted sum of a few rows of that matrix, a bag. All indices of a
graph are computed with a few calls.

A cell is a position in ``[num_nodes, batch]``, whether it has a row or not; a reading is a position in ``[T, batch]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from ..topology import Topology
from .plan import Pass, Span

__all__ = ["Bags", "Rows", "fill_up", "multiples", "rows_of"]


@dataclass(frozen=True)
class Bags:
    """A bag for every row, the edges in its weighted sum, grouped by node.

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
        """Computes the bags of one node: sums over rows of `values`, weighted by edge."""
        edges = slice(self.first_edge[node], self.first_edge[node + 1])
        offsets = self.offsets[self.first_row[node] : self.first_row[node + 1]]
        return F.embedding_bag(self.members[edges], values, offsets, mode="sum", per_sample_weights=weights[edges])

    def of(self, nodes: Span) -> tuple[slice, Tensor]:
        """Returns the edges of the bags of neighbouring nodes, and the first edge of each bag relative to the first."""
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
        align: The rows of every node but the last are padded to a multiple of this number with unread rows.
    """

    def __init__(self, topology: Topology, path: Tensor, align: int = 1) -> None:
        self._batch = len(path)
        chosen = path.transpose(0, 1).contiguous()  # a batch of 1 shares the caller's memory, so never write to it
        used = _used(topology, chosen)
        row_of_cell, place = self._number(used, align)
        cell, sources = self._edges(topology, chosen, used, row_of_cell)
        self.mixes = self._bags(used, cell, sources, place)
        """For each row, the rows that it mixes."""

    def _number(self, used: Tensor, align: int) -> tuple[Tensor, Tensor | None]:
        """Numbers the rows.

        Args:
            used: The nodes that each sample uses, with shape ``[num_nodes, batch]``.
            align: As for the class.

        Returns:
            The row of each cell, with shape ``[num_nodes * batch]``, and the place of each row among the padded ones;
            None without padding.
        """
        device, place = used.device, None
        real = used.sum(dim=1)
        self.counts: list[int] = real.tolist()
        """The number of rows of each node without padding."""
        spans = [*multiples(self.counts[:-1], align), self.counts[-1]]
        self.first: list[int] = [0, *accumulate(spans)]
        """The first row of each node, then the number of rows."""
        self._spans = torch.tensor(spans, device=device)
        cells = used.flatten().nonzero().squeeze(1)
        self._samples = cells - torch.arange(len(used), device=device).repeat_interleave(real) * self._batch
        row_of_cell = used.flatten().cumsum(0) - 1
        if self.first[-1] > len(cells):
            copies, place = fill_up(self.counts, spans, device)
            row_of_cell = place[row_of_cell.clamp(min=0)]
            self._samples = self._samples[copies]
        return row_of_cell, place

    def _edges(self, topology: Topology, chosen: Tensor, used: Tensor, row_of_cell: Tensor) -> tuple[Tensor, Tensor]:
        """Lists the edges between rows, by reader.

        Args:
            topology: The graph.
            chosen: The boolean paths, with shape ``[T, batch, S]``.
            used: The nodes that each sample uses, with shape ``[num_nodes, batch]``.
            row_of_cell: The row of each cell.

        Returns:
            The cell that reads each edge, and the row that it reads, both with shape ``[edges]``.
        """
        _, batch, width = chosen.shape
        destinations = topology.on(chosen.device).destinations
        position = (chosen & used[destinations].unsqueeze(-1)).flatten().nonzero().squeeze(1)
        reading, slot = _divide(position, width)
        t, sample = _divide(reading, batch)
        cell = destinations[t] * batch + sample

        self.slots: Tensor = (sample * len(destinations) + t) * width + slot
        """The position of each edge in the flattened ``[batch, T, S]``."""
        self.readers: Tensor = row_of_cell[cell]
        """The row that reads each edge."""
        return cell, row_of_cell[topology.sources[t, slot] * batch + sample]

    def _bags(self, used: Tensor, cell: Tensor, sources: Tensor, place: Tensor | None) -> Bags:
        """Groups the edges by the row that reads them.

        Args:
            used: The nodes that each sample uses, with shape ``[num_nodes, batch]``.
            cell: The cell that reads each edge.
            sources: The row that each edge reads.
            place: The place of each row among the padded ones; None without padding.
        """
        sizes = torch.bincount(cell, minlength=used.numel()).reshape(used.shape)
        edges = sizes.sum(dim=1)
        offsets = (sizes.cumsum(dim=1) - sizes)[used]
        if place is not None:
            offsets = edges.repeat_interleave(self._spans).index_copy(0, place, offsets)
        return Bags(sources, offsets, [0, *accumulate(edges.tolist())], self.first)

    def samples(self, node: int) -> Tensor | None:
        """The samples of the rows of a node; None for all samples in order."""
        if self.counts[node] == self._batch == self.first[node + 1] - self.first[node]:
            return None
        return self._samples[self.first[node] : self.first[node + 1]]

    def samples_of(self, nodes: Span) -> Tensor:
        """The samples of the rows of neighbouring nodes."""
        return self._samples[self.first[nodes[0]] : self.first[nodes[1]]]

    @cached_property
    def by_source(self) -> tuple[Bags, Tensor]:
        """For each row the rows that read it, and the order of edges by source."""
        sources, order = self.mixes.members.sort(stable=True)
        sizes = torch.bincount(sources, minlength=self.first[-1])
        starts = sizes.cumsum(0) - sizes
        bounds = torch.searchsorted(sources, torch.tensor(self.first, device=sources.device)).tolist()
        shift = torch.tensor(bounds[:-1], device=sources.device).repeat_interleave(self._spans)
        return Bags(self.readers[order], starts - shift, bounds, self.first), order


CACHED_EDGES = 1_000_000
"""The largest number of edges of full paths whose rows are cached, which takes about 43 bytes for each."""


def rows_of(call: Pass, align: int = 1) -> Rows:
    """Returns the rows of a pass; the rows of full paths are cached, since they depend only on the batch size."""
    topology, path = call.plan.topology, call.read()
    edges = path.shape[0] * topology.num_edges
    if 0 < edges <= CACHED_EDGES and int(path.count_nonzero()) == edges:
        return _full_rows(topology, path.shape[0], align)
    return Rows(topology, path, align)


@lru_cache(maxsize=4)
def _full_rows(topology: Topology, batch: int, align: int) -> Rows:
    with torch.inference_mode(False):  # training uses the cached rows too
        return Rows(topology, topology.allowed.expand(batch, -1, -1), align)


def multiples(counts: Sequence[int], align: int) -> list[int]:
    """Rounds numbers up to multiples of `align`."""
    return [-(-count // align) * align for count in counts]


def fill_up(counts: Sequence[int], spans: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads groups of rows with copies of their last row, so that padding adds no new values such as NaN.

    Args:
        counts: The number of rows of each group.
        spans: The padded number of rows, at least as large, and 0 for empty groups.
        device: The device.

    Returns:
        For each new row the old row that it copies, and for each old row its new place.
    """
    old, new = torch.tensor(counts, device=device), torch.tensor(spans, device=device)
    shift = (new - old).cumsum(0) - (new - old)
    rows = torch.arange(sum(spans), device=device) - shift.repeat_interleave(new)
    last = (old.cumsum(0) - 1).repeat_interleave(new)
    return rows.minimum(last), torch.arange(sum(counts), device=device) + shift.repeat_interleave(old)


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
