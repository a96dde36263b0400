"""A dense part becomes a mixture that computes the same, and parts of a model are replaced."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dynroute
from dynroute import BalancedTopK, Gate, GatedPerceptron, ModelRouting, SampleK, Soft, TableRouter, TopK, Topology
from dynroute.testing import assert_routed

DENSE: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)),
    "normed": lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.0), nn.Linear(12, 6)),
    "gated": lambda: GatedPerceptron(6, 12),
    "linear": lambda: nn.Linear(6, 4, bias=False),
}
GATES: dict[str, Callable[[], Gate]] = {
    "soft": Soft,
    "topk": lambda: TopK(2),
    "samplek": lambda: SampleK(3),
    "balanced": lambda: BalancedTopK(2),
}


@pytest.mark.parametrize("backend", ["reference", "sparse", "auto"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", DENSE)
def test_an_upcycled_part_computes_the_same(kind: str, gate: str, backend: str) -> None:
    dense = DENSE[kind]().double()
    state = copy.deepcopy(dense.state_dict())
    net = dynroute.upcycle(dense, 5, GATES[gate](), backend=backend)
    x = torch.randn(3, 50, 6, dtype=torch.float64, requires_grad=True)
    y, expected = net(x), dense(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(y)
    torch.testing.assert_close(  # weights that sum to 1 leave the gradient of the input what it was
        torch.autograd.grad((y * weights).sum(), x)[0], torch.autograd.grad((expected * weights).sum(), x)[0]
    )
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in dense.parameters()}
    assert all(torch.equal(value, state[name]) for name, value in dense.state_dict().items())
    assert_routed(dynroute.upcycle(DENSE[kind](), 4, GATES[gate]()), torch.randn(16, 6))


def test_the_experts_part_ways() -> None:
    net = dynroute.upcycle(DENSE["perceptron"](), 4)
    x = torch.randn(64, 6)
    net(x).square().sum().backward()
    first, second = (net.nodes[j][0].weight.grad for j in (0, 1))
    assert not torch.allclose(first, second)


def test_upcycling_takes_a_router_and_the_mode() -> None:
    dense = DENSE["linear"]().eval()
    net = dynroute.upcycle(dense, 3, router=TableRouter(2, Topology.parallel(3)))
    assert isinstance(net.router, TableRouter)
    assert not net.training
    assert dynroute.upcycle(nn.Conv2d(3, 4, 1), 2, context_features=7).router.layers[0].in_features == 7


class Quantized(nn.Module):
    """A linear layer with integers of 8 bits as weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features = 6
        self.weight = nn.Parameter(torch.randint(-9, 9, (6, 6), dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(6, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype) * self.scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_router_has_the_type_of_the_first_floating_parameter(dtype: torch.dtype) -> None:
    dense, x = Quantized(dtype), torch.randn(5, 6, dtype=dtype)
    net = dynroute.upcycle(dense, 3)
    assert net.router.layers[0].weight.dtype == dtype
    torch.testing.assert_close(net(x), dense(x))
    del dense.scale
    dense.scale = 0.5  # no parameter has a floating type
    assert dynroute.upcycle(dense, 3).router.layers[0].weight.dtype == torch.get_default_dtype()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mlp = DENSE["perceptron"]()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def blocks() -> nn.Sequential:
    return nn.Sequential(*(Block() for _ in range(3)))


@pytest.mark.parametrize(
    "where",
    ["*.mlp", "?.mlp", nn.Sequential, (nn.Sequential, nn.GELU), lambda name, module: name.endswith("mlp")],
    ids=["pattern", "letter", "class", "classes", "predicate"],
)
def test_parts_are_replaced(where: dynroute.surgery.Where) -> None:
    model = blocks()
    parts, x = [block.mlp for block in model], torch.randn(4, 6)
    expected = model(x)
    old = dynroute.swap(model, where, lambda dense: dynroute.upcycle(dense, 4))
    assert old == {f"{i}.mlp": part for i, part in enumerate(parts)}
    assert all(isinstance(block.mlp, ModelRouting) for block in model)
    assert len({id(block.mlp) for block in model}) == 3
    torch.testing.assert_close(model(x), expected)
    with dynroute.record(model) as routes:
        model(x)
    assert list(routes) == ["0.mlp", "1.mlp", "2.mlp"]


def test_a_part_used_twice_is_replaced_by_one() -> None:
    block = Block()
    model = nn.Sequential(block, block, nn.Linear(6, 2))
    old = dynroute.swap(model, "*.mlp", lambda dense: dynroute.upcycle(dense, 2))
    assert list(old) == ["0.mlp", "1.mlp"]
    assert model[0] is model[1]
    assert isinstance(model[0].mlp, ModelRouting)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    dynroute.swap(model, nn.Linear, lambda dense: dynroute.upcycle(dense, 2))
    assert model[0] is model[2]


def test_a_part_is_replaced_under_names_that_do_not_match_too() -> None:
    shared, calls = nn.Linear(6, 6), []

    def make(part: nn.Module) -> nn.Module:
        calls.append(part)
        return nn.Linear(6, 6)

    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(nn.Sequential(shared)))
    old = dynroute.swap(model, lambda name, _: name in ("2", "3.0"), make)
    assert list(old) == ["0", "2", "3.0"]
    assert model[0] is model[2] is not shared
    assert old["3.0"][0] is shared, "what is inside of an old part stays"
    assert calls == [shared, old["3.0"]]


def test_what_is_inside_a_replaced_part_is_left_alone() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))), nn.Linear(6, 2))
    old = dynroute.swap(model, lambda name, module: not isinstance(module, nn.Sequential) or name == "0", nn.Identity)
    assert list(old) == ["0", "1"]


def test_a_failure_replaces_nothing() -> None:
    model, calls = blocks(), []

    def make(dense: nn.Module) -> nn.Module:
        calls.append(dense)
        if len(calls) == 2:
            raise RuntimeError("no room")
        return nn.Identity()

    with pytest.raises(RuntimeError, match="no room"):
        dynroute.swap(model, "*.mlp", make)
    assert all(isinstance(block.mlp, nn.Sequential) for block in model)


def test_new_parts_take_the_mode() -> None:
    model = blocks().eval()
    dynroute.swap(model, "1.mlp", lambda dense: ModelRouting.ffn(6, 8, 3))
    assert not model[1].mlp.training
    assert not model[1].mlp.gate.training
