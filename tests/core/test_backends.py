"""Which backend runs, what each computes, and what it says when it cannot. Parity itself is in test_parity."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import dynroute
from dynroute import (
    BalancedTopK,
    ExpertChoice,
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
    TableRouter,
    TopK,
    Topology,
)
from dynroute.execution import backends, rows

LEVELS: dict[str, Callable[[], RoutedGraph]] = {
    "module": lambda: ModuleRouting.mlp(5, 16, 8, 3, gate=SampleK(2)),
    "module input": lambda: ModuleRouting.mlp(5, 16, 8, 3, gate=TopK(2), protect="input"),
    "layer": lambda: LayerRouting.mlp(5, 16, [3, 4, 2], 3, gate=Soft()),
    "layer hard": lambda: LayerRouting.mlp(5, 16, [3, 4, 2], 3, gate=Hard(), protect="rsg", shortcut=True),
    "model": lambda: ModelRouting.mlp(5, 16, 4, 3, depth=0, gate=TopK(2)),
    "output": lambda: OutputRouting([nn.Linear(5, 3) for _ in range(4)]),
}


def inputs(net: RoutedGraph, batch: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, 5)
    return x, torch.arange(batch) % 4 if isinstance(net, OutputRouting) else x


def results(net: RoutedGraph, backend: str, x: Tensor, context: Tensor, path: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with dynroute.backend(backend):
        output = net(x, context, path=path)
    tensors = [x, *net.parameters()]
    grads = torch.autograd.grad(output.square().sum(), tensors, allow_unused=True, materialize_grads=True)
    return [output.detach(), *grads]


@pytest.mark.parametrize("batch", [1, 2, 64, 300])
@pytest.mark.parametrize("level", LEVELS)
def test_float32_values_and_gradients_agree(level: str, batch: int) -> None:
    net = LEVELS[level]()
    x, context = inputs(net, batch)
    path = net.route(context).path
    expected = results(net, "reference", x, context, path)
    for backend in ("fused", "auto"):
        for mine, theirs in zip(results(net, backend, x, context, path), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max() + 1))
    with torch.no_grad(), dynroute.backend("skip"):
        torch.testing.assert_close(net(x, context, path=path), expected[0], rtol=1e-5, atol=1e-5)


def ran(monkeypatch: pytest.MonkeyPatch, net: RoutedGraph, x: Tensor) -> list[str]:
    """The backends that one call of the network uses."""
    names: list[str] = []
    for name in ("dense", "experts", "fused", "reference", "sparse"):
        run = getattr(backends, f"run_{name}")

        def spy(*args: object, run: Callable[..., Tensor] = run, name: str = name, **keywords: object) -> Tensor:
            names.append(name)
            return run(*args, **keywords)

        monkeypatch.setattr(backends, f"run_{name}", spy)
    net(x)
    return names


@pytest.mark.parametrize(
    ("level", "batch", "grad", "expected"),
    [
        ("module", 300, True, "fused"),
        ("module", 500, False, "fused"),
        ("module", 300, False, "sparse"),  # its nodes have 16 features
        ("module", 60, False, "sparse"),
        ("module", 1, False, "sparse"),
        ("module", 1, True, "reference"),
        ("model", 200, True, "reference"),
        ("model", 300, True, "experts"),
        ("model", 200, False, "reference"),
        ("model", 300, False, "experts"),
        ("model", 1, False, "sparse"),
    ],
)
def test_auto_takes_what_fits(
    monkeypatch: pytest.MonkeyPatch, level: str, batch: int, grad: bool, expected: str
) -> None:
    with torch.set_grad_enabled(grad):
        assert ran(monkeypatch, LEVELS[level](), torch.randn(batch, 5)) == [expected]


def leaky() -> RoutedGraph:
    return ModelRouting.mlp(5, 16, 8, 3, activation=nn.LeakyReLU)


def hooked() -> RoutedGraph:
    net = LEVELS["module"]()
    net.nodes[2].register_forward_hook(lambda *_: None)
    return net


def patched() -> RoutedGraph:
    net = LEVELS["module"]()
    net.nodes[2][0].forward = lambda x: x
    return net


def normed() -> RoutedGraph:
    net = LEVELS["module"]()
    torch.nn.utils.parametrizations.weight_norm(net.nodes[2][0])
    return net


def uneven() -> RoutedGraph:
    topology = dynroute.Topology.layered([2, 2])
    layers = [[nn.Linear(5, 7), nn.Linear(5, 7)], [nn.Linear(7, 6), nn.Linear(7, 6)]]
    return LayerRouting(layers, Soft(), dynroute.LinearRouter(5, topology))


def overwriting() -> RoutedGraph:
    topology = dynroute.Topology.dag(4)
    modules = [nn.Linear(5, 7), *[nn.Sequential(nn.ReLU(inplace=True), nn.Linear(7, 7)) for _ in range(2)]]
    router = dynroute.LinearRouter(5, topology)
    return ModuleRouting([*modules, nn.Linear(7, 2)], TopK(2), router, shortcut=False, protect="none")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (overwriting, r"module 1 is not a plain nn\.Linear"),
        (leaky, r"module 0 is not a .*, with a known activation \(GELU, Identity, ReLU, Sigmoid, SiLU, Tanh\)"),
        (hooked, r"module 2 is not a plain nn\.Linear with a known activation \(.*\), or has hooks"),
        (patched, r"module 2 is not a plain nn\.Linear"),
        (normed, r"module 2 is not a plain nn\.Linear with a known activation"),
        (uneven, "module 2 maps 7 -> 6, not 7 -> 7"),
        (lambda: LEVELS["module"]().half(), "module 0 is torch.float16 and the input torch.float16, which one product"),
    ],
)
def test_what_cannot_be_fused_is_said_and_runs_under_auto(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], RoutedGraph], reason: str
) -> None:
    net = make()
    x = torch.randn(300, 5, dtype=next(net.parameters()).dtype)
    with pytest.raises(ValueError, match=rf'"fused" cannot: {reason}.*; "auto" can'), dynroute.backend("fused"):
        net(x)
    assert ran(monkeypatch, net, x) == ["sparse"]


def test_surroundings_that_rule_out_the_fast_backends_are_said() -> None:
    net = LEVELS["module"]()
    x = torch.randn(300, 5)
    net.backend = "skip"
    with pytest.raises(ValueError, match=r'"skip" cannot: gradients are being recorded; run it inside `torch\.no_grad'):
        net(x)
    net.backend = "fused"
    with pytest.raises(ValueError, match="which one product cannot"), torch.autocast("cpu", dtype=torch.float16):
        net(x)
    with pytest.raises(ValueError, match="which a transform such as vmap hides"):
        torch.func.vmap(lambda x: net(x, sample=False))(x)
    uneven_layer = RoutedGraph(
        [nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 5)],
        Topology.parallel(2),
        Soft(),
        LinearRouter(5, Topology.parallel(2)),
        backend="fused",
    ).to("meta")
    with pytest.raises(ValueError, match="the CPU only, and the input is on meta, and its nodes do not form layers"):
        uneven_layer(x.to("meta"))
    uneven_layer.backend = "skip"
    with torch.no_grad(), pytest.raises(ValueError, match="it runs on the CPU only, and the input is on meta"):
        uneven_layer(x.to("meta"))
    with pytest.raises(ValueError, match=r"the input \(7, 5\) has more than one feature dimension"):
        ModuleRouting.mlp(5, 16, 8, 3, backend="fused")(torch.randn(7, 5), torch.randn(5))
    modules = [nn.Sequential(nn.ReLU(), nn.Linear(5, 5)), nn.Linear(5, 5), nn.Linear(5, 3)]
    activated = ModuleRouting(modules, Soft(), LinearRouter(5, Topology.dag(3)), backend="fused")
    with pytest.raises(ValueError, match="module 0 reads 5 features and the input has 6"):
        activated(torch.randn(7, 6), torch.randn(7, 5))


@pytest.mark.parametrize("backend", ["auto", "sparse"])
def test_a_counter_of_operations_counts_those_of_the_backend(backend: str) -> None:
    experts, router = [nn.Linear(16, 16) for _ in range(8)], TableRouter(8, Topology.parallel(8))
    net, x = ModelRouting(experts, Hard(), router, backend=backend), torch.randn(512, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        net(x, torch.arange(512) % 8).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 512 * 16 * 16  # one expert for each sample, forward and backward
    with FakeTensorMode(), pytest.raises(ValueError, match="which the dispatch mode FakeTensorMode may hide"):
        ModelRouting.mlp(5, 8, 4, 2, backend="sparse")(torch.randn(300, 5))


def test_backward_twice_gives_the_same() -> None:
    net = ModuleRouting.mlp(5, 16, 8, 3, gate=TopK(2), backend="fused")
    loss = net(torch.randn(40, 5)).square().sum()
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("protect", ["rsg", "input", "sg", "none"])
def test_second_derivatives_are_those_of_the_reference(protect: str) -> None:
    net = ModuleRouting.mlp(5, 7, 5, 3, gate=SampleK(2), protect=protect, activation=nn.Tanh, dtype=torch.float64)
    x = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    path = net.route(x).path
    penalties = []
    for backend in ("reference", "fused"):
        with dynroute.backend(backend):
            (gradient,) = torch.autograd.grad(net(x, path=path).square().sum(), x, create_graph=True)
        penalty = gradient.square().sum()
        inputs = [x, *net.parameters()]
        penalties.append([penalty, *torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True)])
    for theirs, mine in zip(*penalties, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_weight_that_underflows_reads_nothing(batch: int) -> None:
    topology = dynroute.Topology.parallel(3)
    router = dynroute.LinearRouter(5, topology)
    net = ModelRouting([nn.Linear(5, 2) for _ in range(3)], Soft(), router)
    with torch.no_grad():
        router.layers[0].weight.zero_()
        router.layers[0].bias.copy_(torch.tensor([0.0, -300.0, 0.0]))
        net.nodes[1].weight.fill_(torch.inf)
    x = torch.randn(batch, 5)
    expected = net(x)
    assert expected.isfinite().all()
    for backend in ("fused", "skip"):
        with dynroute.backend(backend), torch.set_grad_enabled(backend == "fused"):
            torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("batch", [2, 300])
def test_auto_never_changes_modules_that_see_the_batch(batch: int) -> None:
    module = nn.BatchNorm1d(7, track_running_stats=False).eval()
    nodes = [nn.Sequential(nn.Linear(7, 7), module) for _ in range(5)]
    router = dynroute.LinearRouter(7, dynroute.Topology.dag(6))
    net = ModuleRouting([*nodes, nn.Linear(7, 2)], TopK(2), router).train(module.training)
    x = torch.randn(batch, 7)
    results = []
    for backend in ("reference", "auto"):
        torch.manual_seed(0)
        with torch.no_grad(), dynroute.backend(backend):
            results.append(net(x))
    assert torch.equal(*results)


class Centred(nn.Module):
    couples_samples = True

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


COUPLED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool, str]] = {
    "expert choice": (lambda: ModelRouting.ffn(7, 7, 4, gate=ExpertChoice(1.0)), (600, 7), False, "couples samples"),
    "capacity": (lambda: ModelRouting.ffn(7, 7, 4, gate=TopK(2, capacity=1.0)), (600, 7), True, "couples samples"),
    "of one's own": (Centred, (600, 7), True, "couples samples, as its `couples_samples` says"),
    "softmax": (lambda: nn.Softmax(dim=1), (60, 10, 7), True, "is a Softmax over what may be a batch dimension"),
    "softmax from behind": (lambda: nn.Softmax(dim=-2), (60, 10, 7), True, "is a Softmax over what may be a batch"),
    "softmax of features": (lambda: nn.Softmax(dim=2), (60, 10, 7), True, "is a Softmax over what may be a batch"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_auto_never_changes_modules_that_couple_samples(name: str) -> None:
    make, shape, training, told = COUPLED[name]
    nodes = [nn.Sequential(nn.Linear(7, 7), make()) for _ in range(5)]
    net = ModelRouting(nodes, TopK(2), dynroute.LinearRouter(7, Topology.parallel(5))).train(training)
    x = torch.randn(shape)
    with dynroute.backend("reference"):
        expected = net(x)
    torch.testing.assert_close(net(x), expected)
    with dynroute.backend("sparse"), pytest.raises(ValueError, match=f"cannot: module 0 {told}"):
        net(x)


@pytest.mark.parametrize(
    ("backend", "share", "counts_all"),
    [("auto", 100, False), ("sparse", 10, False), ("auto", 10, True), ("reference", 100, True)],
)
def test_balanced_experts_inside_of_experts_count_the_rows_that_these_are_called_with(
    backend: str, share: int, counts_all: bool
) -> None:
    experts = [ModelRouting.ffn(7, 7, 4, gate=BalancedTopK(2)) for _ in range(4)]
    net, x = ModelRouting(experts, Hard(), context_features=7, backend=backend), torch.randn(6 * share, 7)
    chosen = torch.arange(3).repeat_interleave(share * torch.tensor([3, 2, 1]))  # no sample needs the last one
    net(x, path=nn.functional.one_hot(chosen, 4).bool().unsqueeze(1))
    net.eval()
    for number, expert in enumerate(experts):
        rows = x if counts_all else x[chosen == number]
        assert int(expert.gate.load.sum()) == 2 * len(rows)
        assert torch.equal(expert.gate.load, expert.route(rows).path.sum(dim=0))  # the bias is 0


CHANNELS: dict[str, Callable[[], nn.Module]] = {
    "PReLU": lambda: nn.PReLU(8),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "BatchNorm1d": lambda: nn.BatchNorm1d(8),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3, alpha=1.0),
    "Dropout1d": lambda: nn.Dropout1d(),
    "AvgPool2d": lambda: nn.AvgPool2d(3, 1, 1),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(8),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_layers_that_read_the_second_dimension_as_channels_run_on_the_whole_batch(name: str) -> None:
    net = ModelRouting([nn.Sequential(nn.Linear(8, 8), CHANNELS[name]()) for _ in range(4)], TopK(2)).eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 2.0)
    x = torch.randn(80, 8, 8)
    with dynroute.backend("reference"):
        expected = net(x)
    torch.testing.assert_close(net(x), expected)
    with dynroute.backend("sparse"), pytest.raises(ValueError, match=f"cannot: module 0 is a {name}, which reads"):
        net(x)


def test_a_prelu_with_one_slope_couples_no_samples() -> None:
    nodes = [nn.Sequential(nn.Linear(7, 7), nn.PReLU()) for _ in range(4)]
    net = ModelRouting(nodes, TopK(2), backend="sparse")
    x = torch.randn(60, 10, 7)
    output = net(x)
    with dynroute.backend("reference"):
        torch.testing.assert_close(output, net(x))


def test_a_softmax_over_features_couples_no_samples() -> None:
    nodes = [nn.Sequential(nn.Linear(7, 7), nn.Softmax(dim=-1)) for _ in range(5)]
    net = ModelRouting(nodes, TopK(2), dynroute.LinearRouter(7, Topology.parallel(5)), backend="sparse")
    x = torch.randn(60, 10, 7)
    output = net(x)
    with dynroute.backend("reference"):
        torch.testing.assert_close(output, net(x))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_module_that_came_to_work_in_place_is_that_of_the_reference(replaced: bool) -> None:
    nodes = [nn.Sequential(nn.ReLU(), nn.Linear(7, 7)) for _ in range(3)]
    net = ModuleRouting([nn.Linear(5, 7), *nodes, nn.Linear(7, 2)], TopK(2), shortcut=True)
    for i in (1, 2, 3):
        if replaced:
            net.nodes[i] = nn.Sequential(nn.ReLU(inplace=True), net.nodes[i][1])
        else:
            net.nodes[i][0].inplace = True
    x = torch.randn(300, 5)
    path = net.route(x).path
    with dynroute.backend("reference"):
        expected = net(x, path=path)
    torch.testing.assert_close(net(x, path=path), expected)


@pytest.mark.parametrize("apart", [False, True], ids=["widths differ", "sources are apart"])
@pytest.mark.parametrize("passes", [1, 2])
def test_small_inference_runs_each_module_once(apart: bool, passes: int) -> None:
    layers = [[nn.Linear(5, 8), nn.Linear(5, 8)], [nn.Linear(8, 6), nn.Linear(8, 6)]]
    net: RoutedGraph = LayerRouting(layers, TopK(2), dynroute.LinearRouter(5, Topology.layered([2, 2]))).eval()
    if apart:
        topology = Topology([[], [], [], [0, 2], [1, 3]])
        modules = [nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)]
        net = RoutedGraph(modules, topology, Soft(), dynroute.LinearRouter(5, topology)).eval()
    calls: list[int] = []
    for i, node in enumerate(net.nodes):
        node.register_forward_hook(lambda *_, i=i: calls.append(i))
    with torch.no_grad():
        for _ in range(passes):
            calls.clear()
            net(torch.randn(40, 5))
    assert sorted(calls) == list(range(len(net.nodes)))


def test_small_inference_runs_the_output_once_where_an_output_is_infinite() -> None:
    class Infinite(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 0

    net = ModuleRouting([nn.Linear(5, 8), Infinite(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)], TopK(2)).eval()
    x, calls = torch.randn(40, 5), []
    net.nodes[-1].register_forward_hook(lambda *_: calls.append(1))
    with dynroute.backend("reference"):
        expected = net(x)
    assert not expected.isfinite().all()
    with torch.no_grad():
        for _ in range(2):
            calls.clear()
            torch.testing.assert_close(net(x), expected, equal_nan=True)
            assert len(calls) == 1


def test_nothing_is_protected_where_no_gradient_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = LEVELS["module"]()
    x, suited = torch.randn(300, 5), []
    whole = RoutedGraph._suitable
    monkeypatch.setattr(RoutedGraph, "_suitable", lambda self, route: suited.append(route) or whole(self, route))
    path = net.route(x).path
    expected = net(x, path=path)
    assert len(suited) == 1
    with torch.no_grad():
        torch.testing.assert_close(net(x, path=path), expected)
    assert len(suited) == 1
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        net(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), path=path)
    assert len(suited) == 2


def test_skip_refuses_modules_that_see_the_batch() -> None:
    router = dynroute.LinearRouter(7, dynroute.Topology.dag(3))
    net = ModuleRouting([nn.BatchNorm1d(7), nn.Linear(7, 7), nn.Linear(7, 2)], TopK(2), router, backend="skip")
    with torch.no_grad(), pytest.raises(ValueError, match="cannot: module 0 computes statistics of the batch"):
        net(torch.randn(300, 7))
    with torch.no_grad():
        assert net.eval()(torch.randn(300, 7)).shape == (300, 2)


@pytest.mark.parametrize("batch", [1, 2, 300])
def test_inputs_of_other_types(batch: int) -> None:
    class Pixels(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    net = ModelRouting(
        [Pixels(5, 2) for _ in range(3)], TopK(2), dynroute.TableRouter(4, dynroute.Topology.parallel(3))
    )
    x, task = torch.randint(0, 256, (batch, 5), dtype=torch.uint8), torch.arange(batch) % 4
    expected = net(x, task)
    with torch.no_grad(), dynroute.backend("skip"):
        torch.testing.assert_close(net(x, task), expected)


@pytest.mark.parametrize("backend", ["sparse", "auto"])
@pytest.mark.parametrize("batch", [1, 300])
def test_complex_experts_teach_the_router_as_the_reference_does(batch: int, backend: str) -> None:
    nodes = [nn.Linear(5, 2, dtype=torch.complex128) for _ in range(4)]
    net = ModelRouting(nodes, TopK(2), LinearRouter(3, Topology.parallel(4), dtype=torch.float64))
    x = torch.randn(batch, 5, dtype=torch.complex128, requires_grad=True)
    context = torch.randn(batch, 3, dtype=torch.float64)
    outcomes = []
    for name in ("reference", backend):
        with dynroute.backend(name):
            loss = net(x, context).abs().square().sum()
        first = torch.autograd.grad(loss, [x, *net.parameters()], create_graph=True)
        penalty = sum(each.abs().square().sum() for each in first)
        outcomes.append([*first, *torch.autograd.grad(penalty, [x, *net.parameters()])])
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2, 300])
def test_all_backends_refuse_a_shortcut_over_another_width(batch: int) -> None:
    topology = dynroute.Topology.dag(3)
    narrow = nn.Sequential(nn.Linear(8, 1), nn.LayerNorm(1))  # its last layer does not tell the width before it runs
    net = ModuleRouting([nn.Linear(5, 8), narrow, nn.Linear(8, 2)], TopK(2), dynroute.LinearRouter(5, topology))
    for backend in ("reference", "skip"):
        with torch.no_grad(), dynroute.backend(backend), pytest.raises(ValueError, match="must keep the shape of its"):
            net(torch.randn(batch, 5))


def test_forward_mode_and_another_default_device_take_the_reference() -> None:
    net = LEVELS["module"]().eval()
    x = torch.randn(100, 5)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(net(dual)).tangent is not None
    with torch.no_grad():
        expected = net(x)
        with torch.device("meta"):
            assert torch.equal(net(x), expected)


def test_only_what_needs_a_gradient_gets_one() -> None:
    net = ModuleRouting.mlp(5, 16, 4, 3, gate=TopK(2), backend="fused")
    net.nodes[1].requires_grad_(False)
    net.router.requires_grad_(False)
    x = torch.randn(40, 5)
    net(x).square().sum().backward()
    given = {name for name, p in net.named_parameters() if p.grad is not None}
    assert given == {name for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("limit", "cached"), [(300 * 28, True), (300 * 28 - 1, False)])
def test_rows_of_large_batches_are_not_kept(monkeypatch: pytest.MonkeyPatch, limit: int, cached: bool) -> None:
    net = ModuleRouting.mlp(5, 16, 7, 3, gate=Soft(), backend="sparse")
    x = torch.randn(300, 5)
    monkeypatch.setattr(rows, "CACHED_EDGES", limit)
    rows._full_rows.cache_clear()
    output = net(x)
    assert rows._full_rows.cache_info().currsize == cached
    with dynroute.backend("reference"):
        torch.testing.assert_close(output, net(x))


def test_rows_that_no_sample_needs_have_zero_gradients_not_none() -> None:
    net = ModuleRouting.mlp(5, 16, 5, 3, gate=TopK(2), backend="fused")
    path = torch.zeros(5, 5, dtype=torch.bool)
    path[:, 0] = True
    net(torch.randn(40, 5), path=path.expand(40, 5, 5)).sum().backward()
    for node in (1, 2, 3, 4):
        assert all(p.grad is not None and not p.grad.any() for p in net.nodes[node].parameters())


class Sine(nn.Module):
    """An expert that no backend fuses, made of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x).sin()
        return output


