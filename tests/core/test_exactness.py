"""Whatever people do to modules, every backend computes what the reference does, gradients of both orders included."""

from collections.abc import Callable
from contextlib import nullcontext

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import dynroute
from dynroute import Hard, LinearRouter, RoutedGraph, SampleK, Soft, TopK, Topology
from dynroute.execution import backends, fused

WIDTH = 6
TOPOLOGIES = {
    "module": Topology.dag(5),
    "layer": Topology.layered([3, 3]),
    "model": Topology.parallel(3),
    "experts": Topology.parallel(3),
    "gaps": Topology([[], [], [0], [0, 2], [1, 3]]),
}
Run = Callable[[RoutedGraph, Tensor, Tensor], Tensor]


def plainly(net: RoutedGraph, x: Tensor, path: Tensor) -> Tensor:
    return net(x, x.detach(), path=path)


class Scaled(torch.Tensor):
    """A weight whose products are doubled."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [a.as_subclass(Tensor) if isinstance(a, Scaled) else a for a in args]
        result = func(*plain, **(kwargs or {}))
        return 2 * result if func is nn.functional.linear else result


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Loose(dynroute.Gate):
    """Leaves weights where no slot is."""

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return allowed.clone()

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        return dynroute.functional.mask_softmax(logits, path).masked_fill(~path, 0.25)


def linear(net: RoutedGraph, node: int) -> nn.Linear:
    return net.nodes[node][0]


def hook_outputs(net: RoutedGraph) -> Run:
    net.nodes[1].register_forward_hook(lambda module, args, output: 2 * output)
    return plainly


def hook_weights(net: RoutedGraph) -> Run:
    linear(net, 1).weight.register_hook(lambda gradient: 3 * gradient)
    return plainly


def normalize_weights(net: RoutedGraph) -> Run:
    parametrizations.weight_norm(linear(net, 1))
    return plainly


def adapt(net: RoutedGraph) -> Run:
    parametrize.register_parametrization(linear(net, 1), "weight", LowRank().to(linear(net, 0).weight.dtype))
    return plainly


def prune_weights(net: RoutedGraph) -> Run:
    prune.l1_unstructured(linear(net, 1), "weight", amount=0.5)
    return plainly


def freeze(net: RoutedGraph) -> Run:
    linear(net, 0).weight.requires_grad_(False)
    linear(net, 1).requires_grad_(False)
    return plainly


def share(net: RoutedGraph) -> Run:
    for node in (1, 2):
        net.nodes[node] = net.nodes[0]
    return plainly


def use_twice(net: RoutedGraph) -> Run:
    return lambda net, x, path: net(plainly(net, x, path), x.detach(), path=path)


def tie(net: RoutedGraph) -> Run:
    return lambda net, x, path: plainly(net, linear(net, 1)(x), path)


def make_weights(net: RoutedGraph) -> Run:
    weight = linear(net, 1).weight
    del linear(net, 1).weight
    net.register_parameter("maker", nn.Parameter(weight.detach().clone()))

    def run(net: RoutedGraph, x: Tensor, path: Tensor) -> Tensor:
        linear(net, 1).weight = net.maker.sin()
        return plainly(net, x, path)

    return run


def subclass(net: RoutedGraph) -> Run:
    layer = linear(net, 1)
    layer._parameters["weight"] = layer.weight.detach().as_subclass(Scaled).requires_grad_()
    return plainly


def replace(net: RoutedGraph) -> Run:
    net.nodes[1] = nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.LayerNorm(9), nn.Linear(9, WIDTH)).to(
        linear(net, 0).weight.dtype
    )
    return plainly


def recompute(net: RoutedGraph) -> Run:
    return lambda net, x, path: checkpoint(plainly, net, x, path, use_reentrant=False)


def replace_gate(net: RoutedGraph) -> Run:
    net.gate = Loose()

    def unchecked(net: RoutedGraph, x: Tensor, path: Tensor) -> Tensor:
        dynroute.set_checks(False)  # else its weights are refused
        try:
            return net(x, x.detach())
        finally:
            dynroute.set_checks(None)

    return unchecked


def nothing(net: RoutedGraph) -> Run:
    return plainly


HABITS = [
    nothing,
    hook_outputs,
    hook_weights,
    normalize_weights,
    adapt,
    prune_weights,
    freeze,
    share,
    use_twice,
    tie,
    make_weights,
    subclass,
    replace,
    recompute,
    replace_gate,
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 0.06}


def results(net: RoutedGraph, run: Run, x: Tensor, path: Tensor, order: int) -> list[Tensor | None]:
    """The output and its gradients, then the gradients of the squares of these gradients."""
    x = x.clone().requires_grad_()
    tensors = [x, *[parameter for parameter in net.parameters() if parameter.requires_grad]]
    output = run(net, x, path)
    loss = output.double().square().sum()
    grads = torch.autograd.grad(loss, tensors, create_graph=order == 2, allow_unused=True)
    found = [output, *grads]
    penalty = sum(g.double().square().sum() for g in grads if g is not None and g.requires_grad)
    if order == 2 and isinstance(penalty, Tensor) and penalty.requires_grad:
        found += torch.autograd.grad(penalty, tensors, allow_unused=True, materialize_grads=True)
    return found


def assert_equal(found: list[Tensor | None], expected: list[Tensor | None], tolerance: float) -> None:
    assert len(found) == len(expected)
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual is None) == (wanted is None), "zeros are not None"
        if actual is not None and wanted is not None:
            scale = float(wanted.detach().abs().max()) + 1.0 if wanted.numel() else 1.0
            alike = (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
            if not alike or not torch.allclose(actual, wanted, rtol=tolerance, atol=tolerance * scale):  # the fast way
                torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance * scale)


def build(level: str, gate: dynroute.Gate, protect: str, shortcut: bool, dtype: torch.dtype, seed: int) -> RoutedGraph:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats the stack three times
    topology = TOPOLOGIES[level]
    if level == "experts":
        nodes = [
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU("tanh"), nn.Linear(WIDTH, WIDTH), nn.SiLU()),
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH)),
        ]
    else:
        nodes = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(topology.num_nodes - 1)]
    router = LinearRouter(WIDTH, topology)
    net = RoutedGraph([*nodes, nn.Linear(WIDTH, WIDTH)], topology, gate, router, shortcut=shortcut, protect=protect)
    return net.to(dtype)


graphs = st.builds(
    build,
    st.sampled_from(list(TOPOLOGIES)),
    st.sampled_from([Soft(), Hard(), TopK(2), SampleK(2)]),
    st.sampled_from(["rsg", "input", "sg", "none"]),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
CASES = settings(max_examples=45, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.__name__)
@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
@CASES
@given(graphs, st.sampled_from([0, 1, 2, 9]), st.booleans())
def test_every_backend_does_what_the_reference_does(
    habit: Callable[[RoutedGraph], Run], order: int, net: RoutedGraph, batch: int, autocast: bool
) -> None:
    dtype = linear(net, 0).weight.dtype
    x = torch.randn(batch, WIDTH, dtype=dtype)
    path = net.route(x).path
    run = habit(net)
    autocast = autocast and dtype == torch.float32
    tolerance = TOLERANCE[torch.bfloat16 if autocast else dtype] * (order if dtype == torch.float64 else order**2)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(backends, "FAST_FROM", 1)
        with dynroute.backend("reference"):
            expected = results(net, run, x, path, order)
        for name in ("auto", "sparse", "fused"):
            try:
                with dynroute.backend(name):
                    found = results(net, run, x, path, order)
            except ValueError as refused:
                if name != "fused" or '"fused" cannot: module' not in str(refused):  # it asks for plain linear modules
                    raise
                continue
            assert_equal(found, expected, tolerance)
        if order == 2:
            return  # what follows has no gradients
        with torch.no_grad():
            for name in ("auto", "skip"):
                with dynroute.backend(name):
                    assert_equal([run(net, x, path)], expected[:1], tolerance)


@pytest.mark.parametrize("level", TOPOLOGIES)
@pytest.mark.parametrize("protect", ["rsg", "input", "sg", "none"])
@pytest.mark.parametrize("gate", [TopK(2), SampleK(2), Hard(), Soft()], ids=lambda gate: type(gate).__name__)
def test_rows_that_fill_up_change_nothing(
    monkeypatch: pytest.MonkeyPatch, level: str, protect: str, gate: dynroute.Gate
) -> None:
    for module in (fused.graph, fused.experts):
        monkeypatch.setattr(module, "row_multiple", lambda dtype: 4)
    net = build(level, gate, protect, True, torch.float64, 0)
    x = torch.randn(9, WIDTH, dtype=torch.float64)
    path = net.route(x).path
    with dynroute.backend("reference"):
        expected = results(net, plainly, x, path, 1)
    with dynroute.backend("fused"):
        assert_equal(results(net, plainly, x, path, 1), expected, 1e-10)


@pytest.mark.parametrize("level", TOPOLOGIES)
@pytest.mark.parametrize("name", ["auto", "fused", "sparse"])
def test_many_gradients_at_once(monkeypatch: pytest.MonkeyPatch, level: str, name: str) -> None:
    monkeypatch.setattr(backends, "FAST_FROM", 1)
    net = build(level, TopK(2), "rsg", True, torch.float64, 0)
    x = torch.randn(9, WIDTH, dtype=torch.float64)
    path = net.route(x).path
    directions = torch.randn(4, 9, WIDTH, dtype=torch.float64)
    found = []
    for backend in ("reference", name):
        with dynroute.backend(backend):
            output = net(x, path=path)
        found.append(torch.autograd.grad(output, list(net.parameters()), directions, is_grads_batched=True))
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_dynamically_quantized_nodes_see_their_batch() -> None:
    net = build("module", TopK(2), "none", True, torch.float32, 0).eval()
    net.nodes = torch.ao.quantization.quantize_dynamic(net.nodes, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(300, WIDTH)
    with torch.no_grad():
        with dynroute.backend("reference"):
            expected = net(x)
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_replayed_source_whose_weight_underflows_is_read_as_nothing(batch: int) -> None:
    topology = Topology.parallel(3)
    net = RoutedGraph(
        [nn.Linear(5, 2) for _ in range(3)] + [nn.Linear(2, 2)], topology, Hard(), LinearRouter(5, topology)
    )
    with torch.no_grad():
        net.router.layers[0].weight.zero_()
        net.router.layers[0].bias.copy_(torch.tensor([0.0, -300.0, 0.0]))
    x = torch.randn(batch, 5)
    path = torch.tensor([False, True, False]).expand(batch, 1, 3)
    for name in ("reference", "auto", "skip"):
        with torch.no_grad(), dynroute.backend(name):
            assert torch.equal(net(x, path=path), net.nodes[3].bias.expand(batch, 2))
