"""The gates of mixtures, against plain loops; what drops is counted, what moves has a rule, noise only chooses."""

import copy
import math
from collections.abc import Callable, Sequence

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import dynroute
from dynroute import (
    BalancedTopK,
    CascadeRouter,
    ExpertChoice,
    Gate,
    Hard,
    LinearRouter,
    MLPRouter,
    ModelRouting,
    ModuleRouting,
    RoutedGraph,
    Router,
    SampleK,
    Soft,
    TableRouter,
    TopK,
    Topology,
    TopP,
)
from dynroute.functional import expert_choice_path, limit_path, topp_path
from dynroute.networks import build

DOUBLE = torch.float64
GATES: dict[str, Callable[[], Gate]] = {
    "topp": lambda: TopP(0.6),
    "topp capacity": lambda: TopP(0.6, capacity=0.7),
    "balanced": lambda: BalancedTopK(2, rate=0.2),
    "balanced capacity": lambda: BalancedTopK(2, rate=0.2, capacity=1.0),
    "expert choice": lambda: ExpertChoice(1.3),
    "few experts choose": lambda: ExpertChoice(0.5),
    "topk capacity": lambda: TopK(2, capacity=0.9),
    "hard capacity": lambda: Hard(capacity=0.8),
}


def softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    total = sum(math.exp(z - top) for z in row)
    return [math.exp(z - top) / total for z in row]


def choose(name: str, z: list[list[float]], bias: list[float]) -> list[list[bool]]:
    """The paths of one destination for all samples."""
    q, n = [softmax(row) for row in z], len(z[0])
    if name.startswith("topp"):
        d = []
        for row in q:
            chosen: set[int] = set()
            for j in sorted(range(n), key=lambda j: (-row[j], j)):
                if sum(row[i] for i in chosen) < 0.6:
                    chosen.add(j)
            d.append([j in chosen for j in range(n)])
    elif name in ("expert choice", "few experts choose"):
        room = math.ceil((1.3 if name == "expert choice" else 0.5) * len(z) / n)
        return held(z, [[True] * n] * len(z), q, room)
    elif name.startswith("balanced"):
        d = [oracle.top_k([p + b for p, b in zip(row, bias, strict=True)], 2) for row in q]
    else:
        d = [oracle.top_k(row, 1 if name.startswith("hard") else 2) for row in z]
    factor = {"topp capacity": 0.7, "balanced capacity": 1.0, "topk capacity": 0.9, "hard capacity": 0.8}.get(name)
    if factor is None:
        return d
    scaled = name.startswith(("topk", "balanced"))
    weights = [
        [p / sum(p for p, c in zip(row, chosen, strict=True) if c) if scaled else p for p in row]
        for row, chosen in zip(q, d, strict=True)
    ]
    return held(z, d, weights, max(1, math.ceil(factor * sum(map(sum, d)) / n - 1e-9)))


def held(z: list[list[float]], d: list[list[bool]], weights: list[list[float]], room: int) -> list[list[bool]]:
    """The choices that are left where each source takes the heaviest ones alone."""
    left = [[False] * len(row) for row in d]
    for j in range(len(z[0])):
        wanting = [b for b in range(len(z)) if d[b][j]]
        for b in sorted(wanting, key=lambda b: (-weights[b][j], b))[:room]:
            left[b][j] = True
    return left


def weigh(name: str, z: Sequence[Tensor], d: Sequence[bool]) -> list[Tensor]:
    if name.startswith(("topk", "balanced")):
        return oracle.mask_softmax(z, d) if any(d) else [torch.zeros_like(each) for each in z]
    full = oracle.mask_softmax(z, [True] * len(z))
    return [p if chosen else torch.zeros_like(p) for p, chosen in zip(full, d, strict=True)]


