"""Keywords of levels and networks reach their graph, where oracles of other tests read them."""

from collections.abc import Callable

import pytest
from small_networks import SMALL, small
from torch import nn

import dynroute
from dynroute import (
    BalancedTopK,
    Gate,
    Hard,
    LayerRouting,
    LinearRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    SampleK,
    Soft,
    TopK,
    Topology,
)
from dynroute.levels.graph import PROTECT_MODES

BACKENDS = ("reference", "sparse", "fused", "auto")


def linear(count: int) -> list[nn.Module]:
    return [nn.Linear(4, 4) for _ in range(count)]


LEVELS: dict[str, Callable[..., RoutedGraph]] = {
    "module": lambda gate, **k: ModuleRouting(linear(3), gate, LinearRouter(4, Topology.dag(3)), **k),
    "module mlp": lambda gate, **k: ModuleRouting.mlp(4, 4, 3, 2, gate=gate, **k),
    "layer": lambda gate, **k: LayerRouting(
        [linear(2), linear(2)], gate, LinearRouter(4, Topology.layered([2, 2])), head=nn.Linear(4, 2), **k
    ),
    "layer mlp": lambda gate, **k: LayerRouting.mlp(4, 4, [2, 2], 2, gate=gate, **k),
    "model": lambda gate, **k: ModelRouting(linear(3), gate, LinearRouter(4, Topology.parallel(3)), **k),
    "model mlp": lambda gate, **k: ModelRouting.mlp(4, 4, 3, 2, gate=gate, **k),
    "ffn": lambda gate, **k: ModelRouting.ffn(4, 8, 3, gate, **k),
    "upcycle": lambda gate, **k: dynroute.upcycle(nn.Linear(4, 4), 3, gate, **k),
}
HAVE_SHORTCUTS = ("module", "module mlp", "layer", "layer mlp")


@pytest.mark.parametrize("protect", PROTECT_MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_keywords_of_levels_arrive(level: str, protect: str) -> None:
    gate = TopK(2)
    for backend in BACKENDS:
        graph = LEVELS[level](gate, protect=protect, backend=backend)
        assert (graph.gate, graph.protect, graph.backend) == (gate, protect, backend)
    for shortcut in (True, False) if level in HAVE_SHORTCUTS else ():
        assert LEVELS[level](gate, protect=protect, shortcut=shortcut).shortcut is shortcut


@pytest.mark.parametrize("level", LEVELS)
def test_defaults_of_levels(level: str) -> None:
    graph = LEVELS[level](Soft())
    protect = "rsg" if level.startswith("module") else "none"
    assert (graph.protect, graph.shortcut, graph.backend) == (protect, level.startswith("module"), "auto")


@pytest.mark.parametrize("backend", BACKENDS)
def test_keywords_of_output_level_arrive(backend: str) -> None:
    assert OutputRouting(linear(2), backend=backend).backend == backend
    assert OutputRouting.mlp(4, 4, 3, 2, backend=backend).backend == backend


# Network: its gate, its protection and its shortcut by default.
NETWORKS: dict[str, tuple[type[Gate], str, bool]] = {
    "moe": (Soft, "none", False),
    "sm": (Soft, "none", False),
    "sm-shallow": (Soft, "none", False),
    "care": (Soft, "none", False),
    "d2r": (SampleK, "rsg", True),
    "d2r-released": (SampleK, "input", True),
    "d2r-layer": (SampleK, "rsg", True),
    "d2r-model": (SampleK, "rsg", False),
    "scalemoe-feature": (TopK, "none", False),
    "scalemoe-output": (TopK, "none", False),
}


def graph_of(name: str, **keywords: object) -> RoutedGraph:
    graph = small(name, **keywords).routed
    assert graph is not None
    return graph


@pytest.mark.parametrize("name", NETWORKS)
def test_keywords_of_networks_arrive(name: str) -> None:
    kinds = {"soft": Soft, "hard": Hard, "top-2": TopK, "sample-2": SampleK, "balanced-2": BalancedTopK}
    for words, kind in kinds.items():
        assert type(graph_of(name, gate=words).gate) is kind
    for protect in PROTECT_MODES:
        assert graph_of(name, protect=protect).protect == protect
    for backend in BACKENDS:
        assert graph_of(name, backend=backend).backend == backend
    for shortcut in (True, False) if NETWORKS[name][2] else ():
        assert graph_of(name, shortcut=shortcut).shortcut is shortcut


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_of_networks(name: str) -> None:
    graph = graph_of(name)
    assert (type(graph.gate), graph.protect, graph.shortcut) == NETWORKS[name]


def test_every_routed_network_is_in_these_tables() -> None:
    assert {name for name in SMALL if small(name).routed is not None} == {*NETWORKS, "hard"}
    for backend in BACKENDS:
        assert graph_of("hard", backend=backend).backend == backend
