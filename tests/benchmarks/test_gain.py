"""Two sweeps are compared on the episodes that both have, and variants of a method apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gain import compare
from dynroute_metaworld import EvaluationResult
from dynroute_metaworld.runs.summary import FORMAT

TASKS = ("reach", "push")


def write_sweep(folder: Path, runs: dict[str, list[str]], **settings: Any) -> Path:
    """A sweep of finished runs, each a string of a digit for each episode of each task; 1 is a success."""
    noted = {}
    for name, solved in runs.items():
        variant = name.partition("-d2r-")[2].rpartition("seed")[0].rstrip("-")
        seed = int(name.rpartition("seed")[2])
        noted[name] = {"benchmark": "reach,push", "method": "d2r", "variant": variant, "seed": seed}
        (folder / name / "evaluations").mkdir(parents=True)
        first = np.array([list(map(int, row)) for row in solved])
        goals = np.arange(first.shape[1], dtype=np.float32)[None, :, None].repeat(2, axis=0).repeat(3, axis=2)
        usual = {"benchmark": "reach,push", "tasks": TASKS, "goals": "random", "horizon": 10, "seed": 0}
        usual |= {"reward_version": "v2", "criterion": "any", "versions": {}, "goal_positions": goals}
        arrays = {"first_success": first, "success_last": first > 0, "returns": 1.0 * first, "lengths": first}
        result = EvaluationResult(**{**usual, **arrays, "modules_used": None, **settings})
        result.save(folder / name / "evaluations" / "final.json")
    (folder / "sweep.json").write_text(json.dumps({"format": FORMAT, "token": "t", "runs": noted}))
    return folder


def test_finished_runs_of_both_sweeps_are_compared(tmp_path: Path) -> None:
    before = write_sweep(
        tmp_path / "before",
        {"x-d2r-seed1": ["0011", "1111"], "x-d2r-seed2": ["00", "01"], "x-d2r-k=3-seed1": ["1", "1"]},
    )
    after = write_sweep(
        tmp_path / "after",
        {
            "x-d2r-seed2": ["1100", "0100"],  # of which two episodes are shared
            "x-d2r-seed1": ["0111", "1101"],
            "x-d2r-seed3": ["1", "1"],  # not in the other sweep
            "x-d2r-k=3-seed1": ["0", "1"],
        },
    )
    (after / "x-d2r-seed4").mkdir()
    rows = compare(before, after)["rows"]
    found = [(row["variant"], row["task"], row["seeds"], row["episodes"], row["lost"], row["gained"]) for row in rows]
    assert found == [
        ("", "reach", [1, 2], 6, 0, 3),
        ("", "push", [1, 2], 6, 1, 0),
        ("", "all", [1, 2], 12, 1, 3),
        ("k=3", "reach", [1], 1, 1, 0),
        ("k=3", "push", [1], 1, 0, 0),
        ("k=3", "all", [1], 2, 1, 0),
    ]
    assert (rows[0]["before"], rows[0]["after"]) == ([0.5, 0.0], [0.75, 1.0])
    assert rows[2]["p"] == pytest.approx(2 * 5 / 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 20}, "x-d2r-seed1 must have the same horizon before and after, got 10 and 20"),
        ({"tasks": ("reach", "door-open")}, "x-d2r-seed1 must have the same tasks before and after"),
        ({"goal_positions": np.ones((2, 2, 3), np.float32)}, "x-d2r-seed1 must have the same goals before and after"),
    ],
)
def test_what_was_tested_otherwise_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    before = write_sweep(tmp_path / "before", {"x-d2r-seed1": ["01", "01"]})
    after = write_sweep(tmp_path / "after", {"x-d2r-seed1": ["01", "01"]}, **settings)
    with pytest.raises(ValueError, match=message):
        compare(before, after)


def test_sweeps_without_a_run_in_common(tmp_path: Path) -> None:
    sweeps = [write_sweep(tmp_path / str(seed), {f"x-d2r-seed{seed}": ["01", "01"]}) for seed in (1, 2)]
    with pytest.raises(ValueError, match="must have finished runs of the same names, got none"):
        compare(*sweeps)
