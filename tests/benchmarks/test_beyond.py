"""The experiments on growth, transfer, budgets and extraction run and go on where they were."""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import metaworld
import pytest
import torch

from benchmarks import arriving, budgets, conflict, extraction, imitating, transfer
from benchmarks.rows import Rows
from dynroute import limit_modules
from dynroute_metaworld import Run, train
from dynroute_metaworld.runs.presets import IMITATION_ALONE, preset


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(imitating, "collect", functools.partial(imitating.collect, horizon=20))
        patch.setattr(metaworld, "_N_GOALS", 2)  # drawing all 50 for each task of MT10 takes seconds
        yield


@pytest.mark.slow
@pytest.mark.parametrize("goals", ["random", "fixed"])
def test_a_row_of_extraction(goals: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {**IMITATION_ALONE, "benchmark": "reach,drawer-close", "demonstrations": 3, "horizon": 10}
    options |= {"num_modules": 3, "cloning_steps": 20, "final_episodes": 1, "device": "cpu", "goals": goals}
    run = Run.create(tmp_path / "run", preset("quick", options).resolve())
    train(run)
    capsys.readouterr()
    settings = {"coverage": 1.0, "states": 3, "episodes": 1, "choosing": 1, "widths": [4, 8], "rounds": 1}
    output = tmp_path / "result.json"
    extraction.measure([run.folder], ["drawer-close"], settings, output)
    stored = json.loads(output.read_text())
    (row,) = stored["rows"]
    assert row["task"] == "drawer-close"
    assert (row["deviation elsewhere"] is None) == (goals == "fixed")  # there is one episode of fixed goals
    assert row["perceptron"]["parameters"] == {4: 40 * 4 + 20 + 20, 8: 40 * 8 + 72 + 36}[row["width"]]
    assert row["extracted"]["parameters"] <= row["whole"]["parameters"]
    assert str(tmp_path) not in stored["runs"]["run"]["session"]["command"]
    if goals == "random":  # with the tasks that are missing it goes on alike
        extraction.measure([run.folder], None, settings, output)
        rows = json.loads(output.read_text())["rows"]
        assert rows[0] == row
        assert [row["task"] for row in rows] == ["drawer-close", "reach"]
    with pytest.raises(SystemExit, match=r"result\.json has other settings, .* name another file"):
        extraction.measure([run.folder], None, {**settings, "rounds": 2}, output)


QUICK: dict[str, Any] = {"updates": 2, "batch": 2, "rate": 1e-3, "episodes": 1}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the episodes are solved: running them takes most of the time of an experiment."""
    monkeypatch.setattr(imitating.Learner, "success", lambda learner, tasks, episodes: dict.fromkeys(tasks, 0.5))


def run_twice(measure: Callable[[], None], output: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The rows of an experiment, which does nothing the second time."""
    measure()
    capsys.readouterr()
    measure()
    assert capsys.readouterr().out == ""
    rows = json.loads(output.read_text())["rows"]
    assert isinstance(rows, list)
    return rows


@pytest.mark.slow
def test_a_row_of_transfer_for_each_way(tmp_path: Path, half: None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**QUICK, "benchmark": "MT10", "held_out": 1, "shown": [1], "pretraining": 1, "old_batch": 2}
    settings |= {"old_episodes": 1, "old_tasks": 2}
    output = tmp_path / "result.json"
    rows = run_twice(lambda: transfer.measure(settings, [1], output), output, capsys)
    assert [(row["method"], row["way"]) for row in rows] == [
        (method, way) for method, ways in transfer.WAYS.items() for way in ways
    ]
    assert len({row["task"] for row in rows}) == 1
    assert [row["old after"] for row in rows] == [None if row["way"] in transfer.UNCHANGED else 0.5 for row in rows]


def test_a_row_of_arriving_tasks_for_each_group(tmp_path: Path, half: None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**QUICK, "benchmark": "MT10", "group": 5, "modules": 2, "added": 1, "demonstrations": 1}
    output = tmp_path / "result.json"

    def measure() -> None:
        rows = Rows(output, "f", settings, program="p", key=("seed", "arm", "kept", "groups"))
        for arm in arriving.ARMS:
            arriving.follow(arm, 1, 1, settings, rows)

    rows = run_twice(measure, output, capsys)
    assert [(row["arm"], row["groups"], row["modules"]) for row in rows] == [
        *[("initial", 1, 2), ("initial", 2, 2), ("final", 1, 3), ("final", 2, 3)],
        *[(arm, *sizes) for arm in ("grow", "grow, frozen") for sizes in ((1, 2), (2, 3))],
    ]
    assert [row["parameters"] == row["learning"] for row in rows] == [True] * 7 + [False]
    assert [len(row["success"]) for row in rows] == [5, 10] * 4


def test_what_grows_and_learns_when_tasks_arrive() -> None:
    learner = imitating.Learner("d2r", "MT10", num_modules=3)
    assert arriving.prepare(learner, "final", 2) == ()
    assert arriving.prepare(learner, "grow, frozen", 2) == (3, 4)
    learning = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    parts = {re.sub(r"net\.(trunk|task|graph\.nodes\.\d+|graph\.router)\..*", r"\1", name) for name in learning}
    assert parts == {"task", "graph.nodes.3", "graph.nodes.4", "graph.router"}
    assert "net.task.bias" not in learning  # old tasks read it too


def test_a_row_of_budgets_for_each_limit(
    tmp_path: Path, half: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "measure_in_turns", functools.partial(budgets.measure_in_turns, rounds=2))
    settings = {**QUICK, "targets": [2.5], "limits": [2], "modules": 4, "demonstrations": 1, "price_rate": 1e-2}
    settings["first_price"] = 1e-3
    output = tmp_path / "result.json"
    rows = run_twice(lambda: budgets.measure(settings, [1], output), output, capsys)
    targets = (None, 2.5, "any")
    assert [(row["target"], row["limit"]) for row in rows] == list(itertools.product(targets, (None, 2)))
    assert all(row["modules"] == 2 for row in rows if row["limit"])
    assert all(2 < row["modules"] <= 5 for row in rows if not row["limit"])
    rose = [row["price"] > 1e-3 for row in rows]  # four modules cost more than 2.5
    assert rose == [False, False, True, True, False, False]


def test_a_limit_cuts_the_routes_of_one_pass() -> None:
    learner = imitating.Learner("d2r", "MT10").eval()
    state, task = torch.randn(40, 39), torch.arange(40) % 10
    topology = learner.net.topology
    assert topology is not None
    path = limit_modules(learner(state, task, return_route=True)[1], topology, 3)
    expected = learner(state, task, path=path)
    passes: list[torch.Tensor] = []
    cut = budgets.limited(learner, 3)
    cut.net.trunk.register_forward_hook(lambda *parts: passes.append(parts[-1]))
    action, route = cut(state, task, return_route=True)
    assert torch.equal(route.path, path)
    torch.testing.assert_close(action, expected)
    assert len(passes) == 1
    assert (topology.used(learner(state, task, return_route=True)[1].path).sum(dim=-1) > 3).any()
    assert budgets.limited(learner, None) is learner


def test_success_is_that_of_the_tasks_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, asked = imitating.Learner("mt-sac", "MT10"), []
    monkeypatch.setattr(
        imitating.Learner, "forward", lambda _, state, task: asked.append(task) or torch.zeros(len(task), 4)
    )
    rates = learner.success([7, 2], episodes=1)
    assert list(rates) == [7, 2]
    assert all(task.tolist() == [7, 2] for task in asked)
    assert len(asked) == 200


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    Rows(tmp_path / "a.json", "f", {"x": 1}, program="p", key=("x",)).keep({"x": 1, "y": 2})
    rows = Rows(tmp_path / "a.json", "f", {"x": 1}, program="p", key=("x",))
    assert {"x": 1} in rows
    assert {"x": 2} not in rows
    with pytest.raises(SystemExit, match=r"a\.json has other settings, {'x': 1}; name another file"):
        Rows(tmp_path / "a.json", "f", {"x": 2}, program="p", key=("x",))


def test_rows_of_several_processes_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [Rows(tmp_path / "a.json", "f", {}, program="p", key=("x", "y")) for _ in range(4)]

    def measure(x: int) -> None:
        several[x].stored["runs"][str(x)] = {"old": x}
        for y in range(5):
            several[x].keep({"x": x, "y": y})

    with ThreadPoolExecutor() as pool:
        list(pool.map(measure, range(4)))
    stored = json.loads((tmp_path / "a.json").read_text())
    assert sorted((row["x"], row["y"]) for row in stored["rows"]) == list(itertools.product(range(4), range(5)))
    assert stored["runs"] == {str(x): {"old": x} for x in range(4)}
    capsys.readouterr()
    several[0].keep({"x": 3, "y": 4, "another": "result"})
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "a.json").read_text()) == stored


