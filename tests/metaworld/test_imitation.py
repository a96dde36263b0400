"""Imitation: an actor clones scripted policies, is interrupted, and is the start of SAC."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from small_runs import CLONED as OPTIONS
from small_runs import CLOSING as TASKS
from torch import Tensor

from dynroute import Route, losses
from dynroute_metaworld import Configuration, Run, RunError, ScriptedPolicy, load_model, make_envs, read_metrics, train
from dynroute_metaworld import cli as commands
from dynroute_metaworld.cli import main
from dynroute_metaworld.envs.tasks import derive_seed
from dynroute_metaworld.imitation.cloning import Cloning, one_cycle
from dynroute_metaworld.imitation.collection import collect
from dynroute_metaworld.imitation.dagger import correct
from dynroute_metaworld.imitation.demonstrations import Demonstrations
from dynroute_metaworld.runs.configuration import check_needs
from dynroute_metaworld.runs.methods import check_network, check_routes
from dynroute_metaworld.runs.presets import AFTER_IMITATION, preset
from dynroute_metaworld.runs.progress import Display
from dynroute_metaworld.runs.recorder import Recorder
from dynroute_metaworld.runs.training import check_start, environments, make_model
from dynroute_sb3 import DamagedError, DemonstrationBuffer, GrowOnDemand, MultiTaskSAC
from dynroute_sb3.growth import network_size

SHORT: dict[str, Any] = {**OPTIONS, "demonstrations": 3, "horizon": 20, "final_episodes": 1}
"""The same where nothing has to be solved."""


@pytest.fixture(scope="module", autouse=True)
def cache(kept_demonstrations: Path) -> Iterator[None]:
    """Demonstrations are collected once for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kept_demonstrations))
        yield


def test_what_imitation_leaves(cloned: Run) -> None:
    assert [path.name for path in cloned.checkpoints.iterdir()] == ["step_0"]
    assert [path.name for path in cloned.evaluations.iterdir()] == ["final.json"]
    actor = load_model(cloned, "cpu").actor
    assert not torch.equal(actor.normalizer.scale, torch.ones(39))
    model = load_model(cloned, "cpu")
    assert torch.equal(model.critic.normalizer.mean, actor.normalizer.mean)
    states = torch.as_tensor(demonstrations().observations).flatten(1, 2)
    observations = model.actor.task_space.join(states.flatten(0, 1), torch.arange(2).repeat_interleave(states.shape[1]))
    _, log_std, _ = model.actor.distribution(observations)
    assert log_std.mean().item() == pytest.approx(math.log(cloned.configuration.cloning_std), abs=0.1)


