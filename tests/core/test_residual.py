"""BRC, ScaleMoE, and routed networks whose modules are normalized or residual."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import oracle
import oracle_networks as naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import OUT, STATE, TASKS, head, layers, normalized, small
from torch import Tensor, nn

import dynroute
from dynroute import TopK
from dynroute.networks import DynamicDepthRouting, Network, ResidualMLP, ScaleMoE, SoftModularization, build

DOUBLE = torch.float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}
GATES = ("soft", "hard", "top-2", "top-3", "sample-2")
KINDS = ("layer-norm", "residual")


def samples(count: int, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    return torch.randn(count, STATE, dtype=dtype), torch.arange(count) % TASKS


def grads(output: Tensor, net: nn.Module, direction: Tensor) -> list[Tensor]:
    parameters = list(net.parameters())
    return list(torch.autograd.grad(output, parameters, direction, materialize_grads=True, allow_unused=True))


def stir(net: nn.Module) -> None:
    """Moves scales, shifts and biases away from where they start."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


# BRC ------------------------------------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 6),
    blocks=st.integers(0, 3),
    features=st.integers(1, 4),
    num_tasks=st.integers(1, 3),
    out=st.integers(1, 3),
)
def test_parameters_of_brc_are_counted_by_hand(
    width: int, blocks: int, features: int, num_tasks: int, out: int
) -> None:
    net = ResidualMLP(STATE, num_tasks, out, width=width, blocks=blocks, embedding_features=features)
    linear = (STATE + features) * width + width
    block = 2 * (width * width + width) + 2 * (2 * width)
    by_hand = num_tasks * features + linear + 2 * width + blocks * block + width * out + out
    assert sum(parameter.numel() for parameter in net.parameters()) == by_hand


def test_the_published_critic_and_actor_are_as_large_as_counted() -> None:
    critic = ResidualMLP(43, 50, 101, width=4096, blocks=2, device="meta")
    actor = ResidualMLP(39, 50, 8, width=256, blocks=1, device="meta")
    block = 2 * (4096 * 4096 + 4096) + 4 * 4096
    assert sum(p.numel() for p in critic.parameters()) == 50 * 32 + 75 * 4096 + 3 * 4096 + 2 * block + 4097 * 101
    block = 2 * (256 * 256 + 256) + 4 * 256
    assert sum(p.numel() for p in actor.parameters()) == 50 * 32 + 71 * 256 + 3 * 256 + block + 257 * 8


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_brc_is_what_functions_of_torch_compute(blocks: int) -> None:
    net = ResidualMLP(STATE, TASKS, OUT, width=6, blocks=blocks, embedding_features=4, dtype=DOUBLE)
    stir(net)
    state, task = samples(9)
    named = dict(net.named_parameters())
    shape = (6,)

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, shape, named[f"{name}.weight"], named[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("oi,bi->bo", named[f"{name}.weight"], x) + named[f"{name}.bias"]

    rows = named["encoder.embedding"][task]
    rows = rows / rows.pow(2).sum(dim=1, keepdim=True).sqrt()
    x = norm(linear(torch.cat([state, rows], dim=1), "encoder.layer.0"), "encoder.layer.1").clamp(min=0)
    for i in range(blocks):
        body = f"blocks.{i}.body"
        hidden = norm(linear(x, f"{body}.0"), f"{body}.1").clamp(min=0)
        x = x + norm(linear(hidden, f"{body}.3"), f"{body}.4")
    expected = linear(x, "head")

    output = net(state, task)
    torch.testing.assert_close(output, expected, **EXACT)
    direction = torch.randn_like(output)
    for mine, theirs in zip(grads(output, net, direction), grads(expected, net, direction), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_layers_start_orthogonal_with_gain_sqrt_2() -> None:
    for net in (build("brc", 39, 10, 8, width=64), build("scalemoe-output", 39, 10, 8, width=64, num_experts=2)):
        routers = [] if net.routed is None else list(net.routed.router.modules())
        for layer in net.modules():
            if isinstance(layer, nn.LayerNorm):
                assert (layer.weight == 1).all()
                assert (layer.bias == 0).all()
                assert layer.eps == 1e-6
            if not isinstance(layer, nn.Linear) or layer in routers:
                continue
            assert (layer.bias == 0).all()
            weight = layer.weight.detach()
            short = weight if len(weight) <= weight.shape[1] else weight.mT
            torch.testing.assert_close(short @ short.mT, 2 * torch.eye(len(short)), rtol=0, atol=1e-5)


def test_layers_of_16_bits_start_orthogonal_too() -> None:
    net = build("brc", 39, 10, 8, width=64, dtype=torch.bfloat16)
    weight = net.blocks[0].body[0].weight.detach().float()
    torch.testing.assert_close(weight @ weight.mT, 2 * torch.eye(64), rtol=0, atol=0.05)


@given(scale=st.floats(1e-3, 1e3), task=st.integers(0, TASKS - 1))
def test_embeddings_have_norm_1_whatever_the_table_holds(scale: float, task: int) -> None:
    net = small("brc", dtype=DOUBLE)
    assert isinstance(net, ResidualMLP)
    state = torch.ones(STATE, dtype=DOUBLE)
    before = net(state, torch.tensor(task))
    with torch.no_grad():
        net.encoder.embedding[task] *= scale
    rows = net.encoder.embed(torch.eye(TASKS, dtype=DOUBLE))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(TASKS, dtype=DOUBLE))
    torch.testing.assert_close(net(state, torch.tensor(task)), before)


def test_an_embedding_starts_with_a_norm_of_about_1() -> None:
    norms = build("brc", STATE, 400, OUT).encoder.embedding.detach().norm(dim=-1)
    assert 0.95 < norms.mean() < 1.05


@pytest.mark.parametrize("name", ["brc", "scalemoe-feature", "scalemoe-output"])
def test_an_actor_reads_the_embedding_of_its_critics_without_gradient(name: str) -> None:
    critic = small(name)
    assert list(critic.shared) == ["embedding"]
    actor = small(name, **critic.shared)
    actor.become_actor()
    assert actor.shared["embedding"] is critic.shared["embedding"]
    table = critic.shared["embedding"]
    state, task = samples(8, torch.float32)
    actor(state, task).square().sum().backward()
    assert table.grad is None
    assert actor.encoder.layer[0].weight.grad.any()
    critic(state, task).square().sum().backward()
    assert table.grad is not None
    assert table.grad.any()
    copied = copy.deepcopy(actor)
    assert not copied.encoder.learn_embedding
    fixed = small(name, learn_embedding=False)
    fixed(state, task).square().sum().backward()
    assert fixed.shared["embedding"].grad is None


@pytest.mark.parametrize("name", ["mt-sac", "paco", "d2r"])
def test_other_networks_stay_as_they_are_in_an_actor(name: str) -> None:
    net = small(name)
    state, task = samples(5, torch.float32)
    before = net.eval()(state, task)
    net.become_actor()
    assert torch.equal(net(state, task), before)
    net(state, task).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.shared.values())


