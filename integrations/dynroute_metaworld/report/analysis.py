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
"""Seconds from one sentence to the next that tells how far a policy has come."""


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The files of some runs, their groups, and the routes of their policies.

    Attributes:
        runs: What their files tell.
        groups: The runs that differ in their seeds alone, taken together.
        routes: What the policy of each run does, by the name of the run.
        notes: What is missing, in sentences.
    """

    runs: list[RunData]
    groups: list[Group]
    routes: dict[str, Routes]
    notes: list[str]

    def run(self, name: str) -> RunData:
        """The run of a name."""
        return next(one for one in self.runs if one.name == name)


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
        episodes: How many episodes of each task routes are taken from.
        moments: How many steps of the first episode of each task are kept to be looked at.
        frames: Whether to take a picture of the scene at each of them, where OpenGL works.
        device: Where the networks are.
        every: Whether the policy of every run acts, or that of the first run of each group that has a checkpoint.
        tell: Called with a sentence for each thing that takes long.
    """
    if not folders:
        raise ValueError("`folders` must name at least one run, got none.")
    check_count("episodes", episodes, at_least=1)
    runs = read_runs(folders)
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
            tell(f"{one.name}: its policy acts in {len(one.tasks)} task{'s' * (len(one.tasks) > 1)} ...")
            chosen: dict[str, Any] = {"episodes": episodes, "moments": moments, "frames": frames, "device": device}
            found, missing = _run_routes(one, **chosen, progress=_tell_progress(tell, one.name))
            notes += [f"{one.name}: {missing}" if several else missing] if missing else []
            if found is None:
                continue
            routes[one.name] = found
            if one is not wanted[0]:
                notes.append(f"{one.name}: its routes stand for those of {wanted[0].name}, whose policy cannot act.")
            break
    return Analysis(runs, groups, routes, notes)


def _tell_progress(tell: Callable[[str], object], name: str) -> Callable[[int, int], None]:
    """Returns a function that tells the progress of a policy every few seconds."""
    before = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal before
        if done < total and time.monotonic() - before >= OFTEN:
            before = time.monotonic()
            tell(f"{name}: {done / total:.0%} of its steps are done ...")

    return progress


def _run_routes(one: RunData, device: str, moments: int, **options: Any) -> tuple[Routes | None, str | None]:
    """The routes of the policy of a run's last checkpoint, and in a sentence what they lack."""
    try:
        model = load_model(one.run, device)
    except (DamagedError, ValueError, OSError) as error:  # damaged, or of another version
        return None, f"There are neither routes nor frames: {error}"
    # A frame takes a while to draw, and a page of fifty tasks shall not grow without limit.
    moments = min(moments, max(4, 240 // len(one.tasks)))
    try:
        with one_thread():
            found = collect_routes(one.run, model, moments=moments, **options)
    except (ValueError, WorkerError) as error:  # its parameters diverged, or a worker died
        return None, f"There are neither routes nor frames, since its policy cannot act: {error}"
    if found.route is None:
        return found, f"The method {one.run.configuration.method} has no learned routes: nothing of them is shown."
    return found, None


def default_output(folders: Sequence[str | Path], name: str) -> Path:
    """The default place of a file: in the run, or in the working directory if there are several."""
    different = {Path(folder).resolve() for folder in folders}
    return different.pop() / name if len(different) == 1 else Path(name)
