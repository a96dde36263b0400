"""Trains small transformers on the docstrings of Python's library, dense and routed; see `--help`.

Runs that `--output` already holds are skipped, so the program resumes where it was stopped.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynroute import Record, RoutedGraph, inspect, record

from . import transformers
from .outputs import RESULTS, file, session, write
from .text import SYMBOLS, docstrings, split
from .timing import Job, interleave, medians, ratios
from .transformers import LENGTH, PARTS, Transformer, products

Result = dict[str, Any]

BATCH = 32
RATE, WARM_UP, BALANCE = 2e-3, 50, 0.01
TESTED = 256
"""The number of windows for the validation loss."""

CLASSES: dict[str, Callable[[str], bool]] = {
    "lower case": str.islower,
    "upper case": str.isupper,
    "digit": str.isdigit,
    "space": lambda c: c == " ",
    "end of line": lambda c: c == "\n",
    "other sign": lambda c: True,
}


def batches(text: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draws windows and the following characters, the same for all networks."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
        windows = text[starts + torch.arange(LENGTH + 1)]
        yield windows[:, :-1], windows[:, 1:]


def test_windows(text: Tensor) -> Tensor:
    """Returns evenly spaced windows of the held-out text."""
    starts = torch.linspace(0, len(text) - LENGTH - 1, TESTED).long()[:, None]
    return text[starts + torch.arange(LENGTH + 1)]


def cross_entropy(logits: Tensor, following: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())


class Training:
    """A network, its optimizer and its text."""

    def __init__(self, name: str, seed: int, text: Tensor) -> None:
        torch.manual_seed(seed)
        self.net = Transformer(PARTS[name])
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=RATE)
        self.batches = batches(text, seed)
        self.steps = 0

    def step(self) -> None:
        tokens, following = next(self.batches)
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = RATE * min(1.0, self.steps / WARM_UP)
        logits, balance = self.net(tokens)
        loss = cross_entropy(logits, following) + BALANCE * balance
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def test(self, windows: Tensor) -> float:
        self.net.eval()
        losses = [cross_entropy(self.net(part[:, :-1])[0], part[:, 1:]) for part in torch.split(windows, BATCH)]
        self.net.train()
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def modules_run(self, tokens: Tensor) -> float:
        """Computes the mean number of modules of a routed part that a token runs in training."""
        if not is_routed(self.net):
            return transformers.ACTIVE
        with record(self.net) as routes:
            self.net(tokens)
        return sum(float(layer.load_history.sum()) for layer in routes.values()) / len(routes)


def is_routed(net: nn.Module) -> bool:
    return any(isinstance(part, RoutedGraph) for part in net.modules())


def train(name: str, seed: int, texts: tuple[Tensor, Tensor], seconds: float, every: int) -> Result:
    """Trains for a number of CPU seconds and returns the results."""
    torch.set_num_threads(1)
    run, windows = Training(name, seed, texts[0]), test_windows(texts[1])
    load, began, taken, work = os.getloadavg()[0], time.perf_counter(), 0.0, 0.0
    curve = [{"step": 0, "seconds": 0.0, "products": 0.0, "loss": run.test(windows)}]
    history: list[Tensor] = []
    while taken < seconds or run.steps < every:
        modules = run.modules_run(windows[:BATCH, :-1])
        for i in range(every):
            records = seed == 0 and i % 10 == 0 and is_routed(run.net)
            start = time.process_time()
            with record(run.net) if records else nullcontext() as routes:
                run.step()
            taken += time.process_time() - start
            if routes is not None:
                history.append(torch.stack([layer.load_history[0] for layer in routes.values()]))
        work += 3 * every * BATCH * LENGTH * products(name, modules)  # backward takes two products for each
        curve.append({"step": run.steps, "seconds": taken, "products": work, "loss": run.test(windows)})
    result: Result = {
        "name": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in run.net.parameters()),
        "products": products(name, modules),
        "curve": curve,
        "wall seconds": time.perf_counter() - began,
        "load at the start": load,
    }
    if is_routed(run.net):
        result["routes"] = read_routes(run.net, windows)
        result["history"] = [[[round(share, 4) for share in row] for row in step.tolist()] for step in history]
    return result


@torch.no_grad()
def read_routes(net: nn.Module, windows: Tensor) -> list[Result]:
    """Computes, for each block, the distribution of the load and the dependence of a route on the token's character."""
    net.eval()
    tokens = windows[:, :-1]
    with record(net) as routes:
        for part in torch.split(tokens, BATCH):
            net(part)
    net.train()
    return [read_layer(layer, tokens.flatten()) for layer in routes.values()]


