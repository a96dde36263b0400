"""The contract of every network of the registry, and of a network that a user wrote."""

import copy
import io
import json
import pickle

import pytest
import torch
from small_networks import OUT, SMALL, STATE, TASKS, small
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dynroute import OutputRouting, Route, networks
from dynroute.functional import gumbel_noise
from dynroute.networks import HardRouting, MultiHead, MultiTaskMLP, Network, PaCo, build

SHAPES = [(), (1,), (7,), (2, 3), (0,)]


def samples(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, STATE), torch.randint(TASKS, shape)


class Own(Network):
    """A network that a user wrote."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int, *, width: int = 4) -> None:
        super().__init__(state_features, num_tasks, out_features)
        self.layers = nn.Sequential(nn.Linear(state_features + num_tasks, width), nn.Linear(width, out_features))

    def compute(self, state: Tensor, task: Tensor, **routing: object) -> tuple[Tensor, None]:
        return self.layers(torch.cat([state, task], dim=-1)), None


@pytest.fixture(params=[*SMALL, "own"])
def net(request: pytest.FixtureRequest) -> Network:
    if request.param == "own":  # what stands in for a name
        own = build(Own, STATE, TASKS, OUT, width=9)
        assert isinstance(own, Own)
        return own
    return small(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_batch_shape(net: Network, shape: tuple[int, ...]) -> None:
    state, task = samples(*shape)
    output, route = net(state, task, return_route=True)
    assert output.shape == (*shape, OUT)
    assert output.isfinite().all()
    if net.topology is None:
        assert route is None
    else:
        assert isinstance(route, Route)
        assert route.path.shape == (*shape, *net.topology.path_shape)
    assert net(state, task, sample=False).shape == (*shape, OUT)


def test_ids_and_one_hots_are_the_same_task(net: Network) -> None:
    state, task = samples(9)
    one_hot = nn.functional.one_hot(task, TASKS)
    expected = net.eval()(state, task)
    for given in (task.int(), one_hot.float(), one_hot.double(), one_hot.bool()):
        assert torch.equal(net(state, given), expected)


def test_samples_do_not_see_each_other(net: Network) -> None:
    state, task = samples(40)
    whole = net.eval()(state, task)
    order = torch.randperm(40)
    torch.testing.assert_close(net(state[order], task[order]), whole[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(state[:1], task[:1]), whole[:1], rtol=1e-5, atol=1e-6)
    state[1:] += 1.0
    torch.testing.assert_close(net(state, task)[:1], whole[:1], rtol=1e-5, atol=1e-6)


def test_training_and_evaluation_give_one_value_for_one_path(net: Network) -> None:
    state, task = samples(30)
    output, route = net(state, task, return_route=True)
    torch.testing.assert_close(net.eval()(state, task, path=route), output)


def test_a_recorded_path_is_replayed(net: Network) -> None:
    state, task = samples(30)
    output, route = net(state, task, return_route=True)
    if route is None:
        assert torch.equal(net(state, task, path=torch.ones(1)), output)
        return
    again, replayed = net(state, task, path=route.path, return_route=True)
    assert torch.equal(replayed.path, route.path)
    torch.testing.assert_close(again, output)


def test_a_generator_decides_every_draw(net: Network) -> None:
    state, task = samples(50)
    first, second, other = (
        net(state, task, sample=True, temperature=3.0, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    draws = net.routed is not None and "SampleK" in repr(net.routed.gate)
    assert torch.equal(first, other) != draws


def test_every_parameter_learns(net: Network) -> None:
    for _ in range(20):
        if net.routed is not None:  # some modules suit no sample, or no task, before the routing has learned
            for parameter in net.routed.router.parameters():
                nn.init.normal_(parameter)
        state, task = samples(100)
        net(5 * state, task, temperature=5.0).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_copies_and_state_dicts(net: Network) -> None:
    state, task = samples(20)
    expected = net.eval()(state, task)
    stream = io.BytesIO()
    torch.save(net.state_dict(), stream)
    stream.seek(0)
    fresh = copy.deepcopy(net)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert torch.equal(twin(state, task), expected)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.slow
def test_compile_in_one_graph(net: Network) -> None:
    torch.compiler.reset()
    state, task = samples(6)
    noise = None if net.topology is None else gumbel_noise((6, *net.topology.path_shape))
    compiled = torch.compile(net, fullgraph=True, backend="eager")  # those of each kind learn compiled in test_device
    torch.testing.assert_close(compiled(state, task, noise=noise), net(state, task, noise=noise))


def test_double_and_half(net: Network) -> None:
    state, task = samples(20)
    assert net.double()(state.double(), task).dtype == torch.float64
    assert net.bfloat16()(state.bfloat16(), task).dtype == torch.bfloat16


def test_repr_and_description_say_what_it_is(net: Network) -> None:
    count = sum(p.numel() for p in net.parameters())
    assert net.describe().startswith(type(net).__name__)
    assert f": {count:,} parameters, " in net.describe()
    assert net.describe() in repr(net)
    edges = "no learned routes" if net.topology is None else f"{net.topology.num_edges} routed edges"
    assert edges in net.describe()


def test_networks_take_the_noise_of_a_router() -> None:
    net = small("d2r", gate="top-2")
    net.graph.router.noise = 5.0
    state, task = torch.randn(40, STATE), torch.arange(40) % TASKS
    drawn = net.graph.router.draw_noise(torch.zeros(40, net.graph.router.context_features))
    assert torch.equal(net(state, task, router_noise=drawn), net(state, task, router_noise=drawn))
    assert not torch.equal(net(state, task, router_noise=drawn), net(state, task))
    heads = OutputRouting([nn.Linear(5, 2) for _ in range(3)])
    x, task = torch.randn(7, 5), torch.arange(7) % 3
    assert torch.equal(heads(x, task, router_noise=None), heads(x, task))
    for name in SMALL:
        small(name)(torch.randn(7, STATE), torch.arange(7) % TASKS, router_noise=None)


def test_the_keywords_of_all_presets_are_plain_data() -> None:
    for name, preset in networks.PRESETS.items():
        assert json.loads(json.dumps(dict(preset.sizes))).keys() == preset.sizes.keys()
        assert preset.summary
        assert name.islower()


# Leaks ----------------------------------------------------------------------------------------------------------------


def test_a_head_learns_from_its_task_alone() -> None:
    net = small("mh-sac")
    assert isinstance(net, MultiHead)
    for task in range(TASKS):
        net.zero_grad()
        net(torch.randn(20, STATE), torch.full((20,), task)).square().sum().backward()
        for i in range(TASKS):
            assert bool(net.heads.nodes[i].weight.grad.any()) == (i == task)


def test_a_task_of_hard_routing_touches_its_path_alone() -> None:
    net = small("hard")
    assert isinstance(net, HardRouting)
    for task in range(TASKS):
        net.zero_grad()
        output, route = net(torch.randn(40, STATE), torch.full((40,), task), return_route=True)
        output.square().sum().backward()
        used = net.topology.used(route.path[0])
        assert used.sum() == 3  # one module of both layers, and the output
        for node, on_path in zip(net.routed.nodes, used.tolist(), strict=True):
            touched = any(p.grad is not None and bool(p.grad.any()) for p in node.parameters())
            assert touched == on_path
        rows = net.routed.router.table.grad.any(dim=1)
        assert rows.tolist() == [i == task for i in range(TASKS)]


# PaCo -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", [[0] * 8, [0, 1, 2] * 4, [2, 2, 0, 1, 1, 2, 0, 2, 1], [1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]], ids=str
)
def test_paco_grouped_by_task_is_paco_sample_by_sample(task: list[int]) -> None:
    net = small("paco", num_sets=4, dtype=torch.float64)
    state, ids = torch.randn(len(task), STATE, dtype=torch.float64), torch.tensor(task)
    output = net(state, ids)
    one_by_one = torch.stack([net(state[i], ids[i]) for i in range(len(task))])
    torch.testing.assert_close(output, one_by_one, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(output)
    parameters = list(net.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(output, parameters, direction),
        torch.autograd.grad(one_by_one, parameters, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_paco_under_vmap_is_paco() -> None:
    net = small("paco")
    state, task = samples(9)
    one_hot = nn.functional.one_hot(task, TASKS).float()
    torch.testing.assert_close(torch.func.vmap(net)(state, one_hot), net(state, task))


def test_paco_starts_with_copies_of_one_set() -> None:
    net = small("paco", num_sets=3)
    for layer in net.layers:
        assert torch.equal(layer.weight[0], layer.weight[2])
        assert torch.equal(layer.bias[0], layer.bias[1])
    assert 0.5 < build("paco", STATE, 500, OUT).composition.std() < 1.5


def test_two_networks_share_one_table() -> None:
    actor = small("paco")
    critic = build("paco", STATE + 1, TASKS, 1, num_sets=2, hidden_sizes=(5,), **actor.shared)
    assert isinstance(actor, PaCo)
    assert critic.composition is actor.composition
    critic(torch.randn(5, STATE + 1), torch.arange(5) % TASKS).sum().backward()
    assert actor.composition.grad is not None
    assert not small("d2r").shared


def test_a_row_becomes_a_convex_combination_of_others() -> None:
    net = build("paco", STATE, 5, OUT, num_sets=2)
    assert isinstance(net, PaCo)
    before = net.composition.detach().clone()
    extreme = torch.tensor([False, True, False, True, False])
    shares = net.reinitialize(extreme, generator=torch.Generator().manual_seed(0))
    assert (shares[:, extreme] == 0).all()
    assert (shares[:, ~extreme] > 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(net.composition[extreme], shares[extreme] @ before)
    assert torch.equal(net.composition[~extreme], before[~extreme])
    assert not torch.equal(net.composition[1], net.composition[3])
    assert net.composition.requires_grad


def test_a_table_stays_where_every_task_or_none_is_extreme() -> None:
    net = build("paco", STATE, 5, OUT, num_sets=2)
    assert isinstance(net, PaCo)
    before = net.composition.detach().clone()
    net.reinitialize(torch.ones(5, dtype=torch.bool))
    net.reinitialize(torch.zeros(5, dtype=torch.bool))
    assert torch.equal(net.composition, before)
    with pytest.raises(ValueError, match=r"`extreme` must be boolean with shape \(5,\).* got torch.int64 with shape"):
        net.reinitialize(torch.tensor(1))


def test_a_diverged_row_is_repaired() -> None:
    net = build("paco", STATE, 4, OUT, num_sets=2)
    net.composition.data[1], net.composition.data[2] = torch.nan, torch.inf
    net.reinitialize(torch.tensor([False, True, True, False]))
    assert net.composition.isfinite().all()


def test_attention_is_computed_in_float32_under_autocast() -> None:
    for attention in ("gate", "dot"):
        net = small("care", attention=attention)
        state, task = samples(20)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert net(state, task, return_route=True)[1].logits.dtype == torch.float32
            seen: list[torch.dtype] = []
            net.mixture.router.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].dtype))
            net(state, task)
        assert seen == [torch.float32]


def test_jacobians_of_samples(net: Network) -> None:
    state, task = samples(4)
    one_hot = nn.functional.one_hot(task, TASKS).float()
    net.eval()
    jacobians = torch.func.vmap(torch.func.jacrev(lambda s, t: net(s, t)))(state, one_hot)
    state.requires_grad_()
    rows = [torch.autograd.grad(net(state, task)[:, i].sum(), state)[0] for i in range(OUT)]
    torch.testing.assert_close(jacobians, torch.stack(rows, dim=1), rtol=1e-4, atol=1e-6)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_said(net: Network) -> None:
    state, task = samples(4)
    with pytest.raises(ValueError, match=r"it still carries the one-hot of the task: pass `state\[\.\.\., :3\]`"):
        net(torch.randn(4, STATE + TASKS), task)
    with pytest.raises(ValueError, match=r"`state` must have shape \(\*, 3\), got \(4, 2\)\."):
        net(torch.randn(4, 2), task)
    with pytest.raises(TypeError, match=r"`state` must be a floating tensor, got torch\.int64"):
        net(torch.ones(4, STATE, dtype=torch.long), task)
    with pytest.raises(ValueError, match=r"`task` must have shape \(\*, 3\) as a one-hot, got \(4, 2\)"):
        net(state, torch.eye(4)[:, :2])
    with pytest.raises(ValueError, match=r"`task` must be in 0\.\.2, got 3 at index \(0,\)"):
        net(state, torch.full((4,), 3))
    with pytest.raises(ValueError, match="`task` must have exactly one 1 in every row of a one-hot"):
        net(state, torch.zeros(4, TASKS))
    with pytest.raises(
        ValueError, match=r"`task` must name one task for each state, got task \(3,\) and state \(4, 3\)"
    ):
        net(state, task[:3])


@pytest.mark.parametrize("name", SMALL)
def test_sizes_that_cannot_work_are_said(name: str) -> None:
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        build(name, STATE, 0, OUT)
    for key in SMALL[name]:
        if key.endswith("sizes"):
            with pytest.raises(ValueError, match=rf"`{key}\[1\]` must be at least 1, got 0"):
                small(name, **{key: (4, 0)})
            with pytest.raises(TypeError, match=rf"`{key}` must list sizes, got 400"):
                small(name, **{key: 400})
        else:
            with pytest.raises(ValueError, match=rf"`{key}` must be at least [01], got -1"):
                small(name, **{key: -1})


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("mh-sac", {"hidden_sizes": ()}, r"`hidden_sizes` must list at least one size, got \[\]"),
        ("sm", {"equations": "release"}, "`equations` must be one of 'released', 'paper', got 'release'; did"),
        ("sm", {"equations": "paper", "gate": "top-2"}, "whose output is a plain sum, got TopK"),
        ("d2r", {"level": "modules"}, "`level` must be one of 'module', 'layer', 'model', got 'modules'"),
        ("d2r", {"layer_sizes": (2, 2)}, r'`layer_sizes` belongs to level="layer", got \(2, 2\) with level="module"'),
        ("d2r-layer", {"num_modules": 4}, '`num_modules` belongs to level="module", got 4 with level="layer"'),
        ("d2r-model", {"shortcut": True}, '`shortcut` must be False or None with level="model"'),
        ("d2r", {"gate": "ten"}, '`gate` must be a Gate or one of "soft", "hard", "top-2", .* got \'ten\'\\.'),
        ("d2r", {"gate": "topk-3"}, "got 'topk-3'; did you mean \"top-3\"?"),
        ("d2r", {"gate": "topk"}, "got 'topk'; did you mean \"top-2\"?"),
        *(
            ("d2r", {"gate": f"top-{k}"}, f"`gate` must read at least 2 sources .*, got 'top-{k}'; try \"hard\"")
            for k in (0, 1)
        ),
        ("d2r", {"modules": 4}, "`modules` is not a keyword of the network d2r; did you mean `num_modules`"),
        ("care", {"attention": "none"}, "`attention` must be one of 'gate', 'dot', got 'none'"),
        ("care", {"attention": "dot", "context_sizes": (5, 3)}, 'must end alike for attention="dot", got 4 and 3'),
        ("care", {"metadata": torch.zeros(4, 9)}, r"`metadata` must have shape \(3, m\), .* got \(4, 9\)"),
        (
            "paco",
            {"composition": nn.Parameter(torch.zeros(3, 5))},
            r"`composition` must have shape \(3, 2\), .* got \(3, 5\)",
        ),
    ],
)
def test_wrong_options_are_said(name: str, sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **sizes)


def test_wrong_types_are_said() -> None:
    with pytest.raises(TypeError, match=r"`metadata` must be a tensor, got list; torch\.as_tensor makes one"):
        small("care", metadata=[[1.0]] * TASKS)
    with pytest.raises(TypeError, match="`composition` must be a parameter of another network, got Tensor"):
        small("paco", composition=torch.zeros(TASKS, 2))
    with pytest.raises(
        TypeError, match=r"`composition` must have the type of the parameters torch\.float32, got torch\.float64"
    ):
        small("paco", composition=nn.Parameter(torch.zeros(TASKS, 2, dtype=torch.float64)))


def test_metadata_of_any_type_becomes_that_of_the_parameters() -> None:
    for metadata in (torch.randn(TASKS, 9, dtype=torch.float64), torch.randint(5, (TASKS, 9))):
        net = small("care", metadata=metadata)
        assert net.metadata.dtype == torch.float32
        assert net(*samples(4)).shape == (4, OUT)


def test_networks_under_fake_tensors_and_another_default_device() -> None:
    for name in SMALL:
        with FakeTensorMode():
            net = small(name)
            assert net(torch.randn(6, STATE), torch.arange(6) % TASKS).shape == (6, OUT)
        with torch.device("meta"):
            net = small(name)
            assert net(torch.randn(6, STATE), torch.arange(6) % TASKS).shape == (6, OUT)
    net = small("paco")
    state, task = samples(6)
    with torch.device("meta"):
        assert net(state, task).isfinite().all()


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"`name` must be one of 'mt-sac', .* got 'd2r-release'; did you mean 'd2r-released'\?"
    ):
        build("d2r-release", STATE, TASKS, OUT)
    with pytest.raises(ValueError, match=r"got 'xyz'\.$"):
        build("xyz", STATE, TASKS, OUT)


def test_the_task_of_a_plain_perceptron_matters() -> None:
    net = small("mt-sac")
    assert isinstance(net, MultiTaskMLP)
    state = torch.randn(1, STATE)
    assert not torch.equal(net(state, torch.tensor([0])), net(state, torch.tensor([1])))
