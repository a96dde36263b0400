"""When does routing pay? Tasks that conflict as much as one likes, learned by networks of equal size.

Each task is to push a point to a place in view, and turns what an action means by an angle of its own. Without conflict
all tasks are one; with a conflict of 1 the angles are spread over the circle, and what is right for one task is wrong
for another. One sees the success of each network at each conflict. It needs the extra `sb3`.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm

from dynroute_sb3 import MultiTaskSAC, OneHotTask, PointTask

TASKS = 12
# As many parameters in actor and critics, within a tenth.
NETWORKS: dict[str, dict[str, Any]] = {
    "mt-sac": {"hidden_sizes": (38, 38, 38)},
    "sm": {"trunk_sizes": (24,), "layer_sizes": (2, 2), "width": 24, "router_sizes": (24,)},
    "d2r": {"trunk_sizes": (24,), "num_modules": 5, "width": 20, "router_sizes": (24,)},
}


class TurnedPoint(gym.Wrapper[Any, Any, Any, Any]):
    """A point with its goal in view, whose pushes are turned by an angle."""

    def __init__(self, angle: float) -> None:
        super().__init__(PointTask((0.0, 0.0)))
        self.turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        self.observation_space = spaces.Box(-2, 2, (6,), dtype=np.float32)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Draws a goal."""
        state, info = self.env.reset(**options)
        self.env.unwrapped.goal = self.env.unwrapped.np_random.uniform(-0.8, 0.8, size=2)
        return self._with_goal(state), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pushes the point in the turned direction."""
        state, *others = self.env.step(self.turn @ action)
        return self._with_goal(state), *others

    def _with_goal(self, state: Any) -> Any:
        return np.concatenate([state, self.env.unwrapped.goal]).astype(np.float32)


def make_envs(conflict: float, tasks: int = TASKS) -> DummyVecEnv:
    """An environment for each task; `conflict` is the part of the circle over which their angles are spread."""
    angles = [2 * math.pi * conflict * task / tasks for task in range(tasks)]
    return DummyVecEnv([lambda i=i, a=a: OneHotTask(TurnedPoint(a), i, tasks) for i, a in enumerate(angles)])


def learn(network: str, conflict: float, steps: int, seed: int = 0, tasks: int = TASKS) -> tuple[float, int]:
    """The success over all tasks after `steps` steps of each, and the parameters that learned it."""
    kwargs = {"network": network, "network_kwargs": NETWORKS[network]}
    settings: dict[str, Any] = {"learning_rate": 3e-3, "gamma": 0.9, "ent_coef": "auto_0.1", "batch_size": 16 * tasks}
    env = make_envs(conflict, tasks)
    model = MultiTaskSAC("MultiTaskPolicy", env, policy_kwargs=kwargs, learning_starts=1200, seed=seed, **settings)
    model.learn(steps * tasks)
    env.seed(1000 + seed)
    observations, solved = env.reset(), []
    for _ in range(20 * 10):
        observations, _, dones, infos = env.step(model.predict(observations, deterministic=True)[0])
        solved += [info["is_success"] for info, done in zip(infos, dones, strict=True) if done]
    return float(np.mean(solved)), sum(p.numel() for p in [*model.actor.parameters(), *model.critic.parameters()])


def main(steps: int = 1500, conflicts: tuple[float, ...] = (0.0, 0.25, 1.0)) -> dict[str, list[float]]:
    """Learns with every network at every conflict: about half an hour of one core."""
    jobs = tqdm([(network, conflict) for network in NETWORKS for conflict in conflicts])
    found = {job: learn(*job, steps) for job in jobs}
    for network in NETWORKS:
        rates = "  ".join(f"conflict {conflict:.2f}: {found[network, conflict][0]:4.0%}" for conflict in conflicts)
        print(f"{network:7} {found[network, conflicts[0]][1]:7,} parameters  {rates}")
    return {network: [found[network, conflict][0] for conflict in conflicts] for network in NETWORKS}


if __name__ == "__main__":
    main()
