"""Mixtures where values must not be read: the device form against the reference, and that it reads nothing."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dynroute
from dynroute import Gate, Hard, LinearBank, LinearRouter, ModelRouting, SampleK, Soft, TopK, Topology
from dynroute.execution import backends
from dynroute.execution.fused import grouped, groups, perceptrons
from dynroute.execution.plan import Pass

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::item", "aten::bincount"}


def mixture(
    gate: Gate, protect: str = "none", *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> ModelRouting:
    experts = [
        nn.Sequential(nn.Linear(8, 16, bias=bias), nn.GELU(), nn.Linear(16, 8, bias=bias), nn.ReLU()) for _ in range(6)
    ]
    return ModelRouting(experts, gate, LinearRouter(8, Topology.parallel(6)), protect=protect).to(dtype)


def results(net: ModelRouting, x: Tensor, *, order: int = 1) -> list[Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    output = net(x, x.detach())
    tensors = [x, *net.parameters()]
    grads = torch.autograd.grad(output.double().square().sum(), tensors, create_graph=order == 2)
    if order == 2:
        penalty = torch.stack([grad.square().sum() for grad in grads]).sum()
        grads += torch.autograd.grad(penalty, tensors, materialize_grads=True, allow_unused=True)
    return [output, *grads]


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes the CPU for a device on which values must not be read; lists what ran."""
    ran: list[str] = []
    run = backends.run_grouped

    def spy(call: Pass, **others: object) -> Tensor:
        ran.append("grouped")
        return run(call, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(backends, "run_grouped", spy)
    monkeypatch.setattr(backends, "_hidden_values", lambda x: "the test says so")
    return ran


def assert_like_the_reference(net: ModelRouting, x: torch.Tensor, unseen: list[str]) -> None:
    found = results(net, x)
    assert unseen == ["grouped"]
    with dynroute.backend("reference"):
        for actual, expected in zip(found, results(net, x), strict=True):
            torch.testing.assert_close(
                actual, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max() + 1)
            )


@pytest.mark.parametrize("protect", ["none", "sg"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(1,), (9,), (2, 3), (300,)])
@pytest.mark.parametrize("gate", [TopK(2), TopK(3), SampleK(2), Hard()], ids=lambda gate: f"{type(gate).__name__}")
def test_it_computes_what_the_reference_does(
    unseen: list[str], gate: Gate, batch: tuple[int, ...], bias: bool, protect: str
) -> None:
    net, x = mixture(gate, protect, bias=bias), torch.randn(*batch, 8, dtype=torch.float32)
    assert_like_the_reference(net, x, unseen)


def test_every_expert_of_a_bank_learns(unseen: list[str]) -> None:
    net, x = ModelRouting(LinearBank(6, 8, 16, nn.ReLU), TopK(2)).float(), torch.randn(90, 8, dtype=torch.float32)
    assert_like_the_reference(net, x, unseen)
    net(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.nodes.parameters())


def test_second_derivatives(unseen: list[str]) -> None:
    net, x = mixture(TopK(2)), torch.randn(9, 8, dtype=torch.float32)
    found = results(net, x, order=2)
    with dynroute.backend("reference"):
        for actual, expected in zip(found, results(net, x, order=2), strict=True):
            torch.testing.assert_close(
                actual, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max() + 1)
            )


@pytest.mark.parametrize("autocast", [True, False])
def test_16_bits(unseen: list[str], autocast: bool) -> None:
    net = mixture(TopK(2), dtype=torch.float32 if autocast else torch.bfloat16)
    x = torch.randn(50, 8, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = results(net, x)
        assert unseen == ["grouped"]
        with dynroute.backend("reference"):
            for actual, expected in zip(found, results(net, x), strict=True):
                torch.testing.assert_close(
                    actual, expected, rtol=0.06, atol=0.06 * float(expected.detach().abs().max())
                )


def test_it_reads_no_value_and_its_shapes_do_not_depend_on_the_path(unseen: list[str]) -> None:
    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[str, list[torch.Size]]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            outputs = result if isinstance(result, (tuple, list)) else [result]
            self.calls.append((func._schema.name, [o.shape for o in outputs if isinstance(o, Tensor)]))
            return result

    net = mixture(TopK(2))
    call = net._plan, list(net.nodes)
    seen = []
    for bias in (0.0, 50.0):  # one path is spread out, the other takes the same two experts for everyone
        x = torch.randn(20, 8, dtype=torch.float32)
        weights = net.gate(net.router(x) + bias * torch.arange(6), allowed=net.topology.allowed).weights.detach()
        this = Pass(*call, x, weights, None, "none", 2)
        form = backends._choose("auto", this)
        with Watch() as watch:
            form(this)
        assert not {name for name, _ in watch.calls} & READS
        seen.append(watch.calls)
    assert seen[0] == seen[1]
    assert unseen == ["grouped", "grouped"]


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (mixture(Soft()), "nothing says how many"),
        (mixture(TopK(4)), "more than half"),
        (mixture(TopK(2)).double(), "float64"),
        (
            ModelRouting(
                [nn.Linear(8, 8), nn.Linear(8, 8, bias=False)] * 3, TopK(2), LinearRouter(8, Topology.parallel(6))
            ),
            "differ",
        ),
        (ModelRouting([nn.Linear(8, 3)] * 6, TopK(2), LinearRouter(8, Topology.parallel(6))), "16 bytes"),
    ],
)
def test_what_it_cannot_run_takes_another_form(unseen: list[str], net: ModelRouting, why: str) -> None:
    x = torch.randn(9, 8, dtype=next(net.parameters()).dtype)
    found = net(x)
    assert not unseen
    weights = net.route(x).weights
    call = Pass(net._plan, list(net.nodes), x, weights, None, "none", net.gate.max_sources)
    assert why in str(backends.groups(call, backends.perceptrons(call)))
    with dynroute.backend("reference"):
        torch.testing.assert_close(found, net(x))


def test_a_replayed_path_takes_another_form(unseen: list[str]) -> None:
    net, x = mixture(TopK(2)), torch.randn(9, 8, dtype=torch.float32)
    net(x, path=net.route(x))
    assert not unseen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixtures_run_on_the_meta_device(dtype: torch.dtype) -> None:
    net = ModelRouting.ffn(8, 16, 8, device="meta", dtype=dtype)
    assert net(torch.randn(3, 8, device="meta", dtype=dtype)).shape == (3, 8)


def test_an_older_gpu_runs_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, net = torch.device("cuda:0"), mixture(TopK(2))
    call = Pass(net._plan, list(net.nodes), torch.zeros(4, 8), torch.zeros(4, 1, 6), None, "none", max_sources=2)
    experts = perceptrons(call)
    assert not isinstance(experts, str)
    assert groups(call, experts) is None
    older = "torch computes grouped products by a loop on cuda:0, of compute capability {}.{}"
    for found, reason in (
        ((8, 9), older.format(8, 9)),
        ((9, 0), None),
        ((10, 3), None),
        ((12, 0), older.format(12, 0)),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=found: found)
        assert grouped._loops_on(gpu) == reason
    monkeypatch.setattr(grouped, "_loops_on", lambda device: "it is too old")
    assert groups(call, experts) == "it is too old"
