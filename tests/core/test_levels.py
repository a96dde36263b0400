"""The four levels: what each is a special case of, what skips, what replays, and what they refuse."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dynroute
from dynroute import (
    BalancedTopK,
    ExpertChoice,
    Hard,
    LayerRouting,
    LinearRouter,
    MLPRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    Router,
    SampleK,
    Soft,
    TableRouter,
    TopK,
    Topology,
    TopP,
)
from dynroute.execution.backends import _context
from dynroute.functional import gumbel_noise
from dynroute.testing import assert_routed

LEVELS = {
    "module": lambda gate: ModuleRouting.mlp(5, 8, 6, 3, 4, gate),
    "module without shortcut": lambda gate: ModuleRouting.mlp(5, 8, 6, 3, 4, gate, shortcut=False, protect="sg"),
    "layer": lambda gate: LayerRouting.mlp(5, 8, [3, 2, 3], 3, 4, gate, protect="rsg"),
    "model": lambda gate: ModelRouting.mlp(5, 8, 4, 3, 4, gate, protect="rsg"),
}
GATES = {
    "soft": Soft,
    "hard": Hard,
    "topk": lambda: TopK(2),
    "samplek": lambda: SampleK(2),
    "topp": lambda: TopP(0.6),
    "balanced": lambda: BalancedTopK(2, rate=0.1),
    "expert choice": lambda: ExpertChoice(1.0),
    "capacity": lambda: SampleK(2, capacity=0.8),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_contract(level: object, gate: object, device: torch.device, dtype: torch.dtype) -> None:
    net = level(gate()).to(device, dtype)
    x, context = torch.randn(32, 5, device=device, dtype=dtype), torch.randn(32, 4, device=device, dtype=dtype)
    assert_routed(net, x, context)


def test_contract_of_output_level(device: torch.device, dtype: torch.dtype) -> None:
    net = OutputRouting.mlp(5, 8, 4, 3).to(device, dtype)
    x, task = torch.randn(12, 5, device=device, dtype=dtype), torch.arange(12, device=device) % 4
    assert_routed(net, x, task)
    assert_routed(net, x, nn.functional.one_hot(task, 4).to(dtype))


class Restricted(Router):
    """The logits of a smaller graph, at the slots that the same edges have in a DAG over the same nodes."""

    def __init__(self, inner: Router, dag: Topology) -> None:
        super().__init__(dag)
        self.inner = inner

    def score(self, context: Tensor) -> Tensor:
        logits = self.inner(context)
        wide = logits.new_full((*logits.shape[:-2], *self.topology.path_shape), -torch.inf)
        for t, node in enumerate(self.inner.topology.destinations):
            for s, source in enumerate(self.inner.topology.parents[node]):
                wide[..., node - 1, source] = logits[..., t, s]
        return self.topology.to_edges(wide)


class ReadsInput(nn.Module):
    """A node of a DAG that reads the input of the network, whatever is mixed for it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.input: Tensor | None = None

    def forward(self, mixed: Tensor) -> Tensor:
        assert self.input is not None
        return self.inner(self.input)


@pytest.mark.parametrize("gate", [Soft(), TopK(2), Hard()], ids=["soft", "topk", "hard"])
@pytest.mark.parametrize("level", ["layer", "model"])
def test_layer_and_model_level_are_module_level_with_fewer_edges(level: str, gate: dynroute.Gate) -> None:
    networks = {"layer": LayerRouting.mlp(4, 4, [2, 3, 2], 4, 4, gate), "model": ModelRouting.mlp(4, 4, 3, 4, 4, gate)}
    net = networks[level]
    roots = [node for node, parents in enumerate(net.topology.parents) if not parents]

    modules = [ReadsInput(m) if node in roots[1:] else m for node, m in enumerate(net.nodes)]
    dag = Topology.dag(len(modules))
    every_edge = Restricted(net.router, dag)

    class Rows(dynroute.Gate):
        """The gate on the rows that the smaller graph has; the other roots read nothing."""

        @property
        def may_be_empty(self) -> bool:
            return True

        def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
            return gate(logits.masked_fill(empty(logits), 0.0), allowed=reachable(logits)).path & ~empty(logits)

        def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
            return gate.weigh(logits, path)

    def empty(logits: Tensor) -> Tensor:
        return (logits == -torch.inf).all(-1, keepdim=True)

    def reachable(logits: Tensor) -> Tensor:
        return (logits > -torch.inf) | (empty(logits) & (torch.arange(logits.shape[-1]) == 0))

    # The modules that read the input keep it from sample to sample, so that they see the batch.
    wide = ModuleRouting(modules, Rows(), every_edge, shortcut=False, protect="none", backend="reference")
    x = torch.randn(9, 4)
    for module in modules:
        if isinstance(module, ReadsInput):
            module.input = x
    torch.testing.assert_close(wide(x), net(x))


