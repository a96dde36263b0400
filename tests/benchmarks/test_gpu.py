"""The program for a GPU runs without one, finds nothing wrong, and survives what fails in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_sections
from dynroute import networks
from dynroute.execution import BACKENDS

Result = dict[str, Any]


def run(path: Path, *options: str) -> tuple[int, Result]:
    code = gpu.main(["--device", "cpu", "--quick", "--output", str(path), *options])
    return code, json.loads(path.read_text())


@pytest.mark.slow
def test_a_quick_run_has_every_section_and_every_backend_is_correct(tmp_path: Path) -> None:
    code, result = run(tmp_path / "gpu.json")
    assert code == 0
    assert result["about"]["card"] == "cpu"
    assert result["about"]["torch"] == torch.__version__
    assert list(result["sections"]) == ["correctness", "d2r", "moe", "actors", "capture", "sac"]
    for section in result["sections"].values():
        assert section["rows"]
        assert not section["skipped"]
        assert "failed" not in section
        assert not any("failed" in row for row in section["rows"])

    correct = result["sections"]["correctness"]["rows"]
    assert {name for row in correct for name in row["deviation"]} == set(BACKENDS)
    assert all(0 < gap <= row["tolerance"] for row in correct for name, gap in row["deviation"].items())
    assert all({*row["deviation"], *row.get("cannot", {})} == set(BACKENDS) for row in correct)
    assert len(result["sections"]["actors"]["rows"]) == len(networks.available())
    for row in [*result["sections"]["capture"]["rows"], *result["sections"]["sac"]["rows"]]:
        assert row["cannot"]["captured"] == "a CUDA graph needs a GPU"
    timed = [row for row in result["sections"]["sac"]["rows"] if "ms" in row]
    assert [list(row["updates a second"]) for row in timed] == [["eager"]] * 4


def test_a_section_or_a_step_that_raises_is_reported_and_the_others_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(setup: gpu_sections.Setup) -> gpu_sections.Steps:
        raise RuntimeError("no such kernel\nand much more")

    def step() -> gpu_sections.Row:
        raise RuntimeError("out of memory")

    def half(setup: gpu_sections.Setup) -> gpu_sections.Steps:
        jobs: dict[str, Callable[[], object]] = {"good": lambda: None, "bad": step}
        return {"first": step, "second": lambda: gpu_sections.compare(setup, jobs, "good")}

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": broken, "half": half})
    code, result = run(tmp_path / "gpu.json")
    assert code == 1
    assert result["sections"]["broken"]["failed"] == {"setting up": "no such kernel"}
    assert "and much more" in result["sections"]["broken"]["traceback"]["setting up"]
    first, second = result["sections"]["half"]["rows"]
    assert first["failed"] == {"step": "out of memory"}
    assert second["failed"] == {"bad": "out of memory"}
    assert list(second["ms"]) == ["good"]
    printed = capsys.readouterr().out
    assert "setting up failed: no such kernel" in printed
    assert "3 failures" in printed


def test_what_deviates_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(setup: gpu_sections.Setup) -> gpu_sections.Steps:
        def step() -> gpu_sections.Row:
            row: gpu_sections.Row = {"tolerance": 0.1, "deviation": {}}
            one = torch.ones(2, dtype=torch.float64)
            for name, found in {"near": one + 0.1, "far": one + 1, "nan": one * torch.nan, "none": None}.items():
                gpu_sections.judge(row, name, lambda found=found: [found], [one])
            return row

        return {"step": step}

    monkeypatch.setattr(gpu, "SECTIONS", {"judged": judged})
    code, result = run(tmp_path / "gpu.json")
    assert code == 1
    (row,) = result["sections"]["judged"]["rows"]
    assert row["failed"] == {
        "far": "deviates by 5.0e-01",
        "nan": "deviates by inf",
        "none": "a gradient is None on one side and a tensor on the other",
    }


def test_sections_behind_the_time_limit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(tmp_path / "gpu.json", "--minutes", "0")
    assert code == 0
    assert all(section["skipped"] == ["all"] for section in result["sections"].values())
    assert "skipped at the time limit: all" in capsys.readouterr().out


def test_full_sizes_are_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "add `--quick` to run on another device" in capsys.readouterr().err
