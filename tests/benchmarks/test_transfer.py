"""The experiments on extraction and transfer run, go on where they were, and refuse to mix settings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import extraction, transfer
from dynroute_metaworld import Run, train
from dynroute_metaworld.runs.presets import IMITATION_ALONE, preset


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def test_extraction_goes_on_with_the_tasks_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {**IMITATION_ALONE, "benchmark": "reach,drawer-close", "demonstrations": 3, "horizon": 10}
    options |= {"cloning_steps": 20, "final_episodes": 1, "device": "cpu"}
    run = Run.create(tmp_path / "run", preset("quick", options).resolve())
    train(run)
    capsys.readouterr()
    settings = {"coverage": 1.0, "states": 3, "episodes": 1, "choosing": 1, "widths": [4, 8], "rounds": 1}
    output = tmp_path / "result.json"
    extraction.measure([run.folder], ["drawer-close"], settings, output)
    first = json.loads(output.read_text())
    extraction.measure([run.folder], None, settings, output)
    stored = json.loads(output.read_text())
    assert stored["rows"][0] == first["rows"][0]
    assert [row["task"] for row in stored["rows"]] == ["drawer-close", "reach"]
    row = stored["rows"][0]
    assert row["perceptron"]["parameters"] == {4: 40 * 4 + 20 + 20, 8: 40 * 8 + 72 + 36}[row["width"]]
    assert row["extracted"]["parameters"] <= row["whole"]["parameters"]
    assert str(tmp_path) not in stored["runs"]["run"]["session"]["command"]
    with pytest.raises(SystemExit, match=r"result\.json has other settings, .* name another file"):
        extraction.measure([run.folder], None, {**settings, "rounds": 2}, output)


def test_a_row_of_transfer_for_each_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"held_out": ["reach"], "shown": [1], "sizes": "quick", "pretraining": 1, "updates": 2, "batch": 2}
    settings |= {"rate": 1e-3, "episodes": 1, "old_episodes": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer.Learner, "success", lambda *_: 0.5)  # episodes take most of the time
        transfer.measure(settings, [1], tmp_path / "result.json", tmp_path)
        capsys.readouterr()
        transfer.measure(settings, [1], tmp_path / "result.json", tmp_path)
    assert capsys.readouterr().out == ""
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["method"], row["way"]) for row in rows] == [
        (method, way) for method, ways in transfer.WAYS.items() for way in ways
    ]
    assert [row["old after"] for row in rows] == [None if row["way"] == "scratch" else 0.5 for row in rows]


@pytest.mark.parametrize("way", transfer.WAYS["d2r"])
def test_what_learns_of_a_new_task(way: str) -> None:
    learner = transfer.Learner("d2r", "quick")
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    shown = {3: (torch.randn(20, 39), torch.rand(20, 4))}
    found = transfer.adapt(learner, way, 3, shown, {"updates": 4, "rate": 1e-2, "batch": 8}, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    after = found.state_dict()
    task = after.pop("net.task.weight") != before["net.task.weight"]
    assert task[:, 3].any()
    assert not task[:, [0, 1, 2, *range(4, 10)]].any()
    changed = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    parts = {re.sub(r"net\.(trunk|task|graph\.nodes\.\d+|graph\.router)\..*", r"\1", name) for name in changed}
    if way == "route + module":  # the old output has another number now
        assert {"graph.nodes.6", "graph.router"} <= parts <= {"graph.nodes.6", "graph.nodes.7", "graph.router"}
        assert torch.equal(after["net.graph.nodes.7.weight"], before["net.graph.nodes.6.weight"])
    elif way in ("embedding", "route"):
        assert parts == ({"graph.router"} if way == "route" else set())
    else:
        assert {"trunk", "task", "graph.nodes.0", "graph.nodes.6", "graph.router"} <= parts
