"""Small models of MultiTaskSAC on points, and what every test asks of them."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize
from torch import Tensor, nn

from dynroute import networks
from dynroute_sb3 import (
    MultiTaskSAC,
    OneHotTask,
    PointTask,
    point_tasks,
)
from dynroute_sb3.points import GOALS
from dynroute_sb3.replay import ENDED

TASKS = 4


TINY: dict[str, Any] = {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)}


SIZES: dict[str, dict[str, Any]] = {
    "MultiTaskPolicy": {"hidden_sizes": (8,)},
    "MlpPolicy": {"hidden_sizes": (8,)},
    "MultiHeadPolicy": {"hidden_sizes": (8,)},
    "MoEPolicy": {"num_experts": 2, "width": 8, "depth": 1, "router_sizes": (8,)},
    "HardRoutingPolicy": {"trunk_sizes": (8,), "layer_sizes": (2, 2), "width": 8},
    "SoftModularPolicy": {"trunk_sizes": (8,), "layer_sizes": (2, 2), "width": 8, "router_sizes": (8,)},
    "CAREPolicy": {"num_encoders": 2} | {f"{part}_sizes": (8,) for part in ("encoder", "context", "gate", "hidden")},
    "PaCoPolicy": {"num_sets": 2, "hidden_sizes": (8,)},
    "D2RPolicy": TINY,
    "BRCPolicy": {"width": 8, "blocks": 1, "embedding_features": 3},
    "ScaleMoEPolicy": {"num_experts": 3, "width": 8, "embedding_features": 3},
}


def points(num_tasks: int = TASKS) -> VecEnv:
    return DummyVecEnv(point_tasks(num_tasks))


def wrapped(wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]], num_tasks: int = TASKS) -> list[Any]:
    return [lambda make=make: wrap(make()) for make in point_tasks(num_tasks)]


def make_model(policy: Any = "D2RPolicy", env: Any = None, **options: Any) -> MultiTaskSAC:
    """A small D2R, or another network in the sizes of the tests."""
    kwargs = {"network_kwargs": SIZES.get(policy, TINY), **options.pop("policy_kwargs", {})}
    defaults = {"batch_size": 16, "learning_starts": 40, "buffer_size": 2000, "seed": 0, "learning_rate": 1e-3}
    env = points() if env is None else env
    return MultiTaskSAC(policy, env, policy_kwargs=kwargs, device="cpu", **{**defaults, **options})


def observations(num_tasks: int = TASKS, each: int = 5) -> np.ndarray:
    states = np.random.default_rng(0).uniform(-1, 1, (num_tasks * each, 4))
    return np.concatenate([states, np.eye(num_tasks).repeat(each, axis=0)], axis=1).astype(np.float32)


def assert_physical(model: MultiTaskSAC) -> None:
    """Every stored transition is one step of the point, with the action that was stored, towards the goal of its task.

    A wrong scale of actions, a wrong task, a step that is missing and an observation of the next episode all show here.
    """
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.size() > 0
    for task, (rows, count) in enumerate(zip(buffer.rows, buffer.counts, strict=True)):
        position, velocity, after, velocity_after, action = (rows[:count, i : i + 2] for i in range(0, 10, 2))
        reward, ended = rows[:count, 10], rows[:count, 11]
        np.testing.assert_allclose(velocity_after, 0.5 * velocity + 0.15 * action, atol=1e-5)
        np.testing.assert_allclose(after, np.clip(position + velocity_after, -1, 1), atol=1e-5)
        np.testing.assert_allclose(-reward, np.linalg.norm(after - np.array(GOALS[task]), axis=1), atol=1e-5)
        assert (abs(action) <= 1).all()
        assert (ended != ENDED).all()  # a point runs out of time, which is no end


def parameters(model: MultiTaskSAC) -> list[Tensor]:
    return [*model.policy.parameters(), *model.policy.buffers()] + (
        [] if model.log_ent_coef is None else [model.log_ent_coef.detach()]
    )


def same(one: Any, other: Any) -> bool:
    """Whether nested state dicts hold the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


class Changing(OneHotTask):
    """Takes the next task at every reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.task = (self.task + 1) % self.num_tasks
        assert isinstance(self.unwrapped, PointTask)
        self.unwrapped.goal = np.asarray(GOALS[self.task])
        return super().reset(**kwargs)


ENVIRONMENTS: dict[str, Callable[[], VecEnv | gym.Env[Any, Any]]] = {
    "DummyVecEnv": points,
    "SubprocVecEnv": lambda: SubprocVecEnv(point_tasks(2), start_method="forkserver"),
    "Monitor": lambda: DummyVecEnv(wrapped(Monitor)),
    "VecMonitor": lambda: VecMonitor(points()),
    "RescaleAction": lambda: DummyVecEnv(
        wrapped(
            lambda env: gym.wrappers.RescaleAction(
                env, min_action=np.array([-3.0, 0.0], dtype=np.float32), max_action=np.array([5.0, 0.1], np.float32)
            )
        )
    ),
    "float64": lambda: DummyVecEnv(
        wrapped(
            lambda env: gym.wrappers.TransformObservation(
                env, lambda obs: obs.astype(np.float64), spaces.Box(-2, 2, (4 + TASKS,), np.float64)
            )
        )
    ),
    "one that is no VecEnv": lambda: Changing(PointTask(GOALS[0]), 0, TASKS),
    "changing tasks": lambda: DummyVecEnv([lambda k=k: Changing(PointTask(GOALS[0]), k, TASKS) for k in (0, 0, 2)]),
    "VecNormalize": lambda: VecNormalize(points(), norm_obs=False, norm_reward=True),
    "VecMonitor of VecNormalize": lambda: VecMonitor(VecNormalize(points(), norm_obs=False)),
}


def make_plain(policy: Any = "MlpPolicy", env: Any = None, **options: Any) -> MultiTaskSAC:
    """An MLP with SB3's own options, and the keywords of its policy as they are given."""
    kwargs = options.pop("policy_kwargs", {"network_kwargs": SIZES.get(policy, {})})
    defaults = {"batch_size": 16, "learning_starts": 40, "buffer_size": 2000, "seed": 0}
    env = points() if env is None else env
    return MultiTaskSAC(policy, env, policy_kwargs=kwargs, device="cpu", **{**defaults, **options})


SMALL = {"network_kwargs": SIZES["MlpPolicy"]}


def pendulum(num_tasks: int = 1) -> gym.Env[Any, Any]:
    return OneHotTask(gym.make("Pendulum-v1"), 0, num_tasks)


def like_sac(env: Any = None, **options: Any) -> MultiTaskSAC:
    defaults = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 20, "batch_size": 16, "buffer_size": 250}
    return MultiTaskSAC("MlpPolicy", env or pendulum(), device="cpu", seed=0, **{**defaults, **options})


def wrong_size(sizes: tuple[int, ...], place: int) -> nn.Module:
    changed = [size + (i == place) for i, size in enumerate(sizes)]
    return networks.build("mt-sac", changed[0], changed[1], changed[2], hidden_sizes=(8,))
