"""The mixtures that are timed compute what the loop beside them does, whatever the number of experts for each token."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import moe
from benchmarks.timing import Job


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_contenders_compute_the_same(k: int) -> None:
    nets = moe.contenders(8, k, 16, 32)
    loop, ours = nets["loop"], nets["dynroute"]
    x = torch.randn(40, 16)
    torch.testing.assert_close(ours(x), loop(x))


def test_a_row_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "moe.json"
    options = ["--experts", "4", "8", "--k", "1", "2", "--tokens", "16", "--threads", str(torch.get_num_threads())]

    def clock(jobs: dict[str, Job], *, seconds: float) -> dict[str, list[float]]:
        assert seconds == 0.5
        for job in jobs.values():
            job()
        return {name: [2.0 + number, 20.0 + 10 * number, 2.0] for number, name in enumerate(jobs)}

    monkeypatch.setattr(moe, "interleave", clock)
    moe.main([*options, "--seconds", "0.5", "--output", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["experts"], row["k"]) for row in rows if row["mode"] == "inference"] == [
        (4, 1),
        (4, 2),
        (8, 1),
        (8, 2),
    ]
    names = list(rows[0]["ms"])
    assert {"loop", "dynroute"} <= set(names)
    first = names.index("loop")
    for row in rows:
        assert row["ms"] == {name: 2.0 + number for number, name in enumerate(names)}
        assert row["to loop"] == {name: (2.0 + number) / (2.0 + first) for number, name in enumerate(names)}
