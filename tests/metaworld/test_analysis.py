"""Looking at runs: thinned curves, groups of seeds, the routes of a policy, and the files of an analysis."""

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from small_runs import PLAIN, SMALL, draws, there_is, write_metrics

from dynroute import Route, Topology, inspect
from dynroute_metaworld import Configuration, EvaluationResult, Run, iqm, load_model, make_envs, train
from dynroute_metaworld.cli import main
from dynroute_metaworld.report import analysis as analyses
from dynroute_metaworld.report import export, figures
from dynroute_metaworld.report import scene as scenes
from dynroute_metaworld.report.analysis import inspect_runs
from dynroute_metaworld.report.canvas import draw_graph, legend, metric_panels, scale, style
from dynroute_metaworld.report.comparison import Group, GroupRoutes, group_runs
from dynroute_metaworld.report.curves import draw_curves
from dynroute_metaworld.report.data import Curve, Metrics, RunData, read_curves, read_run, read_runs, thin
from dynroute_metaworld.report.export import OF_A_RUN, OF_ALL, analyze
from dynroute_metaworld.report.figures import write_groups
from dynroute_metaworld.report.film import GRAPH, LINE, _beside, _pictures, render
from dynroute_metaworld.report.routes import THRESHOLD, Rollout, Routes, collect_routes, embed
from dynroute_metaworld.report.scene import OpenGLError, find_opengl
from dynroute_metaworld.runs.intervals import bootstrap_interval
from dynroute_metaworld.runs.seeds import origin


@pytest.fixture(scope="module")
def runs(runs_of_sac: dict[str, Path]) -> dict[str, Path]:
    return runs_of_sac