def first_two_of_four(experts: Sequence[nn.Module], x: Tensor | None = None) -> Tensor:
    """The output of a mixture on a path that leaves its last two experts out."""
    net = ModelRouting(experts, TopK(2), context_features=4, backend="sparse")
    x = torch.randn(8, 4) if x is None else x
    output: Tensor = net(x, path=torch.tensor([[True, True, False, False]]).expand(8, 1, 4))
    return output


@pytest.mark.parametrize("unread", [False, True])
def test_outputs_and_gradients_may_be_overwritten_where_a_node_is_unused(unread: bool) -> None:
    x = torch.randn(8, 4, requires_grad=True)
    net = RoutedGraph([nn.Linear(4, 4) for _ in range(3)], Topology([[], [], [0]]), Soft())
    output = net(x) if unread else first_two_of_four([Sine(nn.Linear(4, 3)) for _ in range(4)], x)
    expected = 2 * output.detach()
    output.mul_(2)
    assert torch.equal(output.detach(), expected)
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    gradient.mul_(2)


def test_experts_that_no_sample_needs_may_change_between_forward_and_backward() -> None:
    experts = [Sine(nn.Linear(4, 3)) for _ in range(4)]
    output = first_two_of_four(experts)
    with torch.no_grad():
        for expert in experts:
            for parameter in expert.parameters():
                parameter.add_(1.0)
    output.sum().backward()
    assert [bool(expert.layer.weight.grad.any()) for expert in experts] == [True, True, False, False]  # type: ignore[union-attr]