def loop(net: RoutedGraph, name: str, x: Tensor, bias: Tensor) -> tuple[Tensor, int]:
    """The output of a whole batch, sample by sample, and how many choices it took."""
    parents = net.topology.parents
    rows = x.reshape(-1, x.shape[-1])
    z = [oracle.split(oracle.linear_logits(net.router, row), parents) for row in rows]
    paths = []
    for t in range(len(z[0])):
        numbers = [[float(each.detach()) for each in sample[t]] for sample in z]
        paths.append(choose(name, numbers, bias[t].tolist()[: len(numbers[0])]))
    outputs = []
    for b, row in enumerate(rows):
        p = [weigh(name, z[b][t], paths[t][b]) for t in range(len(paths))]
        suitable = [oracle.is_suitable(each) for each in z[b]]
        arguments = {"shortcut": net.shortcut, "protect": net.protect}
        outputs.append(oracle.run_sample(parents, list(net.nodes), row, p, suitable, **arguments))
    return torch.stack(outputs).reshape(*x.shape[:-1], -1), sum(sum(map(sum, path)) for path in paths)


def make(level: str, gate: Gate) -> RoutedGraph:
    if level == "model":
        return ModelRouting.mlp(3, 4, 4, 2, gate=gate, depth=1, protect="sg", router_sizes=(), dtype=DOUBLE)
    return ModuleRouting.mlp(3, 4, 5, 2, gate=gate, activation=nn.Tanh, router_sizes=(), dtype=DOUBLE)


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused", "auto"])
@pytest.mark.parametrize("shape", [(9,), (2, 11), (1,)], ids=str)
@pytest.mark.parametrize("level", ["model", "module"])
@pytest.mark.parametrize("name", GATES)
def test_every_backend_computes_what_a_loop_does(name: str, level: str, shape: tuple[int, ...], backend: str) -> None:
    net = make(level, GATES[name]())
    bias = torch.zeros(net.topology.path_shape)
    if isinstance(net.gate, BalancedTopK):
        bias = 0.3 * torch.randn(net.topology.path_shape)
        net.gate.bias.copy_(bias)
    x = (2 * torch.randn(*shape, 3, dtype=DOUBLE)).requires_grad_()
    expected, taken = loop(net, name, x, bias)
    with dynroute.backend(backend):
        actual, route = net(x, return_route=True)

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert int(route.path.sum()) == taken
    tensors, weights = [x, *net.parameters()], torch.randn_like(actual)
    theirs = torch.autograd.grad((expected * weights).sum(), tensors, materialize_grads=True, allow_unused=True)
    for mine, other in zip(torch.autograd.grad((actual * weights).sum(), tensors), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)

    with dynroute.backend(backend):
        replayed, again = net.eval()(x, path=route, return_route=True)
        torch.testing.assert_close(replayed, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(again.path, route.path)


@pytest.mark.parametrize("level", ["model", "module"])
@pytest.mark.parametrize("name", GATES)
def test_second_derivatives(name: str, level: str) -> None:
    net = make(level, GATES[name]())
    x = torch.randn(7, 3, dtype=DOUBLE)
    route, results = net.route(x), []
    for backend in ("reference", "sparse", "fused"):
        with dynroute.backend(backend):
            grads = torch.autograd.grad(net(x, path=route).square().sum(), list(net.parameters()), create_graph=True)
        penalty = torch.stack([grad.square().sum() for grad in grads]).sum()
        results.append(torch.autograd.grad(penalty, list(net.parameters()), materialize_grads=True, allow_unused=True))
    for others in results[1:]:
        for mine, theirs in zip(others, results[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GATES)
def test_vmap_takes_every_sample_alone(name: str) -> None:
    net = make("module", GATES[name]())
    x = torch.randn(6, 3, dtype=DOUBLE)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    each = torch.func.vmap(net)(x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    torch.testing.assert_close(each, torch.stack([copy.deepcopy(net)(row) for row in x]))


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)], ids=str)
def test_contract(name: str, batch: tuple[int, ...]) -> None:
    for topology in (Topology.dag(6), Topology.layered([2, 3]), Topology.parallel(4), Topology.dag(2)):
        gate, logits = GATES[name](), torch.randn(*batch, *topology.path_shape)
        route = gate(logits, allowed=topology.allowed)
        assert not (route.path & ~topology.allowed).any()
        assert (route.weights[~route.path] == 0).all()
        assert (route.weights.sum(-1) <= 1 + 1e-6).all()
        assert gate.may_be_empty or route.path.any(-1).all()
        assert torch.equal(gate(logits, allowed=topology.allowed, path=route).weights, route.weights)


