"""Curves of runs with other settings are stored with what differs, and without the paths of a machine."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import curves
from dynroute_metaworld import Configuration, Run


def write_run(folder: Path, rates: dict[int, list[float]], **options: int) -> Run:
    run = Run.create(folder, Configuration(method="mt-sac", benchmark="reach,push", device="cpu", **options))
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
    output = tmp_path / "curves.json"
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--every", "100", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["curves", *arguments])
    curves.main()
    stored = json.loads(output.read_text())
    assert stored["rows"] == [
        {"run": "a", "options": {}, "success": {"100": 0.25, "200": 0.75}},
        {"run": "b", "options": {"batch_size": 16, "seed": 2}, "success": {"100": 0.25}},
    ]
    assert [session["command"] for session in stored["sessions"]] == [
        "dynroute train --run runs/a --seed 1",
        "dynroute train --run runs/b --seed 1",
    ]
    assert str(tmp_path) not in output.read_text()
