"""Compares two sweeps of the same runs, before and after training, on the episodes of both evaluations.

The seed of an evaluation determines its goals, so the first episodes of both have the same goals. A row counts the
episodes that only one of both solved, over all seeds, with the p-value of the exact sign test.
"""

import argparse
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynroute_metaworld import EvaluationResult
from dynroute_metaworld.runs.summary import ROW, read_sweep

from .outputs import file, write


class Pair(NamedTuple):
    """Which episodes a run solved before and after training, with shape ``[tasks, episodes]``."""

    seed: int
    tasks: tuple[str, ...]
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]


def compare(before: Path, after: Path) -> dict[str, Any]:
    """Computes the rows of all runs that are finished in both folders; variants of a method have separate rows."""
    groups: dict[tuple[str, ...], list[Pair]] = defaultdict(list)
    for name, noted in read_sweep(after)["runs"].items():
        files = [folder / name / "evaluations" / "final.json" for folder in (before, after)]
        if all(path.exists() for path in files):
            old, new = map(EvaluationResult.load, files)
            groups[tuple(noted[field] for field in ROW)].append(_pair(name, noted["seed"], old, new))
    if not groups:
        raise ValueError(f"{before} and {after} must have finished runs of the same names, got none.")
    rows = [
        {**dict(zip(ROW, group, strict=True)), **row}
        for group, pairs in groups.items()
        for row in _rows(sorted(pairs, key=lambda pair: pair.seed))
    ]
    return {"format": "dynroute gain 1", "rows": rows}


def _pair(name: str, seed: int, old: EvaluationResult, new: EvaluationResult) -> Pair:
    for setting in ("tasks", "horizon", "seed", "criterion"):
        values = [getattr(result, setting) for result in (old, new)]
        if values[0] != values[1]:
            raise ValueError(f"{name} must have the same {setting} before and after, got {values[0]} and {values[1]}.")
    shared = min(old.episodes, new.episodes)
    if np.abs(old.goal_positions[:, :shared] - new.goal_positions[:, :shared]).max() > 1e-6:
        raise ValueError(f"{name} must have the same goals before and after, got others.")
    return Pair(seed, old.tasks, old.success[:, :shared], new.success[:, :shared])


def _rows(pairs: list[Pair]) -> list[dict[str, Any]]:
    rows = []
    for i, task in [*enumerate(pairs[0].tasks), (slice(None), "all")]:
        solved = [(pair.before[i], pair.after[i]) for pair in pairs]
        lost = sum(int((old & ~new).sum()) for old, new in solved)
        gained = sum(int((new & ~old).sum()) for old, new in solved)
        means = {"before": [float(old.mean()) for old, _ in solved], "after": [float(new.mean()) for _, new in solved]}
        episodes = sum(old.size for old, _ in solved)
        counts = {"episodes": episodes, "lost": lost, "gained": gained, "p": sign_test(lost, gained)}
        rows.append({"task": task, "seeds": [pair.seed for pair in pairs], **means, **counts})
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
    try:
        result = compare(options.before, options.after)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    write(options.output, result)
    for row in result["rows"]:
        before, after = (np.mean(row[name]) for name in ("before", "after"))
        name = " ".join(filter(None, (row["method"], row["variant"])))
        print(f"{name:24} {row['task']:22} {before:.3f} -> {after:.3f}  p {row['p']:.3f}")


if __name__ == "__main__":
    main()
