"""Meta-World's tasks as one vectorized environment: goals, horizon, states, workers, pictures, and what is refused."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import metaworld
import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from processes import PATIENCE
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from dynroute_metaworld import BENCHMARKS, MetaWorldVecEnv, WorkerError, make_envs, task_names
from dynroute_metaworld.envs.environment import STATE, TaskEnvironment
from dynroute_metaworld.envs.tasks import goals_of
from dynroute_metaworld.envs.workers import DeadWorkerError, with_restart
from dynroute_sb3 import MultiTaskSAC

TASKS = ("reach", "push", "door-open")
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


def kill(env: MetaWorldVecEnv, worker: int) -> None:
    os.kill(env._parts[worker].process.pid, signal.SIGKILL)
    env._parts[worker].process.join()


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
        assert env.reset_infos == [{"task": "reach"}, {"task": "push"}]
        assert env.get_attr("num_tasks") == [2, 2]
        assert env.get_attr("task_name", indices=1) == ["push"]
        assert env.env_is_wrapped(Monitor) == [True, True]
        total = np.zeros(2)
        for step, action in enumerate(actions(10)):
            observations, rewards, dones, infos = env.step(action)
            total = rewards if step == 5 else total + rewards
            assert rewards.dtype == np.float32
            assert [info["task"] for info in infos] == list(PAIR)
            assert dones.tolist() == [step in (4, 9)] * 2
            assert ["episode" in info for info in infos] == dones.tolist()
        for i, info in enumerate(infos):
            assert info["TimeLimit.truncated"]
            assert info["episode"]["l"] == 5
            assert info["episode"]["r"] == pytest.approx(10 * total[i], rel=1e-5)
            assert info["episode"]["t"] > 0
            assert info["terminal_observation"].shape == (41,)
            assert not np.array_equal(info["terminal_observation"], observations[i])
            assert isinstance(info["is_success"], bool)


def test_the_version_of_the_reward_changes_rewards_alone() -> None:
    goals = goals_of(("reach",), 3)["reach"]
    one = TaskEnvironment("reach", goals, goals="fixed", horizon=5, reward_version="v1")
    options: dict[str, Any] = {"benchmark": "reach", "goals": "fixed", "seed": 3}
    with envs(**options) as second, envs(**options, reward_version="v1") as first:
        assert np.array_equal(first.reset()[0, :39], one.reset())
        second.reset()
        for action in actions(4, count=1):
            observations, rewards, *_ = first.step(action)
            others, of_second, *_ = second.step(action)
            _, expected, *_ = one.step(action[0])
            assert np.array_equal(observations, others)
            assert rewards[0] == np.float32(expected)
            assert rewards[0] != of_second[0]
    one.close()


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


@pytest.mark.filterwarnings("ignore:Constant:UserWarning")
@pytest.mark.parametrize(("task", "version"), [("reach", "v1"), ("push", "v2"), ("door-open", "v2")])
def test_every_number_is_that_of_meta_world(task: str, version: str) -> None:
    goals, rng, touched = goals_of((task,), 0)[task], np.random.default_rng(0), 0
    theirs = ALL_V3_ENVIRONMENTS[f"{task}-v3"](reward_function_version=version)
    ours = TaskEnvironment(task, goals, goals="fixed", horizon=500, reward_version=version)
    theirs.set_task(goals[0])
    policy = ENV_POLICY_MAP[f"{task}-v3"]()
    for _ in range(2):
        expected, _ = theirs.reset()
        assert np.array_equal(ours.reset(), expected.astype(np.float32))
        for _ in range(70):  # towards the object, until the fingers touch it, with steps beyond the limits of actions
            action = (policy.get_action(expected) + rng.normal(0, 0.2, 4)).astype(np.float32)
            expected, reward, _, _, info = theirs.step(action)
            observation, ours_reward, _, solved = ours.step(action)
            assert np.array_equal(ours.env._last_stable_obs, expected)
            assert np.array_equal(observation, expected.astype(np.float32))
            assert (ours_reward, solved) == (reward, bool(info["success"]))
            if task == "push":
                assert ours.env.touching_main_object == theirs.touching_main_object
                touched += theirs.touching_main_object
    assert touched > 0 or task != "push"
    theirs.close()
    ours.close()


# What these place depends on what is drawn, on where things lie, or on the simulation.
STARTS = (
    "push",
    "lever-pull",
    "peg-insert-side",
    "box-close",
    "door-lock",
    "basketball",
    "drawer-open",
    "window-close",
)


@pytest.mark.parametrize("task", STARTS)
def test_episodes_start_as_those_of_meta_world_do(task: str) -> None:
    with contextlib.closing(ALL_V3_ENVIRONMENTS[f"{task}-v3"]()) as theirs:
        ours = TaskEnvironment(task, goals_of((task,), 0)[task], goals="random", horizon=500, reward_version="v2")
        theirs.set_task(ours.tasks[0])
        theirs._freeze_rand_vec, theirs.seeded_rand_vec = False, True
        ours.seed(5)
        theirs.seed(5)
        drawn = set()
        for _ in range(3):
            expected, _ = theirs.reset()
            assert np.array_equal(ours.reset(), expected.astype(np.float32))
            assert np.array_equal(ours.env._last_rand_vec, theirs._last_rand_vec)
            states = [np.empty(mujoco.mj_stateSize(env.model, STATE)) for env in (ours.env, theirs)]
            for env, state in zip((ours.env, theirs), states, strict=True):
                mujoco.mj_getState(env.model, env.data, state, STATE)
            assert np.array_equal(*states)
            drawn.add(tuple(theirs._last_rand_vec))
            for _ in range(3):
                expected, reward, *_ = theirs.step(np.ones(4, np.float32))
                _, ours_reward, *_ = ours.step(np.ones(4, np.float32))
                assert np.array_equal(ours.env._last_stable_obs, expected)
                assert ours_reward == reward
        assert len(drawn) == 3
        ours.close()


def test_an_interrupted_start_does_not_change_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    goals = goals_of(("push",), 0)["push"]
    ours = TaskEnvironment("push", goals, goals="fixed", horizon=500, reward_version="v2")
    expected, state = ours.reset(), ours.get_state()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ours.env, "reset_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.reset()
    assert np.array_equal(ours.reset(), expected)
    assert "still" not in state["attributes"]
    ours.close()


def starts(env: MetaWorldVecEnv, resets: int) -> np.ndarray:
    """The places of things when an episode starts, which tell the goals apart."""
    return np.stack([env.reset()[:, :39] for _ in range(resets)])


def test_fixed_goals_are_constant_and_the_same_for_everyone() -> None:
    with envs(goals="fixed", seed=3) as one, envs(goals="fixed", seed=3, workers=2) as other:
        first = starts(one, 50)
        assert (first == first[0]).all()
        one.seed(99)  # fixed goals do not depend on it
        assert np.array_equal(starts(one, 1), first[:1])
        assert np.array_equal(starts(other, 2), first[:2])


def test_random_goals_are_new_each_time_and_differ_between_tasks_and_seeds() -> None:
    with envs(("push", "push-wall"), goals="random", seed=3) as env:
        seen = starts(env, 20)
        assert len(np.unique(seen[:, 0, 36:39], axis=0)) == 20
        assert len(np.unique(seen[:, :, 36:39].reshape(-1, 3), axis=0)) == 40
        env.seed(3)
        assert np.array_equal(starts(env, 5), seen[:5])
        env.seed(4)
        assert not np.isclose(starts(env, 5)[:, :, 36:39], seen[:5, :, 36:39]).all(axis=2).any()
        env.seed(None)
        assert not np.isclose(starts(env, 1)[:, :, 36:39], seen[:1, :, 36:39]).all(axis=2).any()


def test_the_goals_of_the_benchmark_come_in_turn() -> None:
    with envs(("reach", "reach-wall"), goals="benchmark", seed=3) as env:
        seen = starts(env, 100)
    for task in range(2):
        halves = [{tuple(row) for row in half[:, task].round(6).tolist()} for half in (seen[:50], seen[50:])]
        assert halves[0] == halves[1]
        assert len(halves[0]) == 50
    orders = [[seen[:50, task].tolist().index(row) for row in seen[50:, task].tolist()] for task in range(2)]
    assert orders[0] != orders[1]  # two tasks do not share the index of their goal


def test_tasks_of_a_list_do_not_share_goals_and_a_task_alone_is_mt1() -> None:
    drawn = goals_of(("reach", "reach-wall"), 3)
    assert list(drawn) == ["reach", "reach-wall"]
    alone = metaworld.MT1("reach-v3", seed=3).train_tasks
    assert [task.data for task in drawn["reach"]] == [task.data for task in alone]
    vectors = [{task.data[-40:] for task in tasks} for tasks in drawn.values()]
    assert not vectors[0] & vectors[1]


@pytest.mark.slow
def test_the_goals_of_a_benchmark_are_those_of_meta_world(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(metaworld, "_N_GOALS", 5)  # drawing all 50 for each task takes seconds
        expected = metaworld.MT10(seed=11).train_tasks
        assert [task for tasks in goals_of("MT10", 11).values() for task in tasks] == expected
    assert len(expected) == 50
    for task in ("lever-pull", "hand-insert"):
        assert list(goals_of(task, 2**32 - 1)[task]) == metaworld.MT1(f"{task}-v3", seed=2**32 - 1).train_tasks

    def few() -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(metaworld, "_N_GOALS", 2)
            return list(metaworld.MT10(seed=11).train_tasks)

    before = few()
    assert len(before) == 20
    for goals in ("fixed", "random", "benchmark"):
        with envs(goals=goals, horizon=3, seed=3) as env:
            env.reset()
            roll(env, actions(4))
    assert few() == before  # these environments leave MT10 as it was


def test_nothing_of_meta_world_is_changed() -> None:
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "metaworld"]

    def whole() -> list[Any]:
        known = [{name: id(value) for name, value in vars(module).items()} for module in modules]
        classes = [{name: id(value) for name, value in vars(kind).items()} for kind in ALL_V3_ENVIRONMENTS.values()]
        return [known, classes, metaworld._N_GOALS, np.random.get_state()[1].tolist()]

    def benchmark() -> list[bytes]:  # how MT10 draws, with fewer tasks
        classes = {f"{task}-v3": ALL_V3_ENVIRONMENTS[f"{task}-v3"] for task in PAIR}
        kwargs = metaworld._env_dict._get_args_kwargs(ALL_V3_ENVIRONMENTS, classes)
        return [task.data for task in metaworld._make_tasks(classes, kwargs, metaworld._MT_OVERRIDE, seed=3)]

    goals_of(PAIR, 3)
    tasks, before = benchmark(), whole()
    with envs(goals="random", seed=3) as env:
        env.reset()
        roll(env, actions(6))
    goals_of("window-open", 3)
    assert whole() == before
    assert benchmark() == tasks


def test_workers_do_what_one_process_does() -> None:
    with envs(TASKS, workers=0) as one, envs(TASKS, workers=2) as two:
        assert [part.rows for part in two._parts] == [[0], [1, 2]]
        assert np.array_equal(one.reset(), two.reset())
        expected = roll(one, actions(12, 3))
        assert roll(two, actions(12, 3)) == expected
        # Another thread may work between the halves of a step; an interrupted step does not disturb what follows.
        two.step_async(actions(1, 3)[0])
        two.seed(7)
        one.seed(7)
        assert np.array_equal(one.reset(), two.reset())
        assert roll(one, actions(7, 3)) == roll(two, actions(7, 3))
        result: list[Any] = []
        two.step_async(actions(1, 3)[0])
        thread = threading.Thread(target=lambda: result.append(two.step_wait()))
        thread.start()
        thread.join()
        assert np.array_equal(result[0][0], one.step(actions(1, 3)[0])[0])


@pytest.mark.parametrize("goals", ["fixed", "random", "benchmark"])
def test_a_state_is_restored_exactly(goals: str) -> None:
    with envs(TASKS, goals=goals, horizon=20, workers=2 if goals == "random" else 0) as env:
        env.reset()
        roll(env, actions(27, 3))
        state = env.get_state()
        kept = str(state)
        expected = roll(env, actions(30, 3, seed=1))
        assert str(state) == kept  # a state does not change while its environments go on
    with envs(TASKS, goals=goals, horizon=20) as env:  # in another process, by another division
        env.seed(99)
        env.reset()
        env.set_state(state)
        assert roll(env, actions(30, 3, seed=1)) == expected
        with pytest.raises(ValueError, match=r"`state` must be a state of the tasks .*, got \['push'\]"):
            env.set_state({"states": [state["states"][1]]})


def test_a_state_of_another_task_is_refused() -> None:
    with envs() as env:
        env.reset()
        one, other = env._parts[0].environments
        with pytest.raises(ValueError, match="`state` must be a state of task 'reach', got one of 'push'"):
            one.set_state(other.get_state())


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


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")  # VecMonitor counts anew
def test_the_contract_of_stable_baselines3() -> None:
    with envs() as plain, envs() as inner:
        env = VecNormalize(VecMonitor(inner), norm_obs=False, norm_reward=True)
        env.seed(5)
        plain.seed(5)
        plain.reset()
        env.reset()
        env.set_options({"ignored": 1})
        for action in actions(5):
            expected, (observations, _, dones, infos) = plain.step(action), env.step(action)
        assert np.array_equal(observations, expected[0])
        assert dones.all()
        for info, other in zip(infos, expected[3], strict=True):
            assert info["episode"]["r"] == pytest.approx(other["episode"]["r"], rel=1e-5)
            assert info["episode"]["l"] == other["episode"]["l"]
        assert env.get_attr("num_tasks") == [2, 2]
        assert not env.has_attr("goal")


def test_a_worker_that_dies_is_named() -> None:
    with envs(workers=2) as env:
        env.reset()
        kill(env, 1)
        with pytest.raises(
            WorkerError,
            match=r"the worker of the tasks push has died with exit code -9; was it killed.* --restart of a run, in P",
        ):
            roll(env, actions(2))


def test_a_worker_that_dies_is_replaced_if_asked() -> None:
    with envs(workers=2, restart=True, horizon=50) as env:
        env.reset()
        told = roll(env, actions(3))
        kill(env, 1)
        observations, rewards, dones, infos = env.step(actions(1)[0])
        assert dones.tolist() == [False, True]
        assert rewards[1] == 0
        assert infos[1]["worker_replaced"]
        assert "worker_replaced" not in infos[0]
        assert infos[1]["TimeLimit.truncated"]
        assert infos[1]["terminal_observation"].tolist() == told[-1][0][1]
        assert infos[1]["episode"]["l"] == 4
        assert infos[1]["episode"]["r"] == pytest.approx(sum(rewards[1] for _, rewards, *_ in told), rel=1e-5)
        assert np.isfinite(observations).all()

        # Between steps the next one tells of it, and a state can still be saved.
        kill(env, 0)
        assert len(env.get_state()["states"]) == 2
        _, _, dones, infos = env.step(actions(1)[0])
        assert dones.tolist() == [True, False]
        assert (infos[0]["worker_replaced"], infos[0]["episode"]["l"]) == (True, 5)

        # A reset starts all episodes anyway.
        kill(env, 0)
        env.reset()
        assert len(roll(env, actions(50))) == 50
        assert not env.step(actions(1)[0])[2].any()


def test_a_replaced_worker_does_not_change_what_a_seed_means() -> None:
    with envs(workers=2, restart=True, goals="random") as env, envs(goals="random", seed=3) as fresh:
        env.reset()
        kill(env, 0)
        env.reset()
        state = env.get_state()
        env.seed(3)
        assert np.array_equal(env.reset(), fresh.reset())
        # What was restored goes on like the original: the next worker that is replaced draws new goals.
        firsts = []
        for _ in range(2):
            env.set_state(state)
            kill(env, 0)
            firsts.append(env.reset())
        assert np.array_equal(*firsts)


class Failing(TaskEnvironment):
    def step(self, action: np.ndarray) -> Any:
        if self.steps == 2:
            raise ArithmeticError("the simulation is unstable")
        return super().step(action)


def test_an_error_in_an_environment_tells_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynroute_metaworld.envs.workers.TaskEnvironment", Failing)
    with envs() as env:
        env.reset()
        told = (
            r"task 'reach' failed in step after 2 steps of its episode: ArithmeticError\('the simulation is unstable'\)"
        )
        with pytest.raises(WorkerError, match=told):
            roll(env, actions(3))


def test_only_the_death_of_a_worker_is_worth_a_second_call() -> None:
    calls = list[int]()

    def killed_once() -> int:
        calls.append(0)
        with envs(workers=2) as env:
            env.reset()
            if len(calls) == 1:
                kill(env, 1)
            return len(roll(env, actions(2)))

    assert with_restart(killed_once, restart=True) == 2
    assert len(calls) == 2
    calls.clear()
    with pytest.raises(DeadWorkerError, match="the worker of the tasks push has died"):
        with_restart(killed_once, restart=False)

    def broken(workers: int) -> None:
        calls.append(0)
        with envs(workers=workers) as env:
            env.reset()
            state = env.get_state()
            env.set_state({**state, "states": [state["states"][0], {**state["states"][1], "own": {}}]})

    for workers in (0, 1):
        calls.clear()
        with pytest.raises(WorkerError, match="task 'push' failed in set_state") as raised:
            with_restart(lambda workers=workers: broken(workers), restart=True)
        assert not isinstance(raised.value, DeadWorkerError)
        assert len(calls) == 1


class Solving(TaskEnvironment):
    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        self.success = True
        return result


def test_success_does_not_outlast_its_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker that died would else end the next episode with it.
    monkeypatch.setattr("dynroute_metaworld.envs.workers.TaskEnvironment", Solving)
    with envs(horizon=3) as env:
        env.reset()
        *_, infos = [env.step(action)[3] for action in actions(3)]
        assert [info["is_success"] for info in infos] == [True, True]
        assert not env._rows["successes"].any()
        env.step(actions(1)[0])
        env.reset()  # in the middle of an episode
        assert not env._rows["successes"].any()


def test_an_error_in_a_worker_tells_where_and_the_worker_lives_on() -> None:
    with envs(workers=1) as env:
        env.reset()
        state = env.get_state()
        broken = {**state, "states": [state["states"][0], {**state["states"][1], "own": {}}]}
        with pytest.raises(
            WorkerError, match=r"task 'push' failed in set_state after 0 steps .*KeyError\('steps'"
        ) as told:
            env.set_state(broken)
        assert "Traceback" in told.value.__notes__[0]
        env.set_state(state)
        assert len(roll(env, actions(1))) == 1


def test_closing() -> None:
    env = make_envs(PAIR, workers=2, horizon=5)
    workers = [part.process for part in env._parts]
    assert all(worker.is_alive() for worker in workers)
    env.close()
    env.close()
    assert not any(worker.is_alive() for worker in workers)
    for use, given in ((env.reset, ()), (env.get_state, ()), (env.step, (actions(1)[0],))):
        with pytest.raises(RuntimeError, match="these environments are closed; make_envs makes new ones"):
            use(*given)
    env = make_envs(PAIR, workers=1, horizon=5)
    (worker,) = (part.process for part in env._parts)
    del env
    gc.collect()
    assert not worker.is_alive()


SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
from dynroute_metaworld import make_envs
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts behind itself ignore it
    env = make_envs(("reach", "push"), workers=2, goals="benchmark")
    env.reset()
    threading.Timer(0.3, lambda: os.killpg(0, signal.SIGINT)).start()  # what Ctrl-C does
    try:
        while True:
            env.step(np.zeros((2, 4)))
    except KeyboardInterrupt:
        print("interrupted", len(multiprocessing.active_children()))
    env.step(np.zeros((2, 4)))
    env.close()
    print("left", len(multiprocessing.active_children()))
"""


