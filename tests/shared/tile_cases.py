"""The cases of `test_tile`, which runs them in a process of their own, where Triton interprets its kernels."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import triton
from torch import Tensor, nn
from triton.runtime import interpreter

from dynroute import LayerRouting, ModuleRouting, Soft, TopK, Topology
from dynroute.banks import lay_adjacent
from dynroute.execution import Pass, Plan, backends
from dynroute.execution.fused import linear_nodes, run_tile, tile, tiles
from dynroute.execution.reference import run_reference

torch.set_num_threads(1)

PROTECT = ["rsg", "input", "sg", "none"]
TOPOLOGIES = {
    "dag": Topology.dag(5),
    "layers": Topology.layered([2, 3]),
    "gaps": Topology([[], [], [0], [0, 2], [1, 3]]),
    "late root": Topology([[], [0], [], [1, 2], [0, 1], [0, 3]]),  # and node 4 is not read
}
ACTIVATIONS = [nn.Identity, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.GELU]


@pytest.fixture(autouse=True)
def wide_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bfloat16 as integers, and its product multiplies those."""
    product = interpreter.InterpreterBuilder.create_dot

    def wide(operand: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if operand.dtype.scalar != triton.language.bfloat16:
            return operand
        return interpreter.TensorHandle((operand.data.astype("uint32") << 16).view("float32"), triton.language.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: product(self, wide(a), wide(b), *rest),
    )


def make_pass(
    topology: Topology = TOPOLOGIES["dag"],
    width: int = 24,
    batch: tuple[int, ...] = (21,),
    protect: str = "rsg",
    *,
    shortcut: bool = True,
    before: type[nn.Module] = nn.Identity,
    behind: type[nn.Module] = nn.Tanh,
    features: int = 7,
    bias: bool = True,
) -> Pass:
    """A pass whose weights are zero for every third slot, and whose gradients are stopped in every other one."""
    torch.manual_seed(0)
    modules: list[nn.Module] = [
        nn.Sequential(before(), nn.Linear(width if parents else features, width, bias=bias), behind())
        for parents in topology.parents[:-1]
    ]
    modules.append(nn.Linear(width, 3))
    plan = Plan(topology, [shortcut and i in topology.destinations[:-1] for i in range(topology.num_nodes)])
    shape = (*batch, *topology.path_shape)
    weights = torch.rand(shape) * topology.allowed * (torch.rand(shape) > 1 / 3)
    suitable = None if protect == "none" else torch.rand(shape) > 0.5
    return Pass(
        plan, modules, torch.randn(*batch, features).requires_grad_(), weights.requires_grad_(), suitable, protect
    )


def converted(call: Pass, dtype: torch.dtype, weights: torch.dtype) -> Pass:
    """The same pass in other types."""
    return replace(
        call,
        nodes=[copy.deepcopy(node).to(dtype) for node in call.nodes],  # type: ignore[attr-defined]
        x=call.x.detach().to(dtype).requires_grad_(),
        weights=call.weights.detach().to(weights).requires_grad_(),
    )


def run(call: Pass) -> Tensor:
    linear = linear_nodes(call)
    assert not isinstance(linear, str), linear
    assert tiles(call, linear) is None
    return run_tile(call, linear)


def leaves(call: Pass) -> dict[str, Tensor]:
    named = {f"{i}.{name}": p for i, node in enumerate(call.nodes) for name, p in node.named_parameters()}  # type: ignore[attr-defined]
    return {"x": call.x, "weights": call.weights, **named}


def results(call: Pass, forward: Callable[[Pass], Tensor]) -> dict[str, Tensor]:
    """The output and the gradients of all leaves."""
    output = forward(call)
    toward = torch.cos(torch.arange(output.numel()).reshape(output.shape)).to(output.dtype)
    named = leaves(call)
    wanted = {name: leaf for name, leaf in named.items() if leaf.requires_grad}
    grads = torch.autograd.grad((output * toward).sum(), list(wanted.values()), materialize_grads=True)
    return {"output": output.detach(), **dict(zip(wanted, grads, strict=True))}


def assert_exact(call: Pass) -> None:
    """In float32 the kernels are as exact as the type, measured from the equations in float64."""
    found = results(call, run)
    expected = results(converted(call, torch.float64, torch.float64), run_reference)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32, name
        torch.testing.assert_close(
            found[name].double(),
            gradient,
            rtol=0,
            atol=3e-6 * (1 + float(gradient.abs().max() if gradient.numel() else 0)),
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_values_and_gradients_are_those_of_the_equations(topology: str, protect: str) -> None:
    assert_exact(make_pass(TOPOLOGIES[topology], protect=protect))


@pytest.mark.parametrize("protect", PROTECT)
def test_nodes_without_a_shortcut(protect: str) -> None:
    assert_exact(make_pass(batch=(9,), protect=protect, shortcut=False))


@pytest.mark.parametrize(("before", "behind"), list(pairwise([*ACTIVATIONS, ACTIVATIONS[0]])))
def test_activations(before: type[nn.Module], behind: type[nn.Module]) -> None:
    assert_exact(make_pass(TOPOLOGIES["gaps"], batch=(9,), protect="input", before=before, behind=behind))


def test_tanh_of_all_sizes() -> None:
    call = make_pass(Topology([[], [0], [1]]), 16, (98,), shortcut=False, features=1, bias=False)
    call.nodes[1][2] = call.nodes[2] = nn.Identity()  # type: ignore[index]
    sizes = torch.logspace(-6, 1, 49)
    with torch.no_grad():
        call.x.copy_(torch.cat([sizes, -sizes])[:, None])
        call.weights.fill_(1.0)
        call.nodes[0][1].weight.fill_(1.0)  # type: ignore[index]
        nn.init.eye_(call.nodes[1][1].weight)  # type: ignore[index]
    expected = call.x.expand(-1, 16).tanh()
    torch.testing.assert_close(run(call), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("width", "batch"), [(1, 5), (7, 17), (40, 33), (64, 3), (128, 18)])
def test_widths_and_batches_that_no_tile_fits(width: int, batch: int) -> None:
    assert_exact(make_pass(Topology.dag(4), width, (batch,), features=50))


@pytest.mark.parametrize("protect", ["rsg", "input"])
def test_larger_tiles(protect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile, "SMALL_BATCH", 32)
    assert_exact(make_pass(batch=(70,), protect=protect))


@pytest.mark.parametrize("batch", [(), (2, 3), (0,), (2, 0)])
def test_batch_shapes(batch: tuple[int, ...]) -> None:
    assert_exact(make_pass(batch=batch))


def test_tensors_that_are_not_contiguous() -> None:
    call = make_pass()
    assert call.suitable is not None
    call = replace(
        call,
        weights=call.weights.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        suitable=call.suitable.transpose(0, 2).contiguous().transpose(0, 2),
        nodes=[*call.nodes[:-1], nn.Identity()],
    )
    assert_exact(call)
    found, expected = (torch.autograd.grad(forward(call).sum(), call.x)[0] for forward in (run, run_reference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the gradient of a sum is expanded


def test_parameters_side_by_side() -> None:
    call = make_pass(TOPOLOGIES["layers"])
    for span in ((0, 2), (2, 5)):
        lay_adjacent([node[1].weight for node in call.nodes[slice(*span)]])  # type: ignore[index]
    assert_exact(call)


def test_without_biases() -> None:
    assert_exact(make_pass(bias=False))


@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.parametrize("width", [24, 128])
def test_sixteen_bits(width: int, protect: str) -> None:
    call = converted(make_pass(Topology.dag(4), width, protect=protect, behind=nn.SiLU), torch.bfloat16, torch.float32)
    found = results(call, run)
    expected = results(converted(call, torch.float64, torch.float64), run_reference)
    for name, gradient in expected.items():
        assert found[name].dtype == leaves(call).get(name, call.x).dtype
        # The interpreter cuts instead of rounding, by up to 2 ** -8, some times between the input and any gradient.
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.03, name


def test_autocast() -> None:
    call = make_pass()
    with torch.autocast("cpu", torch.bfloat16):
        found = results(call, run)
    expected = results(call, run_reference)
    assert found["output"].dtype == torch.bfloat16
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.04, name


def test_frozen_parameters_and_inputs() -> None:
    call = make_pass(TOPOLOGIES["gaps"])
    for node in (call.nodes[0], call.nodes[2]):
        node.requires_grad_(False)  # type: ignore[attr-defined]
    call.x.requires_grad_(False)
    assert set(results(call, run)) >= {"1.1.weight", "3.1.bias"}
    expected = results(call, run_reference)
    for name, gradient in results(call, run).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shortcut", [True, False])
def test_inference(shortcut: bool) -> None:
    call = make_pass(protect="none", shortcut=shortcut)
    with torch.no_grad():
        torch.testing.assert_close(run(call), run_reference(call), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protect", PROTECT)
def test_second_derivatives(protect: str) -> None:
    def second(call: Pass, forward: Callable[[Pass], Tensor]) -> Sequence[Tensor]:
        named = list(leaves(call).values())
        first = torch.autograd.grad(forward(call).square().sum(), named, create_graph=True)
        total = sum((g.square().sum() for g in first), torch.zeros(()))
        return torch.autograd.grad(total, named)

    call = make_pass(batch=(5,), protect=protect)
    for found, expected in zip(second(call, run), second(call, run_reference), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("behind", [nn.ReLU, nn.Tanh])
def test_what_is_not_read_does_not_matter(behind: type[nn.Module]) -> None:
    call = make_pass(protect="rsg", behind=behind)
    topology = call.plan.topology
    with torch.no_grad():
        call.nodes[1][1].bias.fill_(float("nan"))  # type: ignore[index]
        for row, node in enumerate(topology.destinations):
            if 1 in topology.parents[node]:
                call.weights[:, row, topology.parents[node].index(1)] = 0.0
        if behind is nn.Tanh:  # whose derivative is no number either, which nobody sends on
            call.weights[:, 0] = 0.0
    found, expected = results(call, run), results(call, run_reference)
    for name in ("output", "x", "0.1.weight", "3.1.weight"):
        assert not found[name].isnan().any()
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert not found["weights"].isnan().any()


def test_roots_may_be_of_another_kind() -> None:
    call = make_pass(TOPOLOGIES["late root"], protect="input", before=nn.Tanh, behind=nn.SiLU)
    for node in (0, 2):
        call.nodes[node][0], call.nodes[node][2] = nn.Sigmoid(), nn.Tanh()  # type: ignore[index]
        call.nodes[node][1].bias = None  # type: ignore[index]
    assert_exact(call)


def test_the_backends_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Pass] = []
    monkeypatch.setattr(backends, "run_tile", lambda call, linear: (taken.append(call), run_tile(call, linear))[1])
    net = ModuleRouting.mlp(4, 16, 4, 2, 4, TopK(2))
    x = torch.randn(80, 4)
    path = net.route(x).path
    expected = net(x, path=path)
    assert not taken  # never on the CPU
    monkeypatch.setattr(backends, "TILED_DEVICE", "cpu")
    monkeypatch.setattr(backends, "_hidden_values", lambda x: "the test says so")
    net.backend = "fused"
    found = net(x, path=path)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(taken) == 1
    taken.clear()
    net.backend = "auto"  # leaves it until a GPU has run it, and takes the dense form
    dense: list[Pass] = []
    run_dense = backends.run_dense
    monkeypatch.setattr(
        backends, "run_dense", lambda call, linear: (dense.append(call), run_dense(call, linear=linear))[1]
    )
    torch.testing.assert_close(net(x, path=path), expected, rtol=1e-5, atol=1e-6)
    assert not taken
    assert len(dense) == 1
    net.backend = "reference"
    net(x)
    assert not taken
    LayerRouting.mlp(4, 16, [3, 3], 2, 4, Soft())(x)  # full layers are better products
    ModuleRouting.mlp(4, 129, 4, 2, 4, TopK(2))(x)
    assert not taken
