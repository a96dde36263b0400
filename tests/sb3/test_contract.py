"""MultiTaskSAC keeps the contract of Stable-Baselines3: what works with SAC works with it, and what cannot is told."""

import copy
import csv
import functools
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from dynroute import networks
from dynroute.functional import route_temperature, task_weights
from dynroute_sb3 import (
    CheckpointDirectory,
    D2RPolicy,
    MultiTaskActorCriticPolicy,
    MultiTaskPolicy,
    MultiTaskSAC,
    OneHotTask,
    OverlappedSAC,
    PointTask,
    TaskSpace,
    point_tasks,
)
from dynroute_sb3.points import GOALS
from dynroute_sb3.policies import POLICIES
from dynroute_sb3.replay import ENDED

TASKS = 4
TINY: dict[str, Any] = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}
SIZES: dict[str, dict[str, Any]] = {
    "MultiTaskPolicy": {"hidden_sizes": (8,)},
    "MlpPolicy": {"hidden_sizes": (8,)},
    "MultiHeadPolicy": {"hidden_sizes": (8,)},
    "MoEPolicy": {"num_experts": 2, "width": 8, "depth": 1, "router_sizes": (8,)},
    "HardRoutingPolicy": {"trunk_sizes": (8,), "layer_sizes": (2, 2), "width": 8},
    "SoftModularPolicy": {"trunk_sizes": (8,), "layer_sizes": (2, 2), "width": 8, "router_sizes": (8,)},
    "CAREPolicy": {"num_encoders": 2} | {f"{part}_sizes": (8,) for part in ("encoder", "context", "gate", "hidden")},
    "PaCoPolicy": {"num_sets": 2, "hidden_sizes": (8,)},
    "D2RPolicy": TINY,
    "BRCPolicy": {"width": 8, "blocks": 1, "embedding_features": 3},
    "ScaleMoEPolicy": {"num_experts": 3, "width": 8, "embedding_features": 3},
}
SHARING = {"PaCoPolicy", "BRCPolicy", "ScaleMoEPolicy"}
NETWORKS = {
    "MultiTaskPolicy": "MultiTaskMLP",
    "MlpPolicy": "MultiTaskMLP",
    "MultiHeadPolicy": "MultiHead",
    "MoEPolicy": "MixtureOfExperts",
    "HardRoutingPolicy": "HardRouting",
    "SoftModularPolicy": "SoftModularization",
    "CAREPolicy": "CARE",
    "PaCoPolicy": "PaCo",
    "D2RPolicy": "DynamicDepthRouting",
    "BRCPolicy": "ResidualMLP",
    "ScaleMoEPolicy": "ScaleMoE",
}


def points(num_tasks: int = TASKS) -> VecEnv:
    return DummyVecEnv(point_tasks(num_tasks))


def wrapped(wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]], num_tasks: int = TASKS) -> list[Any]:
    return [lambda make=make: wrap(make()) for make in point_tasks(num_tasks)]


def make_model(policy: Any = "D2RPolicy", env: Any = None, **options: Any) -> MultiTaskSAC:
    kwargs = {"network_kwargs": SIZES.get(policy, TINY), **options.pop("policy_kwargs", {})}
    defaults = {"batch_size": 16, "learning_starts": 40, "buffer_size": 2000, "seed": 0, "learning_rate": 1e-3}
    env = points() if env is None else env
    return MultiTaskSAC(policy, env, policy_kwargs=kwargs, device="cpu", **{**defaults, **options})


def observations(num_tasks: int = TASKS, each: int = 5) -> np.ndarray:
    states = np.random.default_rng(0).uniform(-1, 1, (num_tasks * each, 4))
    return np.concatenate([states, np.eye(num_tasks).repeat(each, axis=0)], axis=1).astype(np.float32)


def assert_physical(model: MultiTaskSAC) -> None:
    """Every stored transition is one step of the point, with the action that was stored, towards the goal of its task.

    A wrong scale of actions, a wrong task, a step that is missing and an observation of the next episode all show here.
    """
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.size() > 0
    for task, (rows, count) in enumerate(zip(buffer.rows, buffer.counts, strict=True)):
        position, velocity, after, velocity_after, action = (rows[:count, i : i + 2] for i in range(0, 10, 2))
        reward, ended = rows[:count, 10], rows[:count, 11]
        np.testing.assert_allclose(velocity_after, 0.5 * velocity + 0.15 * action, atol=1e-5)
        np.testing.assert_allclose(after, np.clip(position + velocity_after, -1, 1), atol=1e-5)
        np.testing.assert_allclose(-reward, np.linalg.norm(after - np.array(GOALS[task]), axis=1), atol=1e-5)
        assert (abs(action) <= 1).all()
        assert (ended != ENDED).all()  # a point runs out of time, which is no end


def parameters(model: MultiTaskSAC) -> list[Tensor]:
    return [*model.policy.parameters(), *model.policy.buffers()] + (
        [] if model.log_ent_coef is None else [model.log_ent_coef.detach()]
    )


