"""The residual stop-gradient: its value, what it stops, and what it lets through."""

import pytest
import torch
from torch import Tensor, nn

from dynroute import Gate, ModuleRouting, Router, Soft, TopK, Topology
from dynroute.functional import rsg

DOUBLE = torch.float64


def test_value_and_gradients() -> None:
    output = torch.randn(4, 3, requires_grad=True)
    shortcut = torch.randn(4, 3, requires_grad=True)
    result = rsg(output, shortcut)
    assert torch.equal(result, output)
    cotangent = torch.randn(4, 3)
    result.backward(cotangent)
    assert output.grad is not None
    assert torch.equal(output.grad, torch.zeros(4, 3))
    assert torch.equal(shortcut.grad, cotangent)


def by_detach(output: Tensor, shortcut: Tensor) -> Tensor:
    """Eq. 12 with the module's share of the output detached."""
    return shortcut + (output - shortcut).detach()


def test_equals_the_detached_form() -> None:
    layer = nn.Linear(3, 3, dtype=DOUBLE)
    results = []
    for stop in (rsg, by_detach):
        x = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3).requires_grad_()
        loss = stop(x + layer(x).tanh(), x).square().sum()
        results.append((loss, *torch.autograd.grad(loss, [x, *layer.parameters()], materialize_grads=True)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_double_backward() -> None:
    x = torch.randn(5, dtype=DOUBLE, requires_grad=True)
    (first,) = torch.autograd.grad(rsg(x + x.sin(), x.square()).pow(3).sum(), x, create_graph=True)
    # d/dx 3 (x + sin x)^2 * 2x, where the value x + sin x passes no gradient but its square does
    torch.testing.assert_close(first, 3 * (x + x.sin()).square() * 2 * x)
    (second,) = torch.autograd.grad(first.sum(), x)
    value = x + x.sin()
    torch.testing.assert_close(second, 6 * value * (2 * x) * (2 * x) + 3 * value.square() * 2)


def test_vmap_and_functional_gradients() -> None:
    output, shortcut = torch.randn(6, 3), torch.randn(6, 3)
    assert torch.equal(torch.func.vmap(rsg)(output, shortcut), output)
    grads = torch.func.vmap(torch.func.grad(lambda o, s: rsg(o, s).square().sum(), argnums=(0, 1)))(output, shortcut)
    assert torch.equal(grads[0], torch.zeros(6, 3))
    torch.testing.assert_close(grads[1], 2 * output)


def test_forward_mode() -> None:
    output, shortcut, along = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)
    value, tangent = torch.func.jvp(rsg, (output, shortcut), (torch.randn(6, 3), along))
    assert torch.equal(value, output)
    assert torch.equal(tangent, along)
    value, _ = torch.func.jvp(rsg, (output, torch.full((6, 3), torch.inf)), (along, along))
    assert torch.equal(value, output)
    # Both modes agree on a whole graph in training.
    net, x = ModuleRouting.mlp(5, 8, 4, 2).double(), torch.randn(6, 5, dtype=torch.float64)
    path = net.route(x).path
    forward = torch.func.jacfwd(lambda x: net(x, path=path))(x)
    backward = torch.func.jacrev(lambda x: net(x, path=path))(x)
    torch.testing.assert_close(forward, backward)


def test_compile() -> None:
    compiled = torch.compile(lambda x: rsg(x + x.sin(), x).sum(), fullgraph=True, backend="aot_eager")
    x = torch.randn(5, requires_grad=True)
    compiled(x).backward()
    assert torch.equal(x.grad, torch.ones(5))


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\); a module without a shortcut is stopped with"):
        rsg(torch.zeros(2), torch.zeros(3))


class Fixed(Router):
    """Logits that are parameters, whatever the context."""

    def __init__(self, topology: Topology, values: Tensor) -> None:
        super().__init__(topology)
        self.values = nn.Parameter(topology.to_edges(values))

    def score(self, context: Tensor) -> Tensor:
        return self.values.expand(*context.shape[:-1], -1)


