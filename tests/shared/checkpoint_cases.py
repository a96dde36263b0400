"""Runs whose checkpoints are written, compared and damaged."""

import copy
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from torch import Tensor, nn

from dynroute import networks
from dynroute_sb3 import (
    MultiTaskSAC,
    OneHotTask,
    PointTask,
    point_tasks,
    storage,
)
from dynroute_sb3.points import GOALS
from dynroute_sb3.policies import D2RPolicy
from dynroute_sb3.randomness import random_state

NETWORKS: dict[str, dict[str, Any]] = {
    "D2RPolicy": {"num_modules": 3, "width": 8, "trunk_sizes": (16, 16), "router_sizes": (16,)},
    "PaCoPolicy": {"num_sets": 3, "hidden_sizes": (16, 16)},
    "MlpPolicy": {"hidden_sizes": (16, 16)},
    "BRCPolicy": {"width": 8, "blocks": 1, "embedding_features": 3},
    "ScaleMoEPolicy": {"num_experts": 3, "width": 8, "embedding_features": 3, "level": "output"},
}


def make_model(env: VecEnv, policy: Any = "D2RPolicy", **options: Any) -> MultiTaskSAC:
    network = {"network_kwargs": NETWORKS.get(policy, NETWORKS["D2RPolicy"]), **options.pop("policy_kwargs", {})}
    defaults = {"learning_rate": 3e-3, "batch_size": 8, "learning_starts": 20, "buffer_size": 100, "seed": 0}
    return MultiTaskSAC(policy, env, policy_kwargs=network, device="cpu", **{**defaults, **options})


class WithoutState(PointTask):
    """An environment that cannot tell its state."""

    @property
    def get_state(self) -> Any:
        raise AttributeError("get_state")


def wrapped(wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]) -> list[Any]:
    return [lambda make=make: wrap(make()) for make in point_tasks(2)]


def makers(cls: Callable[..., gym.Env[Any, Any]]) -> list[Any]:
    return [lambda task=task: OneHotTask(cls(GOALS[task]), task, 2) for task in range(2)]


def remembering(task: int) -> gym.Env[Any, Any]:
    """An environment in wrappers that remember something, two of them alike."""
    wrappers = gym.wrappers
    env: Any = wrappers.TimeLimit(wrappers.DelayObservation(PointTask(GOALS[task]), 1), 13)
    env = wrappers.RecordEpisodeStatistics(wrappers.NormalizeReward(wrappers.NormalizeObservation(env)))
    env = wrappers.FlattenObservation(wrappers.FrameStackObservation(wrappers.TimeAwareObservation(env), 2))
    return OneHotTask(wrappers.TimeLimit(wrappers.StickyAction(env, 0.2), 15), task, 2)


ENVIRONMENTS: dict[str, Callable[[], VecEnv]] = {
    "dummy": lambda: DummyVecEnv(point_tasks(2)),
    "several of a task": lambda: DummyVecEnv([point_tasks(2)[task] for task in (0, 1, 0)]),
    "VecMonitor": lambda: VecMonitor(DummyVecEnv(point_tasks(2))),
    "Monitor": lambda: DummyVecEnv(wrapped(Monitor)),
    "Monitor inside": lambda: DummyVecEnv(makers(lambda goal: Monitor(PointTask(goal)))),
    "subprocesses": lambda: SubprocVecEnv(wrapped(Monitor), start_method="forkserver"),
    "VecNormalize": lambda: VecNormalize(DummyVecEnv(point_tasks(2)), norm_obs=False),
    "VecFrameStack": lambda: VecFrameStack(DummyVecEnv(point_tasks(2)), 2),
    "wrappers": lambda: DummyVecEnv([lambda task=task: remembering(task) for task in range(2)]),
    "wrappers in subprocesses": lambda: SubprocVecEnv(
        [lambda task=task: remembering(task) for task in range(2)], start_method="forkserver"
    ),
}


def everything(model: MultiTaskSAC) -> dict[str, Any]:
    """All that a run depends on and tells, the clock left out."""
    assert model.env is not None
    assert model.replay_buffer is not None
    buffer, env, wrappers = model.replay_buffer, model.env, {}
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecMonitor):
            wrappers["monitor"] = [env.episode_returns, env.episode_lengths]
        if isinstance(env, VecNormalize):
            wrappers["normalize"] = [env.returns, env.ret_rms.mean, env.ret_rms.var, env.ret_rms.count]
        env = env.venv
    return copy.deepcopy(
        {
            "parameters": model.get_parameters(),
            "log_ent_coef": model.log_ent_coef,
            "rows": buffer.rows,
            "paths": buffer.paths,
            "positions": [buffer.positions, buffer.counts, buffer.vector_steps],
            "random": random_state(),
            "actions": model.action_space.np_random.bit_generator.state,
            "environments": model.env.env_method("get_state"),
            "monitors": model.env.get_attr("rewards") if all(model.env.env_is_wrapped(Monitor)) else None,
            "wrappers": wrappers,
            "episodes": [{**info, "t": None} for info in model.ep_info_buffer or ()],
            "report": vars(model.report),
            "progress": [
                getattr(model, name)
                for name in ("num_timesteps", "_n_updates", "_episode_num", "_last_obs", "ep_success_buffer")
            ],
        }
    )


def assert_same(a: Any, b: Any, place: str = "") -> None:
    """Asserts that two trees are equal bit for bit."""
    if isinstance(a, (Tensor, np.ndarray)):
        assert type(a) is type(b), place
        assert (a.dtype, a.shape) == (b.dtype, b.shape), place
        if isinstance(a, Tensor):
            a, b = (x.detach().contiguous().flatten().view(torch.uint8).numpy() for x in (a, b))
        assert a.tobytes() == b.tobytes(), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple, deque)):
        assert (type(a), len(a)) == (type(b), len(b)), place
        assert not isinstance(a, deque) or a.maxlen == b.maxlen, place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}.{i}")
    else:
        assert a == b or (a != a and b != b), f"{place}: {a!r} and {b!r}"


def decay(progress: float) -> float:
    return 1e-3 + 4e-3 * progress**2


def tiny_network(state_features: int, num_tasks: int, out_features: int, **kwargs: Any) -> nn.Module:
    return networks.build("d2r", state_features, num_tasks, out_features, num_modules=2, width=4, **kwargs)


class OwnPolicy(D2RPolicy):
    """A policy that the package does not know."""


FACTORY = {"network": tiny_network, "network_kwargs": {"trunk_sizes": (8,), "router_sizes": ()}}


OPTIMIZER = {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}}


def steps_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def load(folder: Path, environments: str = "dummy", **replace: Any) -> MultiTaskSAC:
    return MultiTaskSAC.load_checkpoint(folder, ENVIRONMENTS[environments](), "cpu", replace)


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes what is stored, and the manifest with it."""
    path = folder / "model.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model.json"] = storage.digest(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put(*place: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Puts a value in a place of what is stored."""

    def change(state: Any) -> None:
        for key in place[:-1]:
            state = state[key]
        state[place[-1]] = value

    return change
