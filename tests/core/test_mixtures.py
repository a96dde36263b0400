"""Mixtures of experts as their users know them: builders, defaults, shared experts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dynroute
from dynroute import (
    GatedPerceptron,
    Hard,
    LayerRouting,
    LinearBank,
    LinearRouter,
    MLPRouter,
    ModelRouting,
    ModuleRouting,
    RoutedGraph,
    Soft,
    TableRouter,
    TopK,
    Topology,
)
from dynroute.testing import assert_routed

DOUBLE = torch.float64


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "begins",
    [
        lambda: nn.Linear(5, 4),
        lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 4)),
        lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4)),
        lambda: nn.Sequential(nn.Sequential(nn.Identity(), GatedPerceptron(5, 8, 4))),
    ],
)
def test_a_router_of_the_right_width_is_made(begins: Callable[[], nn.Module]) -> None:
    net = ModelRouting([begins() for _ in range(3)], TopK(2)).double()
    assert isinstance(net.router, LinearRouter)
    assert net.router.layers[0].in_features == 5
    assert net(torch.randn(2, 7, 5, dtype=DOUBLE)).shape == (2, 7, 4)


def test_a_router_is_made_at_every_level_like_the_modules() -> None:
    for net in (
        ModuleRouting([nn.Linear(5, 4, dtype=DOUBLE), nn.Linear(4, 4), nn.Linear(4, 2)], Soft()),
        LayerRouting([[nn.Linear(5, 4, dtype=DOUBLE)], [nn.Linear(4, 2)]], Soft()),
        RoutedGraph([nn.Linear(5, 4, dtype=DOUBLE), nn.Linear(4, 2)], Topology.dag(2), Soft()),
    ):
        assert isinstance(net.router, LinearRouter)
        assert net.router.layers[0].weight.dtype == DOUBLE
    assert ModelRouting([nn.Linear(5, 4, device="meta")], Hard()).router.layers[0].weight.device.type == "meta"


@pytest.mark.parametrize(
    "experts",
    [
        [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)],
        [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4))],
        [nn.Linear(5, 4), nn.Linear(6, 4)],
        [nn.LazyLinear(4)],
        [nn.Sequential(nn.PReLU(3), nn.Linear(5, 4))],
        [nn.LayerNorm((2, 5))],
        [nn.Sequential()],
    ],
    ids=lambda experts: str(experts)[:20],
)
def test_where_no_width_is_told_one_is_asked_for(experts: list[nn.Module]) -> None:
    with pytest.raises(ValueError, match="`context_features` must be given where no router is, unless all modules"):
        ModelRouting(experts, TopK(2))
    net = ModelRouting(experts, TopK(2), context_features=7)
    assert net.router.layers[0].in_features == 7


def test_images_with_a_context_of_their_own() -> None:
    net = ModelRouting([nn.Conv2d(3, 4, 3) for _ in range(3)], TopK(2), context_features=6)
    assert net(torch.randn(5, 3, 8, 8), torch.randn(5, 6)).shape == (5, 4, 6, 6)


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("backend", ["reference", "sparse", "auto"])
def test_the_feed_forward_part_is_that_of_a_loop(shared: int, gated: bool, backend: str) -> None:
    net = ModelRouting.ffn(6, 8, 5, TopK(2), shared=shared, gated=gated, backend=backend, dtype=DOUBLE)
    x = torch.randn(2, 40, 6, dtype=DOUBLE, requires_grad=True)
    loop = torch.stack([token(net, row) for row in x.reshape(-1, 6)]).reshape(x.shape)
    actual = net(x)
    torch.testing.assert_close(actual, loop, rtol=1e-10, atol=1e-10)

    tensors, weights = [x, *net.parameters()], torch.randn_like(x)
    expected = torch.autograd.grad((loop * weights).sum(), tensors, materialize_grads=True, allow_unused=True)
    for mine, theirs in zip(torch.autograd.grad((actual * weights).sum(), tensors), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def token(net: ModelRouting, x: Tensor) -> Tensor:
    """The layer for one token, straight from its description."""

    def expert(module: nn.Module) -> Tensor:
        if isinstance(module, GatedPerceptron):
            gate, up = x @ module.gate.weight.T + module.gate.bias, x @ module.up.weight.T + module.up.bias
            return (gate * gate.sigmoid() * up) @ module.down.weight.T + module.down.bias
        hidden = x @ module[0].weight.T + module[0].bias
        return (hidden * hidden.sigmoid()) @ module[2].weight.T + module[2].bias

    z = net.router.layers[0].weight @ x + net.router.layers[0].bias
    best = sorted(range(len(z)), key=lambda j: -float(z[j].detach()))[:2]
    p = torch.softmax(torch.stack([z[j] for j in best]), dim=0)
    output = sum((p[i] * expert(net.nodes[j]) for i, j in enumerate(best)), torch.zeros_like(x))
    return output + sum((expert(module) for module in net.shared), torch.zeros_like(x))


@pytest.mark.parametrize("gated", [False, True])
def test_the_feed_forward_part_keeps_the_contract(gated: bool) -> None:
    assert_routed(ModelRouting.ffn(6, 8, 4, shared=1, gated=gated), torch.randn(24, 6))


def test_the_feed_forward_part_takes_its_options() -> None:
    net = ModelRouting.ffn(6, 8, 4, Hard(), activation=nn.GELU, bias=False, context_features=3, device="meta")
    assert not any(".bias" in name for name, _ in net.nodes.named_parameters())
    assert isinstance(net.nodes[0][1], nn.GELU)
    assert net.router.layers[0].in_features == 3
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert isinstance(ModelRouting.ffn(6, 8, 4).gate, TopK)
    assert ModelRouting.ffn(6, 8, 4, gated=True)(torch.zeros(6)).shape == (6,)


def test_shared_networks_run_beside_and_must_fit() -> None:
    experts, shared = [nn.Linear(5, 2) for _ in range(3)], nn.Linear(5, 2)
    router = LinearRouter(5, Topology.parallel(3))
    with_shared, without = (
        ModelRouting(experts, TopK(2), router, shared=[shared]),
        ModelRouting(experts, TopK(2), router),
    )
    x = torch.randn(7, 5)
    assert torch.equal(with_shared(x), without(x) + shared(x))
    wrong = ModelRouting(experts, TopK(2), router, shared=[nn.Linear(5, 3)])
    with pytest.raises(
        ValueError, match=r"`shared\[0\]` must give outputs of the shape of the models \(7, 2\), got \(7, 3\)"
    ):
        wrong(x)


@pytest.mark.parametrize(
    "net",
    [
        lambda: ModuleRouting.mlp(64, 22, 8, 10),
        lambda: ModelRouting.mlp(64, 32, 4, 10),
        lambda: LayerRouting.mlp(64, 32, [3, 3], 10),
        lambda: ModuleRouting.mlp(39, 128, 16, 4, context_features=10),
    ],
)
def test_routers_of_the_builders_are_in_proportion(net: Callable[[], RoutedGraph]) -> None:
    made = net()
    assert count(made.router) <= 0.25 * count(made.nodes)
    assert len(made.router.layers if isinstance(made.router, MLPRouter) else made.router.embed) > 0


def test_a_router_for_tiny_modules_is_linear_and_sizes_are_kept() -> None:
    assert len(ModuleRouting.mlp(3, 4, 3, 2).router.layers) == 1
    router = ModelRouting.mlp(3, 4, 3, 2, router_sizes=(256, 256)).router
    assert [layer.out_features for layer in router.layers] == [256, 256, 3]


def test_making_a_router_in_proportion_draws_nothing_more() -> None:
    torch.manual_seed(1)
    first = ModelRouting.mlp(16, 32, 3, 2)
    torch.manual_seed(1)
    sizes = [layer.out_features for layer in list(first.router.layers)[:-1]]
    second = ModelRouting.mlp(16, 32, 3, 2, router_sizes=sizes)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelRouting.ffn(6, 8, 4, shared=1, gated=True),
        lambda: ModuleRouting.mlp(6, 8, 4, 2),
        lambda: LayerRouting.mlp(6, 8, [2, 2], 2),
        lambda: LinearBank(3, 6, 4, nn.ReLU),
        lambda: TableRouter(3, Topology.dag(3)),
    ],
)
def test_parameters_can_be_drawn_anew(make: Callable[[], nn.Module]) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.reset_parameters()
    assert not any(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value.std(), before[name].std(), rtol=1.0, atol=0.3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
    ],
)
def test_parts_of_transformers_are_drawn_anew_as_torch_does(make: Callable[[], nn.Module]) -> None:
    net = ModelRouting([make(), make()], TopK(2), context_features=5)
    before = {name: value.detach().clone() for name, value in net.nodes.named_parameters()}
    with torch.no_grad():
        for parameter in net.nodes.parameters():
            parameter.add_(7.0)
    net.reset_parameters()
    for name, value in net.nodes.named_parameters():
        old = before[name]
        assert torch.equal(value, old) == (float(old.std()) == 0)  # constants are again what they were
        torch.testing.assert_close(value.abs().max(), old.abs().max(), rtol=0.5, atol=1e-6)


def test_parameters_that_nothing_draws_anew_are_named() -> None:
    class Scaled(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            self.scale = nn.Parameter(torch.ones(5))

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(5, 5), nn.Parameter(torch.ones(5))

    net = ModelRouting([nn.Linear(5, 5), nn.Sequential(Bare())], TopK(2), context_features=5)
    before = net.nodes[0].weight.clone()
    with pytest.raises(TypeError, match=r"^`nodes\.1\.0` must have a method `reset_parameters` that .*\(scale\), but"):
        net.reset_parameters()
    assert torch.equal(net.nodes[0].weight, before)
    ModelRouting([Scaled(5, 5), Scaled(5, 5)], TopK(2)).reset_parameters()

    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(5))])

    net = ModelRouting([Listing(), Listing()], TopK(2), context_features=5)
    with pytest.raises(
        TypeError, match=r"^`nodes\.0` must have a method .*\(scales\.0\), but its class Listing has none"
    ):
        net.reset_parameters()
    net.requires_grad_(False).reset_parameters()  # what is frozen stays


def test_what_is_used_twice_is_drawn_once() -> None:
    drawn: list[nn.Module] = []

    class Counted(nn.Linear):
        def reset_parameters(self) -> None:
            drawn.append(self)

    expert = Counted(5, 5)
    net = ModelRouting([expert, expert], TopK(2))
    drawn.clear()
    net.reset_parameters()
    assert drawn == [expert]


def test_a_mixture_in_a_transformer_block_learns() -> None:
    block = ModelRouting.ffn(8, 16, 4, shared=1, gated=True)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.02)
    x = torch.randn(64, 8)
    target = torch.where(x[:, :1] > 0, x.flip(-1), -2 * x)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(x + block(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert dynroute.losses.load_balance(block.route(x)) >= 1 - 1e-5
