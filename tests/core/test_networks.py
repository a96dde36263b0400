"""The networks of the literature compute what their equations say, at the published sizes."""

import math
from collections.abc import Callable, Sequence

import oracle_networks as naive
import pytest
import torch
from small_networks import SMALL, STATE, TASKS, head, layers, normalized, small
from torch import Tensor, nn

from dynroute import CompositionalLinear, networks
from dynroute.functional import gumbel_noise, route_temperature, task_weights
from dynroute.networks import (
    CARE,
    DynamicDepthRouting,
    HardRouting,
    MultiHead,
    Network,
    PaCo,
    ResidualMLP,
    ScaleMoE,
    SoftModularization,
    available,
    build,
)

DOUBLE = torch.float64


# Sizes ----------------------------------------------------------------------------------------------------------------

COUNTS = {
    "mt-sac": (664_808, 663_601, 1_328_409, 1_360_409),
    "mh-sac": (693_680, 667_210, 1_360_890, 1_537_250),
    "sm": (792_444, 793_141, 1_585_585, 1_617_585),
    "sm-shallow": (691_022, 690_823, 1_381_845, 1_413_845),
    "paco": (1_700_090, 1_694_005, 3_394_095, 3_394_295),
    "d2r": (684_240, 684_937, 1_369_177, 1_401_177),
    "d2r-released": (684_240, 684_937, 1_369_177, 1_401_177),
    "care": (613_246, 613_511, 1_226_757, 1_260_037),
    "moe": (2_738_852, 2_735_048, 5_473_900, 5_622_380),
    "hard": (581_408, 582_105, 1_163_513, 1_167_673),
    "d2r-layer": (767_100, 767_797, 1_534_897, 1_566_897),
    "d2r-model": (754_764, 755_461, 1_510_225, 1_542_225),
    "brc": (286_536, 285_441, 571_977, 573_257),
    "scalemoe-feature": (1_084_240, 1_083_145, 2_167_385, 2_168_665),
    "scalemoe-output": (1_098_632, 1_084_944, 2_183_576, 2_184_856),
}
"""Actor and critic for ten tasks; both together for ten and for fifty. A table that both share counts once."""


@pytest.mark.parametrize("name", COUNTS)
def test_numbers_of_parameters(name: str) -> None:
    actor, q, *sums = COUNTS[name]
    for tasks, total in zip((10, 50), sums, strict=True):
        policy = build(name, 39, tasks, 8)
        assert isinstance(policy, Network)
        critic = build(name, 43, tasks, 1, **policy.shared)
        counted = {p: p.numel() for net in (policy, critic) for p in net.parameters()}
        assert sum(counted.values()) == total
        if tasks == 10:
            assert sum(p.numel() for p in policy.parameters()) == actor
            own = set(critic.parameters()) - set(policy.parameters())
            assert sum(p.numel() for p in own) == q


def test_care_rounds_to_the_published_numbers() -> None:
    assert [round(total / 1e6, 2) for total in COUNTS["care"][2:]] == [1.23, 1.26]


def test_names_are_those_of_the_contract() -> None:
    assert networks.available() == (
        "mt-sac",
        "mh-sac",
        "moe",
        "hard",
        "sm",
        "sm-shallow",
        "care",
        "paco",
        "d2r",
        "d2r-released",
        "d2r-layer",
        "d2r-model",
        "brc",
        "scalemoe-feature",
        "scalemoe-output",
    )


# Equations ------------------------------------------------------------------------------------------------------------


def residual(module: nn.Module) -> list[list[naive.Normalized]]:
    return [normalized(part) for part in module.modules() if isinstance(part, networks.ResidualBlock)]


def layered(net: Network, sizes: Sequence[int]) -> list[list[naive.Layer]]:
    assert net.routed is not None
    flat = [layers(node)[0] for node in net.routed.nodes[: sum(sizes)]]
    return [[flat.pop(0) for _ in range(size)] for size in sizes]


