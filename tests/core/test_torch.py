"""Routed layers are good citizens of torch: copies, state dicts, compile, export, autocast, vmap, Sequential."""

import copy
import io
import pickle
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynroute import (
    BalancedTopK,
    ExpertChoice,
    Gate,
    Hard,
    LayerRouting,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    SampleK,
    Soft,
    TableRouter,
    TopK,
    Topology,
    TopP,
)
from dynroute.functional import gumbel_noise

Level = Callable[[Gate], RoutedGraph]
LEVELS: dict[str, Level] = {
    "module": lambda gate: ModuleRouting.mlp(5, 8, 3, 3, 5, gate, router_sizes=(8,)),
    "layer": lambda gate: LayerRouting.mlp(5, 8, [3, 2], 3, 5, gate, router_sizes=(8,), protect="rsg"),
    "model": lambda gate: ModelRouting.mlp(5, 8, 4, 3, 5, gate, router_sizes=(8,), protect="rsg"),
    "output": lambda gate: OutputRouting.mlp(5, 8, 5, 3),
}
LEARNED = [name for name in LEVELS if name != "output"]
GATES: dict[str, Callable[[], Gate]] = {
    "soft": Soft,
    "hard": Hard,
    "topk": lambda: TopK(2),
    "samplek": lambda: SampleK(2),
    "topp": lambda: TopP(0.6),
    "balanced": lambda: BalancedTopK(2),
    "expert choice": lambda: ExpertChoice(1.0),
    "capacity": lambda: TopK(2, capacity=1.0),
}


def context_of(net: RoutedGraph, x: Tensor) -> Tensor:
    return torch.arange(x.shape[0]) % 5 if isinstance(net, OutputRouting) else x


@pytest.mark.parametrize("level", LEVELS)
def test_copies_pickles_and_state_dicts_compute_the_same(level: str) -> None:
    net = LEVELS[level](TopK(2))
    x = torch.randn(6, 5)
    expected = net(x, context_of(net, x))
    net(x, context_of(net, x)).sum().backward()  # nothing that a forward leaves behind may hinder a copy

    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    fresh = LEVELS[level](TopK(2))
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert torch.equal(twin(x, context_of(net, x)), expected)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_state_dict_holds_parameters_under_plain_names() -> None:
    names = list(LEVELS["module"](TopK(2)).state_dict())
    assert names[:2] == ["nodes.0.0.weight", "nodes.0.0.bias"]
    assert names[-1] == "router.layers.1.bias"
    assert all(name.startswith(("nodes.", "router.")) for name in names)


# Every gate and every level; a gate knows nothing of the level that it chooses for.
TRACED = [
    *(("module", gate) for gate in GATES),
    ("layer", "soft"),
    ("model", "balanced"),
]


