"""Benchmarks write results whole, and to the documented file only by default options."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import learner, moe, outputs, precision


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(outputs, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--no-scaling", action="store_true")
    return outputs.parse(parser, "speed.json", arguments)


def test_default_options_write_the_default_file(results: Path, tmp_path: Path) -> None:
    assert parse().output == parse("--batches", "1", "10").output == results / "speed.json"
    other = tmp_path / "new" / "other.json"
    assert parse("--only", "d2r", "--output", str(other)).output == other
    assert other.parent.is_dir()


def test_other_options_name_another_file(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(results)
    for output in ([], ["--output", "speed.json"], ["--output", str(results / ".." / "results" / "speed.json")]):
        with pytest.raises(SystemExit):
            parse("--batches", "1", "--no-scaling", *output)
        assert "got --batches and --no-scaling: name another file by `--output`" in capsys.readouterr().err


def test_programs_keep_what_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    for program, options in ((moe, ["--k", "1"]), (learner, ["--threads", "1"]), (precision, ["--seeds", "1"])):
        with pytest.raises(SystemExit):
            program.main(options)
        assert f"got {options[0]}: name another file" in capsys.readouterr().err


def test_another_measurement_has_another_file(results: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=outputs.file)

    def name(*arguments: str) -> str:
        path = outputs.new_file("gpu-NVIDIA H200", parser, parser.parse_args(arguments), "device")
        assert path.parent == results
        path.touch()
        return path.name

    assert name() == "gpu-nvidia-h200.json"
    assert name("--device", "cuda:1") == "gpu-nvidia-h200-2.json"
    assert name() == "gpu-nvidia-h200-3.json"
    assert name("--quick", "--learning-rate", "0.05") == "gpu-nvidia-h200-learning-rate-0.05-quick.json"


def test_a_file_holds_no_number_that_json_lacks(results: Path) -> None:
    path = results / "a.json"
    outputs.write(path, {"rows": [1]})
    with pytest.raises(ValueError, match="Out of range"):
        outputs.write(path, {"rows": [float("nan")]}, allow_nan=False)
    assert json.loads(path.read_text()) == {"rows": [1]}
    assert list(results.iterdir()) == [path]


def test_a_session_tells_where_and_by_what_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["moe.py", "--k", "1"])
    session = outputs.session("benchmarks.moe")
    assert session["command"] == "python -m benchmarks.moe --k 1"
    assert session["machine"]["threads"] == torch.get_num_threads()
    assert session["versions"]["torch"] == torch.__version__
    assert {"commit", "load"} <= set(session)
