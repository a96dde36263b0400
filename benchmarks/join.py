"""One summary of a sweep that was done in parts, on machines or days that shared no folder.

The parts differ in their runs alone. What summaries tell of that is checked: the flags of the commands but for methods,
seeds, variants and folders, the versions, the threads, the tasks and the episodes. An unfinished run gives way to one
that is finished in another part; one that is finished in two must have ended alike.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynroute_metaworld.runs.summary import SUMMARY, summary_rows, summary_table

from .outputs import file

FREE = ("methods", "seeds", "vary", "folder", "address")
"""The flags of `dynroute sweep` in which parts may differ; variants have rows of their own."""


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary of all runs."""
    runs: dict[str, dict[str, Any]] = {}
    for part in parts:
        if part["format"] != SUMMARY:
            raise ValueError(f"a part has the format {part['format']!r} and not {SUMMARY!r}")
        for name, run in part["runs"].items():
            known = runs.setdefault(name, run)
            if known["success"] is None:
                runs[name] = run
            elif run["success"] is not None and _ending(run) != _ending(known):
                raise ValueError(f"{name} ended differently in two parts")
    first: dict[str, Any] = {}
    for name, run in runs.items():
        if run["success"] is not None:
            how, other = _how(run), first.setdefault(run["benchmark"], (name, _how(run)))
            if differ := [key for key in how if how[key] != other[1][key]]:
                raise ValueError(f"{name} and {other[0]} differ in their {' and '.join(differ)}")
    return {"format": SUMMARY, "rows": summary_rows(runs.values()), "runs": runs}


def _ending(run: dict[str, Any]) -> list[Any]:
    return [run[key] for key in ("success", "modules_used", "episodes")]


def _how(run: dict[str, Any]) -> dict[str, Any]:
    """How a run was done, as far as its summary tells."""
    session = run["sessions"][0]
    flags = [flag.split() for flag in session["command"].split(" --")]
    return {
        "tasks": list(run["success"]),
        "episodes": run["episodes"],
        "versions": session["versions"],
        "threads": session["machine"]["threads"],
        "flags": sorted(flag for flag in flags if flag[0] not in FREE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="+", help="summary.json of each part")
    parser.add_argument("--output", type=file, required=True, help="the JSON file")
    options = parser.parse_args()
    summary = join([json.loads(part.read_text()) for part in options.parts])
    options.output.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    print(summary_table(summary))


if __name__ == "__main__":
    main()
