"""Bad arguments end in a sentence that names the argument: a fuzz over the public callables, and each message."""

import inspect
import random
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynroute
from dynroute import functional, gates, levels, losses, networks, plasticity, routers
from dynroute.banks import LinearBank
from dynroute.compositional import CompositionalLinear
from dynroute.gates import BalancedTopK, ExpertChoice, Hard, SampleK, Soft, TopK, TopP
from dynroute.levels import GatedPerceptron, LayerRouting, ModelRouting, ModuleRouting, OutputRouting, RoutedGraph
from dynroute.networks import (
    CARE,
    DynamicDepthRouting,
    HardRouting,
    MixtureOfExperts,
    MultiHead,
    MultiTaskMLP,
    PaCo,
    ResidualBlock,
    ResidualMLP,
    ScaleMoE,
    SoftModularization,
    TaskEncoder,
    build,
    gate_named,
)
from dynroute.route import Route
from dynroute.routers import CascadeRouter, LinearRouter, MLPRouter, TableRouter, TaskRouter
from dynroute.topology import Topology

CORE = Path(dynroute.__file__).parent
CALLS = 8_000

# Torch says well enough what is wrong with a device, and flags of a call are read for their truth.
LEFT_OUT = {"device", "return_route"}


class Target(NamedTuple):
    """A public callable and arguments that it takes."""

    name: str
    function: Callable[..., object]
    good: dict[str, Any]
    left_out: frozenset[str] = frozenset()

    def parameters(self) -> list[str]:
        """The names of the arguments that may be replaced."""
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found = [name for name, one in inspect.signature(self.function).parameters.items() if one.kind in kinds]
        return [name for name in found if name not in LEFT_OUT | self.left_out]


def linear(count: int, width: int = 5, out: int = 5) -> list[nn.Module]:
    return [nn.Linear(width, out) for _ in range(count)]


