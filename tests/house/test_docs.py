"""The directives of the documentation show stored results in tables that fit a page, and in drawings."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynroute_metaworld import bootstrap_interval, iqm, wilson_interval

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _modules_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    for name in ("gallery_page", "learning_curves", "mathml", "result_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def stored(*rows: tuple[dict[str, Any], dict[str, float]]) -> dict[str, Any]:
    first = {"method": "mt-sac", "seed": 1, "batch_size": 64, "ent_coef": "auto", "route_noise": 0, "network": {}}
    written = [{"options": options, "success": each, "by_task": {}, "multiply_adds": 1e3} for options, each in rows]
    return {"first": first, "window": 20, "rows": written, "sessions": []}


def sweep_row(method: str, mean: float, rates: list[float]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A row of a sweep whose seeds have these rates of a task in 20 episodes, and its runs."""
    named = {"benchmark": "push", "method": method, "variant": ""}
    seeds = list(range(1, len(rates) + 1))
    runs = {
        f"{method} {seed}": {**named, "seed": seed, "episodes": 20, "success": {"push": rate}}
        for seed, rate in zip(seeds, rates, strict=True)
    }
    success = {"push": float(np.mean(rates))}
    return {**named, "seeds": seeds, "mean": mean, "success": success, "modules_used": None}, runs


