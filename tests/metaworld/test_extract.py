"""The policy of one task of a run: what it computes, its files, and what the command tells."""

import copy
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import CLONED as OPTIONS
from small_runs import CLOSING as TASKS

from dynroute import Program
from dynroute_command.choices import FORMATS
from dynroute_metaworld import Run, cli, evaluate, load_model, make_envs, train
from dynroute_metaworld.cli import main
from dynroute_metaworld.runs import extraction
from dynroute_metaworld.runs.extraction import ELSEWHERE, ExtractedTask, extract_task, run_episodes, task_states
from dynroute_metaworld.runs.policy_files import EXPORTERS, load_policy, save_policy
from dynroute_metaworld.runs.presets import preset
from dynroute_metaworld.runs.recorder import evaluate_run
from dynroute_sb3 import MultiTaskSAC, extract_policy
from dynroute_sb3.task_policy import whole_policy


@pytest.fixture(scope="module", autouse=True)
def cache(kept_demonstrations: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kept_demonstrations))
        yield


@pytest.fixture(scope="module")
def run(cloned: Run) -> Run:
    return cloned


@pytest.fixture(scope="module")
def model(run: Run) -> MultiTaskSAC:
    return load_model(run, "cpu")


def test_the_whole_policy_does_what_the_model_does(run: Run, model: MultiTaskSAC) -> None:
    states = task_states(run, whole_policy(model, task=1), "window-close", episodes=1)[0]
    observations = torch.cat([states, torch.tensor([[0.0, 1.0]]).expand(len(states), 2)], dim=1)
    expected, _ = model.predict(observations.numpy(), deterministic=True)
    with torch.no_grad():
        found = whole_policy(model, task=1)(states)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 0.5  # it has learned something


def test_episodes_are_those_of_an_evaluation(run: Run, model: MultiTaskSAC) -> None:
    result = evaluate_run(run, model, 3)
    for i, task in enumerate(run.configuration.tasks):
        policy = whole_policy(model, task=i)
        found = run_episodes(policy, run.configuration, task, episodes=3, seed=result.seed)
        np.testing.assert_allclose(found.states[:, 0, 36:], result.goal_positions[i])
        assert found.solved.tolist() == result.success_any[i].tolist()
    assert result.success_any.any()


def test_states_are_of_other_goals_than_an_evaluation(run: Run, model: MultiTaskSAC) -> None:
    policy = whole_policy(model, task=0)
    states = task_states(run, policy, "drawer-close", episodes=2)
    assert states.shape == (2, 100, 39)
    environment = make_envs(TASKS.split(","), only=["drawer-close"], seed=ELSEWHERE * 2)
    assert np.array_equal(environment.reset()[0, :39], states[0, 0].numpy())
    environment.close()
    shown = task_states(run, policy, "drawer-close", "demonstrations", episodes=3)
    assert shown.shape == (3, 100, 39)
    assert not torch.equal(shown[0, 0], states[0, 0])
    with pytest.raises(ValueError, match=r"`states` must be one of 'policy', 'demonstrations', got 'replay'"):
        task_states(run, policy, "drawer-close", "replay")
    alone = Run(run.folder, preset("quick", {"benchmark": TASKS}))
    with pytest.raises(ValueError, match=r"`states` must be 'policy' for .*cloned, a run without demonstrations"):
        task_states(alone, policy, "drawer-close", "demonstrations")


def test_the_extracted_policy_does_the_same_on_its_states(run: Run, model: MultiTaskSAC) -> None:
    whole = whole_policy(model, task=0)
    states = task_states(run, whole, "drawer-close", episodes=2).flatten(0, 1)
    policy = extract_policy(model, states, task=0)
    with torch.no_grad():
        torch.testing.assert_close(policy(states), whole(states), atol=1e-5, rtol=1e-5)
        assert policy(states[0]).shape == (4,)
    report = policy.report
    assert report.deviation is not None
    assert report.deviation < 1e-5
    assert report.parameters <= report.parameters_before == whole.report.parameters


def test_coverage_leaves_out_nodes_that_few_states_need(model: MultiTaskSAC) -> None:
    router = model.actor.net.routed.router
    learned = copy.deepcopy(router.state_dict())
    with torch.no_grad():
        for parameter in router.parameters():  # states of a task all take the same nodes once it is learned
            parameter.normal_()
    states = torch.randn(400, 39)
    every, fewer = (extract_policy(model, states, task=0, coverage=coverage).report for coverage in (1.0, 0.5))
    router.load_state_dict(learned)
    assert every.coverage == 1
    assert 0.5 <= fewer.coverage < 1
    assert len(fewer.nodes) < len(every.nodes)


def assert_file_computes_what_the_policy_does(told: ExtractedTask, form: str) -> None:
    assert told.checked is not None
    assert told.checked < 1e-5
    assert told.bytes[1] == told.path.stat().st_size
    assert set(told.milliseconds) == {"module", "file"}
    assert told.success is not None
    loaded = load_policy(told.path, form)
    assert loaded is not None
    with torch.no_grad():
        action = loaded(100 * torch.randn(7, 39))
    assert action.shape == (7, 4)
    assert action.abs().max() <= 1
    text = str(told)
    assert "100 states of demonstrations, of which 100.0% keep their routes" in text
    assert "on states of other episodes" in text


