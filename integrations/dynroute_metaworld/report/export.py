"""Writes data and figures of runs to files: learning curves, success, and the similarity of routes."""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynroute.files import writing_file

from .analysis import Analysis, default_output, inspect_runs
from .comparison import GroupRoutes, setting_rows
from .data import BY_TASK
from .drawings import draw_moments, draw_routes
from .routes import embed

__all__ = ["analyze", "write_tables"]

OF_ALL = (
    *("curves.csv", "curves_by_method.csv", "success.csv", "settings.csv", "learned.csv"),
    *("similarity_by_method.csv", "sparsity_by_method.csv"),
    *("curves.png", "success.png", "settings.png", "modules_by_method.png", "learned.png"),
    *("similarity_by_method.png", "sparsity_by_method.png", "paths_by_method.png", "notes.txt", "summary.json"),
)
OF_A_RUN = (
    *("routes.npz", "routes.svg", "moments.svg", "paths.csv", "learning.png", "balance.png", "modules.png"),
    *("similarity.png", "sparsity.png", "paths.png", "plasticity.png"),
)
"""The files of an analysis."""


def analyze(
    folders: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    episodes: int = 2,
    device: str = "auto",
    tell: Callable[[str], object] = print,
) -> Path:
    """Writes data and figures of one run, or of several side by side.

    Curves, success and modules used are CSV files, routes are npz files, and pictures of routes are SVG files. Other
    figures are PNG files and need matplotlib; t-SNE needs scikit-learn. ``notes.txt`` lists what is left out. The files
    replace those of an earlier analysis in the directory; other files stay.

    Args:
        folders: The directories of the runs.
        output: The directory for all files; ``analysis`` in the run, or here if there are several.
        episodes: The number of episodes of each task to take routes from.
        device: The device of the networks.
        tell: Called with a sentence before each step that takes long, and for each part that is missing.

    Returns:
        The directory.
    """
    folder = default_output(folders, "analysis") if output is None else Path(output)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        why = f"where {existing.name} is a file; name another place"
        raise NotADirectoryError(f"`output` must be a directory, got {folder}, {why}.")
    if taken := next((name for name in ("config.json", "sweep.json") if (folder / name).exists()), None):
        raise FileExistsError(
            f"`output` must be a directory apart from those of runs and sweeps, whose files would be replaced, got "
            f"{folder}, which has a {taken}; name another, such as {folder / 'analysis'}."
        )
    analysis = inspect_runs(folders, episodes=episodes, device=device, tell=tell)
    folder.mkdir(parents=True, exist_ok=True)
    inside = _inside([run.name for run in analysis.runs])
    _clear(folder, inside)
    found = (GroupRoutes.of(group, analysis.routes) for group in analysis.groups)
    group_routes = [sharing for sharing in found if sharing is not None]
    write_tables(analysis, group_routes, folder)
    notes, places = list(analysis.notes), {}
    try:
        from . import figures
    except ImportError as error:
        figures = None  # type: ignore[assignment]
        advice = "figures need matplotlib; type: pip install 'dynroute[report]'"
        notes.append(f"The only figures are those of routes; the data is complete: {advice} ({error})")
    for run in analysis.runs:
        where = folder if len(analysis.runs) == 1 else folder / inside[run.name]
        where.mkdir(exist_ok=True)
        routes = analysis.routes.get(run.name)
        points = None
        if routes is not None:
            routes.save(where / "routes.npz")
        if routes is not None and routes.route is not None:
            points, missing = embed(routes)
            notes += [missing] if missing else []
            if points is not None:
                places[run.name] = points
                rows = [(routes.tasks[int(i)], x, y, int(count)) for i, x, y, count in points]
                _csv(where / "paths.csv", ["task", "x", "y", "samples"], rows)
            _write(where / "routes.svg", draw_routes(routes))
            _write(where / "moments.svg", draw_moments(routes))
        if figures is not None:
            figures.write_run(where, run, routes, points)
    if figures is not None:
        figures.write_groups(folder, analysis.groups, group_routes if len(analysis.runs) > 1 else [], places)
    notes = list(dict.fromkeys(notes))
    _write(folder / "notes.txt", "".join(f"{note}\n" for note in notes))
    for note in notes:
        tell(note)
    return folder


