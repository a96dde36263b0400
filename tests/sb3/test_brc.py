"""The learner of BRC: each option changes what the oracle says that it changes, alone and with the others."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

import oracle_sac
from sac_cases import (
    SHOWN,
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
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute_sb3 import DemonstrationBuffer, MultiTaskSAC, RouteReplayBuffer, point_tasks
from dynroute_sb3.update import follow

ADAMW = {"optimizer_class": torch.optim.AdamW}
CATEGORICAL: dict[str, Any] = {"critic_loss": "categorical", "bins": 11, "value_range": (-4.0, 4.0)}
BRC: dict[str, Any] = {
    **CATEGORICAL,
    "q_target": "mean",
    "normalize_returns": True,
    "shared_ent_coef": True,
    "ent_coef_beta1": 0.5,
    "target_entropy": "auto_0.5",
    "policy_kwargs": {**ADAMW, "log_std": "tanh", "log_std_range": (-10.0, 2.0)},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    # The network, and what BRC's learner is combined with.
    "alone": ("mt-sac", {}),
    "routes": ("d2r", {"task_weights": "inverse-alpha-mean", "shared_ent_coef": False}),
    "shared-parts": ("paco", {"max_grad_norm": 0.5, "max_task_loss": 3.0, "q_target": "min"}),
    "released": ("d2r-input", {"joint_update": True, "mask_rule": "total", "max_task_loss": 6.0, "reward_scale": 0.1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_fifty_updates(name: str) -> None:
    network, options = OTHERS[name]
    model, sac = make(network, adam=None, **{**BRC, "learning_rate": 3e-4, "tau": 0.005, "gamma": 0.9, **options})
    outside, masked = 0.0, 0.0
    for i in range(50):
        # Now and then a task leaves the range.
        batch = spread_rewards(draw(model, (4, 4, 4), seed=i), (0.0, 120.0 * (i % 7 == 3), -120.0 * (i % 11 == 5)))
        report = step_and_repair(model, sac, batch)
        outside, masked = outside + float(report.outside_range.sum()), masked + float(report.masked.sum())
        model._n_updates += 1
        follow(model.critic_target, model.critic, model.tau)
        sac.follow()
        assert distance(model, sac) < 1e-10, i
    assert outside > 0
    assert (masked > 0) == ("max_task_loss" in options)


ALONE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # The network, what the option needs or is seen beside, the option itself.
    "distributions": ("mt-sac", {}, CATEGORICAL),
    "distributions-of-shared-parts": ("paco", {"max_grad_norm": 0.5}, CATEGORICAL),
    "distributions-along-routes": ("d2r", {"critic_paths": "replayed"}, CATEGORICAL),
    "distributions-jointly": ("mh-sac", {"joint_update": True, "max_task_loss": 9.0}, CATEGORICAL),
    "bins": ("mt-sac", CATEGORICAL, {"bins": 2}),
    "range": ("mt-sac", CATEGORICAL, {"value_range": (-1.0, 3.0)}),
    "mean-of-values": ("mt-sac", {}, {"q_target": "mean"}),
    "mean-of-values-jointly": ("sm", {"joint_update": True}, {"q_target": "mean"}),
    "mean-of-distributions": ("care", CATEGORICAL, {"q_target": "mean"}),
    "normalized-returns": ("mt-sac", {}, {"normalize_returns": True}),
    "normalized-returns-jointly": ("d2r", {"joint_update": True, "reward_scale": 3.0}, {"normalize_returns": True}),
    "one-coefficient": ("mh-sac", {"ent_coef_lr": 0.1}, {"shared_ent_coef": True}),
    "one-coefficient-jointly": ("mh-sac", {"joint_update": True, "ent_coef_lr": 0.1}, {"shared_ent_coef": True}),
    "one-coefficient-first": (
        "mh-sac",
        {"ent_coef_after_step": True, "ent_coef_lr": 0.3, "max_ent_coef": 0.3},
        {"shared_ent_coef": True},
    ),
    "moment": ("mt-sac", {"ent_coef_lr": 0.1}, {"ent_coef_beta1": 0.5}),
    "target-entropy": ("mt-sac", {}, {"target_entropy": "auto_0.5"}),
    "optimizer": ("paco", {}, {"policy_kwargs": ADAMW}),
    "squashed-deviation": ("d2r", {}, {"policy_kwargs": {"log_std": "tanh", "log_std_range": (-10.0, 2.0)}}),
    "range-of-deviation": ("mt-sac", {}, {"policy_kwargs": {"log_std_range": (-0.1, 0.1)}}),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_option_alone(name: str) -> None:
    network, beside, option = ALONE[name]
    model, sac = make(network, **{**beside, **option})
    plain, _ = make(network, **beside)
    log_alpha = plain.log_ent_coef.detach()
    kept = {field.name: getattr(sac.options, field.name) for field in dataclasses.fields(oracle_sac.Options)}
    usual = {field.name: field.default for field in dataclasses.fields(oracle_sac.Options)}
    changed = {*option, "optimizer", "log_std", "log_std_range"} & usual.keys()
    without = kept | {key: beside.get(key, usual[key]) for key in changed} | {"target_entropy": -2.0}
    comparable = "critic_loss" not in option and "bins" not in option  # else the networks have other heads
    nets = (model.actor.net, list(model.critic.nets), list(model.critic_target.nets))
    other = oracle_sac.SAC(*nets, log_alpha, oracle_sac.Options(**without))
    for seed in range(2):
        batch, recorder = draw(model, seed=seed), Recorder(model)
        with recorder.listen(model):
            report = update(model, batch)
        translated = translate(batch)
        draws = recorder.draws(translated)
        assert_agree(report, sac.update(translated, draws))
        assert distance(model, sac) < 1e-10
        if comparable:
            other.update(translated, draws)
    if comparable:
        assert distance(model, other) > 1e-6, "the option does nothing"


@pytest.mark.parametrize("network", ["d2r", "paco"])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e30])
def test_a_task_whose_rewards_are_no_numbers_leaves_the_others_alone(network: str, joint: bool, reward: float) -> None:
    options = {**CATEGORICAL, "joint_update": joint, "max_grad_norm": 1.0, "max_task_loss": 1e3}
    model, sac = make(network, **options)
    step_and_repair(model, sac, draw(model))
    report = step_and_repair(model, sac, spread_rewards(draw(model, seed=5), (0.0, 0.0, reward)))
    assert distance(model, sac) < 1e-10
    assert report.masked.tolist() == [0, 0, float(reward != reward)]
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    if reward == reward:  # whatever is not done moves out of the range
        assert float(report.outside_range[2]) > 0.5


@pytest.mark.parametrize("joint", [False, True])
def test_demonstrations(joint: bool) -> None:
    options = {**BRC, "demonstration_weight": 0.5, "actor_starts": 2, "joint_update": joint}
    model, sac = make("mt-sac", **options, replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs=SHOWN)
    assert_updated_as_specified(model, sac, updates=4, shown=6)


@pytest.mark.parametrize("counts", [(1, 7, 4), (6, 0, 2)], ids=str)
def test_batches_of_any_composition(counts: tuple[int, int, int]) -> None:
    assert_updated_as_specified(*make("d2r", **BRC), counts=counts)


def test_products_in_16_bits_are_near() -> None:
    results = []
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        model, _ = make("mt-sac", **{**BRC, "precision": precision})
        model.policy.float()
        torch.manual_seed(1)
        results.append(vars(update(model, draw(model))))
    for name, values in results[1].items():
        expected = results[0][name]
        torch.testing.assert_close(values, expected, rtol=0.1, atol=0.1 * float(expected.abs().max() + 1), msg=name)
    assert not torch.equal(results[0]["critic_loss"], results[1]["critic_loss"])


# Options, and what is told of them ------------------------------------------------------------------------------------


def learner(**options: Any) -> MultiTaskSAC:
    usual: dict[str, Any] = {"policy_kwargs": {"network_kwargs": {"hidden_sizes": (8,)}}, "batch_size": 16, "seed": 0}
    return MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks()), device="cpu", **{**usual, **options})


def logged(model: MultiTaskSAC) -> dict[str, Any]:
    model.set_logger(Logger(None, []))
    model.learn(200)
    model.report.record_updates(model)
    return model.logger.name_to_value


def test_what_lies_outside_of_the_range_is_logged() -> None:
    values = logged(learner(critic_loss="categorical", learning_starts=40))
    assert {f"outside_range/{task}" for task in range(4)} <= values.keys()
    assert 0 <= values["train/outside_range"] < 0.5
    assert not any(name.startswith(("outside_range", "train/outside")) for name in logged(learner()))


def test_a_range_that_values_exceed_by_far_is_told_once() -> None:
    model = learner(critic_loss="categorical", value_range=(0.0, 0.01), learning_starts=40)
    model.set_logger(Logger(None, []))
    told = (
        r"`value_range` must hold .* outside of \(0.0, 0.01\) for the tasks \['0', '1', '2', '3'\] .* "
        "make another model with a wider one, or with normalize_returns=True"
    )
    with pytest.warns(UserWarning, match=told):
        model.learn(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(100, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/outside_range"] > 0.5


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "loss": (
        {"critic_loss": "mae"},
        r"`critic_loss` must be one of 'mse', 'categorical', got 'mae'; did you mean 'mse'",
    ),
    "target": ({"q_target": "max"}, r"`q_target` must be one of 'min', 'mean', got 'max'"),
    "one bin": ({"critic_loss": "categorical", "bins": 1}, r"`bins` must be at least 2, got 1"),
    "half a bin": ({"critic_loss": "categorical", "bins": 10.5}, r"`bins` must be an integer, got 10.5"),
    "reversed": (
        {"critic_loss": "categorical", "value_range": (10, -10)},
        r"`value_range` must be \(low, high\) with low below high, got \(10, -10\); are they exchanged\?",
    ),
    "empty": ({"critic_loss": "categorical", "value_range": (1.0, 1.0)}, r"`value_range` must be \(low, high\)"),
    "infinite": ({"critic_loss": "categorical", "value_range": (-10, np.inf)}, r"`value_range` must be finite"),
    "nan": (
        {"critic_loss": "categorical", "value_range": (np.nan, 1)},
        r"`value_range` must be finite, got \(nan, 1\)",
    ),
    "one end": (
        {"critic_loss": "categorical", "value_range": 10},
        r"`value_range` must be a pair of numbers .* got 10",
    ),
    "bins of values": (
        {"bins": 51},
        r"`bins` needs .* critic_loss=\"categorical\", got bins=51 with critic_loss='mse'",
    ),
    "range of values": ({"value_range": (-1, 1)}, r"`value_range` needs critic_loss=\"categorical\", .*\(-1, 1\) with"),
    "bins of the policy": ({"policy_kwargs": {"bins": 11}}, r"`bins` must not be given in `policy_kwargs`, got 11"),
    "range of the policy": (
        {"critic_loss": "categorical", "policy_kwargs": {"value_range": (-1, 1)}},
        r"`value_range` must not be given in `policy_kwargs`, got \(-1, 1\)",
    ),
    "shared": ({"shared_ent_coef": 1}, r"`shared_ent_coef` must be True or False, got 1"),
    "shared and fixed": (
        {"shared_ent_coef": True, "ent_coef": 0.1},
        r"`shared_ent_coef` needs coefficients that are learned, ent_coef=\"auto\", got ent_coef=0.1",
    ),
    "moment": ({"ent_coef_beta1": 1.0}, r"`ent_coef_beta1` must be below 1, got 1.0"),
    "moment of text": ({"ent_coef_beta1": "0.5"}, r"`ent_coef_beta1` must be a number, got '0.5'"),
    "moment of nothing": ({"ent_coef_beta1": 0.5, "ent_coef": 0.1}, r"`ent_coef_beta1` needs coefficients that are"),
    "factor": ({"target_entropy": "auto_-1"}, r"`target_entropy` must be a finite number, .* got 'auto_-1'"),
    "no factor": ({"target_entropy": "auto_"}, r"`target_entropy` must be a finite number, \"auto\", or \"auto_\""),
    "word": ({"target_entropy": "half"}, r"`target_entropy` must be a finite number, .* got 'half'"),
    "entropy": ({"target_entropy": float("nan")}, r"`target_entropy` must be a finite number, .* got nan"),
    "balance": ({"replay_buffer_kwargs": {"balanced": 1}}, r"`balanced` must be True or False, got 1"),
    "multiple": ({"batch_size": 18}, r"`batch_size` must be a multiple of the 4 tasks, got 18; .*\"balanced\": False"),
    "no share": (
        {
            "batch_size": 3,
            "replay_buffer_class": DemonstrationBuffer,
            "replay_buffer_kwargs": {"demonstrations": 2, "demonstration_share": 0.1, "balanced": False},
        },
        r"`demonstration_share` must leave .* in the 3 of a batch, got 0.1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_told(name: str) -> None:
    options, told = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=told):
        learner(**options)


@pytest.mark.parametrize(
    ("asked", "expected"), [("auto", -2.0), ("auto_0.5", -1.0), ("auto_2", -4.0), (-3, -3.0), ("-0.5", -0.5), (0, 0.0)]
)
def test_target_entropies(asked: Any, expected: float) -> None:
    assert learner(target_entropy=asked).target_entropy == expected


def test_one_coefficient_for_all_tasks() -> None:
    model = learner(shared_ent_coef=True, ent_coef="auto_0.1", max_ent_coef=0.05, learning_starts=40)
    assert model.log_ent_coef.shape == (1,)
    torch.testing.assert_close(model.entropy_coefficients, torch.full((4,), 0.05))
    values = logged(model)
    assert len({values[f"ent_coef/{task}"] for task in range(4)}) == 1


@pytest.mark.parametrize("buffer", [RouteReplayBuffer, DemonstrationBuffer])
def test_batches_over_all_tasks_need_no_transition_of_each(buffer: type) -> None:
    kwargs = {"balanced": False} | ({"demonstrations": 2} if buffer is DemonstrationBuffer else {})
    model = learner(replay_buffer_class=buffer, replay_buffer_kwargs=kwargs, batch_size=13, learning_starts=10)
    first = model.get_env().reset()[:1]
    for _ in range(20):
        model.replay_buffer.add(first, first, np.zeros((1, 2)), np.zeros(1), np.zeros(1, dtype=bool), [{}])
    model.set_logger(Logger(None, []))
    model.train(2)
    assert model._n_updates == 2
    assert model.replay_buffer.sample(13).tasks.tolist() == [0] * 13


def test_a_model_of_distributions_goes_through_the_files_of_sb3(tmp_path: Path) -> None:
    model = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks()), critic_loss="categorical", bins=11, device="cpu")
    model.save(tmp_path / "model.zip")
    again = MultiTaskSAC.load(tmp_path / "model.zip", device="cpu")
    assert (again.bins, again.value_range) == (11, (-10.0, 10.0))
    observations = np.zeros((4, 8), dtype=np.float32)
    observations[range(4), range(4, 8)] = 1
    actions = [each.predict(observations, deterministic=True)[0] for each in (again, model)]
    assert np.array_equal(*actions)
    for name, value in again.policy.state_dict().items():
        assert torch.equal(value, model.policy.state_dict()[name])
