"""Normalized returns: the extremes of every task are those of its episodes, whatever interrupts them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

import oracle_sac
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from dynroute_sb3 import (
    DemonstrationBuffer,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    OverlappedSAC,
    add_demonstrations,
    point_tasks,
)
from dynroute_sb3.losses import return_scale
from dynroute_sb3.replay import GOES_ON, OUT_OF_TIME
from dynroute_sb3.returns import ReturnBounds, discounted_returns
from dynroute_sb3.update import update

SMALL: dict[str, Any] = {"network_kwargs": {"hidden_sizes": (8,)}}
TASKS = 4


def make(env: VecEnv | None = None, cls: type[MultiTaskSAC] = MultiTaskSAC, **options: Any) -> MultiTaskSAC:
    usual = {"policy_kwargs": SMALL, "batch_size": 8, "learning_starts": 30, "gamma": 0.9, "normalize_returns": True}
    env = DummyVecEnv(point_tasks()) if env is None else env
    return cls("MlpPolicy", env, device="cpu", seed=0, **{**usual, **options})


REWARDS = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


@given(REWARDS, st.floats(0, 0.99), st.booleans())
def test_returns_are_sums(rewards: list[float], gamma: float, truncated: bool) -> None:
    expected = oracle_sac.returns_of_an_episode(rewards, gamma, truncated)
    np.testing.assert_allclose(discounted_returns(rewards, gamma, truncated=truncated), expected, rtol=0, atol=1e-9)


STEPS = st.lists(
    st.tuples(*[st.tuples(st.integers(0, 1), st.floats(-5, 5), st.booleans(), st.booleans()) for _ in range(3)]),
    min_size=1,
    max_size=12,
)


def step(bounds: ReturnBounds, rows: Any) -> None:
    tasks, rewards, dones, cut = (np.array(part) for part in zip(*rows, strict=True))
    bounds.add(tasks, rewards, dones, dones & cut)


@given(STEPS, STEPS)
def test_bounds_that_are_resumed_go_on_exactly(first: Any, second: Any) -> None:
    bounds, resumed = (ReturnBounds(2, 0.9, "cpu") for _ in range(2))
    for rows in first:
        step(bounds, rows)
    resumed.load_state_dict(bounds.state_dict())
    assert torch.equal(resumed.update(), bounds.update())
    for rows in second:
        step(bounds, rows)
        step(resumed, rows)
        assert torch.equal(resumed.update(), bounds.update())


def test_bounds_before_an_episode_ends_hold_whatever_comes() -> None:
    bounds, none = ReturnBounds(1, 0.9, "cpu"), np.array([False])
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=50)
    for reward in rewards:
        bounds.add(np.array([0]), np.array([reward]), none, none)
    low, high = bounds.update()[0].tolist()
    for truncated in (False, True):
        returns = discounted_returns(rewards.tolist(), 0.9, truncated=truncated)
        assert low <= returns.min() <= returns.max() <= high
    bounds.add(np.array([0]), np.array([0.0]), ~none, none)
    assert bounds.update()[0, 1] < high


def test_normalized_returns_lie_in_the_range() -> None:
    bounds = torch.tensor([[-4.0, 30.0], [-50.0, 2.0], [0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    alpha = torch.tensor([0.0, 0.1, 0.0, 0.3], dtype=torch.float64)
    for ends in ((-10.0, 10.0), (-1.0, 20.0), (-7.0, 0.5)):
        scale = return_scale(bounds, alpha, 0.99, -2.0, ends)
        bonus = alpha * 100 * 2 / 2
        assert (((bounds[:, 1] + bonus) / scale) <= ends[1] * (1 + 1e-12)).all()
        assert (((bounds[:, 0] - bonus) / scale) >= ends[0] * (1 + 1e-12)).all()
        assert scale[2] == 1  # nothing is known of that task
    symmetric = return_scale(bounds, alpha, 0.99, -2.0, (-10.0, 10.0))
    torch.testing.assert_close(symmetric, torch.tensor([3.0, 6.0, 1.0, 3.1], dtype=torch.float64))


class Episodes(BaseCallback):
    """Notes the rewards of every episode, by the definition and apart from the learner."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[list[float]] = []
        self.returns: list[list[float]] = [[] for _ in range(TASKS)]

    def _on_training_start(self) -> None:
        self.running = []

    def _on_step(self) -> bool:
        env = self.training_env
        rewards = env.get_original_reward() if isinstance(env, VecNormalize) else self.locals["rewards"]
        self.running = self.running or [[] for _ in rewards]
        for i, reward in enumerate(rewards):
            self.running[i].append(float(reward))
            if self.locals["dones"][i]:
                cut = bool(self.locals["infos"][i]["TimeLimit.truncated"])
                self.returns[i % TASKS] += oracle_sac.returns_of_an_episode(self.running[i], self.model.gamma, cut)
                self.running[i] = []
        return True

    def bounds(self) -> np.ndarray:
        return np.array([[min(0.0, *each), max(0.0, *each)] for each in self.returns])