@pytest.fixture(scope="module")
def routes(runs: dict[str, Path]) -> Routes:
    run = Run.open(runs["d2r-1"])
    return collect_routes(run, load_model(run, "cpu"), episodes=3, samples=30, moments=4)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which OpenGL does not work; what works on this one is not forgotten."""
    monkeypatch.setattr(scenes, "_works", functools.cache(scenes._works.__wrapped__))
    monkeypatch.setattr(scenes, "PROBE", "raise SystemExit(1)")
    monkeypatch.delenv("MUJOCO_GL", raising=False)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the pictures of figures empty; they take most of the time of an analysis."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Curves


def test_thinning_keeps_ends_and_extremes() -> None:
    steps = np.arange(50_000.0)
    values = np.random.default_rng(0).normal(size=50_000)
    values[[7, 33_333]] = 50.0, -50.0
    few, kept = thin(steps, values, limit=400)
    assert len(few) <= 400
    assert (few[0], few[-1]) == (0, 49_999)
    assert {7.0, 33_333.0} <= set(few)
    assert (values[few.astype(int)] == kept).all()  # nothing is made up
    assert (np.diff(few) > 0).all()
    for low in range(0, 50_000, 500):  # each of the hundred spans has its extremes
        inside = (few >= low) & (few < low + 500)
        assert kept[inside].min() == values[low : low + 500].min()
        assert kept[inside].max() == values[low : low + 500].max()
    assert thin(steps[:300], values[:300], limit=400)[0] is not few
    assert len(thin(steps[:300], values[:300], limit=400)[0]) == 300
    assert len(thin(np.zeros(1000), values[:1000], limit=100)[0]) <= 100  # all at one step


def test_a_long_file_is_thinned_where_it_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, 60_000, "a", "b", "c")
    with path.open("a") as file:
        file.write('{"step": 60001, "a": 99.0, "b": null}\n')
    metrics = read_curves(path, ["a", "b"])
    assert set(metrics.curves) == {"a", "b"}
    assert metrics.notes == ("b was not finite once; those points are left out.",)
    assert len(metrics.curves["a"].steps) == 60_001
    curve = Curve(*thin(metrics.curves["a"].steps, metrics.curves["a"].values, limit=2000))
    assert 500 < len(curve.steps) <= 2000
    assert (curve.steps[0], curve.steps[-1], curve.values.max()) == (1, 60_001, 99)
    assert np.diff(curve.steps).max() < 300  # evenly, however early or late it was read
    written = {1 + i: round(math.sin((1 + i) / 3000) + (1 + i) % 7 / 10, 4) for i in range(60_000)} | {60_001: 99.0}
    assert all(abs(written[int(step)] - value) < 1e-9 for step, value in zip(curve.steps, curve.values, strict=True))


def test_damaged_lines_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "a": 1}', '{"step": 1e999}', '{"step": 2, "a": 2}', '{"st', '{"a": 3}', '{"step": 4}x']
    lines += [f'{{"step": {10**400}, "a": 1}}', '{"step": 5, "a"']
    path.write_text("\n".join(lines))
    metrics = read_curves(path, ["a"])
    assert metrics.curves["a"].values.tolist() == [1, 2]
    assert [note for note in metrics.notes if "in line" in note] == [
        f"metrics.jsonl is damaged in line {number}, which is left out." for number in (2, 4, 5)
    ]
    assert "2 more damaged lines of metrics.jsonl are left out." in metrics.notes
    assert "The last line of metrics.jsonl, line 8, is cut short and left out." in metrics.notes
    assert read_curves(tmp_path / "no.jsonl", ["a"]).notes == ("There is no no.jsonl: nothing was logged.",)
    path.write_text("")
    assert read_curves(path, ["a"]).notes == ("metrics.jsonl holds no whole line: nothing was logged.",)


# What the files of runs tell


def test_evidence_of_imitation(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    for number, errors in enumerate(([0.5, 0.4], [0.3])):
        lines = [{"step": 100 * (i + 1), "cloning_error/reach": error} for i, error in enumerate(errors)]
        (folder / "cloning" / f"round_{number}").mkdir(parents=True)
        path = folder / "cloning" / f"round_{number}" / "errors.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    curve = read_run(folder).curves("cloning_error")["reach"]
    assert curve.steps.tolist() == [100, 200, 300]  # rounds follow each other
    assert curve.values.tolist() == [0.5, 0.4, 0.3]

    (folder / "metrics.jsonl").write_text("")
    alone = dataclasses.replace(Run.open(folder).configuration, steps=0)
    (folder / "config.json").unlink()
    alone.write(folder / "config.json")
    assert not any("nothing was logged" in note for note in read_run(folder).notes)  # SAC had no step to log


def test_evidence_of_a_run(runs: dict[str, Path]) -> None:
    one = read_run(runs["d2r-1"])
    final = EvaluationResult.load(runs["d2r-1"] / "evaluations" / "final.json")
    assert one.result is not None
    assert (one.result.returns == final.returns).all()
    assert one.minutes is not None
    assert one.minutes > 0
    assert one.curves("success")["reach"].steps.tolist() == [20, 30, 40, 50, 60]  # steps of each task
    assert one.curves("evaluation_return")["reach"].steps.tolist() == [30, 60]
    step = EvaluationResult.load(runs["d2r-1"] / "evaluations" / "step_60.json")
    assert one.curves("evaluation_return")["reach"].values[0] == step.returns[1].mean()
    assert one.curves("route_temperature")
    assert not read_run(runs["mt-sac"]).curves("modules_used")
    assert draw_curves(one.run) == runs["d2r-1"] / "curves.png"


def test_what_is_missing_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    (folder / "evaluations" / "final.json").write_text("{")
    (folder / "sessions.jsonl").write_text('{"started": "now"}\nno\n')
    one = read_run(folder)
    told = " ".join(one.notes)
    for part in (
        "There is no checkpoint, and so there are neither routes nor frames.",
        "evaluations/final.json is damaged and left out.",
        "There is no final evaluation: success is from the evaluation at 60 steps of each task.",
        "sessions.jsonl is damaged in line 2, which is left out.",
        "Never solved in the one episode of the evaluation: ",
    ):
        assert part in told
    assert one.sessions == ({"started": "now"},)
    shutil.copy(runs["mt-sac"] / "evaluations" / "final.json", folder / "evaluations" / "step_1.json")
    text = (folder / "evaluations" / "step_1.json").read_text().replace('"reach"', '"push"')
    (folder / "evaluations" / "step_1.json").write_text(text)
    assert "evaluations/step_1.json is of other tasks and left out." in read_run(folder).notes
    for name in ("evaluations", "sessions.jsonl", "metrics.jsonl"):
        shutil.rmtree(folder / name) if name == "evaluations" else (folder / name).unlink()
    told = " ".join(read_run(folder).notes)
    assert "There is no evaluation yet: success is unknown." in told
    assert "There is no sessions.jsonl: the machine of the run is unknown." in told
    assert "There is no metrics.jsonl: nothing was logged." in told
    with pytest.raises(FileNotFoundError, match="is not the directory of a run"):
        read_run(tmp_path)


def test_groups_of_seeds(runs: dict[str, Path], tmp_path: Path) -> None:
    found = read_runs([runs["d2r-2"], runs["mt-sac"], runs["d2r-1"], runs["d2r-1"]])
    assert [one.name for one in found] == ["d2r-2", "mt-sac", "d2r-1"]  # each once
    groups, notes = group_runs(found)
    assert [(group.name, group.seeds) for group in groups] == [("d2r", [1, 2]), ("mt-sac", [1])]
    assert notes == ["mt-sac: one seed does not show how much seeds differ, so there is no interval."]
    results = [EvaluationResult.load(runs[name] / "evaluations" / "final.json") for name in ("d2r-1", "d2r-2")]
    scores = np.array([result.success_rates for result in results])
    row = groups[0].row()
    assert (row["mean"], row["iqm"]) == (scores.mean(), iqm(scores))
    assert row["iqm_interval"] == list(bootstrap_interval(scores))
    assert groups[1].row()["iqm_interval"] is None
    assert groups[1].row()["modules_used"] is None
    rates = groups[1].task_rows()
    assert read_run(runs["mt-sac"]).result is not None
    low, high = EvaluationResult.load(runs["mt-sac"] / "evaluations" / "final.json").intervals()
    assert [one["interval"] for one in rates] == [[low[0], high[0]], [low[1], high[1]]]

    band = groups[0].band("return")
    assert band is not None
    assert band.steps.tolist() == [20, 30, 40, 50, 60]
    curves = [[one.curves("return")[task].values for task in one.tasks] for one in (found[2], found[0])]
    table = np.array(curves)
    assert band.center == pytest.approx([iqm(table[..., k]) for k in range(5)])
    assert (band.low <= band.center + 1e-9).all()
    assert (band.center <= band.high + 1e-9).all()
    alone = groups[1].band("return")
    assert alone is not None
    assert np.isnan(alone.low).all()
    assert groups[1].band("modules_used") is None

    other = shutil.copytree(runs["d2r-1"], tmp_path / "d2r-1")
    text = (other / "config.json").read_text().replace('"gate": null', '"gate": "soft"')
    (other / "config.json").write_text(text)
    same = shutil.copytree(runs["d2r-1"], tmp_path / "again")
    shutil.rmtree(same / "evaluations")
    found = read_runs([runs["d2r-1"], other, same])
    assert len({one.name for one in found}) == 3
    assert found[2].name.endswith("again")
    groups, notes = group_runs(found)
    assert [group.name for group in groups] == ["d2r (gate=none)", "d2r (gate=soft)"]
    elsewhere = shutil.copytree(runs["d2r-1"], tmp_path / "elsewhere")
    text = (
        (elsewhere / "config.json")
        .read_text()
        .replace("drawer-close,reach", "reach,push")
        .replace('"gamma": 0.99', '"gamma": 0')
    )
    (elsewhere / "config.json").write_text(text)
    several, _ = group_runs(read_runs([runs["d2r-1"], runs["d2r-2"], elsewhere]))
    assert [group.name for group in several] == ["d2r on 2 tasks", "d2r on 2 tasks #2"]
    alone, _ = group_runs(read_runs([runs["d2r-1"], elsewhere]))
    assert [group.name for group in alone] == ["d2r-1", "elsewhere"]
    assert any("seed 1 comes more than once, and intervals count each as another seed" in note for note in notes)
    assert any("not evaluated yet and left out of its success: " in note for note in notes)


def untrained(path: Path, **options: Any) -> Path:
    """The directory of a run that has not started yet."""
    Run.create(path, Configuration(**{**SMALL, **options}).resolve())
    return path


def names_of(*folders: Path) -> list[str]:
    return [group.name for group in group_runs(read_runs(folders))[0]]


def test_single_runs_are_called_by_their_directories(tmp_path: Path) -> None:
    imitation = untrained(tmp_path / "imitation", steps=0, demonstrations=4, cloning_steps=9, learning_rate=1e-4)
    sac = untrained(tmp_path / "sac", warm_start=str(imitation), update_every=4, batch_size=8)
    plain = untrained(tmp_path / "plain", **PLAIN)
    assert names_of(imitation) == ["d2r"]
    assert names_of(imitation, sac) == ["imitation", "sac"]
    assert names_of(imitation, sac, plain) == ["imitation", "sac", "mt-sac"]
    like_another = untrained(tmp_path / "mt-sac", gate="soft")
    assert names_of(like_another, sac, plain) == ["d2r in mt-sac", "sac", "mt-sac"]


def test_several_seeds_are_called_by_few_settings(tmp_path: Path) -> None:
    options = [{"gate": gate, "protect": protect} for gate in ("hard", "soft") for protect in ("rsg", "none")]
    runs = [untrained(tmp_path / f"{i}", **chosen) for i, chosen in enumerate(options)]
    again = untrained(tmp_path / "again", **options[0], seed=2)
    told = [f"d2r (gate={chosen['gate']}, protect={chosen['protect']})" for chosen in options]
    assert names_of(*runs, again) == told
    assert names_of(runs[0], again, runs[1]) == ["d2r (protect=rsg)", "d2r (protect=none)"]
    other = untrained(tmp_path / "other", gate="hard", protect="rsg", network={"trunk_sizes": [4], "router_sizes": [8]})
    assert names_of(runs[0], again, other) == ["d2r (trunk_sizes=[8, 8])", "d2r (trunk_sizes=[4])"]
    cloned = untrained(tmp_path / "cloned", steps=0, demonstrations=4, cloning_steps=9, learning_rate=1e-4)
    assert names_of(runs[0], again, cloned) == ["d2r (steps=60)", "d2r (steps=0)"]
    started = untrained(tmp_path / "started", **options[0], warm_start=str(tmp_path / "cloned-seed1"))
    assert names_of(runs[0], again, started) == ["d2r (warm_start=none)", "d2r (warm_start=cloned)"]


def test_names_of_groups_are_unique(tmp_path: Path) -> None:
    """Also where what differs cannot be told by three settings, or by any."""
    mixed = [{"gamma": 0.5}, {"tau": 0.5}, {"reward_scale": 0.5}, {"max_grad_norm": 0.5}, {"learning_rate": 0.5}]
    runs = [untrained(tmp_path / f"{i}", **chosen) for i, chosen in enumerate([{}, {"seed": 2}, *mixed])]
    names = names_of(*runs)
    assert len(set(names)) == len(names) == 6
    assert all(name.count("=") <= 3 for name in names)
    starts = []
    for i, gamma in enumerate((0.1, 0.2, 0.3)):
        start = untrained(tmp_path / f"from-{i}" / "start", gamma=gamma)
        starts.append(untrained(tmp_path / f"next-{i}", warm_start=str(start)))
    again = untrained(tmp_path / "again", seed=2, warm_start=str(tmp_path / "from-0" / "start"))
    assert names_of(*starts, again) == ["d2r", "d2r #2", "d2r #3"]


def test_runs_that_started_elsewhere_are_no_group(tmp_path: Path) -> None:
    starts = [untrained(tmp_path / f"start-seed{seed}", seed=seed) for seed in (1, 2)]
    longer = untrained(tmp_path / "longer", seed=3, cloning_steps=9, demonstrations=4)
    runs = [untrained(tmp_path / f"{seed}", seed=seed, warm_start=str(start)) for seed, start in enumerate(starts, 1)]
    runs.append(untrained(tmp_path / "3", seed=3, warm_start=str(longer)))
    runs.append(untrained(tmp_path / "4", seed=4))
    groups, _ = group_runs(read_runs(runs))
    assert [group.seeds for group in groups] == [[1, 2], [3], [4]]


def test_the_origin_of_a_run(tmp_path: Path) -> None:
    def of(seed: int, start: Path | str | None) -> object:
        found = origin(Configuration(seed=seed, warm_start=None if start is None else str(start)))
        assert hash(found) == hash(found)
        return found

    assert of(1, None) is None
    first, second = (untrained(tmp_path / f"seed{n}", seed=n, device="auto") for n in (1, 2))
    other = untrained(tmp_path / "other", gamma=0.5)
    assert of(1, first) == of(2, second) == of(3, first)
    assert of(1, first) != of(1, other)
    # Where those started in turn counts as well.
    next_first, next_second, next_other = (
        untrained(tmp_path / f"next-{i}", seed=i, warm_start=str(start))
        for i, start in enumerate((first, second, other), 1)
    )
    assert of(1, next_first) == of(2, next_second) != of(3, next_other)
    assert of(1, next_first) != of(1, first)
    # Of what is gone the path counts, but for the seed.
    assert of(1, "gone/a-seed1") == of(2, "gone/a-seed2") != of(2, "gone/b-seed2")
    assert of(1, "gone/a-seed1") != of(1, "gone/a-seed12")
    assert of(1, "gone/a-seed1") not in (None, of(1, first))
    (other / "config.json").write_text("{")
    assert of(1, other) == str(other)
    # A run that was given the name of the one that it started from.
    circle = untrained(tmp_path / "circle", warm_start=str(tmp_path / "circle"))
    assert of(1, circle) not in (None, of(1, first))


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
        ([[0.5], [np.nan]], "must be finite, got others in run 1"),
    ):
        with pytest.raises(ValueError, match=f"`scores` {told}"):
            bootstrap_interval(wrong, whole_runs=True)


def test_what_seeds_share_is_drawn(
    runs: dict[str, Path], routes: Routes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (group,), _ = group_runs(read_runs([runs["d2r-1"], runs["d2r-2"]]))
    sharing = GroupRoutes.of(group, {"d2r-1": routes, "d2r-2": routes})
    assert sharing is not None
    points = np.array([[0.0, 1.0, 2.0, 5.0], [1.0, 0.0, 1.0, 3.0]])
    written = write_groups(tmp_path, [group], [sharing], {"d2r-2": points})  # the other seed has no places
    names = {path.name for path in written}
    assert {"similarity_by_method.png", "sparsity_by_method.png", "paths_by_method.png"} < names
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    names -= {path.name for path in write_groups(tmp_path, [group], [], {})}
    assert names == {"similarity_by_method.png", "sparsity_by_method.png", "paths_by_method.png"}

    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(figures, "save", lambda folder, figures: drawn.update(figures))
    write_groups(tmp_path, [group], [sharing, sharing], {"d2r-1": points, "d2r-2": points})
    whole = sharing.row()["similarity"]
    titles = [axis.get_title(loc="left") for axis in drawn["similarity_by_method"].axes]
    assert [title for title in titles if title] == 2 * [f"d2r, 2 seeds\nIQM {whole:.2f} [{whole:.2f}, {whole:.2f}]"]
    (axis,) = drawn["sparsity_by_method"].axes
    read = [row["iqm"] for row in sharing.sparsity_rows()]
    assert axis.containers[0].lines[0].get_ydata().tolist() == read
    titles = [axis.get_title(loc="left") for axis in drawn["paths_by_method"].axes]
    assert titles == 2 * ["d2r, seed 1", "d2r, seed 2"]


TASKS = ("reach", "push", "door-open")


def learned_so(folder: Path, success: dict[str, list[float]], used: list[float], seed: int = 1) -> RunData:
    """A run whose tasks succeed so often after 10, 20, ... steps, and use so many modules in its evaluation."""
    options = {**SMALL, "benchmark": ",".join(TASKS), "horizon": 10, "window": 2, "seed": seed}
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
    return RunData(run, folder.name, Metrics(curves), result, (), ())


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


def test_modules_are_drawn_against_when_tasks_were_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure | None] = {}
    monkeypatch.setattr(figures, "save", lambda folder, figures: drawn.update(figures))

    def draw(*runs: RunData) -> Any:
        write_groups(tmp_path, [Group(one.name, (one,)) for one in runs], [], {})
        return None if drawn["learned"] is None else drawn["learned"].axes[0]

    success = {"reach": [0.0, 0.0, 0.5], "push": [0.0, 0.9], "door-open": [0.0]}
    some = learned_so(tmp_path / "some", success, [2.0, 4.0, 3.0])
    every = learned_so(tmp_path / "every", {key: [0.0, 1.0] for key in TASKS}, [2.0, 4.0, 3.0])
    never = learned_so(tmp_path / "never", {key: [0.0, 0.0] for key in TASKS}, [2.0, 4.0, 3.0])
    axis = draw(some, every)
    points = [points.get_offsets().tolist() for points in axis.collections]
    assert points == [[[30, 2], [20, 4], [pytest.approx(34.5), 3]], [[20, 2], [20, 4], [20, 3]]]
    assert [points.get_label() for points in axis.collections] == ["some; rank correlation -0.50", "every"]
    assert [text.get_text() for text in axis.texts] == ["never"]
    axis = draw(some, never)
    assert (len(axis.texts), len(axis.lines)) == (1, 1)
    axis = draw(every)
    assert (len(axis.texts), len(axis.lines)) == (0, 0)
    axis = draw(never)
    assert axis.get_xticks().tolist() == []
    assert [text.get_text() for text in axis.texts] == ["never"]
    assert draw(dataclasses.replace(some, metrics=Metrics())) is None


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
    learned = [(row["method"], row["run"], row["seed"], row["task"]) for row in rows(folder / "learned.csv")]
    assert learned == [("d2r", "d2r-1", "1", "drawer-close"), ("d2r", "d2r-1", "1", "reach")]
    used = [float(row["modules_used"]) for row in rows(folder / "learned.csv")]
    assert used == one.result.modules_used.mean(axis=1).tolist()  # type: ignore[union-attr]
    values = [float(row["value"]) for row in rows(folder / "curves.csv") if row["run"] == "d2r-1"]
    assert values[:2] == one.curves("evaluation")["drawer-close"].values.tolist()
    success = {(row["method"], row["task"]): row for row in rows(folder / "success.csv")}
    assert len(success) == 4
    assert float(success["mt-sac", "reach"]["success"]) == read_run(runs["mt-sac"]).result.success_rates[1]  # type: ignore[union-attr]
    assert {row["method"] for row in rows(folder / "curves_by_method.csv")} == {"d2r", "mt-sac"}
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["method"] for row in summary["methods"]] == ["d2r", "mt-sac"]
    shared = [row for row in rows(folder / "similarity_by_method.csv") if row["other"]]
    assert [(row["method"], row["task"], row["other"]) for row in shared] == [("d2r", "drawer-close", "reach")]
    stored = np.load(folder / "d2r-1" / "routes.npz")["similarity"]
    assert float(shared[0]["iqm"]) == pytest.approx(float(stored[0, 1]))
    assert (shared[0]["low"], shared[0]["high"]) == ("", "")  # one seed has no interval
    assert "similarity" in summary["methods"][0]
    assert "similarity" not in summary["methods"][1]  # it has no routes
    for picture in ("routes.svg", "moments.svg"):
        ElementTree.parse(folder / "d2r-1" / picture)


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


# Films


def test_a_missing_tool_fails_where_it_is_required(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNROUTE_REQUIRE_TOOLS", raising=False)
    assert not draws()
    monkeypatch.setenv("DYNROUTE_REQUIRE_TOOLS", "1")
    assert there_is("a browser", True)
    with pytest.raises(AssertionError, match="DYNROUTE_REQUIRE_TOOLS is set, and OpenGL is missing"):
        draws()


def test_a_film(runs: dict[str, Path], routes: Routes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert routes.topology is not None
    assert routes.route is not None
    graph = draw_graph(routes.topology, routes.route.sample(0), GRAPH).height
    assert graph > 64
    for name, width, height in (("d2r-1", 64 + GRAPH, graph + graph % 2), ("mt-sac", 64, 64)):
        path = tmp_path / f"{name}.gif"
        command = ["render", str(runs[name]), "--task", "reach-v3", "--output", str(path), "--size", "64"]
        status = main([*command, "--device", "cpu"])
        if not draws():
            assert status == 1
            assert "frames need OpenGL that works without a display" in capsys.readouterr().err
            continue
        assert status == 0
        assert capsys.readouterr().out == f"{path}\n"
        with Image.open(path) as film:
            assert film.size == (width, height + LINE)
            assert film.n_frames == 11  # type: ignore[attr-defined]
            first = np.asarray(film.convert("RGB"), dtype=int)
            film.seek(10)
            last = np.asarray(film.convert("RGB"), dtype=int)
        top = (height - 64) // 2
        assert first[top : top + 64, :64].std() > 10  # the scene
        assert np.abs(first - last).max() > 50
    assert not list(tmp_path.glob(".part*"))


def test_what_stands_under_a_film_of_two_episodes(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    goals, words = list[list[float]](), list[str]()

    def frame(rollout: Rollout, index: int, size: int = 240) -> np.ndarray:
        goals.append(rollout.env.environments[index].env._target_pos.tolist())
        rollout.first_success[0, 1] = 3  # as if the second episode had been solved there
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(Rollout, "frame", frame)
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda drawing, place, text, **_: words.append(text))
    run = Run.open(runs["d2r-1"])
    assert len(_pictures(run, "reach", episodes=2, seed=4, size=64, device="cpu")) == len(goals) == 22
    with contextlib.closing(make_envs(run.configuration.tasks, only=["reach"], seed=4, horizon=20)) as env:
        expected = [env.reset()[0, 36:39].tolist() for _ in range(2)]
    assert np.allclose(goals, np.repeat(expected, 11, axis=0))
    told = [re.sub(r"[1-5] of 5 nodes", "some nodes", line) for line in words]
    ends = ("1 of 2, some nodes run", "2 of 2, some nodes run, solved at step 3")
    assert told == [f"reach, step {step} of 20, episode {end}" for end in ends for step in (*range(1, 20, 2), 20)]


def test_a_graph_that_is_taller_than_the_scene_is_whole() -> None:
    scene, graph = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (200, 301), "green")
    picture = np.asarray(_beside(scene, graph), dtype=int)
    assert picture.shape == (302 + LINE, 64 + GRAPH, 3)
    assert (picture == (0, 128, 0)).all(axis=-1).sum() == 200 * 301
    assert (picture == (255, 0, 0)).all(axis=-1).sum() == 64 * 64
    low = _beside(scene, Image.new("RGB", (200, 20), "green"))
    assert low.size == (64 + GRAPH, 64 + LINE)
    assert _beside(scene, None).size == (64, 64 + LINE)


def test_cameras_of_several_tasks_do_not_mix(runs: dict[str, Path]) -> None:
    if not draws():
        with pytest.raises(OpenGLError, match="install a graphics driver"):
            find_opengl()
        return
    run = Run.open(runs["d2r-1"])
    model = load_model(run, "cpu")
    frames = []
    pictures = []
    for names in (["reach"], ["reach", "drawer-close"]):
        env = make_envs(names, goals="fixed", render_mode="rgb_array")
        env.reset()
        env.get_images()
        pictures.append(env.get_images()[0])
        env.close()
    assert (pictures[0] == pictures[1]).all()
    for tasks in (["drawer-close"], ["drawer-close", "reach"]):
        with contextlib.closing(Rollout(run, model, tasks)) as rollout:
            rollout.env.reset()
            for i in range(len(tasks)):
                rollout.frame(i, 64)
            frames.append(rollout.frame(0, 64))
    assert (frames[0] == frames[1]).all()


def test_films_that_are_refused(runs: dict[str, Path], tmp_path: Path, blind: None) -> None:
    folder = runs["d2r-1"]
    with pytest.raises(ValueError, match="`task` must be one of 'drawer-close', 'reach', got 'push'"):
        render(folder, "push")
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        render(folder, "reach", episodes=0)
    with pytest.raises(ValueError, match=r"`size` must be an even number of pixels in .*, got 65"):
        render(folder, "reach", size=65)
    with pytest.raises(ValueError, match=r"`output` must end with .gif or .mp4, got 'film.avi'"):
        render(folder, "reach", tmp_path / "film.avi")
    with pytest.raises(FileNotFoundError, match="`output` must be in an existing directory"):
        render(folder, "reach", tmp_path / "no" / "film.gif")
    with pytest.raises(OpenGLError, match="neither MUJOCO_GL=egl nor MUJOCO_GL=osmesa does; install a graphics driver"):
        render(folder, "reach", tmp_path / "film.gif")


def test_an_mp4_needs_its_encoder(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="an MP4 needs imageio-ffmpeg; type: pip install imageio-ffmpeg, or name a"):
        render(runs["d2r-1"], "reach", tmp_path / "film.mp4")


def test_what_opengl_is_asked_for(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(OpenGLError, match="but MUJOCO_GL=osmesa does not; install"):
        find_opengl()
    monkeypatch.setattr(scenes, "PROBE", "import os; assert os.environ['MUJOCO_GL'] == 'osmesa'")
    scenes._works.cache_clear()
    assert find_opengl() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", " OSMesa")  # as MuJoCo takes it
    assert find_opengl() == os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    assert find_opengl() == "osmesa"  # egl does not work
    monkeypatch.setattr(scenes, "PROBE", "while True: pass")
    monkeypatch.setattr(sys, "executable", "/no/python")
    scenes._works.cache_clear()
    with pytest.raises(OpenGLError, match="install"):
        find_opengl()


def test_routes_as_pixels(routes: Routes) -> None:
    assert routes.topology is not None
    assert routes.route is not None
    route = routes.route.sample(0)
    picture = draw_graph(routes.topology, route, 200)
    assert picture.width == 200
    pixels = np.asarray(picture, dtype=int)
    green = (np.abs(pixels - np.array([0x14, 0x6E, 0x3C])).sum(axis=-1) < 60).sum()
    none = draw_graph(routes.topology, route._replace(path=torch.zeros_like(route.path)), 200)
    less = (np.abs(np.asarray(none, dtype=int) - np.array([0x14, 0x6E, 0x3C])).sum(axis=-1) < 60).sum()
    assert green > less > 0  # the output runs in any case
    assert draw_graph(routes.topology, route, 5000).width < 600  # no larger than it is drawn
