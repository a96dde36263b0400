"""Looking at runs: the routes of a policy, and the files of an analysis."""

import csv
import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from small_runs import SMALL

from dynroute import Route, Topology, inspect
from dynroute_metaworld import Configuration, EvaluationResult, Run, iqm, load_model, train
from dynroute_metaworld.cli import main
from dynroute_metaworld.report import analysis as analyses
from dynroute_metaworld.report import export, figures
from dynroute_metaworld.report.analysis import inspect_runs
from dynroute_metaworld.report.canvas import legend, mark, metric_panels, scale, scatter, style
from dynroute_metaworld.report.comparison import Group, GroupRoutes, group_runs, setting_rows
from dynroute_metaworld.report.curves import draw_curves
from dynroute_metaworld.report.data import Curve, Metrics, RunData, read_run, read_runs
from dynroute_metaworld.report.export import OF_A_RUN, OF_ALL, analyze
from dynroute_metaworld.report.figures import write_groups
from dynroute_metaworld.report.routes import EMBEDDED, THRESHOLD, Routes, collect_routes, embed
from dynroute_metaworld.runs.intervals import bootstrap_interval


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the pictures of figures empty; they take most of the time of an analysis."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures of the last call, by the names of their files, None for those left out; they are not painted."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(figures, "save", lambda folder, made: found.update(made))
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Routes


def test_episodes_are_those_of_the_evaluation(runs: dict[str, Path], routes: Routes) -> None:
    final = EvaluationResult.load(runs["d2r-1"] / "evaluations" / "final.json")
    assert (routes.first_success == final.first_success).all()
    assert final.modules_used is not None
    run = Run.open(runs["d2r-1"])
    whole = collect_routes(run, load_model(run, "cpu"), episodes=3, samples=1000, moments=2)
    assert whole.route is not None
    assert len(whole.task) == 3 * 20 * 2
    assert whole.summary().num_used.numpy() == pytest.approx(final.modules_used.mean(axis=1))


def test_what_is_kept_of_routes(routes: Routes, tmp_path: Path) -> None:
    assert routes.route is not None
    assert routes.topology is not None
    assert len(routes.task) == len(routes.step) == len(routes.route.path) == 3 * 10 * 2
    assert sorted(set(routes.step.tolist()))[:: len(set(routes.step.tolist())) - 1] == [1, 20]
    assert [(moment.task, moment.step) for moment in routes.moments] == [(i, s) for i in (0, 1) for s in (1, 7, 14, 20)]
    first = routes.moments[4].route
    assert first is not None
    (place,) = torch.nonzero((routes.task == 1) & (routes.step == 1)).flatten()[:1]
    assert torch.equal(first.path, routes.route.path[place])

    routes.save(tmp_path / "routes.npz")
    with np.load(tmp_path / "routes.npz", allow_pickle=False) as stored:
        data = dict(stored)
    used = routes.topology.used(routes.route.path)
    assert (data["modules_used"] == used.sum(dim=-1).numpy()).all()
    edges = inspect.by_task(inspect.live_path(routes.topology, routes.route.path), routes.task)
    assert data["similarity"] == pytest.approx(inspect.similarity(edges).numpy())
    assert (data["sources"] == (routes.route.weights > THRESHOLD).sum(-1).numpy()).all()
    assert data["summary_num_used"] == pytest.approx(inspect.by_task(used.sum(-1), routes.task).numpy())
    assert data["parents"].tolist() == ["", "0", "0,1", "0,1,2", "0,1,2,3"]
    assert data["tasks"].tolist() == ["drawer-close", "reach"]


