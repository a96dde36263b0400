"""MT10 on one GPU for some minutes: `python -m benchmarks.gpu_train --method d2r --minutes 10`.

The CPU steps the environments while the GPU learns. Evaluations at intervals do not count as training time. The curve
is written after each evaluation, so no measurement is lost. `--device cpu --quick` tests the program with two tasks and
a small network.
"""

import argparse
import os
import time
from datetime import UTC, datetime
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

import dynroute
from dynroute_metaworld import evaluate
from dynroute_metaworld.runs.configuration import Configuration
from dynroute_metaworld.runs.presets import preset
from dynroute_metaworld.runs.training import environments, make_model

from .outputs import file, new_file, session, write

QUICK: dict[str, Any] = {"benchmark": "reach,drawer-close", "learning_starts": 10, "batch_size": 16}
FOREVER = 2**40
"""More steps than fit into the time."""


def configure(options: argparse.Namespace) -> Configuration:
    """Makes the configuration: the method as in its paper, with updates while the environments step."""
    chosen: dict[str, Any] = {"method": options.method, "seed": options.seed, "device": options.device}
    chosen |= {"overlap": True, "updates": options.updates, "precision": options.precision}
    configuration = preset("quick", chosen | QUICK) if options.quick else Configuration(**chosen)
    workers = min(os.cpu_count() or 1, len(configuration.tasks)) if options.workers is None else options.workers
    return Configuration(**{**vars_of(configuration), "workers": workers}).resolve()


def vars_of(configuration: Configuration) -> dict[str, Any]:
    return {name: getattr(configuration, name) for name in configuration.__dataclass_fields__}


class Curve(BaseCallback):
    """Evaluates at intervals, and stops when the time is over.

    Args:
        options: The command line.
        configuration: The configuration of the run.
        about: Further content of the file.
    """

    def __init__(self, options: argparse.Namespace, configuration: Configuration, about: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.configuration, self.about = options, configuration, about
        self.points: list[dict[str, Any]] = []
        self.end, self.every = 60 * options.minutes, 60 * options.minutes / options.evaluations
        self.trained, self.began = 0.0, time.monotonic()

    def seconds(self) -> float:
        """The time of training so far, without evaluations."""
        return self.trained + time.monotonic() - self.began

    def _on_rollout_start(self) -> None:
        if self.seconds() >= self.every * (len(self.points) + 1):
            self.evaluate()

    def _on_step(self) -> bool:
        return self.seconds() < self.end

    def evaluate(self) -> None:
        """Adds a point to the curve and writes the file."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()  # queued updates count as training time
        self.trained = self.seconds()
        given = self.configuration
        result = evaluate(
            self.model,
            given.benchmark_or_tasks,
            goals=given.goals,
            horizon=given.horizon,
            episodes=self.options.episodes,
            workers=given.workers,
        )
        last = self.points[-1] if self.points else {"minutes": 0.0, "steps": 0, "updates": 0}
        point: dict[str, Any] = {
            "minutes": self.trained / 60,
            "steps": self.model.num_timesteps // len(given.tasks),
            "updates": self.model._n_updates,
            "success": float(result.success_rates.mean()),
            "by task": dict(zip(given.tasks, result.success_rates.tolist(), strict=True)),
        }
        taken = 60 * max(point["minutes"] - last["minutes"], 1e-9)
        point |= {f"{name} a second": (point[name] - last[name]) / taken for name in ("steps", "updates")}
        self.points.append(point)
        write(self.options.output, {"about": self.about, "curve": self.points})
        print(
            f"{point['minutes']:6.2f} min  {point['steps']:8,} steps  {point['updates']:8,} updates "
            f"({point['updates a second']:.0f}/s)  success {point['success']:.2f}",
            flush=True,
        )
        self.began = time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    """Trains and writes the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--method", default="d2r")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, without evaluations")
    parser.add_argument("--updates", type=int, default=1, help="after each step of all environments")
    parser.add_argument("--backend", default="auto", help="of routed graphs; fused runs D2R's as one kernel on a GPU")
    parser.add_argument("--precision", default="float32", help="float32 or bf16")
    parser.add_argument("--evaluations", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=5, help="of each task in an evaluation")
    parser.add_argument("--workers", type=int, help="default: as many as there are cores, and not more than tasks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two tasks and a small network")
    parser.add_argument("--commit", help="the commit of this tree, where git cannot tell")
    parser.add_argument(
        "--output", type=file, help="default: a new file benchmarks/results/gpu-train-<method>-<options>.json"
    )
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; `--device cpu --quick` tries the program without one")
    options.output = options.output or new_file(f"gpu-train-{options.method}", parser, options, "method", "commit")
    torch.set_num_threads(1)  # the environments use the cores

    configuration = configure(options)
    card = torch.cuda.get_device_name() if torch.device(options.device).type == "cuda" else options.device
    about = {"card": card, "backend": options.backend, "torch": torch.__version__}
    started = session("benchmarks.gpu_train")
    about |= {"session": started, "commit": options.commit or started["commit"]}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "configuration": vars_of(configuration)}
    env = environments(configuration)
    try:
        model = make_model(configuration, env)
        model.set_logger(Logger(None, []))
        curve = Curve(options, configuration, about)
        with dynroute.backend(options.backend):
            model.learn(FOREVER, curve, log_interval=10**9)
        if len(curve.points) < options.evaluations:
            curve.evaluate()
    finally:
        env.close()


if __name__ == "__main__":
    main()
