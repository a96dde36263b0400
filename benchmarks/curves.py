"""Stores how success rose in runs whose settings are compared, finished or not.

    python -m benchmarks.curves runs/tune-* --output docs/results/tuning-mt10.json

A row names the options in which a run differs from the first one, and has the success over steps of each task: the mean
over tasks of the newest episodes, which the policy drew while it learned. Results stay the same if a run is longer.
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


def compare(folders: list[Path], every: int) -> dict[str, Any]:
    """Reads the curves of runs, and in what their options differ from those of the first one."""
    runs = [Run.open(folder) for folder in folders]
    first = options_of(runs[0])
    rows, sessions = [], []
    for run in runs:
        differing = {name: value for name, value in options_of(run).items() if value != first[name]}
        rows.append({"run": run.folder.name, "options": differing, "success": read_curve(run, every)})
        for session in run.sessions:
            command = re.sub(r"(--run )\S*/", r"\1runs/", session["command"])  # not the paths of a machine
            sessions.append({"command": command, **{name: session[name] for name in ("commit", "versions", "machine")}})
    window = runs[0].configuration.window
    return {"format": "dynroute curves 1", "window": window, "rows": rows, "sessions": sessions}


def options_of(run: Run) -> dict[str, Any]:
    """The options on which a curve depends, as far as it goes."""
    own = run.configuration
    options = {**own.result_options, "seed": own.seed, "warm_start": own.warm_start}
    return {name: value for name, value in options.items() if name not in MOVABLE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=file, required=True, help="the JSON file")
    parser.add_argument("--every", type=int, default=10_000, help="steps between two figures of a curve (10000)")
    options = parser.parse_args()
    stored = compare(options.folders, options.every)
    with writing_file(options.output) as part:
        part.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