@pytest.mark.parametrize("gate", [Soft, lambda: TopK(2), Hard], ids=["soft", "topk", "hard"])
def test_layer_level_is_a_graph_with_the_same_parents(gate: object) -> None:
    layers = [[nn.Linear(3, 4) for _ in range(2)], [nn.Linear(4, 4) for _ in range(3)]]
    head = nn.Linear(4, 2)
    topology = Topology([[], [], [0, 1], [0, 1], [0, 1], [2, 3, 4]])
    router = LinearRouter(3, topology)
    layered = LayerRouting(layers, gate(), router, head=head)
    graph = RoutedGraph([*layers[0], *layers[1], head], topology, gate(), router)
    x = torch.randn(5, 3)
    assert torch.equal(layered(x), graph(x))


@pytest.mark.parametrize("protect", ["rsg", "input", "sg", "none"])
def test_unused_nodes_have_no_gradient_and_can_be_removed(protect: str) -> None:
    net = ModuleRouting.mlp(3, 4, 5, 2, 3, TopK(2), protect=protect, activation=nn.Tanh)
    path = torch.zeros(5, 5, dtype=torch.bool)
    path[0, 0] = path[1, 0] = path[2, 1] = path[3, 0] = path[3, 1] = path[4, 1] = path[4, 4] = True
    # the output 5 reads 1 and 4, 4 reads 0 and 1: nodes 2 and 3 run for nothing
    x = torch.randn(7, 3)
    output, route = net(x, path=path.expand(7, 5, 5), return_route=True)
    assert net.topology.used(path).tolist() == [True, True, False, False, True, True]

    output.square().sum().backward()
    for node in (2, 3):
        assert all(p.grad is not None and not p.grad.any() for p in net.nodes[node].parameters())
    for node in (1, 4, 5):
        assert all(p.grad is not None for p in net.nodes[node].parameters())
        assert any(p.grad.any() for p in net.nodes[node].parameters() if p.grad is not None)

    class Given(Router):
        def score(self, context: Tensor) -> Tensor:
            logits = route.logits
            return torch.stack(
                [logits[:, 0, 0], logits[:, 3, 0], logits[:, 3, 1], logits[:, 4, 1], logits[:, 4, 4]], -1
            )

    smaller = Topology([[], [0], [0, 1], [1, 2]])
    kept = [net.nodes[i] for i in (0, 1, 4, 5)]
    pruned = RoutedGraph(kept, smaller, Soft(), Given(smaller), shortcut=True)
    torch.testing.assert_close(pruned(x), output)


