"""Every level x gate x protect mode x replay x batch shape computes what the equations say, gradients included."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dynroute
from dynroute import (
    Gate,
    Hard,
    LayerRouting,
    MLPRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    RoutedGraph,
    SampleK,
    Soft,
    TopK,
    Topology,
)
from dynroute.execution import backends, sparse
from dynroute.functional import gumbel_noise, route_temperature, samplek_path

GATES: dict[str, Gate] = {"soft": Soft(), "hard": Hard(), "topk": TopK(2), "samplek": SampleK(2)}
EVERY_K: dict[str, Gate] = GATES | {f"topk-{k}": TopK(k) for k in (3, 5)} | {f"samplek-{k}": SampleK(k) for k in (3, 5)}
PROTECT = ["rsg", "input", "sg", "none"]
SHAPES = [(), (0,), (1,), (7,), (2, 3)]
DOUBLE = torch.float64


def make_module(gate: Gate, protect: str, shortcut: bool) -> RoutedGraph:
    return ModuleRouting.mlp(
        3, 4, 5, 2, 3, gate, router_sizes=(6,), activation=nn.Tanh, protect=protect, shortcut=shortcut, dtype=DOUBLE
    )


def make_layer(gate: Gate, protect: str, shortcut: bool) -> RoutedGraph:
    topology = Topology.layered([2, 3, 3])
    layers = [
        [nn.Linear(3 if depth == 0 else 4, 4, dtype=DOUBLE) for _ in range(n)] for depth, n in enumerate([2, 3, 3])
    ]
    head = nn.Linear(4, 2, dtype=DOUBLE)
    router = MLPRouter(3, topology, (6,), dtype=DOUBLE)
    return LayerRouting(layers, gate, router, head=head, shortcut=shortcut, protect=protect)


def make_model(gate: Gate, protect: str, shortcut: bool) -> RoutedGraph:
    return ModelRouting.mlp(3, 4, 3, 2, 3, gate, activation=nn.Tanh, router_sizes=(6,), protect=protect, dtype=DOUBLE)


def make_linear_model(gate: Gate, protect: str, shortcut: bool) -> RoutedGraph:
    return ModelRouting.mlp(3, 4, 4, 2, 3, gate, depth=0, router_sizes=(6,), protect=protect, dtype=DOUBLE)


MAKERS = {"module": make_module, "layer": make_layer, "model": make_model, "linear model": make_linear_model}
CASES = [
    ("module", True),
    ("module", False),
    ("layer", True),
    ("layer", False),
    ("model", False),
    ("linear model", False),
]


def rows_of(tensor: Tensor, parents: Sequence[Sequence[int]]) -> list[list[object]]:
    """The slots of one sample as nested lists, padding left out."""
    widths = [len(row) for row in parents if row]
    return [[tensor[t, s].item() for s in range(width)] for t, width in enumerate(widths)]


def naive(
    net: RoutedGraph, gate: str, x: Tensor, context: Tensor, path: Tensor | None, noise: Tensor, temperature: Tensor
) -> Tensor:
    """The oracle over a batch, one sample after the other."""
    parents = net.topology.parents
    outputs = []
    for index in (
        [()] if x.dim() == 1 else list(torch.cartesian_prod(*map(torch.arange, x.shape[:-1])).reshape(-1, x.dim() - 1))
    ):
        b = tuple(int(i) for i in index)
        z = oracle.split(oracle.linear_logits(net.router, context[b]), parents)
        if path is None:
            noises = rows_of(noise[b], parents)
            d = [oracle.choose(gate, row, g, float(temperature[b])) for row, g in zip(z, noises, strict=True)]
        else:
            d = rows_of(path[b], parents)
        p = [oracle.weigh(gate, row, chosen) for row, chosen in zip(z, d, strict=True)]
        outputs.append(
            oracle.run_sample(
                parents,
                list(net.nodes),
                x[b],
                p,
                [oracle.is_suitable(row) for row in z],
                shortcut=net.shortcut,
                protect=net.protect if net.training else "none",
            )
        )
    if not outputs:
        return net(x, context).detach()  # of no sample there is only the shape to tell
    return torch.stack(outputs).reshape(*x.shape[:-1], -1)


def gradients(net: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> list[Tensor]:
    tensors = [*net.parameters(), *inputs]
    weight = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(7))
    grads = torch.autograd.grad((output * weight).sum(), tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]


def assert_parity(
    net: RoutedGraph,
    gate: str,
    shape: tuple[int, ...],
    *,
    replay: bool,
    sample: bool | None = None,
    forms: Sequence[str] = ("",),
) -> None:
    """Compares outputs and gradients with the oracle's, computed in each form in turn."""
    x = torch.randn(*shape, 3, dtype=DOUBLE, requires_grad=True)
    context = (2 * torch.randn(*shape, 3, dtype=DOUBLE)).requires_grad_()
    noise = gumbel_noise((*shape, *net.topology.path_shape))
    temperature = torch.rand(shape, dtype=DOUBLE) + 0.2
    path = None
    if replay:
        path = samplek_path(
            torch.zeros(*shape, *net.topology.path_shape),
            2,
            allowed=net.topology.allowed,
            noise=torch.randn_like(noise),
        )

    expected = naive(net, gate, x, context, path, noise, temperature)
    learns = torch.is_grad_enabled()
    theirs = gradients(net, (x, context), expected) if learns and expected.numel() else []
    for form in forms:
        with computed_by(form):
            actual, route = net(
                x, context, path=path, noise=noise, temperature=temperature, sample=sample, return_route=True
            )
            mine = gradients(net, (x, context), actual) if learns else []
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=lambda text, f=form: f"{f}: {text}")
        if path is not None:
            assert torch.equal(route.path, path), form
        if not theirs:
            assert not any(gradient.any() for gradient in mine), form
            continue
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text, f=form: f"{f}: {text}")


