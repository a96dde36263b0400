"""An update of MultiTaskSAC computes what the oracle of its specification does, in every option."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("stable_baselines3")


from sac_cases import (
    NETWORKS,
    SHOWN,
    STATE,
    TASKS,
    TOLERANCE,
    Recorder,
    assert_same_state,
    assert_updated_as_specified,
    draw,
    make,
    spread_rewards,
    step,
    step_and_repair,
    translate,
    update,
)

from dynroute_sb3 import DemonstrationBuffer
from dynroute_sb3.replay import RouteReplaySamples


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_updated_as_specified(network: str) -> None:
    assert_updated_as_specified(*make(network), updates=3)


@pytest.mark.parametrize("network", ["mt-sac", "paco", "d2r"])
def test_five_updates_with_the_default_optimizer(network: str) -> None:
    assert_updated_as_specified(*make(network, adam=None, learning_rate=3e-4), updates=5)


@pytest.mark.parametrize("task_weights", ["none", "alpha-sum", "alpha-mean", "inverse-alpha-sum", "inverse-alpha-mean"])
def test_weights_of_tasks(task_weights: str) -> None:
    assert_updated_as_specified(*make("mt-sac", task_weights=task_weights))


@pytest.mark.parametrize(
    ("actor_paths", "critic_paths", "temperature"),
    [
        (actor, critic, temperature)
        for actor in ("sampled", "replayed", "topk")
        for critic in ("sampled", "replayed", "topk")
        for temperature in ("inverse-alpha-sum", "inverse-alpha-mean", 0.7)
        if temperature == "inverse-alpha-sum"
        or "sampled" in (actor, critic)  # else there is nothing that it would change
    ],
)
def test_paths_and_their_temperature(actor_paths: str, critic_paths: str, temperature: float | str) -> None:
    options = {"actor_paths": actor_paths, "critic_paths": critic_paths, "route_temperature": temperature}
    assert_updated_as_specified(*make("d2r", **options), updates=2)


@pytest.mark.parametrize("network", ["hard", "sm", "moe-top-2"])
def test_replayed_paths_of_other_gates(network: str) -> None:
    assert_updated_as_specified(*make(network, actor_paths="replayed", critic_paths="replayed"), updates=2)


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.02},
        {"max_grad_norm": 0.02, "task_weights": "alpha-mean"},
        {"reward_scale": 7.0},
        {"ent_coef": 0.2},
        {"ent_coef": 0.2, "task_weights": "alpha-sum"},
        {"ent_coef_lr": 0.3},
        {"gamma": 0.5, "tau": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("network", ["paco", "d2r"])
def test_options(network: str, options: dict[str, Any]) -> None:
    assert_updated_as_specified(*make(network, **options), updates=2)


BALANCED: dict[str, tuple[str, dict[str, Any]]] = {
    # The network, and the order and the clipping beside the loss.
    "replayed": ("d2r", {}),
    "of-experts": ("moe-top-2", {"critic_paths": "topk"}),
    "clipped": ("d2r", {"max_grad_norm": 0.5, "critic_paths": "replayed"}),
    "jointly": ("d2r-input", {"joint_update": True}),
    "without-a-task": ("d2r", {"max_task_loss": 6.0}),
}


@pytest.mark.parametrize("name", BALANCED)
def test_routes_are_balanced(name: str) -> None:
    network, options = BALANCED[name]
    reports = assert_updated_as_specified(*make(network, route_balance=0.7, **options))
    assert any(report.masked.any() for report in reports) == ("max_task_loss" in options)


@pytest.mark.parametrize("network", ["d2r", "sm", "moe-top-2", "hard"])
@pytest.mark.parametrize("options", [{}, {"joint_update": True}, {"max_grad_norm": 0.02}], ids=str)
def test_routers_have_a_rate_of_their_own(network: str, options: dict[str, Any]) -> None:
    assert_updated_as_specified(*make(network, router_lr=0.3, **options))


SHOWING: dict[str, dict[str, Any]] = {
    "waiting": {"actor_starts": 2},
    "cloning": {"demonstration_weight": 0.5},
    "both": {"demonstration_weight": 0.5, "demonstration_decay": 3, "actor_starts": 1, "max_grad_norm": 0.1},
    "without-a-task": {"demonstration_weight": 0.5, "max_task_loss": 8.0},
}


@pytest.mark.parametrize(
    ("network", "name"), [*(("mt-sac", name) for name in SHOWING), ("d2r", "both"), ("care", "without-a-task")]
)
def test_demonstrations(network: str, name: str) -> None:
    model, sac = make(network, **SHOWING[name], replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs=SHOWN)
    assert_updated_as_specified(model, sac, updates=4, shown=6)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_task_whose_values_are_no_numbers_clones_nothing_and_the_others_do(value: float, joint: bool) -> None:
    options = {"demonstration_weight": 0.5, "max_task_loss": 1e4, "joint_update": joint}
    model, sac = make("mh-sac", **options, replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs=SHOWN)
    for net in (*model.critic.nets, *sac.critics):
        with torch.no_grad():
            list(net.parameters())[-1][-1] += value  # the head of the last task
    wanted = torch.full((6, 2), 0.5, dtype=torch.float64)
    report = step(model, sac, draw(model)._replace(wanted=wanted))
    assert report.masked.tolist() == [0, 0, 1]
    for got, expected in zip(model.actor.net.parameters(), sac.actor.parameters(), strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)


def test_what_is_shared_waits_with_the_actor() -> None:
    model, sac = make("paco", actor_starts=2)
    assert_updated_as_specified(model, sac, updates=4)


@pytest.mark.parametrize("network", ["d2r", "paco", "care"])
def test_an_actor_that_waits_stays_as_it_is(network: str) -> None:
    model, _ = make(network, actor_starts=2)
    alphas = model.log_ent_coef.detach().clone()
    before = [p.detach().clone() for p in model.actor.parameters()]
    update(model, draw(model))
    model._n_updates = 1
    update(model, draw(model))
    assert all(torch.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))
    assert torch.equal(alphas, model.log_ent_coef)
    model._n_updates = 2
    update(model, draw(model))
    assert not all(torch.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))
    assert not torch.equal(alphas, model.log_ent_coef)


def test_coefficients_of_entropy_are_limited() -> None:
    model, sac = make("mh-sac", max_ent_coef=0.5, ent_coef_lr=0.3)
    assert_updated_as_specified(model, sac, updates=1)
    assert abs(float(model.log_ent_coef.detach().exp().max()) - 0.5) < 1e-12  # one was above it
    assert_updated_as_specified(model, sac)


@pytest.mark.parametrize("n_critics", [1, 3])
def test_any_number_of_critics(n_critics: int) -> None:
    assert_updated_as_specified(*make("paco", n_critics=n_critics, max_grad_norm=0.5), updates=2)


def test_unclipped_gradients_are_far_above_the_limit_that_is_tested() -> None:
    model, _ = make("paco")
    update(model, draw(model))
    for net in (model.actor.net, *model.critic.nets):
        own = [p.grad for p in net.parameters() if p is not net.composition]
        assert torch.stack([gradient.norm() for gradient in own]).norm() > 0.05


def test_log_std_is_limited_and_log_probabilities_are_exact_far_out() -> None:
    model, sac = make("mt-sac")
    for actor in (model.actor.net, sac.actor):
        with torch.no_grad():
            last = list(actor.parameters())[-2:]
            last[0].mul_(30)
            last[1].mul_(30)
    output = model.actor.net(*model.policy.task_space.split(draw(model).observations))[:, 2:]
    assert (output > 2).any()
    assert (output < -2).any()
    assert_updated_as_specified(model, sac)


def test_log_std_has_a_lower_limit() -> None:
    model, sac = make("mt-sac")
    for actor in (model.actor.net, sac.actor):
        with torch.no_grad():
            list(actor.parameters())[-1][2:] = torch.tensor([-30.0, -19.0])
    assert_updated_as_specified(model, sac)


@pytest.mark.parametrize(
    ("network", "weights"),
    [("mt-sac", "none"), ("mh-sac", "none"), ("d2r", "none"), ("paco", "none"), ("paco", "alpha-mean")],
)
@pytest.mark.parametrize(
    ("rewards", "masked"),
    [
        ((0.0, 0.0, 0.0), [0, 0, 0]),
        ((0.0, 100.0, 0.0), [0, 1, 0]),
        ((100.0, 0.0, -100.0), [1, 0, 1]),
        ((100.0, 100.0, 100.0), [1, 1, 1]),
        ((0.0, 0.0, float("nan")), [0, 0, 1]),
        ((0.0, float("inf"), 0.0), [0, 1, 0]),
    ],
    ids=str,
)
def test_tasks_whose_critics_loss_is_too_large_are_left_out(
    network: str, weights: str, rewards: Sequence[float], masked: list[int]
) -> None:
    model, sac = make(network, max_task_loss=2000.0, task_weights=weights, max_grad_norm=1.0)
    step_and_repair(model, sac, draw(model))  # gives Adam moments, which move parameters even where no task is left
    report = step_and_repair(model, sac, spread_rewards(draw(model, seed=5), rewards))
    assert_same_state(model, sac)
    assert report.masked.tolist() == masked
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize(("network", "shift"), [("mh-sac", -300.0), ("paco", 300.0)])
def test_a_task_whose_actor_loss_is_too_large_is_left_out_of_the_actor_alone(network: str, shift: float) -> None:
    # Rewards are the values, which are large, so that only the actor's loss, which is minus a value, is large.
    model, sac = make(network, max_task_loss=200.0, gamma=0.0)
    for critics in (model.critic.nets, sac.critics):
        for net in critics:
            with torch.no_grad():
                list(net.parameters())[-1][-1] += shift  # the head of the last task, or the last parameter set
    batch = draw(model)
    inputs = torch.cat([batch.observations[:, :STATE], batch.actions], dim=1)
    values = torch.stack([net(inputs, batch.tasks) for net in model.critic.nets]).mean(dim=0).detach()
    report = step_and_repair(model, sac, batch._replace(rewards=values))
    assert_same_state(model, sac)
    assert (report.critic_loss < 200).all()
    assert 0 < report.masked.sum() < TASKS


@pytest.mark.parametrize("network", ["mt-sac", "mh-sac", "care", "paco", "d2r"])
@pytest.mark.parametrize("options", [{}, {"ent_coef": 0.2}], ids=str)
def test_the_number_of_samples_of_a_task_is_no_weight(network: str, options: dict[str, Any]) -> None:
    assert_updated_as_specified(*make(network, task_weights="alpha-mean", **options), updates=2, counts=(1, 7, 4))


# The replay buffer never leaves a task out; a batch of one's own may.
@pytest.mark.parametrize("network", ["mt-sac", "mh-sac", "care", "paco", "d2r"])
@pytest.mark.parametrize("counts", [(6, 0, 2), (0, 0, 5)], ids=str)
def test_a_task_without_samples_has_losses_of_zero(network: str, counts: Sequence[int]) -> None:
    reports = assert_updated_as_specified(*make(network, ent_coef=0.2), updates=2, counts=counts)
    for losses in (getattr(report, name) for report in reports for name in ("actor_loss", "critic_loss")):
        assert [bool(loss) for loss in losses] == [count > 0 for count in counts]


def test_a_task_without_samples_gives_its_coefficient_no_gradient() -> None:
    model, sac = make("mt-sac")
    assert_updated_as_specified(model, sac, updates=1, counts=(6, 0, 2))
    assert_updated_as_specified(model, sac, updates=2, counts=(4, 4, 4))
    before = model.log_ent_coef.detach().clone()
    assert_updated_as_specified(model, sac, updates=1, counts=(6, 0, 2))
    assert model.log_ent_coef[1] != before[1]  # Adam goes on with the gradients of before
    assert model.log_ent_coef.grad[1] == 0


def test_rows_can_be_in_any_order() -> None:
    results = []
    for reverse in (False, True):
        torch.manual_seed(0)
        model, _ = make("mh-sac", ent_coef=0.2, max_grad_norm=1.0)
        batch = draw(model)
        if reverse:
            batch = RouteReplaySamples(*(None if part is None else part.flip(0) for part in batch))
        with mock.patch(
            "dynroute_sb3.actor.torch.randn", lambda shape, **options: torch.ones(shape, dtype=options["dtype"])
        ):
            results.append(vars(update(model, batch)))
    for name, values in results[0].items():
        torch.testing.assert_close(results[1][name], values, msg=name)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("network", ["paco", "d2r"])
def test_training_moves_the_targets_every_so_many_updates_however_they_are_called_for(
    network: str, interval: int
) -> None:
    model, sac = make(network, target_update_interval=interval)
    batches = [draw(model, (4, 4, 4), seed) for seed in range(5)]
    recorder = Recorder(model)
    model.policy.set_training_mode(False)  # train() sets it
    with mock.patch.object(model.replay_buffer, "sample", side_effect=batches), recorder.listen(model):
        model.train(3, 12)
        model.train(2, 12)
    for i, batch in enumerate(batches):
        translated = translate(batch)
        sac.update(translated, recorder.draws(translated))
        if i % interval == 0:
            sac.follow()
    assert_same_state(model, sac)


@pytest.mark.parametrize("network", NETWORKS)
def test_products_in_16_bits_change_little_and_nothing_else_is_in_16_bits(network: str) -> None:
    models = []
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        model, _ = make(network, adam=None, learning_rate=1e-3, precision=precision)
        model.policy.float()
        models.append(model)
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    batch = draw(models[0])
    kept = {name: part for name, part in batch._asdict().items() if torch.is_tensor(part) and part.is_floating_point()}
    batch = batch._replace(**{name: part.float() for name, part in kept.items()})
    reports = []
    for model in models:
        torch.manual_seed(1)
        reports.append(update(model, batch))
        for optimizer in (model.actor.optimizer, model.critic.optimizer):
            for parameter, state in optimizer.state.items():
                assert {parameter.dtype, parameter.grad.dtype, state["exp_avg"].dtype} == {torch.float32}
    plain, rough = reports
    for name, values in vars(rough).items():
        assert values.dtype in (torch.float32, torch.float64)
        expected = vars(plain)[name]
        torch.testing.assert_close(values, expected, rtol=0.1, atol=0.1 * float(expected.abs().max() + 1), msg=name)
    assert not torch.equal(rough.critic_loss, plain.critic_loss), "nothing was in 16 bits"
