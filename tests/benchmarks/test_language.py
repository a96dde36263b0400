"""The study of transformers runs, goes on where it was stopped, and compares what can be compared."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import language, text, transformers
from dynroute import TopK


def test_the_text_holds_out_whole_modules() -> None:
    texts = {f"module{i:02}.py": f"{i:02}" * 5 for i in range(20)}
    learned, tested = text.split(texts)
    assert len(learned) == 18 * 10 + 17 * 2
    assert len(tested) == 2 * 10 + 2
    assert text.encode("\n ~é").tolist() == [0, 1, 95, 96]


def test_the_library_has_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text('"""Skipped."""')
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "bare.py").write_text("x = 1")
    (tmp_path / "some.py").write_text('"""First."""\n\ndef f():\n    """Second."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert text.docstrings() == {"some.py": "First.\n\nSecond."}


def test_loop_and_mixture_are_one_function() -> None:
    mixture = transformers.mixture(TopK(transformers.ACTIVE)).double()
    x = torch.randn(3, 20, transformers.WIDTH, dtype=torch.float64)
    results = []
    for part in (transformers.Routed(mixture, balance=True), transformers.Looped(mixture)):
        y, balance = part(x)
        gradients = torch.autograd.grad(y.square().sum() + balance, list(mixture.parameters()))
        results.append([y, balance, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", transformers.PARTS)
def test_no_token_sees_those_behind_it(name: str) -> None:
    net = transformers.Transformer(transformers.PARTS[name]).eval()
    tokens = torch.randint(97, (2, transformers.LENGTH))
    changed = tokens.clone()
    changed[:, 10:] = 5
    torch.testing.assert_close(net(changed)[0][:, :10], net(tokens)[0][:, :10])


def test_products_are_those_that_are_counted() -> None:
    for name in ("dense, active size", "dense, total size"):
        net = transformers.Transformer(transformers.PARTS[name])
        hidden = net.parts[0].perceptron[0].out_features
        linear = sum(p.numel() for p in net.parameters() if p.dim() == 2) - (97 + transformers.LENGTH) * 64
        attention = 2 * transformers.BLOCKS * transformers.LENGTH * transformers.WIDTH
        assert hidden in (256, 1024)
        assert transformers.products(name) == linear + attention
    mixture = transformers.products("mixture, loss") - transformers.products("dense, active size")
    assert mixture == transformers.BLOCKS * transformers.WIDTH * transformers.EXPERTS  # the router
    assert transformers.products("depth", 5) > transformers.products("depth", 4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(language, "BATCH", 2)
    monkeypatch.setattr(language, "TESTED", 4)
    monkeypatch.setattr(language, "docstrings", lambda: {f"{i}.py": "To be, or not to be.\n" * 40 for i in range(10)})
    yield
    torch.set_num_threads(threads)


def run(path: Path, *options: str) -> dict[str, Any]:
    quick = ["--seconds", "0", "--every", "2", "--compare-seconds", "0.01", "--jobs", "1"]
    language.main([*quick, *options, "--output", str(path)])
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_quick_study_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "language.json"
    first = run(path, "--seeds", "1", "--names", "dense, active size", "mixture, loss")
    capsys.readouterr()
    stored = run(path, "--seeds", "1")
    assert "mixture, loss" not in capsys.readouterr().out, "finished runs are not made again"
    assert stored["runs"][:2] == first["runs"]
    assert stored["steps"] == first["steps"]

    rows = {row["name"]: row for row in stored["summary"]["rows"]}
    assert list(rows) == list(transformers.PARTS)
    assert stored["summary"]["ends"]["step"] == 2
    loop, ours = (rows[name]["loss"]["step"]["mean"] for name in ("loop, loss", "mixture, loss"))
    assert loop == pytest.approx(ours, rel=1e-4)
    assert stored["summary"]["loop to mixture"]["most"] < 1e-3
    for row in stored["runs"]:
        if "routes" in row:
            assert len(row["routes"]) == len(row["history"][0]) == transformers.BLOCKS
            assert sum(row["routes"][0]["load"]) == pytest.approx(1.0, abs=1e-3)
            assert 0 <= row["routes"][0]["told by the character"] <= 1
    depth = next(row for row in stored["runs"] if row["name"] == "depth")
    assert 2 <= depth["routes"][0]["modules run by all"] <= transformers.DEPTH

    with pytest.raises(SystemExit):
        run(path, "--every", "3")
    assert "holds runs with other settings" in capsys.readouterr().err


def test_losses_are_compared_at_equal_cost() -> None:
    def curve(factor: float) -> list[dict[str, float]]:
        return [
            {"step": 10 * i, "seconds": factor * i, "products": 1.0 * i, "loss": 4.0 - factor * i} for i in range(4)
        ]

    runs = [
        {"name": name, "seed": seed, "parameters": 1, "products": 1.0, "curve": curve(factor + 0.1 * seed)}
        for name, factor in (("dense, active size", 1.0), ("depth", 0.5))
        for seed in range(3)
    ]
    summary = language.summarize(runs, {"dense, active size": 1.0, "depth": 2.0})
    assert summary["ends"] == {"turns": 30.0, "seconds": 1.5, "products": 3.0, "step": 30}
    assert summary["rows"][1]["loss"]["turns"]["mean"] == pytest.approx(4.0 - 1.5 * 0.6)
    dense, depth = summary["rows"]
    assert dense["loss"]["seconds"]["mean"] == pytest.approx(2.5)
    assert dense["loss"]["step"]["mean"] == pytest.approx(4.0 - 3 * 1.1)
    assert depth["difference"]["step"]["mean"] == pytest.approx(1.5)
    low, high = dense["loss"]["step"]["interval"]
    assert (high - low) / 2 == pytest.approx(4.30265273 * 0.3 / 3**0.5)
    assert language.mean_interval([1.0]) == {"mean": 1.0, "interval": None}


def test_what_the_character_tells_of_the_route() -> None:
    net = transformers.mixture(TopK(2))
    layer_tokens = torch.arange(400) % 4 + 65
    x = torch.eye(4)[layer_tokens - 65] @ torch.randn(4, transformers.WIDTH)
    with language.record(net) as routes:
        net(x)
    found = language.read_layer(routes[""], layer_tokens)
    path = routes[""].route.path[:4, 0].double()
    conditional = torch.log(torch.tensor(2.0))  # a character leaves the choice between its two experts
    marginal = language.entropy(path.mean(dim=0) / 2)
    assert found["told by the character"] == pytest.approx(1 - float(conditional) / marginal, rel=1e-5)


def test_the_tests_that_the_pages_name_exist() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"``(test_\w+\.py)::(test_\w+)``", (root / "docs" / "mixtral.rst").read_text())
    assert len(named) > 10
    for file, name in named:
        assert f"\ndef {name}(" in next((root / "tests").rglob(file)).read_text(), f"{file} has no {name}"
