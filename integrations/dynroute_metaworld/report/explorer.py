"""The parts of a page that react: curves that can be picked, and a route explorer."""

from collections.abc import Sequence
from html import escape
from typing import Any

from dynroute import Route, Topology
from dynroute.inspect import draw

from .analysis import Analysis
from .drawings import data_uri, draw_routes
from .evidence import BY_TASK, SHARES, unit_of
from .tables import box, details
from .watching import Routes

__all__ = ["ROOM", "curve_controls", "entries_of", "graph_of", "route_controls", "views_of"]

ROOM = 4_000_000
"""About how many bytes all frames of a page may take together."""


def views_of(analysis: Analysis) -> list[dict[str, Any]]:
    """What can be shown as curves: methods side by side, and the tasks of each run."""
    views: list[dict[str, Any]] = []
    if len(analysis.runs) > 1:
        for metric, about in BY_TASK.items():
            lines = []
            for group in analysis.groups:
                if (band := group.band(metric)) is not None:
                    line = {"label": group.name, "x": _round(band.steps), "y": _round(band.center)}
                    known = len(group.runs) > 1
                    lines.append({**line, "low": _round(band.low), "high": _round(band.high)} if known else line)
            if lines:
                views.append(_view("methods, IQM over tasks and seeds", metric, about, lines))
    for one in analysis.runs:
        for metric, about in BY_TASK.items():
            curves = one.curves(metric).items()
            lines = [{"label": task, "x": _round(curve.steps), "y": _round(curve.values)} for task, curve in curves]
            if lines:
                views.append(_view(one.name, metric, about, lines))
    return views


def _view(group: str, metric: str, about: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    limits = {"range": [0, 1]} if metric in SHARES else {}
    return {"group": group, "title": about, "unit": unit_of(metric), "lines": lines, **limits}


def _round(values: Any) -> list[float]:
    """Numbers as short as a picture needs them."""
    return [float(f"{value:.5g}") if abs(value) < 1e5 else float(round(value)) for value in values.tolist()]


def _choices(items: Sequence[tuple[str, str]]) -> str:
    """The options of a select: pairs of a group and a title, those of a group together."""
    options: dict[str, list[str]] = {}
    for i, (group, title) in enumerate(items):
        options.setdefault(group, []).append(f'<option value="{i}">{escape(title)}</option>')
    return "".join(
        f'<optgroup label="{escape(group)}">{"".join(inside)}</optgroup>' for group, inside in options.items()
    )


def curve_controls(views: list[dict[str, Any]]) -> str:
    """What picks a curve, and where it is drawn."""
    if not views:
        return "<p>Nothing was logged that could be drawn over steps.</p>"
    choices = _choices([(view["group"], view["title"]) for view in views])
    return (
        '<div class="controls"><label for="view">Curve'
        f'<select id="view">{choices}</select></label>'
        '<label for="line">Stand out<select id="line"></select></label></div>'
        '<figure><div id="chart"></div><figcaption><div class="wide"><label for="step">Steps'
        '<input type="range" id="step" min="0" max="200" value="200"></label></div>'
        '<output id="at" for="step view line" aria-live="polite"></output><ul class="legend" id="legend"></ul>'
        "</figcaption></figure>"
    )


def entries_of(analysis: Analysis) -> tuple[list[Topology], list[dict[str, Any]], list[str]]:
    """The graphs, for each task of each policy the moments of an episode, and in sentences what is left out."""
    graphs: list[Topology] = []
    entries: list[dict[str, Any]] = []
    room, left_out = ROOM, False
    for name, routes in analysis.routes.items():
        graph = None
        if routes.topology is not None:
            if routes.topology not in graphs:
                graphs.append(routes.topology)
            graph = graphs.index(routes.topology)
        for i, task in enumerate(routes.tasks):
            moments = []
            for moment in (moment for moment in routes.moments if moment.task == i):
                frame = None
                if moment.frame is not None and room > 0:
                    frame = data_uri(moment.frame)
                    room -= len(frame)
                left_out |= moment.frame is not None and frame is None
                if frame is not None or moment.route is not None:
                    moments.append({"step": moment.step, "route": _sparse(routes, moment.route), "frame": frame})
            if not moments:
                continue
            first, group = int(routes.first_success[i, 0]), analysis.run(name)
            entries.append(
                {
                    "run": name,
                    "task": task,
                    "graph": graph,
                    "horizon": group.run.configuration.horizon,
                    "solved": first if first > 0 else None,
                    "moments": moments,
                }
            )
    return graphs, entries, ["Some frames are left out, lest the page become too large."] if left_out else []


def _sparse(routes: Routes, route: Route | None) -> list[float] | None:
    """The edges that were chosen, and what they weigh, in turn."""
    if routes.topology is None or route is None:
        return None
    path, weights = routes.topology.to_edges(route.path), routes.topology.to_edges(route.weights)
    chosen = path.nonzero().flatten().tolist()
    return [part for i in chosen for part in (i, max(round(float(weights[i]), 3), 0.001))]


def graph_of(topology: Topology) -> dict[str, Any]:
    """What the script of the page knows of a graph."""
    edges = [(j, node) for node in topology.destinations for j in topology.parents[node]]
    return {"nodes": topology.num_nodes, "edges": edges}


def route_controls(analysis: Analysis, graphs: list[Topology], entries: list[dict[str, Any]]) -> str:
    """What picks a task and a moment, the frame and the graph, and the mean routes."""
    means = "".join(
        details(f"Mean routes of {name}", f'<div class="mean">{box(draw_routes(routes), "Mean routes of tasks")}</div>')
        for name, routes in analysis.routes.items()
        if routes.route is not None
    )
    if not entries:
        return f"<p>There are neither routes nor frames to show; the reasons stand under Notes.</p>{means}"
    templates = "".join(
        f'<template id="graph-{i}">{draw(one, one.allowed.float(), title="Route at this step")}</template>'
        for i, one in enumerate(graphs)
    )
    choices = _choices([(entry["run"], entry["task"]) for entry in entries])
    return (
        "<p>What the policy of the last checkpoint does in an episode: nodes that run are filled, edges are the "
        "darker the more they weigh, and what nothing reads is hollow, its edges dashed.</p>"
        f'{templates}<div class="controls"><label for="task">Task<select id="task">{choices}</select></label></div>'
        '<figure><div class="moment"><img id="frame" alt="" width="240" height="240" hidden>'
        '<div class="graph" id="graph" role="region" aria-label="Route graph" tabindex="0"></div></div>'
        '<figcaption><div class="wide"><label for="moment">Moment of the episode'
        '<input type="range" id="moment" min="0" max="0" value="0"></label></div>'
        f'<output id="state" for="task moment" aria-live="polite"></output></figcaption></figure>{means}'
    )
