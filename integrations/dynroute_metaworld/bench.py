"""Measures this machine: steps of the environments, updates of the methods, and how long a run would take."""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from dynroute.arguments import check_number
from dynroute.files import check_file_place, writing_file

from .envs.vec_env import MetaWorldVecEnv, make_envs
from .runs.configuration import Configuration
from .runs.provenance import machine, versions
from .runs.threads import choose_threads
from .runs.training import check_device, make_model

__all__ = ["bench"]


def bench(
    benchmark: str,
    methods: Sequence[str],
    workers: int,
    seconds: float,
    device: str = "auto",
    output: Path | None = None,
) -> None:
    """Prints the median times of a step and an update here, and the hours for the published number of steps.

    Args:
        benchmark: The benchmark, or tasks with commas between them.
        methods: The networks.
        workers: The processes for the environments.
        seconds: How long each is measured.
        device: Where the networks are.
        output: A JSON file for the same figures; its folder is made.
    """
    check_number("seconds", seconds, above=0)
    check_device(device)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)  # before anything is measured
        check_file_place("output", output)
    configurations = [Configuration(benchmark=benchmark, method=method, device=device).resolve() for method in methods]
    tasks, before = configurations[0].tasks, torch.get_num_threads()
    workers = min(workers, len(tasks))
    env = make_envs(configurations[0].benchmark_or_tasks, workers=workers)
    try:
        step, rows = _step_seconds(env, seconds), list[dict[str, Any]]()
        print(f"{len(tasks) / step:9,.0f} steps/s of the environments, {env.num_envs} tasks, {workers} workers")
        print(f"{'method':13} {'threads':>7} {'update':>10} {'published':>13} {'hours':>7}")
        for configuration in configurations:
            torch.set_num_threads(before)  # choose_threads may return torch's number
            torch.set_num_threads(used := choose_threads(configuration))
            update = _update_seconds(configuration, env, seconds)
            assert configuration.steps is not None
            steps = configuration.steps * len(tasks)
            # The steps of evaluation, for each step of training.
            evaluated = configuration.evaluation_episodes * configuration.horizon / configuration.evaluate_every
            hours = configuration.steps * ((1 + evaluated) * step + update) / 3600
            rows.append({"method": configuration.method, "threads": used, "update": update, "hours": hours})
            print(f"{configuration.method:13} {used:7} {1e3 * update:7.1f} ms {steps:>13,} {hours:7,.0f}")
        if output is not None:
            table = {"benchmark": benchmark, "workers": workers, "step": step, "machine": machine(), "rows": rows}
            with writing_file(output) as part:
                part.write_text(json.dumps({**table, "versions": versions()}, indent=1) + "\n")
    finally:
        torch.set_num_threads(before)
        env.close()


def _step_seconds(env: MetaWorldVecEnv, seconds: float) -> float:
    rng = np.random.default_rng(0)
    env.reset()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        env.step(rng.uniform(-1, 1, (env.num_envs, 4)).astype(np.float32))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _update_seconds(configuration: Configuration, env: MetaWorldVecEnv, seconds: float) -> float:
    """The median time of an update of the published size and of choosing the actions."""
    model = make_model(configuration, env)
    model.set_logger(Logger(None, []))
    model.learning_starts, model.gradient_steps = 10**9, 0
    model.learn(20 * env.num_envs, log_interval=None)  # type: ignore[arg-type]
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        model._sample_action(0, None, env.num_envs)
        model.train(1, model.batch_size)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