def cells(lines: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("   * - "):
            rows.append([])
        if line.startswith(("   * - ", "     - ")):
            rows[-1].append(line[7:])
    return rows


def test_curves_name_what_differs_once_and_are_sorted() -> None:
    from learning_curves import curve_lines

    d2r = {"method": "d2r", "network": {"width": 80}}
    both = {"batch_size": 16, "ent_coef": "auto_0.5"}
    rows = [({**both, "route_noise": 1}, {"10": 0.5}), ({}, {"10": 0.25}), (d2r, {"10": 0.0})]
    rows += [({**d2r, **both, "seed": 2}, {"10": 0.0}), ({**both, "seed": 3}, {"20": 0.1}), ({"seed": 2}, {})]
    lines = curve_lines(stored(*rows))
    assert cells(lines) == [
        ["method", "seed", "other settings", "10", "20"],
        ["mt-sac", "1", "``batch_size=16``", "0.50", ""],
        ["mt-sac", "3", "``batch_size=16``", "", "0.10"],
        ["mt-sac", "1", "", "0.25", ""],
        ["d2r", "1", "", "0.00", ""],
        ["d2r", "2", "``batch_size=16``", "0.00", ""],
    ]
    assert lines[-1].endswith(
        "Every d2r has ``network.width=80``. With ``batch_size=16`` comes ``ent_coef=auto_0.5``. "
        "Unless stated otherwise: ``batch_size=64``, ``ent_coef=auto``."
    )


def test_evaluations_are_shown_of_runs_that_have_some() -> None:
    from learning_curves import curve_lines

    curves = stored(({}, {"10": 0.25}), ({"seed": 2}, {"10": 0.5}))
    curves["rows"][1]["evaluated"] = {"10": 0.75, "20": 1.0}
    lines = curve_lines(curves, shown="evaluated")
    assert cells(lines) == [["method", "seed", "10", "20"], ["mt-sac", "2", "0.75", "1.00"]]
    assert lines[-1].startswith("Success in evaluations over steps of each task")


def test_curves_of_seeds_are_a_mean_with_the_interval_of_the_other_tables() -> None:
    from learning_curves import OVER_SEEDS, curve_lines

    rates = [0.1, 0.2, 0.3, 0.8]
    rows = [({"seed": seed}, {"10": rate, "20": rate}) for seed, rate in enumerate(rates, start=1)]
    rows[3][1].pop("20")  # without a seed, the mean would be of fewer runs than the row says
    rows += [({"batch_size": 16}, {"10": 0.5}), ({"method": "d2r", "seed": 1}, {"20": 1.0})]
    lines = curve_lines(stored(*rows), seeds=True)
    low, high = bootstrap_interval([[rate] for rate in rates], np.mean)
    assert 0.1 < low < 0.35 < high < 0.8
    assert cells(lines) == [
        ["method", "seeds", "other settings", "10", "20"],
        ["mt-sac", "4", "", f"0.35 ({low:.2f} to {high:.2f})", ""],
        ["mt-sac", "1", "``batch_size=16``", "0.50", ""],
        ["d2r", "1", "", "", "1.00"],
    ]
    assert OVER_SEEDS in lines[-1]


def test_the_iqm_is_that_of_all_tasks_and_seeds_where_they_were_stored() -> None:
    from learning_curves import OF_TASKS, curve_lines

    rates = {1: [0.0, 0.5, 0.75, 1.0], 2: [0.0, 0.0, 0.25, 1.0]}
    curves = stored(*(({"seed": seed}, {"10": 0.5, "20": 0.5}) for seed in rates), ({"batch_size": 16}, {"20": 0.5}))
    for row, each in zip(curves["rows"], rates.values(), strict=False):
        row["by_task"] = {"success": {"10": [0.0] * 4, "20": each}}
    low, high = bootstrap_interval([*rates.values()])
    assert 0 < low < iqm([*rates.values()]) < high
    lines = curve_lines(curves, seeds=True)
    header, two, one = cells(lines)
    assert (header[-1], two[-1], one[-1]) == ("IQM at 20", f"0.38 ({low:.2f} to {high:.2f})", "\N{EN DASH}")
    assert OF_TASKS in lines[-1]
    curves["rows"][1]["by_task"]["success"]["20"][0] = None  # the task had no episode
    assert "IQM at 20" not in cells(curve_lines(curves, seeds=True))[0]


def test_evaluations_of_seeds_have_intervals_and_an_iqm_unless_most_rows_have_none() -> None:
    from learning_curves import curve_lines

    curves = stored(*(({"seed": seed}, {}) for seed in (1, 2)), ({"batch_size": 16}, {}), ({"batch_size": 32}, {}))
    for row, rate in zip(curves["rows"], (0.25, 0.75, 1.0, 0.0), strict=True):
        row |= {"evaluated": {"20": rate}, "by_task": {"evaluated": {"20": [rate] * 4}}}
    low, high = bootstrap_interval([[0.25] * 4, [0.75] * 4])
    interval = f"0.50 ({low:.2f} to {high:.2f})"
    header, *rows = cells(curve_lines(curves, shown="evaluated", seeds=True))
    assert header[-2:] == ["20", "IQM at 20"]
    assert [row[-2:] for row in rows] == [[interval, interval], ["1.00", "1.00"], ["0.00", "0.00"]]
    for row in curves["rows"][1:3]:
        row["by_task"] = {}
    header, *rows = cells(curve_lines(curves, shown="evaluated", seeds=True))
    assert [header[-1], *(row[-1] for row in rows)] == ["20", interval, "1.00", "0.00"]


def test_curves_of_chosen_runs() -> None:
    from learning_curves import choose_runs, curve_lines

    curves = stored(({}, {"10": 0.25}), ({"seed": 2}, {"10": 0.5}), ({"seed": 3}, {"10": 0.75}))
    for row, run in zip(curves["rows"], "abc", strict=True):
        row["run"] = run
    curves["sessions"] = [{"run": run, "command": f"train {run}"} for run in "abc"]
    chosen = choose_runs(curves, ["c", "a"])
    assert cells(curve_lines(chosen))[1:] == [["mt-sac", "1", "0.25"], ["mt-sac", "3", "0.75"]]
    assert [session["command"] for session in chosen["sessions"]] == ["train a", "train c"]
    with pytest.raises(ValueError, match=r"^`runs` must be stored, got d, e\.$"):
        choose_runs(curves, ["e", "a", "d"])


def test_multiply_adds_are_shown_where_they_are_asked_for() -> None:
    from learning_curves import ARITHMETIC, curve_lines

    curves = stored(({}, {"10": 0.5}))
    curves["rows"][0]["multiply_adds"] = 144896.0
    lines = curve_lines(curves, arithmetic=True)
    assert cells(lines) == [["method", "seed", "multiply-adds", "10"], ["mt-sac", "1", "144,896", "0.50"]]
    assert ARITHMETIC in lines[-1]
    assert "multiply-adds" not in "".join(curve_lines(curves))


def test_the_interval_of_three_seeds_is_their_range() -> None:
    from learning_curves import rate_cell

    assert rate_cell([0.5, 0.25, 0.0], 3) == "0.25 (0.00 to 0.50)"  # as the tables say


def timed() -> dict[str, Any]:
    """Curves of two seeds that logged their minutes, of one that did not, and of another method."""
    rates = {"10": 0.25, "20": 0.5}
    d2r = {"method": "d2r", "seed": 1}
    curves = stored(({}, rates), ({"seed": 2}, {"10": 0.75, "20": 1.0}), ({"seed": 3}, rates), (d2r, {"10": 1.0}))
    curves["rows"][0] |= {"minutes_at": {"10": 30.0, "20": 60.0}, "minutes": 75.0}
    curves["rows"][1] |= {"minutes_at": {"10": 45.0, "20": 96.0}, "minutes": None}
    curves["rows"][2] |= {"evaluated": {"20": 1.0}}
    curves["rows"][3] |= {"minutes_at": {"10": 90.0}, "minutes": 90.0}
    return curves


def test_curves_over_hours_have_the_newest_figures_of_runs_whose_time_is_known() -> None:
    from learning_curves import OVER_HOURS, curve_lines

    lines = curve_lines(timed(), hours=[0.5, 1, 1.25, 1.5, 2])
    assert cells(lines) == [
        ["method", "seed", "0.5 h", "1 h", "1.25 h", "1.5 h", "2 h"],
        ["mt-sac", "1", "0.25", "0.50", "0.50", "", ""],
        ["mt-sac", "2", "", "0.75", "0.75", "0.75", ""],
        ["d2r", "1", "", "", "", "1.00", ""],
    ]
    assert lines[-1].startswith("Success over hours of learning: the mean over tasks")
    assert OVER_HOURS in lines[-1]
    lines = curve_lines(timed(), seeds=True, hours=[1, 1.5])
    assert cells(lines)[1:] == [["mt-sac", "2", "0.62 (0.50 to 0.75)", ""], ["d2r", "1", "", "1.00"]]
    assert cells(curve_lines(timed(), hours=[]))[0][2:] == [f"{hour / 5:g} h" for hour in range(1, 9)]
    with pytest.raises(ValueError, match="the table over hours needs a run that logged its minutes, got none"):
        curve_lines(timed(), shown="evaluated", hours=[])


@pytest.mark.parametrize(
    ("longest", "columns"),
    [
        (0.085, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]),
        (0.5, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (2.46, [0.5, 1.0, 1.5, 2.0]),
        (8.0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (9.0, [2, 4, 6, 8]),
        (75.0, [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_columns_of_hours_are_few_and_round(longest: float, columns: list[float]) -> None:
    from learning_curves import hour_columns

    assert hour_columns(longest) == pytest.approx(columns)


def test_a_drawing_over_hours_has_the_runs_whose_time_is_known() -> None:
    from learning_curves import draw_curves

    drawing = draw_curves(timed(), "Hours.", by_hours=True)
    assert "hours of learning</text>" in drawing
    assert "mt-sac, mean of 2 seeds</text>" in drawing
    assert "steps of each task" not in drawing


def test_curves_have_few_columns_and_the_last_step() -> None:
    from learning_curves import curve_lines

    curve = stored(({}, {str(step): 0.5 for step in range(1000, 21_000, 1000)}))
    assert cells(curve_lines(curve))[0][2:] == ["2,000", "5,000", "8,000", "11,000", "14,000", "17,000", "20,000"]
    assert cells(curve_lines(curve, [3000, 4000]))[0] == ["method", "seed", "3,000", "4,000"]


def test_a_drawing_has_a_line_for_each_method_and_is_always_the_same() -> None:
    from learning_curves import INK, draw_curves

    one = {"10": 0.2, "20": 0.4}
    curves = stored(({}, one), ({"seed": 2}, one), ({"method": "d2r", "seed": 3}, one))
    drawing = draw_curves(curves, "Two <methods>.")
    assert drawing == draw_curves(curves, "Two <methods>.")
    assert drawing.startswith('<svg role="img" aria-label="Two &lt;methods&gt;."')
    assert "mt-sac, mean of 2 seeds</text>" in drawing
    assert "d2r, seed 3</text>" in drawing
    assert INK not in drawing
    assert "currentColor" in drawing
    assert "<metadata>" not in drawing


def test_tasks_of_many_networks_make_several_tables() -> None:
    from result_tables import OF_SEEDS, SweepTasks

    rows, runs = zip(*(sweep_row(f"net{i}", -i, [0.5, 0.5]) for i in range(8)), strict=True)
    rows[0]["modules_used"] = {"push": 3.0}
    lines = SweepTasks.__new__(SweepTasks).lines(
        {"rows": rows, "runs": {k: v for each in runs for k, v in each.items()}}
    )
    assert cells(lines) == [
        ["task", "net0", "net1", "net2", "net3"],
        ["push", "0.50\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}3.0", "0.50", "0.50", "0.50"],
        ["task", "net4", "net5", "net6", "net7"],
        ["push", "0.50", "0.50", "0.50", "0.50"],
    ]
    modules = "Success / modules on the routes of a task, the output among them; means over seeds."
    assert lines[-1] == f"{modules} {OF_SEEDS}"


def test_tasks_have_the_range_of_their_seeds_or_wilsons_interval_of_one() -> None:
    from result_tables import OF_EPISODES, OF_SEEDS, SweepTasks

    (several, runs), (one, run) = sweep_row("several", 1.0, [0.25, 0.75, 0.8]), sweep_row("one", 0.0, [0.5])
    unfinished = {**runs["several 1"], "seed": 9, "success": None}
    kept = {"rows": [several, one], "runs": {**runs, **run, "several 9": unfinished}}
    lines = SweepTasks.__new__(SweepTasks).lines(kept)
    low, high = wilson_interval(10, 20)
    assert cells(lines)[1] == ["push", "0.60 (0.25 to 0.80)", f"0.50 ({low:.2f} to {high:.2f})"]
    assert lines[-1] == f"{OF_SEEDS} {OF_EPISODES}"


def test_one_thread_is_singular() -> None:
    from result_tables import machine

    noted = {"processor": "a processor", "gpu": None}
    assert machine({**noted, "cores": 2, "threads": 1}) == "2 cores of a processor, 1 thread a run, no GPU"
    assert machine({**noted, "cores": 1, "threads": 2}) == "1 core of a processor, 2 threads a run, no GPU"


def test_formulas_are_mathml_without_a_network() -> None:
    from docutils import nodes
    from mathml import visit_formula

    class Translator:
        def __init__(self) -> None:
            self.body: list[str] = []

        def starttag(self, node: nodes.Node, tag: str, suffix: str, CLASS: str) -> str:  # noqa: N803
            return f'<{tag} class="{CLASS}">'

        def encode(self, text: str) -> str:
            return text

    translator = Translator()
    for node in (nodes.math("", r"\bigl(x\bigr)"), nodes.math_block("", "y")):
        with pytest.raises(nodes.SkipNode):
            visit_formula(translator, node)
    assert translator.body[0].startswith('<span class="math"><math xmlns="http://www.w3.org/1998/Math/MathML">')
    assert translator.body[1].startswith('<div class="math"><math')
