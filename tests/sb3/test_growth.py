"""Models that grow while they learn: actions and values stay, optimizers and paths follow, and resuming is exact."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute import Topology
from dynroute_sb3 import (
    CheckpointDirectory,
    DemonstrationBuffer,
    GrowOnDemand,
    MultiTaskSAC,
    OverlappedSAC,
    point_tasks,
)
from dynroute_sb3.growth import grow_networks, measure_tasks

SIZES = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}


def make(network: str = "d2r", sizes: dict[str, Any] | None = None, **options: Any) -> MultiTaskSAC:
    kwargs = {"network": network, "network_kwargs": dict(SIZES if sizes is None else sizes)}
    options = {"learning_starts": 20, "batch_size": 16, "seed": 0, **options}
    return MultiTaskSAC("MultiTaskPolicy", DummyVecEnv(point_tasks()), policy_kwargs=kwargs, device="cpu", **options)


NETWORKS = {
    "d2r": SIZES,
    "d2r-model": {"num_models": 2, "model_depth": 1, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)},
    "moe": {"num_experts": 2, "width": 8, "depth": 1, "router_sizes": (8,)},
}


@pytest.mark.parametrize("options", [{}, {"lag_rollouts": True}], ids=["", "lag"])
@pytest.mark.parametrize("network", NETWORKS)
def test_actions_and_values_stay(network: str, options: dict[str, Any]) -> None:
    model = make(network, NETWORKS[network], **options).learn(40)
    observations = torch.from_numpy(np.repeat(model.env.reset(), 5, axis=0))
    actions = torch.rand(20, 2) * 2 - 1

    def outputs() -> list[torch.Tensor]:
        model.policy.set_training_mode(False)
        with torch.no_grad():
            found = [model.actor(observations, deterministic=True)]
            found += [critic(observations, actions) for critic in (model.critic, model.critic_target)]
            if model.rollout_actor is not None:
                found.append(model.rollout_actor(observations, deterministic=True))
        return found

    before = outputs()
    grown = grow_networks(model, 2)
    for old, new in zip(before, outputs(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)
    (size,) = {"num_modules", "num_models", "num_experts"} & model.policy_kwargs["network_kwargs"].keys()
    assert model.policy_kwargs["network_kwargs"][size] == grown.num_modules == NETWORKS[network][size] + 2

    for part in (model.actor, model.critic):
        held = [id(one) for group in part.optimizer.param_groups for one in group["params"]]
        assert held == [id(one) for one in part.parameters()]
    assert not any(one.requires_grad for one in model.critic_target.parameters())
    model.learn(20, reset_num_timesteps=False)
    assert model.actor.net.topology == grown.after


def test_stored_paths_are_lifted() -> None:
    model = make().learn(40)
    before = model.replay_buffer.latest_paths(10)
    grown = grow_networks(model)
    for old, new in zip(before, model.replay_buffer.latest_paths(10), strict=True):
        assert torch.equal(grown.before.lift(old, to=grown.after), new)
    assert model.replay_buffer.topology == Topology.dag(5)
    batch = model.replay_buffer.sample(16)
    assert batch.paths.shape == (16, 4, 4)


def test_a_buffer_from_before_the_growth_is_refused(tmp_path: Path) -> None:
    model = make("d2r").learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    grow_networks(model)
    assert model.replay_buffer is not None
    before = model.replay_buffer.paths.copy()
    told = r"must have graph Topology\(num_nodes=5, .*, got Topology\(num_nodes=4, .*, or from before the model grew\?"
    with pytest.raises(ValueError, match=told):
        model.load_replay_buffer(tmp_path / "buffer")
    assert (model.replay_buffer.paths == before).all()
    model.save_replay_buffer(tmp_path / "grown")
    model.load_replay_buffer(tmp_path / "grown")


def test_paths_of_demonstrations_are_lifted() -> None:
    model = make(replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs={"demonstrations": 4})
    grow_networks(model)
    assert model.replay_buffer.shown.topology == model.replay_buffer.topology == Topology.dag(5)
    moe = make("moe", NETWORKS["moe"])
    grow_networks(moe)
    assert moe.replay_buffer.paths is None


def stalled(model: MultiTaskSAC) -> list[float | None]:
    """The first task stays where it is, the others learn with every step, for ever; the last one is not known."""
    return [0.1, model.num_timesteps / 50, model.num_timesteps / 40, None]


def callbacks(folder: Path, *, last: bool = True) -> list[BaseCallback]:
    growth = GrowOnDemand(8, max_modules=5, patience=2, gain=0.1, opening=12, measure=stalled, solved=99.0)
    checkpoints = CheckpointDirectory(8, folder, keep=9)
    return [growth, checkpoints] if last else [checkpoints, growth]


@pytest.mark.parametrize(
    ("options", "last"),
    [({}, True), ({}, False), ({"lag_rollouts": True}, True), ({"router_lr": 1e-5}, True)],
    ids=["behind", "before", "lag", "slow routers"],
)  # whether the checkpoint of a step is written behind its growth
def test_a_run_that_grows_goes_on_exactly(options: dict[str, Any], last: bool, tmp_path: Path) -> None:
    model = make(learning_starts=8, batch_size=4, **options)
    whole = model.learn(56, callback=CallbackList(callbacks(tmp_path / "whole", last=last)))
    assert whole.growth_state is not None
    assert whole.growth_state["grown_at"] == [24, 40]
    assert whole.actor.net.topology == Topology.dag(6)

    for steps in (24, 32):  # as it grew, and while a module comes in
        checkpoint = tmp_path / "whole" / f"step_{steps}"
        resumed = MultiTaskSAC.load_checkpoint(checkpoint, DummyVecEnv(point_tasks()), device="cpu")
        folder = tmp_path / f"from {steps}"
        left = 56 - resumed.num_timesteps
        resumed.learn(left, callback=CallbackList(callbacks(folder, last=last)), reset_num_timesteps=False)
        assert resumed.growth_state == whole.growth_state
        for name, value in whole.policy.state_dict().items():
            assert torch.equal(resumed.policy.state_dict()[name], value), (steps, name)
        assert np.array_equal(resumed.replay_buffer.paths, whole.replay_buffer.paths)
        ours, theirs = resumed.actor.optimizer.state_dict(), whole.actor.optimizer.state_dict()
        assert ours["state"].keys() == theirs["state"].keys()


def test_a_model_that_grew_is_saved_and_loaded(tmp_path: Path) -> None:
    model = make().learn(44, callback=callbacks(tmp_path / "checkpoints"))
    model.save(tmp_path / "model.zip")
    loaded = MultiTaskSAC.load(tmp_path / "model.zip", env=DummyVecEnv(point_tasks()), device="cpu")
    assert loaded.growth_state == model.growth_state
    observation = DummyVecEnv(point_tasks()).reset()
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    loaded.learn(20, callback=callbacks(tmp_path / "others")[0])  # counts its steps from 0 again


def test_critics_of_a_size_of_their_own_are_saved_and_loaded(tmp_path: Path) -> None:
    kwargs = {"network": "d2r", "network_kwargs": dict(SIZES), "critic_kwargs": {"num_modules": 5}}
    env = DummyVecEnv(point_tasks())
    model = MultiTaskSAC("MultiTaskPolicy", env, policy_kwargs=kwargs, learning_starts=20, seed=0, device="cpu")
    model.learn(40, callback=CheckpointDirectory(20, tmp_path / "before"))
    grow_networks(model, 1)
    assert model.policy_kwargs["network_kwargs"]["num_modules"] == 4
    assert model.policy_kwargs["critic_kwargs"]["num_modules"] == 6
    assert kwargs["critic_kwargs"] == {"num_modules": 5}  # that of the caller
    twin = model.policy.make_critic()
    twin.load_state_dict(model.critic.state_dict())
    model.learn(20, callback=CheckpointDirectory(20, tmp_path / "checkpoints"), reset_num_timesteps=False)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    loaded = MultiTaskSAC.load(tmp_path / "model.zip", env=env, device="cpu")
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "checkpoints" / "step_60", env, device="cpu")
    policy = type(model.policy).load(tmp_path / "policy.pt", device="cpu")
    for other in (loaded.policy, resumed.policy, policy):
        for name, value in model.policy.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("measured", "grows"),
    [
        ([[0.0, 0.0, 0.0, 0.0]] * 4, False),  # nobody learns
        ([[0.1 * i] * 4 for i in range(4)], False),  # everybody does
        ([[0.2, 0.1 * i, None, None] for i in range(4)], True),
        ([[0.95, 0.1 * i, None, None] for i in range(4)], False),  # what is solved does not stall
        ([[0.0, 0.1 * i, 0.0, 0.0] for i in range(2)] + [[0.0, 0.1, 0.0, 0.0]] * 9, False),  # not for long enough
    ],
)
def test_it_grows_where_a_task_stalls_while_others_learn(measured: list[Any], grows: bool) -> None:
    model, values = make(learning_starts=999), iter(measured)
    growth = GrowOnDemand(4, max_modules=4, patience=3, gain=0.15, measure=lambda _: next(values))
    model.learn(4 * len(measured) + 4, callback=growth)
    assert model.growth_state is not None
    assert bool(model.growth_state["grown_at"]) == grows
    assert model.actor.net.topology == Topology.dag(5 if grows else 4)


@pytest.mark.parametrize(("opening", "steps"), [({"opening": 16}, 4), ({}, 2)], ids=["", "as often as it measures"])
def test_growth_ends_and_new_modules_come_in_slowly(
    opening: dict[str, int], steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(learning_starts=999)
    growth = GrowOnDemand(8, max_modules=4, patience=1, gain=0.1, measure=stalled, solved=99.0, verbose=1, **opening)
    bias = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            bias.append(float(self.model.critic_target.nets[0].graph.router.layers[-1].bias[-1]))
            return True

    model.learn(80, callback=[growth, Look()])
    assert capsys.readouterr().out == "4 modules at 16 steps\n"
    assert model.growth_state["nodes"] == []
    rises = np.diff(bias[4:])
    assert np.allclose(rises[:steps], 20 / steps, atol=1e-4)
    assert np.allclose(rises[steps:], 0.0)


@pytest.mark.parametrize("modules", [2, 5])
def test_critics_of_another_size_get_their_own_new_module(modules: int) -> None:
    model = MultiTaskSAC(
        "D2RPolicy",
        DummyVecEnv(point_tasks()),
        learning_starts=999,
        policy_kwargs={"network_kwargs": SIZES, "critic_kwargs": {"num_modules": modules}},
        device="cpu",
    )
    routers = [net.graph.router for net in [*model.policy.critic.nets, *model.policy.critic_target.nets]]
    before = [router.layers[-1].bias[-modules:].detach().clone() for router in routers]  # what the output reads
    growth = GrowOnDemand(8, max_modules=4, patience=1, gain=0.1, opening=16, measure=stalled, solved=99.0)
    model.learn(48, callback=growth)
    assert model.growth_state["nodes"] == []
    for router, old in zip(routers, before, strict=True):
        assert len(router.layers[-1].bias[-modules - 1 :]) == modules + 1
        torch.testing.assert_close(router.layers[-1].bias[-modules - 1 : -1].detach(), old)
        assert abs(router.layers[-1].bias[-1].item()) < 1  # it is open


def test_a_module_goes_on_coming_in_when_steps_are_counted_anew() -> None:
    model = make(learning_starts=999)
    growth = GrowOnDemand(8, max_modules=4, patience=1, gain=0.1, opening=16, measure=stalled, solved=99.0)
    raised = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            raised.append(self.model.growth_state["raised"])
            return True

    for steps in (24, 4, 4):  # it grows at step 16
        model.learn(steps, callback=[growth, Look()])
    assert raised == [0.0] * 5 + [5.0, 10.0, 15.0]
    assert model.growth_state["raised"] == 20.0
    assert model.growth_state["nodes"] == []


def test_tasks_are_measured_by_success_or_return() -> None:
    model = make()
    assert measure_tasks(model) == [None] * 4
    model.report.returns[1].extend([1.0, 2.0])
    assert measure_tasks(model) == [None, 1.5, None, None]
    model.report.successes[2].extend([1.0, 0.0, 0.0, 1.0])
    assert measure_tasks(model) == [None, None, 0.5, None]


def measure_by(measure: Callable[[MultiTaskSAC], Any]) -> MultiTaskSAC:
    return make(learning_starts=999).learn(12, callback=GrowOnDemand(4, max_modules=4, measure=measure))


def critics_of_models() -> MultiTaskSAC:
    critics = {"level": "model", "num_modules": None, "num_models": 2, "model_depth": 1}
    kwargs = {"network_kwargs": dict(SIZES), "critic_kwargs": critics}
    return MultiTaskSAC("D2RPolicy", DummyVecEnv(point_tasks()), policy_kwargs=kwargs, device="cpu")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GrowOnDemand(0, 5), "`every` must be at least 1, got 0."),
        (lambda: GrowOnDemand(5, "a"), "`max_modules` must be an integer, got 'a'."),
        (lambda: GrowOnDemand(5, 5, patience=0), "`patience` must be at least 1, got 0."),
        (lambda: GrowOnDemand(5, 5, opening=0), "`opening` must be at least 1, got 0."),
        (lambda: GrowOnDemand(5, 5, gain=0.0), "`gain` must be a positive number, got 0.0."),
        (lambda: GrowOnDemand(5, 5, solved=0.0), "`solved` must be a positive number, got 0.0."),
        (lambda: GrowOnDemand(5, 5, solved=True), "`solved` must be a positive number, got True."),
        (lambda: GrowOnDemand(5, 5, gain=float("inf")), "`gain` must be finite, got inf: no task would ever learn."),
        (lambda: GrowOnDemand(5, 5, measure=3), "`measure` must be a function that gives a number for each task, got"),
        (lambda: GrowOnDemand(5, 5).open(0), "`model` is not known yet: call init_callback(model), as learn(callback="),
        (
            lambda: critics_of_models().learn(4, callback=GrowOnDemand(4, 5)),
            "`critic_kwargs` must let critics route at the level of their actor to grow with it, by num_modules, got "
            "critics with num_models.",
        ),
        (lambda: measure_by(lambda _: [0.0, 1.0]), "`measure` must give 4 numbers, one for each task or None where"),
        (lambda: measure_by(lambda _: 1.0), "`measure` must give 4 numbers, one for each task or None where there is"),
        (lambda: measure_by(lambda _: ["a"] * 4), "`measure` must give 4 numbers, one for each task or None where"),
        (lambda: grow_networks(make("mt-sac", {})), "`policy` must have networks that route at module or model level"),
        (
            lambda: grow_networks(make("d2r-layer", {"layer_sizes": (2, 2)})),
            "`policy` must have networks that route at module or model level",
        ),
        (lambda: grow_networks(make(compile_networks="eager")), "`compile_networks` must be False for networks that"),
        (
            lambda: grow_networks(
                OverlappedSAC("D2RPolicy", DummyVecEnv(point_tasks()), policy_kwargs={"network_kwargs": SIZES})
            ),
            "`model` must not learn while environments step to grow, got an OverlappedSAC.",
        ),
    ],
)  # fmt: skip
def test_messages(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        call()
