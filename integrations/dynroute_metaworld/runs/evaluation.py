"""Success rates of a policy on Meta-World, by one protocol whose every choice is told with the result."""

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
from dynroute.arguments import check_choice, check_count
from dynroute_command.choices import BENCHMARKS, task_names
from dynroute_sb3 import MultiTaskPolicy
from dynroute_sb3.randomness import random_state, set_random_state

from ..envs.environment import STATE_FEATURES
from ..envs.scripted import ScriptedPolicy
from ..envs.vec_env import MetaWorldVecEnv, make_envs
from .result import ARRAYS, EvaluationResult

__all__ = ["SEEDS", "evaluate", "unseen"]

SEEDS = {"random": 1_000_000, "fixed": 0, "benchmark": 0}
"""The seed where none is given. Random goals are then none that training draws with the small seeds that people take;
fixed goals and those of the benchmark belong to the problem, and are those that `make_envs` trains on by default."""


def unseen(goals: str, seed: int) -> int:
    """The seed for the evaluation of what was trained with another: random goals are others, the rest are the same."""
    if goals != "random":
        return seed
    return SEEDS[goals] + (seed == SEEDS[goals])


Act = Callable[[NDArray[Any], Any, NDArray[np.bool_]], tuple[NDArray[Any], Any, NDArray[Any] | None]]


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
    evaluated before. Neither the generators of random numbers nor the mode of the policy are changed.

    Args:
        policy: A model or policy of Stable-Baselines3, anything else with their `predict`, or "scripted" for
            :class:`ScriptedPolicy`.
        benchmark: "MT10", "MT25", "MT50", a task, or a list of tasks, in the order of the one-hot that the policy
            knows.
        goals: Where the goal of an episode comes from, as in :func:`make_envs`. With "fixed" goals all episodes of a
            deterministic policy are equal, so that one episode tells as much as many.
        horizon: The number of steps of an episode, at most 500.
        episodes: The number of episodes of each task.
        seed: What the goals depend on; that of :data:`~dynroute_metaworld.runs.evaluation.SEEDS` if None. Fixed goals and
            those of the benchmark are those that were trained on if the seed is that of the environments of training.
        workers: The number of processes that run the environments; 0 runs them in this one.
        success: Which steps count: "any" step of the episode, or the "last" one.
        reward_version: "v2" or "v1".
        progress: Called after each step of all environments with the number of steps that are done and that of all.

    Example:
        >>> result = evaluate("scripted", ["reach", "drawer-close"], horizon=100, episodes=2)
        >>> result.success_rates
        array([1., 1.])
    """
    names = task_names(benchmark)
    check_choice("success", success, ("any", "last"))
    check_count("episodes", episodes, at_least=1)
    if policy == "scripted":
        policy = ScriptedPolicy(benchmark)
    if isinstance(policy, str) or not hasattr(policy, "predict"):
        raise TypeError(f"`policy` must be 'scripted' or have SB3's method `predict`, got {policy!r}.")
    _check_tasks(policy, names)
    if seed is None:
        seed = SEEDS.get(goals, 0)
    with _undisturbed(policy):
        env = make_envs(
            benchmark, goals=goals, horizon=horizon, seed=seed, workers=workers, reward_version=reward_version
        )
        try:
            arrays = _run(_acting(policy), env, episodes, horizon, progress)
        finally:
            env.close()
    whole = isinstance(benchmark, str) and benchmark.upper() in BENCHMARKS
    return EvaluationResult(
        benchmark=str(benchmark).upper() if whole else ", ".join(names),
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
    act: Act, env: MetaWorldVecEnv, episodes: int, horizon: int, progress: Callable[[int, int], object] | None
) -> dict[str, Any]:
    """The arrays of a result. All environments have the same horizon, so that their episodes end together."""
    tasks = np.arange(env.num_envs)
    shape = (env.num_envs, episodes)
    arrays: dict[str, Any] = {name: np.zeros(shape, dtype) for name, dtype in ARRAYS.items()}
    arrays["first_success"][:] = -1
    arrays["goal_positions"] = np.zeros((*shape, 3), np.float32)
    observations: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    for episode in range(episodes):
        arrays["goal_positions"][:, episode] = observations[:, STATE_FEATURES - 3 : STATE_FEATURES]
        for step in range(1, horizon + 1):
            actions, state, used = act(observations, state, starts)
            observations, _, starts, infos = env.step(actions)
            solved = np.array([info["success"] for info in infos])
            arrays["first_success"][tasks[solved & (arrays["first_success"][:, episode] < 0)], episode] = step
            if used is not None:
                arrays["modules_used"][:, episode] += used / horizon
            if progress is not None:
                progress(episode * horizon + step, episodes * horizon)
        arrays["success_last"][:, episode] = solved
        for name, key in (("returns", "r"), ("lengths", "l")):
            arrays[name][:, episode] = [info["episode"][key] for info in infos]
    if used is None:
        arrays["modules_used"] = None
    return arrays


def _acting(policy: PolicyPredictor) -> Act:
    """How a policy acts: the actions, what it remembers, and how many modules its routes reach."""
    inner = policy.policy if isinstance(policy, BaseAlgorithm) else policy
    if not isinstance(inner, MultiTaskPolicy):

        def predict(
            observations: NDArray[Any], state: Any, starts: NDArray[np.bool_]
        ) -> tuple[NDArray[Any], Any, None]:
            return *policy.predict(observations, state=state, episode_start=starts, deterministic=True), None

        return predict

    inner.set_training_mode(False)

    @torch.no_grad()
    def act(observations: NDArray[Any], *_: Any) -> tuple[NDArray[Any], None, NDArray[Any] | None]:
        # What `predict` does, which does not tell the route.
        actions, route = inner.actor.act(torch.as_tensor(observations, device=inner.device), deterministic=True)
        topology, used = inner.topology, None
        if topology is not None and route is not None:
            used = topology.used(route.path).sum(dim=-1).cpu().numpy()
        return inner.unscale_action(actions.cpu().numpy()), None, used

    return act


def _check_tasks(policy: PolicyPredictor, names: Sequence[str]) -> None:
    """Refuses a policy of which it is known that it was made for other tasks."""
    wanted = (STATE_FEATURES + len(names),)
    got = getattr(getattr(policy, "observation_space", None), "shape", wanted)
    if got != wanted:
        raise ValueError(
            f"`policy` must be made for observations of shape {wanted}, {STATE_FEATURES} numbers of state and the "
            f"one-hot of {len(names)} tasks, got one for those of shape {got}; was it trained on another benchmark?"
        )
    # A model may be told any names; those of Meta-World are taken at their word.
    told = [str(name).removesuffix("-v3") for name in getattr(policy, "task_names", None) or ()]
    if told != list(names) and told and set(told) <= set(BENCHMARKS["MT50"]):
        raise ValueError(f"`policy` must be made for the tasks {list(names)} in this order, got one for {told}.")


@contextlib.contextmanager
def _undisturbed(policy: PolicyPredictor) -> Iterator[None]:
    """Leaves the global generators of random numbers and the modes of all modules as they were."""
    inner = getattr(policy, "policy", policy)
    modes = [(module, module.training) for module in inner.modules()] if isinstance(inner, nn.Module) else []
    before = random_state()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        set_random_state(before)
