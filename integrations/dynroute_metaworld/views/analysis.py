"""Data and figures of runs: how they learned, what they solve, and what their routes share."""

import contextlib
import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from dynroute.arguments import check_count
from dynroute_sb3 import DamagedError, latest_checkpoint

from ..training import load_model
from .comparison import Group, group_runs
from .drawings import draw_moments, draw_routes
from .evidence import BY_TASK, Evidence, gather_all
from .scene import OpenGLError, find_opengl
from .series import LIMIT
from .watching import Routes, embed, watch

__all__ = ["Analysis", "analyze", "look", "own_place", "watch_run"]

OFTEN = 10.0
"""Seconds from one sentence to the next that tells how far a policy has come."""

OF_ALL = (
    *("curves.csv", "curves_by_method.csv", "success.csv", "notes.txt"),
    *("curves.png", "success.png", "modules_by_method.png", "summary.json"),
)
OF_A_RUN = (
    *("routes.npz", "routes.svg", "moments.svg", "paths.csv", "learning.png", "balance.png", "modules.png"),
    *("similarity.png", "sparsity.png", "paths.png"),
)
"""The files of an analysis."""


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """What is known of some runs.

    Attributes:
        runs: What their files tell.
        groups: The runs that differ in their seeds alone, taken together.
        routes: What the policy of each run does, by the name of the run.
        notes: What is missing, in sentences.
    """

    runs: list[Evidence]
    groups: list[Group]
    routes: dict[str, Routes]
    notes: list[str]

    def run(self, name: str) -> Evidence:
        """The run of a name."""
        return next(one for one in self.runs if one.name == name)


def look(
    folders: Sequence[str | Path],
    *,
    episodes: int = 2,
    moments: int = 12,
    frames: bool = True,
    limit: int = LIMIT,
    device: str = "auto",
    every: bool = True,
    tell: Callable[[str], object] = print,
) -> Analysis:
    """Reads runs, and lets their policies act.

    Args:
        folders: The directories of the runs.
        episodes: How many episodes of each task routes are taken from.
        moments: How many steps of the first episode of each task are kept to be looked at.
        frames: Whether to take a picture of the scene at each of them, where OpenGL works.
        limit: The largest number of points of a curve.
        device: Where the networks are.
        every: Whether the policy of every run acts, or that of the first run of each group that has a checkpoint.
        tell: Called with a sentence for each thing that takes long.
    """
    if not folders:
        raise ValueError("`folders` must name at least one run, got none.")
    check_count("episodes", episodes, at_least=1)
    runs = gather_all(folders, limit=limit)
    groups, apart = group_runs(runs)
    several = len(runs) > 1
    notes = [f"{one.name}: {note}" if several else note for one in runs for note in one.notes] + apart
    able = [one for one in runs if latest_checkpoint(one.run.checkpoints) is not None]
    try:
        if frames and able:
            find_opengl()
    except OpenGLError as error:
        frames = False
        notes.append(f"There are no frames: {error}")
    routes = {}
    for wanted in [(one,) for one in runs] if every else [group.runs for group in groups]:
        for one in (one for one in wanted if one in able):
            tell(f"{one.name}: its policy acts in {len(one.tasks)} tasks ...")
            chosen: dict[str, Any] = {"episodes": episodes, "moments": moments, "frames": frames, "device": device}
            found, missing = watch_run(one, **chosen, progress=_now_and_then(tell, one.name))
            notes += [f"{one.name}: {missing}" if several else missing] if missing else []
            if found is None:
                continue
            routes[one.name] = found
            if one is not wanted[0]:
                notes.append(f"{one.name}: its routes stand for those of {wanted[0].name}, whose policy cannot act.")
            break
    return Analysis(runs, groups, routes, notes)


def _now_and_then(tell: Callable[[str], object], name: str) -> Callable[[int, int], None]:
    """What tells how far the policy of a run has come, not more often than one likes to read it."""
    before = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal before
        if done < total and time.monotonic() - before >= OFTEN:
            before = time.monotonic()
            tell(f"{name}: {done / total:.0%} of its steps are done ...")

    return progress


