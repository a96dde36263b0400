"""One summary of a sweep that was done in parts, on machines or days that shared no folder.

The parts must differ in their runs alone: the same flags but for methods and seeds. What the summaries tell of that is
checked, which are tasks, episodes and versions; the commands of all runs stay in the result. An unfinished run gives
way to one that is finished in another part.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynroute_metaworld.summary import SUMMARY, summary_rows, summary_table


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The summary of all runs."""
    runs: dict[str, dict[str, Any]] = {}
    for part in parts:
        assert part["format"] == SUMMARY, part["format"]
        for name, run in part["runs"].items():
            known = runs.get(name)
            if known is None or known["success"] is None:
                runs[name] = run
            elif run["success"] is not None:
                assert run["success"] == known["success"], f"{name} ended differently in two parts"
    _check([run for run in runs.values() if run["success"] is not None])
    return {"format": SUMMARY, "rows": summary_rows(runs.values()), "runs": runs}


def _check(runs: Sequence[dict[str, Any]]) -> None:
    for run in runs:
        first = next(other for other in runs if other["benchmark"] == run["benchmark"])
        assert (list(run["success"]), run["episodes"]) == (list(first["success"]), first["episodes"]), run
        for session in run["sessions"]:
            assert session["versions"] == first["sessions"][0]["versions"], session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="+", help="summary.json of each part")
    parser.add_argument("output", type=Path, help="the JSON file")
    options = parser.parse_args()
    summary = join([json.loads(part.read_text()) for part in options.parts])
    options.output.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    print(summary_table(summary))


if __name__ == "__main__":
    main()