@contextmanager
def computed_by(form: str) -> Iterator[None]:
    """A backend, "skip sorted", "dense", which is "fused" where no value may be read, or "" for what is set already."""
    backend = {"dense": "fused", "skip sorted": "skip"}.get(form, form)
    with pytest.MonkeyPatch.context() as patch, dynroute.backend(backend) if form else nullcontext():
        if form == "dense":  # as under compilation and on other devices
            patch.setattr(backends, "_hidden_values", lambda x: "its values are hidden")
        if backend == "skip":
            patch.setattr(sparse, "NUMBERS_FROM", 0)
        if form == "skip sorted":
            patch.setattr(sparse, "ROWS_FROM", 2)
        yield


def forms_of(level: str) -> list[str]:
    """The networks of the model level are no linear modules, which alone are fused."""
    return ["reference"] if level == "model" else ["reference", "fused", "dense"]


@pytest.mark.parametrize("replay", [False, True], ids=["live", "replayed"])
@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("level", "shortcut"), CASES)
def test_training_matches_the_equations(level: str, shortcut: bool, gate: str, protect: str, replay: bool) -> None:
    net = MAKERS[level](GATES[gate], protect, shortcut)
    assert_parity(net, gate, (2, 3), replay=replay, forms=forms_of(level))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("level", "shortcut"), CASES)
def test_batches_of_any_shape(level: str, shortcut: bool, shape: tuple[int, ...]) -> None:
    gate = dict(zip(MAKERS, GATES, strict=True))[level]
    for replay in (False, True):
        net = MAKERS[level](GATES[gate], "rsg", shortcut)
        assert_parity(net, gate, shape, replay=replay, forms=forms_of(level))