@pytest.mark.parametrize("name", ["brc", "scalemoe-feature"])
def test_tables_that_do_not_fit_are_said(name: str) -> None:
    with pytest.raises(TypeError, match="`embedding` must be a parameter of another network, got Tensor"):
        small(name, embedding=torch.zeros(TASKS, 3))
    with pytest.raises(ValueError, match=r"`embedding` must have shape \(3, 3\), a row for each task, got \(3, 5\)"):
        small(name, embedding=nn.Parameter(torch.zeros(TASKS, 5)))
    with pytest.raises(
        TypeError, match=r"`embedding` must have the type of the parameters torch\.float32, got torch\.f"
    ):
        small(name, embedding=nn.Parameter(torch.zeros(TASKS, 3, dtype=DOUBLE)))
    with pytest.raises(TypeError, match="`learn_embedding` must be True or False, got 1"):
        small(name, learn_embedding=1)


# ScaleMoE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("level", ["feature", "output"])
def test_one_soft_expert_is_brc(level: str, blocks: int) -> None:
    sizes = {"width": 6, "blocks": blocks, "embedding_features": 4, "dtype": DOUBLE}
    brc = ResidualMLP(STATE, TASKS, OUT, **sizes)
    moe = ScaleMoE(STATE, TASKS, OUT, level=level, num_experts=1, gate="soft", **sizes)
    stir(brc)
    names = {"blocks.": "experts.nodes.0.", "head.": "head." if level == "feature" else f"experts.nodes.0.{blocks}."}

    def renamed(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name)

    state_dict = {renamed(name): value for name, value in brc.state_dict().items()}
    missing = moe.load_state_dict(state_dict, strict=False)
    assert not missing.unexpected_keys
    assert all("router" in name for name in missing.missing_keys)

    state, task = samples(9)
    output, expected = moe(state, task), brc(state, task)
    torch.testing.assert_close(output, expected, **EXACT)
    direction = torch.randn_like(output)
    mine = dict(zip(dict(moe.named_parameters()), grads(output, moe, direction), strict=True))
    for (name, _), theirs in zip(brc.named_parameters(), grads(expected, brc, direction), strict=True):
        torch.testing.assert_close(mine[renamed(name)], theirs, **EXACT)

    moe.become_actor()  # of one expert, the exponential and the logarithm leave the limits alone
    if level == "output":
        expected = torch.cat([expected[:, :1], expected[:, 1:].clamp(-20, 2)], dim=1)
    torch.testing.assert_close(moe(state, task), expected)


