"""Dormant units and effective ranks of examples made by hand, and of networks that were crippled on purpose."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import SMALL, STATE, TASKS, small
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from dynroute import LinearRouter, MLPRouter, ModelRouting, TopK, Topology, inspect, networks
from dynroute.plasticity import Plasticity, dormant_units, effective_rank, measure
from dynroute_sb3 import MultiTaskSAC, PlasticityLogger, callbacks, critic_plasticity, point_tasks
from dynroute_sb3.randomness import random_state


def test_dormant_units_of_a_layer_by_hand() -> None:
    # Means of absolute values 4, 0, 1, 0.05 and their mean 1.2625: scores 3.17, 0, 0.79, 0.0396.
    layer = torch.tensor([[-4.0, 0.0, 0.0, 0.1], [4.0, 0.0, 2.0, 0.0]])
    assert dormant_units(layer).tolist() == [False, True, False, False]
    assert dormant_units(layer, tau=0.04).tolist() == [False, True, False, True]
    assert dormant_units(layer, tau=0.0).tolist() == [False, True, False, False]
    assert dormant_units(layer, tau=1.0).tolist() == [False, True, True, True]
    assert dormant_units(torch.zeros(3, 2)).tolist() == [True, True]
    assert dormant_units(layer.reshape(1, 2, 4)).tolist() == dormant_units(layer).tolist()
    assert dormant_units(layer.bfloat16()).tolist() == dormant_units(layer).tolist()


@given(scale=st.floats(1e-3, 1e3), tau=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_dormant_units_do_not_hang_on_the_scale_of_a_layer(scale: float, tau: float, seed: int) -> None:
    layer = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).relu()
    scores = [float(layer[:, i].mean() / layer.mean()) for i in range(5)]
    if min(abs(score - tau) for score in scores) > 1e-9 or tau == 0:
        assert dormant_units(layer, tau=tau).tolist() == [score <= tau for score in scores]
        assert torch.equal(dormant_units(scale * layer, tau=tau), dormant_units(layer, tau=tau))


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.99, 4),
        ([1.0, 1.0, 1.0, 1.0], 0.75, 3),
        ([1.0, 1.0, 1.0, 1.0], 0.74, 3),
        ([98.0, 1.0, 0.5, 0.5], 0.99, 2),
        ([99.0, 0.5, 0.5, 0.0], 0.99, 1),
        ([3.0, 0.0, 0.0, 0.0], 1.0, 1),
        ([3.0, 2.0, 1e-3, 0.0], 1.0, 3),
        ([0.0, 0.0, 0.0, 0.0], 0.99, 0),
    ],
)
def test_effective_ranks_by_hand(values: list[float], share: float, rank: int) -> None:
    left, right = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64)).Q for n in (9, 6))
    features = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT
    assert effective_rank(torch.diag(torch.tensor(values)), share=share) == rank
    if share not in (0.75, 0.99) or len(set(values)) > 1:  # on the edge rounding decides
        assert effective_rank(features + 0.0, share=share - 1e-9) == rank


@given(rank=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_product_of_thin_matrices_has_their_rank(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, rank, dtype=torch.float64, generator=generator) for n in (12, 7))
    assert effective_rank(first @ second.mT, share=1 - 1e-12) == rank


def test_units_that_are_not_finite_are_refused_and_measured_as_nan() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^`activations` must be finite, but some are not; did"):
            dormant_units(torch.tensor([[1.0, bad], [2.0, 0.0]]))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[2].bias[1] = math.nan
    measures = measure(net, torch.randn(9, 3))
    assert math.isnan(measures.dormant)
    assert not math.isnan(measures.layers["1"])
    assert math.isnan(measures.layers["3"])


def test_features_that_are_not_finite_have_no_rank() -> None:
    assert effective_rank(torch.tensor([[1.0, math.nan]])) == 0


def test_wrong_arguments_are_said() -> None:
    with pytest.raises(
        ValueError, match=r"`activations` must be a floating tensor with shape \(\*, n\), .* got torch.int"
    ):
        dormant_units(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`features` must be a floating tensor .* with shape \(3,\)"):
        effective_rank(torch.ones(3))
    with pytest.raises(TypeError, match="`activations` must be a tensor, got list"):
        dormant_units([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`tau` must be at least 0, got -1"):
        dormant_units(torch.ones(2, 2), tau=-1)
    with pytest.raises(ValueError, match=r"`share` must be at most 1, got 99"):
        effective_rank(torch.ones(2, 2), share=99)
    with pytest.raises(TypeError, match="`net` must be a module, got 3"):
        measure(3)  # type: ignore[arg-type]


# Networks -------------------------------------------------------------------------------------------------------------


def samples(count: int = 60) -> tuple[Tensor, Tensor]:
    return torch.randn(count, STATE), torch.arange(count) % TASKS


def test_units_that_were_killed_are_found() -> None:
    net = networks.build("brc", STATE, TASKS, 2, width=200, blocks=2)
    state, task = samples(400)
    before = measure(net, state, task)
    assert before.dormant < 0.05
    assert list(before.layers) == ["encoder.layer.2", "blocks.0.body.2", "blocks.1.body.2"]
    assert (before.features, before.rank > 20) == (200, True)
    with torch.no_grad():
        norm = net.blocks[1].body[1]
        norm.weight[:50], norm.bias[:50] = 0.0, -1.0
    after = measure(net, state, task)
    assert 0.25 <= after.layers["blocks.1.body.2"] <= 0.25 + before.layers["blocks.1.body.2"] + 0.05
    assert after.dormant == pytest.approx(np.mean(list(after.layers.values())))
    with torch.no_grad():
        net.encoder.layer[1].weight.zero_()
        net.encoder.layer[1].bias.fill_(-1.0)
    after = measure(net, state, task)
    assert after.layers["encoder.layer.2"] == 1.0
    assert after.rank == 0  # nothing passes any more
    assert not any(part._forward_hooks for part in net.modules())


def test_features_are_those_that_the_output_layers_read() -> None:
    state, task = samples()
    net = networks.build("mt-sac", STATE, TASKS, 2, hidden_sizes=(7, 5))
    with torch.no_grad():
        features = net.layers[:-1](torch.cat([state, torch.eye(TASKS)[task]], dim=-1))
    found = measure(net, state, task)
    assert (found.features, found.rank) == (5, effective_rank(features))
    assert measure(networks.build("mh-sac", STATE, TASKS, 2, hidden_sizes=(7, 5)), state, task).features == 5
    assert measure(small("scalemoe-output", num_experts=3, width=5), state, task).features == 15
    assert measure(small("scalemoe-feature", num_experts=3, width=5), state, task).features == 5
    plain = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    assert measure(plain, state).features == 6
    units = plain[:2](state)
    for tau, share in ((0.025, 0.99), (0.9, 0.99), (0.025, 0.5)):
        found = measure(plain, state, tau=tau, share=share)
        assert found.dormant == pytest.approx(float(dormant_units(units, tau=tau).float().mean()))
        assert found.rank == effective_rank(units, share=share)
    nothing = measure(nn.Identity(), state)
    assert (nothing.features, nothing.rank, nothing.layers, nothing.flow) == (0, 0, {}, {})
    assert math.isnan(nothing.dormant)


def test_the_channels_of_a_convolution_are_its_units() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(8 * 25, 6), nn.ReLU()
    )
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[:4] = 0.0  # half of the channels are zero
    measures = measure(net, torch.randn(20, 3, 7, 7))
    assert measures.layers["2"] == 0.5
    assert measures.layers["4"] == 0.5
    assert measures.layers["6"] < 0.5
    total = 8 + 8 * 25 + 6
    assert measures.dormant * total == pytest.approx(4 + 4 * 25 + 6 * measures.layers["6"])

    tokens = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Linear(5, 6), nn.ReLU())  # a linear layer reads the last dimension
    assert measure(tokens, torch.randn(20, 3, 7)).layers["2"] in [i / 6 for i in range(7)]


def test_the_input_of_a_router_is_no_feature() -> None:
    net = ModelRouting([nn.Linear(5, 3) for _ in range(3)], TopK(2), LinearRouter(9, Topology.parallel(3)))
    net.out_features = 3  # as many as the router has logits
    assert measure(net, torch.randn(50, 5), torch.randn(50, 9)).features == 5


def test_the_layers_of_a_router_of_ones_own_are_no_layers_of_the_network() -> None:
    topology = Topology.parallel(3)
    own = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3), nn.Unflatten(-1, (1, 3)))
    for router in (own, MLPRouter(9, topology, (16,))):
        experts = [nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(3)]
        net = ModelRouting(experts, TopK(2), router)
        net.out_features = 3  # as many as the router has logits
        found = measure(net, torch.randn(50, 5), torch.randn(50, 9))
        assert list(found.layers) == ["nodes.0.1", "nodes.1.1", "nodes.2.1"]
        assert found.features == 24


def test_a_module_that_is_called_again_is_another_layer() -> None:
    same = nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 6), same, nn.Linear(6, 4), same, nn.Linear(4, 2))
    layers = measure(net, torch.randn(50, 3)).layers
    assert list(layers) == ["1", "1 (2)"]


class InPlace(nn.Module):
    """Changes its activations and its features in place after they were computed."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        h = h.add_(100.0) if self.in_place else h + 100.0
        y: Tensor = self.last(h)
        h = h.zero_() if self.in_place else h * 0
        return y + h[..., :2]


