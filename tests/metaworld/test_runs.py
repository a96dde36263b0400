"""Runs: what is written, how they stop and go on, and what is refused."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import fork_command, wait_until

from dynroute_metaworld import (
    Configuration,
    EvaluationResult,
    Run,
    RunError,
    load_model,
    make_envs,
    read_metrics,
    train,
)
from dynroute_metaworld.report.comparison import group_runs
from dynroute_metaworld.report.curves import draw_curves
from dynroute_metaworld.report.data import read_run
from dynroute_metaworld.runs import run as runs
from dynroute_metaworld.runs import summary
from dynroute_metaworld.runs.evaluation import SEEDS
from dynroute_metaworld.runs.recorder import Recorder, evaluate_run
from dynroute_metaworld.runs.threads import choose_threads, describe_threads
from dynroute_metaworld.runs.training import environments
from dynroute_sb3 import DamagedError, MultiTaskSAC, latest_checkpoint, storage
from dynroute_sb3.tree import read_tree

SMALL: dict[str, Any] = {
    "benchmark": "reach,window-close",
    "goals": "random",
    "threads": 1,
    "horizon": 8,
    "steps": 48,
    "learning_starts": 8,
    "batch_size": 4,
    "log_every": 10,
    "checkpoint_every": 12,
    "evaluate_every": 24,
    "evaluation_episodes": 1,
    "final_episodes": 2,
    "num_modules": 3,
    "width": 8,
    "network": {"trunk_sizes": [8, 8], "router_sizes": [8]},
    "device": "cpu",
}


def small(**changes: Any) -> Configuration:
    return Configuration(**{**SMALL, **changes}).resolve()


def flags(**changes: Any) -> list[str]:
    """The same configuration on the command line."""
    options = {**SMALL, **changes}
    network = [f"{name}={json.dumps(value)}" for name, value in options.pop("network").items()]
    named = [[f"--{name.replace('_', '-')}", str(value)] for name, value in options.items()]
    return [*itertools.chain(*named), "--network", *network]


def plain(tree: Any) -> Any:
    """The same with lists in the place of tensors and arrays."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    return tree.tolist() if isinstance(tree, (np.ndarray, torch.Tensor)) else tree


