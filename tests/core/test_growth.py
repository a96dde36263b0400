"""Nets that grow and shrink: evaluation stays as it was, and optimizers, state dicts and recorded paths go on."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dynroute
from dynroute import (
    BalancedTopK,
    CascadeRouter,
    ExpertChoice,
    Gate,
    Hard,
    LayerRouting,
    LinearBank,
    LinearRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    Resized,
    RoutedGraph,
    SampleK,
    Soft,
    TableRouter,
    TopK,
    Topology,
    TopP,
    extract,
    grow,
    open_nodes,
    prune,
)
from dynroute.banks import are_adjacent
from dynroute.growth import find_graph
from dynroute.inspect import summarize
from dynroute.networks import DynamicDepthRouting, MixtureOfExperts, ScaleMoE, build
from dynroute.routers import EdgeParameter
from dynroute.testing import assert_routed

GATES: dict[str, Callable[[], Gate]] = {
    "soft": Soft,
    "hard": Hard,
    "topk": lambda: TopK(2),
    "topk-3": lambda: TopK(3),
    "samplek": lambda: SampleK(2),
    "top-p": lambda: TopP(0.7),
    "balanced": lambda: BalancedTopK(2, rate=0.1),
}
PROTECT = ["rsg", "input", "sg", "none"]
BACKENDS = ["auto", "reference", "sparse", "fused"]


def module_level(gate: Gate, protect: str = "rsg", *, modules: int = 5, shortcut: bool = True) -> RoutedGraph:
    return ModuleRouting.mlp(5, 8, modules, 3, 4, gate, router_sizes=(6,), protect=protect, shortcut=shortcut)


def model_level(gate: Gate, protect: str = "none") -> RoutedGraph:
    return ModelRouting.mlp(5, 8, 3, 3, 4, gate, router_sizes=(6,), protect=protect)


LEVELS: dict[str, Callable[..., RoutedGraph]] = {"module": module_level, "model": model_level}


def inputs(net: nn.Module, count: int = 33) -> tuple[Tensor, Tensor]:
    dtype = next(net.parameters()).dtype
    return torch.randn(count, 5, dtype=dtype), torch.randn(count, 4, dtype=dtype)


def test_copies_of_modules_that_nothing_draws_anew_are_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    net = ModuleRouting([nn.Linear(5, 8), nn.Sequential(Own()), nn.Linear(8, 2)], Soft())
    with pytest.raises(
        TypeError, match=r"^`net\.nodes\[-2\]\.0` must have a method `reset_parameters` .*\(weight\), but"
    ):
        grow(net, 2)
    assert len(net.nodes) == 3


def test_parts_of_a_module_that_draws_its_own_parameters_alone_are_drawn_anew() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

        def reset_parameters(self) -> None:
            nn.init.normal_(self.scale)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.scale

    net = ModuleRouting([nn.Linear(5, 8), Block(), nn.Linear(8, 2)], Soft())
    grow(net, 1)
    pattern, new = net.nodes[1], net.nodes[2]
    for (name, parameter), drawn in zip(pattern.named_parameters(), new.parameters(), strict=True):
        assert not torch.equal(parameter, drawn), name


# Evaluation protects nothing; which edges are protected while a net learns is asked of grown graphs below.
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gate", GATES)
def test_growth_leaves_evaluation_as_it_is(gate: str, level: str, device: torch.device, dtype: torch.dtype) -> None:
    for backend in BACKENDS:
        net = LEVELS[level](GATES[gate](), "rsg").to(device, dtype).eval()
        net.backend = backend
        x, context = (tensor.to(device) for tensor in inputs(net))
        with torch.no_grad():
            net.router.layers[-1].bias.mul_(8)  # routes that differ much, also in what they leave out
            before = net(x, context)
            grown = grow(net, 2)
            after = net(x, context)
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
        assert net.topology == grown.after == type(net.topology)(net.router.topology.parents)
        assert net.topology.num_nodes == grown.before.num_nodes + 2
        assert grown.added == tuple(range(grown.before.num_nodes - 1, grown.before.num_nodes + 1))
        assert_routed(net, x, context, tolerance=1e-4)


@given(
    level=st.sampled_from(sorted(LEVELS)),
    gate=st.sampled_from(sorted(GATES)),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    spread=st.floats(0.1, 300.0),
    seed=st.integers(0, 99),
)
def test_growth_in_steps_whatever_the_logits(
    level: str, gate: str, counts: list[int], spread: float, seed: int
) -> None:
    torch.manual_seed(seed)
    net = LEVELS[level](GATES[gate]()).double().eval()
    x, context = inputs(net)
    with torch.no_grad():
        net.router.layers[-1].weight.mul_(spread)
        before = net(x, context)
        for count in counts:
            grow(net, count)
        torch.testing.assert_close(net(x, context), before, atol=1e-6, rtol=1e-6)


@given(
    gate=st.sampled_from(sorted(GATES)),
    protect=st.sampled_from(PROTECT),
    level=st.sampled_from(sorted(LEVELS)),
    backend=st.sampled_from(BACKENDS),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_recorded_paths_replay_after_growth(
    gate: str, protect: str, level: str, backend: str, training: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    net = LEVELS[level](GATES[gate](), protect).train(training)
    net.backend = backend
    x, context = inputs(net)
    before, route = net(x, context, sample=True, return_route=True)
    bits = net.topology.pack(route.path)
    grown = grow(net, 3)
    path = grown.before.lift(route.path, to=grown.after)
    after, replayed = net(x, context, path=path, return_route=True)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    used = grown.after.used(path)
    assert not used[:, list(grown.added)].any()
    kept = [node for node in range(grown.after.num_nodes) if node not in grown.added]
    assert torch.equal(used[:, kept], grown.before.used(route.path))
    assert torch.equal(grown.before.lift_packed(bits, to=grown.after), grown.after.pack(path))
    assert torch.equal(replayed.path, path)


def test_packed_paths_are_lifted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = Topology.dag(5), Topology.dag(7)
    bits = small.pack(torch.rand(3, 7, 4, 4) * small.allowed > 0.5)
    whole = small.lift_packed(bits, large)
    monkeypatch.setattr(dynroute.topology, "_PART", 4)
    assert whole.shape == (3, 7, 3)
    assert torch.equal(small.lift_packed(bits, large), whole)


@pytest.mark.parametrize("level", ["module", "model"])
def test_a_grown_network_has_the_state_dict_of_its_size(level: str) -> None:
    sizes = {"width": 8, "trunk_sizes": (6,), "router_sizes": (6,)}
    count = {"module": "num_modules", "model": "num_models"}[level]
    net = DynamicDepthRouting(5, 3, 2, level=level, **{count: 4}, **sizes).eval()
    state, task = torch.randn(9, 5), torch.arange(9) % 3
    before = net(state, task)
    grown = grow(net, 2)
    torch.testing.assert_close(net(state, task), before, atol=1e-6, rtol=1e-6)
    twin = DynamicDepthRouting(5, 3, 2, level=level, **{count: grown.num_modules}, **sizes).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(state, task), net(state, task))
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert net.describe() == twin.describe()
    assert torch.equal(copy.deepcopy(net)(state, task), net(state, task))


def test_a_mixture_of_experts_grows() -> None:
    net = MixtureOfExperts(5, 3, 2, num_experts=2, width=4, depth=1, router_sizes=(4,)).eval()
    state, task = torch.randn(9, 5), torch.arange(9) % 3
    before = net(state, task)
    grow(net, 1)
    torch.testing.assert_close(net(state, task), before, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("first", ["actor", "growth"])
def test_experts_that_are_new_merge_deviations_as_the_others_do(first: str) -> None:
    net = ScaleMoE(6, 4, 8, level="output", num_experts=4, width=16).eval()
    for step in (net.become_actor, lambda: grow(net, 1))[:: 1 if first == "actor" else -1]:
        step()
    state, task = torch.randn(9, 6), torch.arange(9) % 4
    outputs = torch.stack([node(net.encoder(state, torch.eye(4)[task])) for node in list(net.experts.nodes)[:-1]])
    assert outputs.shape == (5, 9, 8)
    assert (outputs[..., 4:] > 0).all()  # deviations, not their logarithms


def test_routing_by_a_table_grows() -> None:
    modules = [nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)]
    net = ModuleRouting(modules, TopK(2), TableRouter(3, Topology.dag(4))).eval()
    x, task = torch.randn(9, 5), torch.arange(9) % 3
    before = net(x, task)
    grow(net, [nn.Linear(8, 8)])
    torch.testing.assert_close(net(x, task), before, atol=1e-6, rtol=1e-6)
    assert net.router.table.shape == (3, 10)


def test_the_smallest_net_keeps_its_shortcuts() -> None:
    net = ModuleRouting([nn.Linear(5, 8), nn.Linear(8, 2)], Soft(), LinearRouter(5, Topology.dag(2)))
    grow(net, [nn.Linear(8, 8)])
    assert net.shortcut


def test_models_that_lie_side_by_side_stay_so() -> None:
    net = ModelRouting(LinearBank(3, 5, 2), Soft(), LinearRouter(5, Topology.parallel(3)))
    kept = next(iter(net.parameters()))
    grow(net, 2)
    assert are_adjacent(list(net.nodes)[:-1])
    assert next(iter(net.parameters())) is kept
    assert are_adjacent(list(copy.deepcopy(net).nodes)[:-1])
    assert net.nodes[3].weight.untyped_storage().nbytes() == 5 * 2 * 5 * 4
    prune(net, torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    assert are_adjacent(list(net.nodes)[:-1])
    grow(net, [nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))])
    assert net(torch.randn(3, 5)).shape == (3, 2)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "fused adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
}


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, context: Tensor) -> None:
    optimizer.zero_grad()
    net(x, context, sample=False).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on(name: str, level: str) -> None:
    net = LEVELS[level](TopK(2))
    optimizer = OPTIMIZERS[name](net.parameters())
    x, context = inputs(net)
    for _ in range(3):
        learn(net, optimizer, x, context)
    twin = copy.deepcopy(net)
    other = OPTIMIZERS[name](twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    grown = grow(net, 2)
    grown.carry(optimizer)
    fresh = OPTIMIZERS[name](net.parameters())
    assert [id(one) for one in optimizer.param_groups[0]["params"]] == [
        id(one) for one in fresh.param_groups[0]["params"]
    ]
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.state.keys() <= set(net.parameters())
    for _ in range(3):  # as if nothing had happened
        learn(net, optimizer, x, context)
        learn(twin, other, x, context)
    torch.testing.assert_close(net.eval()(x, context), twin.eval()(x, context), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_names_of_parameters_go_on(level: str) -> None:
    net = nn.ModuleDict({"first": nn.Linear(2, 2), "net": LEVELS[level](TopK(2))})
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.param_groups[0]["param_names"] = [name for name, _ in net.named_parameters()]  # as torch 2.6 keeps them
    grown = grow(net, 2)
    grown.carry(optimizer)

    def check() -> None:
        (group,) = optimizer.param_groups
        assert group["param_names"] == [name for name, _ in net.named_parameters()]
        assert [id(one) for one in group["params"]] == [id(one) for one in net.parameters()]

    check()
    usage = torch.ones(net["net"].topology.num_nodes)
    usage[list(grown.added)[:1]] = 0.0
    prune(net, usage).carry(optimizer)
    check()

    net = LEVELS[level](TopK(2))
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.param_groups[0]["param_names"] = [f"my {i}" for i, _ in enumerate(net.parameters())]
    grown = grow(net, 1)
    grown.carry(optimizer)
    (group,) = optimizer.param_groups
    fresh = [f"nodes.{grown.added[0]}.{name}" for name, _ in net.nodes[grown.added[0]].named_parameters()]
    assert sorted(set(group["param_names"]) - {f"my {i}" for i in range(99)}) == sorted(fresh)
    assert [name for name in group["param_names"] if name not in fresh] == [
        f"my {i}" for i in range(len(group["params"]) - len(fresh))
    ]


def test_moments_of_new_edges_are_those_of_what_they_were_made_of() -> None:
    net = module_level(TopK(2), modules=3)
    optimizer = torch.optim.Adam(net.parameters())
    learn(net, optimizer, *inputs(net))
    bias = net.router.layers[-1].bias
    moments = {name: value.clone() for name, value in optimizer.state[bias].items()}
    grow(net, 1).carry(optimizer)
    state = optimizer.state[net.router.layers[-1].bias]
    numbers = Topology.dag(5).edge_numbers()
    kept = [numbers[edge] for edge in [(0, 1), (0, 2), (1, 2), (0, 4), (1, 4), (2, 4)]]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[name][kept], moments[name])
        torch.testing.assert_close(state[name][numbers[3, 4]], moments[name][3:].mean())
        assert torch.equal(state[name][[numbers[0, 3], numbers[1, 3], numbers[2, 3]]], moments[name][3:])
    assert state["step"] == moments["step"]


def test_state_that_does_not_fit_its_parameter_is_forgotten() -> None:
    net = module_level(TopK(2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    weight = net.router.layers[-1].weight
    optimizer.state[weight] = {"rows": torch.zeros(3)}
    grow(net, 1).carry(optimizer)
    assert not optimizer.state


def test_parameters_of_others_and_groups_stay_in_their_place() -> None:
    net, other = module_level(TopK(2), modules=3), nn.Linear(2, 2)
    nodes, router = list(net.nodes.parameters()), list(net.router.parameters())
    optimizer = torch.optim.Adam([{"params": [*nodes, *other.parameters()]}, {"params": router, "lr": 1.0}])
    grow(net, 1).carry(optimizer)
    first, second = (group["params"] for group in optimizer.param_groups)
    expected = [*net.nodes.parameters(), *other.parameters()]
    assert [id(one) for one in first] == [id(one) for one in expected]
    assert [id(one) for one in second] == [id(one) for one in net.router.parameters()]

    net = module_level(TopK(2), modules=3)
    routers = torch.optim.Adam(net.router.parameters())
    grow(net, 1).carry(routers)
    fresh = list(net.nodes[3].parameters())
    assert {id(one) for one in routers.param_groups[0]["params"]} >= {id(one) for one in fresh}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("split", ["nodes and router", "trunk and head", "all and all", "head and router"])
def test_one_of_several_optimizers_takes_new_modules(split: str, reverse: bool) -> None:
    net = module_level(TopK(2), modules=3)
    parts: dict[str, tuple[list[tuple[str, nn.Parameter]], ...]] = {
        name: tuple(
            [(label, one) for label, one in net.named_parameters() if label.startswith(prefixes)] for prefixes in halves
        )
        for name, halves in {
            "nodes and router": (("nodes",), ("router",)),
            "trunk and head": (("nodes.0", "nodes.1", "nodes.2"), ("nodes.3", "router")),
            "all and all": (("",), ("",)),
            "head and router": (("nodes.3",), ("router",)),
        }.items()
    }
    optimizers = [torch.optim.SGD(part, lr=0.1) for part in parts[split]]
    grown = grow(net, 2)
    for optimizer in optimizers[::-1] if reverse else optimizers:
        grown.carry(optimizer)
    names = [name for name, _ in net.named_parameters()]
    fresh = {name for name in names if name.startswith(("nodes.3", "nodes.4"))}
    held = [optimizer.param_groups[0]["param_names"] for optimizer in optimizers]
    for optimizer in optimizers:
        (group,) = optimizer.param_groups
        parameters = dict(net.named_parameters())
        assert [id(one) for one in group["params"]] == [id(parameters[name]) for name in group["param_names"]]
    assert set(held[0]) >= fresh
    assert fresh <= set(held[1]) if split == "all and all" else not fresh & set(held[1])


def test_new_nodes_learn_beside_frozen_ones() -> None:
    net = module_level(TopK(2)).requires_grad_(False)
    grow(net, 1)
    assert [name for name, one in net.named_parameters() if one.requires_grad] == ["nodes.5.0.weight", "nodes.5.0.bias"]


@pytest.mark.parametrize("training", [False, True])
def test_new_nodes_take_the_mode_of_the_net(training: bool) -> None:
    net, new = module_level(TopK(2)).train(training), nn.Sequential(nn.Linear(8, 8), nn.Dropout()).train(not training)
    grow(net, [new])
    assert all(part.training == training for part in new.modules())


def test_sampling_reaches_new_nodes_once_they_are_open_and_evaluation_does_not() -> None:
    net = module_level(SampleK(2), modules=8).eval()
    x, context = inputs(net, 2000)
    before = net(x, context)
    (node,) = grow(net, 1).added

    def share(sample: bool) -> float:
        return float(net.route(context, sample=sample).path[:, -1, node].float().mean())

    assert share(True) == share(False) == 0
    open_nodes(net, [node], by=18.0)
    assert 0.005 < share(True) < 0.2
    assert share(False) == 0
    torch.testing.assert_close(net(x, context), before, atol=1e-6, rtol=1e-6)
    open_nodes(net, [node], by=2.0)
    logits = net.route(context).logits[:, -1]
    torch.testing.assert_close(logits[:, node], logits[:, :node].mean(dim=-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("closed", [-torch.inf, -1e9, -1e4])
def test_sources_that_are_closed_do_not_close_new_nodes(closed: float) -> None:
    net = ModuleRouting.mlp(5, 8, 4, 3, 4, Soft(), router_sizes=()).eval()
    x, context = inputs(net)
    row = net.topology.edge_numbers()[1, 4]
    with torch.no_grad():
        net.router.layers[-1].bias[row] = closed
    optimizer = torch.optim.SGD(net.router.parameters(), lr=0.1)
    optimizer.state[net.router.layers[-1].bias] = {"buffer": torch.arange(10.0)}
    before = net(x, context)
    grown = grow(net, 2)
    grown.carry(optimizer)
    torch.testing.assert_close(net(x, context), before, atol=1e-6, rtol=1e-6)
    open_nodes(net, grown.added, by=dynroute.growth.CLOSED)
    logits = net.route(context).logits
    opened = logits[:, -1, [0, 2, 3]].mean(dim=-1)
    for node in grown.added:
        torch.testing.assert_close(logits[:, -1, node], opened, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[:, node - 1, 1], logits[:, -1, 1])  # reads the same sources as the output
    moments = optimizer.state[net.router.layers[-1].bias]["buffer"]
    torch.testing.assert_close(moments[net.topology.edge_numbers()[4, 6]], torch.tensor((6 + 8 + 9) / 3))


def test_a_source_may_be_closed_for_one_task_alone() -> None:
    net = ModelRouting([nn.Linear(5, 2) for _ in range(3)], Soft(), TableRouter(3, Topology.parallel(3))).eval()
    table = torch.tensor([[1.0, 2.0, -torch.inf], [3.0, 5.0, 1.0], [-torch.inf] * 3])
    net.router.table.data = table
    open_nodes(net, grow(net, 1).added, by=dynroute.growth.CLOSED)
    assert net.router.table[:, 3].tolist() == [1.5, 3.0, -torch.inf]
    assert torch.equal(net.router.table[:, :3], table)


class Cosine(LinearRouter):
    """Its logits are not linear in its weights."""

    def score(self, context: Tensor) -> Tensor:
        return 8 * nn.functional.normalize(super().score(context), dim=-1)


class Masked(LinearRouter):
    """Its logits are linear in its weights, but a buffer has a number for each edge."""

    def __init__(self, context_features: int, topology: Topology) -> None:
        super().__init__(context_features, topology)
        self.register_buffer("mask", torch.zeros(topology.num_edges))

    def forward(self, context: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return super().forward(context) + self.mask


class Scaled(LinearRouter):
    """Says that its logits are linear in its weights."""

    def score(self, context: Tensor) -> Tensor:
        return super().score(2 * context)

    def edge_parameters(self) -> list[EdgeParameter]:
        return super().edge_parameters()


def test_a_router_whose_score_was_replaced_is_not_cut() -> None:
    net = ModelRouting([nn.Linear(5, 5) for _ in range(3)], TopK(2))
    score = net.router.score
    net.router.score = lambda context: score(context).tanh()  # type: ignore[method-assign, operator]
    with pytest.raises(ValueError, match="overrides `edge_parameters` beside `score` or `forward`"):
        grow(net, 1)


def test_modules_may_have_parts_of_another_type() -> None:
    net = ModelRouting([nn.Linear(8, 8).bfloat16() for _ in range(3)], TopK(2)).eval()
    x = torch.randn(3, 8).bfloat16()
    before = net(x)
    grow(net, [nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8))])
    assert torch.equal(net(x), before)


def test_new_modules_that_share_a_parameter_keep_their_place_in_an_optimizer() -> None:
    class Tied(nn.Module):
        def __init__(self, tied: nn.Parameter) -> None:
            super().__init__()
            self.tied, self.layer = tied, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.tied * self.layer(x)

    tied = nn.Parameter(torch.ones(8))
    net = ModelRouting([Tied(tied) for _ in range(3)], TopK(2), context_features=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    grow(net, [Tied(tied)]).carry(optimizer)
    held = optimizer.param_groups[0]["params"]
    assert len(held) == len([*net.parameters()])
    assert all(one is other for one, other in zip(held, net.parameters(), strict=True))


@pytest.mark.parametrize("router", [Cosine, Masked])
def test_a_router_with_other_logits_than_its_parents_is_not_cut(router: type[LinearRouter]) -> None:
    net = ModelRouting([nn.Linear(5, 5) for _ in range(8)], TopK(2), router(5, Topology.parallel(8))).eval()
    x = torch.randn(3, 5)
    before = net(x)
    torch.testing.assert_close(extract(net, x)(x), before)
    for call in (lambda: grow(net, 1), lambda: prune(net, torch.tensor([1.0, *[0.0] * 7, 1.0]))):
        with pytest.raises(ValueError, match="`net` must have a router whose edges can be added and dropped, got a "):
            call()
    assert torch.equal(net(x), before)


def test_a_router_that_says_its_logits_are_linear_grows() -> None:
    net = ModelRouting([nn.Linear(5, 5) for _ in range(3)], TopK(2), Scaled(5, Topology.parallel(3))).eval()
    x = torch.randn(3, 5)
    before = net(x)
    grow(net, 1)
    torch.testing.assert_close(net(x), before, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_learning_uses_a_node_that_is_open(name: str) -> None:
    net = module_level(GATES[name](), modules=3)
    grown = grow(net, 1)
    open_nodes(net, grown.added, by=dynroute.growth.CLOSED + 4)
    x, context = inputs(net)
    net(x, context, sample=True).square().sum().backward()
    assert net.nodes[grown.added[0]][0].weight.grad.abs().sum() > 0
    row = net.topology.edge_numbers()[grown.added[0], 4]
    assert net.router.layers[-1].bias.grad[row] != 0


@given(
    level=st.sampled_from(sorted(LEVELS)),
    gate=st.sampled_from(["topk", "topk-3", "samplek"]),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 99),
)
def test_pruning_leaves_evaluation_as_it_is(level: str, gate: str, backend: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = LEVELS[level](GATES[gate]()).double().eval()
    net.backend = backend
    grow(net, 4)
    with torch.no_grad():
        net.router.layers[-1].bias.normal_(std=3.0)
    x, context = inputs(net)
    before, route = net(x, context, return_route=True)
    summary = summarize(net.topology, route, torch.arange(33) % 3)
    pruned = prune(net, summary)
    assert pruned.dropped == tuple((summary.used.sum(dim=0) == 0).nonzero().flatten().tolist())
    torch.testing.assert_close(net(x, context), before, atol=1e-10, rtol=1e-10)
    used = net.topology.used(net.route(context).path)
    assert used.any(dim=0).all()
    assert prune(net, used.double()).dropped == ()


def test_hard_chooses_as_before_with_the_rest_of_the_probability() -> None:
    net = module_level(Hard(), modules=7).eval()
    x, context = inputs(net)
    route = net.route(context)
    used = net.topology.used(route.path)
    pruned = prune(net, used.float())
    assert pruned.dropped
    after = net.route(context)
    kept = [node for node in range(8) if node not in pruned.dropped]
    for index in range(len(x)):
        now = {(kept[j], kept[i]): w for j, i, w in net.topology.edges(after.path[index], after.weights[index])}
        runs = [i for i in range(8) if used[index, i]]
        for j, i, weight in pruned.before.edges(route.path[index], route.weights[index]):
            if i in runs:
                assert now[j, i] >= weight - 1e-6


def test_pruning_undoes_growth() -> None:
    net = module_level(SampleK(2))
    optimizer = torch.optim.Adam(net.parameters())
    learn(net, optimizer, *inputs(net))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    moments = copy.deepcopy(optimizer.state_dict())
    topology = net.topology
    grown = grow(net, 2)
    grown.carry(optimizer)
    usage = torch.ones(3, net.topology.num_nodes)
    usage[:, list(grown.added)] = 0.01
    nothing = prune(net, usage)
    nothing.carry(optimizer)
    assert nothing.dropped == ()
    pruned = prune(net, usage, at_most=0.01)
    pruned.carry(optimizer)
    assert net.topology == topology
    assert pruned.dropped == grown.added
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, moments["state"][index][name])
    assert optimizer.state_dict()["param_groups"] == moments["param_groups"]


def test_pruning_drops_the_state_of_nodes_that_learned() -> None:
    net = module_level(Soft())
    optimizer = torch.optim.Adam(net.parameters())
    grown = grow(net, 2)
    grown.carry(optimizer)
    learn(net, optimizer, *inputs(net))
    assert optimizer.state.keys() == set(net.parameters())
    usage = torch.ones(net.topology.num_nodes)
    usage[list(grown.added)] = 0.0
    prune(net, usage).carry(optimizer)
    assert optimizer.state.keys() == set(net.parameters())
    assert optimizer.state_dict()["state"].keys() == set(range(len(list(net.parameters()))))


def test_layers_can_be_pruned() -> None:
    net = LayerRouting.mlp(5, 8, [3, 2, 3], 3, 4, TopK(2)).eval()
    net.router = LinearRouter(4, net.topology)
    with torch.no_grad():
        net.router.layers[-1].bias.mul_(60)
    x, context = inputs(net)
    before, route = net(x, context, return_route=True)
    pruned = prune(net, net.topology.used(route.path).float())
    assert pruned.dropped
    torch.testing.assert_close(net(x, context), before)


NET = module_level(TopK(2))
CHOICE = model_level(ExpertChoice(1.0))
LAYERS = LayerRouting.mlp(5, 8, [2, 2], 3, 4, TopK(2))
TABLE = ModelRouting([nn.Linear(5, 2)] * 2, Soft(), CascadeRouter(5, Topology.parallel(2)))


def parametrized() -> RoutedGraph:
    net = module_level(TopK(2))
    nn.utils.parametrizations.weight_norm(net.router.layers[-1])
    return net


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grow(7, 1), "`net` must be a routed graph or a network that contains one, got 7."),
        (lambda: grow(nn.Linear(2, 2), 1), "`net` must contain one routed graph, a Linear has none."),
        (
            lambda: grow(nn.Sequential(NET, NET, LAYERS), 1),
            "`net` must contain one routed graph, a Sequential has 2: 0, 2; pass one of them.",
        ),
        (lambda: grow(LAYERS, 1), "`net` must route at module or model level to grow, got Topology(num_nodes=5"),
        (lambda: grow(OutputRouting.mlp(5, 4, 3, 2), 1), "`net` must have a router whose edges can be added and drop"),
        (lambda: grow(TABLE, 1), "`net` must have a router whose edges can be added and dropped, got a CascadeRouter;"),
        (lambda: grow(parametrized(), 1), "`net` must have a router with plain parameters, `weight` of its MLPRouter"),
        (lambda: grow(CHOICE, 1), "`net` must have a gate that decides each sample on its own, got ExpertChoice: how "),
        (lambda: prune(CHOICE, torch.tensor([1.0, 1, 0, 1])), "`net` must have a gate that decides each sample on its"),
        (lambda: grow(NET, 0), "`modules` must be at least 1, got 0."),
        (lambda: grow(NET, []), "`modules` must hold at least one module, got none."),
        (lambda: grow(NET, nn.ReLU()), "`modules` must list modules, got ReLU()"),
        (lambda: grow(NET, [NET.nodes[1]]), "`modules[0]` must be a new module, got one that the net has; copy.deepco"),
        (
            lambda: grow(NET, [nn.Linear(8, 8), nn.Linear(8, 8).double()]),
            "`modules[1]` must have parameters of torch.float32 on cpu like the net, got torch.float64 on cpu; ",
        ),
        (
            lambda: grow(NET, [nn.Linear(8, 8, device="meta")]),
            "`modules[0]` must have parameters of torch.float32 on cpu like the net, got torch.float32 on meta; ",
        ),
        (lambda: grow(module_level(Soft(), modules=1), 1), "`modules` must list modules where the net has one alone,"),
        (lambda: prune(NET, [1.0]), "`usage` must be a tensor, got list"),
        (lambda: prune(NET, torch.ones(2, 5)), "`usage` must have shape (*, 6), a column for each node, got (2, 5);"),
        (lambda: prune(NET, torch.full((6,), torch.nan)), "`usage` must not be NaN: a task without samples"),
        (lambda: prune(NET, torch.zeros(6)), "`usage` must come from routes of this net: it uses node 5 and none of"),
        (lambda: prune(NET, torch.ones(6), at_most=1.0), "`at_most` must be below 1, got 1.0."),
        (lambda: prune(NET, torch.ones(6), at_most=False), "`at_most` must be a number, got False."),
        (lambda: open_nodes(NET, [0], True), "`by` must be a number, got True."),
        (lambda: open_nodes(NET, [0], float("nan")), "`by` must be finite, got nan."),
        (lambda: open_nodes(NET, 4, 1.0), "`nodes` must list nodes, got 4; for instance those that `grow` added."),
        (lambda: open_nodes(NET, ["a"], 1.0), "`nodes[0]` must be an integer, got 'a'."),
        (lambda: open_nodes(NET, [5], 1.0), "`nodes[0]` must be a source of the output, one of [0, 1, 2, 3, 4]."),
        (lambda: open_nodes(NET, [4, 4], 1.0), "`nodes[1]` must differ from the nodes before it, got 4 again;"),
        (lambda: Topology.dag(3).lift(torch.ones(2, 2).bool().tril(), 4), "`to` must be a Topology, got 4; for insta"),
        (
            lambda: Topology.dag(4).lift(torch.ones(3, 3).bool().tril(), Topology.dag(3)),
            "`to` must be this graph with more nodes before its output, got Topology(num_nodes=3",
        ),
        (
            lambda: Topology.parallel(2).lift(torch.ones(1, 2).bool(), Topology.dag(4)),
            "`to` must be this graph with more nodes before its output, got Topology(num_nodes=4",
        ),
        (lambda: Topology.dag(3).lift_packed([1], Topology.dag(4)), "`bits` must be a tensor, got list"),
        (lambda: grow(module_level(TopK(2)), 1).carry(7), "`optimizer` must be an optimizer of torch, got 7."),
    ],
)  # fmt: skip
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("d2r", {"module_kind": "residual", "num_modules": 3}),
        ("d2r", {"module_kind": "layer-norm", "num_modules": 3}),
        ("d2r-model", {"module_kind": "residual", "num_models": 2}),
        ("scalemoe-output", {"num_experts": 3}),
    ],
)
def test_new_modules_are_orthogonal_where_the_others_are(name: str, sizes: dict[str, Any]) -> None:
    net = build(name, 7, 3, 4, **sizes, width=16)
    grown = grow(nn.ModuleList([net]), 1)  # a model around the network
    new = find_graph("net", net).nodes[grown.added[0]]
    layers = [layer for layer in new.modules() if isinstance(layer, nn.Linear)]
    assert layers
    for layer in layers:
        short = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
        torch.testing.assert_close(short @ short.T, 2 * torch.eye(len(short)), atol=1e-5, rtol=0)
        assert not layer.bias.any()


def test_new_modules_keep_the_initialization_of_the_release() -> None:
    net = build("d2r", 7, 3, 4, hidden_init="released", num_modules=3, width=64)
    grown = grow(net, 1)
    layer = net.graph.nodes[grown.added[0]][0]
    assert (layer.bias == 0.1).all()
    assert 0.12 < float(layer.weight.detach().abs().max()) <= 0.125


def test_new_modules_are_drawn_as_before_by_torch() -> None:
    net = build("d2r", 7, 3, 4, num_modules=3)
    torch.manual_seed(5)
    grown = grow(net, 2)
    torch.manual_seed(5)
    for node in grown.added:
        expected = nn.Linear(128, 128)
        assert torch.equal(net.graph.nodes[node][0].weight, expected.weight)
        assert torch.equal(net.graph.nodes[node][0].bias, expected.bias)


def test_modules_that_do_not_fit_leave_the_net_as_it_was() -> None:
    net = module_level(TopK(2))
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"^`modules\[0\]` must not begin with a layer that works in place"):
        grow(net, [nn.ReLU(inplace=True)])
    assert {name: value.shape for name, value in net.state_dict().items()} == shapes


def test_an_optimizer_is_carried_once() -> None:
    net = module_level(TopK(2))
    optimizer = torch.optim.Adam(net.router.layers[-1].parameters())
    grown: Resized = grow(net, [nn.ReLU()])
    grown.carry(optimizer)
    with pytest.raises(ValueError, match=r"^`optimizer` must hold parameters that the net had before it changed"):
        grown.carry(optimizer)


@pytest.mark.parametrize("level", LEVELS)
def test_the_bias_of_a_balanced_gate_comes_along(level: str) -> None:
    net = LEVELS[level](BalancedTopK(2, rate=0.3))
    x, context = torch.randn(64, 5), torch.randn(64, 4)
    for _ in range(4):
        net(x, context).sum().backward()
    gate = net.gate
    assert isinstance(gate, BalancedTopK)
    assert gate.bias is not None
    bias = gate.bias[-1].clone()
    assert bias.min() < bias.max()
    net.eval()
    before, route = net(x, context, return_route=True)
    grown = grow(net, 2)
    assert gate.bias.shape == grown.after.path_shape
    assert torch.equal(gate.bias[-1], torch.cat([bias, bias.min().expand(2)]))
    torch.testing.assert_close(net(x, context), before, atol=1e-6, rtol=0)
    lifted = grown.before.lift(route.path, to=grown.after)
    torch.testing.assert_close(net(x, context, path=lifted), before, atol=1e-6, rtol=0)
    net.train()(x, context)  # counts, and moves by what it counted
    pruned = prune(net.eval(), summarize(net.topology, net.route(context)))
    assert gate.bias.shape == pruned.after.path_shape


@pytest.mark.parametrize("change", ["grow", "prune"])
def test_a_net_that_changed_its_size_in_inference_mode_goes_on_learning(change: str) -> None:
    net = module_level(BalancedTopK(2))
    optimizer = torch.optim.Adam(net.parameters())
    x, context = inputs(net)

    def learn() -> None:
        optimizer.zero_grad()
        net(x, context).square().sum().backward()
        optimizer.step()

    learn()
    with torch.inference_mode():
        usage = torch.arange(net.topology.num_nodes) != 2
        resized = grow(net, 1) if change == "grow" else prune(net, usage)
        resized.carry(optimizer)
    assert len(net.nodes) == 7 if change == "grow" else resized.dropped == (2,)
    assert not any(value.is_inference() for value in net.state_dict().values())
    for _ in range(3):  # the gate counts, waits for a backward pass and moves its bias
        learn()


def test_a_module_may_need_gradients_to_initialize_itself() -> None:
    class Scaled(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            x = torch.ones(1, self.in_features)
            (slope,) = torch.autograd.grad(self(x).square().sum(), self.weight)
            with torch.no_grad():
                self.weight /= slope.norm()

    net = ModuleRouting([Scaled(8, 8) for _ in range(4)] + [nn.Linear(8, 2)], TopK(2))
    grown = grow(net, 1)
    assert grown.num_modules == 5


def test_a_module_may_have_state_of_its_own_kind() -> None:
    class Counted(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 1}

    assert grow(ModuleRouting.mlp(5, 8, 4, 2), [Counted(8, 8)]).num_modules == 5


def test_modules_that_were_made_in_inference_mode_are_refused() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    with torch.inference_mode():
        module = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"`modules\[0\]` must be made outside of torch.inference_mode"):
        grow(net, [module])


def test_an_optimizer_with_one_vector_for_all_parameters_is_refused() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    optimizer = torch.optim.LBFGS(net.parameters())
    before = optimizer.param_groups[0]["params"][:]
    grown = grow(net, 1)
    with pytest.raises(
        TypeError, match="`optimizer` must have a state for each parameter, got an LBFGS, whose state is"
    ):
        grown.carry(optimizer)
    assert all(one is other for one, other in zip(optimizer.param_groups[0]["params"], before, strict=True))
