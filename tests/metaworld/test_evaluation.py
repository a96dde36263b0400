"""Evaluation on Meta-World: what is counted, what it depends on, what it leaves alone, and how sure the numbers are."""

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.policies import ENV_POLICY_MAP
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from dynroute_metaworld import Configuration, Run, make_envs
from dynroute_metaworld.envs.environment import TaskEnvironment
from dynroute_metaworld.envs.scripted import ScriptedPolicy
from dynroute_metaworld.envs.tasks import goals_of
from dynroute_metaworld.report.routes import Rollout
from dynroute_metaworld.runs.evaluation import SEEDS, evaluate
from dynroute_metaworld.runs.intervals import bootstrap_interval, iqm, wilson_interval
from dynroute_metaworld.runs.result import EvaluationResult
from dynroute_sb3 import DamagedError, MultiTaskPolicy, MultiTaskSAC, MultiTaskVecNormalize
from dynroute_sb3.randomness import random_state

PAIR = ("reach", "drawer-close")
SIZES = {"num_modules": 8, "width": 8, "trunk_sizes": (16, 16), "router_sizes": (8,)}


class Predicting:
    """A policy that has the method `predict` and nothing else, and remembers what it was asked."""

    def __init__(self, predict: Any) -> None:
        self.function = predict
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        self.calls.append((observation, state, episode_start, deterministic))
        return self.function(observation), (state or 0) + 1


class Leaving:
    """Solves the tasks by their scripts and leaves the goals at step 100 of each episode."""

    def __init__(self) -> None:
        self.script = ScriptedPolicy(PAIR)

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> Any:
        steps = 1 + (0 if episode_start.all() else state)
        return (self.script.predict(observation)[0] if steps < 100 else np.full((2, 4), -1.0)), steps


def still(observations: Any) -> Any:
    return np.zeros((len(observations), 4))


def model(
    network: str = "d2r",
    *,
    env: Any = None,
    kind: type[MultiTaskSAC] = MultiTaskSAC,
    policy: Any = "MultiTaskPolicy",
    **options: Any,
) -> MultiTaskSAC:
    env = make_envs(PAIR, horizon=5, goals="fixed") if env is None else env
    kwargs = {"network": network, "network_kwargs": SIZES if network == "d2r" else {}}
    return kind(policy, env, policy_kwargs=kwargs, seed=1, device="cpu", **options)


def arrays(result: EvaluationResult) -> dict[str, Any]:
    kept = dataclasses.asdict(result)
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in kept.items()}


@pytest.fixture(scope="module")
def solved() -> EvaluationResult:
    return evaluate("scripted", (*PAIR, "window-open", "door-open"), episodes=3)


def test_scripts_solve_their_tasks(solved: EvaluationResult) -> None:
    assert solved.tasks == (*PAIR, "window-open", "door-open")
    assert solved.success.all()
    assert solved.success.shape == solved.returns.shape == (4, 3)
    assert solved.mean_success == 1
    assert (solved.lengths == 200).all()
    assert (solved.returns > 0).all()
    assert solved.modules_used is None


def test_episodes_are_those_of_each_task_alone() -> None:
    result = evaluate("scripted", PAIR, horizon=70, episodes=3, seed=8, goals="benchmark")
    for i, name in enumerate(PAIR):
        env = TaskEnvironment(name, goals_of(PAIR, 8)[name], goals="benchmark", horizon=70, reward_version="v2")
        env.seed(int(np.random.SeedSequence([8, i]).generate_state(1)[0]))
        policy = ScriptedPolicy(name)
        for episode in range(3):
            observation, total, first, now = env.reset(), 0.0, -1, False
            assert result.goal_positions[i, episode].tolist() == observation[36:].tolist()
            for step in range(70):
                observation, reward, _, now = env.step(policy.predict(np.append(observation, 1))[0])
                total += np.float32(reward)
                first = step + 1 if now and first < 0 else first
            assert result.first_success[i, episode] == first
            assert result.success_any[i, episode] == (first > 0)
            assert result.success_last[i, episode] == now
            assert result.returns[i, episode] == pytest.approx(total)
            env.close()
    assert 0 < result.success_any.sum() < 6  # at this horizon both happen


