"""What is known of runs: what their files tell, and what their policies do."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dynroute.arguments import check_count
from dynroute_sb3 import DamagedError, latest_checkpoint

from ..runs.training import load_model
from .comparison import Group, group_runs
from .evidence import Evidence, gather_all
from .scene import OpenGLError, find_opengl
from .series import LIMIT
from .watching import Routes, watch

__all__ = ["Analysis", "look", "own_place", "watch_run"]

OFTEN = 10.0
"""Seconds from one sentence to the next that tells how far a policy has come."""


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
            tell(f"{one.name}: its policy acts in {len(one.tasks)} task{'s' * (len(one.tasks) > 1)} ...")
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
    """What the policy of a run's last checkpoint does, see :func:`~dynroute_metaworld.report.watching.watch`.

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


def own_place(folders: Sequence[str | Path], name: str) -> Path:
    """Where something is written unless told otherwise: in the run, or here if there are several.

    Args:
        folders: The directories of the runs.
        name: The name of the file or of the directory.
    """
    different = {Path(folder).resolve() for folder in folders}
    return different.pop() / name if len(different) == 1 else Path(name)
