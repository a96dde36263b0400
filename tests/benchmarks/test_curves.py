"""Curves of runs with other settings are stored with what differs, and without the paths of a machine."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from results import result_of

from benchmarks import curves
from dynroute_metaworld import Configuration, Run

MT_SAC = (39 + 4 + 2) * 400 + 4 * 400 * 400 + 400
"""The multiply-adds of a critic of mt-sac, with five hidden layers, which reads states, actions and two tasks."""


def write_run(folder: Path, rates: dict[int, list[float]], **options: Any) -> Run:
    run = Run.create(
        folder, Configuration(**{"method": "mt-sac", "benchmark": "reach,push", "device": "cpu", **options})
    )
    lines = [
        {"step": 2 * steps, "success/reach": reach, "success/push": push, "time/fps": 1}
        for steps, (reach, push) in rates.items()
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    session = {"command": f"dynroute train --run {folder} --seed 1", "commit": "abc", "versions": {}, "machine": {}}
    (folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    return run


def test_a_row_has_what_differs_and_the_mean_over_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a", {100: [0.5, 0.0], 150: [1.0, 1.0], 200: [1.0, 0.5]})
    write_run(tmp_path / "b", {100: [0.25, 0.25]}, batch_size=16, seed=2, log_every=7, steps=300)
    ended = tmp_path / "b" / "sessions.jsonl"
    ended.write_text(json.dumps({**json.loads(ended.read_text()), "minutes": 2.5}))
    output = tmp_path / "curves.json"
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--every", "100", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["curves", *arguments])
    curves.main()
    stored = json.loads(output.read_text())
    second = {"run": "b", "options": {"batch_size": 16, "seed": 2}, "success": {"100": 0.25}}
    unknown: dict[str, Any] = {"evaluated": {}, "minutes_at": {}}  # these runs logged no minutes
    by_task = [{"100": [0.5, 0.0], "200": [1.0, 0.5]}, {"100": [0.25, 0.25]}]
    tasks = [{"multiply_adds": MT_SAC, "by_task": {"success": rates, "evaluated": {}}} for rates in by_task]
    assert stored["rows"] == [
        {"run": "a", "options": {}, "success": {"100": 0.25, "200": 0.75}, **unknown, **tasks[0], "minutes": None},
        {**second, **unknown, **tasks[1], "minutes": 2.5},
    ]
    assert [session["command"] for session in stored["sessions"]] == [
        "dynroute train --run runs/a --seed 1",
        "dynroute train --run runs/b --seed 1",
    ]
    assert str(tmp_path) not in output.read_text()


def test_the_minutes_of_a_curve_are_those_of_its_figures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {100: [0.5, 0.0]}, goals="fixed", steps=300)
    lines = [{"step": 2 * steps, "success/reach": 0.5, "time/minutes": steps / 10} for steps in (120, 150, 200, 250)]
    run.metrics.write_text(run.metrics.read_text() + "".join(json.dumps(line) + "\n" for line in lines))
    run.evaluations.mkdir()
    result_of([[True], [True]], goals="fixed").save(run.evaluations / "step_300.json")
    (row,) = curves.compare([run.folder], every=100)["rows"]
    assert (list(row["success"]), list(row["evaluated"])) == (["100", "200"], ["150"])
    assert row["minutes_at"] == {"150": 15.0, "200": 20.0}  # before 120 steps it logged none


def test_minutes_that_were_not_logged_are_those_of_earlier_sessions_and_of_the_own_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {50: [0.5, 0.0]}, steps=400)
    times = {100: 60, 200: 180, 300: 30, 400: 90}
    lines = [{"step": 2 * steps, "success/reach": 0.5, "time/time_elapsed": time} for steps, time in times.items()]
    run.metrics.write_text(run.metrics.read_text() + "".join(json.dumps(line) + "\n" for line in lines))
    sessions = [{"steps": 0, "minutes": 5.0}, {"steps": 2 * 210, "minutes": 2.0}]
    path = run.folder / "sessions.jsonl"
    path.write_text("".join(json.dumps(session) + "\n" for session in sessions))
    assert curves.read_minutes(run) == {"100": 1.0, "200": 3.0, "300": 5.5, "400": 6.5}
    path.write_text("".join(json.dumps({"steps": session["steps"]}) + "\n" for session in sessions))
    assert curves.read_minutes(run) == {"100": 1.0, "200": 3.0}  # nobody knows when the killed session ended


def test_evaluations_are_those_of_their_steps_and_the_last_one_is_final(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {100: [0.5, 0.0]}, goals="fixed", steps=300)
    run.evaluations.mkdir()
    result_of([[True], [True]], goals="fixed").save(run.evaluations / "step_400.json")
    result_of([[False], [True]], goals="fixed").save(run.evaluations / "step_80.json")
    assert curves.read_evaluations(run) == {"40": [0.0, 1.0], "200": [1.0, 1.0]}
    result_of([[False], [False]], goals="fixed").save(run.evaluations / "final.json")
    assert list(curves.read_evaluations(run).items()) == [
        ("40", [0.0, 1.0]),
        ("200", [1.0, 1.0]),
        ("300", [0.0, 0.0]),
    ]
    (run.checkpoints / "step_500").mkdir(parents=True)  # where its hours ended
    assert list(curves.read_evaluations(run)) == ["40", "200", "250"]


def test_rows_are_added_to_those_of_runs_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "curves.json"

    def store(*names: str, every: int | None = None) -> dict[str, Any]:
        arguments = [*(str(tmp_path / name) for name in names), "--output", str(output)]
        arguments += [] if every is None else ["--every", str(every)]
        monkeypatch.setattr(sys, "argv", ["curves", *arguments, "--add"])
        curves.main()
        stored: dict[str, Any] = json.loads(output.read_text())
        return stored

    first = write_run(tmp_path / "a", {100: [0.5, 0.0]}, batch_size=16)
    write_run(tmp_path / "b", {50: [0.0, 0.0], 100: [0.25, 0.25]}, seed=2)
    before = store("a", every=100)
    shutil.rmtree(first.folder)
    after = store("b")
    assert after["first"] == before["first"]
    assert [row["options"] for row in after["rows"]] == [{}, {"batch_size": 128, "seed": 2}]
    assert after["rows"][1]["success"] == {"100": 0.25}  # at the steps of the file
    assert [session["run"] for session in after["sessions"]] == ["a", "b"]

    # An option that came later is no difference as long as it has its default.
    del after["first"]["n_steps"]
    output.write_text(json.dumps(after))
    shutil.rmtree(tmp_path / "b")
    write_run(tmp_path / "b", {100: [1.0, 0.0]}, seed=3)
    again = store("b")  # another run of this name takes the place of its row and sessions
    assert [(row["run"], row["options"]) for row in again["rows"]] == [("a", {}), ("b", {"batch_size": 128, "seed": 3})]
    assert [session["run"] for session in again["sessions"]] == ["a", "b"]

    monkeypatch.setattr(sys, "argv", ["curves", str(tmp_path / "b"), "--output", str(output)])
    with pytest.raises(SystemExit):
        curves.main()
    assert "has rows of other runs: `--add` keeps them; or name another file" in capsys.readouterr().err
    assert json.loads(output.read_text()) == again


@pytest.mark.parametrize(
    ("names", "every", "message"),
    [
        (("window",), None, "window has another window or other tasks than the first run"),
        (("tasks",), None, "tasks has another window or other tasks than the first run"),
        (("a",), 50, "the file has curves at every 100 steps, got `--every 50`; leave it out"),
        (("a", "other/a"), None, "folders must have different names"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    names: tuple[str, ...], every: int | None, message: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", {100: [0.5, 0.0]})
    write_run(tmp_path / "other" / "a", {100: [0.5, 0.0]})
    write_run(tmp_path / "window", {100: [0.5, 0.0]}, window=3)
    write_run(tmp_path / "tasks", {100: [0.5, 0.0]}, benchmark="reach,door-open")
    stored = curves.compare([tmp_path / "a"], 100)
    with pytest.raises(ValueError, match=message):
        curves.compare([tmp_path / name for name in names], every, stored)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {100: [0.5, 0.0]})
    with pytest.raises(ValueError, match="the file has the format 'dynroute curves 1', not 'dynroute curves 4'"):
        curves.compare([tmp_path / "a"], former={"format": "dynroute curves 1"})