def oracle_of(net: Network) -> Callable[..., naive.Routed | Tensor]:
    """The naive network with the same weights: (state, task, num_tasks, **keywords) -> output or routed output."""
    graph = net.routed
    if isinstance(net, networks.MultiTaskMLP):
        return lambda *sample: naive.mt_mlp(layers(net), *sample)
    if isinstance(net, MultiHead):
        return lambda *sample: naive.multi_head(layers(net.trunk), layers(net.heads), *sample)
    if isinstance(net, PaCo):
        sets = [[(layer.weight[k], layer.bias[k]) for layer in net.layers] for k in range(net.num_sets)]
        return lambda state, task, _: naive.paco(sets, net.composition[task], state)
    if isinstance(net, ResidualMLP):
        parts = (net.encoder.embedding, normalized(net.encoder)[0], residual(net), layers(net.head)[0])
        return lambda state, task, _: naive.brc(*parts, state, task)
    assert graph is not None
    if isinstance(net, ScaleMoE):
        experts = list(graph.nodes[:-1])
        heads = layers(net.head) if net.level == "feature" else [layers(expert)[-1] for expert in experts]
        blocks = [residual(expert) for expert in experts]
        parts = (net.encoder.embedding, normalized(net.encoder)[0], blocks, heads, layers(graph.router))
        return lambda state, task, _, **k: naive.scale_moe(*parts, state, task, deviations=net.merges_deviations, **k)
    if isinstance(net, networks.MixtureOfExperts):
        experts = [layers(node) for node in graph.nodes[:-1]]
        return lambda *sample, **k: naive.mixture_of_experts(experts, layers(graph.router), *sample, **k)
    if isinstance(net, CARE):

        def care(state: Tensor, task: int, num_tasks: int, **keywords: object) -> naive.Routed:
            metadata = net.metadata[task] if net.embedding is None else net.embedding.weight[:, task]
            return naive.care(
                [layers(encoder) for encoder in net.encoders],
                layers(net.trunk),
                layers(net.context),
                metadata,
                state,
                task,
                num_tasks,
                attention=net.attention,
                gate_mlp=() if net.scores is None else layers(net.scores),
                task_in_trunk=net.task_in_trunk,
                **keywords,
            )

        return care
    if isinstance(net, HardRouting):
        modules = layered(net, (2, 3))
        return lambda *s, **k: naive.hard_routing(layers(net.trunk), modules, graph.router.table, head(net), *s, **k)
    f, h = layers(net.trunk), layers(net.task)
    if isinstance(net, SoftModularization):
        router, released = graph.router, net.equations == "released"
        modules = layered(net, [rows for _, rows in router.stages])
        variant: dict[str, object] = {"gating": layers(router.embed), "state_free": net.state_free}
        if not released:
            variant |= {"activate_state": False, "condition": "logits", "activate": "before", "last": "sum"}
        down, up = layers(router.down), layers(router.up)
        output = head(net) if released else None
        return lambda *s, **k: naive.soft_modularization(f, h, modules, down, up, output, *s, **variant, **k)
    assert isinstance(net, DynamicDepthRouting)
    g, state_free = layers(graph.router), net.state_free
    if net.level == "model":
        models = [layers(node) for node in graph.nodes[:-1]]
        return lambda *s, **k: naive.d2r_model(f, h, g, models, head(net), *s, state_free=state_free, **k)
    shortcut = graph.shortcut
    if net.level == "layer":
        modules = layered(net, (2, 3, 2))
        return lambda *s, **k: naive.d2r_layer(
            f, h, g, modules, head(net), *s, state_free=state_free, shortcut=shortcut, **k
        )
    chain = [layers(node)[0] for node in graph.nodes[:-1]]
    return lambda *s, **k: naive.d2r(f, h, g, chain, head(net), *s, state_free=state_free, shortcut=shortcut, **k)


def gate_word(net: Network) -> str:
    assert net.routed is not None
    return {"Soft": "soft", "Hard": "hard", "TopK": "topk", "SampleK": "samplek"}[type(net.routed.gate).__name__]


def rows(net: Network, values: Tensor) -> list[list[object]]:
    """The slots of one sample as nested lists, padding left out, and without the output that the paper's SM sums."""
    assert net.topology is not None
    summed = isinstance(net, SoftModularization) and net.equations == "paper"
    widths = [len(parents) for parents in net.topology.parents if parents][: -1 if summed else None]
    return [values[t, :width].tolist() for t, width in enumerate(widths)]