def targets() -> Iterator[Target]:
    z, batched = torch.randn(2, 3, 3), torch.randn(4, 2, 2)
    dag, layered = Topology.dag(4), Topology.layered([2, 2])
    path, route = z > 0, Soft()(z)
    dag_path = Soft()(torch.zeros(2, 3, 3), allowed=dag.allowed).path

    yield Target("mask_softmax", functional.mask_softmax, {"logits": z, "path": path})
    yield Target("topp_path", functional.topp_path, {"logits": z, "p": 0.5})
    yield Target("expert_choice_path", functional.expert_choice_path, {"logits": z, "capacity": 1.0})
    yield Target("limit_path", functional.limit_path, {"path": path, "weights": z.abs(), "capacity": 1.0})
    yield Target("topk_path", functional.topk_path, {"logits": z, "k": 2})
    yield Target("samplek_path", functional.samplek_path, {"logits": z, "k": 2})
    yield Target("samplek_path", functional.samplek_path, {"logits": z, "k": 2, "noise": torch.zeros(2, 3, 3)})
    yield Target("gumbel_noise", functional.gumbel_noise, {"shape": (2, 3)})
    yield Target("suitable", functional.suitable, {"logits": z})
    yield Target("rsg", functional.rsg, {"output": z, "shortcut": z})
    yield Target("route_temperature", functional.route_temperature, {"alpha": torch.rand(3) + 0.1})
    yield Target("task_weights", functional.task_weights, {"alpha": torch.rand(3)})

    mixtures = (TopP(0.5), BalancedTopK(2), ExpertChoice(1.0), TopK(2, capacity=1.0))
    for gate in (Soft(), Hard(), TopK(2), SampleK(2), SampleK(2).eval(), *mixtures):
        yield Target(type(gate).__name__, gate.forward, {"logits": z})
        yield Target(type(gate).__name__, gate.forward, {"logits": z, "path": Soft()(z)})
    yield Target("TopK", TopK, {"k": 2})
    yield Target("SampleK", SampleK, {"k": 2, "capacity": 1.0})
    yield Target("Hard", Hard, {"capacity": 1.0})
    yield Target("TopP", TopP, {"p": 0.5, "capacity": 1.0})
    yield Target("BalancedTopK", BalancedTopK, {"k": 2, "rate": 0.01, "capacity": 1.0})
    yield Target("ExpertChoice", ExpertChoice, {"capacity": 1.0})
    noisy = LinearRouter(5, dag, jitter=0.1, noise=1.0, dropout=0.1)
    context = torch.randn(2, 5)
    drawn = noisy.draw_noise(context)
    yield Target("RouterNoise", noisy.draw_noise, {"context": context})
    yield Target(
        "RouterNoise",
        noisy.perturb,
        {"context": context, "logits": noisy(context), "drawn": drawn},
        frozenset({"context", "logits"}),
    )

    yield Target("MLPRouter", MLPRouter, {"context_features": 5, "topology": dag, "hidden_sizes": (4,)})
    yield Target("LinearRouter", LinearRouter, {"context_features": 5, "topology": dag})
    yield Target("CascadeRouter", CascadeRouter, {"context_features": 5, "topology": layered, "hidden_sizes": (4,)})
    yield Target("TableRouter", TableRouter, {"num_tasks": 3, "topology": dag})
    yield Target("TaskRouter", TaskRouter, {"num_tasks": 3})
    for router in (MLPRouter(5, dag, (4,)), LinearRouter(5, dag), CascadeRouter(5, layered, (4,))):
        yield Target(type(router).__name__, router.forward, {"context": torch.randn(2, 5)})
    for router in (TableRouter(3, dag), TaskRouter(3)):
        yield Target(type(router).__name__, router.forward, {"context": torch.tensor([0, 2])})
        yield Target(type(router).__name__, router.forward, {"context": torch.eye(3)})

    yield Target("Topology", Topology, {"parents": [[], [0], [0, 1]]})
    yield Target("Topology", Topology.dag, {"n": 3})
    yield Target("Topology", Topology.layered, {"sizes": [2, 3]})
    yield Target("Topology", Topology.parallel, {"n": 3})
    for method in (dag.used, dag.depth, dag.pack, dag.check_path):
        yield Target("Topology", method, {"path": dag_path})
    yield Target("Topology", dag.lift, {"path": dag_path, "to": Topology.dag(6)})
    yield Target("Topology", dag.lift_packed, {"bits": dag.pack(dag_path), "to": Topology.dag(6)})
    yield Target("Topology", dag.unpack, {"bits": dag.pack(dag_path)})
    yield Target("Topology", dag.edges, {"path": dag_path[0], "weights": torch.rand(3, 3)})
    yield Target("Topology", dag.to_edges, {"values": torch.rand(2, 3, 3)})
    yield Target("Topology", dag.from_edges, {"values": torch.rand(2, 6), "fill": 0.0})

    yield Target("Route", lambda index: route.sample(index), {"index": 1})
    three = Topology.dag(3)
    priced = {"route": Soft()(batched, allowed=three.allowed), "topology": three}
    yield Target("compute_cost", losses.compute_cost, {**priced, "costs": [1.0] * 3})
    yield Target("limit_modules", dynroute.limit_modules, {**priced, "limit": 2})
    yield Target("Budget", dynroute.Budget, {"target": 2.0, "num_tasks": 3, "initial": 0.1})
    budget, cost = dynroute.Budget(2.0, 3), torch.rand(4)
    for method in (budget.forward, budget.multiplier_loss):
        yield Target("Budget", method, {"cost": cost, "task": torch.tensor([0, 2, 1, 1])})
    for name in sorted({*losses.__all__} - {"compute_cost"}):
        yield Target(name, getattr(losses, name), {"route": Soft()(batched)})

    sizes = {"num_modules": 2, "in_features": 3, "out_features": 4}
    yield Target("LinearBank", LinearBank, {**sizes, "activation": nn.ReLU})
    sizes = {"num_sets": 2, "in_features": 3, "out_features": 4}
    yield Target("CompositionalLinear", CompositionalLinear, sizes)
    layer = CompositionalLinear(2, 3, 4)
    yield Target("CompositionalLinear", layer.forward, {"x": torch.randn(5, 3), "composition": torch.randn(5, 2)})

    routing = {"gate": Soft(), "router": LinearRouter(5, dag)}
    yield Target(
        "RoutedGraph",
        RoutedGraph,
        {"modules": linear(4), "topology": dag, **routing},
    )
    yield Target("ModuleRouting", ModuleRouting, {"modules": linear(4), **routing})
    parallel = LinearRouter(5, Topology.parallel(2))
    yield Target("ModelRouting", ModelRouting, {"models": linear(2), "gate": TopK(2), "router": parallel})
    router = LinearRouter(5, layered)
    yield Target("LayerRouting", LayerRouting, {"layers": [linear(2), linear(2)], "gate": Soft(), "router": router})
    yield Target("OutputRouting", OutputRouting, {"heads": linear(3)})
    yield Target("ModelRouting", ModelRouting, {"models": linear(2), "gate": TopK(2), "shared": linear(1)})
    ffn = {"features": 5, "hidden": 4, "num_experts": 3, "shared": 1}
    yield Target("ModelRouting", ModelRouting.ffn, ffn)
    yield Target("GatedPerceptron", GatedPerceptron, {"in_features": 5, "hidden_features": 4})
    yield Target("GatedPerceptron", GatedPerceptron(5, 4).forward, {"x": torch.randn(2, 5)}, frozenset({"x"}))
    widths = {"in_features": 5, "width": 4, "out_features": 2}
    yield Target("ModuleRouting", ModuleRouting.mlp, {**widths, "num_modules": 2, "router_sizes": (4,)})
    yield Target("ModelRouting", ModelRouting.mlp, {**widths, "num_models": 2, "router_sizes": (4,)})
    yield Target("LayerRouting", LayerRouting.mlp, {**widths, "layer_sizes": [2, 2], "router_sizes": (4,)})
    yield Target("OutputRouting", OutputRouting.mlp, {**widths, "num_tasks": 2})

    def small() -> ModuleRouting:
        return ModuleRouting.mlp(5, 4, 3, 2, router_sizes=(4,))

    wanted = {"net": small(), "context": torch.randn(4, 5), "coverage": 0.9, "x": torch.randn(4, 5)}
    yield Target("extract", dynroute.extract, wanted)
    d2r = DynamicDepthRouting(5, 3, 2, num_modules=3, width=4, trunk_sizes=(4,), router_sizes=(4,))
    yield Target("extract", dynroute.extract, {"net": d2r, "context": torch.randn(4, 5), "task": 1})
    yield Target("freeze_modules", dynroute.freeze_modules, {"net": small(), "heads": True})
    yield Target("grow", dynroute.grow, {"net": small(), "modules": 1}, frozenset({"net"}))
    yield Target("grow", lambda net: dynroute.grow(net, 1), {"net": small()})
    yield Target(
        "prune",
        lambda usage, at_most: dynroute.prune(small(), usage, at_most=at_most),
        {"usage": torch.ones(2, 4), "at_most": 0.1},
    )
    yield Target("open_nodes", dynroute.open_nodes, {"net": small(), "nodes": [1, 2], "by": 1.0})

    common: dict[str, Any] = {"state_features": 5, "num_tasks": 3, "out_features": 2}
    small = dict[type[networks.Network], dict[str, Any]]
    made: small = {
        MultiTaskMLP: {"hidden_sizes": (4,)},
        MultiHead: {"hidden_sizes": (4,)},
        MixtureOfExperts: {"num_experts": 2, "width": 4, "depth": 1, "router_sizes": (4,)},
        HardRouting: {"trunk_sizes": (4,), "layer_sizes": (2, 2), "width": 4},
        SoftModularization: {"trunk_sizes": (4,), "layer_sizes": (2, 2), "width": 4, "router_sizes": (4,)},
        CARE: {
            "num_encoders": 2,
            "encoder_sizes": (4,),
            "context_sizes": (4,),
            "gate_sizes": (4,),
            "hidden_sizes": (4,),
            "metadata": torch.randn(3, 6),
        },
        PaCo: {"num_sets": 2, "hidden_sizes": (4,)},
        DynamicDepthRouting: {"num_modules": 3, "width": 4, "trunk_sizes": (4,), "router_sizes": (4,)},
        ResidualMLP: {"width": 4, "blocks": 1, "embedding_features": 3},
        ScaleMoE: {"num_experts": 2, "width": 4, "blocks": 1, "embedding_features": 3, "router_sizes": (4,)},
    }
    for network, own in made.items():
        yield Target(network.__name__, network, {**common, **own})
        net = network(**common, **own)
        yield Target(network.__name__, net.forward, {"state": torch.randn(4, 5), "task": torch.tensor([0, 1, 2, 0])})
        yield Target(network.__name__, net.forward, {"state": torch.randn(3, 5), "task": torch.eye(3)})
        yield Target("build", build, {"name": network, **common, **own})
    paco = PaCo(5, 3, 2, num_sets=2, hidden_sizes=(4,))
    yield Target("PaCo", paco.reinitialize, {"extreme": torch.tensor([True, False, False])})
    yield Target("build", build, {"name": "mt-sac", **common})
    yield Target("ResidualBlock", ResidualBlock, {"width": 4})
    encoding = {"state_features": 5, "num_tasks": 3, "width": 4, "embedding_features": 3}
    yield Target("TaskEncoder", TaskEncoder, encoding)
    yield Target("dormant_units", plasticity.dormant_units, {"activations": torch.randn(4, 3), "tau": 0.1})
    yield Target("effective_rank", plasticity.effective_rank, {"features": torch.randn(4, 3), "share": 0.9})
    yield Target("gate_named", gate_named, {"gate": "top-2"})