def test_what_changes_in_place_later_is_measured_as_it_was() -> None:
    net, twin = InPlace(True), InPlace(False)
    with torch.no_grad():
        net.first.bias[:4] = -100.0
    twin.load_state_dict(net.state_dict())
    x = torch.randn(32, 5)
    found, expected = measure(net, x), measure(twin, x)
    assert found == expected
    assert found.layers["act"] >= 0.5
    assert found.rank > 0


@pytest.mark.parametrize("name", SMALL)
def test_every_network_can_be_measured(name: str) -> None:
    net = small(name).eval()
    state, task = samples()
    expected = net(state, task)
    found = measure(net, state, task, sample=False)
    assert torch.equal(net(state, task), expected)
    assert found.rank > 0
    assert bool(found.layers) == (name != "paco")
    if name == "mh-sac":  # its heads are the sources of a task's route
        (flow,) = found.flow.values()
        shares = task.bincount() / len(task)
        torch.testing.assert_close(flow, torch.cat([shares, torch.ones(1)]))  # the last is the output
        return
    if net.routed is None:
        assert found.flow == {}
        return
    (flow,) = found.flow.values()
    route = net(state, task, return_route=True)[1]
    torch.testing.assert_close(flow, inspect.flow(net.topology, route).mean(dim=0))


