"""The mixtures that are timed compute what the loop beside them does, whatever the number of experts for each token."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import moe


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_contenders_compute_the_same(k: int) -> None:
    nets = moe.contenders(8, k, 16, 32)
    loop, ours = nets["loop"], nets["dynroute"]
    x = torch.randn(40, 16)
    torch.testing.assert_close(ours(x), loop(x))


@pytest.mark.slow
def test_a_row_for_each_size(tmp_path: Path) -> None:
    path = tmp_path / "moe.json"
    options = ["--experts", "4", "8", "--k", "1", "2", "--tokens", "16", "--threads", str(torch.get_num_threads())]
    moe.main([*options, "--seconds", "0.01", "--output", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["experts"], row["k"]) for row in rows if row["mode"] == "inference"] == [
        (4, 1),
        (4, 2),
        (8, 1),
        (8, 2),
    ]
    assert all(row["to loop"]["loop"] == 1.0 for row in rows)