def anything() -> list[Any]:
    """Values that most arguments must refuse."""
    return [
        None, True, 0, -1, 1.5, -0.5, float("nan"), float("inf"), 1j, "x", "", "top-0", b"x",
        [], [1], [0], [-1], [1.5], ["a"], [None], [[1], [2]], (), (1.5,), (0,), {}, {"a": 1}, {1}, range(0),
        object(), int, nn.ReLU, nn.Linear, nn.ReLU(), nn.Linear(2, 2), [nn.ReLU], [nn.ReLU()], len,
        np.array(2), np.array([1.0]), np.zeros((2, 3, 3)), np.float64(0.0), np.int64(0), np.array(["a"]),
        torch.tensor(1), torch.tensor(0.5), torch.zeros(0), torch.zeros(3), torch.zeros(2, 3), torch.zeros(3, 4),
        torch.zeros(2, 3, 3, dtype=torch.long), torch.zeros(2, 3, 3, dtype=torch.bool), torch.full((2, 3), torch.nan),
        torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.complex64), torch.full((4,), -1),
        torch.float32, torch.int64, torch.complex64, "float32", Topology.dag(3), Soft(), torch.Generator(),
        LinearRouter(5, Topology.dag(3)), Route(torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(1)),
        Route("a", None, 3),  # type: ignore[arg-type]  # such is the input here
    ]  # fmt: skip


