"""Descriptions of tasks, and the vectors made from them that CARE attends to in a run."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dynroute_metaworld import BENCHMARKS, Configuration, Run, RunError, load_model, task_descriptions, train
from dynroute_metaworld.envs.descriptions import read_metadata
from dynroute_metaworld.report.comparison import group_runs
from dynroute_metaworld.report.data import read_runs
from dynroute_metaworld.runs.sweeps import _combine
from dynroute_metaworld.runs.training import environments, make_model

TASKS = ["reach", "push"]


def vectors(**changed: Tensor) -> dict[str, Tensor]:
    return {name: torch.full((5,), float(i)) for i, name in enumerate(BENCHMARKS["MT10"])} | changed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(vectors(), tmp_path / "vectors.safetensors")
    return tmp_path / "vectors.safetensors"


def test_every_task_has_a_sentence_of_its_own() -> None:
    for name, tasks in BENCHMARKS.items():
        assert list(task_descriptions(name)) == list(tasks)
    sentences = task_descriptions("MT50").values()
    assert len(set(sentences)) == 50
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)


def test_vectors_are_in_the_order_of_the_tasks(file: Path) -> None:
    assert read_metadata(file, ["push", "reach-v3"]).tolist() == [[1.0] * 5, [0.0] * 5]
    assert read_metadata(file, "MT10").shape == (10, 5)
    save_file({"reach": torch.ones(2, dtype=torch.float8_e4m3fn), "push": torch.ones(2, dtype=torch.int8)}, file)
    assert read_metadata(file, TASKS).equal(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"push": torch.zeros(2, 5)},
            r"vector of real numbers for each task, got torch.float32 of shape \(2, 5\)",
        ),
        ({"push": torch.zeros(0)}, r"got torch.float32 of shape \(0,\) for push"),
        ({"push": torch.full((5,), torch.nan)}, "numbers that are finite in float32, got NaN or inf for push in"),
        ({"push": torch.full((5,), 1e300, dtype=torch.float64)}, "finite in float32, got NaN or inf for push in"),
        ({"push": torch.zeros(5, dtype=torch.complex64)}, r"got torch.complex64 of shape \(5,\) for push in"),
        ({"push": torch.zeros(4)}, "vectors of one length, got 5 and then 4 for push in"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Tensor], sentence: str) -> None:
    save_file(vectors(**changed), tmp_path / "bad")
    with pytest.raises(ValueError, match=rf"^`metadata` must have .*{sentence}"):
        read_metadata(tmp_path / "bad", TASKS)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ValueError, match=r"^`metadata` must have a vector for each task .* has none for soccer"):
        read_metadata(file, ["reach", "soccer"])
    file.write_bytes(file.read_bytes()[:40])
    for path in (file, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"^`metadata` must be a file of safetensors .*, got "):
            Run.create(tmp_path / "run", Configuration(method="care", benchmark="reach,push", metadata=str(path)))
        assert not (tmp_path / "run").exists()


def test_only_care_has_metadata(file: Path) -> None:
    with pytest.raises(ValueError, match="`metadata` is not an option of the method d2r; methods that have it: care"):
        Configuration(method="d2r", metadata=str(file))


def test_files_are_called_by_their_names(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "folder" / "other"
    other.parent.mkdir()
    save_file(vectors(push=torch.ones(5)), other)
    values = {"benchmark": ["reach,push"], "method": ["care"], "metadata": [str(file), str(other), None], "seed": [1]}
    configurations, noted = _combine("quick", {}, values)
    variants = ["metadata=vectors.safetensors", "metadata=other", "metadata=None"]
    assert [run["variant"] for run in noted.values()] == variants
    assert [*noted] == [f"reach,push-care-{variant}-seed1" for variant in variants]
    runs = [Run.create(tmp_path / str(i), each) for i, each in enumerate(configurations.values())]
    again = Run.create(tmp_path / "again", dataclasses.replace(runs[0].configuration, seed=2))
    groups, _ = group_runs(read_runs([run.folder for run in (*runs, again)]))
    assert [group.name for group in groups] == [f"care ({variant.replace('None', 'none')})" for variant in variants]


def test_a_run_keeps_its_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = Configuration(
        method="care",
        benchmark="reach,push",
        metadata=file.name,
        network={"hidden_sizes": [8], "num_encoders": 2, "encoder_sizes": [8], "context_sizes": [8]},
        steps=4,
        horizon=4,
        learning_starts=0,
        batch_size=2,
        final_episodes=1,
        threads=1,
    )
    run = Run.create(tmp_path / "run", configuration)
    assert run.configuration.metadata == str(file)
    train(run)
    monkeypatch.chdir("/")
    resumed = Run.open(run.folder)
    resumed.agree({"steps": 6, "metadata": str(file)})
    train(resumed)
    moved = file.rename(file.with_name("moved"))
    start = {"warm_start": str(run.folder), "metadata": str(moved)}
    with contextlib.closing(environments(configuration)) as env:
        model = make_model(dataclasses.replace(configuration, **start), env)
    assert model.actor.net.metadata.equal(model.critic.nets[0].metadata)
    save_file(vectors(push=torch.full((5,), 7.0)), tmp_path / "other")
    with pytest.raises(RunError, match=r"must be a run with the same vectors of tasks, those in .*other"):
        make_model(dataclasses.replace(configuration, **start | {"metadata": str(tmp_path / "other")}), None)
    with pytest.raises(RunError, match=r"with the same `metadata`, None, got .*; repeat the --metadata of that run"):
        make_model(dataclasses.replace(configuration, **start | {"metadata": None}), None)
    model = load_model(resumed)  # a checkpoint has the vectors
    for net in (model.actor.net, *model.critic.nets, *model.critic_target.nets):
        assert net.metadata.tolist() == [[0.0] * 5, [1.0] * 5]
