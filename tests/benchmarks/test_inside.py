"""What goes on inside SAC is measured at a checkpoint, without a change of it."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import inside
from dynroute import Topology
from dynroute_metaworld import Run, train
from dynroute_metaworld.runs.presets import preset


def test_agreement_counts_sources_of_nodes_that_run() -> None:
    topology = Topology.dag(3)  # node 1 reads 0; node 2 reads 0 and 1
    straight = torch.tensor([[[True, False], [True, False]]])
    through = torch.tensor([[[True, False], [True, True]]])
    assert inside.agreement(topology, straight, straight) == 1.0
    # Node 1 runs along the second path alone, so that its source counts there: one of three is in both.
    assert inside.agreement(topology, straight, through) == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["d2r", "mt-sac"])
def test_a_row_of_a_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"benchmark": "reach,drawer-close", "method": method, "steps": 40, "learning_starts": 20, "batch_size": 4}
    run = Run.create(tmp_path / "run-seed1", preset("quick", {**options, "final_episodes": 1, "horizon": 10}).resolve())
    train(run)
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    output = tmp_path / "inside.json"
    monkeypatch.setattr(inside, "AGES", (0, 15, 100))
    monkeypatch.setattr(sys, "argv", ["inside", str(run.folder), "--each", "8", "--output", str(output)])
    inside.main()
    inside.main()  # what is there is not measured again
    [row] = json.loads(output.read_text())["rows"]
    assert (row["run"], row["network"], row["seed"], row["steps"]) == ("run-seed1", "run", 1, 40)
    parts = ("modules", "rest", "router") if method == "d2r" else ("rest",)
    for part in itertools.product(("actor", "critic"), parts):
        assert row[f"{' '.join(part)} norm"] > 0
        assert -1 <= row[f"{' '.join(part)} cosine"] <= 1
    ages = [name for name in row if name.startswith("agreement")]
    if method == "d2r":
        assert ages == ["agreement 0", "agreement 15"]  # no transition is older
        assert 0 <= row["stopped 0"] < 1
        assert 1 <= row["modules"] <= 7
    else:
        assert not ages
        assert "entropy" not in row
    assert {path: path.read_bytes() for path in files} == files


def test_looking_changes_nothing_and_clips_nothing(tmp_path: Path) -> None:
    options = {"benchmark": "reach,drawer-close", "steps": 40, "learning_starts": 20, "batch_size": 4, "horizon": 10}
    run = Run.create(
        tmp_path / "run", preset("quick", {**options, "final_episodes": 1, "max_grad_norm": 1e-6}).resolve()
    )
    train(run)
    model = inside.open_model(run)
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    figures = inside.look_at_gradients(model, 8)
    assert figures["critic rest norm"] > 1e-6
    assert all(torch.equal(value, before[name]) for name, value in model.policy.named_parameters())
