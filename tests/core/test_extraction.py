"""An extracted net computes what the whole net does for its contexts, and holds nothing else."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynroute import (
    BalancedTopK,
    CascadeRouter,
    ExpertChoice,
    Extracted,
    Gate,
    Hard,
    LayerRouting,
    LinearBank,
    LinearRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    SampleK,
    Soft,
    TableRouter,
    TaskNetwork,
    TopK,
    Topology,
    TopP,
    extract,
    freeze_modules,
    grow,
    record,
)
from dynroute.functional import mask_softmax, topk_path
from dynroute.networks import available, build


class Positive(Gate):
    """Reads all sources with positive logits, if any."""

    may_be_empty = True

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return allowed & (logits > 0)


class Rectified(Gate):
    """Reads all sources and weighs them by their logits, or by 0 where those are negative."""

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return allowed.expand_as(logits)

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        return logits.relu().masked_fill(~path, 0.0)


class Threshold(Gate):
    """Reads all sources above a probability, which depends on every logit."""

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return (mask_softmax(logits, allowed) >= 0.3) | topk_path(logits, 1, allowed=allowed)


GATES: dict[str, Callable[[], Gate]] = {
    "soft": Soft,
    "hard": Hard,
    "topk": lambda: TopK(2),
    "samplek": lambda: SampleK(2),
    "own": Threshold,
    "top-p": lambda: TopP(0.6),
    "balanced": lambda: BalancedTopK(2),
}
LEVELS: dict[str, Callable[[Gate], RoutedGraph]] = {
    "module": lambda gate: ModuleRouting.mlp(5, 8, 9, 3, 4, gate, router_sizes=(6,)),
    "module without shortcut": lambda gate: ModuleRouting.mlp(5, 8, 6, 3, 4, gate, shortcut=False, protect="sg"),
    "layer": lambda gate: LayerRouting.mlp(5, 8, [3, 2, 3], 3, 4, gate),
    "model": lambda gate: ModelRouting.mlp(5, 8, 4, 3, 4, gate),
    "bank": lambda gate: ModelRouting(LinearBank(4, 5, 3), gate, LinearRouter(4, Topology.parallel(4))),
}
BACKENDS = ["auto", "reference", "sparse"]


def make(level: str, gate: str, seed: int, dtype: torch.dtype = torch.float64) -> RoutedGraph:
    torch.manual_seed(seed)
    net = LEVELS[level](GATES[gate]()).to(dtype)
    with torch.no_grad():
        for name, parameter in net.router.named_parameters():
            parameter.mul_(4.0 if name.endswith("weight") else 1.0)
    return net


CASES = {
    "level": st.sampled_from(sorted(LEVELS)),
    "gate": st.sampled_from(sorted(GATES)),
    "seed": st.integers(0, 99),
}


@given(**CASES, backend=st.sampled_from(BACKENDS), count=st.integers(1, 40))
def test_the_contexts_are_served_exactly(level: str, gate: str, seed: int, backend: str, count: int) -> None:
    net = make(level, gate, seed)
    net.backend = backend
    state = {name: value.clone() for name, value in net.state_dict().items()}
    context, x = torch.randn(count, 4, dtype=torch.float64), torch.randn(count, 5, dtype=torch.float64)
    small = extract(net, context)
    assert isinstance(small, Extracted)
    expected, route = net.eval()(x, context, return_route=True)
    torch.testing.assert_close(small(x, context), expected, atol=1e-12, rtol=1e-10)
    assert small.report.deviation is None  # a context is no input here
    deviation = extract(net, context, x=x).report.deviation
    assert deviation is not None
    assert deviation < 1e-12
    used = net.topology.used(route.path).any(dim=0)
    assert small.report.nodes == tuple(used.nonzero().flatten().tolist())
    kept = [list(net.nodes[node].parameters()) for node in small.report.nodes]
    nodes = small.body.nodes
    assert [one.shape for node in kept for one in node] == [one.shape for one in nodes.parameters()]
    assert small.report.coverage == 1
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(one.untyped_storage().nbytes() == one.numel() * one.itemsize for one in small.parameters())


@given(**CASES, size=st.sampled_from([(), (1,), (7,), (2, 3)]))
def test_one_context_leaves_no_router(level: str, gate: str, seed: int, size: tuple[int, ...]) -> None:
    net = make(level, gate, seed).eval()
    context = torch.randn(4, dtype=torch.float64)
    small = extract(net, context.expand(*size, 4))
    assert isinstance(small, Extracted)
    assert small.report.reads == "nothing"
    assert not any(isinstance(part, (RoutedGraph, Gate)) for part in small.modules())
    x = torch.randn(11, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x), net(x, context.expand(11, 4)), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(small(x[0]), net(x[0], context), atol=1e-12, rtol=1e-10)


@given(**CASES, coverage=st.floats(0.05, 1.0))
def test_a_coverage_keeps_so_many_routes_whole(level: str, gate: str, seed: int, coverage: float) -> None:
    net = make(level, gate, seed).eval()
    context, x = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    small = extract(net, context, coverage, x=x)
    assert isinstance(small, Extracted)
    assert small.report.coverage >= coverage - 1e-6
    expected, route = net(x, context, return_route=True)
    used = net.topology.used(route.path)
    dropped = [node for node in range(net.topology.num_nodes) if node not in small.report.nodes]
    covered = ~used[:, dropped].any(dim=-1)
    found = small(x, context)
    assert found.isfinite().all()
    assert float(covered.double().mean()) >= small.report.coverage - 1e-6
    for node in small.report.nodes:  # without one more, too few routes would be complete
        assert int((covered & ~used[:, node]).sum()) < coverage * 40
    assert small.report.deviation == pytest.approx(float((found - expected).detach().abs().max()))
    exact = (found - expected).abs().amax(dim=-1) < 1e-10
    assert exact.double().mean() >= small.report.coverage - 1e-6
    assert {*small.report.nodes} <= {*extract(net, context).report.nodes}


@pytest.mark.parametrize("gate", ["soft", "topk", "samplek"])
def test_routers_keep_the_rows_they_need(gate: str) -> None:
    net = make("module", gate, 3).eval()
    context = torch.randn(30, 4, dtype=torch.float64)
    small = extract(net, context)
    route = net.route(context)
    live = route.path & net.topology.used(route.path)[:, list(net.topology.destinations), None]
    edges = int(live.any(dim=0).sum())
    assert small.body.router.layers[-1].weight.shape == (edges, 6)
    near = context[:1] + 1e-9 * torch.randn(8, 4, dtype=torch.float64)
    one = extract(net, near)
    assert one.report.reads == "weights"
    x = torch.randn(8, 5, dtype=torch.float64)
    torch.testing.assert_close(one(x, near), net(x, near), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("small", "reads"), [(4e-3, "routes"), (1e-4, "weights")])
def test_a_small_feature_beside_a_large_one_may_decide_the_route(small: float, reads: str) -> None:
    net = ModelRouting.mlp(5, 8, 4, 2, 2, gate=TopK(2), router_sizes=()).eval()
    with torch.no_grad():
        biases = torch.zeros(4) if reads == "routes" else torch.tensor([9.0, 9.0, 0.0, 0.0])
        net.router.layers[0].weight.copy_(torch.tensor([[0.0, 3e3], [0.0, -3e3], [0.0, 2e3], [0.0, -2e3]]))
        net.router.layers[0].bias.copy_(biases)
    context, x = torch.tensor([[1e4, small], [1e4, -small]]), torch.randn(2, 5)
    extracted = extract(net, context)
    assert extracted.report.reads == reads
    torch.testing.assert_close(extracted(x, context), net(x, context))


@pytest.mark.parametrize("router", ["table", "cascade", "parametrized"])
def test_other_routers(router: str) -> None:
    if router == "table":
        made: nn.Module = TableRouter(6, Topology.dag(6))
        context = torch.tensor([0, 2, 5])
    else:
        made = CascadeRouter(4, Topology.dag(6)) if router == "cascade" else LinearRouter(4, Topology.dag(6))
        if router == "parametrized":
            nn.utils.parametrizations.weight_norm(made.layers[0])
        context = torch.randn(3, 4)
    modules = [nn.Linear(5, 8), *(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 2)]
    net = ModuleRouting(modules, TopK(2), made).eval()
    x = torch.randn(3, 5)
    torch.testing.assert_close(extract(net, context)(x, context), net(x, context))
    assert extract(net, context[1]).report.reads == "nothing"
    torch.testing.assert_close(extract(net, context[1])(x[1]), net(x[1], context[1]))


def test_modules_that_work_in_place_keep_their_input() -> None:
    modules = [nn.Linear(5, 8), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), nn.Linear(8, 2)]
    net = ModuleRouting(modules, Soft(), LinearRouter(4, Topology.dag(3)), shortcut=False).eval()
    x, context = torch.randn(7, 5), torch.randn(4)
    torch.testing.assert_close(extract(net, context)(x), net(x, context.expand(7, 4)))

    experts = [nn.Sequential(nn.ReLU(), nn.Linear(5, 2)) for _ in range(3)]
    mixture = ModelRouting(experts, Soft(), LinearRouter(4, Topology.parallel(3)))
    for expert in experts:
        expert[0].inplace = True
    before = x.clone()
    extract(mixture, context)(x)
    assert torch.equal(x, before)


def test_a_head_of_one_task() -> None:
    net = OutputRouting.mlp(5, 8, 4, 2)
    small = extract(net, torch.tensor([2]))
    x = torch.randn(7, 5)
    torch.testing.assert_close(small(x), net(x, torch.full((7,), 2)))
    assert small.report.nodes == (2, 4)
    assert small.report.parameters == 66


def test_the_smaller_net_stays_in_evaluation_and_can_be_copied() -> None:
    net = ModuleRouting.mlp(5, 8, 6, 2)
    x = torch.randn(64, 5)
    small = extract(net, x).train()
    assert not small.body.training
    assert torch.equal(small(x), small(x))
    assert torch.equal(copy.deepcopy(small)(x), small(x))
    twin = extract(net, x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(x), small(x))
    assert "nodes=" in repr(small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    net = make("module", "topk", 0, dtype).eval()
    context, x = torch.randn(9, 4, dtype=dtype), torch.randn(9, 5, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(extract(net, context)(x, context), net(x, context), atol=tolerance, rtol=tolerance)
    one = extract(net, context[0])(x)
    assert one.dtype == dtype
    torch.testing.assert_close(one, net(x, context[:1].expand(9, 4)), atol=tolerance, rtol=tolerance)


# With one context no gate is left.
@pytest.mark.slow
@pytest.mark.parametrize(("gate", "contexts"), [*((gate, 30) for gate in GATES), ("topk", 1)])
def test_export(gate: str, contexts: int) -> None:
    net = make("module", gate, 1, torch.float32).eval()
    context = torch.randn(contexts, 4)
    small = extract(net, context)
    x, seen = torch.randn(6, 5), context[torch.randint(contexts, (6,))]
    batch = torch.export.Dim("batch", min=2)
    fixed = contexts == 1
    assert (small.report.reads == "nothing") == fixed
    inputs = (x,) if fixed else (x, seen)
    shapes = {"x": {0: batch}} if fixed else {"x": {0: batch}, "context": {0: batch}}
    program = torch.export.export(small, inputs, dynamic_shapes=shapes)
    rows = torch.randint(contexts, (11,))
    more = torch.randn(11, 5)
    found = program.module()(more) if fixed else program.module()(more, context[rows])
    torch.testing.assert_close(found, net(more, context[rows]), atol=1e-5, rtol=1e-5)


SMALL = {
    "mt-sac": None,
    "mh-sac": {"hidden_sizes": (6,)},
    "moe": {"num_experts": 3, "width": 4, "depth": 1, "router_sizes": (4,)},
    "hard": {"trunk_sizes": (6,), "layer_sizes": (3, 3), "width": 4},
    "sm": {"trunk_sizes": (6,), "layer_sizes": (2, 2), "width": 4, "router_sizes": (6,)},
    "sm-shallow": {"trunk_sizes": (6,), "layer_sizes": (2, 2), "width": 4, "router_sizes": (6,)},
    "care": {"num_encoders": 3, "encoder_sizes": (4,), "context_sizes": (4,), "gate_sizes": (4,), "hidden_sizes": (4,)},
    "paco": None,
    "d2r": {"num_modules": 6, "width": 4, "trunk_sizes": (6,), "router_sizes": (4,)},
    "d2r-released": {"num_modules": 6, "width": 4, "trunk_sizes": (6,), "router_sizes": (4,)},
    "d2r-layer": {"layer_sizes": (3, 3), "width": 4, "trunk_sizes": (6,), "router_sizes": (4,)},
    "d2r-model": {"num_models": 3, "width": 4, "trunk_sizes": (6,), "router_sizes": (4,)},
    "brc": None,
    "scalemoe-feature": {"num_experts": 4, "width": 4, "embedding_features": 2},
    "scalemoe-output": {"num_experts": 4, "width": 4, "embedding_features": 2},
}


def test_every_network_has_a_case() -> None:
    assert set(available()) <= SMALL.keys()


@pytest.mark.parametrize("name", [name for name, sizes in SMALL.items() if sizes is not None])
def test_a_network_for_one_task(name: str) -> None:
    net = build(name, 5, 3, 2, **SMALL[name])
    state = torch.randn(20, 5)
    small = extract(net, state, task=1)
    assert isinstance(small, TaskNetwork)
    torch.testing.assert_close(small(state), net.eval()(state, torch.ones(20).long()), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(small(state[0]), net(state[0], torch.tensor(1)), atol=1e-6, rtol=1e-5)
    assert small.report.deviation < 1e-6
    assert small.report.parameters == sum(one.numel() for one in small.parameters())
    assert small.report.parameters_before == sum(one.numel() for one in net.parameters())
    assert small.report.parameters <= small.report.parameters_before
    program = torch.export.export(small, (state,))
    torch.testing.assert_close(program.module()(state), small(state), atol=1e-6, rtol=1e-5)
    assert torch.equal(copy.deepcopy(small).train()(state), small(state))


def test_a_task_alone_leaves_no_router() -> None:
    net = build("d2r", 5, 3, 2, **SMALL["d2r"], state_free=True).eval()
    state = torch.randn(300, 5)
    small = extract(net, state, task=2)
    assert small.report.reads == "nothing"
    assert not any("router" in name or "task" in name for name, _ in small.named_parameters())
    torch.testing.assert_close(small(state), net(state, torch.full((300,), 2)), atol=1e-6, rtol=1e-5)


def test_a_net_that_was_grown_and_frozen() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2).eval()
    x = torch.randn(40, 5)
    before = extract(net, x)
    grow(net, 3)
    freeze_modules(net)
    after = extract(net, x)
    assert len(after.report.nodes) == len(before.report.nodes)
    torch.testing.assert_close(after(x), before(x), atol=1e-6, rtol=1e-5)


NET = ModuleRouting.mlp(5, 8, 4, 2, context_features=3)
D2R = build("d2r", 5, 3, 2, **SMALL["d2r"])
C = torch.randn(6, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extract(7, C), "`net` must be a routed graph or a network that contains one, got 7."),
        (lambda: extract(build("mt-sac", 5, 3, 2), C), "`net` must contain one routed graph, a MultiTaskMLP has none."),
        (lambda: extract(nn.Sequential(NET), C), "`net` must be a routed graph or a network of dynroute.networks, got"),
        (lambda: extract(NET, [1.0]), "`context` must be a tensor, got list"),
        (lambda: extract(NET, C[:0]), "`context` must hold at least one context, got shape (0, 3)."),
        (lambda: extract(NET, C[:, :2]), "`context` must have shape (*, 3) for this router, got (6, 2)"),
        (lambda: extract(NET, C, 0.0), "`coverage` must be above 0, got 0.0."),
        (lambda: extract(NET, C, "all"), "`coverage` must be a number, got 'all'."),
        (lambda: extract(NET, C, task=1), "`task` must be None for a routed graph, whose context tells it, got 1."),
        (lambda: extract(NET, C, 0.9), "`x` must hold inputs that go with the contexts, to measure what is lost"),
        (lambda: extract(NET, C, x=C), "`x` must hold inputs that go with the contexts, to measure what is lost"),
        (lambda: extract(D2R, torch.randn(6, 5)), "`task` must be the id of one of the 3 tasks, got None."),
        (lambda: extract(D2R, torch.randn(6, 5), task=3), "`task` must be less than 3, the number of tasks, got 3."),
        (lambda: extract(D2R, torch.randn(6, 5), task="a"), "`task` must be an integer, got 'a'."),
        (lambda: extract(D2R, torch.randn(6, 4), task=1), "`state` must have shape (*, 5), got (6, 4)."),
        (lambda: extract(D2R, torch.randn(6, 5), task=1, x=C), "`x` must be None for a network, whose states are both"),
    ],
)  # fmt: skip
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()


class Block(ModelRouting):
    """Does more than a routed graph does."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        return x + super().forward(x, *args, **options)


