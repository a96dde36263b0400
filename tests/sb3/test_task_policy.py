"""Policies of one task act like the model that they are of."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sac_models import TASKS, make_model, observations
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute_sb3 import MultiTaskVecNormalize, OneHotTask, extract_policy, point_tasks
from dynroute_sb3.task_policy import whole_policy


class Table(gym.Env[Any, Any]):
    """An environment whose actions are arrays."""

    observation_space = spaces.Box(-1, 1, (4,))
    action_space = spaces.Box(-3, 5, (2, 3))

    def reset(self, **_: Any) -> Any:
        return self.observation_space.sample(), {}


@pytest.mark.parametrize("policy", [extract_policy, whole_policy])
def test_actions_that_are_arrays(policy: Any) -> None:
    env = DummyVecEnv([lambda task=task: OneHotTask(Table(), task, TASKS) for task in range(TASKS)])
    model, seen = make_model(env=env), observations()[:5]  # of task 0
    states = torch.as_tensor(seen[:, :4])
    made = extract_policy(model, states, task=0) if policy is extract_policy else whole_policy(model, task=0)
    expected, _ = model.predict(seen, deterministic=True)
    assert expected.shape == (5, 2, 3)
    np.testing.assert_allclose(made(states).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(made(states[2]).detach(), expected[2], atol=1e-5)


def test_states_are_normalized_as_the_environments_do() -> None:
    env = MultiTaskVecNormalize(DummyVecEnv(point_tasks()), clip_obs=1.5)
    model, seen = make_model(env=env).learn(60), observations()
    normalized = env.normalize_obs(seen)
    assert (abs(normalized[:, :4]) == 1.5).any()
    expected, _ = model.predict(normalized, deterministic=True)
    for task in range(TASKS):
        rows = slice(5 * task, 5 * task + 5)
        states = torch.as_tensor(seen[rows, :4])
        for policy in (whole_policy(model, task=task), extract_policy(model, states, task=task)):
            np.testing.assert_allclose(policy(states).detach(), expected[rows], atol=1e-5)
