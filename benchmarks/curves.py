"""Stores how success rose in runs whose settings are compared, finished or not.

    python -m benchmarks.curves runs/tune-* --output docs/results/tuning-mt10.json

A row names the options in which a run differs from the first one, and has the success over steps of each task: the mean
over tasks of the newest episodes, which the policy drew while it learned. Results stay the same if a run is longer.
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from dynroute_metaworld import Run
from dynroute_metaworld.runs.configuration import MOVABLE
from dynroute_metaworld.runs.metrics import read_lines, read_metrics

from .outputs import file

APART = {*MOVABLE, "evaluate_every", "evaluation_episodes", "log_every"}
"""Options on which what a policy learns does not depend."""


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
    first = dataclasses.asdict(runs[0].configuration)
    rows, sessions = [], []
    for run in runs:
        options = dataclasses.asdict(run.configuration)
        differing = {name: value for name, value in options.items() if name not in APART and value != first[name]}
        rows.append({"run": run.folder.name, "options": differing, "success": read_curve(run, every)})
        for session in (line.value for line in read_lines(run.folder / "sessions.jsonl")):
            if session is None or "command" not in session:
                continue
            command = re.sub(r"(--run )\S*/", r"\1runs/", session["command"])  # not the paths of a machine
            sessions.append({"command": command, **{name: session[name] for name in ("commit", "versions", "machine")}})
    return {"format": "dynroute curves 1", "window": first["window"], "rows": rows, "sessions": sessions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=file, required=True, help="the JSON file")
    parser.add_argument("--every", type=int, default=10_000, help="steps between two figures of a curve (10000)")
    options = parser.parse_args()
    stored = compare(options.folders, options.every)
    options.output.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