class Calls(nn.Module):
    """Counts its calls by a buffer that is new each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


def test_a_measured_network_has_the_buffers_that_it_had() -> None:
    mixture = ModelRouting.ffn(6, 8, 4, TopK(2, capacity=0.5))
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), Calls(), mixture)
    mixture.gate.dropped.fill_(7)
    buffers = dict(net.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked", "3.calls", "4.gate.dropped"} <= before.keys()
    for _ in range(2):
        measure(net.train(), torch.randn(32, 5))
        for name, buffer in net.named_buffers():
            assert buffer is buffers[name]
            assert torch.equal(buffer, before[name])
        with pytest.raises(RuntimeError):
            measure(net, torch.randn(32, 4))


def test_a_trunk_that_a_router_shares_is_measured() -> None:
    trunk = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    router = nn.Sequential(trunk, nn.Linear(6, 3), nn.Unflatten(-1, (1, 3)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self.routed = ModelRouting([nn.Linear(6, 2) for _ in range(3)], TopK(2), router)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.routed(self.trunk(x), x)

    assert set(measure(Net(), torch.randn(50, 4)).layers) == {"trunk.1", "trunk.1 (2)"}


def test_networks_with_parts_that_are_compiled_or_not_yet_made_are_measured() -> None:
    scripted = torch.jit.trace(nn.Linear(5, 5), torch.ones(1, 5))
    lazy = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(6, 2))
    assert list(measure(nn.Sequential(scripted, nn.ReLU(), nn.Linear(5, 2)), torch.randn(9, 5)).layers) == ["1"]
    assert list(measure(lazy, torch.randn(9, 5)).layers) == ["2"]


def test_an_expert_that_nobody_chooses_has_no_flow() -> None:
    net = ModelRouting.mlp(4, 8, 3, 2, gate=TopK(2), router_sizes=())
    with torch.no_grad():
        net.router.layers[0].bias[1] = -100.0
    found = measure(net, torch.randn(50, 4))
    (flow,) = found.flow.values()
    assert flow[1] == 0
    torch.testing.assert_close(flow[[0, 2]].sum(), torch.tensor(1.0))


class Tokens(nn.Module):
    """Pools what a layer of tokens computes, which is as wide as the output."""

    out_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.last = nn.Linear(5, 8), nn.Linear(6, 8)
        self.route = ModelRouting([nn.Linear(8, 6) for _ in range(3)], TopK(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(input=x)
        y: Tensor = self.last(input=self.route(h).mean(1) + self.route(h.mean(1)))
        return y


def test_layers_of_tokens_are_no_output_layers() -> None:
    net, x = Tokens(), torch.randn(4, 7, 5)
    found = measure(net, x)
    with torch.no_grad():
        h = net.tokens(x)
        features = net.route(h).mean(1) + net.route(h.mean(1))
    assert (found.features, found.rank) == (6, effective_rank(features))
    routes = [net.route.route(context) for context in (h, h.mean(1))]
    flows = torch.cat([inspect.flow(net.route.topology, route).flatten(0, -2) for route in routes])
    torch.testing.assert_close(found.flow["route"], flows.mean(dim=0))


# Critics --------------------------------------------------------------------------------------------------------------


def make(policy: str) -> MultiTaskSAC:
    sizes = {"BRCPolicy": {"width": 16}, "D2RPolicy": {"num_modules": 3, "width": 8, "trunk_sizes": (8,)}}
    kwargs = {"network_kwargs": sizes.get(policy, {"width": 8, "num_experts": 3})}
    model = MultiTaskSAC(
        policy,
        DummyVecEnv(point_tasks()),
        policy_kwargs=kwargs,
        learning_starts=40,
        batch_size=16,
        seed=0,
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    return model


@pytest.mark.parametrize("policy", ["BRCPolicy", "D2RPolicy", "ScaleMoEPolicy"])
def test_critics_are_measured_and_nothing_changes(policy: str) -> None:
    model = make(policy).learn(60)
    before, mode = random_state(), model.critic.training
    first, second = critic_plasticity(model, 128)
    assert 0 <= first.dormant <= 1
    assert 0 < first.rank <= first.features == (16 if policy == "BRCPolicy" else 8)
    assert second.features == first.features
    assert bool(first.flow) == (policy != "BRCPolicy")
    assert critic_plasticity(model, 128, tau=1.0)[0].dormant > first.dormant  # of the same transitions
    assert critic_plasticity(model, 128, share=0.5)[0].rank < first.rank
    after = random_state()
    assert all(np.array_equal(a, b) for a, b in zip(before["numpy"], after["numpy"], strict=True))
    assert torch.equal(before["torch"], after["torch"])
    assert model.critic.training == mode


def test_a_model_without_transitions_is_said() -> None:
    with pytest.raises(ValueError, match="`model` must have transitions in its replay buffer, got none"):
        critic_plasticity(make("BRCPolicy"))


def test_logging_does_not_change_training() -> None:
    plain, watched = make("ScaleMoEPolicy").learn(120), make("ScaleMoEPolicy")
    watched.learn(120, callback=PlasticityLogger(40, 32))
    values = watched.logger.name_to_value
    assert {name for name in values if name.startswith("plasticity/")} == {
        "plasticity/dormant",
        "plasticity/rank",
        *(f"plasticity/flow_{critic}_{node}" for critic in range(2) for node in range(3)),
    }
    for critic in range(2):
        assert sum(values[f"plasticity/flow_{critic}_{node}"] for node in range(3)) == pytest.approx(1)
    for mine, theirs in zip(watched.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for option in ({"every": 0}, {"every": 1, "batch_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            PlasticityLogger(**option)
    for option in ({"every": 20.5}, {"every": True}, {"every": 1, "batch_size": "a"}):
        with pytest.raises(TypeError, match="must be an integer, got"):
            PlasticityLogger(**option)


def test_the_means_of_the_critics_are_logged_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    critics = [
        Plasticity(dormant=0.0, layers={}, rank=3, features=8, flow={"": torch.tensor([0.25, 0.75, 1.0])}),
        Plasticity(dormant=0.5, layers={}, rank=6, features=8, flow={"": torch.tensor([0.5, 0.5, 1.0])}),
    ]
    calls = []

    def measured(model: MultiTaskSAC, batch_size: int) -> list[Plasticity]:
        calls.append((model.num_timesteps, batch_size))
        return critics

    monkeypatch.setattr(callbacks, "critic_plasticity", measured)
    model = make("BRCPolicy").learn(100, callback=PlasticityLogger(24, 32))
    assert calls == [(44, 32), (68, 32), (92, 32)]  # the first after the first update
    logged = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("plasticity/")}
    assert logged == {
        "plasticity/dormant": 0.25,
        "plasticity/rank": 4.5,
        "plasticity/flow_0_0": 0.25,
        "plasticity/flow_0_1": 0.75,
        "plasticity/flow_1_0": 0.5,
        "plasticity/flow_1_1": 0.5,
    }


def test_flows_of_several_routed_layers_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = {"first": torch.tensor([0.25, 1.0]), "second": torch.tensor([0.75, 1.0])}
    critic = Plasticity(dormant=0.0, layers={}, rank=3, features=8, flow=flow)
    monkeypatch.setattr(callbacks, "critic_plasticity", lambda model, batch_size: [critic])
    logged = make("BRCPolicy").learn(60, callback=PlasticityLogger(24, 32)).logger.name_to_value
    flows = {name: value for name, value in logged.items() if name.startswith("plasticity/flow")}
    assert flows == {"plasticity/flow_0_0_0": 0.25, "plasticity/flow_0_1_0": 0.75}


def test_any_number_of_transitions_can_be_asked_for() -> None:
    model = make("BRCPolicy").learn(80)
    assert critic_plasticity(model, 63)[0].rank <= 60  # as many of each of the four tasks
    critic_plasticity(model, 1)
    with pytest.raises(TypeError, match="`batch_size` must be an integer, got None"):
        critic_plasticity(model, None)