def test_tasks_act_some_at_a_time(runs: dict[str, Path], routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynroute_metaworld.report.routes.TOGETHER", 1)
    run, told = Run.open(runs["d2r-1"]), []
    model = load_model(run, "cpu")
    other = collect_routes(run, model, episodes=3, samples=30, moments=4, progress=lambda *done: told.append(done))
    assert told[-1] == (120, 120)
    assert (other.first_success == routes.first_success).all()
    assert [(moment.task, moment.step) for moment in other.moments] == [(m.task, m.step) for m in routes.moments]
    assert other.route is not None
    assert routes.route is not None
    for task in (0, 1):
        assert torch.equal(other.route.path[other.task == task], routes.route.path[routes.task == task])
        assert torch.equal(other.step[other.task == task], routes.step[routes.task == task])


def test_weights_tell_routes_apart_where_all_sources_are_read(routes: Routes) -> None:
    assert routes.topology is not None
    assert routes.route is not None
    assert set(routes.features().unique().tolist()) <= {0.0, 1.0}
    soft = routes.route._replace(path=routes.topology.allowed.expand_as(routes.route.path))
    dense = Routes(**{**vars(routes), "route": soft})
    assert torch.equal(dense.features(), routes.topology.to_edges(routes.route.weights))


def test_places_of_routes(routes: Routes) -> None:
    generator = torch.Generator().manual_seed(0)
    assert routes.topology is not None
    assert routes.route is not None
    choices = torch.randint(0, 2, routes.route.path.shape, generator=generator).bool() & routes.topology.allowed
    choices[..., 0] = True
    mixed = Routes(**{**vars(routes), "route": routes.route._replace(path=choices)})
    points, missing = embed(mixed)
    assert missing is None
    assert points is not None
    assert np.isfinite(points).all()
    assert points[:, 3].sum() == len(routes.task)
    again, _ = embed(mixed)
    assert again is not None
    assert (points == again).all()
    pairs = {(int(task), tuple(row.tolist())) for task, row in zip(mixed.task, mixed.features(), strict=True)}
    assert len(points) == len(pairs)  # equal routes of a task have one place
    same = Routes(**{**vars(routes), "route": routes.route._replace(path=choices[:1].expand_as(choices))})
    assert embed(same) == (None, "There is no t-SNE: fewer than three different routes were taken.")


@pytest.mark.parametrize("tasks", [12, 50])
def test_routes_of_every_task_are_placed(tasks: int) -> None:
    # As they are collected: ten tasks at a time, one step of each after the other.
    groups = [range(start, min(start + 10, tasks)) for start in range(0, tasks, 10)]
    task = torch.tensor([task for group in groups for _ in range(100) for task in group])
    topology = Topology([[], [0], [0, 1], [0, 1, 2]])
    path = topology.allowed & (torch.arange(3) <= torch.arange(len(task))[:, None, None] % 3)
    route = Route(path.double(), path, path.double())
    nothing = np.zeros((tasks, 1), np.int64)
    mixed = Routes(tuple(map(str, range(tasks))), topology, route, task, torch.ones_like(task), nothing, ())
    points, _ = embed(mixed)
    assert points is not None
    assert points[:, 3].sum() <= EMBEDDED
    counts = np.bincount(points[:, 0].astype(int), points[:, 3], minlength=tasks)
    assert counts.min() >= counts.max() - 1 > 0


def test_what_cannot_be_asked_of_routes(runs: dict[str, Path]) -> None:
    run = Run.open(runs["mt-sac"])
    plain = collect_routes(run, load_model(run, "cpu"), episodes=1)
    assert plain.route is None
    assert plain.first_success.shape == (2, 1)
    with pytest.raises(ValueError, match="this network has no learned routes"):
        plain.summary()
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        collect_routes(run, load_model(run, "cpu"), episodes=0)
    with pytest.raises(ValueError, match="`folders` must name at least one run, got none"):
        inspect_runs([])
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        inspect_runs([runs["mt-sac"]], episodes=0)


def with_routes(routes: Routes, paths: torch.Tensor) -> Routes:
    """The same with other paths, whose weights are spread evenly."""
    assert routes.route is not None
    weights = paths.float() / paths.sum(dim=-1, keepdim=True).clamp(min=1)
    return Routes(**{**vars(routes), "route": routes.route._replace(path=paths, weights=weights)})


def test_what_seeds_agree_on(runs: dict[str, Path], routes: Routes) -> None:
    assert routes.route is not None
    assert routes.topology is not None
    allowed = routes.topology.allowed
    (group,), _ = group_runs(read_runs([runs["d2r-1"], runs["d2r-2"]]))
    everything = with_routes(routes, allowed.expand_as(routes.route.path))
    first = allowed & (allowed.cumsum(dim=-1) == 1)  # each node reads its first source alone
    apart = torch.where((routes.task == 0)[:, None, None], first, allowed)  # the tasks differ
    sharing = GroupRoutes.of(group, {"d2r-1": everything, "d2r-2": with_routes(routes, apart), "other": routes})
    assert sharing is not None
    assert list(sharing.routes) == ["d2r-1", "d2r-2"]
    assert sharing.similarity.shape == (2, 2, 2)
    alike, unlike = sharing.similarity[:, 0, 1]
    assert alike == pytest.approx(1)
    assert 0 < unlike < 1
    rows = sharing.similarity_rows()
    assert [(row["task"], row["other"]) for row in rows] == [
        ("", ""),
        ("drawer-close", ""),
        ("reach", ""),
        ("drawer-close", "reach"),
    ]
    for row in rows:  # of two seeds and one pair of tasks, in the middle of both
        assert row["iqm"] == pytest.approx((alike + unlike) / 2)
        assert unlike - 1e-9 <= row["low"] < row["high"] <= alike + 1e-9
    counts = [len(routes.topology.parents[node]) for node in routes.topology.destinations]
    share = float((routes.task == 0).double().mean())
    assert sharing.sources == pytest.approx(np.array([counts, [share + (1 - share) * count for count in counts]]))
    assert [(row["node"], row["may_read"]) for row in sharing.sparsity_rows()] == [
        (node, count) for node, count in zip(routes.topology.destinations, counts, strict=True)
    ]
    nothing = share * (1 - len(counts) / sum(counts))
    assert sharing.unread == pytest.approx(np.array([[0], [nothing]]))
    row = sharing.row()
    assert row["seeds_with_routes"] == 2
    assert row["edges_unread"] == pytest.approx(nothing / 2)
    assert row["similarity"] == pytest.approx((alike + unlike) / 2)
    assert row["similarity_interval"] == [rows[0]["low"], rows[0]["high"]]

    alone = GroupRoutes.of(group, {"d2r-2": everything})
    assert alone is not None
    assert alone.row()["similarity_interval"] is None
    assert alone.similarity_rows()[0] == {"task": "", "other": "", "iqm": pytest.approx(1), "low": None, "high": None}
    assert GroupRoutes.of(group, {"other": routes}) is None


def test_seeds_that_grew_to_other_sizes(runs: dict[str, Path], routes: Routes, tmp_path: Path, unpainted: None) -> None:
    assert routes.route is not None
    assert routes.topology is not None
    larger = Topology.dag(routes.topology.num_nodes + 1)
    paths = (larger.allowed & (larger.allowed.cumsum(dim=-1) == 1)).expand(len(routes.task), -1, -1)
    logits = torch.zeros(paths.shape).masked_fill(~larger.allowed, -torch.inf)
    grown = Routes(**{**vars(routes), "topology": larger, "route": Route(logits, paths, paths.float())})
    (group,), _ = group_runs(read_runs([runs["d2r-1"], runs["d2r-2"]]))
    sharing = GroupRoutes.of(group, {"d2r-1": routes, "d2r-2": grown})
    assert sharing is not None
    assert sharing.similarity.shape == (2, 2, 2)
    assert sharing.unread[1, 0] == pytest.approx(1 - len(larger.destinations) / larger.num_edges)
    assert sharing.sparsity_rows() == []
    assert "similarity_by_method.png" in {path.name for path in write_groups(tmp_path, [group], [sharing], {})}


def test_pairs_of_tasks_are_not_taken_for_independent() -> None:
    seeds = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    similar = seeds[:, None] + np.random.default_rng(0).normal(0, 0.01, (5, 45))
    low, high = bootstrap_interval(similar, whole_runs=True)
    alone = bootstrap_interval(seeds[:, None], whole_runs=True)
    assert (low, high) == pytest.approx(alone, abs=0.03)
    assert high - low > 3 * np.subtract(*bootstrap_interval(similar)[::-1])
    exact = [iqm(similar[list(drawn)]) for drawn in itertools.product(range(5), repeat=5)]  # all resamples
    assert (low, high) == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.05)
    for wrong, told in (
        ([[0.5, 0.5]], "must have at least two runs, got 1"),
        ([[], []], r"must have shape \[runs, tasks\], got shape \(2, 0\)"),
        ([0.5, 0.5], r"must have shape \[runs, tasks\], got shape \(2,\)"),
        ([[0.5], [np.nan]], "must be finite, got NaN or infinity in run 1"),
    ):
        with pytest.raises(ValueError, match=f"`scores` {told}"):
            bootstrap_interval(wrong, whole_runs=True)