def test_lazy_experts_that_no_sample_needs_are_made() -> None:
    experts = [Sine(nn.LazyLinear(3)) for _ in range(4)]
    first_two_of_four(experts).sum().backward()
    assert [expert.layer.weight.shape for expert in experts] == 4 * [(3, 4)]


@pytest.mark.parametrize("parents", [[[], [0], [0]], [[], [0], [1], [0]]])
@pytest.mark.parametrize("batch", [1, 3, 300])
@pytest.mark.parametrize("backend", ["reference", "sparse", "fused", "auto"])
def test_nodes_that_no_path_reads_have_zero_gradients_not_none(
    backend: str, batch: int, parents: list[list[int]]
) -> None:
    modules = [nn.Linear(4, 4) for _ in parents]
    net = RoutedGraph(modules, Topology(parents), Soft(), backend=backend)
    x = torch.randn(batch, 4)
    net(x).sum().backward()
    read = {0, len(parents) - 1}
    for node, module in enumerate(net.nodes):
        assert all(p.grad is not None and bool(p.grad.any()) == (node in read) for p in module.parameters())
    if backend in ("reference", "auto"):
        torch.testing.assert_close(torch.func.vmap(net)(x), net(x))
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def test_what_is_kept_from_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        topology = dynroute.Topology.layered([3, 4, 2])
    net = LEVELS["layer"]()
    x = torch.randn(97, 5)
    with torch.inference_mode():
        expected = net(x)  # keeps the rows of the full graph
    output = net(x)
    torch.testing.assert_close(output, expected)
    output.sum().backward()

    router = dynroute.LinearRouter(5, topology)  # made in inference mode
    router(x)[..., 0].sum().backward()


