"""What users of Stable-Baselines3's SAC do out of habit works with MultiTaskSAC, or is answered by a sentence."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dynroute_sb3 import MultiTaskSAC, OverlappedSAC, point_tasks

TASKS = 4
SIZES: dict[str, dict[str, Any]] = {
    "MlpPolicy": {"hidden_sizes": (8,)},
    "PaCoPolicy": {"num_sets": 2, "hidden_sizes": (8,)},
    "D2RPolicy": {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)},
}
SMALL = {"network_kwargs": SIZES["MlpPolicy"]}


def points(num_tasks: int = TASKS) -> VecEnv:
    return DummyVecEnv(point_tasks(num_tasks))


def make_model(policy: Any = "MlpPolicy", env: Any = None, **options: Any) -> MultiTaskSAC:
    kwargs = options.pop("policy_kwargs", {"network_kwargs": SIZES.get(policy, {})})
    defaults = {"batch_size": 16, "learning_starts": 40, "buffer_size": 2000, "seed": 0}
    env = points() if env is None else env
    return MultiTaskSAC(policy, env, policy_kwargs=kwargs, device="cpu", **{**defaults, **options})


def observations(num_tasks: int = TASKS, each: int = 5) -> np.ndarray:
    states = np.random.default_rng(0).uniform(-1, 1, (num_tasks * each, 4))
    return np.concatenate([states, np.eye(num_tasks).repeat(each, axis=0)], axis=1).astype(np.float32)


# What is logged -------------------------------------------------------------------------------------------------------


class Rows(KVWriter):
    """Keeps the steps at which rows are written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.steps.append(step)

    def close(self) -> None: ...


@pytest.mark.parametrize("steps", [80, 160])
def test_a_later_learn_logs_all_its_rows(steps: int) -> None:
    model, rows = make_model(), Rows()
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
    model = make_model()
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
    model = make_model().learn(60)
    assert model.logger.name_to_value["train/n_updates"] == 5
    assert all(np.isfinite(model.logger.name_to_value[f"train/{name}"]) for name in LOSSES)


def test_what_was_looked_at_counts_for_the_next_row_too() -> None:
    logged = []
    for looks in (0, 2):
        model = make_model()
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


# Parts of a model that are saved alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", SIZES)
def test_actor_and_critic_are_saved_alone(policy: str, tmp_path: Path) -> None:
    model = make_model(policy).learn(60)
    actor, critic = model.actor, model.critic
    actor.save(tmp_path / "actor.pth")
    critic.save(tmp_path / "critic.pth")
    best, _ = actor.predict(observations(), deterministic=True)
    seen = torch.as_tensor(observations())
    values = critic(seen, torch.zeros(len(seen), 2))
    expected = copy.deepcopy(critic.state_dict())
    del model

    loaded = type(actor).load(tmp_path / "actor.pth", device="cpu")
    assert np.array_equal(loaded.predict(observations(), deterministic=True)[0], best)
    judge = type(critic).load(tmp_path / "critic.pth", device="cpu")
    assert torch.equal(judge(seen, torch.zeros(len(seen), 2)), values)
    assert all(torch.equal(value, expected[name]) for name, value in judge.state_dict().items())
    shared = [id(part) for net in judge.nets for part in getattr(net, "shared", {}).values()]
    assert len(set(shared)) <= 1  # PaCo's critics still share their table


def test_parameters_of_a_policy_are_replaced_and_saved(tmp_path: Path) -> None:
    model = make_model("D2RPolicy")
    params: dict[str, Tensor] = {name: torch.rand_like(value) for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(params)
    model.policy.save(tmp_path / "policy.pkl")
    again = type(model.policy).load(tmp_path / "policy.pkl")
    for name, value in again.state_dict().items():
        assert torch.equal(value, params[name])
