"""Times writing the page about a run with a million logged points, and opening it in a browser.

    python -m benchmarks.page --lines 16667

The run takes a few steps in MT10, and its metrics are replaced by `--lines` lines, each with a value of every metric
for every task. The page holds curves and routes without frames. Time in the browser counts from navigation on the clock
of the page, until the first curve is laid out and until the end of loading.
"""

import argparse
import html
import json
import multiprocessing
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from . import outputs

# Imports count as memory of the measured processes, so large ones are made only inside functions.

METRICS = ("success", "return", "modules_used", "route_temperature", "ent_coef", "critic_loss")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

CLOCK = """
<script>
{
  const lines = [...document.querySelectorAll("#chart path.line")].filter((line) => line.getBBox().width > 0).length;
  const times = { lines, drawn: performance.now() }; addEventListener("load", () => {
    times.load = performance.now(); document.body.dataset.times = JSON.stringify(times);
  });
}
</script>
"""


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def build(folder: Path, lines: int) -> int:
    """Makes the run, and returns the number of logged points."""
    import numpy as np

    from dynroute_metaworld import Configuration, Run, train

    sizes = {"trunk_sizes": [8, 8], "router_sizes": [8]}
    schedule: dict[str, Any] = {"steps": 40, "horizon": 20, "learning_starts": 20, "final_episodes": 2}
    configuration = Configuration(
        goals="fixed", batch_size=4, num_modules=6, width=8, network=sizes, device="cpu", **schedule
    )
    run = Run.create(folder, configuration)
    train(run)
    tasks = configuration.tasks
    values = np.random.default_rng(0).random((lines, len(METRICS), len(tasks))).round(4)
    with run.metrics.open("w") as file:
        for number, row in enumerate(values.tolist(), start=1):
            logged = {f"{metric}/{task}": row[i][j] for i, metric in enumerate(METRICS) for j, task in enumerate(tasks)}
            file.write(json.dumps({"step": 1000 * len(tasks) * number, **logged}) + "\n")
    return values.size


def peak() -> float:
    """Returns the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(folder: Path) -> dict[str, float]:
    """Reads the files of the run, and returns time and memory."""
    from dynroute_metaworld.report.data import read_run
    from dynroute_metaworld.report.page import POINTS

    before, start, used = peak(), time.perf_counter(), time.process_time()
    read_run(folder, limit=POINTS)
    took = {"seconds": time.perf_counter() - start, "seconds of CPU": time.process_time() - used}
    return {**took, "peak MB": peak(), "peak MB before": before}


def write(folder: Path, page: Path) -> dict[str, float]:
    """Writes the page, for which the policy acts as well, and returns time and memory."""
    from dynroute_metaworld.report import write_report

    start, used = time.perf_counter(), time.process_time()
    write_report([folder], page, frames=False, device="cpu", tell=lambda sentence: None)
    took = {"seconds": time.perf_counter() - start, "seconds of CPU": time.process_time() - used}
    return {**took, "peak MB": peak(), "page MB": page.stat().st_size / 1e6}


def browse(browser: str, page: Path) -> dict[str, float]:
    """Opens a copy of the page with a clock in a browser with a new profile."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy.html"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{CLOCK}</body>"), encoding="utf-8")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={name}/profile"]
        command += ["--window-size=1400,1000", "--dump-dom", f"file://{copy}"]
        dumped = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    (text,) = re.findall(r'data-times="(.*?)"', dumped)
    times: dict[str, float] = json.loads(html.unescape(text))
    assert times["lines"] > 0, "no curve was drawn"
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=16_667, help="lines of metrics, 60 points each")
    parser.add_argument("--times", type=int, default=5, help="times to open the page")
    options = outputs.parse(parser, "page.json")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"a browser must be there to open the page, one of {', '.join(BROWSERS)}")
    load = os.getloadavg()[0]  # the load of other programs
    session = alone(outputs.session, "benchmarks.page")

    with tempfile.TemporaryDirectory() as name:
        run, page = Path(name) / "run", Path(name) / "report.html"
        points = alone(build, run, options.lines)
        logged = (run / "metrics.jsonl").stat().st_size / 1e6
        reading, written = alone(read, run), alone(write, run, page)
        opened = [browse(browser, page) for _ in range(options.times)]

    times = {part: [round(opening[part], 1) for opening in opened] for part in ("drawn", "load")}
    version = subprocess.run([browser, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    result = {
        "session": session,
        "points": points,
        "metrics MB": logged,
        "reading": reading,
        "report": written,
        "browser": version,
        "milliseconds": {part: {"median": statistics.median(taken), "all": taken} for part, taken in times.items()},
        "load at the start": load,
        "cores": os.cpu_count(),
    }
    print(f"{points:,} points in {logged:.0f} MB of metrics, {written['page MB']:.2f} MB of a page")
    for what, took in (("read", reading), ("written, including the policy's actions", written)):
        seconds = f"{took['seconds']:6.1f} s ({took['seconds of CPU']:.1f} of CPU)"
        print(f"{seconds} and {took['peak MB']:.0f} MB of memory until it is {what}")
    for part, event in (("drawn", "the first curve is drawn"), ("load", "it is loaded")):
        print(f"{statistics.median(times[part]):6.0f} ms until {event} (at most {max(times[part]):.0f})")
    outputs.write(options.output, result)


if __name__ == "__main__":
    main()