@pytest.mark.parametrize("replay", [False, True], ids=["live", "replayed"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("level", "shortcut"), CASES)
@torch.no_grad()
def test_the_skip_backend_matches_the_equations(level: str, shortcut: bool, gate: str, replay: bool) -> None:
    for shape in [(7,)] if gate in ("soft", "topk") else SHAPES:
        net = MAKERS[level](GATES[gate], "none", shortcut)
        assert_parity(net, gate, shape, replay=replay, forms=["skip", "skip sorted"])


@pytest.mark.parametrize("gate", ["soft", "hard", "topk"])
@pytest.mark.parametrize(("level", "shortcut"), CASES)
def test_evaluation_protects_nothing(level: str, shortcut: bool, gate: str) -> None:
    assert_parity(MAKERS[level](GATES[gate], "rsg", shortcut).eval(), gate, (5,), replay=False)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("one_hot", [False, True])
def test_output_level_runs_the_head_of_the_task(one_hot: bool, shape: tuple[int, ...]) -> None:
    net = OutputRouting.mlp(3, 4, 3, 2, dtype=DOUBLE)
    x = torch.randn(*shape, 3, dtype=DOUBLE, requires_grad=True)
    task = torch.randint(3, shape)
    given_task = nn.functional.one_hot(task, 3).to(DOUBLE) if one_hot else task

    actual = net(x, given_task)
    rows = zip(x.reshape(-1, 3), task.reshape(-1).tolist(), strict=True)
    expected = torch.stack([net.nodes[i](row) for row, i in rows]).reshape(*shape, 2)

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(gradients(net, (x,), actual), gradients(net, (x,), expected), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """Parents of a random graph: several roots, gaps, sources in any order."""
    count = draw(st.integers(2, 7))
    parents: list[list[int]] = [[]]
    for i in range(1, count):
        least = 1 if i == count - 1 else 0
        parents.append(draw(st.lists(st.integers(0, i - 1), min_size=least, max_size=i, unique=True)))
    return parents


def random_net(
    parents: list[list[int]], gate: str, protect: str, shortcut: bool, biased: list[bool], kinds: list[type[nn.Module]]
) -> RoutedGraph:
    topology = Topology(parents)
    linear = [
        nn.Linear(4 if row else 3, 4, bias=biased[i % len(biased)], dtype=DOUBLE) for i, row in enumerate(parents)
    ]
    before, behind = kinds
    modules = [nn.Sequential(before(), layer, behind()) for layer in linear[:-1]]
    router = MLPRouter(3, topology, (), dtype=DOUBLE)
    return RoutedGraph([*modules, linear[-1]], topology, EVERY_K[gate], router, shortcut=shortcut, protect=protect)


@settings(max_examples=150)
@given(
    parents=graphs(),
    gate=st.sampled_from(sorted(EVERY_K)),
    protect=st.sampled_from(PROTECT),
    shortcut=st.booleans(),
    batch=st.sampled_from(SHAPES),
    replay=st.booleans(),
    rows_from=st.sampled_from([2, sparse.ROWS_FROM]),
    backend=st.sampled_from(["reference", "fused", "skip", "sparse"]),
    behind=st.sampled_from([nn.Identity, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh]),
    before=st.sampled_from([nn.Identity, nn.ReLU, nn.SiLU]),
)
def test_any_graph_matches_the_equations(
    parents: list[list[int]],
    gate: str,
    protect: str,
    shortcut: bool,
    batch: tuple[int, ...],
    replay: bool,
    rows_from: int,
    backend: str,
    behind: type[nn.Module],
    before: type[nn.Module],
) -> None:
    net = random_net(parents, gate, protect, shortcut, [True, False], [before, behind])
    with (
        pytest.MonkeyPatch.context() as patch,
        dynroute.backend(backend),
        torch.set_grad_enabled(backend != "skip"),
    ):
        patch.setattr(sparse, "ROWS_FROM", rows_from)
        patch.setattr(sparse, "NUMBERS_FROM", 0)
        if backend == "skip":
            net.eval()
        assert_parity(net, gate, batch, replay=replay, sample=True)


@st.composite
def graphs_of_layers(draw: st.DrawFn) -> list[list[int]]:
    """Parents of a random graph whose nodes read neighbouring ones, several of them the same; none is left unread."""
    parents: list[list[int]] = []
    for _ in range(draw(st.integers(1, 3))):
        count = len(parents)
        first = draw(st.integers(0, count)) if count else 0
        stop = draw(st.integers(first, count)) if count else 0
        parents += [list(range(first, stop))] * draw(st.integers(1, 3))
    return [*parents, list(range(len(parents)))]


@settings(max_examples=80)
@given(
    parents=graphs_of_layers(),
    gate=st.sampled_from(sorted(EVERY_K)),
    protect=st.sampled_from(PROTECT),
    shortcut=st.booleans(),
    batch=st.sampled_from(SHAPES),
    bias=st.booleans(),
    behind=st.sampled_from([nn.Identity, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh]),
    before=st.sampled_from([nn.Identity, nn.ReLU, nn.SiLU]),
)
def test_any_graph_of_layers_matches_the_equations_in_dense_form(
    parents: list[list[int]],
    gate: str,
    protect: str,
    shortcut: bool,
    batch: tuple[int, ...],
    bias: bool,
    behind: type[nn.Module],
    before: type[nn.Module],
) -> None:
    net = random_net(parents, gate, protect, shortcut, [bias], [before, behind])
    assert_parity(net, gate, batch, replay=False, sample=True, forms=["dense"])


# Parents of graphs in which a layer is read by several others, so that its gradient is a sum.
SEVERAL_READERS = [
    [[], [], [0, 1], [0, 1], [2, 3], [0, 1], [0, 1], [4, 5, 6]],
    [[], [], [0, 1], [0, 1], [0, 1, 2, 3]],
    [[], [0], [0, 1], [0, 1, 2]],
]


@pytest.mark.parametrize("before", [nn.Identity, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("protect", PROTECT)
@pytest.mark.parametrize("parents", [Topology.layered([2, 3, 2]).parents, *SEVERAL_READERS], ids=str)
def test_the_dense_form_of_inner_layers(
    parents: Sequence[Sequence[int]],
    protect: str,
    shortcut: bool,
    before: type[nn.Module],
) -> None:
    net = random_net([list(row) for row in parents], "soft", protect, shortcut, [True], [before, nn.Tanh])
    assert_parity(net, "soft", (7,), replay=False, forms=["fused", "dense"])


def test_temperature_of_the_paper_is_the_one_of_the_oracle() -> None:
    alpha = [0.02, 0.5, 1.7]
    expected = oracle.routing_temperature(alpha)
    assert route_temperature(torch.tensor(alpha, dtype=DOUBLE)).tolist() == pytest.approx(expected, rel=1e-12)
    assert math.isclose(sum(expected), 1.0)
