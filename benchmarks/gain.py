"""Compares two sweeps of the same runs, before and after training, on the episodes of both evaluations.

The seed of an evaluation determines its goals, so the first episodes of both have the same goals. A row counts the
episodes that only one of both solved, over all seeds, with the p-value of the exact sign test.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dynroute_metaworld import EvaluationResult, Run

from .outputs import file


def compare(before: Path, after: Path) -> dict[str, Any]:
    """Computes the rows of all runs that are finished in both folders."""
    solved: dict[str, list[Any]] = defaultdict(list)
    for folder in sorted(after.glob("*/evaluations/final.json")):
        name = folder.parts[-3]
        old, new = (EvaluationResult.load(sweep / name / "evaluations" / "final.json") for sweep in (before, after))
        shared = min(old.episodes, new.episodes)
        same = np.abs(old.goal_positions[:, :shared] - new.goal_positions[:, :shared]).max() < 1e-6
        assert (old.tasks, old.horizon, old.seed) == (new.tasks, new.horizon, new.seed), name
        assert same, f"{name} was tested with other goals"
        configuration = Run.open(after / name).configuration
        solved[configuration.method].append(
            (configuration.seed, old.tasks, old.success[:, :shared], new.success[:, :shared])
        )
    rows = [row for method, runs in solved.items() for row in _rows(method, sorted(runs, key=lambda run: run[0]))]
    return {"format": "dynroute gain 1", "rows": rows}


def _rows(method: str, runs: list[Any]) -> list[dict[str, Any]]:
    tasks = runs[0][1]
    old, new = (np.stack([run[k] for run in runs]) for k in (2, 3))  # [seed, task, episode]
    rows = []
    for i, task in [*enumerate(tasks), (slice(None), "all")]:
        lost, gained = int((old[:, i] & ~new[:, i]).sum()), int((new[:, i] & ~old[:, i]).sum())
        flat = (len(runs), -1)
        means = {
            "before": old[:, i].reshape(flat).mean(axis=1).tolist(),
            "after": new[:, i].reshape(flat).mean(axis=1).tolist(),
        }
        counts = {"episodes": int(old[:, i].size), "lost": lost, "gained": gained, "p": sign_test(lost, gained)}
        rows.append({"method": method, "task": task, "seeds": [run[0] for run in runs], **means, **counts})
    return rows


def sign_test(lost: int, gained: int) -> float:
    """Computes the probability of counts at least as uneven if both were equally likely."""
    count = lost + gained
    tail = sum(math.comb(count, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder of the sweep before training")
    parser.add_argument("after", type=Path, help="the folder of the sweep after training")
    parser.add_argument("output", type=file, help="the JSON file")
    options = parser.parse_args()
    result = compare(options.before, options.after)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        before, after = (np.mean(row[name]) for name in ("before", "after"))
        print(f"{row['method']:8} {row['task']:22} {before:.3f} -> {after:.3f}  p {row['p']:.3f}")


if __name__ == "__main__":
    main()