@pytest.mark.parametrize("way", ["head", *transfer.WAYS["d2r"]])
def test_what_learns_of_a_new_task(way: str) -> None:
    learner = imitating.Learner("mh-sac" if way == "head" else "d2r", "MT10")
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    shown = {3: (torch.randn(2, 10, 39), torch.rand(2, 10, 4))}
    adapted = transfer.adapt(learner, way, 3, shown, {"updates": 4, "rate": 1e-2, "batch": 8}, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    after = adapted.state_dict()
    if way == "head":
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == {"net.heads.nodes.3.weight", "net.heads.nodes.3.bias"}
        return
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


def test_a_row_of_conflict_for_each_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    rows = run_twice(lambda: conflict.measure(2, [0.0, 1.0], [3], output), output, capsys)
    columns = [(row["seed"], row["conflict"], row["network"]) for row in rows]
    assert columns == list(itertools.product([3], [0.0, 1.0], conflict.NETWORKS))
    assert all(row["error"] > 0 for row in rows)
    # A file that a stop left incomplete gets the rows that are missing, and they are the same.
    stored = json.loads(output.read_text())
    output.write_text(json.dumps({**stored, "rows": rows[:5]}))
    conflict.measure(2, [0.0, 1.0], [3], output)
    assert json.loads(output.read_text())["rows"] == rows