def test_returns_are_those_of_the_version_of_the_reward() -> None:
    first, second = (evaluate("scripted", "reach", horizon=9, episodes=1, reward_version=v) for v in ("v1", "v2"))
    assert (first.reward_version, second.reward_version) == ("v1", "v2")
    with contextlib.closing(make_envs("reach", horizon=9, seed=SEEDS["random"], reward_version="v1")) as env:
        observations, policy, total = env.reset(), ScriptedPolicy("reach"), 0.0
        for _ in range(9):
            observations, rewards, *_ = env.step(policy.predict(observations)[0])
            total += float(rewards[0])
    assert first.returns == pytest.approx(total)
    assert second.returns != pytest.approx(total, rel=1e-2)


def test_a_short_episode_is_the_start_of_a_long_one() -> None:
    short, long = (evaluate("scripted", PAIR, horizon=horizon, episodes=2) for horizon in (75, 110))
    assert np.array_equal(short.success_any, (long.first_success > 0) & (long.first_success <= 75))
    assert short.mean_success < long.mean_success


def test_success_is_that_of_any_step_or_of_the_last() -> None:
    found = {name: evaluate(Leaving(), PAIR, horizon=160, episodes=2, success=name) for name in ("any", "last")}
    assert found["any"].success_rates.tolist() == [1, 1]
    assert found["last"].success_rates[0] == 0  # the hand leaves what was to be reached, and the drawer stays closed
    assert found["any"].success_last.tolist() == found["last"].success_last.tolist()
    assert found["last"].success_any.all()


@pytest.mark.parametrize("goals", ["random", "fixed", "benchmark"])
def test_goals_depend_on_the_seed_alone(goals: str) -> None:
    options: dict[str, Any] = {"goals": goals, "horizon": 30, "episodes": 3}
    first = evaluate("scripted", PAIR, **options)
    still_there = evaluate(Predicting(still), PAIR, **options)
    assert np.array_equal(still_there.goal_positions, first.goal_positions)
    assert not np.array_equal(still_there.returns, first.returns)
    workers, alive = 2 if goals == "random" else 0, set()  # they take time to start
    progress = lambda *_: alive.add(len(multiprocessing.active_children()))  # noqa: E731
    again = evaluate("scripted", PAIR, **options, workers=workers, progress=progress)
    assert arrays(again) == arrays(first)
    assert alive == {workers}
    assert first.seed == SEEDS[goals]
    different = len(np.unique(first.goal_positions[0], axis=0))
    assert different == (1 if goals == "fixed" else 3)
    assert not np.array_equal(evaluate("scripted", PAIR, **options, seed=8).goal_positions, first.goal_positions)


def test_random_goals_are_not_those_of_training_and_the_others_are() -> None:
    for goals, same in (("random", False), ("fixed", True), ("benchmark", True)):
        env = make_envs(PAIR, goals=goals, horizon=5)
        trained = np.stack([env.reset()[:, 36:39] for _ in range(50)], axis=1)
        env.close()
        result = evaluate(Predicting(still), PAIR, goals=goals, horizon=1, episodes=3)
        for i, episode in itertools.product(range(2), range(3)):
            assert (trained[i] == result.goal_positions[i, episode]).all(axis=1).any() == same


def test_a_policy_of_this_library_tells_its_modules_and_acts_as_it_predicts() -> None:
    trained = model()
    trained.policy.set_training_mode(True)
    modes = []
    handle = trained.actor.net.register_forward_hook(lambda net, *_: modes.append(net.training))
    result = evaluate(trained, PAIR, horizon=20, episodes=2)
    handle.remove()
    assert modes == [False] * 2 * 20  # one run of the actor for each step

    watched = Predicting(lambda observations: trained.predict(observations, deterministic=True)[0])
    other = evaluate(watched, PAIR, horizon=20, episodes=2)
    assert other.modules_used is None
    assert arrays(dataclasses.replace(other, modules_used=result.modules_used)) == arrays(result)

    seen = torch.as_tensor(np.stack([call[0] for call in watched.calls]))
    _, route = trained.actor.act(seen.flatten(0, 1), deterministic=True)
    used = trained.policy.topology.used(route.path).sum(-1).reshape(2, 20, 2).double().mean(1).T
    assert result.modules_used == pytest.approx(used.numpy())
    assert 1 < used.min() < trained.policy.topology.num_nodes
    assert arrays(evaluate(trained.policy, PAIR, horizon=20, episodes=2)) == arrays(result)
    assert evaluate(model("mt-sac"), PAIR, horizon=3, episodes=1).modules_used is None