def near(value: Any) -> list[Any]:
    """Values that resemble a good one."""
    match value:
        case bool() | str():
            return [not value, f"{value} ", [value]]
        case int():
            return [0, -value, float(value), str(value), [value], torch.tensor(value), np.array([value]), None]
        case Tensor():
            changed = [value.double(), value.half(), value.long(), value.bool(), value.to(torch.complex64)]
            shapes = [value[..., :-1], value[:1], value[:0], value[None], value.flatten(), value.reshape(-1)[0]]
            return [*changed, *shapes, value * torch.nan, value * 1.0 - 7.0, value.tolist(), value.numpy(), None]
        case Route():
            return [value.path, tuple(value), value.sample(0), value._replace(path=None), value.path.float(), None]
        case list() | tuple():
            wrong = [[*value[:-1], each] for each in (None, 0, -1, "a", 1.5)]
            return [*wrong, value[:-1], value[:1], [*value, value[0]], str(value), value[0], iter(value), set, None]
    return []


def is_a_sentence(error: Exception) -> bool:
    """Whether an error is ours: raised by the library, with a message that begins with the argument."""
    raised_by = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, (TypeError, ValueError)) and str(error).startswith("`") and raised_by.is_relative_to(CORE)


def attempt(target: Target, arguments: dict[str, Any]) -> str | None:
    """The error that a call ends in, if it is not a sentence of ours; an empty text if it is one; None without."""
    try:
        target.function(**arguments)
    except Exception as error:
        return "" if is_a_sentence(error) else f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def test_the_good_arguments_are_good() -> None:
    assert {target.name: error for target in targets() if (error := attempt(target, target.good)) is not None} == {}


def test_every_public_callable_is_called() -> None:
    called = {target.name for target in targets()}
    modules = (functional, gates, levels, losses, networks, routers)
    public = {name for module in modules for name in module.__all__ if callable(getattr(module, name))}
    bases_and_records = {"EdgeParameter", "Gate", "Router", "Network", "Preset", "available"}
    assert public - called == bases_and_records
    assert {"Topology", "Route", "LinearBank", "CompositionalLinear"} <= called


def test_bad_arguments_end_in_a_sentence() -> None:
    draw = random.Random(0)
    every = [(target, target.parameters()) for target in targets()]
    found: Counter[str] = Counter()
    raw: Counter[str] = Counter()
    values = anything()
    for _ in range(CALLS):
        target, parameters = draw.choice(every)
        arguments = dict(target.good)
        bad = draw.sample(parameters, k=min(len(parameters), draw.choice((1, 1, 1, 2))))
        for name in bad:
            similar = near(arguments.get(name)) if draw.random() < 0.4 else []
            arguments[name] = draw.choice(similar or values)
        told = attempt(target, arguments)
        found["accepted" if told is None else "raw" if told else "sentence"] += 1
        if told:
            got = {name: arguments[name] for name in bad}
            raw[f"{target.name} {getattr(target.function, '__name__', '')} {got!r:.150}: {told:.150}"] += 1
    failed = found["raw"] + found["sentence"]
    assert failed > CALLS / 2
    assert found["raw"] < 0.01 * failed, f"{dict(found)}\n" + "\n".join(raw)


Z = torch.zeros(2, 3, 3)
ROUTE = Soft()(Z)
DAG = Topology.dag(3)
PATH = torch.tensor([[True, False], [True, True]])


def routed() -> ModelRouting:
    return ModelRouting(linear(3), TopK(2))


def used_twice(gate: BalancedTopK) -> None:
    for _ in range(2):
        ModelRouting(linear(2), gate)


def other_logits(gate: BalancedTopK) -> None:
    gate(Z)
    gate(Z[..., :2])


