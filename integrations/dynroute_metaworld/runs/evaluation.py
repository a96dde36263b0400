"""Success rates of a policy on Meta-World, by one protocol; the result records all of its settings."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import nn

import dynroute
from dynroute import Route
from dynroute.arguments import check_choice, check_count
from dynroute_command.choices import BENCHMARKS, SUCCESS, benchmark_name, task_names
from dynroute_sb3 import MultiTaskPolicy, MultiTaskSAC
from dynroute_sb3.actor import MultiTaskActor
from dynroute_sb3.randomness import random_state, set_random_state

from ..envs.environment import STATE_FEATURES
from ..envs.episodes import play
from ..envs.scripted import ScriptedPolicy
from ..envs.vec_env import MetaWorldVecEnv, make_envs
from .result import ARRAYS, EvaluationResult

__all__ = ["SEEDS", "act_with_route", "evaluate", "predicts_by_route", "unseen"]

SEEDS = {"random": 1_000_000, "fixed": 0, "benchmark": 0}
"""The default seeds, by the kind of goals. The seed of random goals is far from the small seeds of training, so that
they are new. Fixed and benchmark goals belong to the problem: `make_envs` trains on the same ones by default."""


def unseen(goals: str, seed: int) -> int:
    """The seed to evaluate with after training with `seed`: random goals are new, other goals stay the same."""
    if goals != "random":
        return seed
    return SEEDS[goals] + (seed == SEEDS[goals])


def evaluate(
    policy: PolicyPredictor | str,
    benchmark: str | Sequence[str] = "MT10",
    *,
    goals: str = "random",
    horizon: int = 200,
    episodes: int = 20,
    seed: int | None = None,
    workers: int = 0,
    success: str = "any",
    reward_version: str = "v2",
    progress: Callable[[int, int], object] | None = None,
) -> EvaluationResult:
    """Runs a policy on every task of a benchmark for the same number of episodes.

    Actions are deterministic. The goals depend on the seed alone: not on the policy, the number of workers, or what was
    evaluated before. The random generators and the mode of the policy stay as they were.

    Args:
        policy: A model or policy of Stable-Baselines3, any object with the same `predict`, or "scripted" for
            :class:`ScriptedPolicy`. A model whose environments are in a VecNormalize sees observations normalized by
            its statistics; a policy alone does not know them. The modules that are used are not known where a class of
            your own defines `predict`.
        benchmark: "MT10", "MT25", "MT50", a task, or a list of tasks, in the order of the policy's one-hot.
        goals: Where the goal of an episode comes from, as in :func:`make_envs`. With "fixed" goals all episodes of a
            deterministic policy are equal, so one episode is enough.
        horizon: The number of steps of an episode, at most 500.
        episodes: The number of episodes of each task.
        seed: The seed of the goals; None takes it from :data:`~dynroute_metaworld.runs.evaluation.SEEDS`. For the
            fixed or benchmark goals of training, give the seed of the training environments.
        workers: The number of processes that run the environments; 0 runs them in this process.
        success: Which steps count: "any" step of the episode, or the "last" one.
        reward_version: "v2" or "v1".
        progress: Called after each step of all environments with the number of steps that are done and the total.

    Example:
        >>> result = evaluate("scripted", ["reach", "drawer-close"], horizon=100, episodes=2)
        >>> result.success_rates
        array([1., 1.])
    """
    names = task_names(benchmark)
    check_choice("success", success, SUCCESS)
    check_count("episodes", episodes, at_least=1)
    if policy == "scripted":
        policy = ScriptedPolicy(benchmark)
    if isinstance(policy, str) or not hasattr(policy, "predict"):
        raise TypeError(f"`policy` must be 'scripted' or have SB3's method `predict`, got {policy!r}.")
    _check_tasks(policy, names)
    if seed is None:
        seed = SEEDS.get(goals, 0)
    with _undisturbed(policy):
        options: dict[str, Any] = {"goals": goals, "horizon": horizon, "reward_version": reward_version}
        with contextlib.closing(make_envs(benchmark, seed=seed, workers=workers, **options)) as env:
            arrays = _run(policy, env, episodes, progress)
    return EvaluationResult(
        benchmark=benchmark_name(benchmark).replace(",", ", "),
        tasks=names,
        goals=goals,
        horizon=horizon,
        seed=seed,
        reward_version=reward_version,
        criterion=success,
        versions={"dynroute": dynroute.__version__, **{name: version(name) for name in ("metaworld", "mujoco")}},
        **arrays,
    )


def _run(
    policy: PolicyPredictor, env: MetaWorldVecEnv, episodes: int, progress: Callable[[int, int], object] | None
) -> dict[str, Any]:
    """The arrays of a result."""
    shape = (env.num_envs, episodes)
    arrays: dict[str, Any] = {name: np.zeros(shape, dtype) for name, dtype in ARRAYS.items()}
    arrays["first_success"][:] = -1
    arrays["goal_positions"] = np.zeros((*shape, 3), np.float32)
    actor = _Actor(policy)
    for step in play(env, actor, episodes, progress):
        episode = (slice(None), step.episode)
        if step.number == 1:
            arrays["goal_positions"][episode] = step.observations[:, STATE_FEATURES - 3 : STATE_FEATURES]
        arrays["first_success"][step.solved & (arrays["first_success"][episode] < 0), step.episode] = step.number
        if actor.used is not None:
            arrays["modules_used"][episode] += actor.used / env.horizon
        if step.number == env.horizon:
            arrays["success_last"][episode] = step.solved
            arrays["returns"][episode] = [info["episode"]["r"] for info in step.infos]
            arrays["lengths"][episode] = [info["episode"]["l"] for info in step.infos]
    if actor.used is None:
        arrays["modules_used"] = None
    return arrays


class _Actor:
    """A policy and its recurrent state; `used` is the number of modules on its last routes, None without routes."""

    def __init__(self, policy: PolicyPredictor) -> None:
        self.policy = policy
        self.state: Any = None
        self.used: NDArray[np.int64] | None = None
        self.inner, self.routed = _inner(policy), predicts_by_route(policy)
        self.normalizer = policy.get_vec_normalize_env() if isinstance(policy, BaseAlgorithm) else None

    def __call__(self, observations: NDArray[Any], number: int) -> NDArray[Any]:
        if self.normalizer is not None:
            observations = np.asarray(self.normalizer.normalize_obs(observations))
        if not self.routed:
            starts: Any = np.full(len(observations), number == 1)
            options: dict[str, Any] = {"state": self.state, "episode_start": starts, "deterministic": True}
            actions, self.state = self.policy.predict(observations, **options)
            return actions
        actions, route = act_with_route(self.inner, observations)
        if route is not None and self.inner.topology is not None:
            self.used = self.inner.topology.used(route.path).sum(dim=-1).numpy()
        return actions


def predicts_by_route(policy: PolicyPredictor) -> bool:
    """Whether :func:`act_with_route` gives the actions of ``predict``, which a class of the user may define anew."""
    inner = _inner(policy)
    if not isinstance(inner, MultiTaskPolicy):
        return False
    parts: list[tuple[Any, type, str]] = [
        (inner, MultiTaskPolicy, "predict"),
        (inner, MultiTaskPolicy, "_predict"),
        (inner.actor, MultiTaskActor, "forward"),
    ]
    if policy is not inner:
        parts.append((policy, MultiTaskSAC, "predict"))
    return all(getattr(getattr(part, name), "__func__", None) is getattr(kind, name) for part, kind, name in parts)


def _inner(policy: PolicyPredictor) -> Any:
    """The policy of a model, or a policy itself."""
    return policy.policy if isinstance(policy, BaseAlgorithm) else policy


@torch.no_grad()
def act_with_route(policy: MultiTaskPolicy, observations: NDArray[Any]) -> tuple[NDArray[Any], Route | None]:
    """The actions of ``predict``, and its routes on the CPU, which are None in a network without learned routes."""
    policy.set_training_mode(False)
    actions, route = policy.actor.act(torch.as_tensor(observations, device=policy.device), deterministic=True)
    if route is not None:
        route = Route(*(part.cpu() for part in route))
    return policy.unscale_action(actions.cpu().numpy()), route


def _check_tasks(policy: PolicyPredictor, names: Sequence[str]) -> None:
    """Raises an error if the observation space or the task names of a policy belong to other tasks."""
    wanted = (STATE_FEATURES + len(names),)
    got = getattr(getattr(policy, "observation_space", None), "shape", wanted)
    if got != wanted:
        raise ValueError(
            f"`policy` must be made for observations of shape {wanted}, {STATE_FEATURES} numbers of state and the "
            f"one-hot of {len(names)} tasks, got one for shape {got}; was it trained on another benchmark?"
        )
    # A model may name its tasks freely; only names of Meta-World's tasks are compared.
    trained_for = [str(name).removesuffix("-v3") for name in getattr(policy, "task_names", None) or ()]
    if trained_for != list(names) and trained_for and set(trained_for) <= set(BENCHMARKS["MT50"]):
        raise ValueError(f"`policy` must be made for the tasks {list(names)} in this order, got one for {trained_for}.")


@contextlib.contextmanager
def _undisturbed(policy: PolicyPredictor) -> Iterator[None]:
    """Restores the global random generators and the modes of all modules afterwards."""
    inner = getattr(policy, "policy", policy)
    modes = [(module, module.training) for module in inner.modules()] if isinstance(inner, nn.Module) else []
    before = random_state()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        set_random_state(before)