@pytest.mark.parametrize("acts", [False, True], ids=["critic", "actor"])
@pytest.mark.parametrize("level", ["feature", "output"])
@pytest.mark.parametrize("gate", GATES)
def test_scalemoe_is_a_loop_over_its_experts(gate: str, level: str, acts: bool) -> None:
    net = small(f"scalemoe-{level}", num_experts=4, gate=gate, dtype=DOUBLE)
    stir(net)
    if acts:
        net.become_actor()
    state, task = samples(12)
    output, route = net(state, task, return_route=True)

    x = net.encoder(state, nn.functional.one_hot(task, TASKS).to(DOUBLE))
    scores = net.experts.router(x)[:, 0]
    chosen = route.path[:, 0]
    weights = scores.softmax(dim=-1) if gate == "hard" else scores.masked_fill(~chosen, -math.inf).softmax(dim=-1)
    merged: Tensor | float = 0.0
    for j, expert in enumerate(net.experts.nodes[:-1]):
        y = expert[:-1](x) if level == "output" else expert(x)
        if acts and level == "output":
            y = torch.cat([y[:, :1], y[:, 1:].clamp(-20, 2).exp()], dim=1)
        merged = merged + (weights * chosen)[:, j : j + 1] * y
    if level == "feature":
        merged = net.head(merged)
    elif acts:
        merged = torch.cat([merged[:, :1], merged[:, 1:].log()], dim=1)

    assert isinstance(merged, Tensor)
    assert chosen.sum(dim=-1).tolist() == [{"soft": 4, "hard": 1, "top-3": 3}.get(gate, 2)] * 12
    torch.testing.assert_close(output, merged, rtol=1e-11, atol=1e-11)
    direction = torch.randn_like(output)
    for mine, theirs in zip(grads(output, net, direction), grads(merged, net, direction), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_deviations_of_an_actor_are_limited_and_finite() -> None:
    net = small("scalemoe-output", gate="hard")
    assert isinstance(net, ScaleMoE)
    assert not net.merges_deviations
    net.become_actor()
    assert net.merges_deviations
    with torch.no_grad():
        for expert, shift in zip(net.experts.nodes[:-1], (1e3, -1e3, 0.0), strict=True):
            expert[-2].bias[-1] += shift
    state, task = samples(60, torch.float32)
    output, route = net(state, task, return_route=True)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    probability = route.weights[:, 0].max(dim=-1).values
    limits = torch.where(route.path[:, 0, 0], 2.0, -20.0) + probability.log()
    limited = ~route.path[:, 0, 2]
    assert limited.any()
    torch.testing.assert_close(output[limited, 1], limits[limited])


def test_an_actor_that_dropped_all_experts_of_a_sample_is_finite() -> None:
    net = ScaleMoE(5, 2, 4, level="output", num_experts=4, width=8, gate=TopK(2, capacity=0.5), merge_deviations=True)
    x, task = torch.randn(64, 5), torch.arange(64) % 2
    output, route = net(x, task, return_route=True)
    dropped = ~route.path.any(dim=-1).squeeze(-1)
    assert 0 < dropped.sum() < 64
    assert output.isfinite().all()
    torch.testing.assert_close(output[dropped, 2:], torch.full((int(dropped.sum()), 2), -20.0))


def test_an_actor_has_a_deviation_for_each_mean() -> None:
    net = build("scalemoe-output", STATE, TASKS, 3, num_experts=2, width=4)
    with pytest.raises(ValueError, match=r"`out_features` must be even in an actor, .* got 3"):
        net.become_actor()
    assert net.encoder.learn_embedding, "a call that is refused changes nothing"
    build("scalemoe-feature", STATE, TASKS, 3, num_experts=2, width=4).become_actor()


def test_levels_of_scalemoe_are_said() -> None:
    with pytest.raises(
        ValueError, match="`level` must be one of 'feature', 'output', got 'features'; did you mean 'fe"
    ):
        ScaleMoE(STATE, TASKS, OUT, level="features")
    with pytest.raises(ValueError, match='`merge_deviations` must be False with level="feature", whose experts put'):
        ScaleMoE(STATE, TASKS, OUT, merge_deviations=True)


# Modules with layer normalization -------------------------------------------------------------------------------------

NETS: dict[str, Callable[..., Network]] = {
    "d2r": lambda **k: small("d2r", **k),
    "d2r soft": lambda **k: small("d2r", gate="soft", **k),
    "d2r released": lambda **k: small("d2r-released", **k),
    "d2r without shortcut": lambda **k: small("d2r", shortcut=False, protect="sg", **k),
    "d2r-layer": lambda **k: small("d2r-layer", **k),
    "d2r-model": lambda **k: small("d2r-model", **k),
    "sm": lambda **k: small("sm", **k),
    "sm top-2": lambda **k: small("sm", gate="top-2", **k),
    "sm paper": lambda **k: small("sm", equations="paper", **k),
}


def body(parts: Sequence[naive.Normalized], x: Tensor) -> Tensor:
    """Linear - LN - ReLU of one layer, or what a residual block adds of two."""
    if len(parts) == 2:
        return naive.residual_body(parts, x)
    (layer, norm) = parts[0]
    return naive.relu(naive.layer_norm(norm, naive.linear(layer, x)))


def expected_of(net: Network, state: Tensor, task: int, path: list[list[bool]]) -> Tensor:
    """The network with modules of layer normalization, one sample at a time, along a path."""
    graph = net.routed
    f, h = (
        naive.perceptron(layers(net.trunk), state),
        naive.linear(layers(net.task)[0], naive.one_hot(task, TASKS, state)),
    )
    parents = [list(row) for row in graph.topology.parents]
    nodes: list[Callable[[Tensor], Tensor]] = []
    paper = isinstance(net, SoftModularization) and net.equations == "paper"
    sm = isinstance(net, SoftModularization)
    for number, (node, sources) in enumerate(zip(graph.nodes, parents, strict=True)):
        parts = normalized(node)
        if isinstance(net, DynamicDepthRouting) and net.level == "model" and number < len(parents) - 1:
            chain = [normalized(part) for part in node]

            def model(x: Tensor, chain: list[list[naive.Normalized]] = chain) -> Tensor:
                for parts in chain:
                    x = x + body(parts, x) if len(parts) == 2 else body(parts, x)
                return x

            nodes.append(model)
        elif not parts:  # the output, and the last layer of the paper's Soft Modularization
            if number == len(parents) - 1 and paper:
                nodes.append(lambda mix: mix * 2)
            else:
                layer = head(net) if number == len(parents) - 1 else layers(node)[0]
                activate = sm and not paper
                nodes.append(lambda x, layer=layer, a=activate: naive.linear(layer, naive.relu(x) if a else x))
        elif sm and not paper and len(parts) == 1 and net.module_kind == "layer-norm":
            (layer, norm), first = parts[0], not sources
            nodes.append(
                lambda x, layer=layer, norm=norm, first=first: naive.layer_norm(
                    norm, naive.linear(layer, x if first else naive.relu(x))
                )
            )
        else:
            adds = len(parts) == 2 and not graph.shortcut
            nodes.append(lambda x, parts=parts, adds=adds: x + body(parts, x) if adds else body(parts, x))
    if sm:
        router = graph.router
        embedding = f * h if paper else naive.perceptron(layers(router.embed), naive.relu(f * h))
        condition = "logits" if paper else "probabilities"
        z = naive.cascade(embedding, layers(router.down), layers(router.up), parents, condition)
        z += [[torch.zeros((), dtype=DOUBLE)] * len(parents[-1])] if paper else []
    else:
        z = oracle.split(list(naive.perceptron(layers(graph.router), f * h)), parents)
    gate = {"Soft": "soft", "TopK": "topk", "SampleK": "samplek"}[type(graph.gate).__name__]
    return naive.run(
        parents,
        nodes,
        f if paper else naive.relu(f),
        z,
        gate=gate,
        path=path,
        noise=None,
        temperature=1.0,
        training=net.training,
        sample=None,
        shortcut=graph.shortcut,
        protect=graph.protect,
    )[0]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_normalized_modules_compute_what_their_names_say(name: str, kind: str, mode: str) -> None:
    net = NETS[name](module_kind=kind, dtype=DOUBLE).train(mode == "train")
    stir(net)
    state, task = samples(6)
    output, route = net(state, task, return_route=True)
    widths = [len(parents) for parents in net.topology.parents if parents]
    paths = [[route.path[i, t, :width].tolist() for t, width in enumerate(widths)] for i in range(6)]
    expected = torch.stack([expected_of(net, state[i], int(task[i]), paths[i]) for i in range(6)])
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(output)
    for mine, theirs in zip(grads(output, net, direction), grads(expected, net, direction), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def derivatives(net: Network, state: Tensor, task: Tensor, path: Tensor) -> list[Tensor]:
    """The output, its gradients, and the gradients of their squares."""
    output = net(state, task, path=path)
    parameters = list(net.parameters())
    first = torch.autograd.grad(
        output.sin().sum(), parameters, create_graph=True, materialize_grads=True, allow_unused=True
    )
    squares = sum(gradient.square().sum() for gradient in first)
    assert isinstance(squares, Tensor)
    second = torch.autograd.grad(squares, parameters, materialize_grads=True, allow_unused=True)
    return [output, *first, *second]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NETS, "scalemoe-feature", "scalemoe-output"])
