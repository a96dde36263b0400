"""The plain policy of one task of a run: made, saved, and compared with the whole network."""

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynroute import Extraction
from dynroute.arguments import check_choice, check_count
from dynroute.files import check_file_place
from dynroute_command.choices import FORMATS, STATES
from dynroute_sb3 import MultiTaskSAC, extract_policy
from dynroute_sb3.task_policy import check_extractable, whole_policy

from ..envs.environment import STATE_FEATURES
from ..envs.episodes import play
from ..envs.vec_env import make_envs
from ..imitation.collection import collect
from .configuration import Configuration
from .evaluation import unseen
from .policy_files import Act, check_exporter, load_policy, save_policy
from .result import format_table
from .run import Run
from .threads import one_thread

__all__ = [
    "Episodes",
    "ExtractedTask",
    "extract_task",
    "measure_in_turns",
    "run_episodes",
    "split_states",
    "task_states",
]

ELSEWHERE = 1_000_000
"""The distance between the seeds of these episodes and of an evaluation, so that their random goals differ."""


class Episodes(NamedTuple):
    """The states of some episodes of a task, and their success."""

    states: NDArray[np.float32]
    """The states before each step, with shape ``[episodes, horizon, 39]``."""

    solved: NDArray[np.bool_]
    """Whether the task was solved at any step, with shape ``[episodes]``."""