def test_imitation_from_the_command_line(cloned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(cloned.folder), "--episodes", "1", "--device", "cpu"]) == 0
    folder = tmp_path / "run"
    command = ["imitate", "--preset", "quick", "--benchmark", TASKS, "--horizon", "20", "--demonstrations", "3"]
    command += ["--cloning-steps", "20", "--cloning-batch-size", "32", "--final-episodes", "1", "--device", "cpu"]
    assert main([*command, "--run", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "20 of 20 updates, error" in printed
    # The same seed gives the same policy.
    short = {**SHORT, "cloning_steps": 20}
    again = Run.create(tmp_path / "again", preset("quick", short).resolve())
    train(again)
    one, other = networks(again), networks(Run.open(folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def networks(run: Run) -> dict[str, torch.Tensor]:
    return load_model(run, "cpu").actor.state_dict()


@pytest.mark.slow
def test_cloning_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynroute_metaworld.imitation.cloning.CHECK_EVERY", 20)
    options = {**OPTIONS, "cloning_steps": 80, "demonstrations": 4, "horizon": 40, "final_episodes": 1}
    configuration = preset("quick", options).resolve()
    whole, run = (Run.create(tmp_path / name, configuration) for name in ("whole", "run"))
    assert train(whole) is not None
    check = Cloning._check

    def interrupted(self: Cloning) -> Any:
        if self.update == 40 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise KeyboardInterrupt
        return check(self)

    monkeypatch.setattr(Cloning, "_check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    folder = run.folder / "cloning" / "round_0"
    assert sorted(path.name for path in folder.iterdir()) == ["errors.jsonl", "update_20"]
    manifest = (folder / "update_20" / "manifest.json").rename(tmp_path / "manifest.json")
    with pytest.raises(DamagedError, match=r"manifest.json is missing or damaged; remove .*update_20, and --resume"):
        train(run)
    manifest.rename(folder / "update_20" / "manifest.json")
    shutil.copytree(folder / "update_20", folder / "update_20.bak")  # a copy that somebody made is left alone
    train(run)
    assert (folder / "update_20.bak").is_dir()
    one, other = networks(whole), networks(run)
    assert all(torch.equal(one[name], other[name]) for name in one)
    errors = read_metrics(folder / "errors.jsonl")
    assert errors == read_metrics(whole.folder / "cloning" / "round_0" / "errors.jsonl")
    assert [line["step"] for line in errors] == list(range(20, 81, 20))
    assert set(errors[0]) == {"step", "cloning_error/drawer-close", "cloning_error/window-close"}


def test_sac_goes_on_from_there(cloned: Run, tmp_path: Path) -> None:
    usual = {"steps": 20, "learning_starts": 5, "batch_size": 4, "final_episodes": 1, "horizon": 10, "device": "cpu"}
    options = {"benchmark": TASKS, "warm_start": str(cloned.folder), **usual}
    configuration = preset("quick", options).resolve()
    env = environments(configuration)
    model = make_model(configuration, env)
    env.close()
    one, other = networks(cloned), model.actor.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(model.critic_target.normalizer.scale, model.actor.normalizer.scale)
    assert train(Run.create(tmp_path / "warm", configuration)) is not None

    for wrong in ({"benchmark": "reach,push"}, {"width": 16}, {"method": "mt-sac"}):
        other_run = Run.create(
            tmp_path / str(len(list(tmp_path.iterdir()))), preset("quick", {**options, **wrong}).resolve()
        )
        with pytest.raises(
            RunError, match=r"`warm_start` must be a run with the same tasks, method and sizes, .*, got .*cloned"
        ):
            train(other_run)
    for i, (changed, told) in enumerate(
        [
            (
                {"gate": "soft"},
                r"same `gate`, Soft\(\), got .*cloned with SampleK\(2\); repeat the --gate of that run, or",
            ),
            ({"state_free": True}, "same `state_free`, True, got .*cloned with False; repeat the --state-free of"),
            ({"network": {"shortcut": False}}, "same `shortcut`, False, .* with True; repeat the --network shortcut=V"),
        ]
    ):
        with pytest.raises(RunError, match=f"`warm_start` must be a run with the {told}"):
            train(Run.create(tmp_path / f"changed-{i}", preset("quick", {**options, **changed}).resolve()))
    same = {"gate": "top-2", "protect": "none", "network": {"shortcut": True, "hidden_init": "released"}}
    check_start(preset("quick", {**options, **same}), cloned)
    squashed = Run.create(tmp_path / "squashed", preset("quick", {**options, "log_std": "tanh"}).resolve())
    told = r"`warm_start` must be a run with the same range of deviations, .*tanh.*, got .*cloned with "
    with pytest.raises(RunError, match=told):
        train(squashed)
    distributions = preset("quick", {**options, "critic_loss": "categorical"}).resolve()  # critics are not taken over
    assert train(Run.create(tmp_path / "distributions", distributions)) is not None


def test_a_start_must_be_finished(cloned: Run, tmp_path: Path) -> None:
    start = Run.open(shutil.copytree(cloned.folder, tmp_path / "start"))
    options = {"benchmark": TASKS, "warm_start": str(start.folder), "horizon": 10, "device": "cpu"}
    configuration = preset("quick", options).resolve()
    check_start(configuration, start)
    (start.evaluations / "final.json").unlink()
    with pytest.raises(RunError, match=r"must be a finished run, got .*start, which has not .*--resume` finishes it"):
        check_start(configuration, start)
    assert main(["train", "--run", str(start.folder), "--resume", "--final-episodes", "1"]) == 0
    check_start(configuration, Run.open(start.folder))


def test_seeds_that_start_from_one_run_draw_differently(cloned: Run) -> None:
    drawn = []
    for seed in (1, 2):
        options = {"benchmark": TASKS, "warm_start": str(cloned.folder), "horizon": 10, "device": "cpu", "seed": seed}
        configuration = preset("quick", options).resolve()
        env = environments(configuration)
        make_model(configuration, env)
        env.close()
        drawn.append((torch.rand(()).item(), np.random.random()))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_a_warm_start_is_kept_whatever_becomes_of_the_other_run(cloned: Run, tmp_path: Path) -> None:
    options = {"benchmark": TASKS, "warm_start": str(cloned.folder), "horizon": 10, "device": "cpu", "steps": 0}
    run = Run.create(tmp_path / "run", preset("quick", {**options, "final_episodes": 1}).resolve())
    train(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_0"]
    one, other = networks(cloned), networks(run)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["paco", "brc", "scalemoe-output"])
def test_targets_share_what_the_critics_share(method: str, tmp_path: Path) -> None:
    options = {"benchmark": TASKS, "method": method, "horizon": 20, "device": "cpu", "demonstrations": 3}
    usual = {"cloning_steps": 20, "steps": 0, "final_episodes": 1}
    run = Run.create(tmp_path / "run", preset("quick", {**options, **usual}).resolve())
    train(run)
    model = load_model(run, "cpu")
    pairs = zip(model.critic.state_dict().items(), model.critic_target.state_dict().values(), strict=True)
    assert all(torch.equal(critic, target) for (_, critic), target in pairs)


@pytest.mark.parametrize("command", ["imitate", "train"])
def test_the_same_command_goes_on(command: str, cloned: Run, tmp_path: Path) -> None:
    flags = ["--preset", "quick", "--benchmark", TASKS, "--horizon", "20", "--device", "cpu", "--final-episodes", "1"]
    if command == "imitate":
        flags += ["--demonstrations", "3", "--cloning-steps", "20"]
    else:
        flags += ["--warm-start", str(cloned.folder), "--steps", "20", "--batch-size", "4"]
    line = [command, *flags, "--run", str(tmp_path / "run"), "--resume"]
    assert main(line) == 0
    assert main(line) == 0
    assert main([command, "--run", str(tmp_path / "run"), "--resume"]) == 0
    if command == "train":
        assert main(["imitate", "--run", str(tmp_path / "run"), "--resume"]) == 1


def test_rebuild_is_for_runs_that_collect(cloned: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`rebuild` must be left out: .*cloned has used its demonstrations already"):
        train(cloned, rebuild=True)
    run = Run.create(tmp_path / "run", preset("quick", {"benchmark": "reach"}).resolve())
    with pytest.raises(ValueError, match=r"`rebuild` must be left out: .*run has no demonstrations"):
        train(run, rebuild=True)


def test_a_damaged_cache_is_named_and_collected_anew_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["imitate", "--preset", "quick", "--benchmark", "drawer-close", "--horizon", "20", "--device", "cpu"]
    command += ["--demonstrations", "3", "--cloning-steps", "20", "--final-episodes", "1", "--run"]
    assert main([*command, str(tmp_path / "first")]) == 0
    (path,) = (tmp_path / "cache").rglob("actions.npy")
    path.write_bytes(path.read_bytes()[:-1])
    again = [*command, str(tmp_path / "second")]
    assert main(again) == 1
    told = capsys.readouterr().err
    assert f"{path} must have" in told
    assert "--rebuild, with --resume" in told
    assert main([*again, "--resume", "--rebuild"]) == 0
    one, other = (networks(Run.open(tmp_path / name)) for name in ("first", "second"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_cloning_that_comes_to_nothing(tmp_path: Path) -> None:
    options = {**SHORT, "method": "mt-sac", "cloning_rate": 1e30, "cloning_steps": 20}
    run = Run.create(tmp_path / "run", preset("quick", options).resolve())
    with pytest.raises(RunError, match=r"diverged: its error .* with a `cloning_rate` below 1e\+30"):
        train(run)


def test_corrections_are_what_scripts_want_where_the_policy_acts(cloned: Run) -> None:
    model = load_model(cloned, "cpu")
    options: dict[str, Any] = {"goals": "random", "horizon": 30, "seed": 1, "number": 1}
    shown = correct(model, TASKS.split(","), episodes=2, **options)
    assert shown.observations.shape == (2, 2, 30, 39)
    script = ScriptedPolicy(TASKS.split(","))
    for task, one_hot in enumerate(np.eye(2, dtype=np.float32)):
        rows = shown.observations[task].reshape(-1, 39)
        seen = np.concatenate([rows, np.tile(one_hot, (len(rows), 1))], axis=1)
        assert np.array_equal(script.predict(seen)[0], shown.actions[task].reshape(-1, 4))
        acted, _ = model.predict(seen, deterministic=True)
        np.testing.assert_allclose(acted, shown.executed[task].reshape(-1, 4), atol=1e-5)
    assert np.array_equal(shown.observations[:, :, 1:], shown.next_observations[:, :, :-1])
    # Not the goals of the demonstrations, nor those of another round; but the same ones again.
    first = [tuple(row) for row in shown.observations[:, :, 0, 36:39].reshape(-1, 3).tolist()]
    demonstrated = {tuple(row) for row in demonstrations().observations[:, :, 0, 36:39].reshape(-1, 3).tolist()}
    other = correct(model, TASKS.split(","), episodes=2, **{**options, "number": 2})
    others = {tuple(row) for row in other.observations[:, :, 0, 36:39].reshape(-1, 3).tolist()}
    assert not set(first) & (demonstrated | others)
    assert correct(model, TASKS.split(","), episodes=2, **options).fingerprint == shown.fingerprint


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_corrections_are_rewarded_as_the_environments_reward(version: str, cloned: Run) -> None:
    model, names, problem = load_model(cloned, "cpu"), TASKS.split(","), {"horizon": 78, "reward_version": version}
    shown = correct(model, names, episodes=3, goals="random", seed=1, number=1, **problem)
    with contextlib.closing(make_envs(names, seed=derive_seed(1, 1), **problem)) as env:
        env.reset()
        for episode in range(3):
            solved = np.zeros(2, np.bool_)
            for step in range(78):
                _, rewards, _, infos = env.step(shown.executed[:, episode, step])
                assert np.array_equal(rewards, shown.rewards[:, episode, step])
                solved |= [info["success"] for info in infos]
            assert np.array_equal(shown.solved[:, episode], solved)
    assert 0 < shown.solved.sum() < 6  # at this horizon both happen


def test_corrections_have_the_goals_of_the_problem(cloned: Run) -> None:
    model, names = load_model(cloned, "cpu"), TASKS.split(",")
    shown = correct(model, names, episodes=3, goals="fixed", horizon=5, seed=1, number=2)
    assert shown.solved.shape == (2, 1)  # further episodes would be the same
    with contextlib.closing(make_envs(names, goals="fixed", horizon=5, seed=1)) as env:
        assert np.array_equal(shown.observations[:, 0, 0], env.reset()[:, :39])


def test_rounds_draw_the_goals_of_the_benchmark_in_orders_of_their_own(cloned: Run) -> None:
    model, names, problem = load_model(cloned, "cpu"), TASKS.split(","), {"goals": "benchmark", "horizon": 1, "seed": 1}
    rounds = [correct(model, names, episodes=50, number=number, **problem).observations[:, :, 0] for number in (1, 2)]
    with contextlib.closing(make_envs(names, **problem)) as env:
        evaluated = np.stack([env.reset()[:, :39] for _ in range(50)], axis=1)
    for task in range(2):
        orders = [[tuple(row) for row in drawn[task].tolist()] for drawn in (*rounds, evaluated, evaluated[:, ::-1])]
        assert len({tuple(order) for order in orders}) == 4
        assert len({frozenset(order) for order in orders}) == 1


@pytest.mark.slow
def test_dagger_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynroute_metaworld.imitation.cloning.CHECK_EVERY", 10)
    options = {**OPTIONS, "dagger_rounds": 2, "cloning_steps": 70, "demonstrations": 4, "final_episodes": 1}
    configuration = preset("quick", {**options, "horizon": 20, "patience": 100}).resolve()
    whole = Run.create(tmp_path / "whole", configuration)
    assert train(whole) is not None
    names = ["round_0", "corrections_1", "round_1", "corrections_2", "round_2"]
    assert {path.name for path in (whole.folder / "cloning").iterdir()} == set(names)
    # The rounds share the updates, and learn from more and more.
    written = {path.name: path for path in (whole.folder / "cloning").glob("round_*/update_*")}
    assert sorted(written) == ["update_23", "update_24"]

    run = Run.create(tmp_path / "run", configuration)
    for number, where in enumerate(names[1:], start=1):
        with monkeypatch.context() as patch:
            stops_in(patch, where)
            with pytest.raises(KeyboardInterrupt):
                train(run)
        assert set(names[:number]) <= {path.name for path in (run.folder / "cloning").iterdir()}
    train(run)
    one, other = networks(whole), networks(run)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_corrections_and_evaluations_start_again_if_a_worker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Unlike those of SAC, their episodes must not be cut short: they are repeated, whole and with the same goals.
    usual = {"cloning_steps": 20, "dagger_rounds": 1, "steps": 20, "batch_size": 4, "evaluate_every": 10}
    options = {**SHORT, **usual, "evaluation_episodes": 1}
    whole, run = (
        Run.create(tmp_path / name, preset("quick", {**options, "workers": workers, "restart": workers > 0}).resolve())
        for name, workers in (("whole", 0), ("run", 1))
    )
    assert train(whole) is not None
    killed: list[str] = []
    advance, watch = Display.advance, Recorder.watch

    def kill(where: str) -> None:
        kill_newest()
        killed.append(where)

    def advancing(display: Display, steps: int, doing: str = "training", total: int | None = None) -> None:
        advance(display, steps, doing, total)
        if doing == "corrections" and doing not in killed:
            kill(doing)

    def watching(recorder: Recorder, *done: int) -> None:
        watch(recorder, *done)
        if done and f"evaluation at {recorder.model.num_timesteps}" not in killed:
            kill(f"evaluation at {recorder.model.num_timesteps}")

    monkeypatch.setattr(Display, "advance", advancing)
    monkeypatch.setattr(Recorder, "watch", watching)
    assert train(run) is not None
    assert killed == ["corrections", "evaluation at 20", "evaluation at 40"]
    assert all(torch.equal(value, networks(run)[name]) for name, value in networks(whole).items())
    for path in whole.evaluations.iterdir():
        assert (run.evaluations / path.name).read_text() == path.read_text()


def kill_newest() -> None:
    """Kills the process that was started last."""
    newest = max(multiprocessing.active_children(), key=lambda child: child.name.rpartition("-")[2].rjust(9))
    assert newest.pid is not None
    os.kill(newest.pid, signal.SIGKILL)
    newest.join()


def test_a_collection_goes_on_if_a_worker_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, calls, advanced, advance = tmp_path / "demonstrations", list[bool](), list[int](), Display.advance
    folder.mkdir()
    later = filelock.FileLock(folder / f".{TASKS.split(',')[1]}.lock")  # keeps the worker from the second task

    def collecting(*tasks: Any, rebuild: bool, **options: Any) -> Demonstrations:
        calls.append(rebuild)
        return collect(*tasks, rebuild=rebuild, folder=folder, **options)

    def advancing(display: Display, steps: int, doing: str = "training", total: int | None = None) -> None:
        advance(display, steps, doing, total)
        if doing == "demonstrations":
            advanced.append(steps)
            if len(advanced) == 1:
                kill_newest()
                later.release()

    monkeypatch.setattr("dynroute_metaworld.runs.start.collect", collecting)
    monkeypatch.setattr(Display, "advance", advancing)
    options = {**SHORT, "cloning_steps": 10, "workers": 1, "restart": True}
    later.acquire()
    assert train(Run.create(tmp_path / "run", preset("quick", options).resolve()), rebuild=True) is not None
    assert calls == [True, False]
    assert advanced == [60, 120]  # of the steps of both tasks


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_an_interruption_before_sac_changes_nothing(
    overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of demonstrations are drawn after cloning, whenever that was."""
    monkeypatch.setattr("dynroute_metaworld.imitation.cloning.CHECK_EVERY", 10)
    options = {**SHORT, "cloning_steps": 30, "demonstration_share": 0.5}
    usual = {"steps": 30, "batch_size": 4, "actor_starts": 5, "demonstration_weight": 0.5, "overlap": overlap}
    configuration = preset("quick", {**options, **usual}).resolve()
    whole, run = (Run.create(tmp_path / name, configuration) for name in ("whole", "run"))
    assert train(whole) is not None
    with monkeypatch.context() as patch:
        stops_in(patch, "round_0")
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert train(run) is not None
    one, other = networks(whole), networks(run)
    assert all(torch.equal(one[name], other[name]) for name in one)


def stops_in(patch: pytest.MonkeyPatch, where: str) -> None:
    """Interrupts the collection of corrections, or a round of cloning after its first checkpoint."""
    if where.startswith("corrections"):
        save = Demonstrations.save
        patch.setattr(Demonstrations, "save", lambda self, path: stop() if path.name == where else save(self, path))
        return
    check = Cloning._check
    patch.setattr(Cloning, "_check", lambda self: stop() if stops(self) else check(self))

    def stops(cloning: Cloning) -> bool:
        return cloning.folder.name == where and cloning.update == 20


def stop() -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["d2r", "mt-sac"])
def test_sac_with_demonstrations(method: str, tmp_path: Path) -> None:
    options = {
        "benchmark": TASKS,
        "method": method,
        "horizon": 20,
        "device": "cpu",
        "demonstrations": 2,
        "noise": "0.5",
        "n_steps": 1,  # the buffer then holds the transitions of the demonstrations themselves
    }
    usual = {"steps": 60, "learning_starts": 10, "batch_size": 4, "final_episodes": 1, "actor_starts": 5}
    more = {"demonstration_share": 0.25, "demonstration_weight": 0.5, "demonstration_decay": 10, "checkpoint_every": 30}
    run = Run.create(tmp_path / "run", preset("quick", {**options, **usual, **more}).resolve())
    assert train(run) is not None
    env = environments(run.configuration)
    model = MultiTaskSAC.load_checkpoint(run.checkpoints / "step_120", env, "cpu")
    env.close()
    buffer = model.replay_buffer
    assert isinstance(buffer, DemonstrationBuffer)
    shown = demonstrations(episodes=2, horizon=20, noise=0.5)
    flat = shown.observations.reshape(2, 40, 39)
    batch = buffer.shown.gather(np.repeat([0, 1], 40), np.tile(np.arange(40), 2))
    assert torch.equal(batch.observations[:, :39], torch.as_tensor(flat).flatten(0, 1))
    assert torch.equal(batch.actions, torch.as_tensor(shown.executed).flatten(0, 2))
    assert torch.equal(batch.next_observations[:, :39], torch.as_tensor(shown.next_observations).flatten(0, 2))
    assert torch.equal(batch.rewards[:, 0], torch.as_tensor(shown.rewards).flatten())
    assert np.array_equal(buffer.wanted, shown.actions.reshape(2, 40, 4))
    assert not np.array_equal(shown.actions, shown.executed)
    assert batch.dones.sum() == 0  # they ran out of time
    assert (batch.paths is not None) == (method == "d2r")
    drawn = buffer.sample(8)
    assert drawn.wanted is not None
    assert len(drawn.wanted) == 2
    # States have the scale of the demonstrations, which nothing was cloned from.
    assert torch.allclose(model.actor.normalizer.mean, torch.as_tensor(flat).flatten(0, 1).mean(dim=0), atol=1e-5)
    assert not (run.folder / "cloning").exists()


def test_what_goes_on_from_an_actor_is_gentle() -> None:
    """But what is asked for is done."""
    for options in ({"warm_start": "runs/one"}, {"demonstrations": 4, "cloning_steps": 100}):
        gentle = preset("quick", options)
        assert {name: getattr(gentle, name) for name in AFTER_IMITATION} == AFTER_IMITATION
        asked = preset("quick", {**options, "learning_starts": 77})
        assert (asked.learning_starts, asked.actor_starts) == (77, AFTER_IMITATION["actor_starts"])
    plain = preset("quick", {"demonstrations": 4})
    assert (plain.learning_starts, plain.actor_starts) == (500, 0)


def test_imitation_and_sac_in_one_run(tmp_path: Path) -> None:
    options = {**SHORT, "steps": 30, "learning_starts": 10, "batch_size": 4, "cloning_steps": 20}
    run = Run.create(tmp_path / "run", preset("quick", options).resolve())
    assert train(run) is not None
    assert {path.name for path in run.checkpoints.iterdir()} == {"step_0", "step_60"}


def demonstrations(**changes: Any) -> Demonstrations:
    return collect(TASKS.split(","), **{"episodes": 8, "horizon": 30, "seed": 1, **changes})


def cloning(tmp_path: Path, data: Demonstrations, **changes: Any) -> Cloning:
    configuration = preset("quick", {**OPTIONS, **changes}).resolve()
    env = environments(configuration)
    model = make_model(configuration, env)
    env.close()
    return Cloning(model, [data], configuration.cloning, configuration.cloning_steps, tmp_path / "cloning")


def test_other_demonstrations_are_refused(tmp_path: Path) -> None:
    first = cloning(tmp_path, demonstrations(), cloning_steps=1)
    first.run()
    with pytest.raises(ValueError, match="was learned from other demonstrations than the present ones"):
        cloning(tmp_path, demonstrations(seed=2), cloning_steps=1)


def test_batches_hold_as_much_of_each_task(tmp_path: Path) -> None:
    data = demonstrations()
    observations, actions = cloning(tmp_path, data)._batch()
    assert observations.shape == (64, 41)
    assert observations[:, 39:].sum(dim=0).tolist() == [32, 32]
    known = {tuple(row) for row in data.observations[0, :-2].reshape(-1, 39).round(5).tolist()}
    held_out = {tuple(row) for row in data.observations[0, -2:].reshape(-1, 39).round(5).tolist()}
    mine = {tuple(row) for row in observations[:32, :39].numpy().round(5).tolist()}
    assert mine <= known
    assert not mine & (held_out - known)
    assert actions.abs().max() <= 1


def test_the_generator_of_cloning_fits_every_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" stands for a GPU, on which a run may begin and a CPU go on."""
    plain = cloning(tmp_path, demonstrations(), method="d2r")
    plain.model.device = torch.device("meta")
    plain.actor.to("meta")
    run = Cloning(plain.model, [demonstrations()], plain.options, plain.steps, tmp_path)
    assert run.generator.device.type == "cpu"
    made: list[Any] = []

    class Generator(torch.Generator):
        """Meta has none of its own."""

        def __new__(cls, device: torch.device) -> Any:
            made.append((device.type, super().__new__(cls)))
            return made[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        assert [run._loss(*run._batch()).device.type for _ in range(2)] == ["meta", "meta"]
    assert [device for device, _ in made] == ["meta", "meta"]
    assert made[0][1].initial_seed() != made[1][1].initial_seed()  # each update draws other routes


def test_a_single_correction_is_learned_as_much_as_the_demonstrations(tmp_path: Path) -> None:
    data = demonstrations()
    (_, single), plain = data.split(1), cloning(tmp_path, data, method="mt-sac")
    run = Cloning(plain.model, [data, single], plain.options, plain.steps, tmp_path)
    assert [part.shape[1] for part in (plain.learned[0], run.learned[0])] == [6 * 30, 12 * 30]
    corrections = torch.tensor(single.observations)
    assert torch.equal(run.learned[0][:, 6 * 30 :], corrections.repeat(1, 6, 1, 1).flatten(1, 2))
    assert all(torch.equal(one, other) for one, other in zip(plain.held_out, run.held_out, strict=True))


def test_cloning_stops_when_nothing_is_gained(tmp_path: Path) -> None:
    run = cloning(tmp_path, demonstrations(), method="mt-sac", cloning_rate=0.0, patience=1, cloning_steps=1000)
    assert run.run() < math.inf
    assert run.update == 200


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("cloning_balance", losses.load_balance),
        ("cloning_importance", losses.importance),
        ("cloning_z_loss", losses.router_z_loss),
        ("cloning_entropy", lambda route: -losses.route_entropy(route)),
    ],
)
def test_losses_of_routes_are_learned(option: str, expected: Callable[[Route], Tensor], tmp_path: Path) -> None:
    data = demonstrations()
    plain, weighted = (cloning(tmp_path / str(weight), data, method="d2r", **{option: weight}) for weight in (0.0, 0.5))
    batch = plain._batch()
    weighted.generator.set_state(plain.generator.get_state())
    *_, route = plain.actor.distribution(batch[0], sample=True, generator=plain.generator)
    plain.generator.set_state(weighted.generator.get_state())
    before, after = plain._loss(*batch), weighted._loss(*batch)
    assert (after - before).item() == pytest.approx(0.5 * expected(route).item(), rel=1e-4)
    before.backward()
    after.backward()
    (0.5 * expected(route)).backward()  # on top of what `before` left in `plain`
    pairs = list(zip(plain.actor.parameters(), weighted.actor.parameters(), strict=True))
    router = list(plain.actor.net.graph.router.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in router)
    for one, two in pairs:
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


WITHOUT_EFFECT = {
    "imitate --method mt-sac --cloning-entropy 0.1": (
        "`cloning_entropy` must be 0 for the method mt-sac, which has no learned routes, got 0.1."
    ),
    "imitate --method sm --cloning-balance 1": (
        "`cloning_balance` must be 0 with the gate soft, which reads all sources, got 1; --cloning-importance balances "
        "their weights."
    ),
    "train --method d2r --cloning-z-loss 0.01": (
        "`cloning_z_loss` must be 0 without cloning, which `dynroute imitate` does, got 0.01."
    ),
    "train --noise 0,0.3": (
        "`noise` needs --demonstrations, got '0,0.3' without it; give --demonstrations N, or leave `noise` out."
    ),
    "train --preset refine --demonstration-share 0": (
        "`demonstration_share` must be above 0 beside a `demonstration_weight`, which clones demonstrations in "
        "batches, got 0 with 1; --demonstration-weight 0 leaves out that of a preset."
    ),
    "sweep --methods d2r --preset refine --vary demonstration-share=0,0.5": "`demonstration_share` must be above 0",
    "train --demonstration-share 0.2": "`demonstration_share` needs --demonstrations, got 0.2 without it; give",
    "train --warm-start other --patience 10": (
        "`patience` needs --cloning-steps, got 10 without it; give --demonstrations N and --cloning-steps N, or leave"
    ),
    "train --demonstrations 9 --held-out 3": (
        "`held_out` needs --cloning-steps, got 3 without it; give --cloning-steps N, or leave `held_out` out."
    ),
    "train --preset refine --no-cloning-sample": "`cloning_sample` needs --cloning-steps, got False without it",
    "train --cloning-rate 0.1": "`cloning_rate` needs --cloning-steps, got 0.1 without it",
    "train --cloning-std 0.1": "`cloning_std` needs --cloning-steps, got 0.1 without it",
    "train --cloning-batch-size 9": "`cloning_batch_size` needs --cloning-steps, got 9 without it",
    "train --demonstrations 9 --demonstration-decay 9": "`demonstration_decay` needs --demonstration-weight, got 9",
    "sweep --methods d2r --noise 0,0.3": "`noise` needs --demonstrations, got '0,0.3' without it",
    "sweep --methods d2r --vary cloning-std=0.1,0.2": "`cloning_std` needs --cloning-steps, got 0.1 without it",
    "train --restart": "`restart` needs --workers, got True without it; give --workers N, or leave `restart` out.",
    "train --num-modules 4 --network num_modules=6": (
        "`network` must not set `num_modules` beside --num-modules, which takes its place, got 6 and 4."
    ),
    "sweep --methods d2r --width 8 --network width=6": "`network` must not set `width` beside --width",
    "train --method mt-sac --actor-paths sampled": (
        "`actor_paths` must be left out for networks without routes, got 'sampled' for mt-sac."
    ),
    "train --method paco --critic-paths topk": "`critic_paths` must be left out for networks without routes, got",
    "sweep --methods mt-sac sm --route-temperature 2": (
        "`route_temperature` must be left out for networks that sample no paths, got '2' for mt-sac, sm."
    ),
    "train --ent-coef 0 --ent-coef-lr 0.1": (
        "`ent_coef_lr` needs a coefficient of entropy that is learned, such as --ent-coef auto, got 0.1 with 0."
    ),
    "train --method mt-sac --max-grad-norm 0": "`max_grad_norm` must be above 0 or None, got 0.0.",
    "train --method d2r --bins 51": "`bins` needs critics that predict distributions, critic_loss",
    "sweep --methods mt-sac --vary reward-scale=1,0": "`reward_scale` must be above 0, got 0.0.",
    "sweep --methods mt-sac --vary mask-rule=each,total": '`mask_rule` can be "total" with joint_update=True',
    "sweep --methods d2r --route-temperature 0": "`route_temperature` must be a positive number or one of",
    "train --ent-coef 0.1 --target-entropy -2": "`target_entropy` needs a coefficient of entropy that is learned, such",
    "train --ent-coef 0.1 --max-ent-coef 0.01": "`max_ent_coef` needs a coefficient of entropy that is learned, such",
    "sweep --imitate --methods d2r paco --cloning-importance 1": (
        "`cloning_importance` must be 0 for the method paco, which has no learned routes, got 1."
    ),
    "imitate --cloning-steps 0": (
        "`cloning_steps` must be at least 1 for runs that only imitate, got 0; `dynroute train` learns without cloning."
    ),
    "imitate --resume --cloning-steps 0": "`cloning_steps` must be at least 1 for runs that only imitate, got 0",
    "sweep --imitate --methods sm --cloning-steps 0": "`cloning_steps` must be at least 1 for runs that only imitate",
    "sweep --imitate --methods sm --vary cloning-steps=9,0": "`cloning_steps` must be at least 1 for runs that only",
}


def test_an_option_that_some_runs_of_a_sweep_use_is_accepted() -> None:
    runs = [Configuration(demonstrations=count, cloning_steps=count, noise="0.1") for count in (20, 0)]
    check_needs(runs, ["noise", "patience"])
    with pytest.raises(ValueError, match=r"`noise` needs --demonstrations, got '0\.1' without it"):
        check_needs(runs[1:])
    methods = [Configuration(method=method, actor_paths="sampled", route_temperature="2") for method in ("paco", "d2r")]
    check_routes(methods, ["actor_paths", "route_temperature"])
    check_routes(methods[:1], [])  # in Python, or by a preset
    sampling = Configuration(method="sm", critic_network={"gate": "sample-2"}, route_temperature="2")
    check_routes([sampling], ["route_temperature", "critic_paths"])
    learned = [Configuration(ent_coef=ent_coef, ent_coef_lr=0.1) for ent_coef in ("0", "auto")]
    check_needs(learned, ["ent_coef", "ent_coef_lr"])
    check_needs(learned[:1], ["ent_coef"])
    normalized = [Configuration(ent_coef="0.1", target_entropy="-2", normalize_returns=each) for each in (True, False)]
    check_needs(normalized, ["target_entropy"])  # returns are normalized by it
    check_needs(normalized[1:], [])  # in Python, or by a preset
    check_needs([Configuration(ent_coef="0", max_ent_coef=None)], ["max_ent_coef"])
    check_needs([Configuration(restart=False)], ["restart"])  # --no-restart asks for nothing
    check_needs([Configuration(num_modules=4, network={"num_modules": 6})])  # in Python, the option goes first


@pytest.mark.parametrize("command", WITHOUT_EFFECT)
def test_options_that_would_teach_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    assert WITHOUT_EFFECT[command] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_run_that_has_options_without_effect_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", Configuration(benchmark="reach"))
    dataclasses.replace(run.configuration, patience=20).write(run.folder / "config.json")  # written by hand
    monkeypatch.setattr(commands, "train", lambda run, **_: print(run.configuration.patience))
    assert Run.open(run.folder).configuration.patience == 20
    for more in ([], ["--benchmark", "reach", "--patience", "20"]):
        assert main(["train", "--run", str(run.folder), "--resume", *more]) == 130
    with pytest.raises(ValueError, match="`patience` needs --cloning-steps, got 20 without it"):
        Run.create(tmp_path / "other", Configuration(patience=20))
    assert not (tmp_path / "other").exists()


def test_demonstrations_that_no_batch_has_are_not_cloned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "train", lambda run, **_: None)
    for preset_name in ("refine", "paper"):  # the weight of the preset is for SAC
        folder = tmp_path / preset_name
        for more in ([], ["--resume"]):
            assert main(["imitate", "--preset", preset_name, "--run", str(folder), *more]) == 130
        assert Run.open(folder).configuration.demonstration_weight == 0
    without = ["--demonstration-share", "0", "--demonstration-weight", "0"]
    assert main(["train", "--preset", "refine", *without, "--run", str(tmp_path / "without")]) == 130

    stored = Configuration(demonstrations=3, demonstration_share=0, demonstration_weight=0.5)
    with pytest.raises(ValueError, match=r"`demonstration_share` must be above 0 .*, got 0 with 0\.5; --demonstr"):
        Run.create(tmp_path / "other", stored)
    stored.write(tmp_path / "config.json")  # written by hand
    assert Configuration.read(tmp_path / "config.json") == stored


def test_wrong_options() -> None:
    told = r"`held_out` must be less than the 2 demonstrations, got 2; --held-out N .*, 2 by default\."
    with pytest.raises(ValueError, match=told):
        Configuration(demonstrations=2, cloning_steps=1, held_out=2)
    for name in ("cloning_steps", "demonstration_weight"):
        with pytest.raises(ValueError, match=f"`{name}` needs demonstrations, for instance --demonstrations 20"):
            Configuration(**{name: 1})
    with pytest.raises(ValueError, match=r"`dagger_rounds` must be less than the 2 `cloning_steps`, .*, got 2"):
        Configuration(demonstrations=3, cloning_steps=2, dagger_rounds=2)
    for wrong in ("", "0,x", "-1", "inf"):
        with pytest.raises(ValueError, match=f"`noise` must be numbers of at least 0 with commas .*, got '{wrong}'"):
            Configuration(noise=wrong)


def test_one_cycle() -> None:
    rates = [one_cycle(i / 100) for i in range(101)]
    assert max(rates) == rates[10] == 1
    assert rates[0] == 0
    assert rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def stall(patch: pytest.MonkeyPatch) -> None:
    """Looks at what was held out every 10 updates, and finds a task that stalls from the second time on."""
    patch.setattr("dynroute_metaworld.imitation.cloning.CHECK_EVERY", 10)
    patch.setattr(GrowOnDemand, "_is_stalled", lambda self, measured: len(measured) > 1)


def test_a_cloned_network_grows_where_a_task_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stall(monkeypatch)
    options: dict[str, Any] = {"method": "d2r", "num_modules": 2, "grow_to": 4, "cloning_steps": 120}
    data, errors = demonstrations(), {}
    whole = cloning(tmp_path / "whole", data, **options)
    assert network_size(whole.actor.net) == ("num_modules", 2)

    def checked(update: int, squared: Tensor) -> None:
        errors[update] = float(squared.mean())
        if update == 20:  # the second look: the best networks so far grow and compute the same
            best = min(errors.values())
            whole._grow(squared)
            assert network_size(whole.actor.net)[1] == 3
            assert float(whole._check().mean()) == pytest.approx(best, rel=1e-4)

    whole.run(checked=checked)
    assert network_size(whole.actor.net)[1] == network_size(whole.model.critic.nets[0])[1] == 4
    assert whole.model.policy_kwargs["network_kwargs"]["num_modules"] == 4
    assert whole.model.growth_state is not None
    grown_at = whole.model.growth_state["grown_at"]
    assert len(grown_at) == 2
    assert grown_at[-1] + 30 <= 120  # it was opened before the end


GROWING: dict[str, Any] = {"method": "d2r", "num_modules": 2, "grow_to": 4, "cloning_steps": 100}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Cloning:
    """Cloning that grew, and was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        stall(patch)
        whole = cloning(tmp_path_factory.mktemp("whole"), demonstrations(), **GROWING)
        whole.run()
    return whole


@pytest.mark.parametrize("stop", [30, 50, 80])
def test_cloning_that_grows_goes_on_exactly(
    stop: int, whole: Cloning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall(monkeypatch)

    class Killed(Exception):  # noqa: N818 - it stands for a signal
        pass

    def kill(done: int, total: int) -> None:
        if done == stop:
            raise Killed

    data = demonstrations()
    with pytest.raises(Killed):
        cloning(tmp_path, data, **GROWING).run(kill)
    parts = cloning(tmp_path, data, **GROWING)
    assert 0 < parts.update <= stop
    parts.run()
    assert parts.model.growth_state == whole.model.growth_state
    for name, tensor in whole.model.policy.state_dict().items():
        assert torch.equal(parts.model.policy.state_dict()[name], tensor), name


def distances(net: torch.nn.Module, features: int) -> list[float]:
    """How far the logits with which the output reads each node are above those of the first two, in the mean."""
    _, route = net(torch.randn(64, features), torch.eye(2).repeat(32, 1), return_route=True)
    logits = route.logits[:, -1].mean(dim=0)
    return (logits - logits[:2].mean())[torch.isfinite(logits)].tolist()


@pytest.mark.parametrize("modules", [2, 3])
def test_new_modules_that_brought_nothing_stay_as_closed_in_critics_as_in_the_actor(
    modules: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall(monkeypatch)
    options: dict[str, Any] = {"method": "d2r", "num_modules": 2, "grow_to": 4, "cloning_steps": 100, "patience": 4}
    options["critic_network"] = {"num_modules": modules}
    run = cloning(tmp_path, demonstrations(), **options)
    errors = iter([3.0, 2.0] + 20 * [9.0])  # none is better after growth

    def bad() -> Tensor:
        if (error := next(errors)) < run.best_error:
            run.best, run.best_error, run.best_update = run._networks(), error, run.update
        return torch.full((2,), error)

    monkeypatch.setattr(run, "_check", bad)
    run.run()
    assert run.update == 20 + 40, "patience counts from the growth"
    state = run.model.growth_state
    assert state is not None
    assert (state["grown_at"], state["nodes"], state["raised"]) == ([20], [2], 0.0)  # and no second one
    nets = [(run.actor.net, 39), *((net, 43) for net in (*run.model.critic.nets, *run.model.critic_target.nets))]
    assert all(distances(net, features)[-1] < -15 for net, features in nets)
    assert all(min(distances(net, features)[:-1]) > -5 for net, features in nets), "an old module was closed"
    growth = GrowOnDemand(10, 4, opening=10)
    growth.init_callback(run.model)
    growth.open(1000)
    assert all(-5 < distances(net, features)[-1] < 5 for net, features in nets)


def test_sac_starts_from_networks_that_grew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stall(monkeypatch)
    options = {**SHORT, "method": "d2r", "num_modules": 2, "grow_to": 3, "cloning_steps": 60}
    start = Run.create(tmp_path / "start", preset("quick", options).resolve())
    assert train(start) is not None
    assert network_size(load_model(start, "cpu").actor.net)[1] == 3

    imitation = ("demonstrations", "demonstration_share", "cloning_steps", "cloning_batch_size")
    options = {name: value for name, value in options.items() if name not in imitation}
    options |= {"grow_to": None, "warm_start": str(start.folder), "steps": 30, "learning_starts": 20, "batch_size": 8}
    run = Run.create(tmp_path / "run", preset("quick", options).resolve())
    assert train(run) is not None
    model = load_model(run, "cpu")
    assert network_size(model.actor.net)[1] == 3
    assert all(-5 < distances(net, 43)[2] < 5 for net in model.critic.nets)  # open, as they are new
    after = Run.create(tmp_path / "after", preset("quick", {**options, "warm_start": str(run.folder)}).resolve())
    assert train(after) is not None
    with pytest.raises(RunError, match="`grow_to` must be more than the 3 modules that the network of `warm_start` ha"):
        train(Run.create(tmp_path / "small", preset("quick", {**options, "grow_to": 3}).resolve()))

    options |= {"grow_to": 4, "grow_every": 5, "steps": 40}
    run = Run.create(tmp_path / "grows", preset("quick", options).resolve())
    capsys.readouterr()
    assert train(run) is not None
    assert network_size(load_model(run, "cpu").actor.net)[1] == 4
    assert re.findall("grown to . modules", capsys.readouterr().out) == ["grown to 4 modules"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "mt-sac"}, "`grow_to` needs a network that routes at module or model level, such as"),
        ({"network": {"level": "layer"}}, "`grow_to` needs a network that routes at module or model level"),
        ({"critic_network": {"level": "model"}}, "`grow_to` needs critics that route at the level of their actor"),
        ({"method": "moe", "network": {"num_experts": 9}}, "for instance --network num_experts=2"),
        ({"grow_to": None, "grow_every": 5}, "`grow_every` needs --grow-to, the modules to grow to, got 5 without it"),
        ({"method": "d2r", "num_modules": 9}, "`grow_to` must be more than the 9 modules that the network starts with"),
        ({"num_modules": 4, "overlap": True}, "`grow_to` cannot be used with --overlap"),
    ],
)
def test_growth_that_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check_network(preset("paper", {**OPTIONS, "grow_to": 9, **options}).resolve())