@given(st.sampled_from(sorted(LEVELS)), st.sampled_from(sorted(GATES)), st.integers(0, 1000))
def test_replay_reproduces_the_output_bit_for_bit(level: str, gate: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = LEVELS[level](GATES[gate]())
    x, context = torch.randn(9, 5), torch.randn(9, 4)
    output, route = net(x, context, temperature=3.0, return_route=True)
    for record in (route, route.path, net.topology.unpack(net.topology.pack(route.path))):
        assert torch.equal(net(x, context, path=record), output)


@given(st.integers(2, 6), st.sampled_from(["rsg", "input", "sg", "none"]), st.booleans(), st.integers(0, 1000))
def test_only_used_nodes_matter(num_modules: int, protect: str, shortcut: bool, seed: int) -> None:
    torch.manual_seed(seed)
    net = ModuleRouting.mlp(
        3, 4, num_modules, 2, 3, router_sizes=(), protect=protect, shortcut=shortcut, activation=nn.Tanh
    )
    x = torch.randn(3, 3)
    output, route = net(x, return_route=True)
    output.square().sum().backward()
    unused = ~net.topology.used(route.path).any(dim=0)
    for node in unused.nonzero().flatten().tolist():
        assert all(p.grad is not None and not p.grad.any() for p in net.nodes[node].parameters())
        with torch.no_grad():
            for parameter in net.nodes[node].parameters():
                parameter.fill_(torch.nan)  # as good as removed
    assert torch.equal(net(x, path=route), output)


def test_what_is_not_read_may_be_no_number() -> None:
    net = OutputRouting.mlp(3, 4, 3, 2)
    x, task = torch.randn(6, 3), torch.arange(6) % 3
    expected = net(x, task)
    with torch.no_grad():
        net.nodes[1][0].weight.fill_(torch.inf)
    kept = task != 1
    assert torch.equal(net(x, task)[kept], expected[kept])
    net(x, task)[kept].sum().backward()
    assert all(p.grad.isfinite().all() for node in (0, 2) for p in net.nodes[node].parameters())


def test_settings_can_be_changed_and_are_checked() -> None:
    net = ModuleRouting.mlp(3, 4, 3, 2)
    net.protect = "input"
    assert net.protect == "input"
    with pytest.raises(ValueError, match="`protect` must be one of 'rsg', 'input', 'sg', 'none', got 'all'"):
        net.protect = "all"
    assert net.shortcut
    with pytest.raises(AttributeError):
        net.shortcut = False


def test_the_backend_of_a_context_is_that_of_its_thread() -> None:
    seen: list[str | None] = []
    with dynroute.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_context.name))
        thread.start()
        thread.join()
    assert seen == [None]


def test_gradients_are_finite_when_the_replayed_path_leaves_out_the_best_source() -> None:
    net = ModuleRouting.mlp(3, 4, 5, 2, 3, TopK(2), router_sizes=())
    with torch.no_grad():
        net.router.layers[0].bias.add_(1e4 * torch.eye(5).flip(0)[net.topology.allowed])
    best = net.route(torch.zeros(3)).path
    path = net.topology.allowed & ~(net.route(torch.zeros(3)).logits > 1e3)
    path[:1] = best[:1]
    net(torch.randn(7, 3), path=path.expand(7, 5, 5)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_task_never_reaches_the_head_of_another() -> None:
    net = OutputRouting.mlp(3, 4, 5, 2)
    task = torch.tensor([0, 3, 3])
    for sample in range(3):
        net.zero_grad(set_to_none=True)
        net(torch.randn(3, 3), task)[sample].sum().backward()
        for head in range(5):
            gradients = [p.grad for p in net.nodes[head].parameters() if p.grad is not None]
            assert any(g.any() for g in gradients) == (head == int(task[sample]))


def test_samples_do_not_leak_into_each_other() -> None:
    for level in LEVELS.values():
        net = level(TopK(2)).double()
        x, context = torch.randn(4, 5).double(), torch.randn(4, 4).double()
        jacobian = torch.autograd.functional.jacobian(lambda x, net=net, context=context: net(x, context), x)
        for i in range(4):
            for j in range(4):
                assert (jacobian[i, :, j].abs().sum() > 0) == (i == j)


def test_modules_of_any_kind_and_features_of_any_rank() -> None:
    topology = Topology.dag(4)
    modules = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Identity(), nn.Conv2d(6, 2, 1)]
    net = ModuleRouting(modules, TopK(2), TableRouter(5, topology))
    images, task = torch.randn(7, 3, 8, 8), torch.arange(7) % 5
    output = net(images, task)
    assert output.shape == (7, 2, 8, 8)
    torch.testing.assert_close(net(images[3:4], task[3:4])[0], output[3])


def test_one_context_for_a_whole_batch() -> None:
    net = ModuleRouting.mlp(3, 4, 3, 2, 5, TopK(2))
    x, context = torch.randn(7, 3), torch.randn(5)
    torch.testing.assert_close(net(x, context), net(x, context.expand(7, 5)))


def test_temperature_for_each_sample_reaches_the_gate() -> None:
    net = ModuleRouting.mlp(3, 4, 5, 2, 3, SampleK(2))
    x = torch.randn(400, 3)
    temperature = torch.cat([torch.full((200,), 1e-4), torch.full((200,), 1e4)])
    path = net.route(x, temperature=temperature).path
    best = net.route(x, sample=False).path
    agree = (path == best).all(-1).all(-1)
    assert agree[:200].all()
    assert agree[200:].float().mean() < 0.2


