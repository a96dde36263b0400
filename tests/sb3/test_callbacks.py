"""SB3's callbacks, evaluation and bar of progress."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sac_models import ENVIRONMENTS, TASKS, assert_physical, like_sac, make_model, pendulum, points
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from dynroute_sb3 import MultiTaskSAC, PlasticityLogger


def test_callbacks_that_stop() -> None:
    model = make_model(env=VecMonitor(points()), learning_starts=10_000)
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

    model = make_model(env=ENVIRONMENTS[environments](), learning_starts=10_000)
    model.learn(10_000, callback=callback)
    assert model.num_timesteps == stop * model.n_envs
    model.learn(100, callback=[], reset_num_timesteps=False)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == model.num_timesteps
    assert_physical(model)


def test_plasticity_is_logged_each_time_that_a_model_learns() -> None:
    model, logger = make_model(), PlasticityLogger(40, 16)
    for _ in range(2):
        model.set_logger(Logger(None, []))
        model.learn(120, callback=logger)
        assert "plasticity/rank" in model.logger.name_to_value


def test_an_episode_that_ends_as_a_callback_stops_is_told() -> None:
    model = make_model(env=VecMonitor(points()), learning_starts=10_000)
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


def test_callbacks_of_sb3(tmp_path: Path) -> None:
    model = like_sac(stats_window_size=5)
    better = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1)
    evaluation = EvalCallback(
        Monitor(pendulum()),
        callback_on_new_best=StopTrainingOnRewardThreshold(0),
        callback_after_eval=better,
        eval_freq=100,
        n_eval_episodes=1,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    counted: list[int] = []
    events: list[BaseCallback] = [
        evaluation,
        EveryNTimesteps(50, CheckpointCallback(1, str(tmp_path), save_replay_buffer=True)),
        LogEveryNTimesteps(50),
        StopTrainingOnMaxEpisodes(3),
    ]
    model.learn(200, callback=CallbackList(events))
    model.learn(20, callback=lambda *_: not counted.append(model.num_timesteps))
    assert counted == list(range(1, 21))
    model.learn(20, callback=[])
    best = MultiTaskSAC.load(tmp_path / "best_model", env=pendulum(), device="cpu")
    best.load_replay_buffer(tmp_path / "rl_model_replay_buffer_100_steps.pkl")
    assert best.replay_buffer.size() == 99  # as in SB3, callbacks come before the step is stored
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == 2
