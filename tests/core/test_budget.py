"""Budgets: the expected cost against an enumeration of all paths, a price that learns, and paths that are cut."""

import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynroute import (
    Budget,
    Gate,
    Hard,
    LinearRouter,
    ModuleRouting,
    Route,
    SampleK,
    Soft,
    TableRouter,
    TopK,
    Topology,
    limit_modules,
)
from dynroute.functional import best_k
from dynroute.inspect import flow
from dynroute.losses import compute_cost

TOPOLOGIES = [
    Topology.dag(3),
    Topology.dag(4),
    Topology.dag(5),
    Topology.layered([3, 3]),
    Topology.layered([2, 3, 2]),
    Topology.parallel(5),
    Topology([[], [], [0, 1], [0, 2], [1, 2, 3]]),
]


def rows(logits: Tensor, topology: Topology, draws: int) -> list[dict[frozenset[int], float]]:
    """How likely each set of sources is drawn without replacement, for each destination."""
    found = []
    for t, node in enumerate(topology.destinations):
        parents = topology.parents[node]
        p = logits[t, : len(parents)].softmax(dim=0).tolist()
        row: dict[frozenset[int], float] = {}
        for order in itertools.permutations(range(len(parents)), min(draws, len(parents))):
            chance, rest = 1.0, 1.0
            for s in order:
                chance, rest = chance * p[s] / rest, max(rest - p[s], 1e-300)
            row[frozenset(parents[s] for s in order)] = row.get(frozenset(parents[s] for s in order), 0.0) + chance
        found.append(row)
    return found


def enumerated(logits: Tensor, topology: Topology, draws: int, costs: list[float]) -> float:
    """The expected cost over all paths of a small graph."""
    total = 0.0
    for choice in itertools.product(*(row.items() for row in rows(logits, topology, draws))):
        used = {topology.num_nodes - 1}
        for node, (sources, _) in reversed(list(zip(topology.destinations, choice, strict=True))):
            used |= sources if node in used else set()
        total += math.prod(chance for _, chance in choice) * sum(costs[node] for node in used)
    return total


