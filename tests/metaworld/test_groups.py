"""Runs are read: long curves are thinned, the figures of a run computed, and its seeds grouped."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import PLAIN, SMALL, write_metrics

from dynroute_metaworld import Configuration, EvaluationResult, Run, iqm
from dynroute_metaworld.report.comparison import RESAMPLES, group_runs
from dynroute_metaworld.report.curves import draw_curves
from dynroute_metaworld.report.data import Curve, read_curves, read_run, read_runs, thin
from dynroute_metaworld.runs.intervals import bootstrap_interval
from dynroute_metaworld.runs.seeds import origin, settings_key

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
    path.write_text(f'{{"step": 1, "a": {10**400}}}\n{{"step": 2, "a": 3}}\n')
    metrics = read_curves(path, ["a"])
    assert metrics.curves["a"].values.tolist() == [3]
    assert metrics.notes == ("a was not finite once; those points are left out.",)
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
    shutil.copytree(folder / "cloning" / "round_0", folder / "cloning" / "round_0.bak")  # a copy of one's own
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
    assert not read_run(runs["mt-sac"]).curves("route_temperature")
    assert draw_curves(one.run) == runs["d2r-1"] / "curves.png"


def test_what_is_missing_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["d2r-1"], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    (folder / "evaluations" / "final.json").write_text("{")
    (folder / "sessions.jsonl").write_text('{"started": "now"}\n{"minutes": "1"}\n')
    one = read_run(folder)
    told = " ".join(one.notes)
    for part in (
        "There is no checkpoint, and so there are neither routes nor frames.",
        "evaluations/final.json is damaged and left out.",
        "There is no final evaluation: success is from the evaluation at 60 steps of each task.",
        "sessions.jsonl is damaged in line 2, which is left out.",
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


# Groups


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
    assert band.center == pytest.approx([table[..., k].mean() for k in range(5)])
    for k, ends in enumerate(zip(band.low, band.high, strict=True)):
        assert ends == pytest.approx(bootstrap_interval(table[..., k], np.mean, resamples=RESAMPLES))
    assert (band.low <= band.center + 1e-9).all()
    assert (band.center <= band.high + 1e-9).all()
    lower, upper = np.sort(table.mean(axis=1), axis=0)  # the two seeds
    assert (lower < upper).any()
    assert band.first_quartile == pytest.approx(0.75 * lower + 0.25 * upper)
    assert band.median == pytest.approx((lower + upper) / 2)
    assert band.third_quartile == pytest.approx(0.25 * lower + 0.75 * upper)
    alone = groups[1].band("return")
    assert alone is not None
    assert np.isnan([alone.low, alone.median, alone.third_quartile]).all()
    assert groups[1].band("modules_used") is None

    short = shutil.copytree(runs["d2r-2"], tmp_path / "short")
    lines = (short / "metrics.jsonl").read_text().splitlines(keepends=True)
    (short / "metrics.jsonl").write_text("".join(lines[:2]))
    shortened, notes = group_runs(read_runs([runs["d2r-1"], short]))
    until = shortened[0].band("return")
    assert until is not None
    assert f"its curves of means end at {until.steps[-1]:.0f} steps, where short ends; the longest run came" in notes[0]

    other = shutil.copytree(runs["d2r-1"], tmp_path / "d2r-1")
    text = (other / "config.json").read_text().replace('"gate": null', '"gate": "soft"')
    (other / "config.json").write_text(text)
    same = shutil.copytree(runs["d2r-1"], tmp_path / "again")
    shutil.rmtree(same / "evaluations")
    found = read_runs([runs["d2r-1"], other, same])
    assert len({one.name for one in found}) == 3
    assert found[2].name.endswith("again")
    groups, notes = group_runs(found)
    assert [group.name for group in groups] == ["d2r (gate=default)", "d2r (gate=soft)"]
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


def test_evaluations_of_unfinished_runs_are_not_pooled_with_final_ones(runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = shutil.copytree(runs["d2r-2"], tmp_path / "unfinished")
    (unfinished / "evaluations" / "final.json").unlink()
    (group,), notes = group_runs(read_runs([runs["d2r-1"], unfinished]))
    (alone,), _ = group_runs(read_runs([runs["d2r-1"]]))
    assert "d2r: not finished and left out of its success: unfinished." in notes
    assert group.scores.tolist() == alone.scores.tolist()
    assert group.modules_of_runs.tolist() == alone.modules_of_runs.tolist()
    assert group.task_rows() == alone.task_rows()
    assert (group.row()["evaluated"], group.row()["seeds"]) == (1, [1, 2])
    other = shutil.copytree(runs["d2r-1"], tmp_path / "other")
    (other / "evaluations" / "final.json").unlink()
    (group,), notes = group_runs(read_runs([other, unfinished]))
    assert len(group.scores) == 2  # the newest of each, where no run is finished
    assert not any("left out" in note for note in notes)


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


def test_groups_of_an_ablation_are_called_by_what_each_changes(tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [
        {"gate": "top-2"},
        {"protect": "none"},
        {"actor_paths": "sampled"},
        {"route_temperature": "1.0"},
        {"state_free": True, "num_modules": 9},
    ]
    folders = [untrained(tmp_path / f"{i}", **chosen) for i, chosen in enumerate([{}, {"seed": 2}, *parts])]
    assert names_of(*folders) == [
        "d2r",
        "d2r (gate=top-2)",
        "d2r (protect=none)",
        "d2r (actor_paths=sampled)",
        "d2r (route_temperature=1.0)",
        "d2r (num_modules=9, state_free=true)",
    ]
    assert names_of(*folders[:2], folders[3]) == ["d2r (protect=default)", "d2r (protect=none)"]


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


def test_hours_do_not_split_seeds(tmp_path: Path) -> None:
    runs = [untrained(tmp_path / f"{seed}", seed=seed, hours=hours) for seed, hours in enumerate((None, 1.0, 2.0), 1)]
    runs += [untrained(tmp_path / "4", seed=4, steps=80), untrained(tmp_path / "5", seed=5, checkpoint_every=20)]
    groups, _ = group_runs(read_runs(runs))
    assert [group.seeds for group in groups] == [[1, 2, 3, 5], [4]]
    assert names_of(*runs) == ["d2r (steps=60)", "d2r (steps=80)"]


def test_whole_numbers_do_not_split_seeds(tmp_path: Path) -> None:
    whole, fraction = (Configuration(reward_scale=scale, max_ent_coef=scale) for scale in (1, 1.0))
    assert settings_key(whole) == settings_key(fraction)
    whole.write(tmp_path / "config.json")
    assert settings_key(Configuration.read(tmp_path / "config.json")) == settings_key(fraction)
    assert isinstance(whole.seed, int)


def test_the_window_splits_runs_that_grow_by_it(tmp_path: Path) -> None:
    def named(**options: Any) -> list[str]:
        chosen = [{"window": 20}, {"window": 20, "seed": 2}, {"window": 5}]
        folder = tmp_path / f"{options}"
        return names_of(*(untrained(folder / f"{i}", **options, **more) for i, more in enumerate(chosen)))

    assert named() == ["d2r"]
    assert named(grow_to=9) == ["d2r (window=20)", "d2r (window=5)"]
    plain, grown = untrained(tmp_path / "plain"), untrained(tmp_path / "grown", grow_to=9)
    again = untrained(tmp_path / "again", seed=2)
    assert names_of(plain, again, grown) == ["d2r (grow_to=none)", "d2r (grow_to=9)"]


def test_budgets_of_hours_are_compared(tmp_path: Path) -> None:
    folders = [untrained(tmp_path / f"{h}-{s}", hours=h, seed=s) for h in (0.5, 2.0) for s in (1, 2)]
    assert names_of(*folders) == ["d2r (hours=0.5)", "d2r (hours=2.0)"]
    assert names_of(folders[0], folders[3]) == ["d2r"]  # seeds that had more time, or less


def test_names_do_not_depend_on_how_a_benchmark_was_written(tmp_path: Path) -> None:
    folders = [untrained(tmp_path / f"{w}-{s}", width=w, seed=s) for w in (32, 64) for s in (1, 2)]
    for folder in folders[:2]:
        path = folder / "config.json"  # a configuration that was written by hand
        path.write_text(path.read_text().replace("drawer-close,reach", "drawer-close, reach-v3"))
    assert names_of(*folders) == ["d2r (width=32)", "d2r (width=64)"]


def test_a_run_without_logs_takes_the_curves_of_its_group(runs: dict[str, Path], tmp_path: Path) -> None:
    new = shutil.copytree(runs["d2r-2"], tmp_path / "new")
    (new / "metrics.jsonl").write_text("")
    (group,), notes = group_runs(read_runs([runs["d2r-1"], new]))
    assert group.band("return") is None
    assert "d2r: no curves of means, since these runs have not logged yet: new." in notes


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
        return origin(Configuration(seed=seed, warm_start=None if start is None else str(start)))

    assert of(1, None) is None
    first, second = (untrained(tmp_path / f"seed{n}", seed=n, device="auto") for n in (1, 2))
    other = untrained(tmp_path / "other", gamma=0.5)
    assert of(1, first) == of(2, second) == of(3, first)
    assert hash(of(1, first)) == hash(of(2, second))  # runs are grouped by it
    assert of(1, first) != of(1, other)
    evaluated = untrained(tmp_path / "evaluated", final_episodes=9)  # which does not change its actor
    assert of(1, first) == of(1, evaluated)
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
