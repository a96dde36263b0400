"""The tasks of Meta-World by name, and the goals that benchmark objects draw for them."""

import contextlib
import difflib
import functools
from collections.abc import Sequence

import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3, MT25_V3, MT50_V3
from metaworld.types import Task

import metaworld

from .environment import fast_class

__all__ = ["BENCHMARKS", "derive_seed", "goals_of", "split_benchmark", "task_names"]

BENCHMARKS: dict[str, tuple[str, ...]] = {
    name: tuple(task.removesuffix("-v3") for task in classes)
    for name, classes in (("MT10", MT10_V3), ("MT25", MT25_V3), ("MT50", MT50_V3))
}
"""The tasks of each benchmark, in the order of the one-hot."""


def split_benchmark(text: str) -> str | list[str]:
    """Turns the name of a benchmark, or tasks with commas between them, into the argument of :func:`task_names`.

    Example:
        >>> from dynroute_metaworld.envs.tasks import split_benchmark
        >>> split_benchmark("MT10"), split_benchmark("reach, push")
        ('MT10', ['reach', 'push'])
    """
    return [name.strip() for name in text.split(",")] if "," in text else text.strip()


def task_names(benchmark: str | Sequence[str]) -> tuple[str, ...]:
    """The tasks of a benchmark, of one task or of a list of tasks, without their "-v3".

    Meta-World's MT1 is one task: its name says which.

    Example:
        >>> task_names("MT10")[:3]
        ('reach', 'push', 'pick-place')
        >>> task_names(["reach-v3", "window-open"])
        ('reach', 'window-open')
    """
    alone = isinstance(benchmark, str)
    if isinstance(benchmark, str):
        if benchmark.upper() in BENCHMARKS:
            return BENCHMARKS[benchmark.upper()]
        benchmark = [benchmark]
    if not isinstance(benchmark, Sequence) or not all(isinstance(name, str) for name in benchmark):
        raise TypeError(f"`benchmark` must be MT10, MT25, MT50, a task or a sequence of tasks, got {benchmark!r}.")
    names = tuple(name.removesuffix("-v3") for name in benchmark)
    known = [name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *(BENCHMARKS if alone else ())], n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; BENCHMARKS['MT50'] names them all."
            if name.upper() == "MT1":
                hint = "; MT1 is one task, whose name says which."
            what = "MT10, MT25, MT50 or tasks" if alone else "the names of tasks"
            raise ValueError(f"`benchmark` must be {what} of Meta-World, got {name!r}{hint}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"`benchmark` must name each task once, and at least one, got {list(names)}.")
    return names


def goals_of(benchmark: str | Sequence[str], seed: int) -> dict[str, tuple[Task, ...]]:
    """The 50 goals of each task that Meta-World draws for a benchmark from a seed.

    MT10, MT25 and MT50 are drawn as a whole: the goals are those of ``metaworld.MT10(seed)``. A task alone has those of
    ``metaworld.MT1(task, seed)``; in a list the next task has the next seed, lest tasks have the same goals. They are
    drawn once in a process, without the time that Meta-World gives the hand to come to its place before each of them.
    """
    if isinstance(benchmark, str) and benchmark.upper() in BENCHMARKS:
        return dict(_drawn(BENCHMARKS[benchmark.upper()], seed))
    names = task_names(benchmark)
    return {name: _drawn((name,), (seed + i) % 2**32)[name] for i, name in enumerate(names)}


def derive_seed(seed: int, *numbers: int) -> int:
    """The seed of a part, for instance of the environment of a task by its row in the benchmark.

    Example:
        >>> from dynroute_metaworld.envs.tasks import derive_seed
        >>> derive_seed(0, 1), derive_seed(1, 0)
        (3964924996, 1835504127)
    """
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])


@functools.lru_cache(maxsize=64)
def _drawn(names: tuple[str, ...], seed: int) -> dict[str, tuple[Task, ...]]:
    """The goals of one benchmark object of Meta-World: the tasks share one stream of random numbers."""
    generator, goals = np.random.RandomState(seed), {}
    for name in names:
        vectors = []
        with contextlib.closing(fast_class(name)()) as env:
            env.still, env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = True, False, True, True
            env.np_random = generator
            env._set_task_inner()
            for _ in range(2 * metaworld._N_GOALS):
                env.reset_model()
                vectors.append(env._last_rand_vec)
        # Meta-World starts every episode twice, so that every other draw counts.
        drawn = [{"rand_vec": vector, "env_cls": ALL_V3_ENVIRONMENTS[f"{name}-v3"]} for vector in vectors[1::2]]
        goals[name] = tuple(metaworld._encode_task(f"{name}-v3", one | metaworld._MT_OVERRIDE) for one in drawn)
    return goals
