"""The program that trains on a GPU runs without one, and writes its curve."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu_train


def test_a_quick_training_writes_its_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.json"
    ticks = itertools.count(step=0.05)  # the time passes as steps are made, whatever else the machine does
    monkeypatch.setattr(gpu_train, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    options = ["--device", "cpu", "--minutes", "0.05", "--quick", "--evaluations", "2", "--episodes", "1"]
    gpu_train.main([*options, "--workers", "0", "--output", str(path)])
    result = json.loads(path.read_text())
    assert result["about"]["configuration"]["benchmark"] == "reach,drawer-close"
    first, last = result["curve"]
    assert 0 < first["minutes"] < last["minutes"]
    assert 0 < first["steps"] < last["steps"]
    assert 0 < first["updates"] < last["updates"]
    assert set(last["by task"]) == {"reach", "drawer-close"}


def test_it_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_train.main([])
    assert "`--device cpu --quick` tries the program without one" in capsys.readouterr().err