@given(st.integers(1, 6), st.floats(0.01, 1.0), st.integers(0, 100))
def test_topp_takes_the_fewest_that_reach_p(width: int, p: float, seed: int) -> None:
    logits = 2 * torch.randn(8, width, generator=torch.Generator().manual_seed(seed)).double()
    path, q = topp_path(logits, p), torch.softmax(logits, dim=-1)
    reached = (q * path).sum(-1)
    assert (reached >= p - 1e-12).all()
    least = torch.where(path, q, 1.0).amin(-1)
    assert ((path.sum(-1) == 1) | (reached - least < p)).all()


def test_topp_between_hard_and_soft() -> None:
    logits = torch.randn(9, 3, 5)
    assert torch.equal(TopP(1.0)(logits).weights, Soft()(logits).weights)
    assert torch.equal(TopP(1e-9)(logits).weights, Hard()(logits).weights)
    assert topp_path(torch.zeros(4), 0.5).tolist() == [True, True, False, False]
    assert topp_path(torch.tensor([1.0, -torch.inf]), 1.0).all()
    assert topp_path(torch.zeros(3, 0), 0.5).shape == (3, 0)
    assert torch.equal(topp_path(torch.tensor([0.0, 500.0, 250.0]), 1 - 1e-9), torch.tensor([False, True, False]))


def test_expert_choice_has_an_even_load() -> None:
    logits = torch.randn(4, 6, 2, 3)
    path = expert_choice_path(logits, 1.0)
    assert (path.flatten(0, 1).sum(0) == 8).all()
    assert expert_choice_path(torch.randn(5, 1, 4), 0.01).sum(0).tolist() == [[1, 1, 1, 1]]
    assert expert_choice_path(torch.randn(5, 1, 4), 99.0).all()
    assert expert_choice_path(torch.randn(4), 1.0).all()
    hopeless = torch.zeros(4, 1, 2)
    hopeless[:, :, 1] = -torch.inf
    assert expert_choice_path(hopeless, 2.0).sum(0).tolist() == [[4, 0]]


def test_capacity_keeps_the_heaviest_and_is_exact() -> None:
    path, weights = torch.ones(10, 1, 4, dtype=torch.bool), torch.rand(10, 1, 4)
    left = limit_path(path, weights, 0.3)
    assert left.sum(0).tolist() == [[3, 3, 3, 3]]  # 0.3 * 10 is 3.0000000000000004 for a computer that is not careful
    for j in range(4):
        assert weights[left[:, 0, j], 0, j].min() > weights[~left[:, 0, j], 0, j].max()
    assert torch.equal(limit_path(path, torch.zeros(10, 1, 4), 0.3)[:, 0, 0], torch.arange(10) < 3)


def test_nothing_is_dropped_in_silence() -> None:
    net = ModelRouting.ffn(5, 8, 4, TopK(2, capacity=0.5))
    x = torch.randn(16, 5)
    _, route = net(x, return_route=True)
    assert int(net.gate.dropped) == 32 - int(route.path.sum()) > 0
    held_path = net(x, path=route, return_route=True)[1].path
    assert torch.equal(held_path, route.path)
    assert int(net.gate.dropped) == 0  # a replayed path is taken as it is
    net(x)
    net.eval()(x)
    assert int(net.gate.dropped) == 0  # evaluation drops nothing
    assert net.route(x).path.sum() == 32
    assert "gate.dropped" not in net.state_dict()
    assert "capacity=0.5" in repr(net.gate)


@pytest.mark.parametrize("gate", [lambda: TopK(2, capacity=1.0), lambda: BalancedTopK(2, capacity=1.0)])
def test_what_is_counted_is_where_the_network_is(gate: Callable[[], Gate]) -> None:
    assert ModelRouting.ffn(8, 16, 4, gate=gate(), device="meta").gate.dropped.device.type == "meta"
    net = ModelRouting.ffn(8, 16, 4, gate=TopK(2), device="meta")
    net.gate.capacity = 1.0
    net.gate._count_dropped(torch.zeros((), dtype=torch.long, device="meta"))
    assert net.gate.dropped.device.type == "meta"


def test_what_is_counted_first_in_inference_mode_can_be_counted_in_training() -> None:
    net = ModelRouting.ffn(8, 16, 4, device="meta")
    net.gate.capacity = 1.0  # counts on the CPU until a pass
    x = torch.randn(4, 8, device="meta")
    with torch.inference_mode():
        net(x)
    assert net.gate.dropped.device.type == "meta"
    net(x).sum().backward()