def noisy_pass(*, sample: bool | None = None, replay: bool = False, **options: Any) -> None:
    drawn = LinearRouter(5, DAG, jitter=0.1).draw_noise(torch.zeros(3, 5))
    router = LinearRouter(5, DAG, **{name: value or 0.0 for name, value in options.items()})
    net, x = ModuleRouting(linear(3), Soft(), router), torch.zeros(2, 5)
    net(x, path=net.route(x) if replay else None, router_noise=drawn, sample=sample)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.suitable([1]), "`logits` must be a tensor, got list; torch.as_tensor makes one."),
        (lambda: functional.mask_softmax(Z, None), "`path` must be a tensor, got NoneType"),
        (lambda: functional.suitable(Z, allowed=[True]), "`allowed` must be a tensor, got list"),
        (lambda: TopK(torch.tensor(2)), "`k` must be an integer, got a tensor of torch.int64 with shape ()."),
        (lambda: TopK(np.array([2])), "`k` must be an integer, got array([2])."),
        (lambda: TopK(int), "`k` must be an integer, got <class 'int'>."),
        (lambda: TopK(list(range(99))), "`k` must be an integer, got an object of class list."),
        (lambda: TopK(0), "`k` must be at least 2, got 0."),
        (lambda: TopP(0.0), "`p` must be above 0.0, got 0.0."),
        (lambda: TopP(1.5), "`p` must be at most 1.0, got 1.5."),
        (lambda: TopP("0.5"), "`p` must be a number, got '0.5'."),
        (lambda: ExpertChoice(0), "`capacity` must be above 0.0, got 0."),
        (lambda: ExpertChoice(torch.inf), "`capacity` must be finite, got inf."),
        (lambda: TopK(2, capacity=-1.0), "`capacity` must be above 0.0, got -1.0."),
        (lambda: BalancedTopK(1), "`k` must be at least 2 for BalancedTopK, got 1: a single weight"),
        (lambda: BalancedTopK(2, rate=-1.0), "`rate` must be at least 0.0, got -1.0."),
        (lambda: used_twice(BalancedTopK(2)), "`gate` must belong to one graph, but this BalancedTopK has a bias for"),
        (lambda: other_logits(BalancedTopK(2)), "`logits` must have shape (*, 3, 3) like the bias of this gate, got"),
        (lambda: Soft()(Z, scores=Z.long()), "`scores` must be a floating tensor, got torch.int64"),
        (lambda: Soft()(Z, scores=Z[0]), "`scores` must have the shape of the logits (2, 3, 3), got (3, 3)."),
        (lambda: Soft()(Z, scores=Z + torch.nan), "`scores` must be finite or -inf, got nan at index (0, 0, 0)."),
        (lambda: LinearRouter(5, DAG, noise=-1.0), "`noise` must be at least 0.0, got -1.0."),
        (lambda: LinearRouter(5, DAG, dropout=1.5), "`dropout` must be at most 1.0, got 1.5."),
        (lambda: MLPRouter(5, DAG, jitter="x"), "`jitter` must be a number, got 'x'."),
        (
            lambda: LinearRouter(5, DAG, jitter=0.1).draw_noise(torch.zeros(2, 5).bool()),
            "`context` must be a floating tensor for a router with jitter, got torch.bool.",
        ),
        (lambda: noisy_pass(noise=None), "`router_noise` must be None for a router that adds none, such as this Lin"),
        (lambda: noisy_pass(noise=1.0), "`router_noise` must be drawn for this router, with jitter=0.0; `router.draw"),
        (lambda: noisy_pass(jitter=0.1), "`router_noise` must be drawn for a context of shape (2, 5), got numbers"),
        (lambda: noisy_pass(jitter=0.1, sample=False), "`router_noise` must be drawn for a context of shape (2, 5), g"),
        (lambda: noisy_pass(jitter=0.1, replay=True), "`router_noise` must be drawn for a context of shape (2, 5), g"),
        (lambda: dynroute.upcycle(3, 2), "`dense` must be a module, got 3."),
        (lambda: dynroute.upcycle(nn.Linear(5, 5), 0), "`num_experts` must be at least 1, got 0."),
        (lambda: dynroute.upcycle(nn.Linear(5, 5), 2, Hard()), "`gate` must give weights that sum to 1 to"),
        (lambda: dynroute.upcycle(nn.Linear(5, 5), 2, TopK(2, capacity=9.0)), "`gate` must give weights that sum to 1"),
        (lambda: dynroute.upcycle(nn.Linear(5, 5), 2, 3), "`gate` must be a Gate such as TopK(2), got 3."),
        (lambda: dynroute.upcycle(nn.ReLU(), 2), "`context_features` must be given where no router is, unless all"),
        (lambda: dynroute.swap(3, "*", nn.Identity), "`model` must be a module, got 3."),
        (lambda: dynroute.swap(nn.Sequential(), "0", 3), "`make` must be a function of the old module, got 3."),
        (lambda: dynroute.swap(nn.Sequential(nn.ReLU()), 3, len), "`where` must be a pattern for names, a class of"),
        (lambda: dynroute.swap(nn.Sequential(nn.ReLU()), (), len), "`where` must be a pattern for names, a class of"),
        (lambda: dynroute.swap(nn.Sequential(nn.ReLU()), "mlp", len), "`where` must match a part of the model, but '"),
        (lambda: dynroute.swap(nn.ReLU(), nn.ReLU, len), "`where` must match a part of the model, but <class"),
        (
            lambda: dynroute.swap(nn.Sequential(nn.ReLU()), "0", lambda old: None),
            "`make` must return a module, but for '0' it returned None.",
        ),
        (lambda: dynroute.inspect.draw_load([1]), "`load` must be a tensor, got list"),
        (lambda: dynroute.inspect.draw_load(torch.zeros(3)), "`load` must have shape (time, nodes), a row for each"),
        (lambda: dynroute.inspect.draw_load(torch.zeros(0, 3)), "`load` must have shape (time, nodes), a row for each"),
        (lambda: dynroute.inspect.draw_load(torch.zeros(2, 3) * 1j), "`load` must hold real numbers, got torch.comple"),
        (lambda: dynroute.inspect.draw_load(-torch.ones(2, 3)), "`load` must hold loads of at least 0, got -1 at (0, "),
        (lambda: dynroute.inspect.metrics(3, ROUTE), "`topology` must be a Topology, got 3; `net.topology` is one."),
        (lambda: dynroute.inspect.metrics(DAG, ROUTE), "`route` must have shape (*, 2, 2), got (2, 3, 3); was it made"),
        (lambda: dynroute.inspect.metrics(DAG, PATH), "`route` must be a Route, got a tensor of torch.bool"),
        (
            lambda: dynroute.inspect.metrics(DAG, Soft()(torch.zeros(0, 2, 2))),
            "`route` must hold at least one sample, got batch shape (0,).",
        ),
        (lambda: functional.gumbel_noise("ab"), "`shape` must list sizes, got 'ab'; for instance (7, 16, 16)."),
        (lambda: functional.gumbel_noise((2, -1)), "`shape[1]` must be at least 0, got -1."),
        (lambda: functional.samplek_path(Z, 2, generator=7), "`generator` must be a torch.Generator or None, got 7"),
        (lambda: functional.samplek_path(Z, 2, noise=[0.0]), "`noise` must be a tensor, got list"),
        (lambda: functional.samplek_path(Z, 2, noise=Z.long()), "`noise` must be a floating tensor, got torch.int64"),
        (lambda: functional.samplek_path(Z, 2, noise=Z * torch.nan), "`noise` must not be NaN, but it is at index (0"),
        (
            lambda: functional.samplek_path(Z, 2, temperature=torch.ones(2, dtype=torch.complex64)),
            "`temperature` must be a number or a real tensor, got torch.complex64.",
        ),
        (lambda: routed()(torch.zeros(2, 5), temperature=True), "`temperature` must be a number or a tensor, got bool"),
        (
            lambda: ModuleRouting(nn.ModuleDict({"a": nn.Linear(5, 5), "b": nn.Linear(5, 5)}), Soft()),
            "`modules` must list modules, got ModuleDict, which lists names; pass its `.values()`.",
        ),
        (lambda: ModelRouting({"a": nn.Linear(5, 5)}, Soft()), "`models` must list modules, got dict, which lists"),
        (
            lambda: ModelRouting([nn.Linear(5, 5), nn.Linear(5, 5).double()], Soft())(torch.zeros(2, 5)),
            "`x` must be read by nodes of one type, got torch.float32 in node 0 and tor",
        ),
        (
            lambda: ModelRouting(linear(3), Soft())(torch.zeros(2, 5).double(), torch.zeros(2, 5)),
            "`x` must be torch.float32 like the parameters of node 0, got torch.float64; convert it with",
        ),
        (lambda: functional.rsg(Z, 1.0), "`shortcut` must be a tensor, got float"),
        (lambda: functional.task_weights([0.1]), "`alpha` must be a tensor, got list"),
        (lambda: functional.route_temperature(torch.ones(2).long()), "`alpha` must be a floating tensor, got torch.in"),
        (lambda: functional.task_weights(Z, normalize=Z), "`normalize` must be one of 'sum', 'mean', got a tensor of"),
        (lambda: Soft()(Z, sample="no"), "`sample` must be True or False, got 'no'."),
        (lambda: losses.importance(Z), "`route` must be a Route, got a tensor of torch.float32 with shape (2, 3, "),
        (lambda: losses.importance(ROUTE._replace(path=None)), "`route.path` must be a tensor, got NoneType"),
        (lambda: losses.importance(ROUTE._replace(weights=1)), "`route.weights` must be a tensor, got int"),
        (lambda: losses.importance(ROUTE._replace(weights=Z.long())), "`route.weights` must be a floating tensor"),
        (lambda: losses.importance(ROUTE._replace(weights=Z[0])), "`route` must hold tensors with one shape (*, T"),
        (lambda: ROUTE.sample("a"), "`index[0]` must be an integer, got 'a'."),
        (lambda: ROUTE.sample(2), "`index[0]` must be less than 2, the size of the batch, got 2."),
        (lambda: ROUTE.sample(0, 0), "`index` must not be longer than the batch shape (2,), got (0, 0)."),
        (lambda: LinearBank(2, 0, 3), "`in_features` must be at least 1, got 0."),
        (lambda: LinearBank(2, 3, 3, bias=1), "`bias` must be True or False, got 1."),
        (lambda: MultiTaskMLP(5, 3, 2, layer_norm=1), "`layer_norm` must be True or False, got 1."),
        (lambda: MultiHead(5, 3, 2, layer_norm=1), "`layer_norm` must be True or False, got 1."),
        (lambda: LinearBank(2, 3, 3, dtype=torch.int64), "`dtype` must be a floating type such as torch.float32, got"),
        (lambda: LinearBank(2, 3, 3, "relu"), "`activation` must make a module, got 'relu'; pass a class such as"),
        (lambda: LinearBank(2, 3, 3, nn.ReLU()), "`activation` must make a module, got ReLU(); pass a class such as"),
        (lambda: LinearBank(2, 3, 3, nn.Linear), "`activation` must make a module, but calling it failed: "),
        (lambda: LinearBank(2, 3, 3, int), "`activation` must make a module, but it returned 0; pass a class"),
        (
            lambda: CompositionalLinear(2, 3, 4)(torch.zeros(5, 3).double(), torch.zeros(5, 2)),
            "`x` must have the type of the parameters torch.float32, got torch.float64; convert it with",
        ),
        (lambda: DAG.used([[True]]), "`path` must be a tensor, got list"),
        (lambda: DAG.unpack(b"x"), "`bits` must be a tensor, got bytes"),
        (lambda: DAG.edges(PATH, 1.0), "`weights` must be a tensor, got float"),
        (lambda: DAG.edges(PATH, PATH * 1j), "`weights` must hold real numbers, got torch.complex64."),
        (lambda: DAG.to_edges(torch.zeros(3)), "`values` must have shape (*, 2, 2), got (3,)."),
        (lambda: DAG.from_edges(torch.zeros(3), fill=None), "`fill` must be a number, got None."),
        (lambda: Topology.layered(3), "`sizes` must list sizes, got 3; one size is (3,)."),
        (
            lambda: LinearRouter(3, DAG)(torch.arange(4) % 3),
            "`context` must have shape (*, 3) for this router, got (4,); pass ids of tasks as a one-hot, or to a",
        ),
        (
            lambda: OutputRouting([nn.Linear(5, 10), nn.Sequential(nn.Linear(5, 2), nn.ReLU())]),
            "`heads[1]` must give as many features as `heads[0]`, since node 2 reads both, got 2 and 10; make",
        ),
        (
            lambda: ModuleRouting([nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)], Soft(), LinearRouter(5, DAG)),
            "`modules[1]` must read the 8 features that `modules[0]` gives, got a linear layer that reads 5",
        ),
        (
            lambda: LayerRouting([linear(2), [nn.Linear(5, 4), nn.Linear(5, 3)]], Soft()),
            "`layers[1][1]` must give as many features as `layers[1][0]`, since node 4 reads both, got 3 and 4; make",
        ),
        (
            lambda: LayerRouting([linear(2), linear(2)], Soft(), head=nn.Linear(4, 2)),
            "`head` must read the 5 features that `layers[1][0]` gives, got a linear layer that reads 4",
        ),
        (
            lambda: ModelRouting([nn.Linear(5, 4), nn.Linear(5, 3)], Soft()),
            "`models[1]` must give as many features as `models[0]`, since node 2 reads both, got 3 and 4; make",
        ),
        (
            lambda: dynroute.grow(ModuleRouting.mlp(5, 8, 4, 2), [nn.Linear(8, 8), nn.Linear(8, 7)]),
            "`modules[1]` must give as many features as `net.nodes[0]`, since node 6 reads both, got 7 and 8; make",
        ),
        (lambda: LinearRouter(5, DAG)([1.0]), "`context` must be a tensor, got list"),
        (lambda: LinearRouter(5, DAG)(torch.zeros(5) * 1j), "`context` must hold real numbers, got torch.complex64."),
        (lambda: CascadeRouter(5, DAG)(torch.zeros(5) * 1j), "`context` must hold real numbers, got torch.complex64."),
        (lambda: TaskRouter(3)(torch.zeros(3) * 1j), "`task` must hold integer ids or a one-hot, got torch.complex64."),
        (lambda: MLPRouter("5", DAG), "`context_features` must be an integer, got '5'."),
        (lambda: MLPRouter(5, DAG, (0,)), "`hidden_sizes[0]` must be at least 1, got 0."),
        (
            lambda: dynroute.arguments.check_choice("precision", "bfloat16", ("float32", "bf16")),
            "`precision` must be one of 'float32', 'bf16', got 'bfloat16'; did you mean 'bf16'?",
        ),
        (
            lambda: dynroute.arguments.check_choice("protect", "RSG", ("rsg", "none")),
            "`protect` must be one of 'rsg', 'none', got 'RSG'; did you mean 'rsg'?",
        ),
        (lambda: CascadeRouter(5, DAG, cascade=[1]), "`cascade` must be one of 'probabilities', 'logits', got [1]."),
        (lambda: ModuleRouting(nn.ReLU(), Soft(), nn.ReLU()), "`modules` must list modules, got ReLU(); for instance"),
        (lambda: OutputRouting(["a"]), "`heads[0]` must be a module, got 'a'."),
        (
            lambda: ModelRouting(nn.Sequential(*linear(2)), TopK(2)),
            "`models` must list modules, got an nn.Sequential, which is one module; wrap it: [...], or pass list(...)",
        ),
        (
            lambda: LayerRouting([nn.Sequential(*linear(2)), nn.Sequential(*linear(2))], TopK(2)),
            "`layers[0]` must list modules, got an nn.Sequential, which is one module; wrap it: [...], or pass list",
        ),
        (
            lambda: OutputRouting(linear(3))(torch.zeros(7, 5), torch.arange(3)),
            "`task` must have the batch shape of `x`, got task (3,) and x (7, 5); an integer context holds task ids",
        ),
        (
            lambda: ModuleRouting(
                [*linear(1), nn.Sequential(nn.Identity(), nn.ReLU(True)), *linear(1)], TopK(2), shortcut=True
            ),
            "`modules[1]` must not begin with a layer that works in place, got ReLU(inplace=True): other modules or",
        ),
        (
            lambda: OutputRouting([nn.Sequential(nn.Sequential(nn.Dropout(), nn.Flatten()), nn.ReLU(True))]),
            "`heads[0]` must not begin with a layer that works in place, got ReLU(inplace=True): other modules or",
        ),
        (
            lambda: OutputRouting([nn.Sequential(nn.AlphaDropout(), nn.Unflatten(1, (5, 1)), nn.ReLU(True))]),
            "`heads[0]` must not begin with a layer that works in place, got ReLU(inplace=True): other modules or",
        ),
        (
            lambda: ModelRouting(linear(3), TopK(2), shared=[nn.Linear(5, 5), nn.ReLU(True)]),
            "`shared[1]` must not begin with a layer that works in place, got ReLU(inplace=True): other modules or",
        ),
        (lambda: OutputRouting([nn.ReLU(True)]), "`heads[0]` must not begin with a layer that works in place, got R"),
        (
            lambda: dynroute.upcycle(nn.Sequential(nn.ReLU(True), nn.Linear(5, 5)), 2),
            "`dense` must not begin with a layer that works in place, got ReLU(inplace=True): other modules or",
        ),
        (lambda: routed()(torch.zeros(2, 5), generator="x"), "`generator` must be a torch.Generator or None, got 'x'"),
        (
            lambda: routed()(torch.zeros(2, 5), noise=torch.zeros(1)),
            "`noise` must have the shape of the logits (2, 1, 3), got (1,).",
        ),
        (lambda: OutputRouting(linear(3))(torch.zeros(1, 5), [0]), "`task` must be a tensor, got list"),
        (lambda: LayerRouting(None, Soft(), nn.ReLU()), "`layers` must list layers, each a list of modules, got None."),
        (lambda: LayerRouting([linear(2)], Soft(), nn.ReLU(), head=2), "`head` must be a module or None, got 2; for"),
        (lambda: build("sm", 5, 3, 2, output_init="x"), "`output_init` must be a number, got 'x'."),
        (lambda: build("sm", 5, 3, 2, output_init=-1.0), "`output_init` must be at least 0, got -1.0."),
        (lambda: build("mt-sac", 5, 3, 2, output_init=-1.0), "`output_init` must be at least 0, got -1.0."),
        (lambda: build("mh-sac", 5, 3, 2, output_init="x"), "`output_init` must be a number, got 'x'."),
        (lambda: build("paco", 5, 3, 2, output_init=-1.0), "`output_init` must be at least 0, got -1.0."),
        (lambda: build(["sm"], 5, 3, 2), "`name` must be a name of `available()` or make a network, got ['sm']."),
        (lambda: build("care", 5, 3, 2, metadata=torch.eye(3) * 1j), "`metadata` must hold real numbers, got torch.co"),
        (lambda: build("paco", 5, 3, 2)([1.0], [0]), "`state` must be a tensor, got list"),
        (
            lambda: build("paco", 5, 3, 2)(torch.zeros(1, 5).double(), torch.zeros(1).long()),
            "`state` must have the type of the parameters torch.float32, got torch.float64",
        ),
    ],
)  # fmt: skip
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}") as caught:
        call()
    assert is_a_sentence(caught.value)