class Still(MultiTaskSAC):
    """A model that predicts other actions than its policy."""

    def predict(self, observation: Any, *_: Any, **__: Any) -> Any:
        return still(observation), None


class StillPolicy(MultiTaskPolicy):
    """A policy that predicts other actions than its actor."""

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return torch.zeros_like(super()._predict(observation, deterministic))


def test_a_predict_of_the_user_acts(tmp_path: Path) -> None:
    changed = model()
    changed.policy.predict = lambda observation, *_, **__: (still(observation), None)  # type: ignore[method-assign]
    expected = arrays(evaluate(Predicting(still), PAIR, horizon=5, episodes=1))
    assert expected != arrays(evaluate(model(), PAIR, horizon=5, episodes=1))
    run = Run.create(tmp_path, Configuration(benchmark="reach,drawer-close"))
    for own in (model(kind=Still), model(policy=StillPolicy), model(policy=StillPolicy).policy, changed):
        assert arrays(evaluate(own, PAIR, horizon=5, episodes=1)) == expected
        if isinstance(own, MultiTaskSAC):
            with pytest.raises(TypeError, match=r"`model` must act by the `predict` of this library.*, got a .* with"):
                Rollout(run, own, PAIR)


def test_a_policy_is_asked_as_sb3_asks_it() -> None:
    watched = Predicting(still)
    evaluate(watched, PAIR, horizon=3, episodes=2)
    observations, states, starts, deterministic = zip(*watched.calls, strict=True)
    assert {observation.shape for observation in observations} == {(2, 41)}
    assert states == (None, 1, 2, 3, 4, 5)
    assert [start.tolist() for start in starts] == [[step % 3 == 0] * 2 for step in range(6)]
    assert all(deterministic)


def test_stock_models_are_evaluated() -> None:
    stock = PPO("MlpPolicy", make_envs(PAIR, horizon=5, goals="fixed"), device="cpu", n_steps=8, batch_size=16, seed=0)
    result = evaluate(stock, PAIR, horizon=5, episodes=1)
    assert result.modules_used is None
    assert arrays(evaluate(stock.policy, PAIR, horizon=5, episodes=1)) == arrays(result)


def test_a_model_sees_observations_as_the_normalizer_of_its_environments_shows_them() -> None:
    env = VecNormalize(make_envs(PAIR, horizon=5, goals="fixed"))
    stock = PPO("MlpPolicy", env, device="cpu", n_steps=8, batch_size=16, seed=0).learn(16)
    ours = model(env=MultiTaskVecNormalize(make_envs(PAIR, horizon=5, goals="fixed")), learning_starts=16).learn(16)
    for trained in (stock, ours):
        normalizer = trained.get_vec_normalize_env()
        mean = normalizer.obs_rms.mean.copy()

        def predict(observations: Any, trained: Any = trained, normalizer: Any = normalizer) -> Any:
            return trained.predict(normalizer.normalize_obs(observations), deterministic=True)[0]

        problem: dict[str, Any] = {"horizon": 5, "episodes": 1}
        expected, raw = evaluate(Predicting(predict), PAIR, **problem), evaluate(trained.policy, PAIR, **problem)
        result = evaluate(trained, PAIR, **problem)
        assert np.array_equal(result.returns, expected.returns)
        assert not np.array_equal(result.returns, raw.returns)
        assert np.array_equal(result.goal_positions, raw.goal_positions)  # as the environments give them
        assert np.array_equal(normalizer.obs_rms.mean, mean)


def test_nothing_else_is_changed() -> None:
    trained = model()
    trained.policy.train()
    trained.policy.critic.nets[0].eval()  # any mode of any module
    modes = [module.training for module in trained.policy.modules()]
    weights = trained.policy.parameters_to_vector()

    def drawing(observations: Any) -> Any:
        random.random(), torch.rand(1), trained.policy.set_training_mode(False)
        return np.random.uniform(-1, 1, (2, 4))

    before = str(random_state())
    evaluate(trained, PAIR, horizon=3, episodes=2)
    policy = Predicting(drawing)
    policy.policy = trained.policy  # type: ignore[attr-defined]
    evaluate(policy, PAIR, horizon=3, episodes=2)
    assert str(random_state()) == before
    assert [module.training for module in trained.policy.modules()] == modes
    assert len(policy.calls) == 6  # its own `predict` acted, not the policy that it holds
    assert np.array_equal(trained.policy.parameters_to_vector(), weights)