def network(logits: Tensor, protect: str, gate: Gate, *, shortcut: bool = True) -> ModuleRouting:
    torch.manual_seed(0)
    topology = Topology.dag(5)
    modules = [nn.Sequential(nn.Linear(3, 3, dtype=DOUBLE), nn.Tanh()) for _ in range(5)]
    return ModuleRouting(modules, gate, Fixed(topology, logits), protect=protect, shortcut=shortcut)


UNSUITABLE = torch.zeros(4, 4, dtype=DOUBLE)
UNSUITABLE[1:, 1] = -8.0  # nobody finds node 1 suitable, yet the replayed path reads it


def gradient_of_node_1(protect: str, gate: Gate, *, shortcut: bool = True) -> float:
    net = network(UNSUITABLE, protect, gate, shortcut=shortcut)
    path = net.topology.allowed.expand(6, 4, 4)
    net(torch.randn(6, 3, dtype=DOUBLE), path=path).square().sum().backward()
    grads = [parameter.grad for parameter in net.nodes[1].parameters()]
    assert all(grad is not None for grad in grads), "stopped gradients are zeros, not None"
    return float(sum(grad.abs().sum() for grad in grads if grad is not None))


@pytest.mark.parametrize("gate", [Soft(), TopK(2)], ids=["soft", "topk"])
def test_a_module_unsuitable_everywhere_learns_nothing_under_rsg(gate: Gate) -> None:
    assert gradient_of_node_1("rsg", gate) == 0.0
    assert gradient_of_node_1("sg", gate) == 0.0
    assert gradient_of_node_1("sg", gate, shortcut=False) == 0.0
    assert gradient_of_node_1("none", gate) > 0.0
    assert gradient_of_node_1("input", gate) > 0.0  # through the shortcuts of the nodes behind it


def test_rsg_lets_the_modules_before_an_unsuitable_one_learn_where_sg_does_not() -> None:
    logits = torch.full((4, 4), -8.0, dtype=DOUBLE)
    logits[0, 0] = logits[1, 0] = logits[2, 0] = 0.0  # the output finds node 0 unsuitable ...
    logits[3, 3] = logits[3, 1] = 0.0
    logits[3, 0] = logits[3, 2] = -8.0  # ... and node 2, which is the only one that it reads
    path = torch.zeros(4, 4, dtype=torch.bool)
    path[0, 0] = path[1, 1] = path[2, 0] = path[3, 2] = True  # 0 -> 1 -> 2 -> 4
    logits[1, 1] = 0.0
    for protect, learns in (("rsg", True), ("sg", False)):
        net = network(logits, protect, TopK(2))
        net(torch.randn(6, 3, dtype=DOUBLE), path=path.expand(6, 4, 4)).square().sum().backward()
        gradient = sum(float(p.grad.abs().sum()) for p in net.nodes[1].parameters() if p.grad is not None)
        assert (gradient > 0) == learns
        assert all(not p.grad.any() for p in net.nodes[2].parameters() if p.grad is not None)


def test_stopping_node_0_stops_everything_behind_it() -> None:
    logits = torch.zeros(4, 4, dtype=DOUBLE)
    logits[1:, 0] = -8.0  # every node that has a choice finds node 0 unsuitable
    net = network(logits, "rsg", TopK(2))
    path = torch.zeros(4, 4, dtype=torch.bool)
    path[1:, 0] = path[0, 0] = True
    x = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    net(x, path=path.expand(6, 4, 4)).square().sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert not any(p.grad.any() for p in net.nodes[0].parameters() if p.grad is not None)


def test_gradcheck_where_everything_is_suitable() -> None:
    net = network(torch.zeros(4, 4, dtype=DOUBLE), "rsg", Soft())
    x = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    parameters = tuple(net.parameters())
    names = [name for name, _ in net.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_the_modes_agree_in_value() -> None:
    x = torch.randn(6, 3, dtype=DOUBLE)
    outputs = [network(UNSUITABLE, protect, TopK(2))(x) for protect in ("rsg", "input", "sg", "none")]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