def read_layer(layer: Record, tokens: Tensor) -> Result:
    used = layer.topology.used(layer.route.path)[..., :-1].flatten(0, -2).double()
    shares = used / used.sum(dim=-1, keepdim=True)  # each token counts once
    joint = torch.zeros(len(SYMBOLS) + 1, used.shape[-1], dtype=torch.double).index_add_(0, tokens, shares) / len(used)
    symbol, module = joint.sum(dim=1), joint.sum(dim=0)
    information = entropy(module) + entropy(symbol) - entropy(joint)
    lift = joint / (symbol[:, None] * module).clamp(min=1e-12)
    lift[symbol * len(used) < 100] = 0.0  # too rare
    first = lift.argsort(dim=0, descending=True, stable=True)[:6]
    kinds = torch.tensor([kind(symbol) for symbol in [*SYMBOLS, "é"]])
    runs = inspect.by_task(used.sum(dim=-1), kinds[tokens], num_tasks=len(CLASSES))
    return {
        "load": [round(share, 4) for share in module.tolist()],
        "entropy": entropy(module) / math.log(len(module)),
        "dead": int((module < 0.1 / len(module)).sum()),
        "told by the character": information / max(entropy(module), 1e-12),
        "favourites": ["".join(SYMBOLS[i] for i in column if i < len(SYMBOLS)) for column in first.T.tolist()],
        "modules run": dict(zip(CLASSES, runs.tolist(), strict=True)),
        "modules run by all": float(used.sum(dim=-1).mean()),
    }


def kind(symbol: str) -> int:
    return next(i for i, belongs in enumerate(CLASSES.values()) if belongs(symbol))


def entropy(probability: Tensor) -> float:
    """Computes the entropy in nats."""
    return float(-torch.xlogy(probability, probability).sum())


def compare(text: Tensor, seconds: float, base: str = "loop, loss") -> Result:
    """Times a training step of each network, alternating with the loop."""
    torch.set_num_threads(1)
    others = [name for name in PARTS if name != base]
    result: Result = {"ms": {}, "to loop": {}, "rounds": []}
    for name in others:
        jobs: dict[str, Job] = {network: Training(network, 0, text).step for network in (base, name)}
        times = interleave(jobs, seconds=seconds / len(others))
        result["ms"] |= medians(times)
        result["to loop"] |= ratios(times, base)
        result["rounds"].append(len(times[base]))
    return result


