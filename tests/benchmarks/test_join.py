"""Parts of a sweep and single runs make one summary, unless something else than the runs differs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from results import result_of

from benchmarks import join
from dynroute_metaworld import Configuration, Run
from dynroute_metaworld.runs.summary import SUMMARY


def finished(folder: Path, seed: int, solved: int, flags: str = "--steps 100") -> Path:
    """The folder of a run of `dynroute train`, which solves so many of ten episodes of reach, and none of push."""
    run = Run.create(
        folder / f"seed{seed}", Configuration(method="mt-sac", benchmark="reach,push", seed=seed, device="cpu")
    )
    session = {
        "command": f"dynroute train {flags} --seed {seed} --run {run.folder} --hours {seed} --resume",
        "versions": {"torch": "2"},
        "machine": {"threads": 1},
        "minutes": 2.0 * seed,
    }
    (run.folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    run.evaluations.mkdir()
    result_of([[episode < solved for episode in range(10)], [False] * 10]).save(run.evaluations / "final.json")
    return run.folder


def joined(output: Path, *parts: Path) -> dict[str, Any]:
    """Runs the command, and returns the summary that it writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["join", *map(str, parts), "--output", str(output)])
        join.main()
    return dict(json.loads(output.read_text()))


def test_single_runs_join_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = joined(tmp_path / "first.json", finished(tmp_path / "here", 1, 8), finished(tmp_path / "here", 2, 6))
    assert first["format"] == SUMMARY
    summary = joined(tmp_path / "all.json", tmp_path / "first.json", finished(tmp_path / "there", 3, 10))
    assert list(summary["runs"]) == ["seed1", "seed2", "seed3"]
    (row,) = summary["rows"]
    assert (row["seeds"], row["missing"], row["minutes"]) == ([1, 2, 3], [], 4.0)
    assert row["success"] == pytest.approx({"reach": 0.8, "push": 0})
    assert row["mean"] == pytest.approx(0.4)
    assert str(tmp_path) not in (tmp_path / "all.json").read_text()
    assert summary["runs"]["seed3"]["sessions"][0]["command"] == (
        "dynroute train --steps 100 --seed 3 --run runs/seed3 --hours 3 --resume"
    )
    assert "3 of 3" in capsys.readouterr().out


def test_parts_that_differ_in_more_than_their_runs(tmp_path: Path) -> None:
    parts = [finished(tmp_path, 1, 8), finished(tmp_path, 2, 8, "--steps 200")]
    with pytest.raises(ValueError, match="seed2 and seed1 differ in their flags"):
        join.join([join.read(part) for part in parts])


def test_a_run_that_ended_differently(tmp_path: Path) -> None:
    parts = [finished(tmp_path / "here", 1, 8), finished(tmp_path / "there", 1, 7)]
    with pytest.raises(ValueError, match="seed1 ended differently in two parts"):
        join.join([join.read(part) for part in parts])


def test_a_finished_run_takes_the_place_of_an_unfinished_one(tmp_path: Path) -> None:
    here, there = (finished(tmp_path / name, 1, 8) for name in ("here", "there"))
    (here / "evaluations" / "final.json").unlink()
    for parts in ((here, there), (there, here)):
        summary = join.join([join.read(part) for part in parts])
        assert summary["runs"]["seed1"]["success"] == {"reach": 0.8, "push": 0}