def test_the_file_computes_what_the_policy_does(run: Run, model: MultiTaskSAC, tmp_path: Path) -> None:
    path = tmp_path / "p.pt2"
    options: dict[str, Any] = {"collected": 2, "episodes": 1, "rounds": 1, "states": "demonstrations"}
    told = extract_task(run, model, "drawer-close", form="export", output=path, **options)
    assert_file_computes_what_the_policy_does(told, "export")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_command(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ExtractedTask] = []

    def watched(*given: Any, **options: Any) -> ExtractedTask:
        told.append(extract_task(*given, **options, rounds=1))
        return told[-1]

    monkeypatch.setattr(cli, "extract_task", watched)
    folder = shutil.copytree(run.folder, tmp_path / "run")
    before = {each.name for each in folder.iterdir()}
    command = ["extract", str(folder), "--task", "drawer-close", "--collect", "2", "--states", "demonstrations"]
    assert main([*command, "--episodes", "2"]) == 0
    printed = capsys.readouterr().out
    path = folder / "drawer-close.safetensors"
    for part in ("nodes", "parameters", "bytes of the file", "ms of an action, file", "success, 2 episodes", str(path)):
        assert part in printed
    assert {each.name for each in folder.iterdir()} - before == {path.name}
    assert_file_computes_what_the_policy_does(told[0], "torch")
    policy = Program.load(path)
    assert policy.notes["task"] == "drawer-close"
    assert policy(torch.zeros(2, 39)).shape == (2, 4)
    # A policy of one task is a policy of its environments.
    result = evaluate(OneTask(policy), ["drawer-close"], horizon=20, episodes=1)
    assert result.success.shape == (1, 1)


class OneTask:
    """A policy of SB3's kind made of one that takes states."""

    def __init__(self, policy: Program) -> None:
        self.policy = policy

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return self.policy(torch.as_tensor(observation[:, :39])).numpy(), None


WRONG = {
    "task": (["--task", "reach"], "`task` must be one of 'drawer-close', 'window-close', got 'reach'"),
    "format": (["--format", "pt"], "`format` must be one of 'torch', 'export', 'onnx', 'executorch', got 'pt'"),
    "coverage": (["--coverage", "0"], "`coverage` must be above 0, got 0.0"),
    "more than all": (["--coverage", "2"], "`coverage` must be at most 1, got 2.0"),
    "folder": (["--output", "no/p.safetensors"], "`output` must be in an existing directory, got no/p.safetensors"),
    "a folder": (
        ["--output", "p.safetensors"],
        "`output` must be a file, got the directory p.safetensors; name a file in",
    ),
    "end": (["--output", "p.pt"], "`output` must end with .safetensors in the format torch, got p.pt"),
    "states": (["--states", "replay"], "`states` must be one of 'policy', 'demonstrations', got 'replay'"),
    "collect": (["--collect", "0"], "`collect` must be at least 1, got 0"),
    "episodes": (["--episodes", "-1"], "`episodes` must be at least 0, got -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_command_refuses(
    name: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "a folder":
        (tmp_path / "p.safetensors").mkdir()
    if name != "states" and name != "collect":
        monkeypatch.setattr(extraction, "task_states", None)  # nothing is done before
    flags, message = WRONG[name]
    assert main(["extract", str(run.folder), "--task", "drawer-close", *flags]) == 1
    assert message in capsys.readouterr().err
    assert not any(path.is_file() for path in tmp_path.iterdir())


def test_a_network_that_has_nothing_to_leave_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "method": "mt-sac", "horizon": 10, "cloning_steps": 2, "demonstrations": 3}
    run = Run.create(tmp_path / "run", preset("quick", options).resolve())
    train(run)
    capsys.readouterr()
    monkeypatch.setattr(extraction, "task_states", None)  # nothing is done before
    assert main(["extract", str(run.folder), "--task", "drawer-close"]) == 1
    told = "`model` must have a network of dynroute.networks that contains a routed graph, got a MultiTaskMLP"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("form", EXPORTERS)
def test_files_of_other_packages(form: str, model: MultiTaskSAC, tmp_path: Path) -> None:
    for name in EXPORTERS[form]:
        pytest.importorskip(name)
    path, states = tmp_path / f"p{FORMATS[form]}", torch.randn(5, 39)
    for policy in (whole_policy(model, task=0), extract_policy(model, states, task=0)):
        save_policy(policy, path, form, states[:2], {})
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
        if (loaded := load_policy(path, form)) is not None:
            with torch.no_grad():
                torch.testing.assert_close(loaded(states), policy(states), atol=1e-5, rtol=1e-4)


MISSING = {
    "onnx": "onnx and onnxscript; type: pip install onnx onnxscript (and onnxruntime, to run the file).",
    "executorch": "executorch; type: pip install executorch.",
}


@pytest.mark.parametrize("form", EXPORTERS)
def test_other_packages_that_are_missing(
    form: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if form in name else find(name, *more))
    assert main(["extract", str(run.folder), "--task", "drawer-close", "--format", form]) == 1
    assert f"`format` {form} needs {MISSING[form]}" in capsys.readouterr().err
    assert load_policy(tmp_path / "p", form) is None
