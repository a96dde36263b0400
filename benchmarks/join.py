"""Joins the summaries of a sweep that was run in parts, on machines without a shared folder, and single runs.

    python -m benchmarks.join docs/results/scratch-mt10-random.json runs/MT10-mt-sac-seed3 --output new.json

The parts may differ only in their runs. This is checked for the flags of the commands except methods, seeds, variants,
folders and hours, and for versions, threads, tasks and episodes. A finished run replaces an unfinished one of another
part. A run that is finished in two parts must have the same results.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynroute_metaworld import Run
from dynroute_metaworld.runs.summary import SUMMARY, read_run, summary_rows, summary_table

from .outputs import anonymous, file, write

FREE = ("methods", "seeds", "vary", "folder", "address", "method", "seed", "run", "resume", "hours")
"""The flags of `dynroute sweep` and `dynroute train` in which parts may differ; variants have separate rows."""


def read(path: Path) -> dict[str, Any]:
    """Reads a summary, or makes that of a single run from its folder."""
    if not path.is_dir():
        summary: dict[str, Any] = json.loads(path.read_text())
        return summary
    own, figures = Run.open(path).configuration, read_run(path)
    for session in figures["sessions"]:
        session["command"] = anonymous(session["command"])
    run = {"benchmark": own.benchmark, "method": own.method, "seed": own.seed, "variant": "", **figures}
    return {"format": SUMMARY, "runs": {path.name: run}}


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes the summary of all runs."""
    runs: dict[str, dict[str, Any]] = {}
    for part in parts:
        if part["format"] != SUMMARY:
            raise ValueError(f"a part has the format {part['format']!r} and not {SUMMARY!r}")
        for name, run in part["runs"].items():
            earlier = runs.setdefault(name, run)
            if earlier["success"] is None:
                runs[name] = run
            elif run["success"] is not None and _ending(run) != _ending(earlier):
                raise ValueError(f"{name} ended differently in two parts")
    first: dict[str, Any] = {}
    for name, run in runs.items():
        if run["success"] is not None:
            settings = _settings(run)
            other, expected = first.setdefault(run["benchmark"], (name, settings))
            if differ := [key for key in settings if settings[key] != expected[key]]:
                raise ValueError(f"{name} and {other} differ in their {' and '.join(differ)}")
    return {"format": SUMMARY, "rows": summary_rows(runs.values()), "runs": runs}


def _ending(run: dict[str, Any]) -> list[Any]:
    return [run[key] for key in ("success", "modules_used", "episodes")]


def _settings(run: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that its summary holds."""
    session = run["sessions"][0]
    return {
        "tasks": list(run["success"]),
        "episodes": run["episodes"],
        "versions": session["versions"],
        "threads": session["machine"]["threads"],
        "flags": sorted(flag for flag in _flags(session["command"]) if flag[0] not in FREE),
    }


def _flags(command: str) -> list[list[str]]:
    """The flags of a command, each with its values; `--name=value` is the same as `--name value`."""
    flags: list[list[str]] = []
    for word in shlex.split(command):
        if word.startswith("--") or not flags:
            flags.append(word.removeprefix("--").split("=", 1))
        else:
            flags[-1].append(word)
    return flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="+", help="summary.json of each part, or the folder of a run")
    parser.add_argument("--output", type=file, required=True, help="the JSON file")
    options = parser.parse_args()
    summary = join([read(part) for part in options.parts])
    write(options.output, summary, allow_nan=False)
    print(summary_table(summary))


if __name__ == "__main__":
    main()