@pytest.mark.slow
def test_ctrl_c_leaves_the_workers_to_the_program(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True, check=False)
    assert done.stdout.split() == ["interrupted", "2", "left", "0"]
    assert done.stderr == ""
    assert done.returncode == 0


def test_any_moment_may_be_interrupted() -> None:
    steps, interrupts, ended, armed = 0, 0, threading.Event(), [False]

    def interrupt(*_: object) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    def pester() -> None:
        while not ended.wait(0.003):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    thread = threading.Thread(target=pester)
    try:
        with envs(workers=1, horizon=500, goals="fixed") as env:
            env.reset()
            thread.start()
            end = time.monotonic() + PATIENCE
            while min(steps, interrupts) < 100:
                assert time.monotonic() < end, f"{steps} steps and {interrupts} interrupts"
                try:
                    armed[0] = True
                    env.step(np.zeros((2, 4)))
                    armed[0] = False
                    steps += 1
                except KeyboardInterrupt:
                    interrupts += 1
            # Half a message would be taken for another one, and waited for without end.
            assert np.isfinite(env.step(np.zeros((2, 4)))[0]).all()
    finally:
        armed[0] = False
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OpenGL: what draws is replaced, as many machines have none."""
    monkeypatch.setattr("metaworld.SawyerXYZEnv.render", lambda self: np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    with envs(render_mode="rgb_array") as env, envs() as plain:
        assert env.get_attr("render_mode") == [env.render_mode] * 2 == ["rgb_array"] * 2
        env.reset()
        plain.reset()
        first, _ = env.get_images()
        assert first.tolist() == np.arange(12).reshape(2, 2, 3)[::-1, ::-1].tolist()  # cameras hang upside down
        assert env.render().shape[-1] == 3
        plain.set_state(env.get_state())  # how an environment is drawn is no part of its state
        assert plain._parts[0].environments[0].env.render_mode is None
        with pytest.raises(RuntimeError, match=r"these environments draw nothing; make_envs\(..., render_mode="):
            plain.get_images()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads beside a fork, from Python 3.12 on
@pytest.mark.parametrize("workers", [0, 1])
def test_missing_opengl_is_told_at_once(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(_: Any) -> None:
        raise mujoco.FatalError("an OpenGL platform library has not been loaded into this process")

    monkeypatch.setattr("metaworld.SawyerXYZEnv.render", render)
    if workers:  # its answer is that of the process that makes the environments
        monkeypatch.setattr("dynroute_metaworld.envs.workers.multiprocessing.get_all_start_methods", lambda: ["spawn"])
        monkeypatch.setattr("dynroute_metaworld.envs.workers.multiprocessing.get_context", _forked)
    with pytest.raises(
        (RuntimeError, WorkerError), match=r"needs OpenGL, .* set MUJOCO_GL=egl .*libegl1.*MUJOCO_GL=osmesa"
    ):
        make_envs("reach", render_mode="rgb_array", workers=workers)
    assert not multiprocessing.active_children()


def _forked(_: str) -> Any:
    return multiprocessing.context.ForkContext()


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "task": ("windw-open", {}, r"got 'windw-open'; did you mean 'window-open' or "),
    "benchmark": ("MT11", {}, r"must be MT10, MT25, MT50 or tasks of Meta-World, got 'MT11'; did you mean 'MT10'"),
    "in a list": (["reach", "MT10"], {}, r"must be the names of tasks of Meta-World, got 'MT10'; the tasks are a"),
    "far": ("xyz", {}, r"got 'xyz'; the tasks are assembly, .*, window-close\.$"),
    "twice": (["reach", "reach-v3"], {}, r"must name each task once"),
    "none": ([], {}, r"and at least one, got \[\]"),
    "horizon 0": (
        PAIR,
        {"horizon": 0},
        r"`horizon` must be an integer in 1..500, where Meta-World ends .*, got 0\.",
    ),
    "horizon 501": (PAIR, {"horizon": 501}, r"`horizon` must be an integer in 1..500.*got 501"),
    "horizon 10.5": (PAIR, {"horizon": 10.5}, r"`horizon` must be an integer in 1..500.*got 10.5"),
    "horizon True": (PAIR, {"horizon": True}, r"`horizon` must be an integer in 1..500.*got True"),
    "workers": (PAIR, {"workers": 3}, r"`workers` must be an integer in 0..2, the number of environments, got 3"),
    "workers -1": (PAIR, {"workers": -1}, r"`workers` must be an integer in 0..2"),
    "seed": (PAIR, {"seed": -1}, r"`seed` must be an integer in 0..4294967295, the seeds of numpy, got -1"),
    "seed None": (PAIR, {"seed": None}, r"`seed` must be an integer .*, got None"),
    "goals": (PAIR, {"goals": "rand"}, r"`goals` must be one of 'fixed', 'random', 'benchmark', got 'rand'"),
    "reward": (PAIR, {"reward_version": "v3"}, r"`reward_version` must be 'v1' or 'v2', got 'v3'"),
    "scale": (PAIR, {"reward_scale": 0.0}, r"`reward_scale` must be positive, got 0.0"),
    "nan": (PAIR, {"reward_scale": float("nan")}, r"`reward_scale` must be positive, got nan"),
    "render_mode": (PAIR, {"render_mode": "human"}, r"`render_mode` must be one of None, 'rgb_array', got 'human'\."),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str) -> None:
    benchmark, options, told = WRONG[name]
    with pytest.raises(ValueError, match=told):
        make_envs(benchmark, **options)


@pytest.mark.parametrize("benchmark", [10, ["reach", 3], {"reach"}])
def test_benchmarks_of_another_type(benchmark: Any) -> None:
    with pytest.raises(TypeError, match="`benchmark` must be MT10, MT25, MT50, a task or a sequence of tasks, got"):
        make_envs(benchmark)


def test_wrong_actions_and_attributes() -> None:
    with envs() as env:
        env.reset()
        with pytest.raises(ValueError, match=r"`actions` must have shape \(2, 4\), got \(3, 4\)"):
            env.step(np.zeros((3, 4)))
        with pytest.raises(ValueError, match=r"`actions` must be finite, got NaN or infinity in task 'push'"):
            env.step(np.array([[0.0] * 4, [np.nan] * 4]))
        with pytest.raises(RuntimeError, match=r"step_wait\(\) must follow step_async\(\), with nothing between"):
            env.step_wait()
        with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -1"):
            env.seed(-1)
        with pytest.raises(AttributeError, match="no attribute 'goal' that can be read here"):
            env.get_attr("goal")
        with pytest.raises(AttributeError, match="'goal' cannot be set; make_envs sets how environments are"):
            env.set_attr("goal", 1)
        with pytest.raises(AttributeError, match="no method 'jump' that can be called here"):
            env.env_method("jump")
