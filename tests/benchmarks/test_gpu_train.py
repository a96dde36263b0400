"""The program that trains on a GPU runs without one, and writes its curve."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu_train


def test_a_quick_training_learns_and_writes_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    options = ["--device", "cpu", "--minutes", "0.05", "--quick", "--evaluations", "2", "--episodes", "1"]
    gpu_train.main([*options, "--workers", "0", "--output", str(path)])
    result = json.loads(path.read_text())
    assert result["about"]["configuration"]["benchmark"] == "reach,drawer-close"
    first, last = result["curve"]
    assert 0 < first["minutes"] < last["minutes"]
    assert 0 < first["steps"] < last["steps"]
    assert last["updates"] > 0
    assert set(last["by task"]) == {"reach", "drawer-close"}


def test_it_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_train.main([])
    assert "`--device cpu --quick` tries the program without one" in capsys.readouterr().err