def test_a_policy_that_fails_leaves_no_process_and_no_changed_mode() -> None:
    trained = model()
    trained.policy.set_training_mode(True)
    handle = trained.actor.net.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(trained, PAIR, horizon=3, workers=1)
    handle.remove()
    assert trained.actor.training
    assert not multiprocessing.active_children()


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    evaluate("scripted", PAIR, horizon=4, episodes=2, progress=lambda *steps: told.append(steps))
    assert told == [(step, 8) for step in range(1, 9)]


def result_of(**changes: Any) -> EvaluationResult:
    """Two tasks of four episodes, made by hand."""
    made = EvaluationResult(
        benchmark="reach, push",
        tasks=("reach", "push"),
        goals="random",
        horizon=10,
        seed=7,
        reward_version="v2",
        criterion="any",
        versions={"dynroute": "1", "metaworld": "2", "mujoco": "3"},
        first_success=np.array([[1, 3, 5, -1], [-1, -1, -1, -1]]),
        success_last=np.array([[True, False, False, False], [False, False, False, False]]),
        returns=np.array([[1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]]),
        lengths=np.full((2, 4), 10),
        goal_positions=np.arange(24, dtype=np.float32).reshape(2, 4, 3) / 7,
        modules_used=np.array([[2.0, 3.0, 4.0, 5.0], [4.0, 4.0, 4.0, 4.0]]),
    )
    return dataclasses.replace(made, **changes)


