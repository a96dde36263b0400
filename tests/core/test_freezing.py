"""Frozen modules do not learn, whatever runs them; routers do, and all learn again when it is undone."""

import pytest
import torch
from torch import nn

from dynroute import ModelRouting, ModuleRouting, OutputRouting, SampleK, TopK, freeze_modules, grow
from dynroute.networks import DynamicDepthRouting, build


def learn(net: nn.Module, *inputs: torch.Tensor) -> set[str]:
    """The parameters that one step of an optimizer moves."""
    before = {name: value.clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net(*inputs).square().sum().backward()
    optimizer.step()
    return {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("backend", ["auto", "reference", "sparse", "fused"])
@pytest.mark.parametrize("protect", ["rsg", "input", "sg", "none"])
def test_routers_alone_learn(protect: str, backend: str) -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2, gate=SampleK(2), router_sizes=(6,), protect=protect, backend=backend)
    freeze_modules(net)
    assert {name.split(".")[0] for name in learn(net, torch.randn(64, 5))} == {"router"}
    net.zero_grad()
    freeze_modules(net).undo()
    assert not net.nodes[0][0].weight.requires_grad  # that is for what froze it to undo


@pytest.mark.parametrize("level", ["module", "model"])
def test_heads_and_what_is_outside_of_the_graph_may_learn(level: str) -> None:
    net = DynamicDepthRouting(5, 3, 2, level=level, width=8, trunk_sizes=(6,), router_sizes=(6,))
    frozen = freeze_modules(net, heads=True)
    moved = learn(net, torch.randn(64, 5), torch.arange(64) % 3)
    last = len(net.graph.nodes) - 1
    assert {name for name in moved if name.startswith("graph.nodes")} == {
        f"graph.nodes.{last}.weight",
        f"graph.nodes.{last}.bias",
    }
    assert {name.split(".")[0] for name in moved} == {"trunk", "task", "graph"}
    frozen.undo()
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_what_was_frozen_before_stays_so() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    net.nodes[0].requires_grad_(False)
    with freeze_modules(net) as frozen:
        assert "nodes.0.0.weight" not in frozen.parameters
        assert not net.nodes[1][0].weight.requires_grad
    assert [name for name, one in net.named_parameters() if not one.requires_grad] == [
        "nodes.0.0.weight",
        "nodes.0.0.bias",
    ]


def test_graphs_inside_modules_keep_their_routers() -> None:
    inner = ModelRouting.mlp(5, 4, 2, 2, gate=TopK(2))
    net = ModelRouting([inner, nn.Linear(5, 2)], TopK(2), ModelRouting.mlp(5, 4, 2, 2).router)
    freeze_modules(net)
    learning = {name for name, one in net.named_parameters() if one.requires_grad}
    assert learning == {name for name, _ in net.named_parameters() if "router" in name}


def test_shared_networks_are_frozen_too() -> None:
    net = ModelRouting.ffn(5, 8, 4, shared=2)
    freeze_modules(net)
    assert {name.split(".")[0] for name in learn(net, torch.randn(64, 5))} == {"router"}


def test_the_heads_of_tasks_may_learn_over_a_frozen_mixture() -> None:
    net = nn.ModuleList([ModelRouting.mlp(5, 8, 4, 6), OutputRouting.mlp(6, 8, 3, 2)])
    freeze_modules(net, heads=True)
    assert all(parameter.requires_grad for parameter in net[1].parameters())
    assert not any(parameter.requires_grad for parameter in net[0].nodes.parameters())


def test_a_frozen_net_grows_by_modules_that_learn() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    freeze_modules(net)
    grow(net, 1)
    assert [name for name, one in net.nodes.named_parameters() if one.requires_grad] == ["4.0.weight", "4.0.bias"]


def test_messages() -> None:
    with pytest.raises(TypeError, match=r"^`net` must be a routed graph or a model that contains some, got 7\."):
        freeze_modules(7)
    with pytest.raises(ValueError, match=r"^`net` must contain a routed graph, a Linear has none\."):
        freeze_modules(nn.Linear(2, 2))
    for name, why in (("care", "a CARE has none beside heads;"), ("mh-sac", "a MultiHead has none beside heads;")):
        with pytest.raises(ValueError, match=f"^`net` must route between modules with parameters to freeze, {why}"):
            freeze_modules(build(name, 5, 3, 2), heads=True)
    with pytest.raises(ValueError, match=r"a CARE has none; `requires_grad_\(False\)` freezes other parts\.$"):
        freeze_modules(build("care", 5, 3, 2))
    with pytest.raises(TypeError, match=r"^`heads` must be True or False, got 1\."):
        freeze_modules(ModuleRouting.mlp(5, 8, 4, 2), heads=1)