def test_sample_overrides_the_mode_of_the_module() -> None:
    net = ModuleRouting.mlp(3, 4, 5, 2, 3)
    x = torch.randn(64, 3)
    best = net.eval().route(x).path
    assert torch.equal(net.train().route(x, sample=False).path, best)
    assert not torch.equal(net.eval().route(x, sample=True).path, best)


def test_backend_setting_and_context() -> None:
    net = ModuleRouting.mlp(3, 4, 3, 2)
    assert net.backend == "auto"
    net.backend = "reference"
    known = "'auto', 'fused', 'reference', 'skip', 'sparse'"
    with pytest.raises(ValueError, match=f"`backend` must be one of {known}, got 'fast'"):
        net.backend = "fast"
    with pytest.raises(ValueError, match="`backend` must be one of"), dynroute.backend("fast"):
        raise AssertionError("the context must not be entered")
    x = torch.randn(2, 3)
    outside = net.eval()(x)
    with dynroute.backend("reference"):
        assert torch.equal(net(x), outside)


def build(**changes: object) -> RoutedGraph:
    topology = Topology.dag(3)
    modules = [nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)]
    arguments: dict[str, object] = {
        "modules": modules,
        "topology": topology,
        "gate": TopK(2),
        "router": LinearRouter(3, topology),
    }
    return RoutedGraph(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"modules": []}, ValueError, "`modules` must hold one module for each of the 3 nodes, got 0"),
        ({"topology": 3}, TypeError, r"`topology` must be a Topology, got 3; for instance Topology\.dag\(8\)"),
        ({"gate": 2}, TypeError, r"`gate` must be a Gate such as TopK\(2\), got 2"),
        ({"gate": TopK}, TypeError, r"`gate` must be a Gate such as TopK\(2\), got <class"),
        ({"router": 3}, TypeError, "`router` must be a module such as LinearRouter"),
        ({"context_features": 3}, ValueError, "`context_features` must be None beside a router"),
        ({"router": None, "context_features": 0}, ValueError, "`context_features` must be at least 1, got 0"),
        ({"router": LinearRouter(3, Topology.dag(4))}, ValueError, r"made for the graph's topology .*, got one for"),
        ({"protect": "all"}, ValueError, "`protect` must be one of 'rsg', 'input', 'sg', 'none', got 'all'"),
        ({"backend": "fast"}, ValueError, "`backend` must be one of"),
    ],
)
def test_bad_constructions_are_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**changes)


def test_empty_levels_are_refused() -> None:
    router = LinearRouter(3, Topology.dag(3))
    with pytest.raises(ValueError, match="`modules` must hold at least 2 modules, a first and an output, got 0"):
        ModuleRouting([], TopK(2), router)
    with pytest.raises(ValueError, match=r"`layers` must hold at least one layer .* got sizes \[\]"):
        LayerRouting([], TopK(2), router)
    with pytest.raises(TypeError, match=r"`layers\[0\]` must list the modules of a layer, got Linear; wrap it"):
        LayerRouting([nn.Linear(3, 3), nn.Linear(3, 3)], TopK(2), router)
    with pytest.raises(ValueError, match="`depth` must be at least 0, got -1"):
        ModelRouting.mlp(3, 4, 2, 2, depth=-1)
    with pytest.raises(ValueError, match="`depth` must be at least 0, got -1"):
        OutputRouting.mlp(3, 4, 2, 2, depth=-1)
    with pytest.raises(ValueError, match=r"`layers` must hold at least one layer .* got sizes \[1, 0\]"):
        LayerRouting([[nn.Identity()], []], TopK(2), router)
    with pytest.raises(ValueError, match="`models` must hold at least one network, got none"):
        ModelRouting([], TopK(2), router)
    with pytest.raises(ValueError, match="`heads` must hold at least one module, got none"):
        OutputRouting([])
    with pytest.raises(ValueError, match="`num_modules` must be at least 1, got 0"):
        ModuleRouting.mlp(3, 4, 0, 2)
    with pytest.raises(ValueError, match="`num_models` must be at least 1, got 0"):
        ModelRouting.mlp(3, 4, 0, 2)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        OutputRouting.mlp(3, 4, 0, 2)
    with pytest.raises(TypeError, match=r"`layer_sizes` must list sizes, got 3; one size is \(3,\)"):
        LayerRouting.mlp(3, 4, 3, 2)