def test_a_capacity_that_is_set_in_inference_mode_counts_in_training() -> None:
    net = ModelRouting.ffn(8, 16, 4)
    with torch.inference_mode():
        net.gate.capacity = 1.0
    net(torch.ones(4, 8)).sum().backward()
    assert not net.gate.dropped.is_inference()
    assert int(net.gate.dropped) > 0, "equal samples choose the same experts, which have no room for all"


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.0])
def test_dropout_of_a_router_leaves_out_sources_of_a_soft_gate(rate: float) -> None:
    router = LinearRouter(5, Topology.parallel(4), dropout=rate)
    net = ModelRouting([nn.Linear(5, 2) for _ in range(4)], Soft(), router)
    x = torch.randn(4000, 5)
    path = net.route(x).path
    assert float(path.sum(-1).float().mean()) == pytest.approx(4 * (1 - rate) + rate**4, abs=0.06)
    torch.testing.assert_close(path.float().mean(dim=(0, 1)), path.float().mean().expand(4), atol=0.03, rtol=0)
    assert net.eval().route(x).path.all()


def test_dropout_keeps_a_source_that_can_be_chosen() -> None:
    router = LinearRouter(5, Topology([[], [], [], [0, 1], [0, 1, 2]]), dropout=1.0)
    with torch.no_grad():
        router.layers[0].bias[2] = -torch.inf  # the output reads node 0 without a weight
    route = RoutedGraph([nn.Linear(5, 5) for _ in range(5)], router.topology, Soft(), router).route(torch.randn(90, 5))
    assert ((route.weights > 0).sum(dim=-1) == 1).all()


def test_a_capacity_can_be_set_on_any_gate() -> None:
    class Own(Gate):
        def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
            return allowed.clone()

    for gate in (Own(), Soft(), TopK(2)):
        assert gate.capacity is None
        assert gate.sums_to_one
        gate.capacity = 0.5
        assert gate.may_be_empty
        assert not gate.sums_to_one
        path = gate(torch.randn(8, 1, 4)).path
        assert path.sum(0).max() <= 4
        assert int(gate.dropped) > 0
        gate.capacity = None
        assert gate(torch.randn(8, 1, 4)).path.any(-1).all()
        assert int(gate.dropped) == 0
    with pytest.raises(ValueError, match=r"`capacity` must be above 0\.0, got 0"):
        gate.capacity = 0


def test_a_gate_that_layers_share_counts_for_the_last_one() -> None:
    gate = Hard(capacity=0.5)
    first, last = (ModelRouting.ffn(5, 8, 4, gate) for _ in range(2))
    first(torch.randn(64, 5))
    assert int(gate.dropped) >= 32
    last(torch.randn(2, 5))
    assert int(gate.dropped) <= 2


def test_a_sample_without_experts_gives_zeros_and_the_shared_ones_remain() -> None:
    net = ModelRouting.ffn(5, 8, 4, ExpertChoice(0.25), shared=1)
    x = torch.randn(16, 5)
    for backend in ("reference", "sparse", "fused", "auto"):
        with dynroute.backend(backend):
            y, route = net(x, return_route=True)
        empty = ~route.path.any(-1).squeeze(-1)
        assert int(net.gate.dropped) == empty.sum() >= 12
        assert torch.equal(y[empty], net.shared[0](x)[empty])


