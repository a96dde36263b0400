"""Metrics are logged for every task, once, and as they happened."""

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sac_models import ENVIRONMENTS, SIZES, SMALL, TASKS, make_model, make_plain, points, wrapped
from stable_baselines3.common.callbacks import (
    BaseCallback,
)
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch import Tensor, nn

from dynroute import networks
from dynroute.functional import route_temperature, task_weights
from dynroute_sb3 import (
    MultiTaskSAC,
    OverlappedSAC,
)
from dynroute_sb3.own_networks import samples_routes
from dynroute_sb3.points import GOALS
from dynroute_sb3.update import TaskReport


class Told(KVWriter):
    """Keeps all that is logged, and what else is asked for at that time."""

    def __init__(self, ask: Callable[[], Any] = lambda: None) -> None:
        self.ask = ask
        self.written: list[tuple[dict[str, Any], Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.written.append((dict(key_values), self.ask()))

    def close(self) -> None: ...


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

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            assert isinstance(model._last_obs, np.ndarray)
            for i, info in enumerate(self.locals["infos"]):
                if "episode" in info:  # the task is that of the observation before the step
                    task = int(model._last_obs[i, 4:].argmax())
                    position = info["terminal_observation"][:2]
                    success = bool(np.hypot(*(position - GOALS[task])) < 0.2)
                    episodes[task].append((info["episode"]["r"], success))
            return True

    told = Told(lambda: copy.deepcopy(episodes))
    model.set_logger(Logger(None, [told]))
    model.learn(600, callback=Watch(), log_interval=1)
    # Episodes that end at the same step are told once, and together.
    assert sum(map(len, episodes)) >= 24
    assert {success for ended in episodes for _, success in ended} == {False, True}
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
    model = make_model(task_weights=task_weighting, ent_coef=ent_coef, ent_coef_lr=0.1, train_freq=4)

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


@pytest.mark.parametrize(
    ("policy", "gate", "logged"),
    [("D2RPolicy", {}, True), ("D2RPolicy", {"gate": "top-2"}, False), ("SoftModularPolicy", {}, False)],
)
def test_a_temperature_is_logged_where_it_has_an_effect(policy: str, gate: dict[str, str], logged: bool) -> None:
    kwargs = {"policy_kwargs": {"network_kwargs": {**SIZES[policy], **gate}}}
    told = Told()
    model = make_model(policy, **kwargs)
    model.set_logger(Logger(None, [told]))
    model.learn(100)
    values = told.written[-1][0]
    assert [f"route_temperature/{task}" in values for task in range(TASKS)] == [logged] * TASKS
    assert [f"ent_coef/{task}" in values for task in range(TASKS)] == [True] * TASKS


def test_tasks_that_are_left_out_are_told() -> None:
    told = Told()
    model = make_model(max_task_loss=1e-9)
    model.set_logger(Logger(None, [told]))
    model.learn(160)
    values = told.written[-1][0]
    assert [values[f"masked/{task}"] for task in range(TASKS)] == [1.0] * TASKS
    assert values["train/masked_tasks"] == TASKS


def test_a_task_that_is_missing_in_a_batch_does_not_count() -> None:
    model = make_plain()
    model.set_logger(Logger(None, []))
    model.learn(20)
    for present in ([1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]):  # a batch over all tasks may miss some
        there = torch.tensor(present)
        model.report.add(TaskReport(*[3 * there] * 4, 0 * there, 0 * there, there))
    model.report.record_updates(model)
    logged = model.logger.name_to_value
    names = model.task_names
    assert logged["train/critic_loss"] == 3.0
    assert [logged.get(f"critic_loss/{name}") for name in names] == [3.0, 3.0, 3.0, None]


class Rows(KVWriter):
    """Keeps the steps at which rows are written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.steps.append(step)

    def close(self) -> None: ...


@pytest.mark.parametrize("steps", [80, 160])
def test_a_later_learn_logs_all_its_rows(steps: int) -> None:
    model, rows = make_plain(learning_starts=140), Rows()
    model.set_logger(Logger(None, [rows]))
    expected = list(range(80, steps + 1, 80))  # all four episodes end at once
    for _ in range(3):
        model.learn(steps, log_interval=1)
        assert rows.steps == expected
        rows.steps.clear()
    model.learn(80, log_interval=1, reset_num_timesteps=False)
    assert rows.steps == [steps + 80]


LOSSES = ("actor_loss", "critic_loss", "ent_coef_loss", "ent_coef")


def test_what_an_update_did_is_in_the_logger() -> None:
    model = make_plain()
    model.set_logger(Logger(None, []))
    model.learn(60)
    model.train(gradient_steps=3, batch_size=16)
    logged = model.logger.name_to_value
    assert logged["train/n_updates"] == model._n_updates == 8
    assert "train/learning_rate" in logged
    for name in LOSSES:
        assert isinstance(logged[f"train/{name}"], float)
        assert np.isfinite(logged[f"train/{name}"])


def test_what_learning_did_is_in_the_logger_when_it_ends() -> None:
    model = make_plain().learn(60)
    assert model.logger.name_to_value["train/n_updates"] == 5
    assert all(np.isfinite(model.logger.name_to_value[f"train/{name}"]) for name in LOSSES)


def test_what_was_looked_at_counts_for_the_next_row_too() -> None:
    logged = []
    for looks in (0, 2):
        model = make_plain()
        model.set_logger(Logger(None, []))
        model.learn(60)
        for _ in range(looks):
            model.report.record_updates(model)
        model.train(2, 16)
        assert model.report.updates == 7
        logged.append({key: value for key, value in model.logger.name_to_value.items() if "time/" not in key})
    assert logged[0] == logged[1]


@pytest.mark.parametrize(("kind", "name"), [(MultiTaskSAC, "MultiTaskSAC_1"), (OverlappedSAC, "OverlappedSAC_1")])
def test_folders_of_tensorboard_have_the_name_of_the_algorithm(kind: type, name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = kind("MlpPolicy", points(), policy_kwargs=SMALL, tensorboard_log=str(tmp_path), device="cpu")
    model.learn(8)
    assert [folder.name for folder in tmp_path.iterdir()] == [name]
    model.learn(8, tb_log_name="mine")
    assert (tmp_path / "mine_1").is_dir()


def test_the_rate_of_success_is_logged() -> None:
    model = make_plain(env=VecMonitor(points(), info_keywords=("is_success",)))
    rows: list[dict[str, Any]] = []

    class Values(Rows):
        def write(self, key_values: dict[str, Any], *_: Any, **__: Any) -> None:
            rows.append(dict(key_values))

    model.set_logger(Logger(None, [Values()]))
    model.learn(160, log_interval=4)
    assert len(rows) == 2
    for row in rows:
        assert 0 <= row["rollout/success_rate"] <= 1
        assert {"time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/total_timesteps"} <= row.keys()


class Plain(nn.Module):
    """A network of a user, of which a part happens to have a name of the library's."""

    def __init__(self) -> None:
        super().__init__()
        self.routed = nn.Linear(2, 2)

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        return self.routed(state)


class Routed(Plain):
    """A network of a user with the routing keywords."""

    def forward(self, state: Tensor, task: Tensor, **routing: Any) -> Tensor:
        return self.routed(state)


def test_networks_of_users_sample_routes_if_they_take_the_keywords() -> None:
    assert not samples_routes(Plain())
    assert samples_routes(Routed())
    assert not samples_routes(networks.build("mt-sac", 4, 2, 1))
