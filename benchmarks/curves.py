"""Stores how success rose in runs whose settings are compared, finished or not.

    python -m benchmarks.curves runs/tune-* --every 5000 --add --output docs/results/tuning-mt10.json

A row names the options in which a run differs from the first one, and has the success over steps of each task: the mean
over tasks of the newest episodes, which the policy drew while it learned, and that of each evaluation, along the best
actions, both also task by task. Results stay the same if a run is longer. The multiply-adds are those of a critic for a
sample (:mod:`benchmarks.arithmetic`). Minutes are those of all its sessions, None if one was killed, and
those until each figure, where the run logged them.
With ``--add`` a file that is there keeps its rows, and those of the runs that are named join them or take their places:
runs are compared over days, and folders of earlier ones need not be there. Without it, the file must be a new one.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import Any

from dynroute_metaworld import Configuration, EvaluationResult, Run
from dynroute_metaworld.runs.configuration import MOVABLE
from dynroute_metaworld.runs.metrics import read_metrics
from dynroute_sb3 import latest_checkpoint
from dynroute_sb3.checkpoint import checkpoint_steps
from dynroute_sb3.storage import numbered

from .arithmetic import of_critic
from .outputs import anonymous, file, write


def read_curve(run: Run, every: int) -> dict[str, list[float | None]]:
    """The success of each task, by the steps of each task, at multiples of `every` steps; None without an episode."""
    curve, tasks = {}, run.configuration.tasks
    for line in read_metrics(run.metrics):
        rates = [line.get(f"success/{task}") for task in tasks]
        steps, rest = divmod(int(line["step"] or 0), len(tasks))
        if any(rate is not None for rate in rates) and not rest and steps % every == 0:
            curve[str(steps)] = rates
    return curve


def read_minutes(run: Run) -> dict[str, float]:
    """The minutes of all sessions until a line of the log, by the steps of each task, as far as they are known.

    Where a run did not log them, they are those of the sessions before and the seconds of its own until the line.
    """
    minutes, sessions = {}, run.sessions
    for line in read_metrics(run.metrics):
        done = int(line["step"] or 0)
        steps, rest = divmod(done, len(run.configuration.tasks))
        passed, seconds = line.get("time/minutes"), line.get("time/time_elapsed")
        if passed is None and seconds is not None:
            before = [session.get("minutes") for session in sessions if session["steps"] < done][:-1]
            if None not in before:  # the length of a killed session is unknown
                passed = fsum(filter(None, before)) + seconds / 60
        if passed is not None and not rest:
            minutes[str(steps)] = passed
    return minutes


def read_evaluations(run: Run) -> dict[str, list[float]]:
    """The success of each task in each evaluation, by the steps of each task."""
    own = run.configuration
    files = numbered(run.evaluations, "step", ".json")
    places = {steps // len(own.tasks): path for steps, path in files.items()}
    rates = {steps: EvaluationResult.load(path).success_rates.tolist() for steps, path in places.items()}
    if (final := run.finished()) is not None:
        last = latest_checkpoint(run.checkpoints)  # a run may have ended by its hours
        rates[own.steps if last is None else checkpoint_steps(last) // len(own.tasks)] = final.success_rates.tolist()
    return {str(steps): rates[steps] for steps in sorted(rates)}


def means(by_task: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean over the tasks that have a figure."""
    return {steps: fmean(rate for rate in rates if rate is not None) for steps, rates in by_task.items()}


FORMAT = "dynroute curves 4"


def compare(folders: list[Path], every: int | None = None, former: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads the curves of runs, and in what their options differ from those of the first one.

    Args:
        folders: The folders of the runs, which have different names.
        every: The steps between two figures of a curve; those of `former`, or 10,000, if None.
        former: What was stored before; its first run stays the first, and its rows stay unless a run has their name.
    """
    runs = {folder.name: Run.open(folder) for folder in folders}
    first = next(iter(runs.values()))
    if len(runs) < len(folders):
        raise ValueError(f"folders must have different names, got {[folder.name for folder in folders]}")
    if former is None:
        window = first.configuration.window
        former = {"format": FORMAT, "every": every or 10_000, "window": window, "first": options_of(first)}
        former |= {"rows": [], "sessions": []}
    if former["format"] != FORMAT:
        raise ValueError(f"the file has the format {former['format']!r}, not {FORMAT!r}")
    if every not in (None, former["every"]):
        raise ValueError(f"the file has curves at every {former['every']} steps, got `--every {every}`; leave it out")
    usual = {**_plain({field.name: field.default for field in dataclasses.fields(Configuration)}), **former["first"]}
    stored = [part for part in former["rows"] if part["run"] not in runs]
    sessions = [part for part in former["sessions"] if part["run"] not in runs]
    for name, run in runs.items():
        options = options_of(run)
        if (run.configuration.window, options["tasks"]) != (former["window"], usual["tasks"]):
            raise ValueError(f"{run.folder} has another window or other tasks than the first run")
        differing = {option: value for option, value in options.items() if value != usual[option]}
        by_task = {"success": read_curve(run, former["every"]), "evaluated": read_evaluations(run)}
        shown = {steps for rates in by_task.values() for steps in rates}
        passed = {steps: minutes for steps, minutes in read_minutes(run).items() if steps in shown}
        row = {"run": name, "options": differing, **{kind: means(rates) for kind, rates in by_task.items()}}
        row |= {"by_task": by_task, "multiply_adds": of_critic(run.configuration)}
        stored.append({**row, "minutes_at": passed, "minutes": run.minutes})
        for session in run.sessions:
            provenance = {key: session[key] for key in ("commit", "versions", "machine")}
            sessions.append({"run": name, "command": anonymous(session["command"]), **provenance})
    return {**former, "rows": stored, "sessions": sessions}


def options_of(run: Run) -> dict[str, Any]:
    """The options on which a curve depends, as far as it goes, and the tasks."""
    own = run.configuration
    return _plain({**own.result_options, "seed": own.seed, "warm_start": own.warm_start, "tasks": own.tasks})


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options that a run keeps, in the types of JSON."""
    kept = {name: value for name, value in options.items() if name not in MOVABLE}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=lambda missing: None))
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=file, required=True, help="the JSON file")
    parser.add_argument("--every", type=int, help="steps between two figures of a curve (those of the file, or 10000)")
    parser.add_argument("--add", action="store_true", help="keep the rows of a file that is there")
    options = parser.parse_args()
    former = None
    if options.output.exists():
        if not options.add:
            parser.error(f"{options.output} has rows of other runs: `--add` keeps them; or name another file")
        former = json.loads(options.output.read_text())
    stored = compare(options.folders, options.every, former)
    write(options.output, stored, allow_nan=False)


if __name__ == "__main__":
    main()
