"""Profiles a training step by operator: `python -m benchmarks.profile module` or `layer`."""

import argparse

import torch

from .cases import layer_level, module_level


def main() -> None:
    """Profiles the fused backend on one case and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("level", choices=("module", "layer"))
    parser.add_argument("--batch", type=int, default=1280)
    options = parser.parse_args()

    make = module_level if options.level == "module" else layer_level
    case = make(options.batch, "training step")
    step = case.jobs["fused"]
    for _ in range(10):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(50):
            step()
    print(case.name)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


if __name__ == "__main__":
    main()