@given(
    topology=st.sampled_from(TOPOLOGIES),
    draws=st.integers(1, 3),
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_the_expected_cost_is_that_of_all_paths(topology: Topology, draws: int, spread: float, seed: int) -> None:
    torch.manual_seed(seed)
    logits = spread * torch.randn(2, *topology.path_shape, dtype=torch.float64)
    costs = (torch.rand(topology.num_nodes, dtype=torch.float64) + 0.5).tolist()
    gate = Hard() if draws == 1 else TopK(draws)
    route = gate(logits, allowed=topology.allowed)
    cost = compute_cost(route, topology, costs)
    expected = torch.tensor([enumerated(sample, topology, draws, costs) for sample in logits], dtype=torch.float64)
    exact = draws == 1 or draws >= topology.path_shape[1]
    torch.testing.assert_close(cost, expected, rtol=1e-8 if exact else 0.12, atol=0.0)


@given(topology=st.sampled_from(TOPOLOGIES), draws=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_sure_router_costs_what_runs(topology: Topology, draws: int, seed: int) -> None:
    torch.manual_seed(seed)
    order = torch.rand(5, *topology.path_shape).argsort(dim=-1).double()
    route = (Hard() if draws == 1 else TopK(draws))(60 * order, allowed=topology.allowed)
    used = topology.used(route.path).sum(dim=-1)
    torch.testing.assert_close(compute_cost(route, topology), used.double(), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("gate", [Soft(), Hard(), TopK(2), SampleK(2), SampleK(3)], ids=str)
def test_the_gradient_of_the_cost(gate: Gate) -> None:
    topology = Topology.dag(5)
    logits = torch.randn(3, *topology.path_shape, dtype=torch.float64, requires_grad=True)
    path = gate(logits, allowed=topology.allowed).path

    def cost(logits: Tensor) -> Tensor:
        return compute_cost(gate(logits, allowed=topology.allowed, path=path), topology)

    assert torch.autograd.gradcheck(cost, logits)
    for scale in (1e3, 1e30):  # where probabilities underflow
        (grad,) = torch.autograd.grad(cost(scale * logits).sum(), logits)
        assert grad.isfinite().all()
        (grad,) = torch.autograd.grad(cost((scale * logits).float()).sum(), logits)
        assert grad.isfinite().all()


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_the_second_derivative_of_the_cost(topology: Topology, draws: int) -> None:
    gate = Hard() if draws == 1 else TopK(draws)
    logits = torch.randn(2, *topology.path_shape, dtype=torch.float64, requires_grad=True)
    path = gate(logits, allowed=topology.allowed).path

    def cost(logits: Tensor) -> Tensor:
        return compute_cost(gate(logits, allowed=topology.allowed, path=path), topology)

    assert torch.autograd.gradgradcheck(cost, logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_price_stays_in_float32(dtype: torch.dtype) -> None:
    budget = Budget(4.0, 2)
    budget.multiplier_loss(torch.tensor([5.0, 6.0]), torch.tensor([0, 1])).backward()
    before = budget.log_multiplier.detach().clone()
    prices = torch.optim.Adam(budget.to(dtype).parameters(), lr=3e-4)
    assert torch.equal(budget.log_multiplier, before)
    prices.step()
    assert (budget.log_multiplier > before).all()
    assert budget.log_multiplier.grad.dtype == torch.float32
    assert budget.double().multiplier.dtype == torch.float64


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_price_is_made_in_float32_or_wider(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert Budget(2.0).multiplier.dtype == (torch.float64 if default == torch.float64 else torch.float32)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("low", "dtype"), [(-86, torch.float32), (-95, torch.float32), (-740, torch.float64)])
@pytest.mark.parametrize("k", [3, 5])
def test_the_cost_of_sources_that_almost_underflow_is_that_without_them(k: int, low: float, dtype: torch.dtype) -> None:
    topology = Topology.dag(9)
    logits = torch.zeros(topology.path_shape, dtype=dtype)
    logits[:, 1:] = low
    logits.requires_grad_()
    cost = compute_cost(TopK(k)(logits, allowed=topology.allowed), topology)
    (grad,) = torch.autograd.grad(cost, logits)
    assert float(cost.detach()) == 2.0  # the output reads the first node
    assert grad.isfinite().all()


def test_soft_routes_cost_all_nodes() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2, gate=Soft())
    assert torch.equal(compute_cost(net.route(torch.randn(7, 5)), net.topology), torch.full((7,), 5.0))


@pytest.mark.slow
@pytest.mark.parametrize("gate", [Hard(), SampleK(2)], ids=str)
def test_a_price_that_learns_holds_each_task_at_its_target(gate: Gate) -> None:
    topology, tasks = Topology.dag(9), torch.arange(3)
    router = TableRouter(3, topology)
    with torch.no_grad():
        router.table.mul_(0.1)
    budget = Budget(3.0 if isinstance(gate, Hard) else 5.0, num_tasks=3, initial=0.1)
    learner = torch.optim.Adam(router.parameters(), lr=6e-2)
    prices = torch.optim.Adam(budget.parameters(), lr=2e-2)
    wanted = torch.tensor([6.0, 7.0, 8.0])
    costs = []
    for _ in range(600):
        route = gate(router(tasks), allowed=topology.allowed, sample=True)
        cost = compute_cost(route, topology)
        learner.zero_grad()
        ((cost - wanted).square().mean() + budget(cost, tasks)).backward()
        learner.step()
        prices.zero_grad()
        budget.multiplier_loss(cost, tasks).backward()
        prices.step()
        costs.append(cost.detach())
    mean = torch.stack(costs[-100:]).mean(dim=0)
    torch.testing.assert_close(mean, torch.full((3,), budget.target), rtol=0.05, atol=0.0)
    assert (budget.multiplier.diff() > 0).all()  # who wants more pays more


def test_costs_that_are_not_finite_leave_the_price_alone() -> None:
    bad, inf, task = float("nan"), float("inf"), torch.tensor([0, 1, 1])
    for cost, finite in [([bad, 5.0], [5.0]), ([bad, inf, 6.0, 5.0], [6.0, 5.0])]:
        budgets = [Budget(4.0), Budget(4.0)]
        for budget, costs in zip(budgets, (cost, finite), strict=True):
            budget.multiplier_loss(torch.tensor(costs)).backward()
        assert torch.equal(budgets[0].log_multiplier.grad, budgets[1].log_multiplier.grad)
    budget = Budget(4.0, 2)
    budget.multiplier_loss(torch.tensor([bad, 5.0, 6.0]), task).backward()
    assert budget.log_multiplier.grad.tolist() == [0.0, -1.5]
    budget = Budget(4.0)
    budget.multiplier_loss(torch.tensor([bad, inf])).backward()
    assert budget.log_multiplier.grad == 0


def test_a_price_falls_below_the_target_and_is_part_of_the_state() -> None:
    budget = Budget(4.0)
    prices = torch.optim.SGD(budget.parameters(), lr=1.0)
    cost = torch.tensor([3.0, 4.0], requires_grad=True)
    budget.multiplier_loss(cost).backward()
    assert cost.grad is None
    prices.step()
    assert budget.multiplier < 0.01
    budget.zero_grad()
    budget(cost).backward()
    torch.testing.assert_close(cost.grad, budget.multiplier.expand(2) / 2)
    assert budget.log_multiplier.grad is None
    twin = Budget(4.0)
    twin.load_state_dict(budget.state_dict())
    assert torch.equal(twin.multiplier, budget.multiplier)
    assert repr(Budget(2, 3)) == "Budget(target=2, num_tasks=3)"


def cut(route: Route, topology: Topology, limit: int) -> tuple[set[int], list[list[bool]]]:
    """The nodes that stay and the path of one sample, straight from the definition."""
    heights: list[int] = []
    for parents in topology.parents:
        heights.append(1 + min((heights[j] for j in parents), default=0))
    used, share = topology.used(route.path).tolist(), flow(topology, route).tolist()
    row = {node: t for t, node in enumerate(topology.destinations)}
    chosen = {node: [j for s, j in enumerate(topology.parents[node]) if route.path[t, s]] for node, t in row.items()}

    def best(node: int, sources: list[int], scores: Tensor) -> int:
        return max(sources, key=lambda j: (float(scores[row[node], topology.parents[node].index(j)]), -j))

    node, kept = topology.num_nodes - 1, {topology.num_nodes - 1}
    while topology.parents[node]:
        reachable = [j for j in topology.parents[node] if heights[j] <= limit - len(kept)]
        of_path = [j for j in chosen[node] if j in reachable]
        node = best(node, of_path, route.weights) if of_path else best(node, reachable, route.logits)
        kept.add(node)
    while len(kept) < limit:
        ready = [
            j
            for j in range(topology.num_nodes)
            if used[j] and j not in kept and (not topology.parents[j] or kept & set(topology.parents[j]))
        ]
        if not ready:
            break
        kept.add(max(ready, key=lambda j: (share[j], -j)))
    reads = []
    for node in topology.destinations:
        stays = [j for j in topology.parents[node] if j in kept]
        sources = [j for j in chosen[node] if j in stays] or ([best(node, stays, route.logits)] if stays else [])
        reads.append([j in sources for j in topology.parents[node]])
    return kept, reads


@given(
    topology=st.sampled_from([*TOPOLOGIES, Topology.dag(9)]),
    gate=st.sampled_from([Soft(), Hard(), TopK(2), SampleK(3)]),
    room=st.integers(0, 5),
    shape=st.sampled_from([(), (6,), (2, 3), (0,)]),
    seed=st.integers(0, 99),
)
def test_a_limit_cuts_paths_as_defined(
    topology: Topology, gate: Gate, room: int, shape: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    route = gate(3 * torch.randn(*shape, *topology.path_shape), allowed=topology.allowed, sample=True)
    heights: list[int] = []
    for parents in topology.parents:
        heights.append(1 + min((heights[j] for j in parents), default=0))
    limit = min(heights[-1] + room, topology.num_nodes)

    path = limit_modules(route, topology, limit)
    topology.check_path(path)
    assert path.shape == route.path.shape
    used = topology.used(path)
    assert (used.sum(dim=-1) <= limit).all()
    assert path.any(dim=-1).all()
    within = topology.used(route.path).sum(dim=-1) <= limit
    assert torch.equal(path[within], route.path[within])
    gate(route.logits, allowed=topology.allowed, path=path)  # it can be replayed

    flat = Route(*(tensor.reshape(-1, *topology.path_shape) for tensor in route))
    for index, sample in enumerate(path.reshape(-1, *topology.path_shape)):
        if within.reshape(-1)[index]:
            continue
        kept, reads = cut(flat.sample(index), topology, limit)
        assert set(topology.used(sample).nonzero().flatten().tolist()) <= kept
        for t, node in enumerate(topology.destinations):
            if node in kept:
                assert sample[t, : len(reads[t])].tolist() == reads[t]


@pytest.mark.parametrize("backend", ["auto", "reference", "sparse", "fused"])
def test_a_cut_path_runs_everywhere(backend: str) -> None:
    net = ModuleRouting.mlp(5, 8, 8, 2, gate=TopK(3), backend=backend).eval()
    x = torch.randn(33, 5)
    y, route = net(x, path=limit_modules(net.route(x), net.topology, 3), return_route=True)
    assert y.isfinite().all()
    assert net.topology.used(route.path).sum(dim=-1).max() == 3


DAG = Topology.dag(4)
ROUTE = TopK(2)(torch.zeros(2, 3, 3), allowed=DAG.allowed)
CLOSED = ROUTE._replace(logits=ROUTE.logits.masked_fill(torch.arange(18).view(2, 3, 3) == 16, -torch.inf))
NAN = torch.full((4,), torch.nan)


class Limited(nn.Module):
    """A net that runs at most four modules for a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ModuleRouting.mlp(5, 8, 6, 2, gate=TopK(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, path=limit_modules(self.net.route(x), self.net.topology, 4))


def test_a_net_with_a_limit_is_exported_for_any_batch() -> None:
    net, x = Limited().eval(), torch.randn(32, 5)
    exported = torch.export.export(net, (x[:8],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).module()
    for batch in (1, 32):
        torch.testing.assert_close(exported(x[:batch]), net(x[:batch]))


def test_a_limit_beyond_the_nodes_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    choices: list[int] = []

    def counted(*args: Tensor | int) -> Tensor:
        choices.append(1)
        return best_k(*args)

    monkeypatch.setattr("dynroute.budget.best_k", counted)
    net = ModuleRouting.mlp(5, 8, 4, 2).eval()
    route = net.route(torch.randn(9, 5))
    assert torch.equal(limit_modules(route, net.topology, 5), route.path)
    most = len(choices)
    assert torch.equal(limit_modules(route, net.topology, 10**9), route.path)
    assert len(choices) == 2 * most


def test_a_budget_takes_a_device_and_a_type() -> None:
    assert Budget(3.0, 2, dtype=torch.float64).multiplier.dtype == torch.float64
    assert Budget(3.0, device="meta").log_multiplier.device.type == "meta"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute_cost(ROUTE.path, DAG), "`route` must be a Route, got a tensor of torch.bool"),
        (lambda: compute_cost(ROUTE, 4), "`topology` must be a Topology, got 4; `net.topology` is one."),
        (lambda: compute_cost(ROUTE, Topology.dag(5)), "`route` must have shape (*, 4, 4), got (2, 3, 3); was it made"),
        (lambda: compute_cost(ROUTE, DAG, "abc"), "`costs` must list a number for each node, got 'abc'."),
        (lambda: compute_cost(ROUTE, DAG, [1.0]), "`costs` must have shape (4,), a number for each node and the outpu"),
        (lambda: compute_cost(ROUTE, DAG, NAN), "`costs` must be finite and not negative, got nan of node 0."),
        (lambda: Budget(0.0), "`target` must be above 0, got 0.0."),
        (lambda: Budget(3.0, initial="a"), "`initial` must be a number, got 'a'."),
        (lambda: Budget(3.0, dtype=torch.bfloat16), "`dtype` must have at least 32 bits, got torch.bfloat16, in "),
        (lambda: Budget(3.0, 0), "`num_tasks` must be at least 1, got 0."),
        (lambda: Budget(3.0)(1.0), "`cost` must be a tensor, got float"),
        (lambda: Budget(3.0)(torch.ones(0)), "`cost` must hold the cost of at least one sample, got a tensor of"),
        (lambda: Budget(3.0)(torch.ones(2), torch.zeros(2).long()), "`task` must be None where one multiplier serves"),
        (lambda: Budget(3.0, 2)(torch.ones(2)), "`task` must name the task of each sample, since each task has a mul"),
        (lambda: Budget(3.0, 2)(torch.ones(2), torch.zeros(2)), "`task` must hold integer task ids, got torch.float32"),
        (lambda: Budget(3.0, 2)(torch.ones(2), torch.zeros(3).long()), "`task` must have the shape of the costs (2,),"),
        (lambda: Budget(3.0, 2)(torch.ones(2), torch.tensor([0, 2])), "`task` must be in 0..1, got 2 at (1,)."),
        (lambda: limit_modules(ROUTE.path, DAG, 2), "`route` must be a Route, got a tensor of torch.bool"),
        (lambda: limit_modules(ROUTE, None, 2), "`topology` must be a Topology, got None; `net.topology` is one."),
        (lambda: limit_modules(ROUTE, DAG, 1), "`limit` must be at least 2, the shortest chain to the output, got 1."),
        (lambda: limit_modules(ROUTE, DAG, 2.0), "`limit` must be an integer, got 2.0."),
        (lambda: limit_modules(CLOSED, DAG, 2), "`route` must leave all sources open to be cut, but row (1, 2) has a"),
        (lambda: limit_modules(ROUTE, Topology.dag(5), 2), "`path` must have shape (*, 4, 4), got (2, 3, 3); was it"),
    ],
)  # fmt: skip
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()


def test_costs_of_a_batch_can_be_weighed() -> None:
    net = ModuleRouting([torch.nn.Linear(5, 5) for _ in range(4)], Hard(), LinearRouter(5, DAG))
    cost = compute_cost(net.route(torch.randn(2, 3, 5)), DAG, costs=[2.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(cost, torch.full((2, 3), 3.0))