class Counted(nn.Module):
    """Counts the rows that it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += x[..., 0].numel()
        return self.inner(x)


@pytest.mark.parametrize("batch", [1, 200])
def test_skip_runs_a_module_for_the_samples_that_need_it(batch: int) -> None:
    net = ModuleRouting.mlp(5, 16, 8, 3, gate=SampleK(2), backend="skip")
    counted = [Counted(node) for node in net.nodes]
    net.nodes = nn.ModuleList(counted)
    with torch.no_grad():
        _, route = net(torch.randn(batch, 5), return_route=True)
    assert [node.rows for node in counted] == net.topology.used(route.path).sum(0).tolist()


@pytest.mark.parametrize("batch", [2, 200])
def test_skip_with_images_and_with_numbers_that_are_none(batch: int) -> None:
    topology = dynroute.Topology.dag(4)
    modules = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Identity(), nn.Conv2d(6, 2, 1)]
    net = ModuleRouting(modules, SampleK(2), dynroute.TableRouter(5, topology)).eval()
    images, task = torch.randn(batch, 3, 4, 4), torch.arange(batch) % 5
    with torch.no_grad(), dynroute.backend("skip"):
        output, route = net(images, task, return_route=True)
    torch.testing.assert_close(output, net(images, task, path=route))

    heads = OutputRouting([nn.Linear(5, 3) for _ in range(4)]).requires_grad_(False)
    heads.nodes[1].weight.fill_(torch.nan)
    x, task = torch.randn(batch, 5), torch.arange(batch) % 4
    with torch.no_grad(), dynroute.backend("skip"):
        assert torch.equal(heads(x, task).isfinite().all(-1), task != 1)


@pytest.mark.parametrize("gate", [Soft(), TopK(2)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_inputs_are_left_alone_and_outputs_may_be_overwritten(backend: str, gate: Gate) -> None:
    layers = [[nn.Sequential(nn.ReLU(), nn.Linear(5, 5)) for _ in range(3)] for _ in range(2)]
    net = LayerRouting(layers, gate, LinearRouter(5, Topology.layered([3, 3])), backend=backend)
    x = torch.randn(300, 5)
    before, version = x.clone(), x._version
    output = net(x)
    assert torch.equal(x, before)
    assert x._version == version
    expected = 2 * output.detach()
    output.mul_(2)
    torch.testing.assert_close(output.detach(), expected)
    output.sum().backward()


def test_few_samples_of_mixed_types_are_those_of_the_reference() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    net = RoutedGraph(
        [nn.Linear(5, 5), Doubled(), nn.Linear(5, 5).double()],
        Topology([[], [0], [1]]),
        Soft(),
        LinearRouter(5, Topology([[], [0], [1]])),
    ).eval()
    x = torch.randn(5, 5)
    with torch.no_grad():
        results = [net(x)]
        net.backend = "skip"
        results.append(net(x))
    assert results[0].dtype == results[1].dtype == torch.float64
    torch.testing.assert_close(*results)


def test_few_samples_of_outputs_that_differ_are_those_of_the_reference() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    square = nn.Unflatten(-1, (2, 3))
    layers = [
        [nn.Linear(5, 8), nn.Linear(5, 8)],
        [nn.Sequential(nn.Linear(8, 6), square), nn.Sequential(nn.Linear(8, 6), square)],
        [nn.Sequential(nn.Flatten(-2), nn.Linear(6, 6)), nn.Sequential(nn.Flatten(-2), nn.Linear(6, 6))],
    ]
    nets = [
        LayerRouting(layers, TopK(2), LinearRouter(5, Topology.layered([2, 2, 2]))),
        ModuleRouting([nn.Linear(5, 5), Wide(), nn.Linear(5, 5).double()], TopK(2), shortcut=True),
    ]
    for net in nets:
        x = torch.randn(40, 5)
        path = None if net is nets[0] else torch.tensor([[True, False], [False, True]]).expand(40, 2, 2)
        with torch.no_grad():
            with dynroute.backend("reference"):
                expected = net.eval()(x, path=path)
            with dynroute.backend("skip"):
                torch.testing.assert_close(net(x, path=path), expected)


def sparse_and_reference(net: RoutedGraph, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    path = net.route(x).path
    return results(net, "auto", x, x, path), results(net, "reference", x, x, path)


class Shy(nn.Module):
    """Fails on no rows at all."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(x.shape[0], -1) / (0 if not len(x) else 1) if len(x) else x.view(0, -1))


