"""Times an update of the learner of BRC beside one of MT-SAC with a batch of the same size.

    python -m benchmarks.learner

The learner is that of ``dynroute train --preset brc-small``: critics of 101 bins, 512 transitions of the ten tasks of
MT10 together. MT-SAC has three hidden layers of 256 and learns values by their squared errors.
"""

import argparse
import functools
from typing import Any

import torch

from dynroute_metaworld.runs.presets import preset
from dynroute_metaworld.runs.training import make_model

from .outputs import parse, session, write
from .sac import fill, still_tasks
from .timing import Job, interleave, medians, ratios

BATCH = 512
RESIDUAL = {"module_kind": "residual", "num_modules": 8, "width": 96, "trunk_sizes": [256, 256], "router_sizes": [128]}
LEARNERS: dict[str, dict[str, Any]] = {
    "brc": {},
    "scalemoe-feature": {"network": {"num_experts": 8, "width": 128}},
    "d2r": {"network": RESIDUAL},
}
"""The networks that are timed with the learner of BRC, and their sizes."""


def update_of(preset_name: str, **options: Any) -> Job:
    """Makes a job of an update with the settings of a preset."""
    configuration = preset(preset_name, {"mixed_batch_size": BATCH, "benchmark": "MT10", "device": "cpu", **options})
    model = make_model(configuration, still_tasks())
    fill(model)
    return functools.partial(model.train, 1, BATCH)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="duration of each row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parse(parser, "learner.json", arguments)
    started = session("benchmarks.learner")
    torch.manual_seed(0)
    plain = {"method": "mt-sac", "network": {"hidden_sizes": [256, 256, 256]}, "buffer_size": 20_000}
    base = update_of("paper", **plain)
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for method, sizes in LEARNERS.items():
            jobs = {
                precision: update_of("brc-small", method=method, precision=precision, buffer_size=20_000, **sizes)
                for precision in ("float32", "bf16")
            }
            times = interleave({**jobs, "mt-sac": base}, seconds=options.seconds)
            row = {"network": method, "threads": threads, "ms": medians(times), "to mt-sac": ratios(times, "mt-sac")}
            cells = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["to mt-sac"].items() if name != "mt-sac")
            print(f"{threads} threads  {method:17} {row['ms']['float32']:6.1f} ms  x mt-sac: {cells}", flush=True)
            rows.append(row)
    result = {"session": started, "torch": torch.__version__, "batch": BATCH, "rows": rows}
    write(options.output, result)


if __name__ == "__main__":
    main()