def test_graphs_that_do_more_than_route_are_refused() -> None:
    block = Block([nn.Linear(5, 5) for _ in range(4)], TopK(2))
    hooked = [copy.deepcopy(D2R), copy.deepcopy(D2R)]
    hooked[0].graph.register_forward_hook(lambda module, args, output: output)
    hooked[1].graph.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match="`net` must have the forward of a routed graph, got a Block with its own, wh"):
        extract(block, torch.randn(6, 5))
    for net in hooked:
        with pytest.raises(ValueError, match="`net` must not have forward hooks on its graph, which the result would"):
            extract(net, torch.randn(6, 5), task=1)
    compiled = ModelRouting([nn.Linear(5, 5) for _ in range(4)], TopK(2)).eval()
    x = torch.randn(6, 5)
    expected = compiled(x)
    compiled.forward = torch.compile(compiled.forward, backend="eager")  # type: ignore[method-assign]
    torch.testing.assert_close(extract(compiled, x)(x), expected)
    with record(D2R):  # needs no hooks
        D2R(torch.randn(6, 5), torch.ones(6, dtype=torch.long))
        extract(D2R, torch.randn(6, 5), task=1)


@pytest.mark.parametrize("contexts", [1, 32])
def test_shared_experts_stay(contexts: int) -> None:
    net = ModelRouting.ffn(5, 8, 4, gate=TopK(2), shared=2).eval()
    x = torch.randn(contexts, 5)
    small = extract(net, x)
    torch.testing.assert_close(small(x), net(x))
    assert small.report.parameters == sum(parameter.numel() for parameter in small.parameters())
    assert len(small.shared) == 2