def _inside(names: Iterable[str]) -> dict[str, str]:
    """The names of runs' folders in the folder of an analysis, by the names of the runs."""
    inside: dict[str, str] = {}
    for name in names:
        folder = plain = name.replace("/", "-")
        number = 1
        while folder in inside.values():
            number += 1
            folder = f"{plain}-{number}"
        inside[name] = folder
    return inside


def _clear(folder: Path, inside: Mapping[str, str]) -> None:
    """Removes the files of an earlier analysis, so that no old file is left; other files stay."""
    try:
        former = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        former_runs = {*inside.values(), *_inside(former.get("runs", ())).values()}
    except (OSError, ValueError, AttributeError, TypeError):
        return
    if not {"methods", "notes"} <= set(former):
        return  # the summary is not from an analysis
    for inner in (path for path in folder.iterdir() if path.is_dir() and path.name in former_runs):
        for name in OF_A_RUN:
            (inner / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder has other files, or is a link
            inner.rmdir()
    for name in (*OF_A_RUN, *OF_ALL):  # summary.json is last: it names the rest
        (folder / name).unlink(missing_ok=True)


def write_tables(analysis: Analysis, group_routes: Sequence[GroupRoutes], folder: Path) -> None:
    """Writes the figures of the runs as CSV and JSON."""
    _csv(
        folder / "curves.csv",
        ["run", "metric", "task", "steps", "value"],
        (
            (run.name, metric, task, step, value)
            for run in analysis.runs
            for metric, task, curve in run.all_drawn()
            for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        ),
    )
    bands = ((group, metric, group.band(metric)) for group in analysis.groups for metric in BY_TASK)
    _csv(
        folder / "curves_by_method.csv",
        ["method", "metric", "steps", "mean", "low", "high", "first_quartile", "median", "third_quartile"],
        (
            (group.name, metric, *row)
            for group, metric, band in bands
            if band is not None
            for row in zip(*(part.tolist() for part in vars(band).values()), strict=True)
        ),
    )
    rows = [{"method": group.name, **row} for group in analysis.groups for row in group.task_rows()]
    names = ["method", "task", "episodes", "success", "low", "high", "return", "first_success", "modules_used"]
    names += ["modules_low", "modules_high", "interval_over"]
    for row in rows:
        row["low"], row["high"] = row.pop("interval") or (None, None)
        row["modules_low"], row["modules_high"] = row.pop("modules_interval") or (None, None)
    _csv(folder / "success.csv", names, ([row[name] for name in names] for row in rows))
    if settings := setting_rows(analysis.groups):
        _csv(folder / "settings.csv", list(settings[0]), ([*row.values()] for row in settings))
    if learned := [{"method": group.name, **row} for group in analysis.groups for row in group.learned_rows()]:
        _csv(folder / "learned.csv", list(learned[0]), ([*row.values()] for row in learned))
    for kind, rows_of in (("similarity", GroupRoutes.similarity_rows), ("sparsity", GroupRoutes.sparsity_rows)):
        if rows := [{"method": routes.group.name, **row} for routes in group_routes for row in rows_of(routes)]:
            _csv(folder / f"{kind}_by_method.csv", list(rows[0]), ([*row.values()] for row in rows))
    shared = {routes.group.name: routes.row() for routes in group_routes}
    methods = [{**group.row(), **shared.get(group.name, {})} for group in analysis.groups]
    summary = {"runs": [run.name for run in analysis.runs], "methods": methods, "notes": analysis.notes}
    _write(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")


def _csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    # Twelve digits hold all that was measured, and none of the rounding errors of sums.
    writer.writerows([f"{cell:.12g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    with writing_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