@pytest.mark.parametrize(("level", "gate"), TRACED)
def test_compile_in_one_graph(level: str, gate: str) -> None:
    torch.compiler.reset()
    net = LEVELS[level](GATES[gate]())
    x = torch.randn(6, 5, requires_grad=True)
    noise = gumbel_noise((6, *net.topology.path_shape)) if gate == "samplek" else None

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    before, results = copy.deepcopy(net.state_dict()), []
    for run in (net, compiled):
        net.load_state_dict(before)  # BalancedTopK moves its bias
        net.zero_grad()
        x.grad = None
        output = run(x, noise=noise)
        output.square().sum().backward()
        results.append([output.detach(), x.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize(("level", "protect"), [("module", "rsg"), ("module", "input"), ("layer", "none")])
def test_compile_the_fused_backend_in_one_graph(level: str, protect: str) -> None:
    torch.compiler.reset()
    net = LEVELS[level](TopK(2))
    net.protect = protect
    x = torch.randn(6, 5)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    net.backend = "fused"
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(
        torch.autograd.grad(compiled(x).square().sum(), list(net.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs)


# All levels and gates are compiled above without a compiler; this adds the code generator, which needs one.
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile generates C++ here and finds no compiler")
def test_compile_to_machine_code() -> None:
    torch.compiler.reset()
    net = LEVELS["module"](SampleK(2))
    x, noise = torch.randn(6, 5), gumbel_noise((6, *net.topology.path_shape))
    compiled = torch.compile(net, fullgraph=True)
    weights = list(net.parameters())
    gradients = [torch.autograd.grad(run(x, noise=noise).square().sum(), weights) for run in (net, compiled)]
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.slow
def test_compile_with_shapes_that_may_change() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    net = LEVELS["module"](TopK(2))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 7, 64):
        x = torch.randn(batch, 5)
        torch.testing.assert_close(compiled(x), net(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_compile_output_level_and_replay() -> None:
    torch.compiler.reset()
    net = OutputRouting.mlp(5, 8, 5, 3)
    x, task = torch.randn(6, 5), torch.arange(6) % 5
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x, task), net(x, task))

    routed = LEVELS["module"](SampleK(2))
    output, route = routed(x, return_route=True)
    compiled = torch.compile(routed, fullgraph=True, backend="aot_eager")
    replayed, again = compiled(x, path=route.path, return_route=True)
    torch.testing.assert_close(replayed, output)
    assert torch.equal(again.path, route.path)


def test_compile_draws_without_noise_too() -> None:
    torch.compiler.reset()
    net = LEVELS["module"](SampleK(2))
    x = torch.randn(64, 5)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    first, second = (compiled(x, return_route=True)[1].path for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sum(-1), torch.tensor([1, 2, 2]).expand(64, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("level", "gate"), TRACED)
def test_export_of_an_evaluation_forward(level: str, gate: str) -> None:
    net = LEVELS[level](GATES[gate]()).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (torch.randn(6, 5),), dynamic_shapes={"x": {0: batch}})
    for x in (torch.randn(11, 5), torch.randn(3000, 5)):
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("level", LEARNED)
def test_autocast_keeps_the_router_in_float32(level: str) -> None:
    net = LEVELS[level](TopK(2))
    x = torch.randn(64, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, route = net(x, return_route=True)
    assert output.dtype == torch.bfloat16
    assert route.logits.dtype == route.weights.dtype == torch.float32
    assert torch.equal(route.path, net.route(x).path)
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())

    plain = nn.Sequential(nn.Linear(5, net.topology.path_shape[0] * net.topology.path_shape[1]))
    plain.append(nn.Unflatten(-1, net.topology.path_shape))
    foreign = RoutedGraph(net.nodes, net.topology, TopK(2), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = foreign.route(x.bfloat16()).logits
    assert torch.equal(under_autocast, foreign.route(x.bfloat16().float()).logits)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("backend", ["sparse", "fused", "auto"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelRouting.ffn(16, 32, 4, TopK(2)),
        lambda: ModuleRouting.mlp(16, 16, 4, 2, gate=TopK(2)),
        lambda: LayerRouting.mlp(16, 16, [3, 3], 2),
        lambda: LayerRouting.mlp(16, 16, [3, 3], 2, gate=TopK(2)),
        lambda: OutputRouting.mlp(16, 8, 3, 2),
    ],
    ids=["model", "module", "layer", "layer top-k", "output"],
)
def test_the_backward_pass_may_run_under_autocast(make: Callable[[], RoutedGraph], backend: str, again: bool) -> None:
    net, x = make(), torch.randn(300, 16, requires_grad=True)
    inputs = (x, torch.arange(300) % 3) if isinstance(net, OutputRouting) else (x,)
    tensors = [x, *net.parameters()]
    net.backend = "reference"
    expected = torch.autograd.grad(net(*inputs).square().sum(), tensors)
    net.backend = backend
    loss = net(*inputs).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = torch.autograd.grad(loss, tensors, create_graph=again)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max() + 1e-3))


@pytest.mark.parametrize("level", LEARNED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_another_type(level: str, dtype: torch.dtype) -> None:
    net = LEVELS[level](TopK(2)).to(dtype)
    output, route = net(torch.randn(6, 5, dtype=dtype), return_route=True)
    assert output.dtype == dtype
    assert route.weights.dtype == torch.promote_types(dtype, torch.float32)
    output.float().sum().backward()


def test_builders_take_device_and_dtype() -> None:
    for net in (
        ModuleRouting.mlp(3, 4, 3, 2, device="meta", dtype=torch.float64),
        LayerRouting.mlp(3, 4, [2, 2], 2, device="meta", dtype=torch.float64),
        ModelRouting.mlp(3, 4, 3, 2, device="meta", dtype=torch.float64),
        OutputRouting.mlp(3, 4, 3, 2, device="meta", dtype=torch.float64),
    ):
        assert {(p.device.type, p.dtype) for p in net.parameters()} <= {("meta", torch.float64)}
        assert not list(net.buffers())
        x = torch.randn(7, 3, device="meta", dtype=torch.float64)
        task = torch.zeros(7, dtype=torch.long, device="meta") if isinstance(net, OutputRouting) else None
        assert net(x, task).shape == (7, 2)
    assert TableRouter(3, Topology.dag(3), device="meta", dtype=torch.float64).table.device.type == "meta"


def test_deferred_initialisation() -> None:
    source = LEVELS["module"](TopK(2))
    with torch.device("meta"):
        net = LEVELS["module"](TopK(2))
    net.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(6, 5)
    assert torch.equal(net(x), source(x))


@pytest.mark.parametrize("level", LEARNED)
def test_forward_mode_and_hessian_of_an_evaluation_forward(level: str) -> None:
    net = LEVELS[level](TopK(2)).double().eval()
    x, tangent = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    _, derivative = torch.func.jvp(net, (x,), (tangent,))
    torch.testing.assert_close(derivative, torch.func.jacrev(net)(x) @ tangent)
    assert torch.func.hessian(lambda x: net(x).square().sum())(x).shape == (5, 5)


def test_in_a_sequential() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), LEVELS["module"](TopK(2)), nn.Tanh())
    x = torch.randn(2, 3, 4)
    output = net(x)
    assert output.shape == (2, 3, 3)
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_vmap_over_samples_equals_the_batch() -> None:
    net = LEVELS["module"](SampleK(2))
    x, noise = torch.randn(6, 5), gumbel_noise((6, 3, 3))
    batched = torch.func.vmap(lambda x, noise: net(x, noise=noise))(x, noise)
    torch.testing.assert_close(batched, net(x, noise=noise))


def test_per_sample_gradients_by_vmap() -> None:
    net = LEVELS["module"](TopK(2))
    x = torch.randn(6, 5)
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    net(x).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


def test_activation_checkpointing_replays_the_noise() -> None:
    net = LEVELS["module"](SampleK(2))
    x, noise = torch.randn(6, 5, requires_grad=True), gumbel_noise((6, 3, 3))
    torch.utils.checkpoint.checkpoint(lambda x: net(x, noise=noise), x, use_reentrant=False).sum().backward()
    recomputed = x.grad
    x.grad = None
    net(x, noise=noise).sum().backward()
    assert torch.equal(recomputed, x.grad)


def test_repr_says_what_it_is() -> None:
    text = repr(LEVELS["module"](TopK(2)))
    assert text.startswith("ModuleRouting(")
    assert "num_edges=6" in text
    assert "protect='rsg'" in text
    assert "(gate): TopK(2)" in text
