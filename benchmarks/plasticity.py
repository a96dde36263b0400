"""Measures how much of their capacity the critics of runs use, at each checkpoint that a run keeps.

    python -m benchmarks.plasticity runs/capacity-mt10-fixed/MT10-* --output docs/results/capacity-mt10-plasticity.json

Nothing is learned, and no file of a run is changed. An existing file of results is continued.

It takes transitions of the replay buffer, as many of each task, and measures along the best routes: the share of
dormant units and the effective rank of the features, both means over the critics, and of each critic the flow through
its nodes ("loads"), which in a mixture is the mean weight of an expert.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch

from dynroute_metaworld import Run
from dynroute_sb3 import critic_plasticity
from dynroute_sb3.checkpoint import checkpoints

from .inside import columns, open_model
from .outputs import file
from .rows import Rows


def measure(folders: list[Path], transitions: int, output: Path) -> None:
    torch.set_num_threads(1)
    settings, key = {"transitions": transitions}, ("network", "seed", "steps")
    rows = Rows(output, "dynroute plasticity 1", settings, program="benchmarks.plasticity", key=key)
    for run in map(Run.open, folders):
        for checkpoint in checkpoints(run.checkpoints):
            model = open_model(run, checkpoint)
            if (place := columns(run, model)) in rows:
                continue
            # The transitions are the same each time: the checkpoint has the seed.
            critics = critic_plasticity(model, transitions)
            row = {
                "dormant": fmean(critic.dormant for critic in critics),
                "rank": fmean(critic.rank for critic in critics),
                "features": critics[0].features,
                # That of the output, which is last, is always 1.
                "loads": [flow[:-1].tolist() for critic in critics for flow in critic.flow.values()],
            }
            rows.keep({**place, **row}, shown=str(place))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs with checkpoints")
    parser.add_argument("--output", type=file, required=True, help="the JSON file, continued if it is there")
    parser.add_argument("--transitions", type=int, default=2000, help="transitions of all tasks together (2000)")
    options = parser.parse_args()
    measure(options.folders, options.transitions, options.output)


if __name__ == "__main__":
    main()