def test_modules_that_take_other_widths_are_left_to_themselves() -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., ::2])

    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., ::2])  # type: ignore[no-any-return]

    hooked = nn.Linear(3, 4)
    hooked.register_forward_pre_hook(lambda module, arguments: (arguments[0][..., ::2],))
    inside = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    inside.register_forward_pre_hook(lambda module, arguments: (arguments[0][..., ::2],))
    for first in (Half(3, 4), Twice(nn.Linear(3, 4)), hooked, inside, nn.LazyLinear(4)):
        net = ModuleRouting([first, nn.Linear(4, 4), nn.Linear(4, 2)], Soft(), LinearRouter(6, Topology.dag(3)))
        for setting in ("reference", "auto"):
            net.backend = setting
            assert net(torch.randn(7, 6)).shape == (7, 2)


def test_bad_inputs_are_refused() -> None:
    net = build()
    with pytest.raises(ValueError, match=r"`context` must have shape \(\*, 3\) for this router, got \(7, 5\)"):
        net(torch.zeros(7, 3), torch.zeros(7, 5))
    with pytest.raises(ValueError, match=r"`context` must have the batch shape of `x`, got context \(6, 3\) and x"):
        net(torch.zeros(7, 3), torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"`x` must have 3 features, which node 0 reads, got shape \(7, 4\)\."):
        net(torch.zeros(7, 4), torch.zeros(7, 3))
    with pytest.raises(ValueError, match=r"`x` must have 3 features, which node 0 reads, got shape \(\)\."):
        net(torch.tensor(0.0), torch.zeros(3))
    with pytest.raises(TypeError, match=r"`x` must be a tensor, got list; torch\.as_tensor makes one"):
        net([0.0, 0.0, 0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`temperature` must be a number or have the batch shape \(7,\), got \(2,\)"):
        net(torch.zeros(7, 3), temperature=torch.ones(2))
    with pytest.raises(ValueError, match=r"`temperature` must be positive, got -1\.0"):
        net(torch.zeros(7, 3), temperature=-1.0)
    with pytest.raises(ValueError, match="`temperature` must be a number or have the batch shape"):
        net(torch.zeros(2, 2, 3)[0], temperature=torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"`path` must have shape \(7, 2, 2\) like the logits, got \(7, 3, 3\)"):
        net(torch.zeros(7, 3), path=torch.ones(7, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="`logits` must be finite, got nan"):
        net(torch.full((7, 3), torch.nan))


def test_bad_tasks_are_refused() -> None:
    net = OutputRouting.mlp(3, 4, 5, 2)
    x = torch.zeros(7, 3)
    with pytest.raises(ValueError, match=r"`task` must be in 0\.\.4, got 5 at index \(6,\)"):
        net(x, torch.arange(7).clamp(max=5).roll(-6) * 0 + torch.tensor([0, 0, 0, 0, 0, 0, 5]))
    with pytest.raises(ValueError, match=r"an integer context holds task ids; convert a one-hot with `\.float\(\)`"):
        net(torch.zeros(5, 3), torch.eye(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"an integer context holds task ids; convert a one-hot with `\.float\(\)`"):
        net(x, nn.functional.one_hot(torch.zeros(7, dtype=torch.long), 5))
    with pytest.raises(ValueError, match=r"row .* has none; was an empty record replayed, or the path of another task"):
        net(x, torch.zeros(7, dtype=torch.long), path=torch.eye(5, dtype=torch.bool)[[1] * 7][:, None])


def test_unequal_modules_are_refused() -> None:
    topology = Topology.dag(4)
    router = LinearRouter(3, topology)
    hidden = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5))  # its last layer does not tell the width before it runs
    narrow = [nn.Linear(3, 4), hidden, nn.Linear(4, 4), nn.Linear(4, 2)]
    with pytest.raises(ValueError, match=r"`modules\[1\]` must keep the shape of its input .*, got \(2, 4\) -> "):
        ModuleRouting(narrow, TopK(2), router)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"node 2 reads \(2, 4\) from module 0 and \(2, 5\) from module 1; make their"):
        ModuleRouting(narrow, TopK(2), router, shortcut=False)(torch.zeros(2, 3))
    told = [nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 4), nn.Linear(4, 2)]
    with pytest.raises(ValueError, match=r"^`modules\[1\]` must give as many features as `modules\[0\]`, since node 2"):
        ModuleRouting(told, TopK(2), router)