def assert_learns(model: MultiTaskSAC) -> None:
    """The actor and the critic change by learning, and all numbers stay finite."""
    nets = (model.actor.net, model.critic)
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    model.learn(60)
    assert model._n_updates > 0
    for net, old in zip(nets, before, strict=True):
        assert not same(old, net.state_dict())
    assert all(p.isfinite().all() for p in parameters(model))


def same(one: Any, other: Any) -> bool:
    """Whether nested state dicts hold the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


class Told(KVWriter):
    """Keeps all that is logged, and what else is asked for at that time."""

    def __init__(self, ask: Callable[[], Any] = lambda: None) -> None:
        self.ask = ask
        self.written: list[tuple[dict[str, Any], Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.written.append((dict(key_values), self.ask()))

    def close(self) -> None: ...


# Environments ---------------------------------------------------------------------------------------------------------


class Changing(OneHotTask):
    """Takes the next task at every reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.task = (self.task + 1) % self.num_tasks
        assert isinstance(self.unwrapped, PointTask)
        self.unwrapped.goal = np.asarray(GOALS[self.task])
        return super().reset(**kwargs)


ENVIRONMENTS: dict[str, Callable[[], VecEnv | gym.Env[Any, Any]]] = {
    "DummyVecEnv": points,
    "SubprocVecEnv": lambda: SubprocVecEnv(point_tasks(2), start_method="forkserver"),
    "Monitor": lambda: DummyVecEnv(wrapped(Monitor)),
    "VecMonitor": lambda: VecMonitor(points()),
    "RescaleAction": lambda: DummyVecEnv(
        wrapped(
            lambda env: gym.wrappers.RescaleAction(
                env, min_action=np.array([-3.0, 0.0], dtype=np.float32), max_action=np.array([5.0, 0.1], np.float32)
            )
        )
    ),
    "float64": lambda: DummyVecEnv(
        wrapped(
            lambda env: gym.wrappers.TransformObservation(
                env, lambda obs: obs.astype(np.float64), spaces.Box(-2, 2, (4 + TASKS,), np.float64)
            )
        )
    ),
    "one that is no VecEnv": lambda: Changing(PointTask(GOALS[0]), 0, TASKS),
    "changing tasks": lambda: DummyVecEnv([lambda k=k: Changing(PointTask(GOALS[0]), k, TASKS) for k in (0, 0, 2)]),
    "VecNormalize": lambda: VecNormalize(points(), norm_obs=False, norm_reward=True),
    "VecMonitor of VecNormalize": lambda: VecMonitor(VecNormalize(points(), norm_obs=False)),
}


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
    model = make_model(env=DummyVecEnv([make[task] for task in tasks]))
    model.learn(30 * len(tasks))
    assert_physical(model)
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.counts.tolist() == [30 * tasks.count(task) for task in range(TASKS)]
    batch = buffer.sample(40)
    assert batch.tasks.bincount().tolist() == [10] * TASKS
    assert torch.equal(batch.observations[:, 4:].argmax(dim=1), batch.tasks)


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


# Callbacks ------------------------------------------------------------------------------------------------------------


def test_eval_callback(tmp_path: Path) -> None:
    callback = EvalCallback(
        VecMonitor(points()),
        n_eval_episodes=4,
        eval_freq=10,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    make_model(env=VecMonitor(points())).learn(120, callback=callback)
    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert evaluations["results"].shape == (3, 4)
    best = MultiTaskSAC.load(tmp_path / "best_model.zip", device="cpu")
    assert best.predict(observations())[0].shape == (20, 2)


def test_checkpoint_callback(tmp_path: Path) -> None:
    env = VecNormalize(points(), norm_obs=False)
    callback = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    make_model(env=env).learn(80, callback=callback)
    for steps in (40, 80):
        model = MultiTaskSAC.load(tmp_path / f"rl_model_{steps}_steps.zip", device="cpu")
        model.load_replay_buffer(tmp_path / f"rl_model_replay_buffer_{steps}_steps.pkl")
        assert model.replay_buffer is not None
        assert model.replay_buffer.size() == steps - 4  # SB3 calls back before the step is stored
        VecNormalize.load(str(tmp_path / f"rl_model_vecnormalize_{steps}_steps.pkl"), points())


def test_callbacks_that_stop() -> None:
    model = make_model(env=VecMonitor(points()))
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(2))  # of each environment
    assert model.num_timesteps == 2 * 20 * TASKS
    reached = StopTrainingOnRewardThreshold(-1e3)  # any policy does
    model.learn(10_000, callback=EvalCallback(VecMonitor(points()), callback_on_new_best=reached, eval_freq=5))
    assert model.num_timesteps == 5 * TASKS


@pytest.mark.parametrize("stop", [13, 20, 21])  # within an episode, at its end, behind it
@pytest.mark.parametrize("environments", ["DummyVecEnv", "changing tasks", "VecNormalize"])
def test_going_on_after_a_callback_stopped(environments: str, stop: int) -> None:
    calls: list[int] = []

    def callback(*_: Any) -> bool:
        calls.append(1)
        return len(calls) != stop

    model = make_model(env=ENVIRONMENTS[environments](), learning_starts=90, batch_size=8)
    model.learn(10_000, callback=callback)
    assert model.num_timesteps == stop * model.n_envs
    model.learn(100, callback=[], reset_num_timesteps=False)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == model.num_timesteps
    assert_physical(model)