class Tracking(nn.Linear):
    """Keeps a running mean of its inputs, as layers of users may."""

    couples_samples = False
    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(dim=0), 0.1)
        return super().forward(x)


def one_unused() -> tuple[ModelRouting, Tensor]:
    net = ModelRouting([Tracking(6) for _ in range(4)], TopK(2), LinearRouter(6, Topology.parallel(4)))
    path = torch.tensor([[True, False, True, False]]).expand(300, 1, 4)
    return net, path


def test_training_calls_no_module_on_no_rows() -> None:
    net, path = one_unused()
    sizes: list[int] = []
    for node in net.nodes[:-1]:
        node.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    net(torch.randn(300, 6), path=path, sample=True).square().sum().backward()
    assert sizes == [300, 300]
    for node in net.nodes[:-1]:
        assert node.mean.isfinite().all()
        assert node.weight.grad is not None
    assert not net.nodes[1].weight.grad.any()


def test_unused_modules_have_zero_gradients_of_second_order_too() -> None:
    net, path = one_unused()
    x = torch.randn(300, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(net(x, path=path).pow(3).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert net.nodes[0].weight.grad.any()
    for node in (net.nodes[1], net.nodes[3]):
        assert node.weight.grad is not None
        assert not node.weight.grad.any()


def test_a_module_that_nobody_needs_may_fail_on_no_rows() -> None:
    net = ModelRouting([Shy() for _ in range(4)], TopK(2), LinearRouter(5, Topology.parallel(4)))
    with torch.no_grad():
        net.router.layers[0].bias.copy_(torch.tensor([50.0, 50.0, 0.0, 0.0]))
    found, expected = sparse_and_reference(net, torch.randn(300, 5))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)
    with dynroute.backend("sparse"):
        net(torch.randn(300, 5)).sum().backward()
    assert [float(p.grad.abs().sum()) for p in net.nodes[2].parameters()] == [0, 0]


@pytest.mark.parametrize("level", ["model", "module"])
def test_weights_of_another_size_than_the_layer_tells(level: str) -> None:
    net = LEVELS[level]()
    for node in list(net.nodes)[:-1] if level == "model" else []:
        for layer in node.modules():
            if isinstance(layer, nn.Linear):
                layer.weight, layer.bias = nn.Parameter(layer.weight[:2].clone()), nn.Parameter(layer.bias[:2].clone())
    if level == "module":
        layer = net.nodes[-2][0]
        layer.in_features, layer.out_features = 99, 99
    found, expected = sparse_and_reference(net, torch.randn(300, 5))
    assert found[0].shape == expected[0].shape
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-4)