def test_rates_and_table() -> None:
    result = result_of()
    assert result.episodes == 4
    assert result.success_rates.tolist() == [0.75, 0]
    assert result.mean_success == 0.375
    assert result_of(criterion="last").success_rates.tolist() == [0.25, 0]
    low, high = wilson_interval([3, 0], 4)
    assert np.array_equal(result.intervals(), (low, high))
    assert str(result) == result.table()
    lines = result.table().splitlines()
    assert lines[0] == (
        "reach, push, random goals, horizon 10, success at any step, 4 episodes a task, seed 7, reward v2 "
        "(dynroute 1, metaworld 2, mujoco 3)"
    )
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:]]
    assert cells == [
        ["task", "success", "95 % interval", "return", "first success", "modules used"],
        ["reach", "0.75", f"{low[0]:.2f} to {high[0]:.2f}", "2.5", "3", "3.50"],
        ["push", "0.00", f"0.00 to {high[1]:.2f}", "0.2", "-", "4.00"],
        ["mean", "0.375", "1.4", "3", "3.75"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1  # aligned
    assert "at the last step" in result_of(criterion="last").table()
    assert "90 % interval" in result.table(0.9)


def test_goals_that_repeat_do_not_make_an_interval_narrower() -> None:
    def result_of_episodes(first: Any, goals: str) -> EvaluationResult:
        return result_of(first_success=first, returns=np.zeros(first.shape), goals=goals)

    rng = np.random.default_rng(0)
    first = np.where(rng.random((2, 50)) < 0.8, 3, -1)
    once, twice = (result_of_episodes(np.tile(first, times), "benchmark") for times in (1, 2))
    np.testing.assert_array_equal(once.intervals(), twice.intervals())
    (low, high), (lowest, highest) = result_of_episodes(np.tile(first, 2), "random").intervals(), twice.intervals()
    assert (high - low < highest - lowest).all()  # random goals are all different
    fixed = result_of_episodes(np.array([[3] * 100, [-1] * 100]), "fixed")
    np.testing.assert_array_equal(fixed.intervals(), wilson_interval([1, 0], 1))  # all episodes are equal
    partly = result_of_episodes(np.where(np.arange(150).reshape(2, 75) % 75 < 50, 3, -1), "benchmark")
    np.testing.assert_array_equal(partly.intervals(), wilson_interval([33, 33], 50))  # .667 of all 75


def test_episodes_with_one_goal_have_no_interval() -> None:
    rows = [line.split() for line in result_of(goals="fixed").table().splitlines()[2:]]
    assert rows[:2] == [["reach", "0.75", "-", "2.5", "3", "3.50"], ["push", "0.00", "-", "0.2", "-", "4.00"]]


@pytest.mark.parametrize("changes", [{}, {"modules_used": None}, {"criterion": "last"}])
def test_a_result_is_stored_exactly(changes: dict[str, Any], tmp_path: Path) -> None:
    result = result_of(**changes)
    result.save(tmp_path / "result.json")
    loaded = EvaluationResult.load(tmp_path / "result.json")
    assert arrays(loaded) == arrays(result)
    for field in dataclasses.fields(result):
        value, original = getattr(loaded, field.name), getattr(result, field.name)
        assert type(value) is type(original)
        if isinstance(original, np.ndarray):
            assert value.dtype == original.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_result_of_an_evaluation_is_stored_exactly(solved: EvaluationResult, tmp_path: Path) -> None:
    solved.save(tmp_path / "result.json")
    assert arrays(EvaluationResult.load(tmp_path / "result.json")) == arrays(solved)


DAMAGES: dict[str, Any] = {
    "cut short": lambda stored: json.dumps(stored)[:-20],
    "empty": lambda stored: "",
    "not text": lambda stored: b"\xff\xfe\x00",
    "a list": lambda stored: "[1]",
    "another format": lambda stored: json.dumps({**stored, "format": "dynroute evaluation 0"}),
    "a field less": lambda stored: json.dumps({name: value for name, value in stored.items() if name != "seed"}),
    "a field more": lambda stored: json.dumps({**stored, "more": 1}),
    "a word for a number": lambda stored: json.dumps({**stored, "horizon": "ten"}),
    "an unknown criterion": lambda stored: json.dumps({**stored, "criterion": "best"}),
    "a task less": lambda stored: json.dumps({**stored, "tasks": ["reach"]}),
    "ragged": lambda stored: json.dumps({**stored, "returns": [[1.0, 2.0], [3.0]]}),
    "an episode less": lambda stored: json.dumps({**stored, "lengths": [[10] * 3] * 2}),
    "a return that is NaN": lambda stored: json.dumps({**stored, "returns": [[math.nan] * 4] * 2}),
    "half a step": lambda stored: json.dumps({**stored, "lengths": [[10.5] * 4] * 2}),
    "a number without end": lambda stored: json.dumps({**stored, "lengths": [[10**30] * 4] * 2}),
    "no episodes": lambda stored: json.dumps({**stored, "returns": []}),
    "words for numbers": lambda stored: json.dumps({**stored, "returns": [["a"] * 4] * 2}),
    "no returns": lambda stored: json.dumps({**stored, "returns": None}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result_of().save(path)
    written = DAMAGES[name](json.loads(path.read_text()))
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(
        DamagedError, match=r"`path` must be a file that EvaluationResult.save wrote, got .*result.json: not"
    ):
        EvaluationResult.load(path)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.json"):
        EvaluationResult.load("nowhere.json")


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "success": ({"success": "first"}, ValueError, r"`success` must be one of 'any', 'last', got 'first'"),
    "episodes": ({"episodes": 0}, ValueError, r"`episodes` must be at least 1, got 0"),
    "half episodes": ({"episodes": 2.5}, TypeError, r"`episodes` must be an integer, got 2\.5"),
    "name": (
        {"policy": "script"},
        TypeError,
        r"`policy` must be 'scripted' or have SB3's method `predict`, got 'script'",
    ),
    "object": ({"policy": 3}, TypeError, r"`policy` must be 'scripted' or have SB3's method `predict`, got 3"),
    "tasks": ({"benchmark": "reech"}, ValueError, r"got 'reech'; did you mean"),
    "horizon": ({"horizon": 501}, ValueError, r"`horizon` must be .*1..500"),
    "goals": ({"goals": "some"}, ValueError, r"`goals` must be one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    changes, kind, told = WRONG[name]
    with pytest.raises(kind, match=told):
        evaluate(**{"policy": "scripted", "benchmark": PAIR, **changes})


def test_a_policy_for_other_tasks_is_refused() -> None:
    told = (
        r"`policy` must be made for observations of shape \(49,\), 39 numbers of state and the one-hot of 10 tasks, "
        r"got one for shape \(41,\); was it trained on another benchmark\?"
    )
    with pytest.raises(ValueError, match=told):
        evaluate(model(), "MT10")
    with pytest.raises(ValueError, match=told):
        evaluate(model().policy, "MT10")
    told = (
        r"must be made for the tasks \['drawer-close', 'reach'\] in this order, got one for \['reach', 'drawer-close'\]"
    )
    for policy in (ScriptedPolicy(PAIR), model(task_names=[f"{name}-v3" for name in PAIR])):
        with pytest.raises(ValueError, match=told):
            evaluate(policy, PAIR[::-1])
    evaluate(model(task_names=["b", "a"]), PAIR, horizon=1, episodes=1)  # names of one's own say nothing


def test_scripts_are_found_by_the_one_hot() -> None:
    names = ("reach", "push", "door-open")
    policy = ScriptedPolicy(names)
    env = make_envs(names, goals="fixed", horizon=5)
    observations = env.reset()[[2, 0, 1, 0]]
    env.close()
    actions, state = policy.predict(observations)
    assert state is None
    assert actions.dtype == np.float32
    with pytest.warns(UserWarning, match="may be too high"):  # what the scripts themselves say
        raw = [
            ENV_POLICY_MAP[f"{names[task]}-v3"]().get_action(row[:39].astype(np.float64))
            for task, row in zip([2, 0, 1, 0], observations, strict=True)
        ]
    assert np.abs(raw).max() > 1
    assert np.array_equal(actions, np.clip(raw, -1, 1))
    assert np.array_equal(policy.predict(observations[1])[0], actions[1])


def test_wrong_observations_and_tasks_of_scripts() -> None:
    policy = ScriptedPolicy(PAIR)
    with pytest.raises(ValueError, match=r"`benchmark` must be .* got 'reech'"):
        ScriptedPolicy(["reech"])
    with pytest.raises(ValueError, match=r"the observation must hold 39 numbers of state and the one-hot of one of 2"):
        policy.predict(np.zeros((2, 39)))
    with pytest.raises(ValueError, match=r"the observation must end with the one-hot of one of 2 tasks, row 0"):
        policy.predict(np.zeros((2, 41)))


def test_wilson_has_the_values_of_the_literature() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    low, high = wilson_interval([81, 15, 0, 1], [263, 148, 20, 29])
    assert low == pytest.approx([0.2553, 0.0624, 0, 0.0061], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=5e-5)


def test_wilson_is_that_of_scipy() -> None:
    from scipy.stats import binomtest  # takes most of a second, which the other tests need not wait for

    for trials, confidence in itertools.product((1, 7, 50), (0.5, 0.95, 0.99)):
        low, high = wilson_interval(range(trials + 1), trials, confidence)
        for successes in range(trials + 1):
            other = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
            assert (low[successes], high[successes]) == pytest.approx((other.low, other.high), abs=1e-12)
        assert (low[0], high[-1]) == (0, 1)


def test_wilson_holds_the_rate_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.02, 0.98, 20_000)
    for confidence in (0.8, 0.95):
        low, high = np.stack(wilson_interval(np.arange(21), 20, confidence))[:, rng.binomial(20, rates)]
        assert ((low <= rates) & (rates <= high)).mean() == pytest.approx(confidence, abs=0.015)


def test_the_interquartile_mean() -> None:
    from scipy.stats import trim_mean

    assert iqm([8, 1, 2, 3, 4, 5, 6, 100]) == (3 + 4 + 5 + 6) / 4
    assert iqm([1, 2, 9]) == 4  # a quarter of three is no whole score
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 3), (5, 10), (10, 50)):
        scores = rng.normal(size=shape)
        assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))


