"""Measures the success of Meta-World's scripted policies on each of the 50 tasks within 150, 200 and 500 steps.

    python -m benchmarks.scripted --episodes 20 --workers 2

An episode of 150 steps is the start of one of 500 with the same goal, so one pass gives all horizons.
"""

import argparse
from typing import Any

from dynroute_command.choices import MAX_HORIZON
from dynroute_metaworld.runs.evaluation import evaluate
from dynroute_metaworld.runs.intervals import wilson_interval

from .outputs import parse, session, write

HORIZONS = (150, 200, MAX_HORIZON)


def report(done: int, total: int) -> None:
    if done % MAX_HORIZON == 0:
        print(f"episode {done // MAX_HORIZON} of {total // MAX_HORIZON}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20, help="the number of episodes of each task")
    parser.add_argument("--workers", type=int, default=2, help="the number of processes that run the environments")
    parser.add_argument("--seed", type=int, default=3, help="the seed of the goals")
    options = parse(parser, "scripted.json")
    started = session("benchmarks.scripted")
    result = evaluate(
        "scripted",
        "MT50",
        goals="benchmark",
        horizon=MAX_HORIZON,
        episodes=options.episodes,
        seed=options.seed,
        workers=options.workers,
        progress=report,
    )

    rows: list[dict[str, Any]] = [{"task": task, "success": {}, "interval": {}} for task in result.tasks]
    mean, solved = {}, {}
    for horizon in HORIZONS:
        successes = ((result.first_success > 0) & (result.first_success <= horizon)).sum(axis=1)
        low, high = wilson_interval(successes, result.episodes)
        for i, row in enumerate(rows):
            row["success"][horizon] = float(successes[i] / result.episodes)
            row["interval"][horizon] = [round(float(low[i]), 4), round(float(high[i]), 4)]
        mean[horizon] = float(successes.mean() / result.episodes)
        solved[horizon] = int((successes >= 0.9 * result.episodes).sum())

    print(f"{'task':28}" + "".join(f"{f'{horizon} steps':>22}" for horizon in HORIZONS))
    for row in rows:
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(row["success"][h], *row["interval"][h]) for h in HORIZONS]
        print(f"{row['task']:28}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"{'mean':28}" + "".join(f"{mean[horizon]:>22.3f}" for horizon in HORIZONS))
    print(f"{'tasks at .9 or more':28}" + "".join(f"{solved[horizon]:>22}" for horizon in HORIZONS))
    settings = {"goals": result.goals, "seed": result.seed, "episodes": result.episodes, "versions": result.versions}
    stored = {"session": started, **settings, "rows": rows, "mean": mean, "tasks at .9 or more": solved}
    write(options.output, stored)


if __name__ == "__main__":
    main()