class Padded(Router):
    """Closes all sources of tokens that are zero."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self.layer = nn.Linear(5, topology.num_edges)

    def score(self, context: Tensor) -> Tensor:
        return self.layer(context).masked_fill((context == 0).all(-1, keepdim=True), -torch.inf)


@pytest.mark.parametrize("backend", ["reference", "sparse", "fused", "auto"])
def test_padding_that_a_router_closes_is_no_load(backend: str) -> None:
    gate = BalancedTopK(2, rate=0.1, capacity=4.0)
    net = ModelRouting([nn.Linear(5, 5) for _ in range(4)], gate, Padded(Topology.parallel(4)), backend=backend)
    x = torch.zeros(300, 5)
    x[:30] = torch.randn(30, 5)
    with dynroute.record(net) as recorded:
        y, route = net(x, return_route=True)
    assert gate.load.sum() == 60
    assert gate.dropped == 0
    assert recorded[""].metrics()["unrouted"] == pytest.approx(0.9)
    assert not y[30:].any()
    assert torch.equal(net(x, path=route), y)


def test_other_gates_still_refuse_empty_paths() -> None:
    path = torch.zeros(2, 1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"row .* has none; was an empty record replayed"):
        TopP(0.5)(torch.zeros(2, 1, 3), path=path)
    assert not ExpertChoice(1.0)(torch.zeros(2, 1, 3), path=path).weights.any()


# The bias of BalancedTopK


def balanced(rate: float = 0.1) -> ModelRouting:
    return ModelRouting.ffn(5, 8, 4, BalancedTopK(2, rate=rate))


def learn(net: ModelRouting, x: Tensor) -> None:
    net(x).sum().backward()


def moves(run: Callable[[ModelRouting, Tensor], object], net: ModelRouting | None = None) -> bool:
    """Whether a pass counts, after one that did."""
    net = balanced() if net is None else net
    learn(net, torch.randn(16, 5))
    bias = net.gate.bias.clone()
    run(net, torch.randn(16, 5))
    return not torch.equal(net.gate.bias, bias)


@pytest.mark.parametrize("topology", [Topology.parallel(4), Topology.dag(5)], ids=["parallel", "dag"])
def test_the_bias_follows_the_rule(topology: Topology) -> None:
    modules = [nn.Linear(5, 5) for _ in range(topology.num_nodes)]
    net = RoutedGraph(modules, topology, BalancedTopK(2, rate=0.1), LinearRouter(5, topology))
    bias, load = torch.zeros(topology.path_shape), None
    for _ in range(5):
        x = torch.randn(16, 5)
        z, chosen = net.router(x), torch.zeros(16, *topology.path_shape)
        for t, n in enumerate(topology.allowed.sum(-1).tolist()):
            if load is not None:
                bias[t, :n] += 0.1 * torch.sign(load[t, :n].mean() - load[t, :n])
            best = (torch.softmax(z[:, t, :n], -1) + bias[t, :n]).topk(min(2, n)).indices
            chosen[:, t].scatter_(-1, best, 1.0)
        load = chosen.sum(0)
        output, route = net(x, return_route=True)
        output.sum().backward()
        torch.testing.assert_close(net.gate.bias, bias)
        assert torch.equal(net.gate.load, load.long())
        torch.testing.assert_close(route.weights, torch.softmax(z.masked_fill(chosen == 0, -torch.inf), -1))


def test_the_bias_evens_the_load() -> None:
    net = balanced(rate=0.005)
    with torch.no_grad():
        net.router.layers[0].bias += torch.tensor([3.0, 2.0, 0.0, -1.0])
    x = torch.randn(256, 5)
    before = net(x, return_route=True)[1].path.sum(0)
    loads = []
    for _ in range(300):
        learn(net, x)
        loads.append(net.gate.load.clone())
    after = torch.stack(loads[-100:]).double().mean(0)
    assert before.max() > 230
    assert after.max() < 150
    assert after.min() > 106


def test_when_the_bias_moves() -> None:
    assert moves(lambda net, x: net(x))
    assert moves(lambda net, x: net(x, sample=False))
    assert not moves(lambda net, x: net.eval()(x))
    assert not moves(lambda net, x: net(x, path=net.gate.eval()(net.router(x)).path))
    assert not moves(lambda net, x: torch.no_grad()(net)(x))
    assert not moves(lambda net, x: torch.inference_mode()(net)(x))
    assert not moves(lambda net, x: torch.func.vmap(net)(x))
    assert not moves(lambda net, x: net(x), balanced(rate=0.0))
    torch.compiler.reset()
    assert moves(lambda net, x: torch.compile(net, fullgraph=True, backend="aot_eager")(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_backward_pass_counts_if_it_reaches_the_weights_or_they_need_none(frozen: bool) -> None:
    net = balanced()
    net.router.requires_grad_(not frozen)
    for _ in range(2):
        net(torch.randn(16, 5)).sum().backward(inputs=list(net.nodes[0].parameters()))
    assert bool(net.gate.bias.any()) == frozen


def test_checkpointing_runs_the_same_path_again() -> None:
    net, twin = balanced(rate=0.5), None
    for _ in range(4):
        twin = copy.deepcopy(net)
        x = torch.randn(16, 5, requires_grad=True)
        checkpoint(net, x, use_reentrant=False).square().sum().backward()
        (expected,) = torch.autograd.grad(twin(x).square().sum(), x)
        assert torch.equal(x.grad, expected)
        assert torch.equal(net.gate.bias, twin.gate.bias)
        assert torch.equal(net.gate.load, twin.gate.load)


def test_checkpointing_of_several_passes_before_one_backward() -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        net = balanced(rate=0.5)
        learn(net, torch.randn(16, 5))
        net.zero_grad()
        twin, batches = copy.deepcopy(net), torch.randn(3, 16, 5)
        sum(net(x).square().sum() for x in batches).backward()
        sum(checkpoint(twin, x, use_reentrant=False).square().sum() for x in batches).backward()
        for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
        assert torch.equal(net.gate.load, twin.gate.load)
        assert int(net.gate.load.sum()) == 2 * 3 * 16
        assert torch.equal(net.gate.bias, twin.gate.bias)


def test_what_was_learned_is_saved() -> None:
    net, other = balanced(), balanced()
    learn(net, torch.randn(16, 5))
    other.load_state_dict(net.state_dict())
    x = torch.randn(16, 5)
    net(x)
    other(x)
    assert net.gate.bias.any()
    assert torch.equal(net.gate.bias, other.gate.bias)


def test_the_rule_of_the_bias_counts_sources_that_dropout_closes() -> None:
    net = balanced(rate=0.01)
    net.router.dropout = 0.5
    for _ in range(20):
        learn(net, torch.randn(1, 5))
        load, bias = net.gate.load.float(), net.gate.bias.clone()
        learn(net, torch.randn(1, 5))
        torch.testing.assert_close(net.gate.bias - bias, 0.01 * torch.sign(load.mean() - load))


def test_a_gate_that_inference_mode_called_first_can_be_trained() -> None:
    gate = BalancedTopK(2, rate=0.1)
    with torch.inference_mode():
        gate(torch.randn(8, 1, 4))
    for _ in range(4):
        gate(torch.randn(7, 1, 4, requires_grad=True)).weights.square().sum().backward()
    assert gate.bias is not None
    assert gate.bias.any()


def test_the_bias_is_saved_copied_and_reset() -> None:
    net, other = balanced(), balanced()
    for _ in range(4):  # three moves, which cannot cancel
        learn(net, torch.randn(16, 5))
    other.load_state_dict(net.state_dict())
    x = torch.randn(16, 5)
    for twin in (other, copy.deepcopy(net)):
        assert torch.equal(twin.eval()(x), net.eval()(x))
    assert net.gate.bias.any()
    net.reset_parameters()
    assert not net.gate.bias.any()
    assert not net.gate.load.any()


@pytest.mark.parametrize("multi_avg_fn", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "moving"])
def test_networks_are_averaged_with_their_bias(multi_avg_fn: Callable[..., None] | None) -> None:
    net, x = balanced(rate=0.01), torch.randn(16, 5)
    averaged = AveragedModel(net, multi_avg_fn=multi_avg_fn, use_buffers=True)
    gate, expected = averaged.module.gate, torch.zeros_like(net.gate.bias)
    for i in range(6):
        learn(net, x)
        if i % 2:
            net(x)  # moves the bias, and no backward pass has run since
        averaged.update_parameters(net)
        expected.lerp_(net.gate.bias, 1 / (i + 1) if multi_avg_fn is None or i == 0 else 0.1)
        assert int(gate.learned) in (0, 1)
    assert expected.any()
    torch.testing.assert_close(gate.bias, expected)
    learn(averaged, x)
    learn(averaged, x)
    assert not torch.equal(gate.bias, expected)


def test_the_arguments_of_a_balanced_graph_construct_an_equal_one() -> None:
    for net in (balanced(rate=0.3), build("moe", 5, 3, 2, gate="balanced-2", width=6, depth=1)):
        graph = net if isinstance(net, ModelRouting) else net.routed
        twin = type(net)(**net.constructor_arguments())
        other = twin if isinstance(twin, ModelRouting) else twin.routed
        assert repr(other.gate) == repr(graph.gate)
        assert other.gate is not graph.gate
        assert other.gate.bias is not graph.gate.bias
        assert not other.gate.bias.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bias_stays_in_float32(dtype: torch.dtype) -> None:
    net = balanced(rate=1e-4)
    learn(net, torch.randn(16, 5))
    learn(net, torch.randn(16, 5))
    before = net.gate.bias.clone()
    net.to(dtype)
    assert net.gate.bias.dtype == torch.float32
    assert torch.equal(net.gate.bias, before)
    with torch.device("meta"):
        meta = balanced().to(dtype)
    assert meta.gate.bias.device.type == "meta"
    assert meta.to_empty(device="cpu").gate.bias.device.type == "cpu"


@pytest.mark.parametrize("assign", [True, False])
def test_a_graph_that_was_made_without_memory_balances_only_slots_that_exist(assign: bool) -> None:
    def make(device: str) -> ModuleRouting:
        return ModuleRouting.mlp(5, 8, 4, 2, gate=BalancedTopK(2, rate=0.1), device=device)

    net, twin = make("cpu"), make("meta")
    learn(twin, torch.randn(16, 5, device="meta"))
    if not assign:
        twin.to_empty(device="cpu")
        twin.reset_parameters()
    twin.load_state_dict(net.state_dict(), assign=assign)
    for _ in range(4):
        x = torch.randn(16, 5)
        learn(net, x)
        learn(twin, x)
    assert torch.equal(twin.gate.bias, net.gate.bias)
    assert net.gate.bias[net.topology.allowed].any()
    assert not net.gate.bias[~net.topology.allowed].any()


def test_a_source_without_probability_is_the_last_resort() -> None:
    gate = BalancedTopK(2)
    logits = torch.tensor([[[0.0, 1.0, -torch.inf]]])
    gate(logits)
    gate.bias[..., 2] = 9.0
    assert gate(logits).path.tolist() == [[[True, True, False]]]


# The noise of routers


def noisy(kind: Callable[..., Router] = LinearRouter, **options: float) -> ModelRouting:
    router = kind(5, Topology.parallel(6), **options)
    return ModelRouting([nn.Linear(5, 3) for _ in range(6)], TopK(2), router)


@pytest.mark.parametrize("kind", [LinearRouter, MLPRouter, CascadeRouter])
@pytest.mark.parametrize("option", [{"jitter": 0.9}, {"noise": 1.0}, {"dropout": 0.4}])
def test_noise_chooses_and_does_not_weigh(option: dict[str, float], kind: Callable[..., Router]) -> None:
    net = noisy(kind, **option)
    x = torch.randn(200, 5)
    clean = net.route(x, sample=False)
    y, route = net(x, return_route=True)
    assert 0 < (route.path != clean.path).any(-1).sum() < 200
    assert torch.equal(route.logits, clean.logits)
    assert torch.equal(route.weights, TopK(2)(clean.logits, path=route.path).weights)
    assert torch.equal(net(x, path=route), y)
    assert torch.equal(net.eval().route(x).path, clean.path)
    assert not torch.equal(net.route(x, sample=True).path, clean.path)


@pytest.mark.parametrize("kind", [LinearRouter, MLPRouter, CascadeRouter])
@pytest.mark.parametrize("option", [{"noise": 1.0}, {"dropout": 0.4}])
def test_noise_beside_features_that_are_integers(option: dict[str, float], kind: Callable[..., Router]) -> None:
    net, x = noisy(kind, **option), torch.randn(9, 5)
    context = torch.randint(0, 3, (9, 5))
    drawn = net.router.draw_noise(context)
    assert torch.equal(net(x, context, router_noise=drawn), net(x, context.float(), router_noise=drawn))


def test_noise_can_be_drawn_before() -> None:
    net = noisy(jitter=0.5, noise=1.0, dropout=0.3)
    x = torch.randn(50, 5)
    drawn = net.router.draw_noise(x, torch.Generator().manual_seed(3))
    seeded = net(x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(net(x, router_noise=drawn), seeded)
    each = torch.func.vmap(lambda x, *drawn: net(x, router_noise=dynroute.RouterNoise(*drawn)))(x, *drawn)
    torch.testing.assert_close(each, seeded)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, router_noise=drawn), seeded)
    assert compiled(x).shape == seeded.shape


def test_noise_is_what_it_says() -> None:
    net = noisy(jitter=0.25, noise=0.5, dropout=0.5)
    x = torch.randn(40, 5)
    drawn = net.router.draw_noise(x)
    assert drawn.jitter.abs().max() <= 1
    layer = net.router.layers[0]
    scores = (x * (1 + 0.25 * drawn.jitter)) @ layer.weight.T + layer.bias + 0.5 * drawn.normal
    scores = scores.detach()
    for b in range(40):
        kept = [j for j in range(6) if drawn.uniform[b, j] >= 0.5] or [int(drawn.uniform[b].argmax())]
        left = sorted(kept, key=lambda j: -float(scores[b, j]))[:2]
        path = net.route(x[b], router_noise=dynroute.RouterNoise(*(each[b] for each in drawn))).path[0]
        assert [j for j in range(6) if path[j]] == sorted(left)


@pytest.mark.parametrize("gate", [Soft, lambda: TopP(0.9), lambda: SampleK(3), lambda: BalancedTopK(3), Hard])
def test_every_gate_leaves_out_what_was_dropped(gate: Callable[[], Gate]) -> None:
    router = LinearRouter(5, Topology.parallel(6), dropout=0.5)
    net = ModelRouting([nn.Linear(5, 3) for _ in range(6)], gate(), router)
    x = torch.randn(60, 5)
    drawn = router.draw_noise(x)
    dropped = ((drawn.uniform < 0.5) & (drawn.uniform < drawn.uniform.amax(-1, keepdim=True))).unsqueeze(1)
    path = net.route(x, router_noise=drawn).path
    assert not (path & dropped).any()
    assert path.any(-1).all()


@pytest.mark.parametrize("option", [{"noise": 2.0}, {"dropout": 0.4}])
def test_tables_have_noise_too(option: dict[str, float]) -> None:
    router = TableRouter(3, Topology.parallel(4), **option)
    net = ModelRouting([nn.Linear(5, 3) for _ in range(4)], TopK(2), router)
    task = torch.arange(60) % 3
    assert len(net.route(torch.eye(3)[task]).path.unique(dim=0)) > 3
    assert len(net.route(task).path.unique(dim=0)) > 3


def test_noise_of_another_batch_is_refused() -> None:
    net = noisy(noise=1.0)
    x = torch.randn(32, 5)
    for other in (7, 1):
        with pytest.raises(ValueError, match=r"`router_noise` must be drawn for a context of shape \(32, 5\), got"):
            net(x, router_noise=net.router.draw_noise(torch.randn(other, 5)))


class Pooled(Router):
    def __init__(self, **options: float) -> None:
        super().__init__(Topology.parallel(4), **options)
        self.layer = nn.Linear(5, 4)

    def score(self, context: Tensor) -> Tensor:
        return self.layer(context.mean(1))


@pytest.mark.parametrize("shape", [(6, 7, 5), (7, 7, 5), (1, 7, 5)], ids=str)
def test_routers_that_pool_take_jitter_alone(shape: tuple[int, ...]) -> None:
    x, nodes = torch.randn(shape), [nn.Linear(5, 5) for _ in range(4)]
    assert ModelRouting(nodes, TopK(2), Pooled(jitter=0.1))(x).shape == shape
    for option in ({"noise": 1.0}, {"dropout": 0.5}):
        net = ModelRouting(nodes, TopK(2), Pooled(**option))
        with pytest.raises(ValueError, match=r"`noise` and `dropout` must be 0 for a router that pools dimensions"):
            net(x)
        assert net.eval()(x).shape == shape


def test_expert_choice_needs_a_capacity() -> None:
    gate = ExpertChoice(1.0)
    with pytest.raises(TypeError, match="`capacity` must be a number, got None"):
        gate.capacity = None
    gate.capacity = 2.0
    assert gate(torch.randn(8, 1, 4)).path.sum(0).tolist() == [[4, 4, 4, 4]]


def test_networks_do_not_share_a_gate() -> None:
    gate = BalancedTopK(2)
    sizes = {"num_modules": 4, "width": 4, "trunk_sizes": (6,), "router_sizes": (4,)}
    first, second = (build("d2r", 5, 3, 2, gate=gate, **sizes) for _ in range(2))
    assert first.graph.gate is not second.graph.gate
    assert first.graph.gate.bias is not second.graph.gate.bias
    assert gate.bias is None