@pytest.mark.parametrize("statistic", [iqm, np.mean, np.max])
def test_the_bootstrap_approaches_all_resamples(statistic: Any) -> None:
    scores = np.array([[0.1, 0.9], [0.4, 1.3], [1.0, 0.3]])
    # Each task draws its three runs for itself: 27 ways times 27.
    ways = list(itertools.product(range(3), repeat=3))
    every = [
        statistic(np.stack([scores[list(first), 0], scores[list(second), 1]], axis=1))
        for first, second in itertools.product(ways, ways)
    ]
    for confidence in (0.5, 0.9):
        expected = np.quantile(every, [(1 - confidence) / 2, (1 + confidence) / 2])
        got = bootstrap_interval(scores, statistic, confidence, resamples=8000)
        assert got == pytest.approx(expected, abs=0.02)


def test_tasks_are_resampled_by_themselves() -> None:
    drawn = []
    bootstrap_interval([[0, 0], [1, 1]], lambda scores: drawn.append(scores) or scores.mean(), resamples=400)
    means, counts = np.unique([scores.mean() for scores in drawn], return_counts=True)
    assert means.tolist() == [0, 0.25, 0.5, 0.75, 1]  # whole runs could give 0, .5 and 1 alone
    assert counts / 400 == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.06)
    columns = []
    bootstrap_interval([[1, 10, 100], [2, 20, 200]], lambda scores: columns.append(scores) or 0.0, resamples=20)
    assert all(set(scores[:, task]) <= {10**task, 2 * 10**task} for scores in columns for task in range(3))


