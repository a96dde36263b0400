"""The tasks of Meta-World by name, and the goals that benchmark objects draw for them."""

import contextlib
import functools
from collections.abc import Sequence

import metaworld
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task

from dynroute_command.choices import BENCHMARKS, task_names

from .environment import fast_class

__all__ = ["derive_seed", "goals_of"]


def goals_of(benchmark: str | Sequence[str], seed: int) -> dict[str, tuple[Task, ...]]:
    """The 50 goals of each task that Meta-World draws for a benchmark from a seed.

    The goals of MT10, MT25 and MT50 are the same as in ``metaworld.MT10(seed)``, and the goals of a single task as in
    ``metaworld.MT1(task, seed)``. In a list, the next task has the next seed, so that tasks have different goals. A
    process draws them once, and skips the steps in which Meta-World moves the hand to its place before each of them.
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
        # Meta-World starts every episode twice, and uses the second draw.
        drawn = [{"rand_vec": vector, "env_cls": ALL_V3_ENVIRONMENTS[f"{name}-v3"]} for vector in vectors[1::2]]
        goals[name] = tuple(metaworld._encode_task(f"{name}-v3", goal | metaworld._MT_OVERRIDE) for goal in drawn)
    return goals
