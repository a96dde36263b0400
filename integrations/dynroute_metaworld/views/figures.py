"""Figures of runs by matplotlib, which the extra `report` brings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from matplotlib.figure import Figure  # unlike pyplot, it needs no display
except ImportError as error:
    raise ImportError("figures need matplotlib; type: pip install 'dynroute[report]'") from error

from .comparison import Group
from .evidence import BY_TASK, Evidence, unit_of
from .watching import THRESHOLD, Routes

__all__ = ["learning", "write_groups", "write_run"]

BALANCE = {"route_temperature": BY_TASK["route_temperature"], "success": BY_TASK["success"]}


def write_run(folder: Path, one: Evidence, routes: Routes | None, points: NDArray[np.float64] | None) -> list[Path]:
    """Writes the figures of one run.

    Args:
        folder: Where they are written.
        one: What the files of the run tell.
        routes: What its policy does.
        points: The routes on a plane, as :func:`~dynroute_metaworld.views.watching.embed` places them.
    """
    figures = {
        "learning": learning(one),
        "balance": learning(one, BALANCE) if one.curves("route_temperature") else None,
        "modules": _modules(one, routes),
    }
    if routes is not None and routes.route is not None:
        figures |= {"similarity": _similarity(routes), "sparsity": _sparsity(routes)}
        figures["paths"] = None if points is None else _paths(routes.tasks, points)
    return _save(folder, figures)


def write_groups(folder: Path, groups: Sequence[Group]) -> list[Path]:
    """Writes the figures that compare methods: curves, and the success and the modules used of each task.

    Args:
        folder: Where they are written.
        groups: The runs, those that differ in their seeds alone taken together.
    """
    figures = {
        "curves": _bands(groups),
        "success": _by_task(groups, "success", "interval", "success of each task"),
        "modules_by_method": _by_task(groups, "modules_used", "modules_interval", "nodes used by each task"),
    }
    return _save(folder, figures)


def _save(folder: Path, figures: dict[str, Figure | None]) -> list[Path]:
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(path := folder / f"{name}.png", dpi=110)
            written.append(path)
    return written


def _panels(metrics: Sequence[str], height: float = 2.4) -> tuple[Figure, Any]:
    """A panel for each metric; those over the same are aligned, and the last of them tells what that is."""
    figure = Figure(figsize=(9, height * len(metrics)), layout="constrained")
    units = [unit_of(metric) for metric in metrics]
    axes = figure.subplots(len(metrics), 1, sharex=len({*units}) == 1, squeeze=False)[:, 0]
    for axis, unit, below in zip(axes, units, [*units[1:], None], strict=True):
        if unit != below:
            axis.set_xlabel(unit)
    return figure, axes


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}


def learning(one: Evidence, metrics: dict[str, str] = BY_TASK) -> Figure | None:
    """A panel for each metric, a line for each task.

    Args:
        one: What the files of the run tell.
        metrics: The metrics, and the titles of their panels.
    """
    found = {metric: curves for metric in metrics if (curves := one.curves(metric))}
    if not found:
        return None
    figure, axes = _panels(list(found))
    for axis, (metric, curves) in zip(axes, found.items(), strict=True):
        for task, curve in curves.items():
            marker = "." if len(curve.steps) < 2 else ""
            axis.plot(curve.steps, curve.values, label=task, marker=marker, **_style(one.tasks.index(task)))
        axis.set_title(metrics[metric], loc="left", fontsize="medium")
        axis.grid(alpha=0.3)
    _legend(axes[0], len(one.tasks))
    return figure


def _legend(axis: Any, count: int) -> None:
    columns = 1 if count <= 10 else 3
    axis.legend(fontsize="small", ncols=columns, loc="upper left", bbox_to_anchor=(1, 1))


def _modules(one: Evidence, routes: Routes | None) -> Figure | None:
    """Modules used by each task, the hardest first (D2R, Fig. 8)."""
    used, success, source = None, None, ""
    if one.result is not None and one.result.modules_used is not None:
        used, success, source = one.result.modules_used.mean(axis=1), one.result.success_rates, "evaluation"
    elif routes is not None and routes.route is not None:
        used, source = routes.summary().num_used.numpy(), f"{routes.first_success.shape[1]} episodes"
        success = (routes.first_success > 0).mean(axis=1)
    if used is None or success is None:
        return None
    order = np.argsort(success, kind="stable")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(order)), used[order], color="#146e3c")
    for place, task in enumerate(order):
        axis.annotate(f"{success[task]:.2f}", (place, used[task]), ha="center", va="bottom", fontsize="x-small")
    axis.margins(y=0.12)
    axis.set_xticks(range(len(order)), [one.tasks[task] for task in order], rotation=60, ha="right", fontsize="small")
    axis.set_title(f"nodes used, the output among them; tasks by success, written above ({source})", loc="left")
    return figure


def _paths(tasks: Sequence[str], points: NDArray[np.float64]) -> Figure:
    """Routes on a plane, a colour and a sign for each task, the larger the more often it was taken."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis: Any = figure.subplots()
    sizes = 12 + 400 * points[:, 3] / np.bincount(points[:, 0].astype(int), points[:, 3])[points[:, 0].astype(int)]
    for i, task in enumerate(tasks):
        mine = points[:, 0] == i
        style = {"color": f"C{i % 10}", "marker": "osv^D"[i // 10 % 5], "edgecolors": "white", "linewidths": 0.5}
        axis.scatter(points[mine, 1], points[mine, 2], s=sizes[mine], label=task, alpha=0.7, **style)
    axis.set(xticks=[], yticks=[])
    axis.set_title("t-SNE of routes; the size is how often a task took it", loc="left")
    for handle in axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)).legend_handles:
        handle.set_sizes([30])
    return figure


