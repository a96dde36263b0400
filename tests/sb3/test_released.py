"""The options for what released code does: each changes what the oracle says that it changes, and all together do."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("stable_baselines3")

import oracle_sac
from sac_cases import (
    SHOWN,
    TASKS,
    Recorder,
    assert_agree,
    assert_updated_as_specified,
    distance,
    draw,
    make,
    spread_rewards,
    step_and_repair,
    translate,
    update,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute_sb3 import DemonstrationBuffer, MultiTaskSAC, OverlappedSAC
from dynroute_sb3.actor import MultiTaskActor
from dynroute_sb3.gaussian import sample_action
from dynroute_sb3.points import point_tasks
from dynroute_sb3.update import follow

D2R: dict[str, Any] = {
    "ent_coef_lr": 1e-4,
    "max_ent_coef": 1.0,
    "task_weights": "inverse-alpha-mean",
    "route_temperature": "inverse-alpha-mean",
    "max_task_loss": 40.0,
    "max_grad_norm": 1.0,
    "reward_scale": 0.1,
    "joint_update": True,
    "max_ent_coef_grad_norm": 1.0,
    "mask_rule": "total",
    "log_prob_epsilon": 1e-6,
}
SM = {
    "task_weights": "inverse-alpha-mean",
    "max_grad_norm": 1.0,
    "joint_update": True,
    "ent_coef_after_step": True,
    "log_prob_epsilon": 1e-6,
}
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "d2r": ("d2r-input", D2R),
    "sm": ("sm", SM),
    "paco": ("paco", {**D2R, "shared_lr": 1e-4, "task_weights": "none"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_fifty_updates_of_released_code(name: str) -> None:
    network, options = RELEASED[name]
    model, sac = make(network, adam=None, learning_rate=3e-4, tau=0.005, gamma=0.99, **options)
    masked = 0
    for i in range(50):
        # Now and then a task diverges.
        batch = spread_rewards(draw(model, (4, 4, 4), seed=i), (0.0, 120.0 * (i % 7 == 3), -120.0 * (i % 11 == 5)))
        masked += int(step_and_repair(model, sac, batch).masked.sum())
        model._n_updates += 1
        follow(model.critic_target, model.critic, model.tau)
        sac.follow()
        assert distance(model, sac) < 1e-10, i
    assert (masked > 0) == ("max_task_loss" in options)


ALONE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # The network, what the option needs or is seen beside, the option itself.
    "joint-update": ("d2r", {}, {"joint_update": True}),
    "joint-update-of-what-is-shared": ("paco", {"max_grad_norm": 0.5}, {"joint_update": True}),
    "joint-update-with-masks": ("mh-sac", {"max_task_loss": 6.0}, {"joint_update": True}),
    "coefficients-after-their-step": ("d2r", {"ent_coef_lr": 0.3}, {"ent_coef_after_step": True}),
    "weights-after-their-step": (
        "mh-sac",
        {"ent_coef_lr": 0.3, "task_weights": "alpha-mean"},
        {"ent_coef_after_step": True},
    ),
    "both-orders": ("sm", {"ent_coef_lr": 0.3, "joint_update": True}, {"ent_coef_after_step": True}),
    "limited-coefficients": ("mt-sac", {"joint_update": True, "ent_coef_lr": 0.3}, {"max_ent_coef": 0.5}),
    "clipped-coefficients": ("mt-sac", {}, {"max_ent_coef_grad_norm": 0.1}),
    "clipped-coefficients-jointly": ("mt-sac", {"joint_update": True}, {"max_ent_coef_grad_norm": 0.1}),
    "total-loss": ("mh-sac", {"joint_update": True, "max_task_loss": 6.0}, {"mask_rule": "total"}),
    "total-weighted-loss": (
        "d2r",
        {"joint_update": True, "max_task_loss": 6.0, "task_weights": "inverse-alpha-mean"},
        {"mask_rule": "total"},
    ),
    "rate-of-the-table": ("paco", {}, {"shared_lr": 1e-4}),
    "rate-of-the-table-jointly": ("paco", {"joint_update": True}, {"shared_lr": 0.1}),
    "log-probability": ("d2r", {}, {"log_prob_epsilon": 1e-2}),
    "log-probability-jointly": ("d2r", {"joint_update": True}, {"log_prob_epsilon": 1e-2}),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_option_alone(name: str) -> None:
    network, beside, option = ALONE[name]
    model, sac = make(network, **beside, **option)
    defaults = {field.name: field.default for field in dataclasses.fields(oracle_sac.Options)}
    without = dataclasses.replace(sac.options, **{key: defaults[key] for key in option})
    nets = (model.actor.net, list(model.critic.nets), list(model.critic_target.nets))
    other = oracle_sac.SAC(*nets, model.log_ent_coef, without)
    for seed in range(2):
        batch, recorder = draw(model, seed=seed), Recorder(model)
        with recorder.listen(model):
            report = update(model, batch)
        translated = translate(batch)
        draws = recorder.draws(translated)
        assert_agree(report, sac.update(translated, draws))
        other.update(translated, draws)
        assert distance(model, sac) < 1e-10
    assert distance(model, other) > 1e-6, "the option does nothing"


@pytest.mark.parametrize("network", ["d2r", "paco"])
@pytest.mark.parametrize("rule", ["each", "total"])
@pytest.mark.parametrize("rewards", [(0.0, 100.0, 0.0), (100.0, 100.0, 100.0), (0.0, 0.0, float("nan"))], ids=str)
def test_a_task_that_diverges_is_left_out_of_a_joint_update(network: str, rule: str, rewards: Any) -> None:
    model, sac = make(network, max_task_loss=2000.0, joint_update=True, mask_rule=rule, max_grad_norm=1.0)
    step_and_repair(model, sac, draw(model))
    report = step_and_repair(model, sac, spread_rewards(draw(model, seed=5), rewards))
    assert distance(model, sac) < 1e-10
    assert report.masked.tolist() == [float(reward != 0) for reward in rewards]
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_coefficient_stops_with_the_total_loss_of_its_task() -> None:
    model, sac = make("mh-sac", max_task_loss=2000.0, joint_update=True, mask_rule="total")
    before = model.log_ent_coef.detach().clone()
    step_and_repair(model, sac, spread_rewards(draw(model), (0.0, 100.0, 0.0)))
    assert (model.log_ent_coef.detach() != before).tolist() == [True, False, True]


@pytest.mark.parametrize("network", ["mt-sac", "paco"])
def test_demonstrations_in_a_joint_update(network: str) -> None:
    options = {"demonstration_weight": 0.5, "actor_starts": 2, "joint_update": True}
    model, sac = make(network, **options, replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs=SHOWN)
    assert_updated_as_specified(model, sac, updates=4, shown=6)


def test_a_joint_update_in_16_bits_is_near() -> None:
    model, _ = make("d2r", joint_update=True, precision="bf16")
    model.policy.float()
    report = update(model, draw(model))
    assert report.critic_loss.isfinite().all()


def test_the_constant_inside_the_logarithm() -> None:
    mean, log_std, noise = torch.randn(3, 5, 2, dtype=torch.float64)
    action, log_prob = sample_action(mean, log_std, noise, epsilon=1e-6)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise)
    expected = (expected - torch.log(1 - action**2 + 1e-6)).sum(dim=-1)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-12)
    # Far out it is a limit: there the exact logarithm falls for ever.
    far = torch.full((1, 1), 30.0, dtype=torch.float64)
    bounded = sample_action(far, far * 0, far * 0, epsilon=1e-6)[1]
    assert bounded < sample_action(far, far * 0, far * 0)[1]


# Rollouts -------------------------------------------------------------------------------------------------------------

TINY = {"num_modules": 2, "width": 4, "trunk_sizes": (8,), "router_sizes": ()}


def learner(cls: type[MultiTaskSAC] = MultiTaskSAC, **options: Any) -> MultiTaskSAC:
    usual: dict[str, Any] = {"policy_kwargs": {"network_kwargs": TINY}, "batch_size": 2 * TASKS, "seed": 0}
    return cls("D2RPolicy", DummyVecEnv(point_tasks(TASKS)), device="cpu", **{**usual, **options})


@contextmanager
def acting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Notes the parameters that act, what they do, and along which paths."""
    acts: list[tuple[Tensor, Tensor, Tensor]] = []
    act = MultiTaskActor.act

    def note(self: MultiTaskActor, observations: Tensor, *, deterministic: bool) -> Any:
        action, route = act(self, observations, deterministic=deterministic)
        assert route is not None
        acts.append((flat(self), action, route.path))
        return action, route

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskActor, "act", note)
        yield acts


