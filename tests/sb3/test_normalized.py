"""Rewards and states that are normalized: the one-hot of the task is left as it is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sac_models import SIZES, TASKS, assert_physical, make_model, make_plain, observations, points
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from dynroute_sb3 import (
    DemonstrationBuffer,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    add_demonstrations,
)


def test_rewards_are_normalized_where_they_are_learned_from() -> None:
    env = VecNormalize(points(), norm_obs=False)
    model = make_model(env=env)
    model.learn(120)
    assert_physical(model)  # what is stored is not normalized
    assert model.replay_buffer is not None
    np.random.seed(1)
    plain = model.replay_buffer.sample(16).rewards
    np.random.seed(1)
    normalized = model.replay_buffer.sample(16, env=env).rewards
    np.testing.assert_allclose(normalized, env.normalize_reward(plain.numpy()), rtol=1e-6)
    assert not torch.allclose(normalized, plain)


@pytest.mark.parametrize("how", ["at once", "set_env", "load"])
def test_observations_must_not_be_normalized(how: str, tmp_path: Path) -> None:
    make_model().save(tmp_path / "model")
    call: Callable[[VecEnv], Any] = {
        "at once": lambda env: make_model(env=env),
        "set_env": make_model().set_env,
        "load": lambda env: MultiTaskSAC.load(tmp_path / "model", env=env, device="cpu"),
    }[how]
    with pytest.raises(ValueError, match=r"`env` must leave the one-hot of the task as it is.*norm_obs=False"):
        call(VecNormalize(points()))


@pytest.mark.parametrize("kind", [MultiTaskVecNormalize, lambda env: VecNormalize(env, norm_obs=False)])
def test_frames_are_stacked_before_they_are_normalized(kind: Callable[[VecEnv], VecNormalize]) -> None:
    told = r"^`env` must have its \w*VecNormalize around .* VecFrameStack, got one inside, with shape \(8,\) before"
    with pytest.raises(ValueError, match=told):
        make_plain(env=VecFrameStack(kind(points()), 2))
    make_plain(env=MultiTaskVecNormalize(VecFrameStack(points(), 2)), learning_starts=4).learn(12)


def normalized(**options: Any) -> MultiTaskVecNormalize:
    return MultiTaskVecNormalize(points(), **options)


def test_states_are_normalized_and_one_hots_are_not() -> None:
    env = normalized(clip_obs=1.5)
    reference = VecNormalize(points(), clip_obs=1.5)
    for vec_env in (env, reference):
        vec_env.seed(0)
    seen, expected = env.reset(), reference.reset()
    for step in range(30):
        assert np.array_equal(seen[:, 4:], np.eye(TASKS))
        assert np.array_equal(seen[:, :4], expected[:, :4])
        assert np.allclose(env.normalize_obs(env.unnormalize_obs(seen)), seen, atol=1e-5)
        (seen, *_, infos), (expected, *_) = (vec_env.step(np.ones((TASKS, 2))) for vec_env in (env, reference))
        if step == 19:
            last = [info["terminal_observation"][4:] for info in infos]
            assert np.array_equal(last, np.eye(TASKS))
    assert abs(seen[:, :4]).max() <= 1.5


def test_a_model_stores_what_is_not_normalized_and_learns_what_is() -> None:
    env = normalized()
    model = make_plain("D2RPolicy", env=env)
    seen: list[np.ndarray] = []
    env.venv.step_wait_plain = env.venv.step_wait  # type: ignore[attr-defined]

    def watched() -> Any:
        result = env.venv.step_wait_plain()
        ended = [info.get("terminal_observation", row) for row, info in zip(result[0], result[3], strict=True)]
        seen.append(np.array(ended))
        return result

    env.venv.step_wait = watched  # type: ignore[method-assign]
    model.learn(100)
    assert model.get_vec_normalize_env() is env
    assert model._n_updates == 15
    buffer = model.replay_buffer
    assert np.allclose(buffer.next_observations[:25], np.array(seen), atol=1e-5)
    going_on = buffer.dones[:24] == 0
    assert np.array_equal(buffer.observations[1:25][going_on], buffer.next_observations[:24][going_on])
    np.random.seed(0)
    plain = buffer.sample(16)
    np.random.seed(0)
    batch = buffer.sample(16, env=env)
    for name in ("observations", "next_observations"):
        expected = env.normalize_obs(getattr(plain, name).numpy())
        assert np.allclose(getattr(batch, name), expected, atol=1e-6)
        assert torch.equal(getattr(batch, name)[:, 4:], torch.eye(TASKS)[batch.tasks])
        assert not torch.equal(getattr(batch, name), getattr(plain, name))
    assert np.allclose(batch.rewards, env.normalize_reward(plain.rewards.numpy()))


def test_normalizing_environments_as_users_of_sb3_take_them(tmp_path: Path) -> None:
    env, other = MultiTaskVecNormalize(VecMonitor(points())), normalized(training=False, norm_reward=False)
    watched = MultiTaskVecNormalize(VecMonitor(points()), training=False)
    model = make_plain(env=env)
    model.set_env(other)
    assert model.get_vec_normalize_env() is other
    model.learn(40)
    model.set_env(env)
    callbacks = [
        CheckpointCallback(10, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True),
        EvalCallback(watched, eval_freq=10, n_eval_episodes=1, verbose=0),
    ]
    model.learn(80, callback=callbacks)
    assert np.array_equal(watched.obs_rms.mean, env.obs_rms.mean)
    path = str(tmp_path / "rl_model_vecnormalize_80_steps.pkl")
    restored = MultiTaskVecNormalize.load(path, points())
    assert isinstance(restored, MultiTaskVecNormalize)
    assert np.array_equal(restored.obs_rms.mean, env.obs_rms.mean)
    assert np.array_equal(restored.normalize_obs(observations())[:, 4:], observations()[:, 4:])
    loaded = MultiTaskSAC.load(tmp_path / "rl_model_80_steps.zip", env=restored, device="cpu")
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_80_steps.pkl")
    loaded.learn(60)


def test_normalized_states_belong_to_a_checkpoint(tmp_path: Path) -> None:
    one = make_plain("D2RPolicy", env=normalized()).learn(60)
    one.save_checkpoint(tmp_path / "there")
    one.learn(60, reset_num_timesteps=False)
    other = MultiTaskSAC.load_checkpoint(tmp_path / "there", normalized(), "cpu")
    other.learn(60, reset_num_timesteps=False)
    assert np.array_equal(one.replay_buffer.rows, other.replay_buffer.rows)
    for name, value in one.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name])
    envs = [model.get_vec_normalize_env() for model in (one, other)]
    assert np.array_equal(envs[0].obs_rms.mean, envs[1].obs_rms.mean)


def test_paths_of_demonstrations_are_those_of_normalized_states() -> None:
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 2}}
    kwargs = {"network_kwargs": {**SIZES["D2RPolicy"], "gate": "top-2"}}
    env = normalized()
    env.obs_rms.mean, env.obs_rms.var = np.full(8, 3.0), np.full(8, 0.01)
    model = make_plain("D2RPolicy", env=env, policy_kwargs=kwargs, actor_paths="replayed", **options)
    obs, zeros = observations(each=2).reshape(TASKS, 2, -1), np.zeros((TASKS, 2), np.float32)
    add_demonstrations(model, obs, np.zeros((TASKS, 2, 2), np.float32), obs, zeros, zeros.astype(bool))
    shown = model.replay_buffer.shown
    assert np.array_equal(shown.observations[:2].swapaxes(0, 1), obs)
    seen = torch.as_tensor(env.normalize_obs(obs.reshape(-1, 8)))
    route = model.actor.distribution(seen)[2]
    paths = model.policy.topology.pack(route.path).numpy().reshape(TASKS, 2, -1)
    assert np.array_equal(shown.paths, paths)


def untold(space: spaces.Space[Any]) -> VecEnv:
    """An environment that does not tell how many tasks there are."""

    class Other(gym.Env[Any, Any]):
        observation_space = space
        action_space = spaces.Box(-1, 1, (2,))

    return DummyVecEnv([Other])


def test_the_number_of_tasks_is_given_or_that_of_the_environments() -> None:
    env = MultiTaskVecNormalize(untold(spaces.Box(-1, 1, (6,))), num_tasks=2)
    env.obs_rms.mean = np.full(6, 3.0)
    seen = env.normalize_obs(np.ones((1, 6)))[0]
    assert seen == pytest.approx([-2, -2, -2, -2, 1, 1])
    with pytest.raises(
        ValueError, match=r"^`num_tasks` must say how many tasks there are: pass `num_tasks=` to MultiTaskVecNormalize"
    ):
        MultiTaskVecNormalize(untold(spaces.Box(-1, 1, (6,))))
    told = "the number of tasks must be the same everywhere, but `num_tasks` says 3, `num_tasks` of the environments"
    with pytest.raises(ValueError, match=rf"^{told} says 4\.$"):
        normalized(num_tasks=3)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (
            spaces.Box(-1, 1, (4,)),
            "an observation must hold a state and the one-hot of one of 4 tasks, got vectors of 4 numbers; is the "
            "one-hot missing (see OneHotTask), or `num_tasks` wrong?",
        ),
        (
            spaces.Dict(a=spaces.Box(-1, 1, (3,))),
            "the observation space must be a Box of vectors that end with the one-hot of the task, got Dict('a': "
            "Box(-1.0, 1.0, (3,), float32)); flatten them with gymnasium.wrappers.FlattenObservation, and wrap that in "
            "OneHotTask.",
        ),
    ],
)
def test_what_cannot_be_normalized(space: spaces.Space[Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        MultiTaskVecNormalize(untold(space), num_tasks=4)