def outcome(folder: Path) -> tuple[Any, ...]:
    """Metrics, parameters and evaluations, which must not depend on interruptions; without the time that passed."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    last = latest_checkpoint(folder / "checkpoints")
    assert last is not None
    model = read_tree(last, "model")
    parameters = {name: model[name] for name in ("parameters", "log_ent_coef", "random", "environments")}
    buffer = [(last / name).read_bytes() for name in ("rows.npy", "paths.npy")]
    evaluations = {path.name: path.read_text() for path in sorted((folder / "evaluations").iterdir())}
    return lines, last.name, plain(parameters), buffer, evaluations


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert train(Run.create(folder, small())) is not None
    return folder


def test_what_a_run_leaves(straight: Path) -> None:
    lines = read_metrics(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == [20, 40, 48, 60, 80, 96]
    assert {"success/reach", "return/window-close", "ent_coef/reach", "modules_used/reach"} <= set(lines[-1])
    assert "evaluation/reach" in lines[2]
    assert "evaluation/reach" not in lines[1]
    minutes = [line["time/minutes"] or 0.0 for line in lines]
    assert 0 < minutes[0] < minutes[-1] < (Run.open(straight).minutes or 0.0)
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["step_72", "step_96"]
    names = ["final.json", "step_48.json", "step_96.json"]
    assert sorted(path.name for path in (straight / "evaluations").iterdir()) == names
    final = EvaluationResult.load(straight / "evaluations" / "final.json")
    assert final.tasks == ("reach", "window-close")
    assert final.episodes == 2
    assert Run.open(straight).configuration == small()
    (session,) = map(json.loads, (straight / "sessions.jsonl").read_text().splitlines())
    assert session["versions"]["metaworld"]
    assert session["steps"] == 0
    (events,) = (straight / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    picture = draw_curves(Run.open(straight))
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_model_of_a_run(straight: Path) -> None:
    model = load_model(Run.open(straight), "cpu")
    observations = np.concatenate([np.zeros((2, 39)), np.eye(2)], axis=1).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    assert actions.shape == (2, 4)


def test_more_steps(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Run.create(folder, small(steps=28)))  # between the steps at which something is due
    run = Run.open(folder)
    run.agree({"benchmark": f"{run.configuration.benchmark}-v3"})  # another name of the same task
    run.agree({"steps": 48, "workers": 1})  # nothing of what is computed depends on these
    train(run)
    assert outcome(folder) == outcome(straight)


def test_plasticity_is_measured_at_fixed_steps_and_changes_nothing(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.create(folder, small(plasticity_every=16, steps=28))
    train(run)
    run.agree({"steps": 48})
    train(run)
    lines = {line["step"]: line for line in read_metrics(run.metrics)}
    measured = {step: {name for name in line if name.startswith("plasticity/")} for step, line in lines.items()}
    assert list(lines) == [20, 32, 40, 48, 60, 64, 80, 96]
    assert [step for step, names in measured.items() if names] == [32, 64, 96]
    names = {"dormant", "rank", *(f"flow_{critic}_{node}" for critic in range(2) for node in range(3))}
    assert measured[32] == {f"plasticity/{name}" for name in names}
    assert outcome(folder)[1:] == outcome(straight)[1:]


def test_the_time_is_up(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, left = tmp_path / "run", [math.inf]
    monkeypatch.setattr(Run, "seconds_left", lambda _: left[0])

    def step(recorder: Recorder) -> bool:
        if recorder.num_timesteps == 56:  # where nothing is due
            recorder.deadline, left[0] = -math.inf, 0
        return True

    monkeypatch.setattr(Recorder, "_on_step", step)
    run = Run.create(folder, small(hours=1e-9))
    result = train(run)
    assert result is not None
    assert result.episodes == 2
    assert latest_checkpoint(run.checkpoints) == run.checkpoints / "step_56"
    monkeypatch.undo()
    assert Run.open(folder).seconds_left() <= 0
    assert "run: its time was up before 48 steps; its curves end at 24." in group_runs([read_run(folder)])[1]
    assert train(Run.open(folder)) is not None
    assert len(run.sessions) == 1  # it was finished
    run = Run.open(folder)
    run.agree({"hours": 1.0})
    assert 0 < run.seconds_left() < 3600
    picture = folder / "curves.png"
    picture.touch()  # drawn after the first session
    train(run)
    assert not picture.exists()
    assert not any("its time was up" in note for note in group_runs([read_run(folder)])[1])
    assert outcome(folder) == outcome(straight)


def test_no_time_at_all(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", small(hours=0.0))
    assert train(run) is not None
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_0"]
    assert train(Run.open(run.folder)) is not None
    assert len(run.sessions) == 1


def test_a_killed_session_counts_up_to_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", small(hours=1.0))
    monkeypatch.setattr(Run, "end_session", lambda _: None)  # as after a kill
    train(run)
    (session,) = run.sessions
    assert "minutes" not in session
    assert session["minutes_kept"] > 0
    assert Run.open(run.folder).seconds_left() == pytest.approx(3600 - 60 * session["minutes_kept"])


def test_minutes_of_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = Run.create(tmp_path / "run", small(hours=1.0))
    run.start_session(None, None, ())
    clock[0] = 90.0
    run.keep_minutes()
    assert [session["minutes_kept"] for session in run.sessions] == [1.5]
    clock[0] = 120.0
    assert run.seconds_left() == 3480.0
    run.end_session()
    assert run.minutes == 2.0
    run.start_session(None, None, ())
    clock[0] = 180.0
    assert Run.open(run.folder).seconds_left() == 3480.0  # another process does not know of this session's minute
    assert run.seconds_left() == 3420.0
    run.end_session()
    assert run.minutes == 3.0


@pytest.mark.parametrize("killed", [False, True])
def test_the_minutes_in_the_log_go_on_in_the_next_session(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def advance(recorder: Recorder) -> bool:
        clock[0] += 60.0  # a minute for each step of all tasks
        if killed and clock[0] == 28 * 60.0:  # four steps after a checkpoint, which are done again
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Recorder, "_on_step", advance)
    run = Run.create(tmp_path / "run", small(steps=28))
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        if killed:
            patched.setattr(Run, "end_session", lambda _: None)
        train(run)
    clock[0] += 1e6  # between the sessions
    run = Run.open(run.folder)
    assert latest_checkpoint(run.checkpoints) == run.checkpoints / ("step_48" if killed else "step_56")
    run.agree({"steps": 48})
    train(run)
    logged = {line["step"]: line["time/minutes"] for line in read_metrics(run.metrics)}
    assert logged == pytest.approx({step: step / 2 for step in (20, 40, 48, 60, 80, 96)})


def test_no_steps_at_all(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", small(steps=0))
    result = train(run)
    assert result is not None
    assert load_model(run, "cpu").num_timesteps == 0
    assert train(Run.open(run.folder)) is not None
    assert len(run.sessions) == 1


@pytest.mark.slow
def test_killed_at_three_moments(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    moments = random.Random(0)
    command, output = ["train", "--run", str(folder), "--resume", *flags()], tmp_path / "printed"
    # The moments are somewhere after something was written: a line, a checkpoint, another checkpoint.
    for part in ("metrics.jsonl", "checkpoints/step_24", "checkpoints/step_48"):
        killed = fork_command(command, output)
        wait_until(killed, (folder / part).exists)
        time.sleep(moments.uniform(0, 0.2))
        killed.kill()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
    process = fork_command(command, output)
    process.join()
    printed = output.read_text()
    assert process.exitcode == 0, printed
    assert outcome(folder) == outcome(straight)
    assert "going on from step_" in printed
    assert "window-close" in printed.split("success at any step")[1]
    assert len((folder / "sessions.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_in_use_and_interrupted_and_read_by_nobody(straight: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "printed"
    command = ["train", "--run", str(folder), "--resume", *flags()]
    first = fork_command(command, output)
    wait_until(first, (folder / "checkpoints" / "step_24").exists)
    with pytest.raises(RunError, match="is in use by another process, which must end first"):
        train(Run.open(folder))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGINT)
    first.join()
    printed = output.read_text()
    assert first.exitcode == 130, printed
    assert "--resume goes on" in printed
    assert "Traceback" not in printed
    os.mkfifo(pipe := tmp_path / "pipe")
    process = fork_command(command, pipe)
    with pipe.open() as reader:
        assert reader.readline()
    process.join()
    assert process.exitcode == 0
    assert outcome(folder) == outcome(straight)


def test_learning_while_the_environments_step(tmp_path: Path) -> None:
    for name, steps in (("one", (36,)), ("two", (28, 36))):
        for until in steps:
            folder = tmp_path / name
            run = Run.open(folder) if folder.exists() else Run.create(folder, small(overlap=True, steps=until))
            run.agree({"steps": until})
            train(run)
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert one[1:4] == two[1:4]
    assert one[0][-1] == two[0][-1]


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", small())
    written: list[Path] = []

    def limited(model: Any, folder: Path, notes: Any) -> None:
        # From the second checkpoint on, no file may become longer than this.
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if written else before[0], before[1]))
            save(model, folder, notes)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        written.append(folder)

    save = MultiTaskSAC.save_checkpoint
    monkeypatch.setattr(MultiTaskSAC, "save_checkpoint", limited)
    with pytest.raises(RunError, match=r"no space left for .*run; free some, and --resume goes on from step_24, which"):
        train(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_24"]


def test_interrupted_in_an_evaluation(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", small())
    watch, steps = Recorder.watch, []

    def interrupting(recorder: Recorder, *done: int) -> None:
        steps.append(done)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGTERM)
        watch(recorder, *done)

    monkeypatch.setattr(Recorder, "watch", interrupting)
    assert train(run) is None  # in the evaluation at 48 steps
    assert {path.name for path in run.checkpoints.iterdir()} == {"step_24", "step_48"}
    assert list(run.evaluations.iterdir()) == []
    assert train(Run.open(run.folder)) is not None
    assert outcome(run.folder) == outcome(straight)


def test_interrupted_in_the_evaluation_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", small(steps=8))
    monkeypatch.setattr(Recorder, "watch", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # it was asked for twice, at the first and at the second step
        train(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_16"]
    monkeypatch.undo()
    assert train(Run.open(run.folder)) is not None


@pytest.fixture
def nearly(straight: Path, tmp_path: Path) -> Run:
    """A copy of the run that was killed between its last but one checkpoint and its last step."""
    folder = tmp_path / "nearly"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "checkpoints" / "step_96")
    (folder / "evaluations" / "final.json").unlink()
    return Run.open(folder)


def at_the_end(model: Any, *_: Any, **__: Any) -> bool:
    return bool(model.num_timesteps == 96)


def of_result(name: str) -> Callable[..., bool]:
    return lambda result, path: path.name == name


# Where a run may be stopped while it ends: what is called there, and which of the calls it is.
PHASES: dict[str, tuple[type, str, Callable[..., bool]]] = {
    "the last step": (MultiTaskSAC, "_sample_action", lambda model, *_: model.num_timesteps == 94),
    "what the last step brought": (MultiTaskSAC, "_store_transition", at_the_end),
    "the last update": (MultiTaskSAC, "train", at_the_end),
    "the last evaluation": (Recorder, "watch", lambda recorder, *done: bool(done) and at_the_end(recorder.model)),
    "the file of the last evaluation": (EvaluationResult, "save", of_result("step_96.json")),
    "the last line": (MultiTaskSAC, "dump_logs", at_the_end),
    "the last checkpoint": (MultiTaskSAC, "save_checkpoint", at_the_end),
    "the evaluation at the end": (Recorder, "watch", lambda recorder, *done: len(done) == 2 and done[1] == 16),
    "the result": (EvaluationResult, "save", of_result("final.json")),
}


def stop_in(patch: pytest.MonkeyPatch, phase: str, how: Callable[[], None], *, after: bool) -> None:
    """Stops a run before or after the one call that is a phase of its end."""
    owner, name, is_phase = PHASES[phase]
    call = getattr(owner, name)

    def stopping(*arguments: Any, **keywords: Any) -> Any:
        due = is_phase(*arguments, **keywords)
        if due and not after:
            patch.setattr(owner, name, call)
            how()
        done = call(*arguments, **keywords)
        if due and after:
            patch.setattr(owner, name, call)
            how()
        return done

    patch.setattr(owner, name, stopping)


def killed() -> None:
    raise KeyboardInterrupt


STOPS = {
    "Ctrl-C": functools.partial(signal.raise_signal, signal.SIGINT),
    "SIGTERM": functools.partial(signal.raise_signal, signal.SIGTERM),
    "at once": killed,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "how", "after"),
    [
        # Before a phase is behind the one before it.
        ("the last step", "Ctrl-C", False),
        *itertools.product(PHASES, ["Ctrl-C"], [True]),
        *itertools.product(PHASES, ["at once"], [False]),
        ("the last evaluation", "SIGTERM", False),
        ("the result", "SIGTERM", True),
    ],
)
def test_stopped_at_every_phase_of_the_end(
    phase: str, how: str, after: bool, nearly: Run, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, _ = PHASES[phase]
    with monkeypatch.context() as patch:
        stop_in(patch, phase, STOPS[how], after=after)
        with contextlib.suppress(KeyboardInterrupt):
            train(nearly)
        assert getattr(owner, name).__name__ == name, "the run did not come to the phase"
    assert train(Run.open(nearly.folder)) is not None
    assert outcome(nearly.folder) == outcome(straight)
    assert (nearly.folder / "config.json").read_text() == (straight / "config.json").read_text()


@pytest.fixture
def done(straight: Path, tmp_path: Path) -> Run:
    """A copy of the run, to be damaged."""
    shutil.copytree(straight, tmp_path / "done")
    return Run.open(tmp_path / "done")


def test_checkpoints_that_are_gone(done: Run) -> None:
    before = done.metrics.read_text()
    shutil.rmtree(done.checkpoints)
    with pytest.raises(RunError, match=r"holds no checkpoint, but the run came to 96 steps; restore them"):
        train(done)
    with pytest.raises(RunError, match=r"holds no checkpoint, but the run came to 96 steps; restore them"):
        load_model(done)
    assert done.metrics.read_text() == before


@pytest.mark.parametrize("name", ["model.safetensors", "notes.json", "manifest.json"])
def test_a_damaged_checkpoint(name: str, done: Run) -> None:
    (done.checkpoints / "step_96" / name).write_bytes(b"")
    (done.evaluations / "final.json").unlink()  # or there is nothing to do
    with pytest.raises(DamagedError, match=r"Remove .*step_96, and --resume goes on from the one before"):
        train(done)
    with pytest.raises(DamagedError, match=r"Remove .*step_96, and the one before is taken"):
        load_model(done)
    shutil.rmtree(done.checkpoints / "step_96")
    (last,) = done.checkpoints.iterdir()
    (last / name).write_bytes(b"")
    with pytest.raises(DamagedError, match=r"There is no other: put back the file, or start another run"):
        train(done)


def test_a_run_goes_on_from_the_checkpoint_before(done: Run) -> None:
    shutil.rmtree(done.checkpoints / "step_96")
    assert train(done) is not None
    assert len(read_metrics(done.metrics)) == 6


def test_steps_that_are_no_whole_number_of_rounds(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", small(steps=25, update_every=4))
    assert train(run) is not None
    assert latest_checkpoint(run.checkpoints) == run.checkpoints / "step_56"  # 28 steps of two tasks
    again = Run.open(run.folder)
    assert again.done() is not None
    again.configuration = dataclasses.replace(again.configuration, steps=24)
    with pytest.raises(RunError, match=r"`steps` must be at least the 28 of each task"):
        again.last_checkpoint()


@pytest.mark.parametrize("line", ['{"step": null}', '{"step": "abc"}', '{"step": 1.5}', "[]"])
def test_damaged_metrics_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged in line 1"):
        read_metrics(tmp_path / "metrics.jsonl")


def alter(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


ALTERED = {
    "metrics.jsonl": r"metrics.jsonl was altered: its SHA-256 is not the stored one; restore the file",
    "evaluations/step_48.json": r"step_48.json was altered: its SHA-256 is not .* --resume goes on without it",
    "evaluations/final.json": r"final.json was altered: its SHA-256 is not the stored one; restore the file",
}


@pytest.mark.parametrize("name", ALTERED)
def test_files_that_were_altered(name: str, done: Run) -> None:
    alter(done.folder / name)
    before = (done.folder / name).read_bytes()
    with pytest.raises(DamagedError, match=ALTERED[name]):
        train(done)
    assert (done.folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("metrics.jsonl", r"metrics.jsonl was altered or cut: it must have at least \d+ bytes, got \d+; restore"),
        ("evaluations/step_48.json", r"step_48.json was altered or cut: it must have \d+ bytes, got \d+; restore"),
        ("evaluations/final.json", r"final.json was altered: its SHA-256 is not the stored one"),
        ("config.json", r"config.json is not the configuration of a run"),
        ("checkpoints/step_96/notes.json", r"step_96/notes.json must have \d+ bytes, got \d+; take another"),
    ],
)
def test_files_that_were_cut(name: str, told: str, done: Run) -> None:
    cut(done.folder / name)
    with pytest.raises(DamagedError, match=told):
        train(Run.open(done.folder))


def test_files_that_are_missing(done: Run, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done.evaluations / "final.json").unlink()  # it is made again, and or there would be nothing to do
    for name in ("metrics.jsonl", "evaluations/step_48.json"):
        (done.folder / name).unlink()
    assert train(done) is not None
    told = "going on without files from before step_96, which are missing: metrics.jsonl, evaluations/step_48.json"
    assert told in capsys.readouterr().out
    assert done.sessions[-1]["without"] == ["metrics.jsonl", "evaluations/step_48.json"]
    assert read_metrics(done.metrics) == []
    final = [folder / "evaluations" / "final.json" for folder in (done.folder, straight)]
    assert final[0].read_text() == final[1].read_text()


def test_what_is_missing_stays_so(nearly: Run, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nearly.metrics.unlink()
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        stop_in(patch, "the last checkpoint", killed, after=False)
        train(nearly)
    assert [line["step"] for line in read_metrics(nearly.metrics)] == [80, 96]
    assert train(nearly) is not None  # what was logged since is no part of what was sealed
    assert [line["step"] for line in read_metrics(nearly.metrics)] == [80, 96]
    assert outcome(nearly.folder)[1:] == outcome(straight)[1:]
    alter(nearly.metrics)
    with pytest.raises(DamagedError, match=r"metrics.jsonl was altered"):
        train(nearly)


def test_what_was_logged_after_the_checkpoint_is_cut_back(nearly: Run, straight: Path) -> None:
    with nearly.metrics.open("ab") as file:
        file.write(b'{"step": 96, "ret')
    assert train(nearly) is not None
    assert outcome(nearly.folder) == outcome(straight)


def test_a_configuration_that_was_altered(nearly: Run) -> None:
    path = nearly.folder / "config.json"
    stored = json.loads(path.read_text())
    for name, value, told in (("gamma", 0.5, 0.99), ("benchmark", "reach,push", "reach,window-close")):
        path.write_text(json.dumps({**stored, name: value}))
        message = (
            rf"config.json was altered: it has {name}={value!r}, and its checkpoint was written with {told!r}; restore"
        )
        with pytest.raises(DamagedError, match=message):
            train(Run.open(nearly.folder))
    path.write_text(json.dumps({**stored, "final_episodes": 3}))  # which may change
    assert train(Run.open(nearly.folder)) is not None
    path.unlink()
    with pytest.raises(
        FileExistsError, match=r"holds checkpoints without the config.json of their run; put it back, or"
    ):
        Run.create(nearly.folder, small())


def test_checkpoints_that_do_not_tell_of_other_files(nearly: Run) -> None:
    for text in (
        "[]",
        "{}",
        '{"files": 3, "configuration": {}}',
        '{"files": {"a": 1}, "configuration": {}}',
        "[" * 9**5,
    ):
        last = nearly.checkpoints / "step_72"
        (last / "notes.json").write_text(text)
        reseal(last, "notes.json")
        with pytest.raises(DamagedError, match=r"step_72/notes\.json (is damaged|must have the options of the run)"):
            train(nearly)
    manifest = json.loads((last / "manifest.json").read_text())
    del manifest["notes.json"]
    (last / "notes.json").unlink()
    (last / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DamagedError, match=r"step_72/notes\.json must have the options of the run.*, got None; take an"
    ):
        train(nearly)


def reseal(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = storage.digest(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_that_is_finished_is_left_as_it_is(done: Run) -> None:
    files = [path for path in done.folder.rglob("*") if path.is_file() and path.name != "lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    result = train(done)
    assert result is not None
    assert result.mean_success == EvaluationResult.load(done.evaluations / "final.json").mean_success
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert done.minutes is not None
    assert 0 < done.minutes < 60


def test_notes_of_sessions_that_were_cut_short(done: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = done.folder / "sessions.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert done.sessions == [json.loads(whole)]
    (done.evaluations / "final.json").unlink()  # or there is nothing to do
    train(done)
    assert "without damaged lines of sessions.jsonl, whose minutes do not count: 2\n" in capsys.readouterr().out
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == json.loads(whole)
    assert done.minutes == first["minutes"] + second["minutes"]

    del first["minutes"]  # as after a kill
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    assert done.minutes is None


def test_fewer_steps_than_were_done(done: Run) -> None:
    done.agree({"steps": 24})
    with pytest.raises(RunError, match=r"`steps` must be at least the 48 of each task that .* has done, got 24"):
        train(done)
    assert Run.open(done.folder).configuration.steps == 48


def test_a_run_that_lost_its_sessions_stays_when_it_cannot_go_on(done: Run) -> None:
    (done.folder / "sessions.jsonl").unlink()
    done.agree({"steps": 24})
    with pytest.raises(RunError, match="`steps` must be at least the 48"):
        train(done)
    assert Run.open(done.folder).configuration.steps == 48


def test_sessions_without_versions_are_no_obstacle(done: Run) -> None:
    (session,) = done.sessions
    del session["versions"]
    (done.folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    (done.evaluations / "final.json").unlink()
    assert train(done) is not None


def test_other_versions_are_told(done: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (session,) = done.sessions
    session["versions"]["torch"] = "2.4.0"
    (done.folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    (done.evaluations / "final.json").unlink()  # or there is nothing to do
    train(done)
    assert "results may differ in their last bits, since versions changed: torch 2.4.0" in (capsys.readouterr().out)


def test_training_and_evaluation_have_the_problem_of_the_configuration(straight: Path, tmp_path: Path) -> None:
    problem = {"goals": "fixed", "horizon": 7, "reward_version": "v1"}
    configuration, action = small(**problem, seed=5), np.full((2, 4), 0.5, np.float32)
    with contextlib.closing(environments(configuration)) as env:
        seen, stepped = env.reset(), env.step(action)[:2]
        assert env.horizon == 7
    with contextlib.closing(make_envs(configuration.tasks, seed=5, **problem)) as env:
        assert np.array_equal(env.reset(), seen)
        assert all(np.array_equal(*pair) for pair in zip(env.step(action)[:2], stepped, strict=True))
    result = evaluate_run(Run(tmp_path, configuration), load_model(Run.open(straight), "cpu"), 1)
    assert {name: getattr(result, name) for name in problem} == problem


def test_goals_of_an_evaluation_are_not_those_of_training(done: Run, tmp_path: Path) -> None:
    model = load_model(done, "cpu")
    seeds = {}
    for seed in (1, SEEDS["random"]):
        run = Run(tmp_path, small(seed=seed))
        seeds[seed] = evaluate_run(run, model, 1, horizon=1).seed
    assert seeds == {1: SEEDS["random"], SEEDS["random"]: SEEDS["random"] + 1}
    fixed = evaluate_run(Run(tmp_path, small(seed=5, goals="fixed")), model, 9, horizon=1)
    assert (fixed.seed, fixed.episodes) == (5, 1)


def test_what_is_left_of_other_steps(done: Run) -> None:
    (done.evaluations / "step_20_old.json").touch()
    done.agree({"steps": 96})
    last = done.last_checkpoint()
    assert last is not None
    done.start_session(last, *done.check_files(last))
    names = ["step_20_old.json", "step_48.json", "step_96.json"]
    assert sorted(path.name for path in done.evaluations.iterdir()) == names  # the final one was of fewer steps


def test_a_final_evaluation_of_other_episodes_is_not_shown(done: Run) -> None:
    done.agree({"final_episodes": 3})
    last = done.last_checkpoint()
    assert last is not None
    done.start_session(last, *done.check_files(last))  # and is interrupted before it evaluates
    again = Run.open(done.folder)
    assert again.finished() is None
    assert summary.read_run(done.folder)["success"] is None
    assert not read_run(done.folder).is_finished


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ent_coef": "abc"}, "`ent_coef` must be a number or one of auto, auto_NUMBER, got 'abc'"),
        ({"ent_coef": "auto_"}, "`ent_coef` must be a number or one of auto, auto_NUMBER, got 'auto_'"),
        ({"route_temperature": "warm"}, "`route_temperature` must be a number or one of inverse-alpha-sum, "),
        ({"target_entropy": "low"}, "`target_entropy` must be a number or one of auto, auto_NUMBER, got 'low'"),
        ({"device": "cda"}, "`device` must be cpu, cuda or auto, got 'cda'"),
        ({"seed": 2**40}, "`seed` must be an integer in"),
        ({"reward_scale": 0.0}, "`reward_scale` must be above 0"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=told):
        train(Run.create(folder, small(**changes)))
    Run.create(folder, small())  # the directory is free again


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got 'cuda': torch finds no GPU"):
        train(Run.create(tmp_path / "run", small(device="cuda")))


def test_threads_by_the_size_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    little, large = small(threads=None), Configuration(benchmark="MT10").resolve()
    for configuration, environment, expected in (
        (little, {}, 1),
        (large, {}, 8),
        (little, {"OMP_NUM_THREADS": "8"}, 8),  # what is asked for goes first
        (small(threads=3), {"OMP_NUM_THREADS": "8"}, 3),
        (large, {"OMP_NUM_THREADS": ""}, 8),
    ):
        assert choose_threads(configuration, environment) == expected
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    Run.create(tmp_path / "run", little)
    assert Run.open(tmp_path / "run").configuration.threads == 1  # so that it goes on with the same


def test_threads_are_told(nearly: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    train(nearly)
    assert "\n1 thread for under a million multiply-adds a pass over a batch\n" in capsys.readouterr().out
    assert describe_threads(Configuration(benchmark="MT10").resolve(), 1).startswith("1 thread for 876 million ")
    assert nearly.sessions[-1]["machine"]["threads"] == 1
    assert nearly.sessions[-1]["machine"]["waiting"]["OMP_WAIT_POLICY"] == "PASSIVE"
    told = describe_threads(nearly.configuration, 2)
    assert told.startswith("2 threads for ")
    assert "they wait for each other by OMP_WAIT_POLICY=PASSIVE" in told