@pytest.mark.parametrize("environments", ["several of each task", "normalized states"])
@pytest.mark.parametrize("cls", [MultiTaskSAC, OverlappedSAC])
def test_bounds_are_those_of_the_episodes(environments: str, cls: type[MultiTaskSAC]) -> None:
    env: VecEnv = DummyVecEnv(point_tasks() * 2)
    if environments == "normalized states":
        env = MultiTaskVecNormalize(env, norm_reward=False)
    episodes = Episodes()
    model = make(env, cls, learning_starts=8 * 45)  # some updates are enough
    assert model.return_bounds is not None
    model.learn(8 * 50, episodes)
    np.testing.assert_allclose(model.return_bounds.update().numpy(), episodes.bounds(), rtol=1e-12)
    model.learn(8 * 30, episodes)  # starts new episodes in the middle of the third
    np.testing.assert_allclose(model.return_bounds.update().numpy(), episodes.bounds(), rtol=1e-12)
    model.set_env(env)
    model.learn(8 * 30, episodes, reset_num_timesteps=False)
    np.testing.assert_allclose(model.return_bounds.update().numpy(), episodes.bounds(), rtol=1e-12)


def test_an_end_that_is_no_interruption_is_one() -> None:
    options = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}
    ending, going_on = make(**options).learn(4 * 20), make().learn(4 * 20)
    assert ending.return_bounds is not None
    assert going_on.return_bounds is not None
    # All rewards are negative, and go on in one case alone.
    assert (ending.return_bounds.update()[:, 0] > going_on.return_bounds.update()[:, 0]).all()


@pytest.mark.parametrize("how", ["save", "checkpoint", "parameters"])
def test_bounds_are_saved(how: str, tmp_path: Path) -> None:
    model = make().learn(4 * 30)
    assert model.return_bounds is not None
    env = DummyVecEnv(point_tasks())
    if how == "save":
        model.save(tmp_path / "model")
        again = MultiTaskSAC.load(tmp_path / "model", env, device="cpu")
    elif how == "checkpoint":
        model.save_checkpoint(tmp_path / "model")
        again = MultiTaskSAC.load_checkpoint(tmp_path / "model", env, "cpu")
    else:
        again = make(env)
        again.set_parameters(model.get_parameters())
    assert again.return_bounds is not None
    assert torch.equal(again.return_bounds.update(), model.return_bounds.update())
    # Where environments start anew, so do their episodes.
    assert again.return_bounds.running == (model.return_bounds.running if how == "checkpoint" else [])
    again.learn(4 * 30, reset_num_timesteps=False)
    with pytest.raises(ValueError, match=r"`returns` of bounds must have shape \(4, 2\), got \(3, 2\)"):
        again.return_bounds.load_state_dict(ReturnBounds(3, 0.9, "cpu").state_dict())


def test_parameters_leave_the_running_episodes() -> None:
    model, other = make().learn(4 * 30), make().learn(4 * 10)
    assert other.return_bounds is not None
    running = [list(rewards) for rewards in other.return_bounds.running]
    other.set_parameters(model.get_parameters())
    assert other.return_bounds.running == running
    np.testing.assert_array_equal(bounds_of(other), bounds_of(model))


def test_bounds_of_another_discount_are_forgotten(tmp_path: Path) -> None:
    make().learn(4 * 30).save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", DummyVecEnv(point_tasks()), device="cpu", gamma=0.5)
    assert loaded.return_bounds is not None
    extremes = loaded.return_bounds.rewards.copy()
    assert extremes.any(axis=1).all()
    np.testing.assert_allclose(bounds_of(loaded), extremes / (1 - 0.5))
    episodes = Episodes()
    loaded.learn(4 * 30, episodes)
    np.testing.assert_allclose(bounds_of(loaded), episodes.bounds())


