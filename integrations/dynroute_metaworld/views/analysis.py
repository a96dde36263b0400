"""Data and figures of runs: how they learned, what they solve, and what their routes share."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynroute.arguments import check_count
from dynroute_sb3 import DamagedError, latest_checkpoint

from ..training import load_model
from .comparison import Group, group_runs
from .drawings import draw_moments, draw_routes
from .evidence import BY_TASK, Evidence, gather_all
from .scene import OpenGLError, find_opengl
from .series import LIMIT
from .watching import Routes, watch

__all__ = ["Analysis", "analyze", "embed", "look", "watch_run"]

EMBEDDED = 1000
"""At most about how many routes t-SNE places."""


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
        every: Whether the policy of every run acts, or that of the first run of each group.
        tell: Called with a sentence for each thing that takes long.
    """
    if not folders:
        raise ValueError("`folders` must name at least one run, got none.")
    check_count("episodes", episodes, at_least=1)
    runs = gather_all(folders, limit=limit)
    groups, apart = group_runs(runs)
    several = len(runs) > 1
    notes = [f"{one.name}: {note}" if several else note for one in runs for note in one.notes] + apart
    wanted = runs if every else [group.runs[0] for group in groups]
    able = [one for one in wanted if latest_checkpoint(one.run.checkpoints) is not None]
    try:
        if frames and able:
            find_opengl()
    except OpenGLError as error:
        frames = False
        notes.append(f"There are no frames: {error}")
    routes = {}
    for one in able:
        tell(f"{one.name}: its policy acts in {len(one.tasks)} tasks ...")
        found, missing = watch_run(one, episodes=episodes, moments=moments, frames=frames, device=device)
        notes += [f"{one.name}: {missing}" if several else missing] if missing else []
        if found is not None:
            routes[one.name] = found
    return Analysis(runs, groups, routes, notes)


def watch_run(
    one: Evidence, *, episodes: int = 2, moments: int = 12, frames: bool = False, device: str = "auto"
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
        found = watch(one.run, model, episodes=episodes, moments=moments, frames=frames)
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
    figures are PNG files and need matplotlib, t-SNE needs scikit-learn; what is left out is told in ``notes.txt``.

    Args:
        folders: The directories of the runs.
        output: The directory for all files; ``analysis`` in the run, or here if there are several.
        episodes: How many episodes of each task routes are taken from.
        device: Where the networks are.
        tell: Called with a sentence for each thing that takes long, and for each that is missing.

    Returns:
        The directory.
    """
    analysis = look(folders, episodes=episodes, device=device, tell=tell)
    alone = analysis.runs[0].run.folder / "analysis" if len(analysis.runs) == 1 else Path("analysis")
    folder = alone if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(analysis, folder)
    notes = list(analysis.notes)
    try:
        from . import figures
    except ImportError as error:
        figures = None  # type: ignore[assignment]
        notes.append(f"There are no figures but those of routes, the data is complete: {error}")
    for one in analysis.runs:
        where = folder if len(analysis.runs) == 1 else folder / one.name.replace("/", "-")
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
    for row in rows:
        row["low"], row["high"] = row.pop("interval") or (None, None)
    _csv(folder / "success.csv", names, ([row[name] for name in names] for row in rows))
    summary = {"methods": [group.row() for group in analysis.groups], "notes": analysis.notes}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def embed(routes: Routes) -> tuple[NDArray[np.float64] | None, str | None]:
    """Places routes on a plane by t-SNE, those that are alike near each other.

    Returns:
        A row for each task and route that it took: the number of the task, the two coordinates, and how many samples
        there are; and in a sentence why there are none.
    """
    features = routes.features()
    kept = torch.arange(0, len(features), -(-len(features) // EMBEDDED))
    # Equal routes have one place: t-SNE would spread them in rings that mean nothing, and take longer.
    different, which = torch.unique(features[kept], dim=0, return_inverse=True)
    if len(different) < 3:
        return None, "There is no t-SNE: fewer than three different routes were taken."
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None, "There is no t-SNE, which needs scikit-learn; type: pip install 'dynroute[report]'"
    with threadpool_limits(1):  # threads wait for each other longer than they compute
        start = {"init": "random", "random_state": 0, "perplexity": min(30.0, (len(different) - 1) / 3)}
        places = TSNE(**start).fit_transform(different.double().numpy())
    pairs, counts = torch.unique(torch.stack([routes.task[kept], which]), dim=1, return_counts=True)
    columns = [pairs[0].numpy(), *places[pairs[1].numpy()].T, counts.numpy()]
    return np.stack(columns, axis=1).astype(np.float64), None


def _csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
