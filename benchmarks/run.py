"""Times every case and writes a table, a JSON file and beside it a picture; `python -m benchmarks.run --help`."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dynroute.files import writing_file
from dynroute.networks import available

from .cases import CASES, Case, module_level, scaling
from .networks import time_network
from .outputs import parse, session, write
from .timing import interleave, medians, peak_bytes, ratios

Row = dict[str, object]


def measure(case: Case, seconds: float) -> Row:
    """Times one case and prints its row."""
    times = interleave(case.jobs, seconds=seconds)
    ms, ratio = medians(times), ratios(times, "textbook")
    cells = "  ".join(f"{name} {ms[name]:.2f} ({ratio[name]:.2f})" for name in times)
    print(f"{case.name:32} {case.mode:13} {case.batch:5}  {cells}", flush=True)
    return {"case": case.name, "mode": case.mode, "batch": case.batch, "ms": ms, "to textbook": ratio}


def memory() -> Row:
    """Measures the peak memory of a training step beside that of chained modules."""
    jobs = module_level(1280, "training step").jobs
    peaks = {name: peak_bytes(job) / 2**20 for name, job in jobs.items()}
    print("peak MiB of a training step, module level 16x128, batch 1280:")
    print("  " + "  ".join(f"{name} {mib:.1f}" for name, mib in peaks.items()), flush=True)
    return {"case": "module level 16x128 top-2", "mode": "peak MiB", "batch": 1280, "MiB": peaks}


def plot(curves: dict[str, list[tuple[int, Row]]], path: Path) -> None:
    """Draws the time of a training step along each size."""
    figure = Figure(figsize=(4 * len(curves), 4), layout="constrained")
    for axes, (size, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for name in points[0][1]["ms"]:
            axes.loglog([n for n, _ in points], [row["ms"][name] for _, row in points], marker="o", label=name)
        axes.set(xlabel=size, ylabel="ms per training step", title=f"module level along {size}")
        axes.set_xticks([n for n, _ in points], [str(n) for n, _ in points])
        axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    with writing_file(path) as part:
        figure.savefig(part, dpi=120)


def main() -> None:
    """Runs the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 128, 1280, 6400])
    parser.add_argument("--only", default="", help="time the cases whose name contains this")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the scaling curves")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long each case is timed")
    options = parse(parser, "speed.json")

    started = session("benchmarks.run")
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; median ms (median ratio to the textbook form)"
    )
    rows = [
        measure(case, options.seconds)
        for make in CASES
        for batch in options.batches
        for mode in ("training step", "inference")
        if options.only in (case := make(batch, mode)).name
    ]
    rows.append(memory())
    whole = [time_network(name, options.seconds) for name in available() if options.only in name]
    curves: dict[str, list[tuple[int, Row]]] = {}
    if not options.no_scaling:
        curves = {size: [(n, measure(case, options.seconds)) for n, case in cases] for size, cases in scaling().items()}

    result = {"session": started, "rows": rows, "networks": whole, "scaling": curves}
    write(options.output, result)
    if curves:
        plot(curves, options.output.with_suffix(".png"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