def test_demonstrations_count() -> None:
    kwargs = {"demonstrations": 6}
    model = make(replay_buffer_class=DemonstrationBuffer, replay_buffer_kwargs=kwargs, gamma=0.5)
    assert model.return_bounds is not None
    observations = np.tile(DummyVecEnv(point_tasks()).reset()[:, None], (1, 6, 1))
    rewards = np.arange(24.0).reshape(4, 6) - 10
    dones = np.zeros((4, 6), dtype=bool)
    dones[:, [1, 3]] = True
    timeouts = np.zeros((4, 6), dtype=bool)
    timeouts[:, 3] = True
    add_demonstrations(model, observations, np.zeros((4, 6, 2)), observations, rewards, dones, timeouts=timeouts)
    expected = []
    for row in rewards:
        parts = ((row[:2], False), (row[2:4], True), (row[4:], True))  # the last one is not at its end
        returns = [r for part, cut in parts for r in oracle_sac.returns_of_an_episode(part.tolist(), 0.5, cut)]
        expected.append([min(0.0, *returns), max(0.0, *returns)])
    np.testing.assert_allclose(model.return_bounds.update().numpy(), expected)
    model.learn(4 * 40)


def bounds_of(model: MultiTaskSAC) -> np.ndarray:
    assert model.return_bounds is not None
    return model.return_bounds.update().numpy()


@pytest.mark.parametrize("environments", ["several of each task", "normalized states"])
def test_bounds_hold_the_episodes_of_a_loaded_buffer(environments: str, tmp_path: Path) -> None:
    """A model with the buffer of another one has the bounds of that model."""

    def env() -> VecEnv:
        several = DummyVecEnv(point_tasks() * 2)
        return several if environments == "several of each task" else MultiTaskVecNormalize(several, norm_reward=False)

    model = make(env(), learning_starts=10**6).learn(8 * 30)
    model.learn(8 * 30)  # starts new episodes in the middle of the second
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(env(), learning_starts=0)
    other.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_allclose(bounds_of(other), bounds_of(model), rtol=1e-6)
    before = bounds_of(other).copy()
    other.learn(8 * 30)
    assert (bounds_of(other)[:, 0] <= before[:, 0]).all()


def test_bounds_hold_the_rewards_of_a_loaded_buffer_without_an_end(tmp_path: Path) -> None:
    model, other = make(learning_starts=10**6).learn(4 * 9), make()
    model.save_replay_buffer(tmp_path / "buffer")
    other.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_allclose(bounds_of(other), bounds_of(model), rtol=1e-6)
    assert (bounds_of(other)[:, 0] < 0).all()


def test_bounds_of_a_buffer_that_wrapped_around_are_those_of_what_is_left(tmp_path: Path) -> None:
    model, other = (make(learning_starts=10**6, buffer_size=4 * 45) for _ in range(2))
    model.learn(4 * 75).save_replay_buffer(tmp_path / "buffer")
    other.load_replay_buffer(tmp_path / "buffer")
    buffer = other.replay_buffer
    assert buffer is not None
    expected = []
    for task in range(TASKS):
        kept = np.roll(buffer.rows[task], -buffer.positions[task], axis=0)
        ends = (np.flatnonzero(kept[:, -1]) + 1).tolist()  # the mean of what is left of the first episode says little
        episodes = [kept[start:end, -2].tolist() for start, end in itertools.pairwise(ends)]
        returns = [r for episode in episodes for r in oracle_sac.returns_of_an_episode(episode, 0.9, True)]
        expected.append([min(0.0, *returns), max(0.0, *returns)])
    np.testing.assert_allclose(bounds_of(other), expected, rtol=1e-6)
    before = bounds_of(model)
    model.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(bounds_of(model), before)