def flat(module: nn.Module) -> Tensor:
    return torch.cat([x.detach().flatten() for x in (*module.parameters(), *module.buffers())])


@pytest.mark.parametrize("warmup", ["random", "policy"])
def test_the_untrained_policy_acts_in_the_warm_up(warmup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learner(warmup_actions=warmup, learning_starts=1000)
    before = model.action_space.np_random.bit_generator.state
    with acting(monkeypatch) as acts:
        model.learn(10 * TASKS)
    assert model.replay_buffer is not None
    assert model.policy.topology is not None
    tasks = np.arange(TASKS).repeat(10)
    stored = model.replay_buffer.gather(tasks, np.tile(np.arange(10), TASKS))
    drawn = torch.stack([action for _, action, _ in acts], dim=1).flatten(0, 1)
    assert torch.equal(stored.actions, drawn) == (warmup == "policy")
    assert (model.action_space.np_random.bit_generator.state == before) == (warmup == "policy")
    paths = torch.stack([path for _, _, path in acts], dim=1).flatten(0, 1)
    assert torch.equal(stored.paths, paths)


class Snapshots(BaseCallback):
    """The actor at the end of each rollout, so before the updates that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.actors: list[Tensor] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.actors.append(flat(self.model.actor))


@pytest.mark.parametrize("lag", [False, True])
def test_rollouts_lag_behind(lag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps, snapshots = (
        learner(learning_starts=0, train_freq=4, gradient_steps=4, lag_rollouts=lag),
        4,
        Snapshots(),
    )
    with acting(monkeypatch) as acts:
        model.learn(6 * steps * TASKS, snapshots)
    assert model._n_updates == 6 * steps
    assert not any(map(torch.equal, snapshots.actors, snapshots.actors[1:]))
    for i, (parameters, _, _) in enumerate(acts):
        rollout = i // steps  # all its steps are those of one policy
        expected = snapshots.actors[max(rollout - 1, 0) if lag else rollout]
        assert torch.equal(parameters, expected), i


def test_what_a_policy_is_given_before_learning_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = learner(learning_starts=0, train_freq=4, gradient_steps=4, lag_rollouts=True)
    for parameter in model.actor.parameters():
        parameter.data.mul_(2)
    given = flat(model.actor)
    with acting(monkeypatch) as acts:
        model.learn(8 * TASKS)
    assert len(acts) == 8
    assert all(torch.equal(parameters, given) for parameters, _, _ in acts)  # the second rollout lags behind the first


@pytest.mark.parametrize("how", ["save", "checkpoint"])
@pytest.mark.parametrize("cls", [MultiTaskSAC, OverlappedSAC])
def test_what_rollouts_lag_behind_is_saved(cls: type[MultiTaskSAC], how: str, tmp_path: Path) -> None:
    model = learner(cls, learning_starts=0, train_freq=4, gradient_steps=4, lag_rollouts=True).learn(12 * TASKS)
    assert model.rollout_actor is not None
    assert not torch.equal(flat(model.rollout_actor), flat(model.actor))
    env = DummyVecEnv(point_tasks(TASKS))
    if how == "save":
        model.save(tmp_path / "model")
        again = cls.load(tmp_path / "model", env, device="cpu")
    else:
        model.save_checkpoint(tmp_path / "model")
        again = cls.load_checkpoint(tmp_path / "model", env, "cpu")
    assert again.rollout_actor is not None
    assert torch.equal(flat(again.rollout_actor), flat(model.rollout_actor))


@pytest.mark.slow
@pytest.mark.usefixtures("compiling")
def test_what_rollouts_lag_behind_is_compiled_too() -> None:
    options: dict[str, Any] = {"learning_starts": 0, "train_freq": 4, "gradient_steps": 4, "lag_rollouts": True}
    # An MLP compiles in a third of the time of D2R, which test_device compiles in rollouts and updates.
    options["policy_kwargs"] = {"network": "mt-sac", "network_kwargs": {"hidden_sizes": (8,)}, "n_critics": 1}
    plain = learner(**options).learn(12 * TASKS)
    compiled = learner(**options, compile_networks="eager").learn(12 * TASKS)
    assert compiled.rollout_actor is not None
    assert plain.rollout_actor is not None
    assert torch.equal(flat(compiled.rollout_actor), flat(plain.rollout_actor))


@pytest.mark.parametrize("shared_lr", [None, 1e-4])
def test_the_rate_of_what_is_shared_stays(shared_lr: float | None) -> None:
    model = learner(
        policy_kwargs={"network": "paco", "network_kwargs": {"num_sets": 2, "hidden_sizes": (6,)}},
        learning_starts=0,
        shared_lr=shared_lr,
        learning_rate=lambda progress: 1e-3 * progress,
    ).learn(10 * TASKS)
    assert model.policy.shared_optimizer is not None
    rate = model.policy.shared_optimizer.param_groups[0]["lr"]
    assert rate == (shared_lr or model.actor.optimizer.param_groups[0]["lr"])
    assert rate != 1e-3


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "mask rule": ({"mask_rule": "all"}, r"`mask_rule` must be one of 'each', 'total', got 'all'"),
    "warm-up": ({"warmup_actions": "rnadom"}, r"`warmup_actions` must be one of .* did you mean 'random'"),
    "total alone": ({"mask_rule": "total"}, r"`mask_rule` can be \"total\" with joint_update=True, got False: the sum"),
    "total after": (
        {"mask_rule": "total", "joint_update": True, "ent_coef_after_step": True},
        r"`mask_rule` can be \"total\" with ent_coef_after_step=False, got True: a coefficient",
    ),
    "epsilon": ({"log_prob_epsilon": -1e-6}, r"`log_prob_epsilon` must be at least 0, got -1e-06"),
    "large epsilon": ({"log_prob_epsilon": 1.0}, r"`log_prob_epsilon` must be below 1, got 1.0"),
    "norm": ({"max_ent_coef_grad_norm": 0}, r"`max_ent_coef_grad_norm` must be above 0 or None, got 0"),
    "rate": ({"shared_lr": -1.0}, r"`shared_lr` must be above 0 or None, got -1.0"),
    "nothing shared": ({"shared_lr": 1e-4}, r"`shared_lr` must be None where .* got 0.0001 for a DynamicDepthRouting"),
    "fixed": (
        {"ent_coef": 0.1, "ent_coef_after_step": True},
        r"`ent_coef_after_step` needs coefficients that are learned",
    ),
    "fixed norm": (
        {"ent_coef": 0.1, "max_ent_coef_grad_norm": 1.0},
        r"`max_ent_coef_grad_norm` needs .* got ent_coef=0.1",
    ),
    "order": ({"joint_update": "yes"}, r"`joint_update` must be .*, got 'yes'"),
    "lag": ({"lag_rollouts": 2}, r"`lag_rollouts` must be .*, got 2"),
    "after": ({"ent_coef_after_step": None}, r"`ent_coef_after_step` must be .*, got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_told(name: str) -> None:
    options, told = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=told):
        learner(**options)
