"""Multi-task SAC with Stable-Baselines3.

One policy learns to push a point to the right, left, top or bottom; only the one-hot of the task tells it where. D2R
samples routes while it learns, and replays those that were taken. Checkpoints hold everything: start the program again
after it was killed, and it goes on from the last one. It prints the success of each task and how many modules its
routes used. It needs the extra `sb3`.
"""

from pathlib import Path

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from dynroute_sb3 import CheckpointDirectory, MultiTaskSAC, latest_checkpoint, point_tasks

FOLDER = Path("checkpoints")
NAMES = ["right", "left", "top", "bottom"]


def build(env: VecMonitor) -> MultiTaskSAC:
    """Makes SAC for tasks with a short horizon, with a small D2R network."""
    sizes = {"num_modules": 4, "width": 32, "trunk_sizes": (64, 64), "router_sizes": (64,)}
    return MultiTaskSAC(
        "D2RPolicy",
        env,
        learning_rate=1e-3,
        gamma=0.9,
        batch_size=128,
        learning_starts=200,
        ent_coef="auto_0.1",
        task_names=NAMES,
        policy_kwargs={"network_kwargs": sizes},
        seed=0,
    )


@torch.no_grad()
def evaluate(model: MultiTaskSAC, env: VecMonitor, episodes: int = 10) -> dict[str, tuple[float, float]]:
    """Computes the success of each task and the mean number of modules used, along the best routes."""
    successes, used = torch.zeros(len(NAMES)), torch.zeros(len(NAMES))
    env.seed(0)
    observations = env.reset()
    for _ in range(20 * episodes):
        _, route = model.actor.act(torch.as_tensor(observations, device=model.device), deterministic=True)
        used += model.policy.topology.used(route.path).sum(dim=-1).cpu()
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, infos = env.step(actions)
        successes += torch.tensor([info["is_success"] and done for info, done in zip(infos, dones, strict=True)])
    return {name: (successes[i].item() / episodes, used[i].item() / (20 * episodes)) for i, name in enumerate(NAMES)}


def main(steps: int = 6000) -> dict[str, tuple[float, float]]:
    """Trains and evaluates."""
    env = VecMonitor(DummyVecEnv(point_tasks()))
    stored = latest_checkpoint(FOLDER)
    model = build(env) if stored is None else MultiTaskSAC.load_checkpoint(stored, env)
    left = steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=CheckpointDirectory(2000, FOLDER), reset_num_timesteps=False, progress_bar=True)

    results = evaluate(model, VecMonitor(DummyVecEnv(point_tasks())))
    print("task    success  modules used of 5")
    for name, (success, used) in results.items():
        print(f"{name:6} {success:8.0%} {used:18.1f}")
    return results


if __name__ == "__main__":
    main()