def test_weights_of_a_route_are_contiguous() -> None:
    for batch in (10, 1280):
        assert LEVELS["model"]().route(torch.randn(batch, 5)).weights.is_contiguous()


def test_a_gate_that_chooses_otherwise_tells_no_number() -> None:
    class Greedy(TopK):
        def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
            return allowed.clone()

    assert (TopK(2).max_sources, SampleK(3).max_sources, Hard().max_sources, Soft().max_sources) == (2, 3, 1, None)
    assert Greedy(2).max_sources is None


class Reads(nn.Module):
    """Returns the output of a module that also returns a state or weights."""

    def __init__(self, module: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.module, self.times = module, times

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(*[x] * self.times)[0]
        return output


SEQUENCES: dict[str, tuple[Callable[[bool], nn.Module], str]] = {
    "attention": (lambda first: Reads(nn.MultiheadAttention(8, 2, batch_first=first), 3), "MultiheadAttention"),
    "rnn": (lambda first: Reads(nn.GRU(8, 8, batch_first=first)), "GRU"),
    "transformer": (
        lambda first: nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=first),
        "MultiheadAttention",
    ),
}


@pytest.mark.parametrize("shape", [(300, 4, 8), (300, 8)])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_modules_of_sequences_couple_samples_that_they_read_as_one(
    kind: str, first: bool, shape: tuple[int, ...]
) -> None:
    make, name = SEQUENCES[kind]
    net = ModelRouting([make(first) for _ in range(3)], TopK(2), LinearRouter(5, Topology.parallel(3)))
    x, context = torch.randn(shape), torch.randn(shape[0], 5)
    with dynroute.backend("reference"):
        expected = net(x, context)
    torch.testing.assert_close(net(x, context), expected)
    net.backend = "sparse"
    if first and len(shape) == 3:
        torch.testing.assert_close(net(x, context), expected)
        return
    why = "which reads a batch of vectors as one sequence" if first else "with batch_first=False, which reads the batch"
    with pytest.raises(ValueError, match=f"cannot: module 0 is a {name},? {why}"):
        net(x, context)