def settings(texts: tuple[Tensor, Tensor], seconds: float, every: int) -> Result:
    """The settings that all runs of a file share."""
    sizes = {name.lower(): value for name, value in vars(transformers).items() if isinstance(value, int)}
    return {
        **sizes,
        "batch": BATCH,
        "learning rate": RATE,
        "balance": BALANCE,
        "tested windows": TESTED,
        "characters": [len(text) for text in texts],
        "seconds": seconds,
        "every": every,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def summarize(runs: list[Result], ratios: dict[str, float], base: str = "dense, active size") -> Result:
    """Computes the losses of all networks at equal time, products and tokens, and their differences from the base.

    There are two measures of time: CPU seconds, which other programs increase by using the caches, and the number of
    steps times the time ratio of a step when networks alternate.
    """
    curves = {
        (run["name"], run["seed"]): [point | {"turns": point["step"] * ratios[run["name"]]} for point in run["curve"]]
        for run in runs
    }
    ends = {
        unit: min(curve[-1][unit] for curve in curves.values()) for unit in ("turns", "seconds", "products", "step")
    }
    losses = {(*key, unit): loss_at(curve, unit, end) for key, curve in curves.items() for unit, end in ends.items()}
    rows = []
    for name in dict.fromkeys(run["name"] for run in sorted(runs, key=lambda run: list(PARTS).index(run["name"]))):
        same = [run for run in runs if run["name"] == name]
        row: Result = {
            "name": name,
            "seeds": sorted(run["seed"] for run in same),
            "parameters": same[0]["parameters"],
            "products": statistics.mean(run["products"] for run in same),
            "loss": {},
            "difference": {},
        }
        for unit in ends:
            row["loss"][unit] = mean_interval([losses[name, seed, unit] for seed in row["seeds"]])
            both = [seed for seed in row["seeds"] if (base, seed, unit) in losses]
            if name != base and both:
                gaps = [losses[name, seed, unit] - losses[base, seed, unit] for seed in both]
                row["difference"][unit] = mean_interval(gaps)
        rows.append(row)
    return {"ends": ends, "base": base, "rows": rows, "loop to mixture": equality(runs)}


def loss_at(curve: list[Result], unit: str, end: float) -> float:
    """Interpolates the loss at a point of a curve linearly."""
    after = next(i for i, point in enumerate(curve) if point[unit] >= end)
    if after == 0:
        return float(curve[0]["loss"])
    left, right = curve[after - 1], curve[after]
    share = (end - left[unit]) / (right[unit] - left[unit])
    return float(left["loss"] + share * (right["loss"] - left["loss"]))


def mean_interval(values: list[float]) -> Result:
    """Computes a mean and, for several values, its 95 % interval by Student's distribution."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return {"mean": mean, "interval": None}
    import scipy.stats  # here, since runs do not need it and it takes a while to import

    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": mean, "interval": [mean - half, mean + half]}


def equality(runs: list[Result]) -> Result:
    """Computes the first and the largest difference of the losses of loop and mixture at equal steps."""
    curves = {(run["name"], run["seed"]): run["curve"] for run in runs}
    gaps: dict[int, float] = {}
    for name, seed in curves:
        if name != "loop, loss" or ("mixture, loss", seed) not in curves:
            continue
        for mixture, loop in zip(curves["mixture, loss", seed], curves[name, seed], strict=False):
            gaps[mixture["step"]] = max(gaps.get(mixture["step"], 0.0), abs(mixture["loss"] - loop["loss"]))
    tested = [gap for step, gap in sorted(gaps.items()) if step]
    return {"first": tested[0], "most": max(tested)} if tested else {}


def store(path: Path, stored: Result) -> None:
    if stored["runs"]:
        stored["summary"] = summarize(stored["runs"], stored["steps"]["to loop"])
    write(path, stored)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the processor, for the training of each run")
    parser.add_argument("--every", type=int, default=50, help="steps between two tests")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--names", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, each with one thread")
    parser.add_argument("--compare-seconds", type=float, default=90.0, help="for the times of a step, in turns")
    parser.add_argument("--output", type=file, default=RESULTS / "language.json")
    options = parser.parse_args(arguments)

    texts = split(docstrings())
    common = settings(texts, options.seconds, options.every)
    stored: Result = json.loads(options.output.read_text()) if options.output.exists() else {}
    if stored.setdefault("settings", common) != common:
        parser.error(f"{options.output} holds runs with other settings; name another `--output`, or delete it")
    runs = stored.setdefault("runs", [])
    made = {(run["name"], run["seed"]) for run in runs}
    missing = [(name, seed) for seed in range(options.seeds) for name in options.names if (name, seed) not in made]
    if missing or "steps" not in stored:
        stored.setdefault("sessions", []).append(session("benchmarks.language"))
    if "steps" not in stored:
        stored["steps"] = compare(texts[0], options.compare_seconds) | {"load at the start": os.getloadavg()[0]}
    store(options.output, stored)
    for run in train_all(missing, texts, options):
        runs.append(run)
        store(options.output, stored)
        last = run["curve"][-1]
        print(f"{run['name']:20} seed {run['seed']}  {last['step']:5} steps  loss {last['loss']:.4f}", flush=True)


def train_all(
    missing: list[tuple[str, int]], texts: tuple[Tensor, Tensor], options: argparse.Namespace
) -> Iterator[Result]:
    """Yields the results of runs as they finish."""
    if options.jobs == 1:
        yield from (train(*run, texts, options.seconds, options.every) for run in missing)
        return
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        tasks = [pool.submit(train, *run, texts, options.seconds, options.every) for run in missing]
        yield from (task.result() for task in as_completed(tasks))


if __name__ == "__main__":
    main()
