"""Environments of any kind, with tasks in any order: what is stored is what happened, and what does not fit is told."""

import multiprocessing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sac_models import (
    ENVIRONMENTS,
    SMALL,
    TASKS,
    assert_physical,
    like_sac,
    make_model,
    make_plain,
    observations,
    parameters,
    pendulum,
    points,
    same,
    wrapped,
)
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from dynroute_sb3 import (
    DemonstrationBuffer,
    MultiTaskSAC,
    OneHotTask,
    OverlappedSAC,
    PointTask,
    add_demonstrations,
    point_tasks,
)
from dynroute_sb3.points import GOALS


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments(name: str) -> None:
    env = ENVIRONMENTS[name]()
    model = make_model(env=env, batch_size=8, learning_starts=90)
    before = [p.clone() for p in parameters(model)]
    model.learn(120)
    assert model.num_timesteps in range(120, 124)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == model.num_timesteps
    assert_physical(model)
    assert model._n_updates > 0
    assert all(p.isfinite().all() for p in parameters(model))
    assert not same(before, parameters(model))
    assert model.env is not None
    model.env.close()


@pytest.mark.parametrize("tasks", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 2, 0, 3, 1, 2, 0), (3, 3, 3, 2, 1, 1, 0)])
def test_any_number_of_environments_of_a_task_in_any_order(tasks: tuple[int, ...]) -> None:
    make = point_tasks()
    model = make_model(env=DummyVecEnv([make[task] for task in tasks]), learning_starts=10_000)
    model.learn(30 * len(tasks))
    assert_physical(model)
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.counts.tolist() == [30 * tasks.count(task) for task in range(TASKS)]
    batch = buffer.sample(40)
    assert batch.tasks.bincount().tolist() == [10] * TASKS
    assert torch.equal(batch.observations[:, 4:].argmax(dim=1), batch.tasks)


def test_set_env() -> None:
    model = make_model()
    model.learn(60)
    order = [2, 0, 3, 1]
    env = DummyVecEnv([point_tasks()[task] for task in order])
    model.set_env(env)
    assert model.get_env() is env
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == 120
    assert_physical(model)
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(DummyVecEnv(point_tasks()[:2]))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(DummyVecEnv(point_tasks(one_hot=False)))


def test_set_env_with_another_number_of_tasks() -> None:
    class Fewer(gym.Wrapper):
        num_tasks = 2

    with pytest.raises(ValueError, match=r"the number of tasks must be the same everywhere.*environments says 2"):
        make_model().set_env(DummyVecEnv(wrapped(Fewer)))


def test_action_noise() -> None:
    noise = NormalActionNoise(np.zeros(2), np.full(2, 3.0))
    model = make_model(action_noise=noise, env=ENVIRONMENTS["RescaleAction"]())
    model.learn(120)
    assert_physical(model)
    assert model.replay_buffer is not None
    actions = model.replay_buffer.rows[:, :30, 8:10]
    assert (abs(actions) == 1).mean() > 0.5  # noise of three scales is mostly clipped