@pytest.mark.parametrize("contexts", [1, 6])
def test_a_node_that_never_reads_is_refused(contexts: int) -> None:
    net = ModuleRouting.mlp(5, 5, 3, 5, gate=Positive(), router_sizes=())
    with torch.no_grad():
        net.router.layers[0].weight.zero_()
        net.router.layers[0].bias.copy_(torch.tensor([-1.0] * (net.topology.num_edges - 1) + [1.0]))
    message = "`context` must lead to a source of every node that runs, but node 2 reads none for all contexts"
    with pytest.raises(ValueError, match=message):
        extract(net, torch.randn(contexts, 5))


@pytest.mark.parametrize("gate", [Positive, Rectified])
@pytest.mark.parametrize("level", LEVELS)
def test_nodes_that_mix_nothing_for_some_samples_mix_nothing_afterwards(level: str, gate: type[Gate]) -> None:
    net = LEVELS[level](gate()).double().eval()
    for parameter in net.router.parameters():
        nn.init.normal_(parameter, mean=-0.5)
    context, x = torch.randn(200, 4, dtype=torch.float64), torch.randn(200, 5, dtype=torch.float64)
    small = extract(net, context)
    expected, route = net(x, context, return_route=True)
    assert not (route.weights > 0).any(dim=-1).all()
    torch.testing.assert_close(small(x, context), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("contexts", [1, 30])
@pytest.mark.parametrize("gate", ["topk", "own", "balanced"])
def test_what_was_extracted_in_inference_mode_has_gradients(gate: str, contexts: int) -> None:
    net = make("module", gate, 0, torch.float32).eval()
    x = torch.randn(contexts, 5, requires_grad=True)
    with torch.inference_mode():
        context = torch.randn(contexts, 4)
        small = extract(net, context)
    context = context.clone()
    small(x, context).sum().backward()
    (expected,) = torch.autograd.grad(net(x, context).sum(), x)
    torch.testing.assert_close(x.grad, expected)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in small.parameters())
    assert not any(value.is_inference() for value in small.state_dict().values())


