"""The values that options take: shown in help, completed by shells, and checked before torch is imported.

Packages that import torch or MuJoCo repeat some of these lists; a test compares them.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "BENCHMARKS",
    "FORMATS",
    "GOALS",
    "MAX_HORIZON",
    "METHODS",
    "PRESETS",
    "REWARD_VERSIONS",
    "STATES",
    "SUCCESS",
    "benchmark_name",
    "check_choice",
    "check_task",
    "likely",
    "split_benchmark",
    "task_names",
]

METHODS = (
    *("mt-sac", "mh-sac", "moe", "hard", "sm", "sm-shallow", "care", "paco"),
    *("d2r", "d2r-released", "d2r-layer", "d2r-model", "brc", "scalemoe-feature", "scalemoe-output"),
)
"""The networks, as :func:`dynroute.networks.available` lists them."""

PRESETS = ("paper", "released", "quick", "night", "refine", "brc", "brc-small")
"""The names of :data:`dynroute_metaworld.runs.presets.PRESETS`."""

GOALS = ("fixed", "random", "benchmark")
"""The goals are the first of the benchmark's goals, a new one for each episode, or its 50 goals in turn."""

MAX_HORIZON = 500
"""The number of steps after which Meta-World itself ends an episode."""

REWARD_VERSIONS = ("v1", "v2")
"""The versions of Meta-World's rewards."""

SUCCESS = ("any", "last")
"""The steps of an episode that count when a policy is evaluated."""

FORMATS: Mapping[str, str] = {"torch": ".safetensors", "export": ".pt2", "onnx": ".onnx", "executorch": ".pte"}
"""The formats of an extracted policy, with the extensions of their files.

"torch" is a :class:`dynroute.Program`, whose file cannot run code. "export" is a file of ``torch.export``: only torch
reads it, and it must come from a trusted source. "onnx" is a file of ``torch.onnx``. "executorch" is a file of
ExecuTorch, for phones and small devices; it takes one state at a time."""

STATES = ("policy", "demonstrations")
"""The states to extract a policy for are from episodes of the policy or from demonstrations."""

_MT25 = (
    *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown"),
    *("peg-insert-side", "window-open", "window-close", "coffee-pull", "pick-out-of-hole", "disassemble"),
    *("pick-place-wall", "basketball", "stick-pull", "button-press-wall", "faucet-open", "door-lock", "lever-pull"),
    *("sweep-into", "faucet-close", "coffee-button", "button-press-topdown-wall", "dial-turn"),
)
_MT50 = (
    *("assembly", "basketball", "bin-picking", "box-close", "button-press-topdown", "button-press-topdown-wall"),
    *("button-press", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn", "disassemble"),
    *("door-close", "door-lock", "door-open", "door-unlock", "hand-insert", "drawer-close", "drawer-open"),
    *("faucet-open", "faucet-close", "hammer", "handle-press-side", "handle-press", "handle-pull-side", "handle-pull"),
    *("lever-pull", "pick-place-wall", "pick-out-of-hole", "pick-place", "plate-slide", "plate-slide-side"),
    *("plate-slide-back", "plate-slide-back-side", "peg-insert-side", "peg-unplug-side", "soccer", "stick-push"),
    *("stick-pull", "push", "push-wall", "push-back", "reach", "reach-wall", "shelf-place", "sweep-into", "sweep"),
    *("window-open", "window-close"),
)

BENCHMARKS: dict[str, tuple[str, ...]] = {"MT10": _MT25[:10], "MT25": _MT25, "MT50": _MT50}
"""The tasks of each benchmark, in the order of the one-hot."""


def likely(value: object, choices: Collection[str], *, count: int = 1, otherwise: str = ".") -> str:
    """The end of an error message about a wrong value: the values that were likely meant."""
    near = difflib.get_close_matches(str(value), choices, n=count)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises an error unless a value is one of the choices; it suggests the closest one with the same first letter.

    In a choice, "-K" at the end stands for "-2" and the like.
    """
    number = re.findall(r"\d+$", str(value)) or ["2"]
    known = [re.sub("-K$", f"-{number[0]}", choice) for choice in choices]
    if value not in known:
        listed = ", ".join(map(repr, choices)) + " with a number for K" * (known != [*choices])
        text = str(value).lower()
        alike = {choice.lower(): choice for choice in known if choice[:1].lower() == text[:1]}
        near = difflib.get_close_matches(text, alike, n=1)  # bfloat16 is not float32
        hint = f"; did you mean {alike[near[0]]!r}?" if near else "."
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}{hint}")


def check_task(task: str) -> None:
    """Raises an error unless a name is a task of Meta-World."""
    if task.removesuffix("-v3") not in _MT50:
        raise ValueError(f"`task` must be a task of Meta-World, got {task!r}{likely(task, _MT50)}")


def split_benchmark(text: str) -> str | list[str]:
    """Reads the text of an option, a benchmark's name or tasks with commas between, for :func:`task_names`.

    Example:
        >>> from dynroute_command.choices import split_benchmark
        >>> split_benchmark("MT10"), split_benchmark("reach, push")
        ('MT10', ['reach', 'push'])
    """
    return [name.strip() for name in text.split(",")] if "," in text else text.strip()


def benchmark_name(benchmark: str | Sequence[str]) -> str:
    """The name of a benchmark, or of given tasks with commas between them, the same for all ways to write it.

    Example:
        >>> from dynroute_command.choices import benchmark_name
        >>> benchmark_name("mt10"), benchmark_name(["reach-v3", "push"])
        ('MT10', 'reach,push')
    """
    whole = isinstance(benchmark, str) and benchmark.upper() in BENCHMARKS
    return str(benchmark).upper() if whole else ",".join(task_names(benchmark))


def task_names(benchmark: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the tasks of a benchmark, or of one or several given tasks, without their "-v3".

    Meta-World's MT1 is a single task: give its name instead.

    Example:
        >>> from dynroute_command.choices import task_names
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
    for name in names:
        if name not in _MT50:
            words, rest = [*_MT50, *(BENCHMARKS if alone else ())], f"; the tasks are {', '.join(_MT50)}."
            hint = likely(name, words, count=3, otherwise=rest)
            if name.upper() == "MT1":
                hint = "; MT1 is a single task: give the name of the task."
            what = "MT10, MT25, MT50 or tasks" if alone else "the names of tasks"
            raise ValueError(f"`benchmark` must be {what} of Meta-World, got {name!r}{hint}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"`benchmark` must name each task once, and at least one, got {list(names)}.")
    return names