def run_episodes(
    policy: Act,
    configuration: Configuration,
    task: str,
    *,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> Episodes:
    """Runs a policy in one task; the goals are the same as in an evaluation of the run with the same seed.

    Args:
        policy: Turns states with shape ``[1, 39]`` into actions.
        configuration: The configuration of the run.
        task: The task.
        episodes: The number of episodes; with fixed goals one is run, since all would be equal.
        seed: The seed of the goals.
        progress: Called after each step with the number of steps that are done and the total.
    """
    episodes = 1 if configuration.goals == "fixed" else episodes
    problem = {**configuration.problem, "workers": 0}
    states = np.empty((episodes, configuration.horizon, STATE_FEATURES), np.float32)
    solved = np.zeros(episodes, np.bool_)

    def act(observations: NDArray[np.float32], _: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            return policy(torch.from_numpy(observations[:, :STATE_FEATURES].copy())).numpy()

    with contextlib.closing(make_envs(configuration.benchmark_or_tasks, only=[task], seed=seed, **problem)) as env:
        for step in play(env, act, episodes, progress):
            states[step.episode, step.number - 1] = step.observations[0, :STATE_FEATURES]
            solved[step.episode] |= step.solved[0]
    return Episodes(states, solved)


@dataclass(frozen=True, eq=False)
class ExtractedTask:
    """The policy of a task, where it was saved, and how it compares with the whole network.

    Attributes:
        task: The task.
        format: The format of the file.
        path: The file.
        origin: Where the states came from, in words.
        report: What the extraction kept; its deviation is the deviation of actions on these states.
        nodes_before: The number of nodes of the whole network.
        deviation_elsewhere: The largest deviation of actions on states of other episodes; None without any.
        bytes: The sizes of the files of the whole network and of the policy.
        milliseconds: The median times of an action on one core, of the whole network and of the policy, by "module" and
            "file". Files are timed only if the package that runs them is installed.
        success: The success rates of both; None if they were not evaluated.
        episodes: The number of episodes of this evaluation.
        checked: The largest difference between the actions of the file and of the policy; None if the file could not be
            run.
    """

    task: str
    format: str
    path: Path
    origin: str
    report: Extraction
    nodes_before: int
    deviation_elsewhere: float | None
    bytes: tuple[int, int]
    milliseconds: dict[str, tuple[float, float]]
    success: tuple[float, float] | None
    episodes: int
    checked: float | None

    def __str__(self) -> str:
        report = self.report
        rows = [
            (f"{self.task}", "whole", "extracted"),
            ("nodes", str(self.nodes_before), str(len(report.nodes))),
            ("parameters", f"{report.parameters_before:,}", f"{report.parameters:,}"),
            ("bytes of the file", *(f"{size:,}" for size in self.bytes)),
            *(
                (f"ms of an action, {part}", *(f"{taken:.3f}" for taken in pair))
                for part, pair in self.milliseconds.items()
            ),
        ]
        if self.success is not None:
            rows.append((f"success, {self.episodes} episodes", *(f"{rate:.2f}" for rate in self.success)))
        lines = [format_table(rows)]
        deviation = "" if report.deviation is None else f"actions differ by at most {report.deviation:.1e} on them"
        if self.deviation_elsewhere is not None:
            deviation += f", and by {self.deviation_elsewhere:.1e} on states of other episodes"
        left = {"nothing": "no router is left", "weights": "the router weighs one path", "routes": "the router chooses"}
        lines += [
            f"made for {self.origin}, of which {report.coverage:.1%} keep their routes; {left[report.reads]}",
            deviation,
        ]
        if self.checked is None:
            lines.append(f"saved, and not run: {self.path}")
        else:
            lines.append(f"saved, and run with a difference of at most {self.checked:.1e}: {self.path}")
        return "\n".join(lines)


def extract_task(
    run: Run,
    model: MultiTaskSAC,
    task: str,
    *,
    form: str = "torch",
    output: Path | None = None,
    coverage: float = 1.0,
    states: str = "policy",
    collected: int = 10,
    episodes: int = 0,
    rounds: int = 300,
    progress: Callable[[str, int, int], object] | None = None,
) -> ExtractedTask:
    """Extracts the policy of one task of a run, saves it, and compares it with the whole network.

    Args:
        run: The run.
        model: Its model, from :func:`~dynroute_metaworld.load_model`.
        task: The task.
        form: The format, one of :data:`~dynroute_command.choices.FORMATS`.
        output: The file; by default it has the name of the task, in the directory of the run.
        coverage: The share of the states whose routes are kept whole.
        states: Where the states come from, one of :data:`~dynroute_command.choices.STATES`.
        collected: The number of episodes of states.
        episodes: The number of episodes to evaluate both in; 0 evaluates neither.
        rounds: How often each is timed.
        progress: Called with a description of the current work, the number of steps done, and the total.
    """
    configuration = run.configuration
    task = task.removesuffix("-v3")
    check_choice("task", task, configuration.tasks)
    check_choice("format", form, FORMATS)
    check_count("episodes", episodes, at_least=0)
    path = run.folder / f"{task}{FORMATS[form]}" if output is None else output
    if path.suffix != FORMATS[form]:
        raise ValueError(f"`output` must end with {FORMATS[form]} in the format {form}, got {path}.")
    check_file_place("output", path)
    check_exporter(form)
    check_extractable(model, coverage)
    index = configuration.tasks.index(task)
    whole = whole_policy(model, task=index)

    def report_as(doing: str) -> Callable[[int, int], object] | None:
        return None if progress is None else lambda done, total: progress(doing, done, total)

    seen = task_states(run, whole, task, states, episodes=collected, progress=report_as("collecting states"))
    made_for, others = split_states(seen)
    policy = extract_policy(model, made_for, task=index, coverage=coverage)
    with torch.no_grad():
        elsewhere = float((policy(others) - whole(others)).abs().max()) if len(others) else None

    notes = {
        "task": task,
        "run": run.folder.name,
        "method": configuration.method,
        "input": "the state without the one-hot of the task",
        "output": "the action, in -1..1",
        "parameters": policy.report.parameters,
    }
    save_policy(policy, path, form, made_for[:2], notes)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / f"whole{FORMATS[form]}"
        save_policy(whole, other, form, made_for[:2], notes)
        sizes = other.stat().st_size, path.stat().st_size
        loaded = load_policy(other, form), load_policy(path, form)
    jobs: dict[str, Act] = {"whole module": whole, "extracted module": policy}
    checked = None
    if loaded[0] is not None and loaded[1] is not None:
        jobs |= {"whole file": loaded[0], "extracted file": loaded[1]}
        with torch.no_grad():
            checked = float((loaded[1](made_for) - policy(made_for)).abs().max())
    taken = measure_in_turns(jobs, made_for[:1], rounds=rounds)
    parts = [part for part in ("module", "file") if f"whole {part}" in taken]
    success = None
    if episodes:
        seed = unseen(configuration.goals, configuration.seed)
        solved = [
            run_episodes(actor, configuration, task, episodes=episodes, seed=seed, progress=report_as(doing)).solved
            for doing, actor in (("evaluating the whole network", whole), ("evaluating the extracted policy", policy))
        ]
        success, episodes = (float(solved[0].mean()), float(solved[1].mean())), len(solved[0])
    origin = {"policy": "the policy's episodes", "demonstrations": "demonstrations"}[states]
    return ExtractedTask(
        task=task,
        format=form,
        path=path,
        origin=f"{len(made_for):,} states of {origin}",
        report=policy.report,
        nodes_before=len(whole.report.nodes),
        deviation_elsewhere=elsewhere,
        bytes=sizes,
        milliseconds={part: (taken[f"whole {part}"], taken[f"extracted {part}"]) for part in parts},
        success=success,
        episodes=episodes,
        checked=checked,
    )


def task_states(
    run: Run,
    policy: Act,
    task: str,
    origin: str = "policy",
    *,
    episodes: int = 10,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """The states of some episodes of a run in one task, with shape ``[episodes, horizon, 39]``.

    For the policy, random goals are new: neither training nor an evaluation draws them. Demonstrations have the
    goals of training. Fixed and benchmark goals are always the same.

    Args:
        run: The run.
        policy: The policy that acts.
        task: The task.
        origin: One of :data:`~dynroute_command.choices.STATES`; demonstrations are those of the run.
        episodes: The number of episodes, at most as many as there are demonstrations.
        progress: Called after each step with the number of steps that are done and the total.
    """
    check_choice("states", origin, STATES)
    check_count("collected", episodes, at_least=1)
    configuration = run.configuration
    if origin == "policy":
        seed = unseen(configuration.goals, configuration.seed) + ELSEWHERE * (configuration.goals == "random")
        found = run_episodes(policy, configuration, task, episodes=episodes, seed=seed, progress=progress)
        return torch.from_numpy(found.states)
    if not configuration.demonstrations:
        raise ValueError(f"`states` must be 'policy' for {run.folder}, a run without demonstrations.")
    demonstrations = collect(
        configuration.benchmark_or_tasks,
        episodes=configuration.demonstrations,
        noise=configuration.noise_levels,
        seed=configuration.seed,
        **configuration.problem,
    )
    return torch.from_numpy(demonstrations.observations[configuration.tasks.index(task)][:episodes].copy())


def split_states(states: Tensor) -> tuple[Tensor, Tensor]:
    """Splits episodes into states to extract a policy from, and states to check it on.

    A fifth of the episodes are for the check; of fewer than five, all but one.

    Example:
        >>> from dynroute_metaworld.runs.extraction import split_states
        >>> [len(split_states(torch.zeros(episodes, 100, 39))[1]) for episodes in (1, 2, 10)]
        [0, 100, 200]
    """
    kept = len(states) - (len(states) // 5 or len(states) - 1)
    return states[:kept].flatten(0, 1), states[kept:].flatten(0, 1)


def measure_in_turns(jobs: Mapping[str, Act], state: Tensor, *, rounds: int = 300) -> dict[str, float]:
    """The median milliseconds of each policy on one core; they take turns, so that other load slows all of them.

    Example:
        >>> from dynroute_metaworld.runs.extraction import measure_in_turns
        >>> list(measure_in_turns({"tanh": torch.tanh}, torch.zeros(1, 39), rounds=3))
        ['tanh']
    """
    check_count("rounds", rounds, at_least=1)
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    collecting = gc.isenabled()
    gc.disable()
    try:
        with one_thread(), torch.inference_mode():
            for _ in range(rounds):
                for name, job in jobs.items():
                    job(state)
                    start = time.perf_counter()
                    job(state)
                    taken[name].append(1e3 * (time.perf_counter() - start))
    finally:
        if collecting:
            gc.enable()
    return {name: statistics.median(times) for name, times in taken.items()}