class NewTask(OneHotTask):
    """Takes the next task at every reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.task = (self.task + 1) % self.num_tasks
        return super().reset(**kwargs)


def new_tasks() -> gym.Env[Any, Any]:
    return NewTask(PointTask(GOALS[0]), 0, TASKS)


@pytest.mark.parametrize("kind", [MultiTaskSAC, OverlappedSAC])
def test_learning_waits_until_every_task_has_transitions(kind: type[MultiTaskSAC]) -> None:
    model = kind("MlpPolicy", new_tasks(), policy_kwargs=SMALL, batch_size=16, learning_starts=5, device="cpu")
    with pytest.warns(
        UserWarning, match=r"learning waits until .* at step 6 the tasks \['0', '2', '3'\] have none; up"
    ) as w:
        model.learn(70)
    assert len(w) == 1
    assert model.replay_buffer.counts.tolist() == [10, 20, 20, 20]  # episodes of 20 steps
    overlapped = kind is OverlappedSAC
    assert model._n_updates == 10 - overlapped  # from the first step of the last task on
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates == 30 - overlapped


def test_nothing_at_all_to_learn_from() -> None:
    model = make_plain()
    model.set_logger(Logger(None, []))
    with pytest.raises(ValueError, match="every task must have transitions before learning starts"):
        model.train(1, 16)


class Shaped(gym.Wrapper[Any, Any, Any, Any]):
    """Takes actions as an array of two rows, of which the point takes the diagonal."""

    action_space = spaces.Box(np.array([[-1, -2], [0, -1]], np.float32), np.array([[1, 2], [4, 5]], np.float32))

    def step(self, action: Any) -> Any:
        assert np.shape(action) == (2, 2)
        assert self.action_space.contains(action)
        return super().step(np.diag(action))


def shaped(**options: Any) -> MultiTaskSAC:
    env = DummyVecEnv([lambda make=make: Shaped(make()) for make in point_tasks()])
    return make_plain(options.pop("policy", "D2RPolicy"), env=env, **options)


@pytest.mark.parametrize("policy", ["MlpPolicy", "D2RPolicy"])
def test_actions_that_are_arrays(policy: str, tmp_path: Path) -> None:
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros((2, 2)), np.full((2, 2), 0.1)), TASKS)
    model = shaped(policy=policy, action_noise=noise)
    assert model.target_entropy == -4
    model.learn(80)
    assert model._n_updates == 10
    buffer = model.replay_buffer
    assert buffer.actions.shape == (500, TASKS, 4)
    assert (abs(buffer.actions) <= 1).all()
    for batch in (observations(), observations()[0]):
        for deterministic in (True, False):
            actions, _ = model.predict(batch, deterministic=deterministic)
            assert actions.shape == (*batch.shape[:-1], 2, 2)
            assert all(model.action_space.contains(action) for action in actions.reshape(-1, 2, 2))
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=model.env, device="cpu")
    assert np.array_equal(*(m.predict(observations(), deterministic=True)[0] for m in (model, loaded)))


def test_arrays_of_actions_in_a_checkpoint(tmp_path: Path) -> None:
    model = shaped().learn(60)
    model.save_checkpoint(tmp_path / "there")
    loaded = MultiTaskSAC.load_checkpoint(tmp_path / "there", shaped().env, "cpu")
    loaded.learn(20, reset_num_timesteps=False)
    assert np.array_equal(loaded.replay_buffer.rows[:, :15], model.replay_buffer.rows[:, :15])
    assert loaded.replay_buffer.counts.tolist() == [20] * TASKS


def test_demonstrations_whose_actions_are_arrays() -> None:
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 2}}
    model = shaped(**options)
    obs, zeros = observations(each=2).reshape(TASKS, 2, -1), np.zeros((TASKS, 2), np.float32)
    actions = np.random.default_rng(0).uniform(-1, 1, (TASKS, 2, 2, 2)).astype(np.float32)
    add_demonstrations(model, obs, actions, obs, zeros, zeros.astype(bool), wanted=actions / 2)
    assert np.array_equal(model.replay_buffer.shown.actions[:2].swapaxes(0, 1), actions.reshape(TASKS, 2, 4))
    assert np.array_equal(model.replay_buffer.wanted, actions.reshape(TASKS, 2, 4) / 2)


def test_several_environments_of_one_task() -> None:
    model = like_sac(make_vec_env(pendulum, n_envs=2), train_freq=5, gradient_steps=-1).learn(100)
    assert (model.num_timesteps, model._n_updates) == (100, 80)


def test_spaces_of_doubles() -> None:
    class Doubles(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (3,), np.float64)
        action_space = spaces.Box(-1, 1, (2, 1), np.float64)
        num_tasks = 1

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return np.array([0.1, 0.2, 1.0]), {}

        def step(self, action: Any) -> Any:
            assert action.dtype == np.float64
            assert action.shape == (2, 1)
            return np.array([0.1, 0.2, 1.0]), 0.0, False, False, {}

    model = like_sac(Doubles()).learn(40)
    for deterministic in (True, False):
        assert model.predict(np.array([0.1, 0.2, 1.0]), deterministic=deterministic)[0].dtype == np.float64


@pytest.mark.parametrize("make", [lambda: OneHotTask(PointTask(GOALS[0]), 1, 4), new_tasks])
def test_the_environments_pass_the_checker_of_sb3(make: Any) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_env(make(), skip_render_check=True)
    assert [str(each.message) for each in told] == []


@pytest.mark.parametrize("num_tasks", [0, 5])
def test_number_of_points(num_tasks: int) -> None:
    with pytest.raises(ValueError, match=rf"`num_tasks` must be in 1..4, got {num_tasks}\."):
        point_tasks(num_tasks)


@pytest.mark.parametrize("task", [-1, 4])
def test_one_hot_of_a_task_that_is_not_there(task: int) -> None:
    with pytest.raises(ValueError, match=rf"`task` must be in 0..3, got {task}\."):
        OneHotTask(PointTask(GOALS[0]), task, 4)


@pytest.mark.parametrize("task", [True, 1.5, "1", None])
def test_one_hot_of_a_task_that_is_no_number(task: Any) -> None:
    with pytest.raises(TypeError, match=rf"`task` must be an integer, got {task!r}\."):
        OneHotTask(PointTask(GOALS[0]), task, 4)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2, 2)), spaces.Dict(a=spaces.Discrete(2))])
def test_one_hot_behind_what_is_no_vector(space: spaces.Space[Any]) -> None:
    env = PointTask(GOALS[0])
    env.observation_space = space
    with pytest.raises(ValueError, match="`env` must have vectors as observations, got"):
        OneHotTask(env, 0, 2)


@pytest.mark.parametrize("last", [(0, 0), (1, 1), (0.5, 0.5), (2, 0)], ids=str)
def test_environments_whose_one_hot_is_none(last: tuple[float, float]) -> None:
    """It is told at the first step, before a policy reads it."""

    class NoOneHot(OneHotTask):
        def _with_task(self, observation: np.ndarray) -> np.ndarray:
            return np.concatenate([observation, np.array(last, dtype=np.float32)])

    model = make_model(env=DummyVecEnv([lambda: NoOneHot(PointTask(GOALS[0]), 0, 2)]))
    with pytest.raises(ValueError, match="an observation of the environments must end with the one-hot of one of 2"):
        model.learn(10)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 0


def test_environments_without_a_one_hot() -> None:
    """A guess of `num_tasks` that fits the shape alone is not believed."""
    model = make_model("MlpPolicy", "Pendulum-v1", num_tasks=2, batch_size=16)
    with pytest.raises(ValueError, match=r"an observation of the environments must end with the one-hot.*OneHotTask"):
        model.learn(10)


def test_task_without_environments() -> None:
    model = make_model(env=DummyVecEnv(point_tasks()[:3]), task_names=list("abcd"))
    with pytest.warns(UserWarning, match=r"learning waits until every task has .* the tasks \['d'\] have none"):
        model.learn(100)
    assert model._n_updates == 0


def test_a_task_that_changes_within_an_episode() -> None:
    class Leaping(OneHotTask):
        def step(self, action: Any) -> Any:
            self.task = 1
            return super().step(action)

    model = make_model(env=DummyVecEnv([lambda: Leaping(PointTask(GOALS[0]), 0, 2)]))
    with pytest.raises(ValueError, match=r"an environment must keep its task within an episode.*task 0 to 1"):
        model.learn(10)


class Broken(gym.Wrapper):
    """Tells a number that is none, until it is mended."""

    broken = ""

    def __init__(self, env: gym.Env[Any, Any], at: int) -> None:
        super().__init__(env)
        self.at, self.steps = at, 0
        self.actions: list[np.ndarray] = []

    def step(self, action: np.ndarray) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        self.actions.append(action)
        if self.steps == self.at:
            observation = observation.copy()
            if self.broken == "reward":
                reward = float("nan")
            elif self.broken:
                observation[1] = np.inf
                terminated = self.broken == "last observation"
        return observation, reward, terminated, truncated, info


def broken_env(what: str, at: int) -> DummyVecEnv:
    env = DummyVecEnv(wrapped(lambda env: Broken(env, at)))
    env.envs[2].broken = what
    return env


@pytest.mark.parametrize("what", ["reward", "observation", "last observation"])
@pytest.mark.parametrize(("at", "policy"), [(5, "MlpPolicy"), (12, "D2RPolicy")])  # while warming up, while learning
def test_numbers_that_are_none(what: str, at: int, policy: str) -> None:
    model = make_model(policy, env=broken_env(what, at))
    kind = "reward" if what == "reward" else "next observation"
    told = rf"every {kind} must be finite, got .* of task 2 \(environment 2\) at vector step {at - 1}; nothing was"
    with pytest.raises(ValueError, match=told):
        model.learn(400)
    assert model.replay_buffer is not None
    assert model.replay_buffer.counts.tolist() == [at - 1] * TASKS
    assert_physical(model)
    assert all(p.isfinite().all() for p in parameters(model))
    model.set_env(points())  # the model goes on with environments that are mended
    model.learn(84, reset_num_timesteps=False)
    assert model.replay_buffer.counts.tolist() == [at - 1 + 21] * TASKS
    assert_physical(model)
    assert all(p.isfinite().all() for p in parameters(model))


@pytest.mark.parametrize("at", [5, 20])
def test_going_on_with_the_same_environments_after_an_error(at: int) -> None:
    model = make_model(env=broken_env("reward", at), learning_starts=10_000)
    with pytest.raises(ValueError, match="every reward must be finite"):
        model.learn(400)
    model.learn(80, reset_num_timesteps=False)
    assert_physical(model)


@pytest.mark.parametrize("policy", ["D2RPolicy", "MlpPolicy"])
def test_a_first_observation_that_is_no_number(policy: str) -> None:
    class BrokenReset(gym.Wrapper):
        resets, acted = 0, False

        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            self.resets += 1
            if self.resets == 2:
                observation[0] = np.nan
            return observation, info

        def step(self, action: np.ndarray) -> Any:
            self.acted |= bool(np.isnan(action).any())
            return super().step(action)

    env = DummyVecEnv(wrapped(BrokenReset))
    model = make_model(policy, env=env)
    with pytest.raises(
        ValueError, match=r"at step 80, an observation of the environments must be finite, row 0 of task 0"
    ):
        model.learn(400)
    assert not any(env.get_attr("acted"))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_actions_without_a_number(shape: tuple[int, ...]) -> None:
    class Shaped(gym.Wrapper):
        action_space = spaces.Box(-1, 1, shape)

    with pytest.raises(ValueError, match="the action space must be a Box of vectors or arrays of numbers, got Box"):
        make_model(env=DummyVecEnv(wrapped(Shaped)))


def test_environments_that_are_refused_are_not_kept() -> None:
    model = make_model()
    env = model.get_env()
    with pytest.raises(ValueError, match="`env` must leave the one-hot of the task as it is"):
        model.set_env(VecNormalize(points()))
    assert model.get_env() is env


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_learning_while_the_environments_step() -> None:
    order: list[str] = []

    class Telling(DummyVecEnv):
        def step_async(self, actions: np.ndarray) -> None:
            order.append("sent")
            super().step_async(actions)

        def step_wait(self) -> Any:
            order.append("received")
            return super().step_wait()

    class Watched(OverlappedSAC):
        def _catch_up(self) -> None:
            before = self._n_updates
            super()._catch_up()
            order.append(f"{self._n_updates - before} updates")

    model = Watched("MlpPolicy", Telling(point_tasks()), learning_starts=4, gradient_steps=2, batch_size=8, seed=0)
    model.learn(4 * 4)
    # Learning starts after the second step, and what it is due for comes during the next one.
    assert order == [
        *("sent", "0 updates", "received") * 2,
        *("sent", "2 updates", "received") * 2,
    ]
    assert (model._n_updates, model.updates_due) == (4, 2)
    plain = MultiTaskSAC(
        "MlpPolicy", DummyVecEnv(point_tasks()), learning_starts=4, gradient_steps=2, batch_size=8, seed=0
    )
    plain.learn(4 * 4)
    assert plain._n_updates == 6
    assert not same(parameters(plain), parameters(model))


@pytest.mark.parametrize(("each", "after"), [(1, (5, 1)), (2, (6, 2))])
def test_an_update_that_fails_while_the_environments_step_loses_and_repeats_nothing(
    each: int, after: tuple[int, int]
) -> None:
    class Failing(OverlappedSAC):
        failures = 1

        def _update(self, *arguments: Any) -> None:
            if self._n_updates == 3 and self.failures:
                self.failures -= 1
                raise RuntimeError("no memory is left")
            super()._update(*arguments)

    env = SubprocVecEnv(point_tasks(), start_method="forkserver")
    options = {"learning_starts": 4, "batch_size": 8, "gradient_steps": each, "seed": 0, "device": "cpu"}
    model = Failing("MlpPolicy", env, policy_kwargs=SMALL, **options)
    with pytest.raises(RuntimeError, match="no memory is left"):
        model.learn(40)
    assert (model._n_updates, model.updates_due) == (3, 1)
    model.learn(8, reset_num_timesteps=False)
    assert (model._n_updates, model.updates_due) == after
    assert_physical(model)
    env.close()


class Dictionary(gym.Env[Any, Any]):
    observation_space = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), goal=spaces.Box(-1, 1, (3,)))
    action_space = spaces.Box(-1, 1, (2,))
    num_tasks = 2


@pytest.mark.parametrize("how", ["env", "VecEnv", "set_env", "her"])
def test_observations_that_are_dictionaries(how: str) -> None:
    calls: dict[str, Any] = {
        "env": lambda: make_plain(env=Dictionary()),
        "VecEnv": lambda: make_plain(env=DummyVecEnv([Dictionary])),
        "set_env": lambda: make_plain().set_env(DummyVecEnv([Dictionary])),
        "her": lambda: make_plain(env=Dictionary(), replay_buffer_class=HerReplayBuffer),
    }
    with pytest.raises(ValueError, match=r"the observation space must be a Box .*, got Dict.*FlattenObservation"):
        calls[how]()


def test_environments_that_are_vectorized_by_gymnasium() -> None:
    with pytest.raises(
        ValueError,
        match=r"`env` must be an environment or a VecEnv of SB3, got a SyncVectorEnv of gymnasium; make a Dum",
    ):
        make_plain(env=gym.vector.SyncVectorEnv(point_tasks()))
