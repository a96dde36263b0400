"""The tasks of Meta-World by name, and the goals that one benchmark object draws for them."""

import difflib
import functools
from collections.abc import Sequence

import metaworld
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3, MT25_V3, MT50_V3
from metaworld.types import Task

__all__ = ["BENCHMARKS", "goals_of", "task_names"]

BENCHMARKS: dict[str, tuple[str, ...]] = {
    name: tuple(task.removesuffix("-v3") for task in classes)
    for name, classes in (("MT10", MT10_V3), ("MT25", MT25_V3), ("MT50", MT50_V3))
}
"""The tasks of each benchmark, in the order of the one-hot."""


def task_names(benchmark: str | Sequence[str]) -> tuple[str, ...]:
    """The tasks of a benchmark, of one task or of a list of tasks, without their "-v3".

    Example:
        >>> task_names("MT10")[:3]
        ('reach', 'push', 'pick-place')
        >>> task_names(["reach-v3", "window-open"])
        ('reach', 'window-open')
    """
    if isinstance(benchmark, str):
        if benchmark.upper() in BENCHMARKS:
            return BENCHMARKS[benchmark.upper()]
        benchmark = [benchmark]
    names = tuple(name.removesuffix("-v3") for name in benchmark)
    known = [name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *BENCHMARKS], n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; dynroute_metaworld lists them."
            raise ValueError(f"`benchmark` must be MT10, MT25, MT50 or tasks of Meta-World, got {name!r}{hint}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"`benchmark` must name each task once, and at least one, got {list(names)}.")
    return names


@functools.lru_cache(maxsize=8)
def goals_of(benchmark: str | tuple[str, ...], seed: int) -> dict[str, tuple[Task, ...]]:
    """The 50 goals of each task that Meta-World draws for a benchmark from a seed.

    MT10, MT25 and MT50 are drawn as a whole, so that goals are those that ``metaworld.MT10(seed)`` has; other tasks one
    by one. It takes about half a second for a task.
    """
    if isinstance(benchmark, str) and benchmark.upper() in BENCHMARKS:
        made = [getattr(metaworld, benchmark.upper())(seed=seed)]
    else:
        made = [metaworld.MT1(f"{name}-v3", seed=seed) for name in task_names(benchmark)]  # type: ignore[no-untyped-call]
    goals: dict[str, list[Task]] = {}
    for whole in made:
        for task in whole.train_tasks:
            goals.setdefault(task.env_name.removesuffix("-v3"), []).append(task)
    return {name: tuple(tasks) for name, tasks in goals.items()}