def test_environments_in_the_same_state_have_episodes_of_their_own(tmp_path: Path) -> None:
    model, other = (make(DummyVecEnv(point_tasks() * 2), learning_starts=10**6) for _ in range(2))
    model.learn(8)
    buffer = model.replay_buffer
    assert buffer is not None
    n, steps = buffer.task_space.state_features, 6
    for task, ring in enumerate(buffer.rows):  # both walk through the same states, one with ten times the reward
        for step in range(steps):
            for k in range(2):
                row = ring[2 * step + k]
                row[:n], row[n : 2 * n] = step, step + 1
                row[-2], row[-1] = 10**k * (task + 1), OUT_OF_TIME if step == steps - 1 else GOES_ON
        buffer.counts[task] = buffer.positions[task] = 2 * steps
    model.save_replay_buffer(tmp_path / "buffer")
    other.load_replay_buffer(tmp_path / "buffer")
    expected = [
        [0, max(oracle_sac.returns_of_an_episode([10.0 * (task + 1)] * steps, 0.9, True))] for task in range(TASKS)
    ]
    np.testing.assert_allclose(bounds_of(other), expected, rtol=1e-6)


def test_episodes_that_go_on_after_a_load_keep_their_rewards(tmp_path: Path) -> None:
    env = DummyVecEnv(point_tasks())
    model = make(env, learning_starts=10**6).learn(4 * 7)
    model.save(tmp_path / "model")
    for force, lengths in ((False, [7] * 4), (True, [])):
        bounds = MultiTaskSAC.load(tmp_path / "model", env, force_reset=force).return_bounds
        assert bounds is not None
        assert [len(rewards) for rewards in bounds.running] == lengths


def test_bounds_hold_loaded_demonstrations(tmp_path: Path) -> None:
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 6}}
    model, other = make(**options), make(**options)
    observations = np.tile(DummyVecEnv(point_tasks()).reset()[:, None], (1, 6, 1))
    rewards, dones = np.arange(24.0).reshape(4, 6) - 10, np.zeros((4, 6), dtype=bool)
    dones[:, [1, 3]] = True
    add_demonstrations(model, observations, np.zeros((4, 6, 2)), observations, rewards, dones, timeouts=dones)
    model.save_replay_buffer(tmp_path / "buffer")
    other.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_allclose(bounds_of(other), bounds_of(model))
    assert bounds_of(other).any(axis=1).all()


def test_what_updates_read_stays_in_its_place() -> None:
    model = make().learn(4 * 10)
    assert model.return_bounds is not None
    networks = model._networks()
    before = networks.return_bounds.clone()
    model.learn(4 * 30, reset_num_timesteps=False)
    assert model._networks().return_bounds is networks.return_bounds
    assert not torch.equal(networks.return_bounds, before)


def test_no_scale_of_rewards_is_too_large_or_too_small() -> None:
    """Rewards times a number lead to the same update, where no entropy is paid for."""
    reports = []
    for factor in (1e-3, 1.0, 1e4):
        torch.manual_seed(0)
        model = make(reward_scale=factor, ent_coef=0.0, learning_starts=10**6).learn(4 * 30)
        torch.manual_seed(0)
        np.random.seed(0)
        assert model.replay_buffer is not None
        model.policy.set_training_mode(True)
        reports.append(update(model.replay_buffer.sample(8), model._networks(), model._coefficients()))
    for report in reports[1:]:
        torch.testing.assert_close(report.critic_loss, reports[0].critic_loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gamma": 1}, r"`normalize_returns` needs a `gamma` below 1, got 1"),
        ({"value_range": (0, 10)}, r"`normalize_returns` needs a `value_range` with 0 inside, got \(0, 10\)"),
        ({"value_range": (-10, -1)}, r"`normalize_returns` needs a `value_range` with 0 inside"),
        ({"target_entropy": 1.0}, r"`normalize_returns` needs a `target_entropy` of at most 0, got 1.0"),
        ({"normalize_returns": "yes"}, r"`normalize_returns` must be True or False, got 'yes'"),
    ],
    ids=str,
)
def test_what_cannot_be_normalized_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        make(**options)


def test_rewards_are_not_normalized_twice() -> None:
    env = MultiTaskVecNormalize(DummyVecEnv(point_tasks()))
    told = r"`normalize_returns` and VecNormalize would both normalize rewards; .* norm_reward=False"
    with pytest.raises(ValueError, match=told):
        make(env)
    model = make()
    with pytest.raises(ValueError, match=told):
        model.set_env(env)
    model.learn(4)  # with the environments that it had