def test_what_seeds_share_is_drawn(
    runs: dict[str, Path], routes: Routes, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    (group,), _ = group_runs(read_runs([runs["d2r-1"], runs["d2r-2"]]))
    sharing = GroupRoutes.of(group, {"d2r-1": routes, "d2r-2": routes})
    assert sharing is not None
    points = np.array([[0.0, 1.0, 2.0, 5.0], [1.0, 0.0, 1.0, 3.0]])
    write_groups(tmp_path, [group], [sharing], {"d2r-2": points})  # the other seed has no places
    names = {name for name, figure in drawn.items() if figure is not None}
    write_groups(tmp_path, [group], [], {})
    names -= {name for name, figure in drawn.items() if figure is not None}
    assert names == {"similarity_by_method", "sparsity_by_method", "paths_by_method"}

    write_groups(tmp_path, [group], [sharing, sharing], {"d2r-1": points, "d2r-2": points})
    whole = sharing.row()["similarity"]
    titles = [axis.get_title(loc="left") for axis in drawn["similarity_by_method"].axes]
    assert [title for title in titles if title] == 2 * [f"d2r, 2 seeds\nIQM {whole:.2f} [{whole:.2f}, {whole:.2f}]"]
    (axis,) = drawn["sparsity_by_method"].axes
    read = [row["iqm"] for row in sharing.sparsity_rows()]
    assert axis.containers[0].lines[0].get_ydata().tolist() == read
    titles = [axis.get_title(loc="left") for axis in drawn["paths_by_method"].axes]
    assert titles == 2 * ["d2r, seed 1", "d2r, seed 2"]
    above = drawn["similarity_by_method"].get_suptitle()
    assert above == "similarity of routes (weighted Jaccard)\nmean over seeds, IQM over pairs of tasks and seeds"

    figures.write_run(tmp_path, group.runs[0], routes, points)
    assert drawn["similarity"].get_suptitle() == "similarity of routes (weighted Jaccard)\nIQM over pairs of tasks"
    for name in ("similarity", "paths"):
        drawn[name].draw_without_rendering()
        (title,) = (text for text in drawn[name].texts if text.get_text() == drawn[name].get_suptitle())
        place = title.get_window_extent()
        assert place.x0 >= 0
        assert place.x1 <= drawn[name].bbox.x1
        assert not any(place.overlaps(box.get_window_extent()) for box in drawn[name].legends)


def test_a_method_has_one_colour(runs: dict[str, Path], routes: Routes, tmp_path: Path, drawn: dict[str, Any]) -> None:
    groups, _ = group_runs(read_runs([runs["mt-sac"], runs["d2r-1"], runs["d2r-2"]]))
    sharing = GroupRoutes.of(groups[1], {"d2r-1": routes})
    assert sharing is not None
    write_groups(tmp_path, groups, [sharing], {})
    (line, *_) = drawn["sparsity_by_method"].axes[0].containers[0].lines
    curve = next(one for one in drawn["curves"].axes[0].lines if one.get_label() == "d2r")
    assert (line.get_color(), line.get_linestyle()) == (curve.get_color(), curve.get_linestyle())
    assert line.get_marker() == mark(1)["marker"]
    (bars,) = drawn["modules_by_method"].axes[0].containers[:1]
    assert {to_hex(bar.get_facecolor()) for bar in bars} == {to_hex(line.get_color())}
    assert len({(look["color"], look["marker"]) for look in map(mark, range(100))}) == 100
    assert len({look["marker"] for look in map(mark, range(10))}) == 10  # no colour is needed to tell them apart


def test_larger_points_lie_below() -> None:
    axis = Figure().subplots()
    points = np.array([[0.0, 0, 0, 1], [0.0, 0, 0, 9], [1.0, 0, 0, 5], [1.0, 0, 0, 5]])
    scatter(axis, ["a", "b"], points, ["a", "b"], size=100.0)
    first, second = axis.collections
    assert first.get_sizes().tolist() == [102, 22]
    assert second.get_sizes().tolist() == [62, 62]
    assert first.get_zorder() < second.get_zorder()
    assert [one.get_label() for one in axis.collections] == ["a", "b"]


def test_the_sources_of_a_run_are_drawn(
    runs: dict[str, Path], routes: Routes, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    assert routes.route is not None
    assert routes.topology is not None
    allowed = routes.topology.allowed
    first = allowed & (allowed.cumsum(dim=-1) == 1)
    apart = with_routes(routes, torch.where((routes.task == 0)[:, None, None], first, allowed))
    figures.write_run(tmp_path, read_run(runs["d2r-1"]), apart, None)
    left, right = drawn["sparsity"].axes
    (points,) = left.containers
    assert points.lines[0].get_ydata() == pytest.approx([1, 1.5, 2, 2.5])  # one source in half of the samples, else all
    assert points.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["sources it may read", "mean and deviation"]
    assert right.get_title(loc="left") == "share of edges; 30% weigh at most 0.01"


TASKS = ("reach", "push", "door-open")


def learned_so(
    folder: Path, success: dict[str, list[float]], used: list[float], seed: int = 1, **changed: Any
) -> RunData:
    """A run whose tasks succeed so often after 10, 20, ... steps, and use so many modules in its evaluation."""
    options = {**SMALL, "benchmark": ",".join(TASKS), "horizon": 10, "window": 2, "seed": seed, **changed}
    run = Run.create(folder, Configuration(**options).resolve())
    curves = {f"success/{task}": Curve(10.0 * np.arange(1, 1 + len(of)), np.array(of)) for task, of in success.items()}
    result = EvaluationResult(
        benchmark=",".join(TASKS),
        tasks=TASKS,
        goals="fixed",
        horizon=10,
        seed=seed,
        reward_version="v2",
        criterion="any",
        versions={},
        first_success=np.array([[3, 3], [3, -1], [-1, -1]]),
        success_last=np.zeros((3, 2), dtype=np.bool_),
        returns=np.zeros((3, 2)),
        lengths=np.full((3, 2), 10),
        goal_positions=np.zeros((3, 2, 3), dtype=np.float32),
        modules_used=np.repeat(np.array(used)[:, None], 2, axis=1),
    )
    return RunData(run, folder.name, Metrics(curves), result, (), (), True)


def test_when_tasks_were_learned_and_how_many_modules_they_use(tmp_path: Path) -> None:
    # Two episodes of 10 steps are newest from 20 steps on: what succeeds at 10 is one episode.
    success = {"reach": [1.0, 0.0, 0.5, 0.0], "push": [0.0, 0.4, 0.0, 0.9], "door-open": [0.0]}
    first = learned_so(tmp_path / "a", success, [2.0, 4.0, 3.0])
    second = learned_so(tmp_path / "b", {task: of for task, of in success.items() if task != "push"}, [2.0, 4.0, 3.0])
    again = learned_so(tmp_path / "c", success, [4.0, 3.0, 2.0])  # with the seed of the first
    group = Group("d2r", (first, second, again))
    assert group.learned_rows() == [
        {"run": "a", "seed": 1, "task": "reach", "learned": 30.0, "success": 1.0, "modules_used": 2.0},
        {"run": "a", "seed": 1, "task": "push", "learned": 40.0, "success": 0.5, "modules_used": 4.0},
        {"run": "a", "seed": 1, "task": "door-open", "learned": None, "success": 0.0, "modules_used": 3.0},
        {"run": "b", "seed": 1, "task": "reach", "learned": 30.0, "success": 1.0, "modules_used": 2.0},
        {"run": "b", "seed": 1, "task": "door-open", "learned": None, "success": 0.0, "modules_used": 3.0},
        {"run": "c", "seed": 1, "task": "reach", "learned": 30.0, "success": 1.0, "modules_used": 4.0},
        {"run": "c", "seed": 1, "task": "push", "learned": 40.0, "success": 0.5, "modules_used": 3.0},
        {"run": "c", "seed": 1, "task": "door-open", "learned": None, "success": 0.0, "modules_used": 2.0},
    ]
    # Ranks 1, 2, 3 against 1, 3, 2 and 3, 2, 1; a run with two tasks has none.
    assert group.late_correlations() == pytest.approx([0.5, -1])
    assert group.row()["late_correlations"] == pytest.approx([0.5, -1])


def test_runs_of_which_nothing_is_known_to_be_late(tmp_path: Path) -> None:
    never = learned_so(tmp_path / "never", {key: [0.0, 0.0] for key in TASKS}, [2.0, 3.0, 4.0])
    alike = learned_so(tmp_path / "alike", {task: [0.0, i / 2] for i, task in enumerate(TASKS)}, [3.0, 3.0, 3.0])
    assert Group("d2r", (never, alike)).late_correlations() == []
    assert len(Group("d2r", (never, alike)).learned_rows()) == 6
    assert never.result is not None
    plain = dataclasses.replace(never, result=dataclasses.replace(never.result, modules_used=None))
    for lacking in (plain, dataclasses.replace(never, result=None), dataclasses.replace(never, metrics=Metrics())):
        assert Group("d2r", (lacking,)).learned_rows() == []


def test_the_modules_of_a_run_are_drawn(tmp_path: Path, drawn: dict[str, Any]) -> None:
    run = learned_so(tmp_path / "run", {"reach": [1.0]}, [2.0, 4.0, 3.0])
    assert run.result is not None
    assert run.result.modules_used is not None
    run.result.modules_used[1] += [-1, 1]  # the two episodes of the second task
    figures.write_run(tmp_path, run, None, None)
    (axis,) = drawn["modules"].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["door-open", "push", "reach"]
    assert [bar.get_height() for bar in axis.patches] == [3, 4, 2]
    assert [text.get_text() for text in axis.texts] == ["0.00", "0.50", "1.00"]
    assert ends_of_bars(axis) == [[3, 3], [3, 5], [2, 2]]
    assert axis.get_title(loc="left").endswith("(evaluation)\nwith deviations over episodes")


def test_modules_deviate_over_the_samples_of_routes(
    runs: dict[str, Path], routes: Routes, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    assert routes.topology is not None
    assert routes.route is not None
    shallow = routes.topology.allowed.cumsum(dim=-1) == 1  # every node reads the first: two nodes are used
    chain = torch.eye(len(shallow), dtype=torch.bool)  # every node reads the one before: all are
    is_deep = torch.arange(len(routes.task)) % 3 == 0
    path = torch.where(is_deep[:, None, None], chain, shallow & routes.topology.allowed)
    mixed = Routes(**{**vars(routes), "route": routes.route._replace(path=path)})
    run = read_run(runs["d2r-1"])
    assert run.result is not None
    assert run.result.modules_used is not None
    figures.write_run(tmp_path, run, mixed, None)
    (axis,) = drawn["modules"].axes
    used = np.where(is_deep, routes.topology.num_nodes, 2)
    for label, ends in zip(axis.get_xticklabels(), ends_of_bars(axis), strict=True):
        task = run.tasks.index(label.get_text())
        mean, deviation = run.result.modules_used[task].mean(), used[routes.task == task].std()
        assert deviation > 0
        assert ends == pytest.approx([mean - deviation, mean + deviation])
    assert axis.get_title(loc="left").endswith(f"with deviations over {len(used) // 2} samples of a task")


def ends_of_bars(axis: Any) -> list[list[float]]:
    """The ends of the error bars of an axis."""
    (lines,) = axis.containers[-1].lines[2]
    return [segment[:, 1].tolist() for segment in lines.get_segments()]


def test_tasks_of_methods_are_drawn(tmp_path: Path, drawn: dict[str, Any]) -> None:
    first, second, other = (learned_so(tmp_path / name, {}, [2.0, 4.0, 3.0], seed=i) for i, name in enumerate("abc"))
    assert second.result is not None
    easier = dataclasses.replace(second.result, first_success=np.array([[3, 3], [3, 3], [-1, -1]]))
    worse = dataclasses.replace(
        second.result, first_success=np.full((3, 2), -1), returns=np.array([[1.0, 1.0], [2.0, 2.0], [30.0, 30.0]])
    )
    second, other = dataclasses.replace(second, result=easier), dataclasses.replace(other, result=worse)
    write_groups(tmp_path, [Group("d2r", (first, second)), Group("sm", (other,))], [], {})
    (axis,) = drawn["success"].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["door-open", "push", "reach"]
    bars = [part for part in axis.containers if isinstance(part, BarContainer)]
    heights = {part.get_label(): [bar.get_height() for bar in part] for part in bars}
    assert heights == {"d2r, 2 seeds": [1, 0.75, 0], "sm, 1 seed, no interval": [0, 0, 0]}
    places = [bar.get_x() + bar.get_width() / 2 for bar in bars[0]]
    assert places == pytest.approx([1.8, 0.8, -0.2])
    assert [text.get_text() for text in axis.texts] == ["0"] * 4
    assert axis.get_ylabel() == "success"
    told = "success in each task, the hardest first; 95 % intervals, too narrow for few seeds"
    assert axis.get_title(loc="left") == told
    (axis,) = drawn["modules_by_method"].axes
    assert [bar.get_height() for bar in axis.containers[0].patches] == [2, 4, 3]

    write_groups(tmp_path, [Group("sm", (other,))], [], {})
    (axis,) = drawn["success"].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["reach", "push", "door-open"]  # by their returns
    assert axis.get_title(loc="left") == "success in each task, the hardest first"


def succeeded(run: RunData, *rates: float) -> RunData:
    """The same run with these success rates of its tasks: 0, 0.5 or 1."""
    assert run.result is not None
    first = np.array([[3 if rate > 0 else -1, 3 if rate == 1 else -1] for rate in rates])
    return dataclasses.replace(run, result=dataclasses.replace(run.result, first_success=first))


def of_settings(folder: Path, *settings: dict[str, Any]) -> list[RunData]:
    """A run with each of these options; all succeed in one task always, in one half of the time and in one never."""
    return [learned_so(folder / f"{i}", {}, [2.0, 4.0, 3.0], **chosen) for i, chosen in enumerate(settings)]


def test_success_is_drawn_against_the_one_number_that_differs(tmp_path: Path, drawn: dict[str, Any]) -> None:
    numbers = [{"num_modules": 32}, {"num_modules": 32, "seed": 2}, {"num_modules": 2}, {"num_modules": 8}]
    large, again, small, middle = of_settings(tmp_path, *numbers)
    early = dataclasses.replace(succeeded(small, 0, 0, 0), is_finished=False)
    early = dataclasses.replace(early, name="early")  # it is left out, since another of its group is finished
    new = dataclasses.replace(learned_so(tmp_path / "new", {}, [2.0, 4.0, 3.0], num_modules=5), result=None)
    groups, notes = group_runs([large, succeeded(again, 1, 1, 1), small, early, succeeded(middle, 0, 0, 0), new])
    assert "d2r (num_modules=2): not finished and left out of its success: early." in notes
    assert "d2r (num_modules=5): not evaluated yet and left out of its success: new." in notes
    low, high = groups[0].row()["mean_interval"]
    assert low < 0.75 < high
    alone = {"setting": "num_modules", "seeds": 1, "low": None, "high": None}
    two = {"setting": "num_modules", "seeds": 2, "low": low, "high": high}
    assert setting_rows(groups) == [
        {**alone, "method": "d2r (num_modules=2)", "value": 2, "success": 0.5},
        {**alone, "method": "d2r (num_modules=8)", "value": 8, "success": 0},
        {**two, "method": "d2r (num_modules=32)", "value": 32, "success": 0.75},
    ]
    write_groups(tmp_path, groups, [], {})
    (axis,) = drawn["settings"].axes
    (line,) = axis.lines
    assert line.get_xydata().tolist() == [[2, 0.5], [8, 0], [32, 0.75]]
    assert (line.get_marker(), axis.get_xlabel(), axis.get_ylabel()) == ("o", "num_modules", "success")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2\n1 seed", "8\n1 seed", "32\n2 seeds"]
    assert axis.get_xscale() == "log"
    (interval,) = axis.collections[1].get_segments()
    assert interval.tolist() == [[32, low], [32, high]]
    told = "success: mean over tasks and seeds; 95 % intervals, too narrow for few seeds"
    assert drawn["settings"].get_suptitle() == told
    write_groups(tmp_path, [group for group in groups if group.runs[0] is not small], [], {})
    assert drawn["settings"].axes[0].get_xscale() == "linear"  # from 8 to 32


def test_success_is_drawn_by_names_where_no_number_differs(tmp_path: Path, drawn: dict[str, Any]) -> None:
    first, again, soft = of_settings(tmp_path, {}, {"seed": 2}, {"gate": "soft"})
    never = succeeded(learned_so(tmp_path / "never", {}, [2.0, 4.0, 3.0], protect="none", state_free=True), 0, 0, 0)
    new = dataclasses.replace(learned_so(tmp_path / "new", {}, [2.0, 4.0, 3.0], gamma=0.5), result=None)
    groups, _ = group_runs([new, first, succeeded(again, 1, 1, 1), soft, never])
    write_groups(tmp_path, groups, [], {})
    (axis,) = drawn["settings"].axes
    bars = next(part for part in axis.containers if isinstance(part, BarContainer))
    assert [bar.get_width() for bar in bars] == [0.75, 0.5, 0]
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [to_hex(f"C{number}") for number in (1, 2, 3)]
    labels = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
    counted = ("2 seeds", "1 seed, no interval", "1 seed, no interval")
    assert labels == [f"{group.name}, {told}" for group, told in zip(groups[1:], counted, strict=True)]
    assert [text.get_text() for text in axis.texts] == ["0.5", "0"]  # bars of zero, and those without an interval
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first is above the others
    drawn["settings"].draw_without_rendering()
    assert min(label.get_window_extent().x0 for label in axis.get_yticklabels()) >= 0
    write_groups(tmp_path, groups[2:], [], {})
    assert drawn["settings"].get_suptitle() == "success: mean over tasks"
    for few in (groups[:1], groups[:2], groups[2:3]):  # those that were evaluated are one at most
        write_groups(tmp_path, few, [], {})
        assert drawn["settings"] is None
        assert setting_rows(few) == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ([{"width": 8}, {"width": 4}], ("width", [4, 8])),
        ([{"learning_rate": 1e-3}, {"learning_rate": 0.0}], ("learning_rate", [0, 1e-3])),
        ([{"route_temperature": "1.0"}, {"route_temperature": "0.5"}], ("route_temperature", [0.5, 1])),
        ([{"network": {"trunk_sizes": [8], "output_init": x}} for x in (0.5, 0.25)], ("output_init", [0.25, 0.5])),
        ([{"critic_network": {"width": x}} for x in (16, 8)], ("critic_width", [8, 16])),
        ([{"width": 8, "hours": 1.0}, {"width": 4, "hours": 2.0}], ("width", [4, 8])),  # they are limits of time
        ([{"hours": 2.0}, {"hours": 1.0}], ("hours", [1, 2])),  # of one seed
        ([{"width": 8}, {"width": 4, "gamma": 0.5}], None),
        ([{"width": 8}, {"width": None}], None),
        ([{"state_free": True}, {"state_free": False}], None),
        ([{"route_temperature": "1.0"}, {}], None),
        ([{"warm_start": "1"}, {"warm_start": "2"}], None),
        ([{"benchmark": "reach,push,door-open"}, {"benchmark": "push,reach,door-open"}], None),
        ([{"width": 8}, {"width": 4}, {"width": 4, "warm_start": "gone"}], None),
    ],
)
def test_which_setting_is_an_axis(
    settings: list[dict[str, Any]], found: tuple[str, list[float]] | None, tmp_path: Path
) -> None:
    rows = setting_rows(group_runs(of_settings(tmp_path, *settings))[0])
    assert len(rows) == len(settings)
    drawn = [(found[0], value) for value in found[1]] if found else [(None, None)] * len(settings)
    assert [(row["setting"], row["value"]) for row in rows] == drawn


def test_curves_of_methods_are_means(tmp_path: Path, drawn: dict[str, Any]) -> None:
    halves = {"reach": [0.0, 1.0], "push": [0.5, 1.0], "door-open": [0.0, 0.0]}
    first = learned_so(tmp_path / "first", halves, [2.0, 4.0, 3.0])
    second = learned_so(tmp_path / "second", {**halves, "reach": [1.0, 1.0]}, [2.0, 4.0, 3.0], seed=2)
    short = learned_so(tmp_path / "short", {task: of[:1] for task, of in halves.items()}, [2.0, 4.0, 3.0], seed=3)
    write_groups(tmp_path, [Group("d2r", (first, second)), Group("sm", (short,))], [], {})
    (axis,) = drawn["curves"].axes
    assert axis.get_title(loc="left") == "success of the newest episodes, sampled actions: mean over tasks and seeds"
    line, point = axis.lines
    assert line.get_ydata() == pytest.approx([2 / 6, 4 / 6])  # an IQM would leave out the task that is never solved
    assert line.get_xdata().tolist() == [10, 20]
    band, *_ = axis.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((1 / 6, 4 / 6))
    assert (line.get_marker(), point.get_marker()) == ("", mark(1)["marker"])  # one point is no line
    write_groups(tmp_path, [Group("sm", (short,))], [], {})
    assert drawn["curves"].axes[0].get_title(loc="left").endswith(": mean over tasks")


def test_modules_are_drawn_against_when_tasks_were_learned(tmp_path: Path, drawn: dict[str, Any]) -> None:
    def draw(*runs: RunData) -> Any:
        write_groups(tmp_path, [Group(one.name, (one,)) for one in runs], [], {})
        return None if drawn["learned"] is None else drawn["learned"].axes[0]

    success = {"reach": [0.0, 0.0, 0.5], "push": [0.0, 0.9], "door-open": [0.0]}
    some = learned_so(tmp_path / "some", success, [2.0, 4.0, 3.0])
    every = learned_so(tmp_path / "every", {key: [0.0, 1.0] for key in TASKS}, [2.0, 4.0, 3.0])
    never = learned_so(tmp_path / "never", {key: [0.0, 0.0] for key in TASKS}, [2.0, 4.0, 3.0])
    axis = draw(some, every)
    points = [points.get_offsets().tolist() for points in axis.collections]
    assert points == [[[30, 2], [20, 4], [pytest.approx(33), 3]], [[20, 2], [20, 4], [20, 3]]]
    assert axis.get_xticks().tolist()[0] == 0
    assert axis.get_xticks().tolist()[-1] == 30  # no step after the end
    assert [points.get_label() for points in axis.collections] == ["some; rank correlation -0.50", "every"]
    assert [text.get_text() for text in axis.texts] == ["never"]
    axis = draw(some, never)
    assert (len(axis.texts), len(axis.lines)) == (1, 1)
    axis = draw(every)
    assert (len(axis.texts), len(axis.lines)) == (0, 0)
    axis = draw(never)
    assert axis.collections[0].get_offsets()[:, 0].tolist() == pytest.approx([22, 22, 22])
    assert axis.get_xticks().tolist()[-1] == 20
    assert [text.get_text() for text in axis.texts] == ["never"]
    assert draw(dataclasses.replace(some, metrics=Metrics())) is None


def test_names_of_folders_are_plain_text_in_figures(
    runs: dict[str, Path], routes: Routes, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    names = ["_old", r"$\frac$", "a$b$c", "$d"]

    def check(figure: Figure, texts: list[str]) -> None:
        figure.draw_without_rendering()  # matplotlib raises an error where it reads the name as maths
        assert [text.split(",")[0].split(":")[0].strip().replace(r"\$", "$") for text in texts] == names

    run = learned_so(tmp_path / "run", {task: [0.0, 0.9] for task in TASKS}, [2.0, 4.0, 3.0])
    write_groups(tmp_path, [Group(name, (run,)) for name in names], [], {})
    bars = drawn.pop("settings")
    check(bars, [label.get_text() for label in bars.axes[0].get_yticklabels()])
    legends = {name: figure.legends[0] for name, figure in drawn.items() if figure is not None}
    assert legends.keys() == {"curves", "success", "modules_by_method", "learned"}
    run = read_run(runs["d2r-1"])
    groups = [Group(name, (run,)) for name in names]
    points = np.array([[0.0, 1.0, 2.0, 5.0]])
    write_groups(tmp_path, groups, [GroupRoutes(one, {run.name: routes}) for one in groups], {run.name: points})
    legends["sparsity_by_method"] = drawn["sparsity_by_method"].legends[0]
    for drawing in legends.values():
        check(drawing.figure, [text.get_text() for text in drawing.get_texts()])
    for name in ("similarity_by_method", "paths_by_method"):
        check(drawn[name], [title for axis in drawn[name].axes if (title := axis.get_title(loc="left"))])


def test_noise_does_not_look_like_a_change() -> None:
    axes = Figure().subplots(1, 3)
    for axis, values in zip(axes, ([0.0, 0.0], [0.5, 0.50001], [5.0, 9.0]), strict=True):
        axis.plot([0, 1], values)
    for axis, metric in zip(axes, ("success", "route_temperature", "modules_used"), strict=True):
        scale(axis, metric)
    assert axes[0].get_ylim() == (-0.02, 1.02)
    low, high = axes[1].get_ylim()
    assert low < 0.496 < 0.504 < high
    low, high = axes[2].get_ylim()
    assert 4 < low < 5
    assert 9 < high < 10
    assert style(1)["linestyle"] != style(0)["linestyle"]


def test_the_plasticity_of_critics_over_steps(runs: dict[str, Path], tmp_path: Path, drawn: dict[str, Any]) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    measured = (("dormant", 0.1), ("rank", 5), ("flow_0_0", 0.75))
    logged = [
        {"step": step, **{f"plasticity/{name}": value for name, value in (*measured, (of, 1))}}
        for step in (40, 80)
        for of in ("flow_0_1", "flow_1_0_0")
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in logged))
    run = read_run(folder)
    assert not run.metrics.notes
    figures.write_run(tmp_path, run, None, None)
    axes = drawn["plasticity"].axes
    assert [axis.get_title("left") for axis in axes] == [
        "share of dormant units in the critics",
        "effective rank of the critics' features",
        "mean flow through the nodes of critic 0",
        "mean flow through the nodes of critic 1, routed layer 0",
    ]
    lines = [[(line.get_label(), *line.get_xydata()[-1].tolist()) for line in axis.lines] for axis in axes]
    assert lines[0] == [("_", 40.0, 0.1)]  # steps of each of two tasks
    assert lines[2] == [("node 0", 40.0, 0.75), ("node 1", 40.0, 1.0)]
    (names,) = drawn["plasticity"].legends
    assert [text.get_text() for text in names.get_texts()] == ["node 0", "node 1"]
    analyze([folder], tmp_path / "out", episodes=1, device="cpu", tell=lambda _: None)
    ranks = [row for row in rows(tmp_path / "out" / "curves.csv") if row["metric"] == "plasticity/rank"]
    assert {(row["task"], row["value"]) for row in ranks} == {("", "5")}


def test_networks_without_measured_plasticity_have_no_figure_of_it(
    runs: dict[str, Path], tmp_path: Path, drawn: dict[str, Any]
) -> None:
    run = read_run(runs["d2r-1"])
    figures.write_run(tmp_path, run, None, None)
    assert drawn["plasticity"] is None
    rank = {"plasticity/rank": Curve(np.array([20.0]), np.array([5.0]))}  # that of dense critics
    figures.write_run(tmp_path, dataclasses.replace(run, metrics=Metrics(rank)), None, None)
    assert not drawn["plasticity"].legends


def test_all_lines_are_named_inside_the_figure() -> None:
    for count, width in ((3, 9.0), (12, 9.0), (13, 9.0), (50, 9.0), (50, 5.5)):
        figure, axes = metric_panels(["success", "return"])
        figure.set_figwidth(width)
        for number in range(count):
            axes[number % 2].plot([0, 1], [0, number], label=f"a-task-of-a-long-name-{number}", **style(number))
        drawn = legend(figure, axes)
        figure.draw_without_rendering()
        names = [text.get_text() for text in drawn.get_texts()]
        assert sorted(names) == sorted(f"a-task-of-a-long-name-{i}" for i in range(count))
        assert names[:2] == ["a-task-of-a-long-name-0", "a-task-of-a-long-name-2"]  # those of the first panel first
        place = drawn.get_window_extent()
        assert min(place.x0, place.y0) >= 0
        assert place.x1 <= figure.bbox.x1
        assert place.y1 <= figure.bbox.y1
        assert not any(place.overlaps(axis.get_window_extent()) for axis in axes)
        assert min(axis.get_window_extent().height for axis in axes) > 100
    assert len({str(style(number)) for number in range(50)}) == 50


def test_one_task_is_like_no_other(tmp_path: Path, unpainted: None) -> None:
    run = Run.create(tmp_path / "run", Configuration(**{**SMALL, "benchmark": "reach", "steps": 30}).resolve())
    assert train(run) is not None
    folder = analyze([run.folder], episodes=1, device="cpu", tell=lambda _: None)
    assert not (folder / "similarity_by_method.csv").exists()
    assert not any((folder / f"settings.{kind}").exists() for kind in ("csv", "png"))  # nor any other setting
    assert [row["node"] for row in rows(folder / "sparsity_by_method.csv")] == ["1", "2", "3", "4"]
    (method,) = json.loads((folder / "summary.json").read_text())["methods"]
    assert method["similarity"] is None
    assert 0 <= method["edges_unread"] <= 1


# Files


def test_the_files_of_an_analysis(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", str(runs["d2r-1"]), str(runs["mt-sac"]), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--episodes", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out'}\n"
    assert "The method mt-sac has no learned routes: none are shown." in printed.err
    folder = tmp_path / "out"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {Path(name).name for name in names} <= {*OF_ALL, *OF_A_RUN}  # what another analysis may remove
    assert {"curves.csv", "curves_by_method.csv", "success.csv", "summary.json", "notes.txt", "curves.png"} < names
    assert {"success.png", "modules_by_method.png", "similarity_by_method.png", "sparsity_by_method.png"} < names
    assert {f"d2r-1/{name}" for name in ("routes.npz", "routes.svg", "moments.svg", "similarity.png")} < names
    assert {f"d2r-1/{name}.png" for name in ("learning", "balance", "modules", "sparsity")} < names
    assert {"mt-sac/routes.npz", "mt-sac/learning.png"} < names
    assert not {"mt-sac/routes.svg", "mt-sac/similarity.png", "mt-sac/modules.png"} & names
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    one = read_run(runs["d2r-1"])
    assert {"learned.csv", "learned.png"} < names
    against = rows(folder / "settings.csv")
    assert (folder / "settings.png").exists()
    assert [(row["method"], row["setting"], row["value"]) for row in against] == [("d2r", "", ""), ("mt-sac", "", "")]
    learned = [(row["method"], row["run"], row["seed"], row["task"]) for row in rows(folder / "learned.csv")]
    assert learned == [("d2r", "d2r-1", "1", "drawer-close"), ("d2r", "d2r-1", "1", "reach")]
    used = [float(row["modules_used"]) for row in rows(folder / "learned.csv")]
    assert used == pytest.approx(one.result.modules_used.mean(axis=1))  # type: ignore[union-attr]
    values = [float(row["value"]) for row in rows(folder / "curves.csv") if row["run"] == "d2r-1"]
    assert values[:2] == pytest.approx(one.curves("evaluation")["drawer-close"].values)
    success = {(row["method"], row["task"]): row for row in rows(folder / "success.csv")}
    assert len(success) == 4
    plain = read_run(runs["mt-sac"]).result
    assert plain is not None
    assert float(success["mt-sac", "reach"]["success"]) == pytest.approx(plain.success_rates[1])
    by_method = rows(folder / "curves_by_method.csv")
    assert {row["method"] for row in by_method} == {"d2r", "mt-sac"}
    assert list(by_method[0])[3:] == ["mean", "low", "high", "first_quartile", "median", "third_quartile"]
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["method"] for row in summary["methods"]] == ["d2r", "mt-sac"]
    assert [float(row["success"]) for row in against] == pytest.approx([row["mean"] for row in summary["methods"]])
    shared = [row for row in rows(folder / "similarity_by_method.csv") if row["other"]]
    assert [(row["method"], row["task"], row["other"]) for row in shared] == [("d2r", "drawer-close", "reach")]
    stored = np.load(folder / "d2r-1" / "routes.npz")["similarity"]
    assert float(shared[0]["iqm"]) == pytest.approx(float(stored[0, 1]))
    assert (shared[0]["low"], shared[0]["high"]) == ("", "")  # one seed has no interval
    assert "similarity" in summary["methods"][0]
    assert "similarity" not in summary["methods"][1]  # it has no routes
    for picture in ("routes.svg", "moments.svg"):
        ElementTree.parse(folder / "d2r-1" / picture)


def test_sums_are_written_without_their_rounding_errors(tmp_path: Path) -> None:
    export._csv(tmp_path / "some.csv", ["a", "b", "c"], [[5.480000000000004, np.float64(1 / 3), None], ["x", 7, 1e-9]])
    assert (tmp_path / "some.csv").read_text().splitlines() == ["a,b,c", "5.48,0.333333333333,", "x,7,1e-09"]


def test_an_analysis_without_what_draws(
    runs: dict[str, Path], tmp_path: Path, blind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    without_figures(monkeypatch)
    for name in ("matplotlib.figure", "sklearn.manifold"):
        monkeypatch.setitem(sys.modules, name, None)
    said: list[str] = []
    assert analyze([folder], episodes=1, device="cpu", tell=said.append) == folder / "analysis"
    told = (folder / "analysis" / "notes.txt").read_text()
    assert "There are no frames: frames need OpenGL that works without a display, but neither MUJOCO_GL=egl nor" in told
    assert "The only figures are those of routes; the data is complete" in told
    assert told.splitlines() == said[-len(told.splitlines()) :]
    assert not list((folder / "analysis").glob("*.png"))
    assert (folder / "analysis" / "routes.npz").exists()
    assert "<image" not in (folder / "analysis" / "moments.svg").read_text()
    assert draw_curves(Run.open(folder)) is None


def test_a_checkpoint_of_which_nothing_can_be_made(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    (next((folder / "checkpoints").iterdir()) / "model.safetensors").write_bytes(b"")
    analysis = inspect_runs([folder], tell=lambda _: None, frames=False)
    assert analysis.routes == {}
    assert any(note.startswith("There are neither routes nor frames: ") for note in analysis.notes)


def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynroute_metaworld.report.figures", None)
    monkeypatch.delattr("dynroute_metaworld.report.figures", raising=False)


def test_nothing_of_an_analysis_of_before_stays(
    runs: dict[str, Path], tmp_path: Path, blind: None, unpainted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def again(*folders: Path, to: Path) -> set[str]:
        return files(analyze(folders, to, episodes=1, device="cpu", tell=lambda _: None))

    run, out = shutil.copytree(runs["d2r-1"], tmp_path / "run"), tmp_path / "out"
    of_routes = {"routes.npz", "routes.svg", "moments.svg", "similarity.png", "sparsity.png"}
    assert {f"{name}/{file}" for name in ("run", "d2r-2") for file in of_routes} < again(run, runs["d2r-2"], to=out)
    (out / "own.png").touch()
    (out / "d2r-2" / "own.csv").touch()
    assert of_routes < (now := again(run, to=out))
    assert {name for name in now if "/" in name} == {"d2r-2/own.csv"}
    assert not (out / "run").exists()
    (out / "paths.csv").touch()  # as if routes had differed
    shutil.rmtree(run / "checkpoints")
    now = again(run, to=out)
    assert not {*of_routes, "paths.csv"} & now
    assert {"own.png", "learning.png", "curves.png"} < now
    without_figures(monkeypatch)
    assert {name for name in again(run, to=out) if name.endswith(".png")} == {"own.png"}

    # What has such a name where there was no analysis is of others.
    for number, told in enumerate(
        (None, "{", "[1]", '{"runs": {"run": 1}}', '{"methods": [], "notes": [], "runs": 1}')
    ):
        other = tmp_path / f"other-{number}"
        other.mkdir()
        (other / "routes.svg").write_text("mine")
        if told is not None:
            (other / "summary.json").write_text(told)
        assert "routes.svg" in again(run, to=other)


def test_where_an_analysis_cannot_be_is_said_at_once(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "inspect_runs", None)  # nothing is done before
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "inside"):
        with pytest.raises(NotADirectoryError, match=r"`output` must be a directory, got .*, where file is a file"):
            analyze([runs["d2r-1"]], path)
    assert main(["analyze", str(runs["d2r-1"]), "--output", str(file)]) == 1
    assert "`output` must be a directory" in capsys.readouterr().err
    run = tmp_path / "run"
    run.mkdir()
    (run / "analysis").touch()
    with pytest.raises(NotADirectoryError, match="`output` must be a directory"):
        analyze([run])
    for taken in ("sweep.json", "config.json"):
        (folder := tmp_path / f"of-{taken}").mkdir()
        (folder / taken).touch()
        with pytest.raises(FileExistsError, match=rf"`output` must be a directory apart .* which has a {taken};"):
            analyze([runs["d2r-1"]], folder)


def test_runs_have_folders_of_their_own_in_an_analysis() -> None:
    names = ["a-b/c", "a/b-c", "c", "a-b-c-2", "a/b/c"]
    inside = export._inside(names)
    assert list(inside) == names
    assert [*inside.values()] == ["a-b-c", "a-b-c-2", "c", "a-b-c-2-2", "a-b-c-3"]


def test_the_first_policy_of_a_group_that_can_act(runs: dict[str, Path], tmp_path: Path) -> None:
    first = shutil.copytree(runs["d2r-1"], tmp_path / "first")
    shutil.rmtree(first / "checkpoints")
    folders = [first, runs["d2r-2"], runs["mt-sac"]]
    chosen: dict[str, Any] = {"episodes": 1, "frames": False, "device": "cpu", "tell": lambda _: None}
    note = "d2r-2: its routes replace the ones of first, whose policy cannot act."
    analysis = inspect_runs(folders, every=False, **chosen)
    assert list(analysis.routes) == ["d2r-2", "mt-sac"]
    assert note in analysis.notes
    damaged = shutil.copytree(runs["d2r-1"], tmp_path / "damaged" / "first")
    (next((damaged / "checkpoints").iterdir()) / "model.safetensors").write_bytes(b"")
    analysis = inspect_runs([damaged, *folders[1:]], every=False, **chosen)
    assert list(analysis.routes) == ["d2r-2", "mt-sac"]
    assert note in analysis.notes
    assert any(told.startswith("first: There are neither routes nor frames: ") for told in analysis.notes)
    analysis = inspect_runs([runs["d2r-1"], runs["d2r-2"]], every=False, **chosen)
    assert list(analysis.routes) == ["d2r-1"]
    assert not any("stand for" in told for told in analysis.notes)
    assert list(inspect_runs(folders, **chosen).routes) == ["d2r-2", "mt-sac"]


def test_a_policy_that_diverged_costs_its_routes_alone(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_model

    def diverged(run: Run, device: str) -> Any:
        model = whole(run, device)
        for parameter in model.actor.parameters():
            parameter.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(analyses, "load_model", diverged)
    analysis = inspect_runs([runs["mt-sac"]], episodes=1, frames=False, device="cpu", tell=lambda _: None)
    assert not analysis.routes
    assert any("There are neither routes nor frames, since its policy cannot act:" in note for note in analysis.notes)
    assert analysis.groups[0].task_rows()


def test_means_over_runs_are_those_of_all_points(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    rates = np.random.default_rng(0).binomial(20, 0.1, 6000) / 20
    rates[::1000] = 1.0
    lines = [{"step": 2 * i, "success/reach": rate, "success/drawer-close": rate} for i, rate in enumerate(rates, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (group,), _ = group_runs(read_runs([folder]))
    band = group.band("success")
    assert band is not None
    assert band.center.mean() == pytest.approx(rates.mean(), abs=1e-3)
    assert len(group.runs[0].drawn("success")["reach"].steps) <= 2000


def test_how_far_a_policy_has_come_is_said(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    chosen: dict[str, Any] = {"episodes": 1, "frames": False, "device": "cpu", "tell": said.append}
    monkeypatch.setattr(analyses, "OFTEN", 0.0)
    inspect_runs([runs["d2r-1"]], **chosen)
    assert said[:2] == ["d2r-1: its policy acts in 2 tasks ...", "d2r-1: 5% of its steps are done ..."]
    assert len(said) == 20
    said.clear()
    monkeypatch.setattr(analyses, "OFTEN", 1e9)
    inspect_runs([runs["d2r-1"]], **chosen)
    assert len(said) == 1
