"""Times updates with the denormal moments that long training leaves in Adam, and with these set to zero.

    python -m benchmarks.denormals runs/long-mt10-fixed/MT10-* --output docs/results/denormals-mt10.json

Nothing is learned, and no file of a run is changed. An existing file of results is continued.

`MultiTaskSAC` sets such moments to zero as it learns, so only runs of commits before 868605b have them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from dynroute_metaworld import Run
from dynroute_sb3 import MultiTaskSAC
from dynroute_sb3.denormals import clear_denormals
from dynroute_sb3.update import update

from .inside import columns, open_model
from .outputs import file
from .rows import Rows
from .timing import interleave, medians, ratios


def share(optimizers: list[Optimizer]) -> float:
    """The share of denormal numbers in the state of optimizers."""
    values = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    denormal = sum(int(((value != 0) & (value.abs() < torch.finfo(value.dtype).tiny)).sum()) for value in values)
    return denormal / sum(value.numel() for value in values)


def measure(model: MultiTaskSAC, seconds: float) -> dict[str, float]:
    """The share of denormal moments, and the milliseconds of an update with and without them."""
    assert model.replay_buffer is not None
    batch = model.replay_buffer.sample(model.batch_size)
    optimizers = [model.actor.optimizer, model.critic.optimizer]
    stored, found = [optimizer.state for optimizer in optimizers], share(optimizers)
    for optimizer in optimizers:
        copied = ((key, {name: value.clone() for name, value in old.items()}) for key, old in optimizer.state.items())
        optimizer.state = type(optimizer.state)(dict, copied)
    clear_denormals(*optimizers)
    cleared = [optimizer.state for optimizer in optimizers]

    def run(states: list[Any]) -> None:
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.state = state
        update(batch, model._networks(), model._coefficients())

    times = interleave({"with": lambda: run(stored), "without": lambda: run(cleared)}, seconds=seconds)
    return {"denormal": found, **medians(times), "ratio": ratios(times, "without")["with"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of runs with checkpoints")
    parser.add_argument("--output", type=file, required=True, help="the JSON file, continued if it is there")
    parser.add_argument("--seconds", type=float, default=30.0, help="the time for each run (30)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings, key = {"seconds": options.seconds, "threads": 1}, ("network", "seed", "steps")
    rows = Rows(options.output, "dynroute denormals 1", settings, program="benchmarks.denormals", key=key)
    for run in map(Run.open, options.folders):
        model = open_model(run)
        if (place := columns(run, model)) not in rows:
            rows.keep({**place, **measure(model, options.seconds)})


if __name__ == "__main__":
    main()
