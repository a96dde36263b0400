"""One HTML page about runs: success, curves, routes beside frames, and provenance.

It is written by hand: it is one file that opens offline, and a screen reader can read it.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from dynroute import Route, Topology
from dynroute.files import check_file_place, writing_file
from dynroute.inspect import draw

from .analysis import Analysis, default_output, inspect_runs
from .comparison import Group
from .data import BY_TASK, SHARES, Curve, RunData, unit_of
from .drawings import data_uri, draw_routes
from .routes import Routes

__all__ = [
    "ROOM",
    "box",
    "curve_controls",
    "details",
    "entries_of",
    "graph_of",
    "number",
    "route_controls",
    "span",
    "table",
    "views_of",
    "write_report",
]


def number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals; a dash for None.

    Example:
        >>> from dynroute_metaworld.report.page import number
        >>> number(0.5), number(None)
        ('0.50', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def span(interval: Sequence[float] | None) -> str:
    """An interval; a dash for None.

    Example:
        >>> from dynroute_metaworld.report.page import span
        >>> span((0.25, 1.0))
        '0.25 to 1.00'
    """
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def box(content: str, label: str) -> str:
    """A box in which wide content scrolls, also by the keyboard; the page itself stays as wide as the screen."""
    return f'<div class="box" role="region" aria-label="{escape(label)}" tabindex="0">{content}</div>'


def details(title: str, content: str, *, opened: bool = False) -> str:
    """Content that a click on its title opens and closes."""
    return f"<details{' open' * opened}><summary>{escape(title)}</summary>{content}</details>"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], *, raw: int | None = None, kind: str = ""
) -> str:
    """A table whose first column names its rows. All text is escaped, except the column `raw`."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{cell if i == raw else escape(str(cell))}</td>" for i, cell in enumerate(others, start=1))
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    parts = [f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>", "<tbody>", *lines]
    return box(f'<table class="{kind or "figures"}">{"".join(parts)}</tbody></table>', caption)


ROOM = 4_000_000
"""About how many bytes all frames of a page may have together."""


def views_of(analysis: Analysis) -> list[dict[str, Any]]:
    """The curves of the page: of methods side by side, and of the tasks and critics of each run."""
    views: list[dict[str, Any]] = []
    over = "tasks and seeds" if any(len(group.runs) > 1 for group in analysis.groups) else "tasks"
    if len(analysis.runs) > 1:
        for metric, about in BY_TASK.items():
            lines = []
            for group in analysis.groups:
                if (band := group.band(metric)) is not None:
                    line = {"label": group.name, "x": _round(band.steps), "y": _round(band.center)}
                    has_band = len(group.runs) > 1
                    lines.append({**line, "low": _round(band.low), "high": _round(band.high)} if has_band else line)
            if lines:
                views.append(_view(f"methods, mean over {over}", f"Means over {over}", metric, about, lines))
    for run in analysis.runs:
        for metric, about in BY_TASK.items():
            if lines := _lines(run.drawn(metric, POINTS)):
                views.append(_view(run.name, _of(run), metric, about, lines))
        for about, curves in run.of_critics(POINTS).items():
            views.append(_view(run.name, _of(run), "plasticity", about, _lines(curves)))
    return views


def _lines(curves: dict[str, Curve]) -> list[dict[str, Any]]:
    return [{"label": name, "x": _round(curve.steps), "y": _round(curve.values)} for name, curve in curves.items()]


def _view(group: str, of: str, metric: str, about: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    limits = {"range": [0, 1]} if metric in SHARES else {}
    return {"group": group, "of": of, "title": about, "unit": unit_of(metric), "lines": lines, **limits}


def _of(run: RunData) -> str:
    """The run and its method, for a sentence below a curve or a route."""
    return f"{run.name} ({run.run.configuration.method})"


def _round(values: Any) -> list[float]:
    """Numbers rounded to five digits, which a picture needs."""
    return [float(f"{value:.5g}") if abs(value) < 1e5 else float(round(value)) for value in values.tolist()]


def _choices(items: Sequence[tuple[str, str]], selected: int = 0) -> str:
    """The options of a select from pairs of a group and a title, sorted into groups."""
    options: dict[str, list[str]] = {}
    for i, (group, title) in enumerate(items):
        chosen = " selected" * (i == selected)
        options.setdefault(group, []).append(f'<option value="{i}"{chosen}>{escape(title)}</option>')
    return "".join(
        f'<optgroup label="{escape(group)}">{"".join(inside)}</optgroup>' for group, inside in options.items()
    )


def curve_controls(views: list[dict[str, Any]]) -> str:
    """The controls that choose a curve, and the place where it is drawn."""
    if not views:
        return "<p>There are no logged curves.</p>"
    curves = (i for i, view in enumerate(views) if any(len(line["x"]) > 1 for line in view["lines"]))
    choices = _choices([(view["group"], view["title"]) for view in views], selected=next(curves, 0))
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
    """The graphs, the moments of an episode for each task and policy, and sentences about what is left out."""
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
            first, run = int(routes.first_success[i, 0]), analysis.run(name)
            entries.append(
                {
                    "run": name,
                    "of": f"{_of(run)}, {task}",
                    "task": task,
                    "graph": graph,
                    "horizon": run.run.configuration.horizon,
                    "solved": first if first > 0 else None,
                    "moments": moments,
                }
            )
    return graphs, entries, ["Some frames are left out, since the page would be too large."] if left_out else []


def _sparse(routes: Routes, route: Route | None) -> list[float] | None:
    """The chosen edges and their weights, alternating."""
    if routes.topology is None or route is None:
        return None
    path, weights = routes.topology.to_edges(route.path), routes.topology.to_edges(route.weights)
    chosen = path.nonzero().flatten().tolist()
    return [part for i in chosen for part in (i, max(round(float(weights[i]), 3), 0.001))]


def graph_of(topology: Topology) -> dict[str, Any]:
    """The graph as the script of the page reads it."""
    edges = [(j, node) for node in topology.destinations for j in topology.parents[node]]
    return {"nodes": topology.num_nodes, "edges": edges}


def route_controls(analysis: Analysis, graphs: list[Topology], entries: list[dict[str, Any]]) -> str:
    """The controls that choose a task and a step, the frame and the graph, and the mean routes."""
    means = "".join(
        details(f"Mean routes of {name}", f'<div class="mean">{box(draw_routes(routes), "Mean routes of tasks")}</div>')
        for name, routes in analysis.routes.items()
        if routes.route is not None
    )
    if not entries:
        return f"<p>There are neither routes nor frames to show; the reasons stand under Notes.</p>{means}"
    templates = "".join(
        f'<template id="graph-{i}">{draw(graph, graph.allowed.float(), title="Route at this step")}</template>'
        for i, graph in enumerate(graphs)
    )
    choices = _choices([(entry["run"], entry["task"]) for entry in entries])
    return (
        "<p>An episode of the policy of the last checkpoint. Nodes that run are filled, and edges are darker with "
        "larger weights. Nodes that no node reads are hollow, and their edges dashed.</p>"
        f'{templates}<div class="controls"><label for="task">Task<select id="task">{choices}</select></label></div>'
        '<figure><div class="moment"><img id="frame" alt="" width="240" height="240" hidden>'
        '<div class="graph" id="graph" role="region" aria-label="Route graph" tabindex="0"></div></div>'
        '<figcaption><div class="wide"><label for="moment">Step of the episode'
        '<input type="range" id="moment" min="0" max="0" value="0"></label></div>'
        f'<output id="state" for="task moment" aria-live="polite"></output></figcaption></figure>{means}'
    )


POINTS = 400
"""The largest number of points of a curve on the page."""


def write_report(
    folders: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    episodes: int = 2,
    frames: bool = True,
    device: str = "auto",
    tell: Callable[[str], object] = print,
) -> Path:
    """Writes an HTML page about one run, or about several side by side; it opens without a network.

    The routes are from the first run of each method that has a checkpoint.

    Args:
        folders: The directories of the runs.
        output: The file; ``report.html`` in the run, or here if there are several.
        episodes: The number of episodes of each task to take routes from.
        frames: Whether to show pictures of the scene beside routes, if OpenGL works.
        device: The device of the networks.
        tell: Called with a sentence before each step that takes long, and for each part that is missing.

    Returns:
        The file.
    """
    path = default_output(folders, "report.html") if output is None else Path(output)
    if output is not None or path.parent.is_dir():  # else a run is missing, which is said below
        check_file_place("output", path)
    chosen: dict[str, Any] = {"episodes": episodes, "frames": frames, "device": device}
    analysis = inspect_runs(folders, every=False, tell=tell, **chosen)
    text, notes = page(analysis)
    with writing_file(path) as part:
        part.write_text(text, encoding="utf-8")
    for note in notes:
        tell(note)
    return path


def page(analysis: Analysis) -> tuple[str, list[str]]:
    """The text of the page, and sentences about what it lacks."""
    runs, groups = analysis.runs, analysis.groups
    title = f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    views, (graphs, entries, left_out) = views_of(analysis), entries_of(analysis)
    data = json.dumps(
        {"views": views, "graphs": [graph_of(graph) for graph in graphs], "entries": entries}, allow_nan=False
    )
    notes = list(dict.fromkeys([*analysis.notes, *left_out]))
    missing = "".join(f"<li>{escape(note)}</li>" for note in notes)
    own = files(__package__)
    parts = {
        "title": escape(title),
        "lede": escape(_lede(analysis)),
        "style": own.joinpath("page.css").read_text(encoding="utf-8"),
        "missing": f'<section aria-labelledby="missing-head" class="notes"><h2 id="missing-head">Notes</h2>'
        f"<ul>{missing}</ul></section>"
        if notes
        else "",
        "summary": _summary(analysis),
        "tasks": "".join(_tasks(group) for group in groups),
        "curves": curve_controls(views),
        "routes": route_controls(analysis, graphs, entries),
        "provenance": "".join(_provenance(run, opened=len(runs) == 1) for run in runs),
        "data": data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "script": own.joinpath("page.js").read_text(encoding="utf-8"),
    }
    # Inserted text is not searched again: a task may be called {{data}}.
    pieces = own.joinpath("page.html").read_text(encoding="utf-8").split("{{")
    filled = (parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))
    return pieces[0] + "".join(filled), notes


def _lede(analysis: Analysis) -> str:
    names = ", ".join(group.name for group in analysis.groups)
    benchmarks = {run.run.configuration.benchmark.replace(",", ", ") for run in analysis.runs}
    where = f" on {benchmarks.pop()}" if len(benchmarks) == 1 else ""
    return f"{names}{where}. All figures come from the files of the runs and from episodes of their policies."


def _summary(analysis: Analysis) -> str:
    rows = []
    for row in (group.row() for group in analysis.groups):
        several, interval = row["evaluated"] > 1, row["iqm_interval"]
        count = row["benchmark"].count(",") + 1
        cells = [
            row["benchmark"] if count == 1 else f"{count} tasks",
            row["goals"],
            ", ".join(map(str, row["seeds"])),
            number(row["mean"]),
        ]
        cells += [number(row["iqm"]), span(interval) if several else "one seed" if row["evaluated"] else "-"]
        rows.append([row["method"], *cells, number(row["modules_used"], 1), number(row["minutes"], 1)])
    heads = ["method", "benchmark", "goals", "seeds", "success", "IQM", "95 % interval", "modules used", "minutes"]
    caption = (
        "Success is a mean over tasks and seeds; the interval is for the interquartile mean (IQM) over tasks and "
        "seeds, by a bootstrap. Minutes are unknown for runs that were killed."
    )
    return table(caption, heads, rows)


def _tasks(group: Group) -> str:
    name, figures, seeds = group.name, group.task_rows(), len(group.scores)
    if not figures:
        return f"<p>{escape(name)}: not evaluated yet.</p>"
    how = "; the interval is Wilson's, over the episodes of one seed"
    if seeds > 1:
        how = f"; the interval is a bootstrap over {seeds} seeds, which is too narrow for few seeds"
    elif all(row["interval"] is None for row in figures):
        how = ""
    rows: list[list[Any]] = []
    for row in figures:
        cells = [row["task"], _bar(row["success"]), span(row["interval"]), number(row["return"], 1)]
        rows.append([*cells, number(row["first_success"], 0), number(row["modules_used"], 1), row["episodes"]])
    heads = ["task", "success", "95 % interval", "return", "first success at step", "modules used", "episodes"]
    return table(f"{name}: success by task, in the newest evaluation{how}", heads, rows, raw=1)


def _bar(share: float) -> str:
    width = f'<span style="width:{100 * share:.0f}%"></span>'
    return f'<span class="bar" aria-hidden="true">{width}</span>{number(share)}'


def _provenance(run: RunData, *, opened: bool) -> str:
    settings = [[name, json.dumps(value)] for name, value in dataclasses.asdict(run.run.configuration).items()]
    parts = [table("Configuration, see dynroute train --help", ["option", "value"], settings, kind="words")]
    for i, session in enumerate(run.sessions, start=1):
        rows = []
        for name, value in session.items():
            inside = value.items() if isinstance(value, dict) else [("", value)]
            rows += [[f"{name} {inner}".strip(), str(shown)] for inner, shown in inside]
        parts.insert(-1, table(f"Session {i} of {len(run.sessions)}", ["what", "value"], rows, kind="words"))
    return details(str(run.run.folder.name if opened else run.name), "".join(parts), opened=opened)