def watch_run(
    one: Evidence,
    *,
    episodes: int = 2,
    moments: int = 12,
    frames: bool = False,
    device: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Routes | None, str | None]:
    """What the policy of a run's last checkpoint does, see :func:`~dynroute_metaworld.views.watching.watch`.

    Returns:
        The routes, and in a sentence what they lack.
    """
    try:
        model = load_model(one.run, device)
    except (DamagedError, ValueError, OSError) as error:  # damaged, or of another version
        return None, f"There are neither routes nor frames: {error}"
    # A frame takes a while to draw, and a page of fifty tasks shall not grow without limit.
    moments = min(moments, max(4, 240 // len(one.tasks)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a batch of a few tasks is too small for more
    try:
        found = watch(one.run, model, episodes=episodes, moments=moments, frames=frames, progress=progress)
    finally:
        torch.set_num_threads(threads)
    if found.route is None:
        return found, f"The method {one.run.configuration.method} has no learned routes: nothing of them is shown."
    return found, None


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
    figures are PNG files and need matplotlib, t-SNE needs scikit-learn; what is left out is told in ``notes.txt``. The
    files of an analysis that is there already are replaced; other files stay.

    Args:
        folders: The directories of the runs.
        output: The directory for all files; ``analysis`` in the run, or here if there are several.
        episodes: How many episodes of each task routes are taken from.
        device: Where the networks are.
        tell: Called with a sentence for each thing that takes long, and for each that is missing.

    Returns:
        The directory.
    """
    folder = own_place(folders, "analysis") if output is None else Path(output)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        why = f"where {there.name} is a file; name another place"
        raise NotADirectoryError(f"`output` must be a directory, got {folder}, {why}.")
    analysis = look(folders, episodes=episodes, device=device, tell=tell)
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder, [one.name for one in analysis.runs])
    write_tables(analysis, folder)
    notes = list(analysis.notes)
    try:
        from . import figures
    except ImportError as error:
        figures = None  # type: ignore[assignment]
        notes.append(f"There are no figures but those of routes, the data is complete: {error}")
    for one in analysis.runs:
        where = folder if len(analysis.runs) == 1 else folder / _inside(one.name)
        where.mkdir(exist_ok=True)
        routes = analysis.routes.get(one.name)
        points = None
        if routes is not None:
            routes.save(where / "routes.npz")
        if routes is not None and routes.route is not None:
            points, missing = embed(routes)
            notes += [missing] if missing else []
            if points is not None:
                rows = [(routes.tasks[int(i)], x, y, int(count)) for i, x, y, count in points]
                _csv(where / "paths.csv", ["task", "x", "y", "samples"], rows)
            (where / "routes.svg").write_text(draw_routes(routes), encoding="utf-8")
            (where / "moments.svg").write_text(draw_moments(routes), encoding="utf-8")
        if figures is not None:
            figures.write_run(where, one, routes, points)
    if figures is not None:
        figures.write_groups(folder, analysis.groups)
    notes = list(dict.fromkeys(notes))
    (folder / "notes.txt").write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")
    for note in notes:
        tell(note)
    return folder


def own_place(folders: Sequence[str | Path], name: str) -> Path:
    """Where something is written unless told otherwise: in the run, or here if there are several.

    Args:
        folders: The directories of the runs.
        name: The name of the file or of the directory.
    """
    different = {Path(folder).resolve() for folder in folders}
    return different.pop() / name if len(different) == 1 else Path(name)


def _inside(name: str) -> str:
    """The folder of a run inside of that of an analysis."""
    return name.replace("/", "-")


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Removes the files of an analysis of before, lest one stand for what is missing now; those of others stay."""
    try:
        former = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        known = {_inside(name) for name in (*names, *former.get("runs", ()))}
    except (OSError, ValueError, AttributeError, TypeError):
        return
    if not {"methods", "notes"} <= set(former):
        return  # what has these names is of others
    for inner in (path for path in folder.iterdir() if path.is_dir() and path.name in known):
        for name in OF_A_RUN:
            (inner / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others have files there, or it is a link
            inner.rmdir()
    for name in (*OF_A_RUN, *OF_ALL):  # the one that told of it goes last
        (folder / name).unlink(missing_ok=True)


def write_tables(analysis: Analysis, folder: Path) -> None:
    """Writes what the files of the runs tell as CSV and JSON."""
    _csv(
        folder / "curves.csv",
        ["run", "metric", "task", "steps", "value"],
        (
            (one.name, metric, task, step, value)
            for one in analysis.runs
            for metric in BY_TASK
            for task, curve in one.curves(metric).items()
            for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        ),
    )
    bands = ((group, metric, group.band(metric)) for group in analysis.groups for metric in BY_TASK)
    _csv(
        folder / "curves_by_method.csv",
        ["method", "metric", "steps", "iqm", "low", "high"],
        (
            (group.name, metric, *row)
            for group, metric, band in bands
            if band is not None
            for row in zip(*(part.tolist() for part in vars(band).values()), strict=True)
        ),
    )
    rows = [{"method": group.name, **row} for group in analysis.groups for row in group.task_rows()]
    names = ["method", "task", "episodes", "success", "low", "high", "return", "first_success", "modules_used"]
    names += ["modules_low", "modules_high"]
    for row in rows:
        row["low"], row["high"] = row.pop("interval") or (None, None)
        row["modules_low"], row["modules_high"] = row.pop("modules_interval") or (None, None)
    _csv(folder / "success.csv", names, ([row[name] for name in names] for row in rows))
    runs, methods = [one.name for one in analysis.runs], [group.row() for group in analysis.groups]
    summary = {"runs": runs, "methods": methods, "notes": analysis.notes}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
