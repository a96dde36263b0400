"""The graphs: their shape, what a path uses, how it is packed, and what is refused."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dynroute import TopK, Topology
from dynroute.functional import samplek_path


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    count = draw(st.integers(2, 9))
    parents: list[list[int]] = [[]]
    for i in range(1, count):
        least = 1 if i == count - 1 else 0
        parents.append(draw(st.lists(st.integers(0, i - 1), min_size=least, max_size=i, unique=True)))
    return Topology(parents)


@st.composite
def paths(draw: st.DrawFn) -> tuple[Topology, Tensor]:
    topology = draw(topologies())
    batch = draw(st.sampled_from([(), (0,), (1,), (5,), (2, 3)]))
    noise = torch.randn(*batch, *topology.path_shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return topology, samplek_path(
        torch.zeros_like(noise), draw(st.integers(1, 3)), allowed=topology.allowed, noise=noise
    )


def test_dag() -> None:
    topology = Topology.dag(17)
    assert (topology.num_nodes, topology.num_edges, topology.path_shape) == (17, 136, (16, 16))
    assert topology.destinations == tuple(range(1, 17))
    assert torch.equal(topology.allowed, torch.ones(16, 16).tril().bool())
    assert topology.pack(topology.allowed).shape == (17,)


def test_layered() -> None:
    topology = Topology.layered([2, 3])
    assert topology.parents == ((), (), (0, 1), (0, 1), (0, 1), (2, 3, 4))
    assert topology.destinations == (2, 3, 4, 5)
    assert topology.path_shape == (4, 3)
    assert topology.allowed.tolist() == [[True, True, False]] * 3 + [[True, True, True]]


def test_parallel() -> None:
    assert Topology.parallel(3) == Topology([[], [], [], [0, 1, 2]]) == Topology.layered([3])
    assert Topology.parallel(1).path_shape == (1, 1)


def test_destinations_are_rows_and_sources_are_columns() -> None:
    path = torch.zeros(3, 3, dtype=torch.bool)
    path[2, 1] = True  # the third destination, node 3, reads its second source, node 1
    assert Topology.dag(4).edges(path) == [(1, 3, 1.0)]


def test_slots_follow_the_order_of_the_parents() -> None:
    topology = Topology([[], [], [1, 0]])
    weights = torch.tensor([[0.25, 0.75]])
    assert topology.edges(torch.tensor([[True, True]]), weights) == [(1, 2, 0.25), (0, 2, 0.75)]
    assert topology.used(torch.tensor([[True, False]])).tolist() == [False, True, True]


def naive_used(topology: Topology, path: Tensor) -> list[bool]:
    used = {topology.num_nodes - 1}
    for node in reversed(range(topology.num_nodes)):
        if node in used:
            used |= {source for source, reader, _ in topology.edges(path) if reader == node}
    return [node in used for node in range(topology.num_nodes)]


def naive_depth(topology: Topology, path: Tensor, node: int | None = None) -> int:
    node = topology.num_nodes - 1 if node is None else node
    sources = [source for source, reader, _ in topology.edges(path) if reader == node]
    return 1 + max((naive_depth(topology, path, source) for source in sources), default=0)


@given(paths())
def test_used_and_depth(case: tuple[Topology, Tensor]) -> None:
    topology, path = case
    used, depth = topology.used(path), topology.depth(path)
    assert used.shape == (*path.shape[:-2], topology.num_nodes)
    assert depth.shape == path.shape[:-2]
    samples = path.reshape(-1, *topology.path_shape)
    for sample, mine, length in zip(
        samples, used.reshape(len(samples), topology.num_nodes), depth.reshape(-1), strict=True
    ):
        assert mine.tolist() == naive_used(topology, sample)
        assert int(length) == naive_depth(topology, sample)


@given(paths())
def test_unpack_restores_what_pack_packed(case: tuple[Topology, Tensor]) -> None:
    topology, path = case
    bits = topology.pack(path)
    assert bits.dtype == torch.uint8
    assert bits.shape == (*path.shape[:-2], -(-topology.num_edges // 8))
    assert torch.equal(topology.unpack(bits), path)


@given(paths())
def test_edges_and_slots_are_inverse(case: tuple[Topology, Tensor]) -> None:
    topology, path = case
    edges = topology.to_edges(path)
    assert edges.shape[-1] == topology.num_edges
    assert torch.equal(topology.from_edges(edges, fill=False), path)


@given(topologies())
def test_equality_hash_and_copies(topology: Topology) -> None:
    twin = Topology(topology.parents)
    assert twin == topology
    assert hash(twin) == hash(topology)
    assert pickle.loads(pickle.dumps(topology)) == topology
    assert copy.deepcopy(topology) == topology
    assert topology != Topology.dag(topology.num_nodes + 1)
    assert topology != topology.parents


def test_what_export_traces_is_not_kept() -> None:
    topology = Topology.dag(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(topology.on(torch.device("meta")).allowed, FakeTensor)
    assert type(topology.on(torch.device("meta")).allowed) is Tensor


def test_a_route_stands_for_its_path() -> None:
    topology = Topology.dag(4)
    route = TopK(2)(torch.randn(5, 3, 3), allowed=topology.allowed)
    for method in (topology.used, topology.depth, topology.pack):
        assert torch.equal(method(route), method(route.path))


def test_repr_tells_the_size() -> None:
    assert repr(Topology.dag(3)) == "Topology(num_nodes=3, num_edges=3, path_shape=(2, 2))"


def test_used_works_under_vmap() -> None:
    topology = Topology.dag(4)
    path = samplek_path(torch.zeros(6, 3, 3), 2, allowed=topology.allowed, noise=torch.randn(6, 3, 3))
    assert torch.equal(torch.func.vmap(topology.used)(path), topology.used(path))
    assert torch.equal(torch.func.vmap(topology.depth)(path), topology.depth(path))


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([], r"`parents` must end with an output node that reads others, got \[\]"),
        ([[]], r"`parents` must end with an output node that reads others"),
        ([[], [0], []], r"`parents` must end with an output node that reads others"),
        ([[], [1]], r"`parents\[1\]` must name nodes before node 1, got 1; number the nodes"),
        ([[1], [0]], r"`parents\[0\]` must name nodes before node 0, got 1"),
        ([[], [-1]], r"`parents\[1\]` must name nodes before node 1, got -1"),
        ([[], [0], [0, 0]], r"`parents\[2\]` must name each node once, got \[0, 0\]"),
    ],
)
def test_bad_parents_are_refused(parents: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology(parents)


@pytest.mark.parametrize("parents", [[[], [0.9]], [[], 0], [[], ["0"]]])
def test_parents_that_are_no_lists_of_nodes_are_refused(parents: list[object]) -> None:
    with pytest.raises(TypeError, match="`parents` must list the nodes that each node may read, got"):
        Topology(parents)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="`n` must be at least 2, got 1"):
        Topology.dag(1)
    with pytest.raises(ValueError, match="`sizes` must list at least one size"):
        Topology.layered([])
    with pytest.raises(ValueError, match=r"`sizes\[1\]` must be at least 1, got 0"):
        Topology.layered([2, 0])
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        Topology.parallel(0)
    with pytest.raises(TypeError, match=r"`n` must be an integer, got 2\.0"):
        Topology.dag(2.0)  # type: ignore[arg-type]


def test_bad_paths_are_refused() -> None:
    topology = Topology.dag(4)
    good = topology.allowed
    with pytest.raises(TypeError, match=r"`path` must be a boolean tensor, got torch.float32; compare it with 0"):
        topology.used(good.float())
    with pytest.raises(
        ValueError, match=r"`path` must have shape \(\*, 3, 3\), got \(2, 3\); was it recorded by another"
    ):
        topology.depth(good[:2])
    forbidden = good.clone()
    forbidden[0, 2] = True
    with pytest.raises(ValueError, match=r"row \(0,\) uses slot 2 while node 1 has 1 sources"):
        topology.pack(forbidden)
    with pytest.raises(ValueError, match=r"`path` must have shape \(3, 3\), for one sample, got \(1, 3, 3\)"):
        topology.edges(good[None])
    with pytest.raises(ValueError, match=r"`weights` must have shape \(3, 3\)"):
        topology.edges(good, torch.zeros(3))


def test_damaged_bits_are_refused() -> None:
    topology = Topology.dag(4)  # 6 edges
    bits = topology.pack(topology.allowed)
    with pytest.raises(TypeError, match=r"`bits` must be a uint8 tensor, got torch\.int64"):
        topology.unpack(bits.long())
    with pytest.raises(ValueError, match=r"`bits` must have shape \(\*, 1\) for 6 edges, got \(2,\)"):
        topology.unpack(torch.cat([bits, bits]))
    with pytest.raises(ValueError, match=r"`bits` must be 0 beyond 6 edges, row \(\) is not; is it damaged"):
        topology.unpack(bits | 128)


def test_from_edges_wants_a_value_for_each_edge() -> None:
    with pytest.raises(ValueError, match=r"`values` must have shape \(\*, 6\), got \(5,\)"):
        Topology.dag(4).from_edges(torch.zeros(5), fill=0.0)