def _similarity(routes: Routes) -> Figure:
    """How much of their routes tasks share."""
    shared, size = routes.similarity().numpy(), max(5.0, 0.35 * len(routes.tasks))
    figure = Figure(figsize=(size + 2.5, size + 1), layout="constrained")
    axis: Any = figure.subplots()
    image = axis.imshow(shared, cmap="Greens", vmin=0, vmax=1)
    ticks = range(len(routes.tasks))
    axis.set_xticks(ticks, routes.tasks, rotation=60, ha="right", fontsize="small")
    axis.set_yticks(ticks, routes.tasks, fontsize="small")
    if len(routes.tasks) <= 12:
        for i, row in enumerate(shared):
            for j, value in enumerate(row):
                ink = "white" if value > 0.6 else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=ink)
    axis.set_title("similarity of routes (weighted Jaccard)", loc="left")
    figure.colorbar(image, ax=axis, shrink=0.7)
    return figure


def _sparsity(routes: Routes) -> Figure:
    """How many sources each node really reads, and how the weights are distributed (D2R, Fig. 10)."""
    assert routes.topology is not None
    assert routes.route is not None
    topology, sources = routes.topology, routes.sources().double().numpy()
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    nodes = list(topology.destinations)
    left.step(nodes, [len(topology.parents[node]) for node in nodes], where="mid", color="grey", label="it may read")
    left.errorbar(
        nodes, sources.mean(axis=0), yerr=sources.std(axis=0), fmt="o", color="#146e3c", label="mean and deviation"
    )
    left.set(xlabel="node", ylim=(0, None))
    left.set_title(f"sources that weigh more than {THRESHOLD}", loc="left", fontsize="medium")
    left.legend(fontsize="small")
    weights = topology.to_edges(routes.route.weights).flatten().numpy()
    right.hist(weights, bins=np.linspace(0, 1, 41), color="#146e3c", weights=np.full(len(weights), 1 / len(weights)))
    right.set(xlabel="weight", yscale="log")
    below = (weights <= THRESHOLD).mean()
    right.set_title(f"share of edges; {below:.0%} weigh at most {THRESHOLD}", loc="left", fontsize="medium")
    return figure


def _bands(groups: Sequence[Group]) -> Figure | None:
    """A panel for each metric, a line for each method, with its interval over seeds."""
    bands = {
        metric: [(number, band) for number, group in enumerate(groups) if (band := group.band(metric)) is not None]
        for metric in BY_TASK
    }
    found = {metric: lines for metric, lines in bands.items() if lines}
    if not found:
        return None
    figure, axes = _panels(list(found))
    for axis, (metric, lines) in zip(axes, found.items(), strict=True):
        for number, band in lines:
            marker = "." if len(band.steps) < 2 else ""
            axis.plot(band.steps, band.center, label=groups[number].name, marker=marker, **_style(number))
            axis.fill_between(band.steps, band.low, band.high, color=f"C{number % 10}", alpha=0.2, linewidth=0)
        axis.set_title(f"{BY_TASK[metric]}: IQM over tasks and seeds", loc="left", fontsize="medium")
        axis.grid(alpha=0.3)
    _legend(axes[0], len(groups))
    return figure


def _by_task(groups: Sequence[Group], value: str, interval: str, title: str) -> Figure | None:
    """Bars for a figure of each task, side by side for methods, the hardest task first."""
    rows = [[row for row in group.task_rows() if row[value] is not None] for group in groups]
    known = [(number, mine) for number, mine in enumerate(rows) if mine]
    if not known:
        return None
    success: dict[str, list[float]] = {}
    for _, mine in known:
        for row in mine:
            success.setdefault(row["task"], []).append(row["success"])
    tasks = sorted(success, key=lambda task: float(np.mean(success[task])))
    figure = Figure(figsize=(max(9, 0.3 * len(tasks) * len(known)), 4), layout="constrained")
    axis: Any = figure.subplots()
    width = 0.8 / len(known)
    for place, (number, mine) in enumerate(known):
        x = np.array([tasks.index(row["task"]) for row in mine]) + (place - (len(known) - 1) / 2) * width
        y = np.array([row[value] for row in mine])
        ends = np.array([row[interval] or (row[value], row[value]) for row in mine])
        errors = np.abs(ends - y[:, None]).T
        label = f"{groups[number].name}, {len(groups[number].scores)} seeds"
        axis.bar(x, y, width, yerr=errors, color=f"C{number % 10}", label=label, capsize=2, error_kw={"linewidth": 0.8})
    axis.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", fontsize="small")
    axis.set_ylim(0, 1.02 if value == "success" else None)
    axis.set_title(f"{title}, with 95 % intervals; the hardest task first", loc="left")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure
