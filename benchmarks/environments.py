"""Times steps of ten Meta-World tasks with random actions, beside the vectors of Stable-Baselines3 and gymnasium.

    python -m benchmarks.environments

All step the environments of MT10 with goals of one benchmark object, one-hots and a horizon of 100; SB3 and gymnasium
run a process for each task. A timed block is one episode of every task including its reset.
"""

import argparse
import functools
import os
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task
from metaworld.wrappers import OneHotWrapper, RandomTaskSelectWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

from dynroute_metaworld import make_envs
from dynroute_metaworld.envs.tasks import goals_of

from .outputs import parse, session, write
from .timing import Job, interleave, medians, ratios

BENCHMARK, HORIZON = "MT10", 100
OTHERS = ("SubprocVecEnv", "AsyncVectorEnv")
PACKAGES = ("metaworld", "mujoco", "gymnasium", "stable-baselines3", "numpy")


def make(name: str, index: int, count: int, tasks: tuple[Task, ...], monitored: bool) -> gym.Env[Any, Any]:
    """Builds a task from the wrappers of Meta-World and gymnasium, as their users do."""
    env: Any = ALL_V3_ENVIRONMENTS[f"{name}-v3"](reward_function_version="v2")
    env.seed(index)
    env = OneHotWrapper(gym.wrappers.TimeLimit(env, HORIZON), index, count)
    env = RandomTaskSelectWrapper(env, list(tasks))
    return Monitor(env) if monitored else env


def makers(monitored: bool) -> list[Callable[[], gym.Env[Any, Any]]]:
    goals = goals_of(BENCHMARK, 0)
    return [
        functools.partial(make, name, i, len(goals), tasks, monitored) for i, (name, tasks) in enumerate(goals.items())
    ]


def cpu_seconds(env: Any) -> float:
    """Returns the CPU time of this process and those of an environment, which other programs hardly affect."""
    workers = getattr(env, "processes", None) or [part.process for part in env._parts if hasattr(part, "process")]
    ticks = 0
    for pid in (os.getpid(), *(worker.pid for worker in workers)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="duration of the comparison")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of dynroute's workers")
    options = parse(parser, "environments.json")
    load, started = os.getloadavg()[0], session("benchmarks.environments")  # the load of other programs

    envs: dict[str, Any] = {
        "SubprocVecEnv": SubprocVecEnv(makers(True)),
        "AsyncVectorEnv": AsyncVectorEnv(makers(False), autoreset_mode=AutoresetMode.SAME_STEP),
    }
    for workers in options.workers:
        envs[f"dynroute, workers={workers}"] = make_envs(
            BENCHMARK, goals="benchmark", horizon=HORIZON, seed=0, workers=workers
        )
    count = len(goals_of(BENCHMARK, 0))
    actions = np.random.default_rng(0).uniform(-1, 1, (HORIZON, count, 4)).astype(np.float32)

    spent: dict[str, list[float]] = {name: [] for name in envs}

    def episode(name: str, env: Any) -> Job:
        def job() -> None:
            before = cpu_seconds(env)
            for action in actions:
                env.step(action)
            spent[name].append(cpu_seconds(env) - before)

        return job

    try:
        for env in envs.values():
            env.reset()
        times = interleave({name: episode(name, env) for name, env in envs.items()}, seconds=options.seconds)
    finally:
        for env in envs.values():
            env.close()

    to = {base: ratios(times, base) for base in OTHERS}
    rows: list[dict[str, Any]] = []
    for name, middle in medians(times).items():
        row: dict[str, Any] = {
            "name": name,
            "steps per second": 1e3 * HORIZON * count / middle,
            "microseconds of CPU": 1e6 * statistics.mean(spent[name]) / (HORIZON * count),
            "faster than": {base: 1 / to[base][name] for base in OTHERS},
            # With other programs on the machine, the fastest rounds are the most reliable.
            "at best": {base: min(times[base]) / min(times[name]) for base in OTHERS},
        }
        cells = "  ".join(f"{row['faster than'][base]:.2f} ({row['at best'][base]:.2f}) x {base}" for base in OTHERS)
        rows.append(row)
        print(
            f"{name:20} {row['steps per second']:6.0f} steps/s  {row['microseconds of CPU']:5.0f} us of CPU  {cells}",
            flush=True,
        )
    result = {
        "session": started,
        "benchmark": BENCHMARK,
        "horizon": HORIZON,
        "load at the start": load,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
        "rounds": len(next(iter(times.values()))),
        "rows": rows,
    }
    write(options.output, result)


if __name__ == "__main__":
    main()