def test_an_episode_that_ends_as_a_callback_stops_is_told() -> None:
    model = make_model(env=VecMonitor(points()))
    model.learn(10_000, callback=lambda *_: model.num_timesteps < 20 * TASKS)
    assert model.ep_info_buffer is not None
    assert [list(returns) for returns in model.report.returns] == [[info["r"]] for info in model.ep_info_buffer]
    assert len(model.ep_info_buffer) == TASKS


@pytest.mark.parametrize("policy", ["D2RPolicy", "PaCoPolicy"])
def test_evaluate_policy(policy: str) -> None:
    rewards, lengths = evaluate_policy(
        make_model(policy), VecMonitor(points()), n_eval_episodes=8, return_episode_rewards=True
    )
    assert len(rewards) == 8
    assert lengths == [20] * 8


# SB3 leaves it to tqdm to tell that its bar is experimental.
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar() -> None:
    assert make_model().learn(60, progress_bar=True).num_timesteps == 60


# Predicting -----------------------------------------------------------------------------------------------------------


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


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_save_and_load(policy: str, tmp_path: Path) -> None:
    model = make_model(policy, task_names=["a", "b", "c", "d"], task_weights="alpha-mean")
    model.learn(120)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")

    for device in ("cpu", torch.device("cpu"), "auto"):
        alone = MultiTaskSAC.load(tmp_path / "model.zip", device=device)
        assert alone.device.type == ("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
        assert alone.get_env() is None
        assert alone.task_names == ["a", "b", "c", "d"]
        assert same([p.cpu() for p in parameters(alone)], parameters(model))

    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    assert same(loaded.get_parameters(), model.get_parameters())  # those of the optimizers included
    assert any(name.endswith("optimizer") and len(p["state"]) for name, p in loaded.get_parameters().items())
    for name in ("task_weights", "actor_paths", "critic_paths", "num_timesteps", "_n_updates", "batch_size", "gamma"):
        assert getattr(loaded, name) == getattr(model, name)
    best, again = (m.predict(observations(), deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(best, again)
    torch.manual_seed(3)
    drawn = model.predict(observations())[0]
    torch.manual_seed(3)
    assert np.array_equal(loaded.predict(observations())[0], drawn)  # at the temperature of each task

    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    for one in (model, loaded):  # both go on alike
        torch.manual_seed(4)
        np.random.seed(4)
        one.train(3, batch_size=16)
    assert same(loaded.get_parameters(), model.get_parameters())
    assert same(parameters(loaded), parameters(model))
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 160
    assert_physical(loaded)


def test_load_with_another_number_of_environments(tmp_path: Path) -> None:
    make_model().learn(60).save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=DummyVecEnv(point_tasks() * 2), device="cpu", gamma=0.5)
    assert loaded.learn(160).num_timesteps == 160
    assert loaded.gamma == 0.5
    assert_physical(loaded)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        MultiTaskSAC.load(tmp_path / "model", env=points(3), device="cpu")


@pytest.mark.parametrize("policy", ["D2RPolicy", "PaCoPolicy", "BRCPolicy"])
def test_get_and_set_parameters(policy: str, tmp_path: Path) -> None:
    model, other = make_model(policy), make_model(policy, seed=1)
    model.learn(60)
    stored = copy.deepcopy(model.get_parameters())
    optimizers = {"actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
    assert stored.keys() == {"policy", *optimizers} | ({"policy.shared_optimizer"} if policy in SHARING else set())
    assert not same(stored["policy"], other.get_parameters()["policy"])
    other.set_parameters(copy.deepcopy(stored), exact_match=True)  # torch takes the moments of Adam as they are
    assert same(stored, other.get_parameters())
    other.learn(60)
    assert same(stored, model.get_parameters())  # nothing is shared

    with pytest.raises(ValueError, match="Names of parameters do not match"):
        other.set_parameters({"policy": stored["policy"]}, exact_match=True)
    first = next(iter(stored["policy"]))
    other.set_parameters({"policy": {first: torch.full_like(stored["policy"][first], 7.0)}}, exact_match=False)
    assert (other.policy.state_dict()[first] == 7).all()
    model.save(tmp_path / "model")
    other.set_parameters(str(tmp_path / "model.zip"), exact_match=True, device="cpu")
    assert same(other.get_parameters(), model.get_parameters())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_saved_alone(policy: str, tmp_path: Path) -> None:
    model = make_model(policy)
    model.learn(60)
    model.policy.save(str(tmp_path / "policy"))
    loaded = POLICIES[policy].load(str(tmp_path / "policy"), device="cpu")
    assert type(loaded) is POLICIES[policy]
    assert same(loaded.state_dict(), model.policy.state_dict())
    for deterministic in (True, False):
        torch.manual_seed(3)
        expected = model.policy.predict(observations(), deterministic=deterministic)[0]
        torch.manual_seed(3)
        assert np.array_equal(loaded.predict(observations(), deterministic=deterministic)[0], expected)


@pytest.mark.parametrize("policy", ["D2RPolicy", "PaCoPolicy", "BRCPolicy"])
def test_deepcopy(policy: str) -> None:
    model = make_model(policy)
    model.learn(60)
    copied = copy.deepcopy(model.policy)
    before = copy.deepcopy(copied.state_dict())
    assert same(before, model.policy.state_dict())
    model.learn(20, reset_num_timesteps=False)
    assert same(before, copied.state_dict())  # neither weights nor optimizers are shared
    mine = {id(p) for p in copied.parameters()}
    for optimizer in (copied.actor.optimizer, copied.critic.optimizer, copied.shared_optimizer):
        assert optimizer is None or {id(p) for group in optimizer.param_groups for p in group["params"]} <= mine
    assert copied.predict(observations())[0].shape == (20, 2)


def test_one_seed_gives_one_run() -> None:
    one, same_seed, other = (make_model(seed=seed).learn(steps) for seed, steps in ((5, 500), (5, 500), (6, 60)))
    assert same(parameters(one), parameters(same_seed))
    assert one.replay_buffer is not None
    assert same_seed.replay_buffer is not None
    assert np.array_equal(one.replay_buffer.rows, same_seed.replay_buffer.rows)
    assert not same(parameters(one), parameters(other))


# Logging --------------------------------------------------------------------------------------------------------------

PER_TASK = (
    *("return", "success", "actor_loss", "critic_loss", "ent_coef_loss", "entropy", "masked", "ent_coef", "weight"),
    *("route_temperature", "modules_used"),
)
NAMES = ["right", "left", "top", "bottom"]


# The reader of events is that of TensorBoard.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_and_csv(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = DummyVecEnv(wrapped(Monitor))
    make_model(env=env, tensorboard_log=str(tmp_path), task_names=NAMES).learn(160, tb_log_name="run")
    events = EventAccumulator(str(tmp_path / "run_1")).Reload()
    expected = {f"{what}/{name}" for what in PER_TASK for name in NAMES}
    overall = {"rollout/ep_rew_mean", "rollout/success_rate", "rollout/modules_used", "train/ent_coef"}
    assert expected | overall <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("return/top")] == [80, 160]

    model = make_model(env=env, task_names=NAMES)
    model.set_logger(configure(str(tmp_path / "csv"), ["csv"]))
    model.learn(100)
    model.logger.close()
    with (tmp_path / "csv" / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert expected | overall <= rows[-1].keys()
    assert all(np.isfinite(float(rows[-1][key])) for key in expected)


def test_a_screen_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    make_model(env=VecMonitor(points()), verbose=1, task_names=NAMES).learn(100)
    shown = capsys.readouterr().out
    assert "modules_used" in shown
    assert "bottom" not in shown


@pytest.mark.parametrize("environments", ["Monitor", "changing tasks"])
@pytest.mark.parametrize("window", [2, 100])
def test_returns_and_successes_are_those_of_the_episodes(environments: str, window: int) -> None:
    env = VecMonitor(ENVIRONMENTS[environments]()) if environments != "Monitor" else ENVIRONMENTS[environments]()
    model = make_model(env=env, stats_window_size=window, learning_starts=10_000)
    episodes: list[list[tuple[float, bool]]] = [[] for _ in range(TASKS)]
    goals = {goal: task for task, goal in enumerate(GOALS)}

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            assert isinstance(model._last_obs, np.ndarray)
            for i, info in enumerate(self.locals["infos"]):
                if "episode" in info:  # the task is that of the observation before the step
                    task = int(model._last_obs[i, 4:].argmax())
                    position = info["terminal_observation"][:2]
                    near = min(goals, key=lambda goal: np.hypot(*(position - goal)))
                    success = bool(np.hypot(*(position - GOALS[task])) < 0.2)
                    assert not success or goals[near] == task
                    episodes[task].append((info["episode"]["r"], success))
            return True

    told = Told(lambda: copy.deepcopy(episodes))
    model.set_logger(Logger(None, [told]))
    model.learn(600, callback=Watch(), log_interval=1)
    # Episodes that end at the same step are told once, and together.
    assert sum(map(len, episodes)) >= 24
    assert len(told.written) == sum(map(len, episodes)) // model.n_envs
    for values, seen in told.written:
        for task, ended in enumerate(seen):
            if not ended:
                continue
            returns, successes = zip(*ended[-window:], strict=True)
            assert values[f"return/{task}"] == pytest.approx(np.mean(returns))
            assert values[f"success/{task}"] == pytest.approx(np.mean(successes))
    if environments == "Monitor":
        for task, all_returns in enumerate(model.env.env_method("get_episode_rewards")):
            final = told.written[-1][0][f"return/{task}"]
            assert final == pytest.approx(np.mean(all_returns[-window:]))


@pytest.mark.parametrize(
    ("task_weighting", "ent_coef"), [("none", 0.3), ("alpha-sum", "auto_0.2"), ("inverse-alpha-mean", "auto_0.2")]
)
def test_logged_values_are_those_of_the_model(task_weighting: str, ent_coef: float | str) -> None:
    model = make_model(task_weights=task_weighting, ent_coef=ent_coef, ent_coef_lr=0.1)

    def ask() -> tuple[Tensor, Tensor, Tensor, int]:
        buffer, topology = model.replay_buffer, model.policy.topology
        assert buffer is not None
        assert buffer.paths is not None
        assert topology is not None
        alpha = torch.full((TASKS,), ent_coef) if model.log_ent_coef is None else model.log_ent_coef.detach().exp()
        count = int(buffer.counts[0])
        used = topology.used(topology.unpack(torch.from_numpy(buffer.paths[:, :count]))).sum(-1).float().mean(-1)
        return alpha, model.actor.temperature.clone(), used, model._n_updates

    told = Told(ask)
    model.set_logger(Logger(None, [told]))
    model.learn(4 * 60)  # fewer transitions of each task than the paths that are averaged
    assert len(told.written) == 3
    for values, (alpha, temperature, used, n_updates) in told.written[1:]:
        weight = {
            "none": torch.ones(TASKS),
            "alpha-sum": task_weights(alpha, normalize="sum"),
            "inverse-alpha-mean": route_temperature(alpha, normalize="mean"),
        }[task_weighting]
        for what, expected in (
            ("ent_coef", alpha),
            ("weight", weight),
            ("route_temperature", temperature),
            ("modules_used", used),
            ("masked", torch.zeros(TASKS)),
        ):
            got = [values[f"{what}/{task}"] for task in range(TASKS)]
            np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=what)
        assert values["train/ent_coef"] == pytest.approx(alpha.mean().item(), rel=1e-5)
        assert values["rollout/modules_used"] == pytest.approx(used.mean().item(), rel=1e-5)
        assert values["train/n_updates"] == n_updates
    alpha = told.written[-1][1][0]
    assert (alpha.unique().numel() > 1) == isinstance(ent_coef, str)  # each task has its own, which moves


def test_tasks_that_are_left_out_are_told() -> None:
    told = Told()
    model = make_model(max_task_loss=1e-9)
    model.set_logger(Logger(None, [told]))
    model.learn(160)
    values = told.written[-1][0]
    assert [values[f"masked/{task}"] for task in range(TASKS)] == [1.0] * TASKS
    assert values["train/masked_tasks"] == TASKS


# Networks and options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_every_alias_builds_its_network(policy: str) -> None:
    for given in (policy, POLICIES[policy]):
        model = make_model(given, policy_kwargs={"network_kwargs": SIZES[policy]})
        nets = [model.actor.net, *model.critic.nets, *model.critic_target.nets]
        assert [type(net).__name__ for net in nets] == [NETWORKS[policy]] * 5
        assert not any(p.requires_grad for p in model.critic_target.parameters())


class Own(nn.Module):
    """A network that a user wrote, who knows nothing of dynroute."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(state_features + num_tasks, width), nn.Linear(width, out_features))

    def forward(self, state: Tensor, task: Tensor, *, return_route: bool = False, **_: Any) -> Any:
        output = self.layers(torch.cat([state, task], dim=-1))
        return (output, None) if return_route else output


def own(*sizes: int, **kwargs: Any) -> Own:
    return Own(*sizes, **kwargs)


FACTORIES: dict[str, Any] = {
    "class": Own,
    "function": own,
    "lambda": lambda *sizes, **kwargs: Own(*sizes, **kwargs),
    "partial": functools.partial(networks.build, "d2r", **TINY),
    "method": networks.DynamicDepthRouting,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_network_of_the_user(name: str, tmp_path: Path) -> None:
    sizes = {"partial": {}, "method": TINY}.get(name, {"width": 5})
    model = make_model("MultiTaskPolicy", policy_kwargs={"network": FACTORIES[name], "network_kwargs": sizes})
    assert isinstance(model.actor.net, Own if sizes == {"width": 5} else networks.DynamicDepthRouting)
    assert model.actor_paths == ("topk" if isinstance(model.actor.net, Own) else "replayed")
    model.learn(120)
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    best, again = (m.predict(observations(), deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(best, again)
    loaded.learn(60)


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "D2R without SampleK": ({"gate": "top-2"}, {}),
    "hard gate": ({"gate": "hard"}, {}),
    "soft gate": ({"gate": "soft"}, {}),
    "three sources": ({"gate": "sample-3"}, {}),
    "D2R without ResRouting": ({"protect": "none"}, {}),
    "protect input": ({"protect": "input"}, {}),
    "protect sg": ({"protect": "sg"}, {}),
    "D2R without RouteBalancing": ({}, {"route_temperature": 1.0}),
    "temperatures that average 1": ({}, {"route_temperature": "inverse-alpha-mean"}),
    "sampled paths": ({}, {"actor_paths": "sampled"}),
    "best paths": ({}, {"actor_paths": "topk", "critic_paths": "topk"}),
    "replayed paths": ({}, {"actor_paths": "replayed", "critic_paths": "replayed"}),
    "soft gate, replayed": ({"gate": "soft"}, {"actor_paths": "replayed"}),
    "layer level": ({"level": "layer", "layer_sizes": (2, 2), "num_modules": None}, {}),
    "model level": ({"level": "model", "num_models": 2, "model_depth": 1, "num_modules": None}, {}),
    "five modules": ({"num_modules": 5}, {}),
    "state-free": ({"state_free": True}, {}),
    "no shortcut": ({"shortcut": False}, {}),
    "fixed ent_coef": ({}, {"ent_coef": 0.2}),
    "limited ent_coef": ({}, {"max_ent_coef": 0.5}),
    "own rate of ent_coef": ({}, {"ent_coef_lr": 1e-2}),
    "weights": ({}, {"task_weights": "alpha-sum"}),
    "weights that average 1": ({}, {"task_weights": "alpha-mean"}),
    "released weights": ({}, {"task_weights": "inverse-alpha-mean"}),
    "limited loss": ({}, {"max_task_loss": 1e3}),
    "clipped gradients": ({}, {"max_grad_norm": 1.0}),
    "scaled rewards": ({}, {"reward_scale": 10.0}),
    "no timeouts": ({}, {"replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    "learning rate that changes": ({}, {"learning_rate": lambda left: 1e-3 * left}),
    "rare targets": ({}, {"target_update_interval": 4, "gradient_steps": 2, "train_freq": 2}),
    "as many updates as steps": ({}, {"gradient_steps": -1}),
    "target entropy": ({}, {"target_entropy": -1.0}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_runs(name: str) -> None:
    sizes, options = OPTIONS[name]
    sizes = {key: value for key, value in {**TINY, **sizes}.items() if value is not None}
    model = make_model(policy_kwargs={"network_kwargs": sizes}, **options)
    before = [p.clone() for p in parameters(model)]
    model.learn(100)
    assert model._n_updates > 0
    assert all(p.isfinite().all() for p in parameters(model))
    assert not same(before, parameters(model))
    # Replay is what the paths of gates that select are for.
    gate = sizes.get("gate", "sample-2")
    assert model.actor_paths == options.get("actor_paths", "topk" if gate in ("hard", "soft") else "replayed")
    assert model.replay_buffer is not None
    assert (model.replay_buffer.paths is None) == ("replayed" not in (model.actor_paths, model.critic_paths))


@pytest.mark.parametrize("n_critics", [1, 3])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_keywords_of_a_policy(n_critics: int, optimizer: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    kwargs = {"n_critics": n_critics, "optimizer_class": optimizer, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = make_model(policy_kwargs=kwargs)
    model.learn(60)
    model.policy.save(str(tmp_path / "policy"))
    model.save(tmp_path / "model")
    for policy in (
        model.policy,
        D2RPolicy.load(str(tmp_path / "policy"), device="cpu"),
        MultiTaskSAC.load(tmp_path / "model", device="cpu").policy,
    ):
        assert len(policy.critic.nets) == len(policy.critic_target.nets) == n_critics
        assert type(policy.actor.optimizer) is type(policy.critic.optimizer) is optimizer
        assert policy.actor.optimizer.defaults["weight_decay"] == 0.1


# What is not fit is told ----------------------------------------------------------------------------------------------


def box_env(*shape: int) -> VecEnv:
    """An environment whose observations have a shape, and no attribute of tasks."""

    class Shaped(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, shape)
        action_space = spaces.Box(-1, 1, (2,))

    return DummyVecEnv([Shaped])


class Says(gym.Wrapper):
    """Says that there are another number of tasks."""

    num_tasks = 3


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "task_weights": (
        {"task_weights": "alpha"},
        r"`task_weights` must be one of 'none', 'alpha-sum', .*, got 'alpha'; did you mean 'alpha-sum'",
    ),
    "actor_paths": (
        {"actor_paths": "best"},
        "`actor_paths` must be one of 'sampled', 'replayed', 'topk', None, got 'best'",
    ),
    "critic_paths": ({"critic_paths": None}, "`critic_paths` must be one of 'sampled', 'replayed', 'topk', got None"),
    "temperature by name": (
        {"route_temperature": "alpha"},
        "`route_temperature` must be a positive number or one of .*, got 'alpha'",
    ),
    "temperature of 0": ({"route_temperature": 0.0}, "`route_temperature` must be a positive number.*got 0.0"),
    "negative temperature": ({"route_temperature": -1}, "`route_temperature` must be a positive number.*got -1"),
    "no temperature": ({"route_temperature": None}, "`route_temperature` must be a positive number.*got None"),
    "infinite temperature": ({"route_temperature": float("inf")}, "`route_temperature` must be a positive.*got inf"),
    "temperature of nan": ({"route_temperature": float("nan")}, "`route_temperature` must be a positive.*got nan"),
    **{
        f"{name} of {wrong}": ({name: wrong}, rf"`{name}` must be positive or None, got {wrong}\.")
        for name in ("max_task_loss", "max_grad_norm", "max_ent_coef", "ent_coef_lr")
        for wrong in (0.0, -1.0)
    },
    "batch_size": (
        {"batch_size": 15},
        r"`batch_size` must be a multiple of the 4 tasks, got 15; for instance 16\.",
    ),
    **{
        f"batch_size of {size}": (
            {"batch_size": size},
            rf"`batch_size` must be a multiple of the 4 tasks, got {size}; for instance 4\.",
        )
        for size in (-4, 1)
    },
    **{
        f"reward_scale of {scale}": (
            {"reward_scale": scale},
            rf"`reward_scale` must be positive and finite, got {scale}\.",
        )
        for scale in (0.0, -1.0, float("nan"), float("inf"))
    },
    "names that are the same": ({"task_names": list("abca")}, "`task_names` must differ, since values are logged by"),
    "too few names": ({"task_names": ["a"]}, r"`task_names` must name 4 tasks, got 1 names\."),
    "too many names": ({"task_names": list("abcde")}, r"`task_names` must name 4 tasks, got 5 names\."),
    "n_steps": ({"n_steps": 3}, r"`n_steps` must be 1, got 3: transitions are stored one by one\."),
    "replay_buffer_class": (
        {"replay_buffer_class": ReplayBuffer},
        r"`replay_buffer_class` must be a RouteReplayBuffer, got ReplayBuffer: batches are balanced by task",
    ),
    "optimize_memory_usage": ({"optimize_memory_usage": True}, "`optimize_memory_usage` must be False"),
    "use_sde": ({"use_sde": True}, "`use_sde` must be False"),
    "num_tasks against the environments": (
        {"num_tasks": 3},
        r"the number of tasks must be the same everywhere, but `num_tasks` says 3, `num_tasks` of the environments "
        r"says 4\.",
    ),
    "num_tasks against that of the policy": (
        {"num_tasks": 4, "policy_kwargs": {"num_tasks": 5}},
        "the number of tasks must be the same everywhere, but `num_tasks` says 4, `num_tasks` of `policy_kwargs` says 5"
        ", .*environments says 4",
    ),
    "num_tasks of the policy": (
        {"policy_kwargs": {"num_tasks": 2}},
        "but `num_tasks` of `policy_kwargs` says 2, `num_tasks` of the environments says 4",
    ),
    "environments against each other": (
        {"env": lambda: DummyVecEnv([point_tasks()[0], wrapped(Says)[1]])},
        "but `num_tasks` of the environments says 3 and 4",
    ),
    "nobody tells num_tasks": (
        {"env": lambda: box_env(8)},
        "`num_tasks` must say how many tasks there are.*OneHotTask",
    ),
    "no room for the one-hot": (
        {"env": lambda: box_env(4), "num_tasks": 4},
        "an observation must hold a state and the one-hot of one of 4 tasks, got vectors of 4 numbers.*OneHotTask",
    ),
    "observations that are no vectors": (
        {"env": lambda: box_env(3, 4), "num_tasks": 2},
        "the observation space must be a Box of vectors that end with the one-hot of the task",
    ),
    "replayed without routes": (
        {"policy": "MlpPolicy", "actor_paths": "replayed"},
        "`actor_paths` and `critic_paths` can be 'replayed' where the network has routes, got a MultiTaskMLP without",
    ),
    "critics replayed without routes": (
        {"policy": "MultiHeadPolicy", "critic_paths": "replayed"},
        "can be 'replayed' where the network has routes, got a MultiHead without",
    ),
    "name of a network": ({"policy_kwargs": {"network": "d2", "network_kwargs": {}}}, "did you mean 'd2r'"),
    **{
        f"factory with its own {name}": (
            {"policy_kwargs": {"network": lambda *sizes, i=i, **_: wrong_size(sizes, i), "network_kwargs": {}}},
            rf"`network` must make networks with {name}={size}, as the observations and actions have it, got one with "
            rf"{name}={size + 1}; pass the arguments of the factory on\.",
        )
        for i, (name, size) in enumerate((("state_features", 4), ("num_tasks", 4), ("out_features", 4)))
    },
    "alias": ({"policy": "D2R"}, "`policy` must be one of 'MultiTaskPolicy', .*, got 'D2R'; did you mean 'D2RPolicy'"),
}


def wrong_size(sizes: tuple[int, ...], place: int) -> nn.Module:
    changed = [size + (i == place) for i, size in enumerate(sizes)]
    return networks.build("mt-sac", changed[0], changed[1], changed[2], hidden_sizes=(8,))


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:.*n_steps.*is ignored")
def test_wrong_options_are_told(name: str) -> None:
    options, told = WRONG[name]
    options = {**options, "env": options.get("env", points)()}
    with pytest.raises(ValueError, match=told):
        make_model(**options)


def test_batch_size_is_that_of_the_paper_unless_given() -> None:
    assert make_model(batch_size=None).batch_size == 128 * TASKS


@pytest.mark.parametrize("num_tasks", [0, -1, 2.0, "4", True, None])
def test_number_of_tasks_of_a_space(num_tasks: Any) -> None:
    with pytest.raises(ValueError, match="`num_tasks` must be a positive integer, got"):
        TaskSpace(spaces.Box(-1, 1, (8,)), num_tasks)


@pytest.mark.parametrize("num_tasks", [0, 5])
def test_number_of_points(num_tasks: int) -> None:
    with pytest.raises(ValueError, match=rf"`num_tasks` must be in 1..4, got {num_tasks}\."):
        point_tasks(num_tasks)


@pytest.mark.parametrize("task", [-1, 4])
def test_one_hot_of_a_task_that_is_not_there(task: int) -> None:
    with pytest.raises(ValueError, match=rf"`task` must be in 0..3, got {task}\."):
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


@pytest.mark.parametrize(("every", "keep", "name"), [(0, 1, "every"), (1, 0, "keep")])
def test_options_of_the_checkpoint_callback(every: int, keep: int, name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        CheckpointDirectory(every, tmp_path, keep=keep)


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


@pytest.mark.parametrize("policy", ["D2RPolicy", "MlpPolicy"])
@pytest.mark.parametrize("what", ["reward", "observation", "last observation"])
@pytest.mark.parametrize("at", [5, 30])  # while warming up, while learning
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
    model.learn(100, reset_num_timesteps=False)
    assert model.replay_buffer.counts.tolist() == [at - 1 + 25] * TASKS
    assert_physical(model)
    assert all(p.isfinite().all() for p in parameters(model))


@pytest.mark.parametrize("at", [5, 20])
def test_going_on_with_the_same_environments_after_an_error(at: int) -> None:
    model = make_model(env=broken_env("reward", at))
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


@pytest.mark.parametrize("num_tasks", [2.5, "four", True, 0, -1])
def test_number_of_tasks_of_a_model(num_tasks: Any) -> None:
    try:
        make_model("MlpPolicy", "Pendulum-v1", num_tasks=num_tasks, batch_size=None)
    except Exception as error:
        assert "`num_tasks` must be a positive integer" in str(error)  # noqa: PT017 - of whatever type
    else:
        pytest.fail("it was taken")


@pytest.mark.parametrize("policy", ["D2RPolicy", "MlpPolicy"])
def test_no_bonus_for_entropy(policy: str) -> None:
    model = make_model(policy, ent_coef=0.0)
    assert_learns(model)
    assert all(total.isfinite().all() for total in model.report.totals.values())
    assert model.entropy_coefficients.tolist() == [0] * TASKS


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


def test_predicting_from_what_gymnasium_returns(model: MultiTaskSAC) -> None:
    returned = point_tasks()[0]().reset(seed=0)
    with pytest.raises(ValueError, match=r"You have passed a tuple to the predict\(\) function"):
        model.predict(returned)
    assert model.action_space.contains(model.predict(returned[0])[0])


def test_networks_of_doubles() -> None:
    model = make_model(policy_kwargs={"network_kwargs": {**TINY, "dtype": torch.float64}})
    assert_learns(model)
    assert {value.dtype for value in model.policy.state_dict().values()} == {torch.float64}
    actions = model.predict(observations(), deterministic=True)[0]
    assert actions.shape == (20, 2)
    assert (abs(actions) <= 1).all()
    assert np.array_equal(model.predict(observations().astype(np.float64), deterministic=True)[0], actions)


def test_an_on_policy_policy_is_saved_with_its_optimizer(tmp_path: Path) -> None:
    kwargs = {"num_tasks": 4, "network_kwargs": TINY, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    PPO(MultiTaskActorCriticPolicy, points(), policy_kwargs=kwargs, device="cpu").policy.save(str(tmp_path / "policy"))
    loaded = MultiTaskActorCriticPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert type(loaded.optimizer) is torch.optim.SGD


# On-policy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "action_space"), [({"use_sde": True}, spaces.Box(-1, 1, (2,))), ({}, spaces.Discrete(3))]
)
def test_on_policy_needs_gaussian_actions(kwargs: dict[str, Any], action_space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="`action_space` must be a Box, and `use_sde` False, for these networks"):
        MultiTaskActorCriticPolicy(spaces.Box(-2, 2, (8,)), action_space, lambda _: 1e-3, 4, **kwargs)


@pytest.mark.parametrize(
    "useless", [{"net_arch": [8]}, {"activation_fn": nn.ReLU}, {"features_extractor_class": nn.Identity}]
)
def test_on_policy_has_no_layers_of_sb3(useless: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"`{next(iter(useless))}` must not be given: `network` and `network_kwargs`"):
        MultiTaskActorCriticPolicy(
            spaces.Box(-2, 2, (8,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, 4, network_kwargs=TINY, **useless
        )


def test_on_policy_factory_with_other_tasks() -> None:
    with pytest.raises(ValueError, match="`network` must make networks with num_tasks=4"):
        PPO(
            MultiTaskActorCriticPolicy,
            points(),
            policy_kwargs={"num_tasks": 4, "network": lambda *sizes: wrong_size(sizes, 1)},
            device="cpu",
        )


@pytest.mark.parametrize("num_tasks", [2, 8, 9])
def test_on_policy_with_another_number_of_tasks(num_tasks: int) -> None:
    """One that fits the shape is told by what the observations end with."""
    kwargs = {"num_tasks": num_tasks, "network_kwargs": TINY}
    with pytest.raises(ValueError, match="one-hot"):
        PPO(
            MultiTaskActorCriticPolicy, points(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs, seed=0
        ).learn(40)


def test_the_interface_is_that_of_sac() -> None:
    """What SB3 calls on a SAC, it can call here."""
    assert issubclass(MultiTaskSAC, SAC)
    assert set(MultiTaskSAC.policy_aliases) == set(POLICIES)
    assert all(issubclass(policy, MultiTaskPolicy) for policy in POLICIES.values())
    assert all(re.fullmatch(r"\w+Policy", name) for name in POLICIES)


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
