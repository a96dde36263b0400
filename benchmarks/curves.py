"""Stores how success rose in runs whose settings are compared, finished or not.

    python -m benchmarks.curves runs/tune-* --output docs/results/tuning-mt10.json

A row names the options in which a run differs from the first one, and has the success over steps of each task: the mean
over tasks of the newest episodes, which the policy drew while it learned. Results stay the same if a run is longer.
With ``--add`` the file keeps its rows, and those of the runs that are named join them or take their places: runs are
compared over days, and folders of earlier ones need not be there.
"""

import argparse
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from dynroute_metaworld import Run
from dynroute_metaworld.runs.configuration import MOVABLE
from dynroute_metaworld.runs.metrics import read_metrics
from dynroute_sb3.storage import writing_file

from .outputs import file


def read_curve(run: Run, every: int) -> dict[str, float]:
    """The mean success over tasks, by the steps of each task, at multiples of `every` steps."""
    curve = {}
    for line in read_metrics(run.metrics):
        rates = [rate for name, rate in line.items() if name.startswith("success/") and rate is not None]
        steps, rest = divmod(int(line["step"] or 0), len(run.configuration.tasks))
        if rates and not rest and steps % every == 0:
            curve[str(steps)] = fmean(rates)
    return curve


def compare(folders: list[Path], every: int, former: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads the curves of runs, and in what their options differ from those of the first one.

    Args:
        folders: The folders of the runs.
        every: The steps between two figures of a curve.
        former: What was stored before; its first run stays the first, and its rows stay unless a run has their name.
    """
    runs = [Run.open(folder) for folder in folders]
    window = runs[0].configuration.window
    stored = former or {"first": options_of(runs[0]), "rows": [], "sessions": [], "window": window}
    first, rows = stored["first"], {row["run"]: row for row in stored["rows"]}
    sessions = [*stored["sessions"]]
    for run in runs:
        own = run.configuration
        if (own.window, len(own.tasks)) != (stored["window"], len(first["tasks"])):
            raise ValueError(f"{run.folder} has another window or other tasks than the first run")
        differing = {name: value for name, value in options_of(run).items() if value != first.get(name)}
        rows[run.folder.name] = {"run": run.folder.name, "options": differing, "success": read_curve(run, every)}
        for session in run.sessions:
            command = re.sub(r"(--run )\S*/", r"\1runs/", session["command"])  # not the paths of a machine
            entry = {"command": command, **{name: session[name] for name in ("commit", "versions", "machine")}}
            sessions += [entry] if entry not in sessions else []
    return {
        "format": "dynroute curves 2",
        "window": stored["window"],
        "first": first,
        "rows": list(rows.values()),
        "sessions": sessions,
    }


def options_of(run: Run) -> dict[str, Any]:
    """The options on which a curve depends, as far as it goes, and the tasks, in the types of JSON."""
    own = run.configuration
    options = {**own.result_options, "seed": own.seed, "warm_start": own.warm_start, "tasks": own.tasks}
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in options.items() if k not in MOVABLE}))
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=file, required=True, help="the JSON file")
    parser.add_argument("--every", type=int, default=10_000, help="steps between two figures of a curve (10000)")
    parser.add_argument("--add", action="store_true", help="keep the rows that the file has")
    options = parser.parse_args()
    former = json.loads(options.output.read_text()) if options.add else None
    stored = compare(options.folders, options.every, former)
    with writing_file(options.output) as part:
        part.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
