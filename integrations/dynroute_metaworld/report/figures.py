"""Figures of one run, and of methods side by side, by matplotlib, which the extra `report` installs."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .canvas import INK, heat_map, legend, mark, metric_panels, plot, save, scale, scatter, style
from .comparison import LEARNED, Group, GroupRoutes, setting_rows
from .data import BY_TASK, RunData
from .routes import THRESHOLD, Routes

__all__ = ["learning", "write_groups", "write_run"]

BALANCE = {"route_temperature": BY_TASK["route_temperature"], "success": BY_TASK["success"]}


def write_run(folder: Path, run: RunData, routes: Routes | None, points: NDArray[np.float64] | None) -> list[Path]:
    """Writes the figures of one run."""
    figures = {
        "learning": learning(run),
        "balance": learning(run, BALANCE) if run.curves("route_temperature") else None,
        "modules": _modules(run, routes),
        "plasticity": _plasticity(run),
    }
    if routes is not None and (alone := GroupRoutes.of(Group(run.name, (run,)), {run.name: routes})) is not None:
        figures |= {"similarity": _similarity([alone]), "sparsity": _run_sparsity(routes)}
        figures["paths"] = None if points is None else _paths([alone], {run.name: points})
    return save(folder, figures)


def learning(run: RunData, metrics: dict[str, str] = BY_TASK) -> Figure | None:
    """Draws a panel for each metric, with a line for each task."""
    found = {metric: curves for metric in metrics if (curves := run.drawn(metric))}
    if not found:
        return None
    figure, axes = metric_panels(list(found))
    for axis, (metric, curves) in zip(axes, found.items(), strict=True):
        for task, curve in curves.items():
            plot(axis, curve.steps, curve.values, run.tasks.index(task), task)
        axis.set_title(metrics[metric], loc="left", fontsize="medium")
        scale(axis, metric)
    legend(figure, axes)
    return figure


def _plasticity(run: RunData) -> Figure | None:
    """Draws dormant units, the rank of features, and the flow through the nodes of each critic, over steps."""
    panels = run.of_critics()
    if not panels:
        return None
    figure, axes = metric_panels(list(panels))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for number, (label, curve) in enumerate(curves.items()):
            plot(axis, curve.steps, curve.values, number, label if len(curves) > 1 else "_")  # "_": not in the legend
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
    if any(len(curves) > 1 for curves in panels.values()):
        legend(figure, axes)
    return figure


def _modules(run: RunData, routes: Routes | None) -> Figure | None:
    """Draws the number of modules that each task uses, with its deviation, the hardest task first (D2R, Fig. 8)."""
    used, success, source, returns = None, None, "", np.zeros(len(run.tasks))
    spread, over = np.zeros(len(run.tasks)), "episodes"
    if run.result is not None and run.result.modules_used is not None:
        used, success, source = run.result.modules_used.mean(axis=1), run.result.success_rates, "evaluation"
        spread, returns = run.result.modules_used.std(axis=1), run.result.returns.mean(axis=1)
    elif routes is not None and routes.route is not None:
        used, source = routes.summary().num_used.numpy(), f"{routes.first_success.shape[1]} episodes"
        success = (routes.first_success > 0).mean(axis=1)
    if used is None or success is None:
        return None
    if routes is not None and routes.route is not None:  # episodes vary less than their steps
        counts, over = routes.modules_used().double(), f"{len(routes.task) // len(run.tasks)} samples of a task"
        spread = np.array([float(counts[routes.task == task].std(correction=0)) for task in range(len(run.tasks))])
    order = np.lexsort((returns, success))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(order)), used[order], color=INK)
    axis.errorbar(range(len(order)), used[order], yerr=spread[order], fmt="none", ecolor="grey", capsize=2)
    for place, task in enumerate(order):
        top = (place, used[task] + spread[task])
        axis.annotate(f"{success[task]:.2f}", top, ha="center", va="bottom", fontsize="x-small")
    axis.margins(y=0.12)
    axis.set_xticks(range(len(order)), [run.tasks[task] for task in order], rotation=60, ha="right", fontsize="small")
    axis.set_ylabel("modules used")
    title = f"modules used, the output among them; success above, the hardest task first ({source})"
    axis.set_title(f"{title}\nwith deviations over {over}", loc="left", fontsize="medium")
    return figure


def _run_sparsity(routes: Routes) -> Figure:
    """Draws the number of sources that each node reads, and a histogram of the weights (D2R, Fig. 10)."""
    assert routes.topology is not None
    assert routes.route is not None
    topology, sources = routes.topology, routes.sources().double().numpy()
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    nodes = list(topology.destinations)
    allowed = [len(topology.parents[node]) for node in nodes]
    left.step(nodes, allowed, where="mid", color="grey", label="sources it may read")
    left.errorbar(nodes, sources.mean(axis=0), yerr=sources.std(axis=0), fmt="o", color=INK, label="mean and deviation")
    left.set(xlabel="node", ylim=(0, None))
    left.set_title(f"sources that weigh more than {THRESHOLD}", loc="left", fontsize="medium")
    left.legend(fontsize="small")
    weights = topology.to_edges(routes.route.weights).flatten().numpy()
    right.hist(weights, bins=np.linspace(0, 1, 41), color=INK, weights=np.full(len(weights), 1 / len(weights)))
    right.set(xlabel="weight", yscale="log")
    below = (weights <= THRESHOLD).mean()
    right.set_title(f"share of edges; {below:.0%} weigh at most {THRESHOLD}", loc="left", fontsize="medium")
    return figure


LABELLED = 24
"""The largest number of bars without intervals that are labelled with their values."""

TOO_NARROW = ", too narrow for few seeds"
"""The warning about intervals over seeds in titles."""

LETTERS = 50
"""The largest number of letters in a line of a label beside a bar."""

WIDE = 10
"""The axis of a setting is logarithmic if its largest value is this many times the smallest one."""


def write_groups(
    folder: Path,
    groups: Sequence[Group],
    group_routes: Sequence[GroupRoutes],
    points: Mapping[str, NDArray[np.float64]],
) -> list[Path]:
    """Writes the figures that compare methods: curves, success and modules by task, and the similarity of routes."""
    figures = {
        "curves": _bands(groups),
        "success": _by_task(groups, "success", "interval", "success"),
        "settings": _settings(groups),
        "modules_by_method": _by_task(groups, "modules_used", "modules_interval", "modules used"),
        "learned": _learned(groups),
        "similarity_by_method": _similarity(group_routes),
        "sparsity_by_method": _sparsity(groups, group_routes),
        "paths_by_method": _paths(group_routes, points),
    }
    return save(folder, figures)


def _bands(groups: Sequence[Group]) -> Figure | None:
    """Draws a panel for each metric, with a line and its interval over seeds for each method."""
    over = "tasks and seeds" if any(len(group.runs) > 1 for group in groups) else "tasks"
    bands = {
        metric: [(number, band) for number, group in enumerate(groups) if (band := group.band(metric)) is not None]
        for metric in BY_TASK
    }
    found = {metric: lines for metric, lines in bands.items() if lines}
    if not found:
        return None
    figure, axes = metric_panels(list(found))
    for axis, (metric, lines) in zip(axes, found.items(), strict=True):
        for number, band in lines:
            plot(axis, band.steps, band.center, number, _label(groups[number]))
            axis.fill_between(band.steps, band.low, band.high, color=f"C{number % 10}", alpha=0.2, linewidth=0)
            if len(band.steps) == 1:
                axis.vlines(band.steps, band.low, band.high, color=f"C{number % 10}", linewidth=0.8)
        axis.set_title(f"{BY_TASK[metric]}: mean over {over}", loc="left", fontsize="medium")
        scale(axis, metric)
    legend(figure, axes)
    return figure


def _by_task(groups: Sequence[Group], value: str, interval: str, name: str) -> Figure | None:
    """Draws the bars of one value by task, for methods side by side, the hardest task first."""
    rows = [[row for row in group.task_rows() if row[value] is not None] for group in groups]
    filled = [(number, bars) for number, bars in enumerate(rows) if bars]
    if not filled:
        return None
    reached: dict[str, list[tuple[float, float]]] = {}
    for _, bars in filled:
        for row in bars:
            reached.setdefault(row["task"], []).append((row["success"], row["return"]))
    # Of tasks with the same success, the one with the smaller return is harder.
    tasks = sorted(reached, key=lambda task: np.mean(reached[task], axis=0).tolist())
    figure = Figure(figsize=(max(9, 0.3 * len(tasks) * len(filled)), 4), layout="constrained")
    axis: Any = figure.subplots()
    width = 0.8 / len(filled)
    above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": "x-small"}
    over = {
        row["interval_over"] if value == "success" else "seeds" for _, bars in filled for row in bars if row[interval]
    }
    for place, (number, bars) in enumerate(filled):
        x = np.array([tasks.index(row["task"]) for row in bars]) + (place - (len(filled) - 1) / 2) * width
        y = np.array([row[value] for row in bars])
        label = f"{_label(groups[number])}, {_counted(len(groups[number].scores))}"
        with_interval = [i for i, row in enumerate(bars) if row[interval] is not None]
        if over and not with_interval:
            label += ", no interval"
        elif "episodes" in over and any(row["interval_over"] == "episodes" for row in bars):
            label += ", interval over episodes"
        color = f"C{number % 10}"
        axis.bar(x, y, width, color=color, label=label)
        few = not with_interval and len(tasks) * len(filled) <= LABELLED
        for bar_x, bar_y in zip(x, y, strict=True):
            if few or bar_y == 0:  # a bar of zero cannot be seen
                axis.annotate(f"{bar_y:.3g}", (bar_x, bar_y), color=color, **above)
        if with_interval:
            xs, ys = x[with_interval], y[with_interval]
            sides = np.abs(np.array([bars[i][interval] for i in with_interval]) - ys[:, None]).T
            axis.errorbar(xs, ys, yerr=sides, fmt="none", ecolor="black", capsize=2, elinewidth=0.8)
    axis.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", fontsize="small")
    axis.set_ylim(0, 1.02 if value == "success" else None)
    axis.set_ylabel(name)
    intervals = "; 95 % intervals" + TOO_NARROW * ("seeds" in over) if over else ""
    axis.set_title(f"{name} in each task, the hardest first{intervals}", loc="left")
    legend(figure, [axis])
    return figure


def _settings(groups: Sequence[Group]) -> Figure | None:
    """Draws success against the one setting that differs, or a bar for each group (D2R, Fig. 7, 11 and 12)."""
    if not (rows := setting_rows(groups)):
        return None
    success = np.array([row["success"] for row in rows])
    known = np.array([row["low"] is not None for row in rows])
    ends = np.array([(row["low"], row["high"]) if row["low"] is not None else (np.nan,) * 2 for row in rows])
    setting = rows[0]["setting"]
    figure = Figure(figsize=(9, 4 if setting else 1.2 + 0.45 * len(rows)), layout="constrained")
    axis: Any = figure.subplots()
    if setting:
        values = np.array([row["value"] for row in rows])
        axis.plot(values, success, marker="o", color=INK)
        axis.fill_between(values, *ends.T, color=INK, alpha=0.2, linewidth=0)
        axis.vlines(values[known], *ends[known].T, color=INK, linewidth=0.8)  # a band has no width at a single value
        if values[0] > 0 and values[-1] >= WIDE * values[0]:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(values, [f"{row['value']:.6g}\n{_counted(row['seeds'])}" for row in rows])
        axis.tick_params(axis="x", labelsize="small")
        scale(axis, "evaluation")
        axis.set(xlabel=setting, ylabel="success")
    else:
        numbers = [group.name for group in groups]
        colors = [f"C{numbers.index(row['method']) % 10}" for row in rows]
        places = np.arange(len(rows))
        axis.barh(places, success, color=colors)
        sides = np.abs(ends - success[:, None])[known].T
        axis.errorbar(success[known], places[known], xerr=sides, fmt="none", ecolor="black", capsize=2, elinewidth=0.8)
        for place, row, color in zip(places, rows, colors, strict=True):
            if row["low"] is None or row["success"] == 0:  # a bar of zero cannot be seen
                spot: dict[str, Any] = {"xytext": (2, 0), "textcoords": "offset points", "va": "center"}
                axis.annotate(f"{row['success']:.3g}", (row["success"], place), color=color, fontsize="x-small", **spot)
        labels = [f"{row['method']}, {_counted(row['seeds'])}" for row in rows]
        if known.any():
            labels = [f"{label}{', no interval' * (not drawn)}" for label, drawn in zip(labels, known, strict=True)]
        axis.set_yticks(places, [_plain(textwrap.fill(label, LETTERS)) for label in labels], fontsize="small")
        axis.invert_yaxis()
        axis.set(xlim=(0, 1.02), xlabel="success")
    over = "tasks and seeds" if known.any() else "tasks"
    intervals = "; 95 % intervals" + TOO_NARROW if known.any() else ""
    figure.suptitle(f"success: mean over {over}{intervals}", x=0.02, ha="left")
    return figure


def _learned(groups: Sequence[Group]) -> Figure | None:
    """Draws the modules that tasks use against the steps until they were learned, a point for each task and run."""
    found = [(number, group, rows) for number, group in enumerate(groups) if (rows := group.learned_rows())]
    if not found:
        return None
    end = max(run.last_step or 0.0 for _, group, _ in found for run in group.runs)
    never = 1.1 * end  # to the right of all steps
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis: Any = figure.subplots()
    for number, group, rows in found:
        late = [never if row["learned"] is None else row["learned"] for row in rows]
        used = [row["modules_used"] for row in rows]
        correlations = group.late_correlations()
        center = f"; rank correlation {', '.join(f'{value:.2f}' for value in correlations)}" if correlations else ""
        axis.scatter(late, used, label=f"{_label(group)}{center}", alpha=0.7, **mark(number))
    if any(row["learned"] is None for _, _, rows in found for row in rows):
        axis.axvline(1.05 * end, color="grey", linewidth=0.8)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        axis.annotate("never", (never, 1), fontsize="small", **place)
    axis.set_xticks([tick for tick in MaxNLocator().tick_values(0, end) if tick <= end])
    axis.set(xlabel=f"steps of each task until {LEARNED:.0%} of the newest episodes succeed", ylabel="modules used")
    axis.set_title("modules used, the output among them, and when a task was learned", loc="left", pad=16)
    legend(figure, [axis])
    return figure


def _similarity(group_routes: Sequence[GroupRoutes]) -> Figure | None:
    """Draws the similarity of the routes of tasks, a mean over seeds, in a panel for each method."""
    group_routes = [routes for routes in group_routes if len(routes.group.tasks) > 1]
    if not group_routes:
        return None
    size, columns = max(4.5, 0.3 * max(len(routes.group.tasks) for routes in group_routes)), min(3, len(group_routes))
    lines = -(-len(group_routes) // columns)
    figure = Figure(figsize=((size + 1) * columns + 1, (size + 0.5) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, routes in zip(axes, group_routes, strict=False):
        image = heat_map(axis, routes.similarity.mean(axis=0), routes.group.tasks)
        row = routes.row()
        axis.set_title(
            f"{_named(routes)}\n{_with_interval('IQM', row['similarity'], row['similarity_interval'])}", loc="left"
        )
    for axis in axes[len(group_routes) :]:
        axis.set_axis_off()
    seeds = max(len(routes.routes) for routes in group_routes) > 1
    over = ("mean over seeds, ", " and seeds") if seeds else ("", "")
    figure.suptitle(f"similarity of routes (weighted Jaccard)\n{over[0]}IQM over pairs of tasks{over[1]}")
    figure.colorbar(image, ax=axes.tolist(), shrink=0.5)
    return figure


def _sparsity(groups: Sequence[Group], group_routes: Sequence[GroupRoutes]) -> Figure | None:
    """Draws the number of sources that nodes read (D2R, Fig. 10), with intervals over seeds."""
    group_routes = [routes for routes in group_routes if routes.sparsity_rows()]
    if not group_routes:
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis: Any = figure.subplots()
    for routes in group_routes:
        number = groups.index(routes.group)  # a method has the same colour in all figures
        rows, drawn = routes.sparsity_rows(), routes.row()
        nodes, read = [row["node"] for row in rows], np.array([row["iqm"] for row in rows])
        ends = np.array([(row["low"], row["high"]) if row["low"] is not None else (row["iqm"],) * 2 for row in rows])
        unread = _with_interval("", 100 * drawn["edges_unread"], drawn["edges_unread_interval"], scale=100, digits=0)
        label = f"{_named(routes)}:{unread} % of edges are not read"
        errors = np.abs(ends - read[:, None]).T
        look = {**style(number), **mark(number)}
        axis.errorbar(nodes, read, yerr=errors, markersize=4, capsize=2, label=label, **look)
    axis.set(xlabel="node", ylim=(0, None))
    over = ": IQM over seeds" if max(len(routes.routes) for routes in group_routes) > 1 else ""
    axis.set_title(f"sources that weigh more than {THRESHOLD}{over}", loc="left", fontsize="medium")
    figure.legend(fontsize="small", loc="outside lower left")
    return figure


def _paths(group_routes: Sequence[GroupRoutes], points: Mapping[str, NDArray[np.float64]]) -> Figure | None:
    """Draws routes on a plane, in a row of panels for each method and a panel for each seed: places have no mean."""
    routed = [(routes, [name for name in routes.routes if name in points]) for routes in group_routes]
    routed = [(routes, names) for routes, names in routed if names]
    if not routed:
        return None
    columns = max(len(names) for _, names in routed)
    tasks = list(dict.fromkeys(task for routes, _ in routed for task in routes.group.tasks))
    figure = Figure(figsize=(3 * columns + 2.5, 3 * len(routed)), layout="constrained")
    axes = figure.subplots(len(routed), columns, squeeze=False)
    for line, (routes, names) in zip(axes, routed, strict=True):
        seeds = {run.name: run.run.configuration.seed for run in routes.group.runs}
        for axis, name in zip(line, names, strict=False):
            scatter(axis, routes.group.tasks, points[name], tasks, size=150.0)
            axis.set_title(f"{_label(routes.group)}, seed {seeds[name]}", loc="left", fontsize="small")
        for axis in line[len(names) :]:
            axis.set_axis_off()
    for handle in legend(figure, axes.flat).legend_handles:
        handle.set_sizes([30])
    figure.suptitle("t-SNE of routes\nlarger ones were taken more often", x=0.02, ha="left")
    return figure


def _label(group: Group) -> str:
    """The name of a group as text of a figure: matplotlib has no legend for a first "_"."""
    return " " * group.name.startswith("_") + _plain(group.name)


def _plain(text: str) -> str:
    """A text in which matplotlib does not read "$" as maths."""
    return text.replace("$", r"\$")


def _named(routes: GroupRoutes) -> str:
    return f"{_label(routes.group)}, {_counted(len(routes.routes))}"


def _counted(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def _with_interval(
    name: str, center: float, interval: Sequence[float] | None, scale: float = 1, digits: int = 2
) -> str:
    ends = "" if interval is None else " [" + ", ".join(f"{scale * end:.{digits}f}" for end in interval) + "]"
    return f"{name} {center:.{digits}f}{ends}"
