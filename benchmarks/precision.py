"""Learns the point tasks in float32 and with matrix products in bfloat16, from several seeds.

python -m benchmarks.precision
"""

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute_sb3 import MultiTaskSAC, point_tasks
from dynroute_sb3.options import PRECISIONS

from .outputs import parse, session, write

SIZES: dict[str, dict[str, Any]] = {
    "mt-sac": {"hidden_sizes": (64, 64)},
    "d2r": {"num_modules": 4, "width": 32, "trunk_sizes": (32,), "router_sizes": (32,)},
}
HORIZON, EPISODES = 20, 20


def learn(network: str, precision: str, seed: int, steps: int) -> dict[str, float]:
    """Trains, and returns the mean success and return over the tasks."""
    model = MultiTaskSAC(
        "MultiTaskPolicy",
        DummyVecEnv(point_tasks() * 2),
        learning_rate=lambda left: 3e-3 * min(1, 2 * left),
        gamma=0.9,
        tau=0.02,
        batch_size=128,
        buffer_size=20_000,
        learning_starts=400,
        ent_coef="auto_0.1",
        policy_kwargs={"network": network, "network_kwargs": SIZES[network]},
        precision=precision,
        seed=seed,
        device="cpu",
    ).learn(steps)
    env = DummyVecEnv(point_tasks())
    env.seed(1000)
    observations, total, successes = env.reset(), 0.0, []
    for _ in range(HORIZON * EPISODES):
        actions, _ = model.predict(observations, deterministic=True)
        observations, rewards, dones, infos = env.step(actions)
        total += float(np.mean(rewards)) / EPISODES
        successes += [info["is_success"] for done, info in zip(dones, infos, strict=True) if done]
    return {"success": float(np.mean(successes)), "return": total}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5600)
    options = parse(parser, "precision.json", arguments)
    torch.set_num_threads(1)
    started, rows = session("benchmarks.precision"), []
    for network in SIZES:
        for precision in PRECISIONS:
            runs = [learn(network, precision, seed, options.steps) for seed in range(1, options.seeds + 1)]
            for figure in ("success", "return"):
                values = [run[figure] for run in runs]
                rows.append({"network": network, "precision": precision, "figure": figure, "seeds": values})
                print(
                    f"{network:7} {precision:8} {figure:8} {statistics.mean(values):6.2f}  "
                    f"from {min(values):.2f} to {max(values):.2f}",
                    flush=True,
                )
    about = {"torch": torch.__version__, "steps": options.steps, "tasks": 4}
    write(options.output, {"session": started, "about": about, "rows": rows})


if __name__ == "__main__":
    main()
