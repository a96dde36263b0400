"""Figures of one run by matplotlib, which the extra `report` brings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .canvas import INK, heat_map, legend, metric_panels, save, scale, scatter, style
from .evidence import BY_TASK, Evidence
from .watching import THRESHOLD, Routes

__all__ = ["learning", "write_run"]

BALANCE = {"route_temperature": BY_TASK["route_temperature"], "success": BY_TASK["success"]}


def write_run(folder: Path, one: Evidence, routes: Routes | None, points: NDArray[np.float64] | None) -> list[Path]:
    """Writes the figures of one run.

    Args:
        folder: Where they are written.
        one: What the files of the run tell.
        routes: What its policy does.
        points: The routes on a plane, as :func:`~dynroute_metaworld.report.watching.embed` places them.
    """
    figures = {
        "learning": learning(one),
        "balance": learning(one, BALANCE) if one.curves("route_temperature") else None,
        "modules": _modules(one, routes),
    }
    if routes is not None and routes.route is not None:
        figures |= {"similarity": _similarity(routes), "sparsity": _sparsity(routes)}
        figures["paths"] = None if points is None else _paths(routes.tasks, points)
    return save(folder, figures)


def learning(one: Evidence, metrics: dict[str, str] = BY_TASK) -> Figure | None:
    """A panel for each metric, a line for each task.

    Args:
        one: What the files of the run tell.
        metrics: The metrics, and the titles of their panels.
    """
    found = {metric: curves for metric in metrics if (curves := one.curves(metric))}
    if not found:
        return None
    figure, axes = metric_panels(list(found))
    for axis, (metric, curves) in zip(axes, found.items(), strict=True):
        for task, curve in curves.items():
            marker = "." if len(curve.steps) < 2 else ""
            axis.plot(curve.steps, curve.values, label=task, marker=marker, **style(one.tasks.index(task)))
        axis.set_title(metrics[metric], loc="left", fontsize="medium")
        scale(axis, metric)
    legend(figure, axes)
    return figure


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
    axis.bar(range(len(order)), used[order], color=INK)
    for place, task in enumerate(order):
        axis.annotate(f"{success[task]:.2f}", (place, used[task]), ha="center", va="bottom", fontsize="x-small")
    axis.margins(y=0.12)
    axis.set_xticks(range(len(order)), [one.tasks[task] for task in order], rotation=60, ha="right", fontsize="small")
    axis.set_ylabel("modules used")
    axis.set_title(f"modules used, the output among them; success above, the hardest task first ({source})", loc="left")
    return figure


def _paths(tasks: Sequence[str], points: NDArray[np.float64]) -> Figure:
    """Routes on a plane."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis: Any = figure.subplots()
    scatter(axis, tasks, points, tasks)
    axis.set_title("t-SNE of routes; the size is how often a task took it", loc="left")
    for handle in legend(figure, [axis]).legend_handles:
        handle.set_sizes([30])
    return figure


def _similarity(routes: Routes) -> Figure:
    """How much of their routes tasks share."""
    size = max(5.0, 0.35 * len(routes.tasks))
    figure = Figure(figsize=(size + 2.5, size + 1), layout="constrained")
    axis: Any = figure.subplots()
    image = heat_map(axis, routes.similarity().double().numpy(), routes.tasks)
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