@pytest.mark.parametrize("gate", [Hard, lambda: TopP(0.9), lambda: BalancedTopK(2), lambda: TopK(2), Soft])
@pytest.mark.parametrize("level", ["module", "layer"])
def test_gradients_are_those_of_the_whole_net(level: str, gate: Callable[[], Gate]) -> None:
    torch.manual_seed(0)
    options = {"gate": gate(), "dtype": torch.float64}
    net = (
        ModuleRouting.mlp(5, 8, 5, 2, **options) if level == "module" else LayerRouting.mlp(5, 8, [3, 2], 2, **options)
    )
    x = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
    small = extract(net.eval(), x.detach())
    found, expected = (torch.autograd.grad(of(x).square().sum(), x)[0] for of in (lambda x: small(x, x), net))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def test_a_policy_that_was_extracted_in_inference_mode_has_gradients() -> None:
    with torch.inference_mode():
        small = extract(D2R, torch.randn(6, 5), task=1)
    state = torch.randn(6, 5, requires_grad=True)
    small(state).sum().backward()
    assert state.grad is not None
    assert not any(value.is_inference() for value in small.state_dict().values())


class _Signed(Gate):
    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return allowed.expand_as(logits)

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        return logits.sin().masked_fill(~path, 0.0)


def test_weights_below_zero_are_kept_as_constants_and_refused_for_contexts_that_differ() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2, gate=_Signed()).eval()
    x = torch.randn(20, 5)
    one = extract(net, x[:1])
    torch.testing.assert_close(one(x), net(x, x[:1].expand(20, 5)))
    with pytest.raises(ValueError, match=r"`net` must have a gate whose weights are at least 0 .* _Signed gives -"):
        extract(net, x)


def test_a_gate_that_looks_at_the_batch_is_refused() -> None:
    net = ModelRouting([nn.Linear(5, 2) for _ in range(4)], ExpertChoice(1.0))
    with pytest.raises(ValueError, match="`net` must have a gate that decides each sample on its own, got ExpertCh"):
        extract(net, torch.randn(8, 5))


class _SignedBehind(Gate):
    """Reads all sources but the last one of the last node, which alone reads by weights below zero."""

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        path = allowed.expand_as(logits).clone()
        path[..., -1, -1] = False
        return path

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        weights = mask_softmax(logits, path)
        return torch.cat([weights[..., :-2, :], -weights[..., -2:-1, :], weights[..., -1:, :]], dim=-2)


def test_weights_below_zero_on_edges_that_nothing_uses_do_not_matter() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2, gate=_SignedBehind()).eval()
    x = torch.randn(20, 5)
    small = extract(net, x)
    assert small.report.nodes == (0, 1, 2, 4)
    assert small.report.reads == "weights"
    assert net.route(x).weights.min() < 0
    torch.testing.assert_close(small(x, x), net(x))
