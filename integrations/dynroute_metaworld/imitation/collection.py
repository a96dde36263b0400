"""Collects demonstrations of Meta-World's scripted policies, and stores them on the disk."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynroute.arguments import check_count
from dynroute_command.choices import BENCHMARKS, benchmark_name, task_names
from dynroute_sb3 import DamagedError
from dynroute_sb3.storage import check_folder, writing_folder

from ..envs.environment import STATE_FEATURES
from ..envs.episodes import play
from ..envs.scripted import ScriptedPolicy
from ..envs.tasks import goals_of
from ..envs.vec_env import MetaWorldVecEnv, make_envs
from ..envs.workers import DeadWorkerError, Specification, processes
from .demonstrations import Demonstrations

__all__ = ["FORMAT", "collect"]

FORMAT = "dynroute demonstrations 1"
"""The format of the stored files; it changes if the same settings would give other episodes."""

SETTINGS = "settings.json"
ARRAYS = ("observations", "actions", "executed", "rewards", "solved")
FILES = {"manifest.json", SETTINGS, *(f"{name}.npy" for name in ARRAYS)}


def collect(
    benchmark: str | Sequence[str],
    *,
    episodes: int = 20,
    goals: str = "random",
    horizon: int = 200,
    noise: ArrayLike = (0.0, 0.3),
    seed: int = 0,
    workers: int = 0,
    reward_version: str = "v2",
    folder: str | Path | None = None,
    rebuild: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Demonstrations:
    """Collects episodes of the scripted policies in every task of a benchmark, or reads stored ones.

    A task is stored in its own folder once all its episodes are collected. After an interruption, the next call
    collects the missing tasks. Neither interruptions nor the number of workers change the episodes.

    Args:
        benchmark: "MT10", "MT25", "MT50", a task, or a list of tasks.
        episodes: The number of episodes of each task.
        goals: Where the goal of an episode comes from, as in :func:`make_envs` with the same seed; the benchmark's 50
            come in reverse. An evaluation of a run has another seed for random goals, which are new, and the same
            for the benchmark's, which repeat only if both have more than 50 episodes together.
        horizon: The number of steps of an episode, at most 500.
        noise: The standard deviations of the Gaussian noise on executed actions, one for each episode, in turn. Noise
            leads to states that a learner reaches by its errors. At 0.3 most tasks are still solved; push, assembly
            and peg-insert-side in 6 or 7 episodes of 10.
        seed: The seed of goals and noise; each task draws its own.
        workers: The number of processes, each of which collects one task at a time; 0 collects in this process.
        reward_version: "v2" or "v1".
        folder: The folder; by default one for these settings in ``dynroute/demonstrations`` in ``$XDG_CACHE_HOME`` or
            ``~/.cache``. Processes may share it: one of them collects a task, and the others wait.
        rebuild: Whether to remove stored episodes and collect them anew.
        progress: Called after each collected task with the number of tasks that are stored and the total.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     demonstrations = collect("reach", episodes=2, horizon=100, folder=folder)
        >>> demonstrations.actions.shape, demonstrations.solved.all()
        ((1, 2, 100, 4), np.True_)
    """
    options = {"goals": goals, "horizon": horizon, "seed": seed, "reward_version": reward_version}
    settings = _settings(benchmark, episodes, noise, options)
    check_count("workers", workers, at_least=0)
    names = settings["tasks"]
    if folder is None:
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "dynroute" / "demonstrations" / key
    folder = Path(folder)
    if rebuild or not all((folder / name).is_dir() for name in names):
        # Wrong options raise an error here, before anything is removed or written.
        make_envs(names[0], goals=goals, horizon=horizon, seed=seed, reward_version=reward_version).close()
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(folder, settings, rebuild)
    missing = [name for name in names if name not in kept]
    if missing:
        drawn = goals_of(benchmark, seed)
        rest = (goals, horizon, reward_version)
        rows = [names.index(name) for name in missing]
        specifications = [Specification(names[row], row, len(names), drawn[names[row]], *rest) for row in rows]
        task = functools.partial(_collect_task, folder, settings)
        counts = itertools.count(len(kept) + 1)
        _collect(task, specifications, workers, lambda: progress and progress(next(counts), len(names)))
    read = [kept.get(name) or _read(folder / name, settings) for name in names]
    return Demonstrations.of(settings, {name: np.stack([arrays[name] for arrays in read]) for name in read[0]})


def _settings(benchmark: str | Sequence[str], episodes: int, noise: ArrayLike, rest: dict[str, Any]) -> dict[str, Any]:
    """All that demonstrations depend on, as it is read from a file."""
    names = task_names(benchmark)
    check_count("episodes", episodes, at_least=1)
    levels = np.ravel(np.asarray(noise, dtype=np.float64)).tolist()
    if not levels or not all(0 <= level < math.inf for level in levels):
        raise ValueError(f"`noise` must be standard deviations, at least one, finite and not negative, got {noise!r}.")
    drawn_for = benchmark_name(benchmark).replace(",", ", ")  # the goals of a benchmark's tasks are drawn together
    settings = {"format": FORMAT, "benchmark": drawn_for, "tasks": names, "episodes": episodes, "noise": levels, **rest}
    settings |= {"observation": STATE_FEATURES, **{name: version(name) for name in ("metaworld", "mujoco")}}
    if rest["goals"] == "benchmark":
        settings["order"] = "reversed"
    return dict(json.loads(json.dumps(settings, default=int)))  # numbers may be of numpy's types


def _kept(folder: Path, settings: dict[str, Any], rebuild: bool) -> dict[str, dict[str, NDArray[Any]]]:
    """The stored arrays of each task; with `rebuild`, removes them and returns none."""
    kept = {}
    stored = [folder / name for name in BENCHMARKS["MT50"] if (folder / name).is_dir()]
    for path in stored:
        try:
            kept[path.name] = _read(path, settings)
        except DamagedError:
            if not rebuild:
                raise
            if others := {file.name for file in path.iterdir()} - FILES:
                raise FileExistsError(f"{path} holds other files, {sorted(others)}; name another folder.") from None
    for path in stored if rebuild else []:
        with _lock(path):
            shutil.rmtree(path)
    return {} if rebuild else kept


def _lock(path: Path) -> filelock.BaseFileLock:
    """The lock for reading, writing or removing a task; a process that dies releases it."""
    return filelock.FileLock(path.with_name(f".{path.name}.lock"))


def _read(path: Path, settings: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a task; raises an error if they are damaged or of other settings."""
    advice = f"remove {path}, or collect anew: rebuild=True or --rebuild, with --resume if the run exists"
    try:
        with _lock(path):
            check_folder(path, advice)
            stored = json.loads((path / SETTINGS).read_text())
            arrays = {name: np.load(path / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
    except (DamagedError, PermissionError):  # without write permission, the lock fails
        raise
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{str(error).rstrip('.')}; {advice}.") from error
    wanted = {**settings, "task": path.name}
    differ = [f"{key} {stored.get(key)!r}, not {wanted[key]!r}" for key in wanted if stored.get(key) != wanted[key]]
    if differ:
        differences = f"{path} has {'; '.join(differ)}"
        raise ValueError(
            f"`folder` must hold demonstrations of the same settings or none, but {differences}; name another folder."
        )
    states = arrays.pop("observations")
    return {**arrays, "observations": states[:, :-1], "next_observations": states[:, 1:]}


def _collect(
    task: Callable[[Specification], None], specifications: list[Specification], workers: int, done: Callable[[], object]
) -> None:
    """Collects tasks in this process or in others, and calls `done` when each is stored."""
    if not workers:
        for specification in specifications:
            task(specification)
            done()
        return
    context = processes()
    context.set_forkserver_preload(["__main__", __name__])  # as for the workers of make_envs
    receiver, sender = context.Pipe(duplex=False)
    with (
        receiver,
        sender,
        ProcessPoolExecutor(min(workers, len(specifications)), context, _follow, (receiver,)) as pool,
    ):
        try:
            for future in as_completed([pool.submit(task, specification) for specification in specifications]):
                future.result()
                done()
        except BrokenProcessPool as error:
            hint = "was it killed, short of memory, or does the program lack `if __name__ == '__main__':`?"
            raise DeadWorkerError(
                f"a process that collects demonstrations has died; {hint} Call it again to go on."
            ) from error
        except BaseException:
            sender.close()  # ends the processes at once, not after their tasks
            raise


def _follow(connection: Connection) -> None:
    """Ends this process at once when its parent closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def end() -> None:
        with contextlib.suppress(EOFError, OSError):
            connection.recv()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _collect_task(folder: Path, settings: dict[str, Any], specification: Specification) -> None:
    """Collects and stores the episodes of a task, unless another process did."""
    path = folder / specification.name
    with _lock(path):
        if path.is_dir():
            return
        for left in folder.glob(f".{path.name}.*.part"):  # left by a killed process
            shutil.rmtree(left, ignore_errors=True)
        with writing_folder(path) as part:
            for name, array in _episodes(specification, settings).items():
                np.save(part / f"{name}.npy", array, allow_pickle=False)
            (part / SETTINGS).write_text(json.dumps({**settings, "task": path.name}, indent=1))


def _episodes(specification: Specification, settings: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Collects the arrays of a task as they are stored; the observations include the last one of each episode."""
    episodes, horizon, levels = (settings[name] for name in ("episodes", "horizon", "noise"))
    observations = np.empty((episodes, horizon + 1, STATE_FEATURES), dtype=np.float32)
    actions = np.empty((episodes, horizon, 4), dtype=np.float32)
    executed, rewards = np.empty_like(actions), np.empty((episodes, horizon), dtype=np.float32)
    solved = np.zeros(episodes, dtype=np.bool_)
    seeds = np.random.SeedSequence([settings["seed"], specification.row])
    rng = np.random.default_rng(seeds.spawn(1)[0])  # derive_seed would change earlier demonstrations
    script, ones = ScriptedPolicy(specification.name), np.ones((1, 1), np.float32)
    wanted = noise = np.empty((horizon, 4))
    episode = itertools.count()

    def act(seen: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        nonlocal noise, wanted
        if number == 1:
            noise = levels[next(episode) % len(levels)] * rng.standard_normal((horizon, 4))
        # The script reads the stored float32 numbers, so that the action fits the stored observation.
        wanted, _ = script.predict(np.concatenate([seen[:, :STATE_FEATURES], ones], axis=1))
        return np.asarray(np.clip(wanted + noise[number - 1], -1, 1), np.float32)

    with contextlib.closing(MetaWorldVecEnv([specification], seed=settings["seed"], workers=0)) as env:
        env.environments[0].reverse_goals()
        for step in play(env, act, episodes):
            i, t = step.episode, step.number - 1
            observations[i, t], observations[i, t + 1] = step.observations[0, :STATE_FEATURES], step.states[0]
            actions[i, t], executed[i, t], rewards[i, t] = wanted[0], step.actions[0], step.rewards[0]
            solved[i] |= step.solved[0]
    return dict(zip(ARRAYS, (observations, actions, executed, rewards, solved), strict=True))
