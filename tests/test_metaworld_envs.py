"""Meta-World's tasks as one vectorized environment: goals, horizon, states, workers, and what is refused."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaworld
import numpy as np
import pytest
from metaworld.policies import ENV_POLICY_MAP
from stable_baselines3.common.monitor import Monitor

from dynroute_metaworld import BENCHMARKS, MetaWorldVecEnv, WorkerError, make_envs, task_names
from dynroute_metaworld.environment import TaskEnvironment
from dynroute_metaworld.tasks import goals_of
from dynroute_sb3 import MultiTaskSAC

TASKS = ("reach", "window-open", "door-open")
PAIR = TASKS[:2]


@contextlib.contextmanager
def envs(benchmark: Any = PAIR, **options: Any) -> Iterator[MetaWorldVecEnv]:
    env = make_envs(benchmark, **{"horizon": 5, **options})
    try:
        yield env
    finally:
        env.close()


def actions(steps: int, count: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, count, 4)).astype(np.float32)


def roll(env: MetaWorldVecEnv, given: np.ndarray) -> list[Any]:
    out = []
    for action in given:
        observations, rewards, dones, infos = env.step(action)
        kept = [{**info, "episode": {**info["episode"], "t": 0}} if "episode" in info else info for info in infos]
        out.append((observations.tolist(), rewards.tolist(), dones.tolist(), [str(info) for info in kept]))
    return out


def test_names() -> None:
    assert [len(BENCHMARKS[name]) for name in ("MT10", "MT25", "MT50")] == [10, 25, 50]
    assert BENCHMARKS["MT10"] == tuple(name.removesuffix("-v3") for name in metaworld.env_dict.MT10_V3)
    assert task_names("mt10") == BENCHMARKS["MT10"]
    assert task_names("reach-v3") == ("reach",)


def test_what_a_step_tells() -> None:
    with envs(reward_scale=0.1, goals="fixed") as env:
        observations = env.reset()
        assert observations.shape == (2, 41)
        assert observations.dtype == env.observation_space.dtype == np.float32
        assert np.array_equal(observations[:, 39:], np.eye(2))
        assert env.get_attr("num_tasks") == [2, 2]
        assert env.env_is_wrapped(Monitor) == [True, True]
        total = np.zeros(2)
        for step, action in enumerate(actions(5)):
            observations, rewards, dones, infos = env.step(action)
            total += rewards
            assert rewards.dtype == np.float32
            assert [info["task"] for info in infos] == list(PAIR)
            assert dones.tolist() == [step == 4] * 2
        for i, info in enumerate(infos):
            assert info["TimeLimit.truncated"]
            assert info["episode"]["l"] == 5
            assert info["episode"]["r"] == pytest.approx(10 * total[i], rel=1e-5)
            assert info["terminal_observation"].shape == (41,)
            assert not np.array_equal(info["terminal_observation"], observations[i])
            assert isinstance(info["is_success"], bool)


@pytest.mark.filterwarnings("ignore:Constant:UserWarning")
def test_success_is_that_of_any_step() -> None:
    name = "reach"
    env = TaskEnvironment(name, goals_of((name,), 0)[name], goals="fixed", horizon=120, reward_version="v2")
    policy = ENV_POLICY_MAP[f"{name}-v3"]()
    observation, solved = env.reset(), []
    for step in range(120):
        # It leaves the goal once it is there.
        action = policy.get_action(observation.astype(float)) if not any(solved) else -np.ones(4)
        observation, _, done, now = env.step(np.clip(action, -1, 1).astype(np.float32))
        solved.append(now)
        assert done == (step == 119)
    assert any(solved)
    assert not solved[-1]
    assert env.success


def starts(env: MetaWorldVecEnv, resets: int) -> np.ndarray:
    """What tells the goals apart: where things are when an episode starts."""
    return np.stack([env.reset()[:, :39] for _ in range(resets)])


def test_fixed_goals_are_constant_and_the_same_for_everyone() -> None:
    with envs(goals="fixed", seed=3) as one, envs(goals="fixed", seed=3, workers=2) as other:
        first = starts(one, 50)
        assert (first == first[0]).all()
        assert np.array_equal(starts(other, 1), first[:1])


def test_random_goals_are_new_each_time_and_differ_between_tasks_and_seeds() -> None:
    with envs(("push", "push-wall"), goals="random", seed=3) as env:
        seen = starts(env, 20)
        assert len(np.unique(seen[:, 0, 36:39], axis=0)) == 20
        env.seed(3)
        assert np.array_equal(starts(env, 20), seen)
        env.seed(4)
        assert not np.isclose(starts(env, 20)[:, :, 36:39], seen[:, :, 36:39]).all(axis=2).any()


def test_the_goals_of_the_benchmark_come_in_turn() -> None:
    with envs(TASKS, goals="benchmark", seed=3) as env:
        seen = starts(env, 100)
        for task in range(3):
            halves = [{tuple(row) for row in half[:, task].round(6).tolist()} for half in (seen[:50], seen[50:])]
            assert halves[0] == halves[1]
            assert len(halves[0]) == 50
        orders = [[seen[:50, task].tolist().index(row) for row in seen[50:, task].tolist()] for task in range(3)]
        assert orders[0] != orders[1]  # two tasks do not share the index of their goal


def test_nothing_of_meta_world_is_changed() -> None:
    before = [task.data for task in metaworld.MT1("reach-v3", seed=3).train_tasks]
    state = np.random.get_state()[1].tolist()
    goals_of.cache_clear()
    with envs(goals="random", seed=3) as env:
        env.reset()
        roll(env, actions(6))
    assert np.random.get_state()[1].tolist() == state
    assert [task.data for task in metaworld.MT1("reach-v3", seed=3).train_tasks] == before


def test_workers_do_what_one_process_does() -> None:
    with envs(TASKS, workers=0) as one, envs(TASKS, workers=2) as two:
        assert np.array_equal(one.reset(), two.reset())
        assert roll(one, actions(12, 3)) == roll(two, actions(12, 3))


@pytest.mark.parametrize("goals", ["fixed", "random", "benchmark"])
def test_a_state_is_restored_exactly(goals: str) -> None:
    with envs(TASKS, goals=goals, horizon=20, workers=2) as env:
        env.reset()
        roll(env, actions(27, 3))
        state = env.get_state()
        expected = roll(env, actions(30, 3, seed=1))
    with envs(TASKS, goals=goals, horizon=20) as env:  # in another process, by another division
        env.seed(99)
        env.reset()
        env.set_state(state)
        assert roll(env, actions(30, 3, seed=1)) == expected


def test_training_goes_on_exactly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"goals": "random", "horizon": 7}
    sizes = {"num_modules": 3, "width": 8, "trunk_sizes": (16, 16), "router_sizes": (8,)}

    def model(env: MetaWorldVecEnv) -> MultiTaskSAC:
        kwargs = {"network_kwargs": sizes}
        return MultiTaskSAC("D2RPolicy", env, batch_size=8, learning_starts=10, policy_kwargs=kwargs, seed=0)

    with envs(**options) as env:
        straight = model(env).learn(60).policy.parameters_to_vector()
    with envs(**options) as env:
        model(env).learn(30).save_checkpoint(tmp_path / "there")
    with envs(**options, workers=1) as env:
        resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", env)
        assert np.array_equal(resumed.learn(30, reset_num_timesteps=False).policy.parameters_to_vector(), straight)


def test_a_worker_that_dies_is_named() -> None:
    with envs(workers=2) as env:
        env.reset()
        os.kill(env._parts[1].process.pid, signal.SIGKILL)
        env._parts[1].process.join()
        with pytest.raises(WorkerError, match=r"the worker of the tasks window-open has died with exit code -9"):
            roll(env, actions(2))


def test_a_worker_that_dies_is_replaced_if_asked() -> None:
    with envs(workers=2, restart=True, horizon=50) as env:
        env.reset()
        roll(env, actions(3))
        os.kill(env._parts[1].process.pid, signal.SIGKILL)
        env._parts[1].process.join()
        observations, rewards, dones, infos = env.step(actions(1)[0])
        assert dones.tolist() == [False, True]
        assert rewards[1] == 0
        assert infos[1]["worker_replaced"]
        assert infos[1]["TimeLimit.truncated"]
        assert infos[1]["episode"]["l"] == 4
        assert np.isfinite(observations).all()
        assert len(roll(env, actions(60))) == 60


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "task": ("windw-open", {}, r"got 'windw-open'; did you mean 'window-open' or "),
    "benchmark": ("MT11", {}, r"must be MT10, MT25, MT50 or tasks of Meta-World, got 'MT11'; did you mean 'MT10'"),
    "far": ("xyz", {}, r"got 'xyz'; dynroute_metaworld"),
    "twice": (["reach", "reach-v3"], {}, r"must name each task once"),
    "none": ([], {}, r"and at least one, got \[\]"),
    "horizon 0": (PAIR, {"horizon": 0}, r"`horizon` must be in 1..500, where Meta-World ends an episode, got 0"),
    "horizon 501": (PAIR, {"horizon": 501}, r"`horizon` must be in 1..500"),
    "workers": (PAIR, {"workers": 3}, r"`workers` must be in 0..2, the number of environments, got 3"),
    "goals": (PAIR, {"goals": "rand"}, r"`goals` must be one of 'fixed', 'random', 'benchmark', got 'rand'"),
    "reward": (PAIR, {"reward_version": "v3"}, r"`reward_version` must be 'v1' or 'v2', got 'v3'"),
    "scale": (PAIR, {"reward_scale": 0.0}, r"`reward_scale` must be positive, got 0.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str) -> None:
    benchmark, options, told = WRONG[name]
    with pytest.raises(ValueError, match=told):
        make_envs(benchmark, **options)


def test_wrong_actions_and_attributes() -> None:
    with envs() as env:
        env.reset()
        with pytest.raises(ValueError, match=r"`actions` must have shape \(2, 4\), got \(3, 4\)"):
            env.step(np.zeros((3, 4)))
        with pytest.raises(ValueError, match=r"`actions` must be finite, those of task 'window-open' are not"):
            env.step(np.array([[0.0] * 4, [np.nan] * 4]))
        with pytest.raises(AttributeError, match="no attribute 'goal' that can be read here"):
            env.get_attr("goal")
        with pytest.raises(AttributeError, match="'goal' cannot be set: make_envs says how environments are"):
            env.set_attr("goal", 1)
        with pytest.raises(AttributeError, match="no method 'jump' that can be called here"):
            env.env_method("jump")