def test_the_bootstrap_depends_on_its_seed_and_nothing_else() -> None:
    scores = np.random.default_rng(0).uniform(size=(4, 5))
    before = str(random_state())
    assert bootstrap_interval(scores) == bootstrap_interval(scores)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores)
    assert str(random_state()) == before
    low, high = bootstrap_interval(scores, confidence=0.5)
    wide_low, wide_high = bootstrap_interval(scores, confidence=0.99)
    assert wide_low < low < iqm(scores) < high < wide_high
    assert bootstrap_interval([[0.3, 0.3]] * 3) == (pytest.approx(0.3), pytest.approx(0.3))


def test_the_bootstrap_holds_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for scores in rng.normal([0, 1, 2, 3], size=(300, 12, 4)):
        low, high = bootstrap_interval(scores, np.mean, 0.9, resamples=200)
        held += low <= 1.5 <= high
    assert 0.82 < held / 300 < 0.94  # a little too narrow with twelve runs


WRONG_NUMBERS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    "parts of successes": (
        wilson_interval,
        (2.5, 4),
        {},
        r"`successes` and `trials` must be whole numbers, got 2.5 of 4",
    ),
    "more successes": (wilson_interval, (5, 4), {}, r"`successes` must be in 0..`trials`, .* got 5 of 4"),
    "negative": (wilson_interval, (-1, 4), {}, r"got -1 of 4"),
    "no trials": (wilson_interval, (0, 0), {}, r"`trials` at least 1, got 0 of 0"),
    "not a number": (wilson_interval, (float("nan"), 4), {}, r"got nan of 4"),
    "confidence of Wilson": (wilson_interval, (1, 4, 95), {}, r"`confidence` must be between 0 and 1, got 95; 0.95"),
    "nothing": (iqm, ([],), {}, r"`scores` must be finite, and at least one, got \[\]"),
    "nan": (iqm, ([1.0, float("nan")],), {}, r"`scores` must be finite, and at least one, got \[1.0, nan\]"),
    "one dimension": (bootstrap_interval, ([1.0, 2.0],), {}, r"must have shape \[runs, tasks\], got shape \(2,\)"),
    "no tasks": (bootstrap_interval, ([[], []],), {}, r"must have shape \[runs, tasks\], got shape \(2, 0\)"),
    "one run": (
        bootstrap_interval,
        ([[0.5, 1.0]],),
        {},
        r"must have at least two runs, got 1: one run does not",
    ),
    "infinite": (
        bootstrap_interval,
        ([[0.5], [np.inf]],),
        {},
        r"`scores` must be finite, got NaN or infinity in run 1",
    ),
    "resamples": (bootstrap_interval, ([[0.5], [1.0]],), {"resamples": 0}, r"`resamples` must be at least 1, got 0"),
    "confidence": (bootstrap_interval, ([[0.5], [1.0]],), {"confidence": 1.0}, r"between 0 and 1, got 1.0"),
}


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_wrong_numbers(name: str) -> None:
    function, given, options, told = WRONG_NUMBERS[name]
    with pytest.raises(ValueError, match=told):
        function(*given, **options)