@pytest.mark.parametrize("begins", [lambda: nn.Unflatten(-1, (2, 4)), lambda: nn.Embedding(10, 4)])
def test_sequences_that_a_module_makes_couple_no_samples(begins: Callable[[], nn.Module]) -> None:
    experts = [nn.Sequential(begins(), Reads(nn.GRU(4, 4, batch_first=True))) for _ in range(3)]
    net = ModelRouting(experts, TopK(2), LinearRouter(5, Topology.parallel(3)), backend="sparse")
    x = torch.randint(10, (90, 8)) if isinstance(experts[0][0], nn.Embedding) else torch.randn(90, 8)
    context = torch.randn(90, 5)
    output = net(x, context)
    with dynroute.backend("reference"):
        torch.testing.assert_close(output, net(x, context))


def test_sequences_that_a_module_flattens_couple_samples() -> None:
    experts = [nn.Sequential(nn.Flatten(-2), Reads(nn.GRU(8, 4, batch_first=True))) for _ in range(3)]
    net = ModelRouting(experts, TopK(2), LinearRouter(5, Topology.parallel(3)), backend="sparse")
    with pytest.raises(ValueError, match="cannot: module 0 is a GRU, which reads a batch of vectors as one sequence"):
        net(torch.randn(90, 2, 4), torch.randn(90, 5))


