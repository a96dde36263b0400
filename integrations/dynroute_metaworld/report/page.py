"""One self-contained HTML page about runs: success, curves, routes beside frames, and where it all comes from."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from .analysis import Analysis, look, own_place
from .comparison import Group
from .evidence import Evidence
from .explorer import curve_controls, entries_of, graph_of, route_controls, views_of
from .tables import details, number, span, table

__all__ = ["write_report"]

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
    """Writes a page about one run, or about several side by side, which needs no network.

    The routes are those of the policy of each method's first run that has a checkpoint.

    Args:
        folders: The directories of the runs.
        output: The file; ``report.html`` in the run, or here if there are several.
        episodes: How many episodes of each task routes are taken from.
        frames: Whether pictures of the scene stand beside routes, where OpenGL works.
        device: Where the networks are.
        tell: Called with a sentence for each thing that takes long, and for each that is missing.

    Returns:
        The file.
    """
    if output is not None and not Path(output).parent.is_dir():
        raise FileNotFoundError(f"`output` must be in a directory that is there, got {output}.")
    path = own_place(folders, "report.html") if output is None else Path(output)
    if path.is_dir():
        raise IsADirectoryError(f"`output` must be a file, got the directory {path}; {path / 'report.html'} is one.")
    analysis = look(folders, episodes=episodes, frames=frames, limit=POINTS, device=device, every=False, tell=tell)
    text, notes = page(analysis)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    for note in notes:
        tell(note)
    return path


def page(analysis: Analysis) -> tuple[str, list[str]]:
    """The text of the page, and in sentences what it lacks."""
    runs, groups = analysis.runs, analysis.groups
    title = f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    views, (graphs, entries, left_out) = views_of(analysis), entries_of(analysis)
    data = json.dumps(
        {"views": views, "graphs": [graph_of(one) for one in graphs], "entries": entries}, allow_nan=False
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
        "provenance": "".join(_provenance(one, opened=len(runs) == 1) for one in runs),
        "data": data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "script": own.joinpath("page.js").read_text(encoding="utf-8"),
    }
    # What was put in is not looked through again: a task may be called {{data}}.
    pieces = own.joinpath("page.html").read_text(encoding="utf-8").split("{{")
    filled = (parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))
    return pieces[0] + "".join(filled), notes


def _lede(analysis: Analysis) -> str:
    names = ", ".join(group.name for group in analysis.groups)
    benchmarks = {one.run.configuration.benchmark.replace(",", ", ") for one in analysis.runs}
    where = f" on {benchmarks.pop()}" if len(benchmarks) == 1 else ""
    return f"{names}{where}. Everything here comes from the files of the runs, and from what their policies do."


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
        "Success is a mean over tasks and seeds; the interval is that of the interquartile mean (IQM) over tasks and "
        "seeds, by a bootstrap. Minutes are known of runs that were done in one go."
    )
    return table(caption, heads, rows)


def _tasks(group: Group) -> str:
    name, figures, seeds = group.name, group.task_rows(), len(group.scores)
    if not figures:
        return f"<p>{escape(name)}: not evaluated yet.</p>"
    how = "Wilson's, of the episodes of one seed"
    if seeds > 1:
        how = f"a bootstrap over {seeds} seeds, which is too narrow where they are few"
    rows: list[list[Any]] = []
    for row in figures:
        cells = [row["task"], _bar(row["success"]), span(row["interval"]), number(row["return"], 1)]
        rows.append([*cells, number(row["first_success"], 0), number(row["modules_used"], 1), row["episodes"]])
    heads = ["task", "success", "95 % interval", "return", "first success at step", "modules used", "episodes"]
    return table(f"{name}: success by task, in the newest evaluation; the interval is {how}", heads, rows, raw=1)


def _bar(share: float) -> str:
    width = f'<span style="width:{100 * share:.0f}%"></span>'
    return f'<span class="bar" aria-hidden="true">{width}</span>{number(share)}'


def _provenance(one: Evidence, *, opened: bool) -> str:
    settings = [[name, json.dumps(value)] for name, value in dataclasses.asdict(one.run.configuration).items()]
    parts = [table("Configuration, see dynroute train --help", ["option", "value"], settings, kind="words")]
    for i, session in enumerate(one.sessions, start=1):
        rows = []
        for name, value in session.items():
            inside = value.items() if isinstance(value, dict) else [("", value)]
            rows += [[f"{name} {inner}".strip(), str(shown)] for inner, shown in inside]
        parts.insert(-1, table(f"Session {i} of {len(one.sessions)}", ["what", "value"], rows, kind="words"))
    return details(str(one.run.folder.name if opened else one.name), "".join(parts), opened=opened)