@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 150)])
@pytest.mark.parametrize("backend", ["reference", "sparse", "auto"])
def test_ids_are_an_input_without_features(backend: str, batch: tuple[int, ...]) -> None:
    modules = [nn.Embedding(10, 4) for _ in range(3)]
    net = ModelRouting(modules, TopK(2), LinearRouter(5, Topology.parallel(3)), backend=backend)
    ids, context = torch.randint(10, batch), torch.randn(*batch, 5)
    output, route = net(ids, context, return_route=True)
    outputs = torch.stack([module(ids) for module in modules], dim=-2)
    torch.testing.assert_close(output, (route.weights.mT * outputs).sum(dim=-2))
    with torch.no_grad():
        torch.testing.assert_close(net(ids, context), output)


def test_an_input_without_features_is_refused() -> None:
    net = ModelRouting([nn.ReLU(), nn.Tanh()], TopK(2), LinearRouter(5, Topology.parallel(2)))
    with pytest.raises(ValueError, match=r"^`x` must have features behind the batch shape \(7,\) of `context`"):
        net(torch.randn(7), torch.randn(7, 5))


def test_a_generator_that_would_draw_nothing_is_refused() -> None:
    g = torch.Generator()
    for noise in (0.0, 0.5):
        net = ModelRouting.mlp(3, 4, 3, 2, gate=SampleK(2))
        net.router.noise = noise
        x, drawn = torch.randn(7, 3), torch.zeros(7, 1, 3)
        if noise:  # it draws the noise of the router
            first, second = (net(x, generator=g.manual_seed(3), noise=drawn) for _ in range(2))
            assert torch.equal(first, second)
            router_noise = net.router.draw_noise(x)
        else:
            router_noise = None
        with pytest.raises(ValueError, match="`generator` and `noise` exclude each other: the noise was already drawn"):
            net(x, generator=g, noise=drawn, router_noise=router_noise)


def test_a_router_that_returns_another_shape_is_refused() -> None:
    net = build(router=nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"`router` must return logits with shape \(\*, 2, 2\), got \(7, 4\); was"):
        net(torch.zeros(7, 3))


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class Rounded(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(-1, (2, 2)).long()


@pytest.mark.parametrize(
    ("router", "got"),
    [
        (Pair(3, 4), "an object of class tuple from this Pair; return the logits alone"),
        (Rounded(3, 4), r"a tensor of torch\.int64 with shape .* from this Rounded; convert them with `\.float\(\)`"),
    ],
)
def test_a_router_that_returns_something_else_is_refused(router: nn.Module, got: str) -> None:
    message = rf"`router` must return floating-point logits with shape \(\*, 2, 2\), got {got}"
    with pytest.raises(TypeError, match=message):
        build(router=router)(torch.zeros(7, 3))


def test_any_module_is_a_router() -> None:
    net = build(router=nn.Sequential(nn.Linear(3, 4), nn.Unflatten(-1, (2, 2))))
    assert_routed(net, torch.randn(8, 3))


def test_builders_size_what_they_say() -> None:
    net = ModuleRouting.mlp(400, 128, 16, 8, router_sizes=(256, 256))
    assert net.topology.num_edges == 136
    sizes = [sum(p.numel() for p in node.parameters()) for node in net.nodes]
    assert sizes == [400 * 128 + 128] + [128 * 128 + 128] * 15 + [128 * 8 + 8]
    assert MLPRouter(400, Topology.dag(17)).layers[0].in_features == net.router.layers[0].in_features
    assert isinstance(net.gate, SampleK)
    assert isinstance(LayerRouting.mlp(3, 4, [2], 1).gate, Soft)
    assert len(OutputRouting.mlp(3, 4, 2, 1, depth=0).nodes[0]) == 1


def test_noise_replays_a_draw() -> None:
    net = ModuleRouting.mlp(3, 4, 5, 2, 3)
    x, noise = torch.randn(7, 3), gumbel_noise((7, 5, 5))
    first, again, other = (net(x, noise=drawn, return_route=True) for drawn in (noise, noise, noise.flip(0)))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[1].path, other[1].path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.long, torch.bfloat16])
def test_an_input_of_another_type_than_the_modules_is_named(dtype: torch.dtype) -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    with pytest.raises(
        TypeError, match=rf"`x` must be torch.float32 like the parameters of node 0, got {dtype}; convert"
    ):
        net(torch.ones(3, 5, dtype=dtype), torch.randn(3, 5))
