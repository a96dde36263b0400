"""Transitions of several steps are those of a loop over the episodes as they were played."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from replay_cases import TASKS, observe
from replay_cases import make as make_buffer
from sac_cases import draw, make, step
from sac_models import Changing, make_model
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch.utils._python_dispatch import TorchDispatchMode

from dynroute_sb3 import (
    DemonstrationBuffer,
    MultiTaskSAC,
    OneHotTask,
    PointTask,
    RouteReplayBuffer,
    multi_step,
    point_tasks,
)
from dynroute_sb3.device_replay import DeviceReplay
from dynroute_sb3.multi_step import look_ahead
from dynroute_sb3.points import GOALS

GAMMA = 0.9


class Short(gym.Wrapper):
    """Episodes that end after 3 to 8 steps, some by termination."""

    def __init__(self, env: gym.Env, seed: int) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng(seed)

    def reset(self, **kwargs: Any) -> Any:
        self.left, self.terminates = self.generator.integers(3, 9), self.generator.random() < 0.5
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        state, reward, _, _, info = super().step(action)
        self.left -= 1
        over = self.left == 0
        return state, reward, over and self.terminates, over and not self.terminates, info


def short(task: int, seed: int) -> gym.Env:
    return Short(OneHotTask(PointTask(GOALS[task]), task, 4), seed)


ENVIRONMENTS: dict[str, Any] = {
    "one of each task": lambda: DummyVecEnv([lambda k=k: short(k, k) for k in range(4)]),
    "several of a task": lambda: DummyVecEnv([lambda k=k: short(k % 4, k) for k in (0, 1, 2, 3, 0, 0, 2)]),
    "that change their tasks": lambda: DummyVecEnv(
        [lambda k=k: Changing(Short(PointTask(GOALS[0]), k), k, 4) for k in (0, 0, 2, 3)]
    ),
}


class Played:
    """The transitions as they are added, by environment, and the places where they are stored."""

    def __init__(self, buffer: RouteReplayBuffer) -> None:
        self.capacity, self.steps = buffer.capacity, []
        self.stored: dict[tuple[int, int], tuple[int, int]] = {}
        self.newest = [-1] * buffer.num_tasks
        self.buffer, add = buffer, buffer.add

        def note(obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any, paths: Any = None) -> None:
            add(obs, next_obs, action, reward, done, infos, paths=paths)
            rows = []
            for i in range(len(obs)):
                task = int(obs[i, 4:].argmax())
                self.newest[task] += 1
                self.stored[task, self.newest[task] % self.capacity] = (len(self.steps), i)
                terminated = bool(done[i]) and not infos[i].get("TimeLimit.truncated", False)
                rows.append((float(reward[i]), bool(done[i]), terminated, next_obs[i].copy()))
            self.steps.append(rows)

        buffer.add = note  # type: ignore[method-assign]

    def expected(self, task: int, place: int, n_steps: int, reset_at: int) -> tuple[float, float, float, Any]:
        """The sum of rewards, the discount, whether the last step ended, and its next observation."""
        at, env = self.stored[task, place]
        total, discount = 0.0, 1.0
        for later in range(at, min(at + n_steps, len(self.steps))):
            if later > at and later == reset_at:
                break
            reward, done, terminated, following = self.steps[later][env]
            total += discount * reward
            discount *= GAMMA
            if done:
                break
        return total, discount, float(terminated), following


@pytest.mark.parametrize("environments", ENVIRONMENTS)
@pytest.mark.parametrize(("n_steps", "capacity"), [(2, 500), (7, 500), (3, 13)])  # the last one wraps around
def test_sums_are_those_of_the_episodes(environments: str, n_steps: int, capacity: int) -> None:
    env: VecEnv = ENVIRONMENTS[environments]()
    options = {"n_steps": n_steps, "gamma": GAMMA, "buffer_size": 4 * capacity, "learning_starts": 10**6}
    model = make_model(env=env, **options)
    buffer = model.replay_buffer
    played = Played(buffer)
    model.learn(31 * env.num_envs)
    model.learn(17 * env.num_envs)  # in new episodes, though no old one ended
    assert set(buffer.counts) == {capacity} or capacity == 500
    for task, count in enumerate(buffer.counts):
        batch = buffer.gather(np.full(count, task), np.arange(count))
        single = buffer.rows[task, :count]
        for place in range(count):
            total, discount, ended, following = played.expected(task, place, n_steps, reset_at=31)
            assert float(batch.rewards[place]) == pytest.approx(total, abs=1e-5)
            assert float(batch.discounts[place]) == pytest.approx(discount)
            assert float(batch.dones[place]) == ended
            np.testing.assert_array_equal(batch.next_observations[place].numpy(), following)
            np.testing.assert_array_equal(batch.observations[place, :4].numpy(), single[place, :4])
            np.testing.assert_array_equal(batch.actions[place].numpy(), single[place, 8:10])


def test_they_are_those_of_sb3() -> None:
    space, actions = spaces.Box(-np.inf, np.inf, (5,)), spaces.Box(-1, 1, (2,))
    theirs = NStepReplayBuffer(12, space, actions, "cpu", n_steps=3, gamma=GAMMA)
    ours = RouteReplayBuffer(12, space, actions, "cpu", num_tasks=1, n_steps=3, gamma=GAMMA)
    generator, state = np.random.default_rng(0), np.zeros((1, 4))
    for _ in range(31):
        following, done, cut = generator.normal(size=(1, 4)), generator.random(1) < 0.2, generator.random(1) < 0.5
        row = [np.concatenate([each, [[1.0]]], axis=1).astype(np.float32) for each in (state, following)]
        infos = [{"TimeLimit.truncated": bool(done & cut)}]
        rest = (generator.uniform(-1, 1, (1, 2)), generator.normal(size=1), done, infos)
        for buffer in (theirs, ours):
            buffer.add(*row, *rest)
        state = generator.normal(size=(1, 4)) if done else following
    found, expected = (buffer._get_samples(np.arange(12)) for buffer in (ours, theirs))
    for name in ("observations", "actions", "next_observations", "dones", "rewards", "discounts"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


def test_distances_are_looked_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ring, back = torch.rand(1, 50, 5), torch.randint(0, 8, (1, 50), generator=torch.Generator().manual_seed(0))
    first = torch.arange(40)
    at = (torch.zeros_like(first), first, 49 - first)
    found = []
    for together in (128, 3):
        monkeypatch.setattr(multi_step, "TOGETHER", together)
        found.append(look_ahead(ring, back, *at, state_features=1, reach=7, n_steps=3, gamma=GAMMA))
    for whole, parts in zip(*found, strict=True):
        assert torch.equal(whole, parts)
    assert found[0][1].unique().numel() == 3  # one step, two and three


def test_operations_do_not_grow_with_the_environments_of_a_task() -> None:
    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for environments in (1, 64):
        ring, back = torch.rand(1, 500, 5), torch.full((1, 500), environments)
        first = torch.arange(8)
        at = (torch.zeros_like(first), first, 499 - first)
        with Counting() as counting:
            sizes = {"state_features": 1, "reach": 2 * environments - 1, "n_steps": 3, "gamma": GAMMA}
            sums, _ = look_ahead(ring, back, *at, **sizes)
        expected = sum(GAMMA**k * ring[0, first + k * environments, -2] for k in range(3))
        torch.testing.assert_close(sums[:, -2], expected)
        counts.append(counting.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("environments", ENVIRONMENTS)
def test_a_copy_on_a_device_looks_ahead_as_the_buffer_does(environments: str) -> None:
    env = ENVIRONMENTS[environments]()
    model = make_model(env=env, n_steps=4, gamma=GAMMA, buffer_size=60, learning_starts=10**6)
    buffer = model.learn(23 * env.num_envs).replay_buffer
    copy = DeviceReplay(buffer, "cpu")
    copy.update()
    batch, indices = copy._own.sample(40)
    expected = buffer._get_samples(indices.numpy())
    assert len(batch.discounts.unique()) == 4
    for name, values in expected._asdict().items():
        assert values is None or torch.equal(getattr(batch, name), values), name


def test_normalized_rewards_are_normalized_before_they_are_added() -> None:
    env = VecNormalize(DummyVecEnv(point_tasks()), norm_obs=False, clip_reward=0.01)
    model = make_model(env=env, n_steps=3, gamma=0.5, learning_starts=10**6).learn(80)
    batch = model.replay_buffer.gather(np.zeros(5, int), np.arange(5), model.get_vec_normalize_env())
    torch.testing.assert_close(batch.rewards, torch.full((5, 1), -0.01 * (1 + 0.5 + 0.25)))  # each is clipped


def test_demonstrations_look_ahead_too() -> None:
    observations = make_model().observation_space
    buffer = DemonstrationBuffer(
        100, observations, spaces.Box(-1, 1, (2,)), num_tasks=4, demonstrations=6, n_steps=2, gamma=GAMMA
    )
    states = np.arange(7.0)[:, None, None].repeat(4, axis=1).repeat(4, axis=2)
    rows = np.concatenate([states, np.eye(4)[None].repeat(7, axis=0)], axis=2).astype(np.float32)
    for i in range(6):
        still = (np.zeros((4, 2)), np.ones(4), np.zeros(4, bool), [{}] * 4)
        buffer.shown.add(rows[i], rows[i + 1], *still)
        buffer.add(rows[i], rows[i + 1], *still)
    batch = buffer.sample(400)
    assert sorted(batch.rewards[:200].unique().tolist()) == pytest.approx([1, 1 + GAMMA])
    torch.testing.assert_close(batch.discounts, torch.where(batch.rewards > 1, GAMMA**2, GAMMA))


@pytest.mark.parametrize("network", ["mt-sac", "d2r"])
@pytest.mark.parametrize("learner", [{}, {"joint_update": True}, {"critic_loss": "categorical", "bins": 11}], ids=str)
def test_targets_have_the_discounts_of_the_batch(network: str, learner: dict[str, Any]) -> None:
    model, sac = make(network, **learner)
    batch = draw(model)
    discounts = torch.tensor([0.9, 0.81, 0.5] * (len(batch.rewards) // 3), dtype=torch.float64)[:, None]
    found = step(model, sac, batch._replace(discounts=discounts))
    single = step(*make(network, **learner), batch)
    assert not torch.isclose(found.critic_loss, single.critic_loss).any()


def test_the_order_is_saved(tmp_path: Any) -> None:
    env = ENVIRONMENTS["several of a task"]()
    options = {"n_steps": 3, "gamma": GAMMA, "buffer_size": 400}
    model = make_model(env=env, **options).learn(40 * env.num_envs)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make_model(env=ENVIRONMENTS["several of a task"](), **options)
    other.load_replay_buffer(tmp_path / "buffer")
    tasks, places = np.zeros(50, int), np.arange(50)
    for buffer in (other.replay_buffer, model.replay_buffer):  # the next step follows what was saved
        buffer.add(*following(model.replay_buffer, env.num_envs))
    found, expected = (each.replay_buffer.gather(tasks, places) for each in (other, model))
    assert torch.equal(found.rewards, expected.rewards)
    assert torch.equal(found.discounts, expected.discounts)
    with pytest.raises(ValueError, match="the stored buffer must have order_bytes 0, got 4"):
        make_model(env=env, buffer_size=400).load_replay_buffer(tmp_path / "buffer")


def following(buffer: RouteReplayBuffer, count: int) -> tuple[Any, ...]:
    """The next transitions of environments, all of which stay where they are."""
    tasks, places = buffer._latest.T
    states = np.concatenate([buffer.rows[tasks, places, 4:8], np.eye(4, dtype=np.float32)[tasks]], axis=1)
    paths = None if buffer.paths is None else buffer.paths[tasks, places]
    return states, states, np.zeros((count, 2)), np.ones(count), np.zeros(count, bool), [{}] * count, paths


@pytest.mark.parametrize("options", [{"n_steps": 1}, {"n_steps": 5}, {"gamma": 0.5}], ids=str)
def test_a_saved_model_takes_other_returns(options: dict[str, Any], tmp_path: Any) -> None:
    make_model(n_steps=3, gamma=GAMMA).save(tmp_path / "model")
    model = MultiTaskSAC.load(tmp_path / "model", DummyVecEnv(point_tasks()), **options)
    buffer = model.replay_buffer
    assert (model.n_steps, model.gamma) == tuple(({"n_steps": 3, "gamma": GAMMA} | options).values())
    assert buffer.n_steps == model.n_steps
    assert buffer.gamma == model.gamma or model.n_steps == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gamma": 0.5}, r"`gamma` must stay 0\.9, with which the model was made, got 0\.5; make"),
        ({"n_steps": 2}, "`n_steps` must stay 3, with which the model was made, got 2; make another"),
    ],
    ids=str,
)
def test_other_returns_than_those_of_the_buffer_are_refused(change: dict[str, Any], told: str) -> None:
    model = make_model(n_steps=3, gamma=GAMMA).learn(60)
    vars(model).update(change)
    with pytest.raises(ValueError, match=told):
        model.train(1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_steps": 0}, "`n_steps` must be at least 1, got 0"),
        ({"n_steps": 1.5}, r"`n_steps` must be an integer, got 1\.5"),
        ({"gamma": 2.0}, r"`gamma` must be at most 1, got 2\.0"),
        ({"gamma": "a"}, "`gamma` must be a number, got 'a'"),
    ],
    ids=str,
)
def test_wrong_arguments_of_a_buffer_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        make_buffer(**options)


class Same:
    """Environments whose states never change, so that only the order of the transitions tells them apart."""

    def __init__(self, seed: int, capacity: int, n_steps: int) -> None:
        self.random = np.random.default_rng(seed)
        self.buffer = make_buffer(capacity, paths=False, n_steps=n_steps, gamma=GAMMA)
        self.tasks = self.random.integers(0, TASKS, size=5)
        self.steps: list[list[tuple[float, bool, bool]]] = []
        self.places: dict[tuple[int, int], tuple[int, int]] = {}
        self.written = np.zeros(TASKS, int)

    def step(self) -> None:
        count = len(self.tasks)
        rewards, done, cut = (
            self.random.integers(1, 99, count),
            self.random.random(count) < 0.3,
            self.random.random(count),
        )
        infos = [{"TimeLimit.truncated": bool(over and part < 0.5)} for over, part in zip(done, cut, strict=True)]
        states = observe(np.ones((count, 2)), self.tasks)
        self.buffer.add(states, states, np.zeros((count, 2)), rewards, done, infos)
        for i, task in enumerate(self.tasks):
            self.places[int(task), int(self.written[task]) % self.buffer.capacity] = (len(self.steps), i)
            self.written[task] += 1
        ended = [bool(over and part >= 0.5) for over, part in zip(done, cut, strict=True)]
        self.steps.append(list(zip(rewards.astype(float), done.astype(bool), ended, strict=True)))
        self.tasks = np.where(done, self.random.integers(0, TASKS, size=count), self.tasks)

    def expected(self, tasks: Any, places: Any) -> torch.Tensor:
        """The sums of rewards, the discounts and the ends, with shape ``[batch, 3]``."""
        found = []
        for place in zip(tasks.tolist(), places.tolist(), strict=True):
            at, env = self.places[place]
            total, discount, last = 0.0, 1.0, 0.0
            for later in self.steps[at : at + self.buffer.n_steps]:
                reward, done, last = later[env]
                total, discount = total + discount * reward, discount * GAMMA
                if done:
                    break
            found.append((total, discount, float(last)))
        return torch.tensor(found, dtype=torch.float32)


def returns(batch: Any) -> torch.Tensor:
    return torch.cat([batch.rewards, batch.discounts, batch.dones], dim=1)


@pytest.mark.parametrize("seed", range(12))
def test_episodes_whose_states_are_equal_are_told_apart(seed: int) -> None:
    same = Same(seed, capacity=(14, 60)[seed % 2], n_steps=(2, 3, 6)[seed % 3])
    copy = DeviceReplay(same.buffer, "cpu")
    for _ in range(5):
        for _ in range(4):
            same.step()
        tasks = np.repeat(np.arange(TASKS), same.buffer.counts)
        places = np.concatenate([np.arange(count) for count in same.buffer.counts])
        assert torch.allclose(returns(same.buffer.gather(tasks, places)), same.expected(tasks, places))
        copy.update()
        if same.buffer.counts.all():
            batch, indices = copy._own.sample(10)
            assert torch.allclose(returns(batch), same.expected(*np.divmod(indices.numpy(), same.buffer.capacity)))


def test_the_largest_distance_of_two_steps() -> None:
    buffer = make_buffer(9, paths=False, n_steps=2, gamma=GAMMA)
    ending = [np.array([True, False, True]), np.array([False, False, False])]
    for tasks, done, reward in zip(([1, 0, 0], [0, 0, 1]), ending, (1.0, 10.0), strict=True):
        states = observe(np.ones((3, 2)), tasks)
        buffer.add(states, states, np.zeros((3, 2)), np.full(3, reward) + np.arange(3), done, [{}] * 3)
    assert buffer.reach == 3
    # The second environment stays in task 0, where its first step is at 0, and its next one at 3.
    assert buffer.gather(np.array([0]), np.array([0])).rewards.item() == pytest.approx(2 + GAMMA * 11)


def test_an_environment_that_is_reset_into_another_task_begins_anew() -> None:
    buffer = make_buffer(9, paths=False, n_steps=2, gamma=GAMMA)
    for tasks, done in (([0, 1], [False, True]), ([1, 2], [False, False])):
        states = observe(np.ones((2, 2)), tasks)
        buffer.add(states, states, np.zeros((2, 2)), np.ones(2), np.array(done), [{}] * 2)
    assert buffer.gather(np.array([0, 1, 1]), np.array([0, 0, 1])).rewards.tolist() == [[1.0]] * 3


def test_a_ring_that_is_too_small_for_its_environments_has_single_steps() -> None:
    buffer = make_buffer(3, paths=False, n_steps=2, gamma=GAMMA)
    states = observe(np.ones((4, 2)), [0] * 4)
    added = (states, states, np.zeros((4, 2)), np.ones(4), np.zeros(4, bool), [{}] * 4)
    with pytest.warns(UserWarning, match="returns are of single steps, not of 2: with up to 4 .*, got 3; raise"):
        buffer.add(*added)
    for _ in range(2):
        buffer.add(*added)
    assert buffer.gather(np.zeros(3, int), np.arange(3)).discounts.flatten().tolist() == pytest.approx([GAMMA] * 3)
    assert (buffer.most_at_once, buffer.reach) == (4, 3)


@pytest.mark.parametrize(("capacity", "told"), [(3, True), (4, False)])
def test_rings_that_are_too_short(capacity: int, told: bool) -> None:
    env = DummyVecEnv([point_tasks()[k] for k in (0, 1, 2, 3, 0)])  # two of a task at once
    model = make_model("MlpPolicy", env, n_steps=3, buffer_size=4 * capacity, batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(60)
    sentence = "returns are of single steps, not of 3: with up to 2 transitions of a task at once, its ring must hold"
    assert len(caught) == told
    assert all(f"{each.message}".startswith(f"{sentence} more than 3, got {capacity}; raise") for each in caught)
