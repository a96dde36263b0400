"""Actions are predicted as by SAC: of its space, for one observation or many, by one seed."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from sac_models import ENVIRONMENTS, make_model, observations, parameters, same
from stable_baselines3 import SAC

from dynroute_sb3 import (
    MultiTaskPolicy,
    MultiTaskSAC,
    point_tasks,
)
from dynroute_sb3.policies import POLICIES


@pytest.fixture(scope="module")
def model() -> MultiTaskSAC:
    """A model that is only looked at."""
    return make_model(env=ENVIRONMENTS["RescaleAction"]()).learn(120)


@pytest.mark.parametrize("policy", ["D2RPolicy", "MlpPolicy", "MoEPolicy", "HardRoutingPolicy"])
def test_predict(policy: str) -> None:
    model, many = make_model(policy), observations()
    best = model.predict(many, deterministic=True)[0]
    assert best.shape == (20, 2)
    assert best.dtype == np.float32
    assert np.array_equal(best, model.predict(many, deterministic=True)[0])
    sampled = [model.predict(many)[0] for _ in range(2)]
    assert (sampled[0] != sampled[1]).any(axis=1).all()
    for i in range(0, 20, 5):  # a single observation is no batch of one
        one, state = model.predict(many[i], deterministic=True)
        assert one.shape == (2,)
        assert state is None
        np.testing.assert_allclose(one, best[i], rtol=1e-5, atol=1e-6)
    assert model.predict(many[:0])[0].shape == (0, 2)
    assert np.array_equal(model.predict(many.tolist(), deterministic=True)[0], best)
    assert np.array_equal(model.predict(many.astype(np.float64), deterministic=True)[0], best)


def test_actions_are_those_of_the_space(model: MultiTaskSAC) -> None:
    actions = np.concatenate([model.predict(observations())[0] for _ in range(30)])
    low, high = model.action_space.low, model.action_space.high
    assert ((actions >= low) & (actions <= high)).all()
    assert (np.ptp(actions, axis=0) > 0.7 * (high - low)).all()


def test_routes_are_sampled_unless_the_best_are_asked_for(model: MultiTaskSAC) -> None:
    many = torch.as_tensor(observations())
    (_, best), (_, again) = (model.actor.act(many, deterministic=True) for _ in range(2))
    (_, sampled), (_, other) = (model.actor.act(many, deterministic=False) for _ in range(2))
    assert best is not None
    assert again is not None
    assert sampled is not None
    assert other is not None
    assert torch.equal(best.path, again.path)
    assert not torch.equal(sampled.path, other.path)
    assert not torch.equal(sampled.path, best.path)
    assert torch.equal(sampled.path.sum(-1), best.path.sum(-1))  # as many sources, but others


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros(8), r"the observation must end with the one-hot of one of 4 tasks.*\[0.0, 0.0, 0.0, 0.0\]"),
        (np.ones((3, 8)), "the observation must end with the one-hot.*row 0"),
        (np.array([0, 0, 0, 0, 0, 2, 0, 0]), "the observation must end with the one-hot"),
        (np.array([0, 0, 0, 0, 1, np.nan, 0, 0]), "the observation must end with the one-hot"),
        (np.concatenate([observations()[:2], np.zeros((1, 8))]), "row 2 ends with"),
        (np.zeros(4), r"the observation must hold 4 numbers of state and the one-hot.*got shape \(4,\)"),
        (np.zeros((2, 9)), r"the observation must hold.*got shape \(2, 9\)"),
        (np.array([0, np.nan, 0, 0, 0, 0, 1, 0]), r"the observation must be finite, row 0 of task 2 is \[0.0, nan,"),
        (observations()[None], "Unexpected observation shape"),
    ],
)
def test_predicting_from_what_is_no_observation(model: MultiTaskSAC, wrong: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model.predict(wrong)


@pytest.mark.parametrize("convert", [np.ndarray.tolist, torch.as_tensor], ids=["list", "tensor"])
def test_predicting_from_what_is_no_array(model: MultiTaskSAC, convert: Any) -> None:
    wrong = observations()[:3]
    wrong[1, 0] = np.nan
    for policy in (model, model.policy, model.actor):
        assert policy.predict(convert(observations()))[0].shape == (20, 2)
        with pytest.raises(ValueError, match="the observation must be finite, row 1 of task 0 is"):
            policy.predict(convert(wrong))


def test_predicting_from_what_gymnasium_returns(model: MultiTaskSAC) -> None:
    returned = point_tasks()[0]().reset(seed=0)
    with pytest.raises(ValueError, match=r"You have passed a tuple to the predict\(\) function"):
        model.predict(returned)
    assert model.action_space.contains(model.predict(returned[0])[0])


def test_one_seed_gives_one_run() -> None:
    one, same_seed, other = (make_model(seed=seed).learn(steps) for seed, steps in ((5, 160), (5, 160), (6, 60)))
    assert same(parameters(one), parameters(same_seed))
    assert one.replay_buffer is not None
    assert same_seed.replay_buffer is not None
    assert np.array_equal(one.replay_buffer.rows, same_seed.replay_buffer.rows)
    assert not same(parameters(one), parameters(other))


def test_the_interface_is_that_of_sac() -> None:
    """MultiTaskSAC takes the calls that SB3 makes on a SAC."""
    assert issubclass(MultiTaskSAC, SAC)
    assert set(MultiTaskSAC.policy_aliases) == set(POLICIES)
    assert all(issubclass(policy, MultiTaskPolicy) for policy in POLICIES.values())
    assert all(re.fullmatch(r"\w+Policy", name) for name in POLICIES)
