"""Tests that `benchmarks.inside`, `plasticity` and `denormals` measure runs without changing them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import denormals, inside, plasticity
from dynroute import Route, Topology
from dynroute_metaworld import Run, train
from dynroute_metaworld.runs.presets import preset
from dynroute_sb3 import MultiTaskSAC, point_tasks


def learn(folder: Path, **options: Any) -> Run:
    usual = {"benchmark": "reach,drawer-close", "steps": 40, "learning_starts": 20, "batch_size": 4, "horizon": 10}
    usual |= {"n_steps": 1, "normalize_returns": False}
    run = Run.create(folder, preset("quick", {**usual, "final_episodes": 1, **options}).resolve())
    train(run)
    return run


def test_transitions_of_an_age() -> None:
    model = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks()), buffer_size=4000)
    buffer = model.replay_buffer
    buffer.rows[..., -2] = np.arange(1000)  # the reward tells the place
    buffer.positions[:], buffer.counts[:] = 10, 1000
    for age in (0, 300):
        batch = inside.draw(buffer, 2, 2000, age)
        assert batch is not None
        assert (batch.tasks == 2).all()
        assert set(batch.rewards.flatten().tolist()) <= {(9 - steps) % 1000 for steps in range(age, age + 500)}
    assert inside.draw(buffer, 2, 2000, 501) is None
    anywhere = inside.draw(buffer, 2, 2000)
    assert anywhere is not None
    assert anywhere.rewards.unique().numel() > 800


def test_agreement_counts_sources_of_nodes_that_run() -> None:
    topology = Topology.dag(3)  # node 1 reads 0; node 2 reads 0 and 1
    paths = torch.tensor([[[True, False], [True, False]]]), torch.tensor([[[True, False], [True, True]]])
    straight, through = (Route(path.float(), path, path.float()) for path in paths)
    assert inside.agreement(topology, straight, straight) == 1.0
    # Node 1 runs along the second path alone, so that its source counts there: one of three is in both.
    assert inside.agreement(topology, straight, through) == pytest.approx(1 / 3)


def test_unsuitable_sources_are_those_below_the_threshold() -> None:
    logits, path = torch.tensor([[[2.0, 0.0, -5.0]]]), torch.tensor([[[True, False, True]]])
    assert inside.unsuitable(Topology.parallel(3), Route(logits, path, path.float())) == 0.5


CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    # The options, and the parts of the networks.
    "d2r": ({"critic_network": {"num_modules": 3}}, {"router", "modules", "rest", "all"}),
    "mt-sac": ({}, {"rest", "all"}),
    "mh-sac": ({"overlap": True}, {"modules", "rest", "all"}),
    "paco": ({}, {"rest", "all", "shared"}),
}


@pytest.mark.parametrize("method", CASES)
def test_a_row_of_a_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, parts = CASES[method]
    run = learn(tmp_path / "reach,drawer-close-mine-seed1", method=method, **options)
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    output = tmp_path / "inside.json"
    monkeypatch.setattr(sys, "argv", ["inside", str(run.folder), "--each", "8", "--output", str(output)])
    with pytest.raises(SystemExit, match="must have at least 500 transitions of each task, got 40"):
        inside.main()
    monkeypatch.setattr(inside, "AGES", (0, 15, 100))
    monkeypatch.setattr(inside, "WINDOW", 20)
    inside.main()
    inside.main()  # what is there is not measured again
    [row] = json.loads(output.read_text())["rows"]
    assert (row["network"], row["seed"], row["steps"]) == ("mine", 1, 40)
    assert {name.split()[-2] for name in row if name.endswith("norm")} == parts
    for net in ("actor", "critic"):
        assert row[f"{net} all norm"] > 0
        assert -1 <= row[f"{net} all cosine"] <= 1
        assert row[f"{net} all itself"] > row[f"{net} all cosine"]
    if method == "mh-sac":  # a head learns from its task alone
        assert row["actor modules cosine"] == 0 < row["actor modules norm"]
    ages = [name for name in row if name.startswith(("agreement", "unsuitable"))]
    if method == "d2r":
        assert ages == ["agreement 0", "unsuitable 0", "agreement 15", "unsuitable 15"]  # no transition is older
        assert all(0 <= row[name] <= 1 for name in (*ages, "drawn again"))
        assert 0 < row["entropy"] < np.log(2)  # of two sources
        assert 0 < row["critic entropy"] < np.log(2)
        assert 1 <= row["modules"] <= 7
    else:
        assert not ages
    assert {path: path.read_bytes() for path in files} == files


def test_looking_changes_nothing_and_clips_nothing(tmp_path: Path) -> None:
    model = inside.open_model(learn(tmp_path / "run", max_grad_norm=1e-6))
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    assert model.log_ent_coef is not None
    coefficients = model.log_ent_coef.clone()
    figures = inside.look_at_gradients(model, 8)
    assert figures["critic rest norm"] > 1e-6
    assert all(torch.equal(value, before[name]) for name, value in model.policy.named_parameters())
    assert torch.equal(model.log_ent_coef, coefficients)


def test_plasticity_at_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_experts": 3, "width": 8}
    run = learn(
        tmp_path / "reach,drawer-close-mine-seed1", method="scalemoe-feature", network=sizes, checkpoint_every=30
    )
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    output = tmp_path / "plasticity.json"
    command = ["plasticity", str(run.folder), "--transitions", "16", "--output", str(output)]
    for _ in range(2):  # what is there is not measured again
        monkeypatch.setattr(sys, "argv", command)
        plasticity.main()
    rows = json.loads(output.read_text())["rows"]
    assert [(row["network"], row["seed"], row["steps"]) for row in rows] == [("mine", 1, 30), ("mine", 1, 40)]
    for row in rows:
        assert 0 <= row["dormant"] <= 1
        assert 0 < row["rank"] <= row["features"] == 8
        assert [len(load) for load in row["loads"]] == [3, 3]  # of each critic, without its output
        assert [sum(load) for load in row["loads"]] == pytest.approx([1, 1])
    assert rows[0]["loads"] != rows[1]["loads"]
    assert {path: path.read_bytes() for path in files} == files


def test_times_with_and_without_denormal_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = learn(tmp_path / "reach,drawer-close-mine-seed1", method="mt-sac")
    output = tmp_path / "denormals.json"
    monkeypatch.setattr(sys, "argv", ["denormals", str(run.folder), "--seconds", "0.01", "--output", str(output)])
    denormals.main()
    (row,) = json.loads(output.read_text())["rows"]
    assert row["denormal"] == 0  # after so few steps
    assert min(row["with"], row["without"], row["ratio"]) > 0


def test_one_state_has_the_denormal_moments_and_the_other_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MultiTaskSAC("MlpPolicy", DummyVecEnv(point_tasks()), learning_starts=8, batch_size=8, buffer_size=100)
    model.learn(20)
    optimizers = [model.actor.optimizer, model.critic.optimizer]
    for optimizer in optimizers:
        for state in optimizer.state.values():
            state["exp_avg_sq"].fill_(1e-39)
    seen: dict[str, float] = {}

    def once(jobs: dict[str, Any], seconds: float) -> dict[str, list[float]]:
        for name, job in jobs.items():
            job()
            seen[name] = denormals.share(optimizers)
        return {name: [seconds] for name in jobs}

    monkeypatch.setattr(denormals, "interleave", once)
    monkeypatch.setattr(denormals, "update", lambda *_: None)
    found = denormals.measure(model, 1.0)["denormal"]
    assert found == pytest.approx(0.5, abs=0.01)
    assert seen == {"with": found, "without": 0.0}


def test_the_share_of_denormal_moments() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], momentum=0.9)
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([1.0, 0.0, 1e-39, -1e-44])
    assert denormals.share([optimizer]) == 0.5
