"""The analysis of runs: their files, read together, and the routes of their policies."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynroute.arguments import check_count
from dynroute_sb3 import DamagedError, latest_checkpoint

from ..envs.workers import WorkerError
from ..runs.threads import one_thread
from ..runs.training import load_model
from .comparison import Group, group_runs
from .data import RunData, read_runs
from .routes import Routes, collect_routes
from .scene import OpenGLError, find_opengl

__all__ = ["Analysis", "default_output", "inspect_runs"]

OFTEN = 10.0
"""Seconds from one report of a policy's progress to the next."""


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The files of some runs, their groups, and the routes of their policies.

    Attributes:
        runs: The data in the files of each run.
        groups: The runs, grouped with others that differ only in their seeds.
        routes: The routes of each policy, by the name of the run.
        notes: What is missing, in sentences.
    """

    runs: list[RunData]
    groups: list[Group]
    routes: dict[str, Routes]
    notes: list[str]

    def run(self, name: str) -> RunData:
        """The run with a name."""
        return next(run for run in self.runs if run.name == name)


def inspect_runs(
    folders: Sequence[str | Path],
    *,
    episodes: int = 2,
    moments: int = 12,
    frames: bool = True,
    device: str = "auto",
    every: bool = True,
    tell: Callable[[str], object] = print,
) -> Analysis:
    """Reads runs, and collects the routes of their policies.

    Args:
        folders: The directories of the runs.
        episodes: The number of episodes of each task to take routes from.
        moments: The number of steps of the first episode of each task to keep for pictures.
        frames: Whether to take a picture of the scene at each of these steps, if OpenGL works.
        device: The device of the networks.
        every: Whether to collect routes of every run, or only of the first run with a checkpoint in each group.
        tell: Called with a sentence before each step that takes long.
    """
    if not folders:
        raise ValueError("`folders` must name at least one run, got none.")
    check_count("episodes", episodes, at_least=1)
    runs = read_runs(folders)
    groups, apart = group_runs(runs)
    several = len(runs) > 1
    notes = [f"{run.name}: {note}" if several else note for run in runs for note in run.notes] + apart
    trained = [run for run in runs if latest_checkpoint(run.run.checkpoints) is not None]
    try:
        if frames and trained:
            find_opengl()
    except OpenGLError as error:
        frames = False
        notes.append(f"There are no frames: {error}")
    routes = {}
    for wanted in [(run,) for run in runs] if every else [group.runs for group in groups]:
        for run in (run for run in wanted if run in trained):
            tell(f"{run.name}: its policy acts in {len(run.tasks)} task{'s' * (len(run.tasks) > 1)} ...")
            chosen: dict[str, Any] = {"episodes": episodes, "moments": moments, "frames": frames, "device": device}
            found, missing = _run_routes(run, **chosen, progress=_tell_progress(tell, run.name))
            notes += [f"{run.name}: {missing}" if several else missing] if missing else []
            if found is None:
                continue
            routes[run.name] = found
            if run is not wanted[0]:
                notes.append(f"{run.name}: its routes replace the ones of {wanted[0].name}, whose policy cannot act.")
            break
    return Analysis(runs, groups, routes, notes)


def _tell_progress(tell: Callable[[str], object], name: str) -> Callable[[int, int], None]:
    """Returns a function that reports the progress of a policy every few seconds."""
    before = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal before
        if done < total and time.monotonic() - before >= OFTEN:
            before = time.monotonic()
            tell(f"{name}: {done / total:.0%} of its steps are done ...")

    return progress


def _run_routes(run: RunData, device: str, moments: int, **options: Any) -> tuple[Routes | None, str | None]:
    """The routes of a run's last checkpoint, and a sentence about what is missing."""
    try:
        model = load_model(run.run, device)
    except (DamagedError, ValueError, OSError) as error:  # it is damaged, or from another version
        return None, f"There are neither routes nor frames: {error}"
    # Frames take time to draw, and the page of fifty tasks would be too large.
    moments = min(moments, max(4, 240 // len(run.tasks)))
    try:
        with one_thread():
            found = collect_routes(run.run, model, moments=moments, **options)
    except (ValueError, WorkerError) as error:  # its parameters diverged, or a worker died
        return None, f"There are neither routes nor frames, since its policy cannot act: {error}"
    if found.route is None:
        return found, f"The method {run.run.configuration.method} has no learned routes: none are shown."
    return found, None


def default_output(folders: Sequence[str | Path], name: str) -> Path:
    """The default path of an output: in the run, or in the working directory if there are several."""
    different = {Path(folder).resolve() for folder in folders}
    return different.pop() / name if len(different) == 1 else Path(name)