def test_a_module_may_say_that_it_couples_no_samples() -> None:
    class Apart(Reads):
        couples_samples = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.unsqueeze(-2)).squeeze(-2)

    experts = [Apart(nn.GRU(8, 8, batch_first=True)) for _ in range(3)]
    net = ModelRouting(experts, TopK(2), LinearRouter(8, Topology.parallel(3)), backend="sparse")
    x = torch.randn(90, 8)
    output = net(x)
    with dynroute.backend("reference"):
        torch.testing.assert_close(output, net(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("batch", [1, 300])
@pytest.mark.parametrize("level", LEVELS)
def test_a_traced_graph_serves_other_inputs(level: str, batch: int) -> None:
    net = LEVELS[level]().eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, inputs(net, batch), check_trace=False)
        for others in (1, 2, 300):
            example = inputs(net, others)
            torch.testing.assert_close(traced(*example), net(*example))


def test_experts_that_attend_keep_the_dimensions_of_the_batch() -> None:
    experts = [nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True) for _ in range(3)]
    net = ModelRouting(experts, TopK(2), LinearRouter(8, Topology.parallel(3)))
    x = torch.randn(10, 40, 8)
    with dynroute.backend("reference"):
        expected = net(x)
    torch.testing.assert_close(net(x), expected)


class Returns(nn.Module):
    """Returns something made of its input."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x)


@pytest.mark.parametrize("backend", ["auto", "reference", "sparse"])
@pytest.mark.parametrize("batch", [1, 8, 80])
@pytest.mark.parametrize("node", [0, 1, 3])
@pytest.mark.parametrize("learns", [False, True])
def test_a_module_that_returns_no_tensor_is_named(backend: str, batch: int, node: int, learns: bool) -> None:
    for make, kind in ((lambda x: (x, x), "tuple"), (lambda x: {"x": x}, "dict"), (lambda x: None, "NoneType")):
        modules: list[nn.Module] = [nn.Linear(8, 8) for _ in range(4)]
        modules[node] = Returns(make)
        net = ModuleRouting(modules, Soft(), LinearRouter(8, Topology.dag(4)), backend=backend)
        message = rf"^node {node} must return a tensor, got {kind}"
        with torch.set_grad_enabled(learns), pytest.raises(TypeError, match=message):
            net(torch.randn(batch, 8))


def test_a_recurrent_layer_is_to_be_wrapped() -> None:
    experts = [nn.GRU(8, 8, batch_first=True) for _ in range(2)]
    net = ModelRouting(experts, Soft(), LinearRouter(8, Topology.parallel(2)))
    with pytest.raises(TypeError, match="got tuple; wrap a recurrent layer so that it returns its output alone"):
        net(torch.randn(4, 5, 8), torch.randn(4, 8))


def test_a_shared_module_that_returns_no_tensor_is_named() -> None:
    net = ModelRouting([nn.Linear(8, 8) for _ in range(2)], Soft(), shared=[Returns(lambda x: (x, x))])
    with pytest.raises(TypeError, match=r"`shared\[0\]` must return a tensor, got tuple"):
        net(torch.randn(4, 8))


def test_an_output_module_behind_fused_nodes_is_named_too() -> None:
    modules = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), Returns(lambda x: (x, x))]
    net = ModuleRouting(modules, TopK(2), LinearRouter(8, Topology.dag(4)), backend="fused")
    with pytest.raises(TypeError, match=r"^node 3 must return a tensor, got tuple"):
        net(torch.randn(64, 8))