def test_backends_agree_on_normalized_modules(name: str, kind: str) -> None:
    made = {"module_kind": kind} if name in NETS else {"gate": "top-2" if kind == "residual" else "soft"}
    net = NETS[name](dtype=DOUBLE, **made) if name in NETS else small(name, dtype=DOUBLE, **made)
    stir(net)
    state, task = samples(40)
    with torch.no_grad():
        path = net(state, task, return_route=True)[1].path
    with dynroute.backend("reference"):
        expected = derivatives(net, state, task, path)
    for backend in ("sparse", "auto"):
        with dynroute.backend(backend):
            for mine, theirs in zip(derivatives(net, state, task, path), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    with dynroute.backend("fused"), pytest.raises(ValueError, match=r'"fused" cannot: .*; "auto" can'):
        net(state, task)
    with torch.no_grad(), dynroute.backend("skip"):
        torch.testing.assert_close(net.eval()(state, task, path=path), expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [*NETS, "scalemoe-feature", "scalemoe-output"])
def test_products_of_16_bits_with_normalized_modules(name: str) -> None:
    torch.manual_seed(1)
    net = NETS[name](module_kind="residual") if name in NETS else small(name)
    state, task = samples(40, torch.float32)
    route = net(state, task, return_route=True)[1]
    expected = net(state, task, path=route)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(state, task, path=route)
    output.float().square().sum().backward()
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", NETS)
def test_modules_stay_linear_unless_told(name: str) -> None:
    torch.manual_seed(3)
    usual = NETS[name]()
    torch.manual_seed(3)
    told = NETS[name](module_kind="linear")
    assert usual.state_dict().keys() == told.state_dict().keys()
    assert all(torch.equal(told.state_dict()[key], value) for key, value in usual.state_dict().items())
    assert not any(isinstance(part, nn.LayerNorm) for part in usual.modules())


def test_a_residual_module_adds_its_input_once() -> None:
    """With what modules compute at zero, the sum of a graph with its own shortcut is what it reads."""
    for net in (
        small("d2r", module_kind="residual"),
        small("d2r", module_kind="residual", shortcut=False, protect="sg"),
    ):
        first, *others = net.routed.nodes[:-1]
        with torch.no_grad():
            for parameter in [p for node in others for p in node.parameters()]:
                parameter.zero_()
        state, task = samples(20, torch.float32)
        features = first(net.trunk(state).relu())
        torch.testing.assert_close(net(state, task), net.routed.nodes[-1](features))


def test_kinds_of_modules_are_said() -> None:
    for name in ("d2r", "sm"):
        with pytest.raises(
            ValueError, match="`module_kind` must be one of 'linear', 'layer-norm', 'residual', got 'block"
        ):
            small(name, module_kind="block")


def test_residual_modules_are_drawn_as_those_of_brc() -> None:
    net = small("d2r", module_kind="residual", width=16, output_init=3e-3)
    for node in net.routed.nodes[1:-1]:
        for layer, norm in pairwise(part for part in node.modules() if isinstance(part, (nn.Linear, nn.LayerNorm))):
            if isinstance(layer, nn.Linear) and isinstance(norm, nn.LayerNorm):
                weight = layer.weight.detach()
                torch.testing.assert_close(weight @ weight.mT, 2 * torch.eye(16), rtol=0, atol=1e-5)