def test_numbers_of_numpy_are_counts() -> None:
    assert repr(TopK(np.int64(2))) == "TopK(2)"  # type: ignore[arg-type]  # an integer of another library
    assert type(TopK(np.int64(2)).k) is int  # type: ignore[arg-type]  # the same


def test_truth_values_are_a_context() -> None:
    context = torch.tensor([True, False, True, True, False])
    for router in (CascadeRouter(5, DAG), MLPRouter(5, DAG, (4,))):
        assert torch.equal(router(context), router(context.float()))


def test_autocast_takes_inputs_of_other_types() -> None:
    net = PaCo(5, 3, 2, num_sets=2, hidden_sizes=(4,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(torch.zeros(3, 5, dtype=torch.bfloat16), torch.arange(3)).shape == (3, 2)


def test_a_network_with_a_converted_part_takes_the_type_of_that_part() -> None:
    net = MultiTaskMLP(5, 3, 2, hidden_sizes=(4, 4))
    net.layers[0].double()
    net.layers[1] = nn.Sequential(nn.ReLU(), Narrow())
    assert net(torch.zeros(2, 5, dtype=torch.float64), torch.arange(2)).dtype == torch.float32


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_a_context_that_is_no_tensor_is_named() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    with pytest.raises(TypeError, match="`context` must be a tensor, got list"):
        net(torch.randn(3, 5), [1.0, 2.0])
    with pytest.raises(TypeError, match="`context` must be a tensor, got int"):
        net.route(3)