def assert_same(net: Network, *, replay: bool) -> None:
    """Compares outputs and all gradients with those of the naive network, sample by sample."""
    batch = 7
    state = torch.randn(batch, STATE, dtype=DOUBLE)
    task = torch.arange(batch) % TASKS
    routing: dict[str, object] = {}
    if net.topology is not None:
        shape = (batch, *net.topology.path_shape)
        routing = {"noise": gumbel_noise(shape), "temperature": torch.rand(batch, dtype=DOUBLE) + 0.3}
        if replay:
            other = net(state.flip(0), task, return_route=True, sample=True, noise=gumbel_noise(shape))[1]
            routing = {"path": other.path}

    output, route = net(state, task, return_route=True, **routing)
    expected = []
    for i in range(batch):
        keywords: dict[str, object] = {}
        if net.routed is not None:
            keywords = {"gate": gate_word(net), "protect": net.routed.protect, "training": net.training}
            if replay:
                keywords["path"] = rows(net, route.path[i])
            else:
                keywords |= {"noise": rows(net, routing["noise"][i]), "temperature": float(routing["temperature"][i])}
        result = oracle_of(net)(state[i], int(task[i]), TASKS, **keywords)
        if isinstance(result, Tensor):
            expected.append(result)
            continue
        expected.append(result[0])
        assert rows(net, route.path[i]) == result[2]
        for mine, theirs in zip(rows(net, route.weights[i]), result[1], strict=True):
            assert mine == pytest.approx([float(weight.detach()) for weight in theirs], rel=1e-10, abs=1e-10)
    torch.testing.assert_close(output, torch.stack(expected), rtol=1e-10, atol=1e-10)

    parameters = list(net.parameters())
    direction = torch.randn_like(output)
    for mine, theirs in zip(
        torch.autograd.grad(output, parameters, direction, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(torch.stack(expected), parameters, direction, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def actor(gate: str) -> Network:
    """A ScaleMoE that merges standard deviations, one of its outputs where their logarithm is limited."""
    net = small("scalemoe-output", gate=gate, dtype=DOUBLE)
    net.become_actor()
    net.encoder.learn_embedding = True  # the oracle knows no other
    with torch.no_grad():
        layers(net.routed.nodes[0])[-1][1][-1] += 5
    return net


VARIANTS: dict[str, Callable[[], Network]] = {
    **{name: lambda name=name: small(name, dtype=DOUBLE) for name in SMALL},
    "sm paper": lambda: small("sm", equations="paper", dtype=DOUBLE),
    "sm state-free": lambda: small("sm", state_free=True, dtype=DOUBLE),
    "sm paper state-free": lambda: small("sm", equations="paper", state_free=True, dtype=DOUBLE),
    "sm top-2": lambda: small("sm", gate="top-2", protect="sg", dtype=DOUBLE),
    "moe top-2": lambda: small("moe", gate="top-2", protect="sg", dtype=DOUBLE),
    "care dot": lambda: small("care", attention="dot", dtype=DOUBLE),
    "care metadata": lambda: small(
        "care", metadata=torch.randn(TASKS, 9, dtype=DOUBLE), task_in_trunk=False, dtype=DOUBLE
    ),
    "d2r top-2": lambda: small("d2r", gate="top-2", dtype=DOUBLE),
    "d2r hard": lambda: small("d2r", gate="hard", dtype=DOUBLE),
    "d2r soft": lambda: small("d2r", gate="soft", dtype=DOUBLE),
    "d2r state-free": lambda: small("d2r", state_free=True, dtype=DOUBLE),
    "d2r without rsg": lambda: small("d2r", protect="none", dtype=DOUBLE),
    "d2r sg": lambda: small("d2r", protect="sg", shortcut=False, dtype=DOUBLE),
    **{
        f"scalemoe-{level} {gate}": lambda level=level, gate=gate: small(f"scalemoe-{level}", gate=gate, dtype=DOUBLE)
        for level in ("feature", "output")
        for gate in ("soft", "hard", "sample-2")
    },
    **{f"scalemoe actor {gate}": lambda gate=gate: actor(gate) for gate in ("soft", "hard", "top-2")},
    "scalemoe sg": lambda: small("scalemoe-feature", protect="sg", dtype=DOUBLE),
    "d2r-layer soft": lambda: small("d2r-layer", gate="soft", state_free=True, dtype=DOUBLE),
}


@pytest.mark.parametrize("replay", [False, True], ids=["live", "replayed"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_are_those_of_the_equations(variant: str, mode: str, replay: bool) -> None:
    net = VARIANTS[variant]()
    assert_same(net.train(mode == "train"), replay=replay)


# Paper and release ----------------------------------------------------------------------------------------------------


def test_d2r_and_its_release_differ_in_gradients_alone() -> None:
    paper, release = small("d2r"), small("d2r-released")
    with torch.no_grad():  # source 1 has logits far below all others, so that it suits no sample
        paper.graph.router.layers[-1].weight.zero_()
        edges = [edge for parents in paper.topology.parents for edge in parents]
        paper.graph.router.layers[-1].bias.copy_(torch.tensor([-9.0 if j == 1 else 0.0 for j in edges]))
    release.load_state_dict(paper.state_dict())
    state, task = torch.randn(60, STATE), torch.arange(60) % TASKS
    path = paper.topology.allowed.expand(60, -1, -1)
    first, second = (net(state, task, path=path) for net in (paper, release))
    assert torch.equal(first, second)
    for net, output in ((paper, first), (release, second)):
        output.square().sum().backward()
        unsuitable, suitable = (net.graph.nodes[i][0].weight.grad for i in (1, 2))
        assert suitable.any()
        assert bool(unsuitable.any()) == (net is release)  # exactly zero by Eq. 12


@pytest.mark.parametrize(
    ("difference", "value"),
    [("activate", "before"), ("activate_state", False), ("condition", "logits"), ("gating", ()), ("last", "sum")],
)
def test_each_difference_of_sm_can_be_seen(difference: str, value: object) -> None:
    net = small("sm", router_sizes=(6, 6), layer_sizes=(2, 2, 2), dtype=DOUBLE)
    state = torch.randn(STATE, dtype=DOUBLE)
    released: dict[str, object] = {"gating": layers(net.routed.router.embed)}
    if difference == "condition":  # probabilities of one layer and logits of one layer are equally many here
        net = small("sm", router_sizes=(6, 6), layer_sizes=(2, 2), dtype=DOUBLE)
        released = {"gating": layers(net.routed.router.embed)}
    router = net.routed.router
    sizes = (2, 2) if difference == "condition" else (2, 2, 2)
    arguments = (
        layers(net.trunk),
        layers(net.task),
        layered(net, sizes),
        layers(router.down),
        layers(router.up),
        head(net),
        state,
        1,
        TASKS,
    )
    output = net(state, torch.tensor(1))
    torch.testing.assert_close(output, naive.soft_modularization(*arguments, **released)[0], rtol=1e-10, atol=1e-10)
    if difference == "last":  # the sum has no logits
        arguments = (*arguments[:3], arguments[3][:-1], arguments[4][:-1], *arguments[5:])
    other = naive.soft_modularization(*arguments, **{**released, difference: value})[0]
    assert (output - other).abs().max() > 1e-6


def test_the_paper_of_sm_reads_logits_and_the_release_probabilities() -> None:
    paper, release = small("sm", equations="paper"), small("sm")
    assert [up.in_features for up in paper.routed.router.up] == [6]
    assert [up.in_features for up in release.routed.router.up] == [6, 12]
    assert [part.in_features for part in (paper.routed.router.down[0], release.routed.router.down[0])] == [6, 4]


def test_paco_reinitializes_as_the_naive_one_does() -> None:
    net = small("paco", num_sets=3, dtype=DOUBLE)
    before = net.composition.detach().clone()
    shares = net.reinitialize(torch.arange(len(before)) == 2)
    torch.testing.assert_close(net.composition.detach(), naive.paco_reinitialise(before, 2, shares[2].tolist()))


def test_the_normalizations_of_both_papers() -> None:
    alpha = torch.tensor([0.1, 0.2, 0.7])
    by_log = torch.softmax(-alpha.log(), dim=0)
    torch.testing.assert_close(route_temperature(alpha), by_log)
    torch.testing.assert_close(route_temperature(alpha, normalize="mean"), 3 * by_log)
    torch.testing.assert_close(task_weights(alpha), torch.softmax(-alpha, dim=0))
    assert not torch.allclose(task_weights(alpha), by_log)


INITIALIZED = ["d2r", "d2r-released", "d2r-layer", "d2r-model", "sm", "sm-shallow"]


@pytest.mark.parametrize("name", INITIALIZED)
def test_the_initialization_of_released_code(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, 39, 10, 8, hidden_init="released")
    linear = {layer: part for layer, part in net.named_modules() if isinstance(part, nn.Linear)}
    small = 0
    for layer, part in linear.items():
        bound, largest = part.out_features**-0.5, float(part.weight.detach().abs().max())
        if part.out_features == 8 or ".down." in layer:  # the output, and every W_d
            small += 1
            assert 0.8 * 3e-3 < largest <= 3e-3, layer
            assert part.bias.detach().abs().max() <= 3e-3, layer
        else:
            assert 0.8 * bound < largest <= bound, layer
            assert (part.bias == 0.1).all(), layer
    assert small == {"sm": 5, "sm-shallow": 3}.get(name, 1)


BASELINES = ["mt-sac", "mh-sac", "paco"]


def uniform(values: Tensor, bound: float) -> bool:
    """Whether many numbers look like draws from U(-bound, bound)."""
    inside = values.detach().abs().max() <= bound
    return bool(inside and abs(float(values.detach().std()) * 3**0.5 / bound - 1) < 0.05)


def layers_with_sets(net: nn.Module) -> list[nn.Module]:
    return [part for part in net.modules() if isinstance(part, (nn.Linear, CompositionalLinear))]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("output_init", [3e-3, None])
def test_baselines_have_the_initialization_of_released_code(name: str, output_init: float | None) -> None:
    torch.manual_seed(0)
    net = build(name, 39, 10, 8, hidden_init="released", output_init=output_init)
    last = 10 if name == "mh-sac" else 1  # one output layer for each task
    hidden, output = layers_with_sets(net)[:-last], layers_with_sets(net)[-last:]
    assert len(hidden) == (3 if name == "paco" else 5)
    for layer in hidden:
        assert uniform(layer.weight, layer.out_features**-0.5)
        assert (layer.bias == 0.1).all()
    for layer in output:
        assert layer.out_features == 8
        assert uniform(layer.weight, 400**-0.5 if output_init is None else output_init)
    biases = torch.cat([layer.bias.flatten() for layer in output])
    assert 0 < float(biases.detach().abs().max()) <= (400**-0.5 if output_init is None else output_init)
    assert len({layer.weight.detach().flatten()[0].item() for layer in output}) == last


def test_layer_norm_is_not_initialized_as_a_hidden_layer() -> None:
    net = build("mt-sac", 5, 3, 2, hidden_sizes=(6,), layer_norm=True, hidden_init="released")
    norm = net.layers[1]
    assert (norm.weight == 1).all()
    assert not norm.bias.any()


@pytest.mark.parametrize("name", ["mt-sac", "paco"])
def test_a_network_without_hidden_layers_is_an_output_layer(name: str) -> None:
    net = build(name, 39, 10, 8, hidden_sizes=(), hidden_init="released", output_init=3e-3)
    (layer,) = layers_with_sets(net)
    assert layer.bias.detach().abs().max() <= 3e-3
    assert uniform(layer.weight, 3e-3)


def test_the_sets_of_paco_start_equal_under_released_initialization() -> None:
    torch.manual_seed(0)
    net = build("paco", 39, 10, 8, hidden_init="released", output_init=3e-3)
    for layer in net.layers:
        assert (layer.weight == layer.weight[0]).all()
        assert (layer.bias == layer.bias[0]).all()
    torch.manual_seed(0)
    assert torch.equal(build("paco", 39, 10, 8).composition, net.composition)
    critic = build("paco", 43, 10, 1, hidden_init="released", output_init=3e-3, **net.shared)
    assert critic.composition is net.composition


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_drawn_by_torch_unless_told_otherwise(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, 39, 10, 8, **({"output_init": None} if name == "paco" else {}))
    torch.manual_seed(0)
    if name == "paco":
        assert torch.equal(net.composition, torch.randn(10, 5))
    for layer in layers_with_sets(net):
        expected = nn.Linear(layer.in_features, layer.out_features)
        assert (layer.weight == expected.weight).all()
        assert (layer.bias == expected.bias).all()
    following = torch.rand(1)
    torch.manual_seed(0)
    build(name, 39, 10, 8, hidden_init="torch", output_init=None)
    assert torch.equal(torch.rand(1), following)


@pytest.mark.parametrize("name", [name for name in available() if not name.startswith(("brc", "scalemoe"))])
def test_policies_start_near_a_standard_gaussian(name: str) -> None:
    """D2R, Table 1. Each layer of PaCo multiplies by the sum of a task's row: large sums start elsewhere."""
    task = torch.arange(10).repeat(16)
    for seed in range(3):
        torch.manual_seed(seed)
        net = build(name, 39, 10, 8).requires_grad_(False)
        usual = net.composition.sum(dim=1).abs() < 2.5 if name == "paco" else torch.full((10,), True)
        assert usual.sum() >= 5
        mean, log_std = net(torch.randn(160, 39), task).reshape(16, 10, 2, 4)[:, usual].unbind(dim=2)
        assert mean.abs().max() < 0.5
        assert log_std.abs().max() < math.log(2)


def test_released_initialization_makes_routing_less_even() -> None:
    torch.manual_seed(0)
    state, task = torch.randn(100, 39), torch.eye(10)[torch.arange(100) % 10]
    largest, spread = {}, {}
    for rule in ("torch", "released"):
        net = build("d2r-released", 39, 10, 8, hidden_init=rule)
        output, route = net(state, task, return_route=True)
        largest[rule] = float(route.logits.detach()[:, -1].softmax(dim=-1).max(dim=-1).values.mean())
        spread[rule] = float(output.detach().std())
    assert 0.064 < largest["torch"] < 0.069
    assert 0.071 < largest["released"] < 0.078
    assert spread["released"] > 2 * spread["torch"]


def test_initializations_have_names() -> None:
    for name in ("sm", *BASELINES):
        with pytest.raises(ValueError, match="`hidden_init` must be one of 'torch', 'released', got 'paper'"):
            build(name, 39, 10, 8, hidden_init="paper")


def test_the_plain_sum_keeps_its_range_under_released_initialization() -> None:
    net = build("sm", 39, 10, 8, equations="paper", hidden_init="released")
    last = [part for part in net.modules() if isinstance(part, nn.Linear) and part.out_features == 8]
    assert len(last) == 4
    assert all(part.weight.detach().abs().max() <= 3e-3 for part in last)


@pytest.mark.parametrize(("name", "part"), [("mt-sac", "layers"), ("mh-sac", "trunk")])
def test_hidden_layers_are_normalized_before_their_activation(name: str, part: str) -> None:
    net = build(name, STATE, TASKS, 2, hidden_sizes=(6, 7), layer_norm=True).double()
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    state, tasks = torch.randn(5, STATE).double(), torch.arange(5) % TASKS
    x = torch.cat([state, nn.functional.one_hot(tasks, TASKS)], dim=-1)
    linears = [module for module in getattr(net, part) if isinstance(module, nn.Linear)]
    assert len(norms) == 2
    for linear, norm in zip(linears, norms, strict=False):
        y = x @ linear.weight.T + linear.bias
        centred = y - y.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        x = (scaled * norm.weight + norm.bias).clamp(min=0)
    heads = linears[2:] or list(net.heads.nodes)[:-1]
    head = [heads[task % len(heads)] for task in tasks.tolist()]
    expected = torch.stack([linear.weight @ row + linear.bias for linear, row in zip(head, x, strict=True)])
    torch.testing.assert_close(net(state, tasks), expected)
