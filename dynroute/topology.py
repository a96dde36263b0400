"""Topologies: which earlier nodes each node of a routed graph may read."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_boolean, check_count, check_sizes, check_tensor, shown
from .checks import refuse_where, under_transform
from .route import Route, path_of

__all__ = ["Constants", "Topology", "check_topology"]

_CPU = torch.device("cpu")
_PART = 65_536  # packed paths that are unpacked at once


class Topology:
    r"""The possible edges of a routed graph, an immutable value.

    Nodes are numbered from 0 in topological order. A node without parents reads the input of the network; the last node
    is the output. The :math:`T` nodes that read others are the *destinations*; :math:`S` is the largest number of
    sources that any of them has, and slot ``[t, s]`` of a path is the edge from ``parents[destinations[t]][s]`` to
    ``destinations[t]``.

    Args:
        parents: ``parents[i]`` lists the nodes that node ``i`` may read, all of them before ``i``.

    Example:
        >>> topology = Topology([[], [0], [0, 1]])
        >>> topology == Topology.dag(3), topology.path_shape, topology.num_edges
        (True, (2, 2), 3)
    """

    def __init__(self, parents: Sequence[Sequence[int]]) -> None:
        self.parents: tuple[tuple[int, ...], ...] = _plain(parents)
        """The nodes that each node may read."""
        _check_parents(self.parents)

        self.destinations: tuple[int, ...] = tuple(i for i, row in enumerate(self.parents) if row)
        """The nodes that read other nodes, in node order."""
        self.num_nodes: int = len(self.parents)
        """The number of nodes, the output included."""
        self.num_edges: int = sum(len(row) for row in self.parents)
        """The number of possible edges."""
        self.path_shape: tuple[int, int] = (len(self.destinations), max(len(row) for row in self.parents))
        """The shape ``(T, S)`` of the path of one sample."""
        self._slots = "(*, {}, {})".format(*self.path_shape)  # the shape of a batch of paths, for error messages

        cpu = _constants(self.parents, self.path_shape)
        self.sources: Tensor = cpu.sources
        """The source of every slot, with shape ``[T, S]``; padding holds `num_nodes`."""
        self.allowed: Tensor = cpu.allowed
        """The slots that exist, boolean with shape ``[T, S]``."""
        self._constants = {_CPU: cpu}

    def on(self, device: torch.device) -> "Constants":
        """The tensors that describe the graph, on a device, to which they are copied once."""
        constants = self._constants.get(device)
        if constants is None:
            with torch.inference_mode(False):  # training uses them too
                constants = Constants(*(tensor.to(device) for tensor in self.on(_CPU)))
            if type(constants.allowed) is Tensor:  # fake tensors of an export are not kept
                self._constants[device] = constants
        return constants

    @staticmethod
    def dag(n: int) -> "Topology":
        """Module-level routing (Fig. 2d): each of n nodes may read every earlier one."""
        check_count("n", n, at_least=2)
        return Topology([range(i) for i in range(n)])

    @staticmethod
    def layered(sizes: Sequence[int]) -> "Topology":
        """Layer-level routing (Fig. 2c): nodes in layers read the layer before; the output node mixes the last one."""
        check_sizes("sizes", sizes)
        parents: list[range] = []
        previous = range(0)
        for size in (*sizes, 1):
            parents += [previous] * size
            previous = range(len(parents) - size, len(parents))
        return Topology(parents)

    @staticmethod
    def parallel(n: int) -> "Topology":
        """Model- and output-level routing (Fig. 2a, b): n nodes read the input, the output node mixes them."""
        check_count("n", n, at_least=1)
        return Topology.layered([n])

    def used(self, path: Tensor | Route) -> Tensor:
        """Finds the nodes that a route runs: those reachable backwards from the output.

        Args:
            path: A boolean path, with shape ``[*, T, S]``, or the route that holds it.

        Returns:
            A boolean tensor with shape ``[*, num_nodes]``.

        Example:
            >>> topology = Topology.dag(3)
            >>> topology.used(torch.tensor([[True, False], [True, False]]))
            tensor([ True, False,  True])
        """
        path = path_of(path)
        reads = self._adjacency(path)
        used = (torch.arange(self.num_nodes, device=path.device) == self.num_nodes - 1).expand(reads.shape[:-1])
        for node in reversed(self.destinations):
            used = used | (used[..., node, None] & reads[..., node, :])
        return used

    def depth(self, path: Tensor | Route) -> Tensor:
        """Counts the nodes on the longest chain of nodes that a route uses.

        Args:
            path: A boolean path, with shape ``[*, T, S]``, or the route that holds it.

        Returns:
            A long tensor with shape ``[*]``.

        Example:
            >>> Topology.dag(3).depth(torch.tensor([[True, False], [False, True]]))
            tensor(3)
        """
        reads = self._adjacency(path_of(path))
        chains = [reads.new_ones(reads.shape[:-2], dtype=torch.long)]
        for node in range(1, self.num_nodes):
            behind = torch.stack(chains, dim=-1) * reads[..., node, :node]
            chains.append(1 + behind.amax(dim=-1))
        return chains[-1]

    def pack(self, path: Tensor | Route) -> Tensor:
        """Packs a path into bits, one per edge, lowest bit first.

        Args:
            path: A boolean path, with shape ``[*, T, S]``, or the route that holds it.

        Returns:
            A uint8 tensor with shape ``[*, ceil(num_edges / 8)]``.

        Example:
            >>> topology = Topology.dag(3)
            >>> topology.pack(torch.tensor([[True, False], [False, True]]))
            tensor([5], dtype=torch.uint8)
        """
        path = path_of(path)
        self.check_path(path)
        edges = self.to_edges(path)
        room = edges.new_zeros((*edges.shape[:-1], -self.num_edges % 8))
        bits = torch.cat([edges, room], dim=-1).reshape(*edges.shape[:-1], -(-self.num_edges // 8), 8)
        places = torch.arange(8, dtype=torch.uint8, device=path.device)
        return (bits.to(torch.uint8) << places).sum(dim=-1, dtype=torch.uint8)

    def unpack(self, bits: Tensor) -> Tensor:
        """Restores the path that :meth:`pack` packed.

        Args:
            bits: A uint8 tensor, with shape ``[*, ceil(num_edges / 8)]``.

        Returns:
            A boolean path with shape ``[*, T, S]``.
        """
        check_tensor("bits", bits)
        if bits.dtype != torch.uint8:
            raise TypeError(f"`bits` must be a uint8 tensor, got {bits.dtype}.")
        if bits.shape[-1:] != (num_bytes := -(-self.num_edges // 8),):
            raise ValueError(
                f"`bits` must have shape (*, {num_bytes}) for {self.num_edges} edges, got {tuple(bits.shape)}; "
                "was it packed by another topology?"
            )
        edges = ((bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1).flatten(-2).bool()
        refuse_where(
            edges[..., self.num_edges :],
            lambda beyond: beyond,
            lambda index: f"`bits` must be 0 beyond {self.num_edges} edges, row {index[:-1]} is not; is it damaged?",
        )
        return self.from_edges(edges[..., : self.num_edges], fill=False)

    def lift(self, path: Tensor | Route, to: "Topology") -> Tensor:
        """Converts a path to a larger graph that :func:`dynroute.grow` made of this one.

        Nodes keep their numbers, except for the output, which stays last. A new node reads its first source, and no
        node of the path reads it. When replayed, the path computes the same as before.

        Args:
            path: A boolean path, with shape ``[*, T, S]``, or the route that holds it.
            to: The larger graph, which has all edges of this one.

        Returns:
            A boolean path of the larger graph.

        Example:
            >>> path = torch.tensor([[True, False], [True, True]])
            >>> Topology.dag(3).lift(path, Topology.dag(4))
            tensor([[ True, False, False],
                    [ True, False, False],
                    [ True,  True, False]])
        """
        path = path_of(path)
        self.check_path(path)
        places, others = self._places(to)
        edges = path.new_zeros((*path.shape[:-2], to.num_edges))
        edges[..., others] = True
        edges[..., places] = self.to_edges(path)
        return to.from_edges(edges, fill=False)

    def lift_packed(self, bits: Tensor, to: "Topology") -> Tensor:
        """Lifts packed paths as :meth:`lift` does, in parts, since there may be millions.

        Args:
            bits: Paths packed by :meth:`pack`, uint8 with shape ``[*, ceil(num_edges / 8)]``.
            to: The larger graph.

        Returns:
            The packed paths of the larger graph.

        Example:
            >>> small, large = Topology.dag(3), Topology.dag(4)
            >>> path = torch.tensor([[True, False], [True, True]])
            >>> torch.equal(large.unpack(small.lift_packed(small.pack(path), large)), small.lift(path, large))
            True
        """
        check_tensor("bits", bits)
        self._places(to)
        rows = bits.reshape(-1, bits.shape[-1]) if bits.dim() else bits
        parts = [to.pack(self.lift(self.unpack(part), to)) for part in torch.split(rows, _PART)]
        return torch.cat(parts).reshape(*bits.shape[:-1], -(-to.num_edges // 8))

    def edge_numbers(self) -> dict[tuple[int, int], int]:
        """Numbers the edges (source, destination) in the order of :meth:`to_edges`.

        Example:
            >>> Topology.dag(3).edge_numbers()
            {(0, 1): 0, (0, 2): 1, (1, 2): 2}
        """
        edges = [(source, node) for node, row in enumerate(self.parents) for source in row]
        return {edge: number for number, edge in enumerate(edges)}

    def _places(self, to: "Topology") -> tuple[list[int], list[int]]:
        """The numbers of the edges in a larger graph, and one edge for each of its new nodes."""
        if not isinstance(to, Topology):
            raise TypeError(f"`to` must be a Topology, got {shown(to)}; for instance the topology of a grown net.")
        numbers, last = to.edge_numbers(), self.num_nodes - 1
        kept = {node: node if node < last else to.num_nodes - 1 for node in range(self.num_nodes)}
        edges = [(kept[source], kept[node]) for source, node in self.edge_numbers()]
        inputs = {kept[node] for node, row in enumerate(self.parents) if not row}
        if to.num_nodes < self.num_nodes or not numbers.keys() >= set(edges) or inputs & set(to.destinations):
            raise ValueError(
                f"`to` must be this graph with more nodes before its output, got {to} for {self}; was it made by "
                "dynroute.grow?"
            )
        old = set(kept.values())
        return (
            [numbers[edge] for edge in edges],
            [numbers[to.parents[node][0], node] for node in to.destinations if node not in old],
        )

    def edges(self, path: Tensor | Route, weights: Tensor | None = None) -> list[tuple[int, int, float]]:
        """Lists the edges of one sample's path, for people and plots.

        Args:
            path: The boolean path of one sample, with shape ``[T, S]``, or the route that holds it.
            weights: The weights of that sample, with the same shape; default: 1.0 for every edge.

        Returns:
            ``(source, destination, weight)`` of every chosen edge, ordered by destination, then by slot.

        Example:
            >>> Topology.dag(3).edges(torch.tensor([[True, False], [False, True]]))
            [(0, 1, 1.0), (1, 2, 1.0)]
        """
        path = path_of(path)
        for name, tensor in (("path", path), ("weights", path if weights is None else weights)):
            check_tensor(name, tensor)
            if tensor.shape != self.path_shape:
                raise ValueError(
                    f"`{name}` must have shape {self.path_shape}, for one sample, got {tuple(tensor.shape)}; "
                    "index the batch first."
                )
        if weights is not None and weights.is_complex():
            raise TypeError(f"`weights` must hold real numbers, got {weights.dtype}.")
        self.check_path(path)
        values = path if weights is None else weights.detach()
        return [
            (self.parents[node][s], node, float(values[t, s]))
            for t, node in enumerate(self.destinations)
            for s in range(len(self.parents[node]))
            if path[t, s]
        ]

    def to_edges(self, values: Tensor) -> Tensor:
        """Removes the padding: ``[*, T, S]`` becomes ``[*, num_edges]``."""
        check_tensor("values", values)
        if values.shape[-2:] != self.path_shape:
            raise ValueError(f"`values` must have shape {self._slots}, got {tuple(values.shape)}.")
        return values.flatten(-2).index_select(-1, self.on(values.device).edge_index)

    def from_edges(self, values: Tensor, *, fill: float) -> Tensor:
        """Adds the padding: ``[*, num_edges]`` becomes ``[*, T, S]`` with `fill` in slots without an edge."""
        check_tensor("values", values)
        if not isinstance(fill, (int, float)):
            raise TypeError(f"`fill` must be a number, got {shown(fill)}.")
        if values.shape[-1:] != (self.num_edges,):
            raise ValueError(f"`values` must have shape (*, {self.num_edges}), got {tuple(values.shape)}.")
        slots = values.new_full((*values.shape[:-1], self.path_shape[0] * self.path_shape[1]), fill)
        index = self.on(values.device).edge_index
        if under_transform() or torch.compiler.is_compiling():  # `values` may have a hidden dimension
            slots = slots.index_copy(-1, index, values)
        else:
            slots.index_copy_(-1, index, values)
        return slots.reshape(*values.shape[:-1], *self.path_shape)

    def check_shape(self, name: str, tensor: Tensor) -> None:
        """Raises an error unless a tensor has shape ``[*, T, S]``."""
        if tensor.shape[-2:] != self.path_shape:
            raise ValueError(
                f"`{name}` must have shape {self._slots}, got {tuple(tensor.shape)}; was it made by another topology?"
            )

    def check_path(self, path: Tensor | Route) -> None:
        """Raises an error unless `path` is a boolean path of this topology that uses no forbidden edge, or a route."""
        path = path_of(path)
        check_boolean("path", path)
        if path.shape[-2:] != self.path_shape:
            raise ValueError(
                f"`path` must have shape {self._slots}, got {tuple(path.shape)}; was it recorded by another topology?"
            )
        refuse_where(
            path,
            lambda path: path & ~self.on(path.device).allowed,
            lambda index: (
                f"`path` must only use edges of the topology, but row {index[:-1]} uses slot {index[-1]} while node "
                f"{self.destinations[index[-2]]} has {len(self.parents[self.destinations[index[-2]]])} sources; "
                "was it recorded by another topology?"
            ),
        )

    def _adjacency(self, path: Tensor) -> Tensor:
        """The path between nodes, with shape [*, num_nodes, num_nodes]."""
        self.check_path(path)
        n = self.num_nodes
        columns = self.on(path.device).sources.expand(path.shape)
        rows = path.new_zeros((*path.shape[:-1], n + 1)).scatter(-1, columns, path)[..., :n]
        return path.new_zeros((*path.shape[:-2], n, n)).index_copy(-2, self.on(path.device).destinations, rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and self.parents == other.parents

    def __hash__(self) -> int:
        return hash(self.parents)

    def __reduce__(self) -> tuple[type["Topology"], tuple[tuple[tuple[int, ...], ...]]]:
        return Topology, (self.parents,)

    def __repr__(self) -> str:
        return f"Topology(num_nodes={self.num_nodes}, num_edges={self.num_edges}, path_shape={self.path_shape})"


def check_topology(topology: Topology) -> None:
    """Raises an error unless a value is a topology."""
    if not isinstance(topology, Topology):
        raise TypeError(f"`topology` must be a Topology, got {shown(topology)}; `net.topology` is one.")


class Constants(NamedTuple):
    """The tensors that describe a graph."""

    sources: Tensor
    allowed: Tensor
    edge_index: Tensor
    destinations: Tensor


def _constants(parents: tuple[tuple[int, ...], ...], path_shape: tuple[int, int]) -> Constants:
    rows = [row for row in parents if row]
    slots = [[*row, *[len(parents)] * (path_shape[1] - len(row))] for row in rows]
    allowed = [[s < len(row) for s in range(path_shape[1])] for row in rows]
    edges = [t * path_shape[1] + s for t, row in enumerate(rows) for s in range(len(row))]
    destinations = [i for i, row in enumerate(parents) if row]
    with torch.inference_mode(False):
        return Constants(*(torch.tensor(values, device="cpu") for values in (slots, allowed, edges, destinations)))


def _plain(parents: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(operator.index(j) for j in row) for row in parents)
    except TypeError as error:
        raise TypeError(
            f"`parents` must list the nodes that each node may read, got {shown(parents)}; "
            "for instance [[], [0], [0, 1]]."
        ) from error


def _check_parents(parents: tuple[tuple[int, ...], ...]) -> None:
    if len(parents) < 2 or not parents[-1]:
        raise ValueError(
            f"`parents` must end with an output node that reads others, got {[list(row) for row in parents]}; "
            "for instance Topology.dag(3)."
        )
    for i, row in enumerate(parents):
        for j in row:
            if not 0 <= j < i:
                raise ValueError(
                    f"`parents[{i}]` must name nodes before node {i}, got {j}; "
                    "number the nodes so that each comes after those it reads."
                )
        if len(set(row)) < len(row):
            raise ValueError(f"`parents[{i}]` must name each node once, got {list(row)}.")
