"""Stores what the example on conflicting tasks finds, with several seeds.

    python -m benchmarks.conflict --output docs/results/conflict.json

A file that is there is gone on with. Networks, tasks and sizes are those of examples/conflicting_tasks.py.
"""

import argparse
import contextlib
import io
import itertools
import runpy
from pathlib import Path

import torch

from .outputs import file
from .rows import Rows

EXAMPLE = Path(__file__).parent.parent / "examples" / "conflicting_tasks.py"
NETWORKS = ("single", "soft", "top-2", "separate")


def measure(steps: int, conflicts: list[float], seeds: list[int], output: Path) -> None:
    torch.set_num_threads(1)
    settings = {"steps": steps, "conflicts": conflicts}
    key = ("seed", "network", "conflict")
    rows = Rows(output, "dynroute conflict 1", settings, program="benchmarks.conflict", key=key)
    main = runpy.run_path(str(EXAMPLE))["main"]
    for seed, conflict in itertools.product(seeds, conflicts):
        if all({"seed": seed, "network": network, "conflict": conflict} in rows for network in NETWORKS):
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # rows are shown as they are kept
            found = main(steps, [conflict], seed)
        for row in found:
            rows.keep(row)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file, required=True, help="the JSON file, which is gone on with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--steps", type=int, default=2000, help="of each network (2000)")
    parser.add_argument(
        "--conflicts", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0], help="(0 0.25 0.5 0.75 1)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    measure(**vars(parse()))
