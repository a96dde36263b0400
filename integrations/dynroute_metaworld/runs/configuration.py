"""The configuration of a run: all hyper-parameters and ablations, by default the settings of the D2R paper."""

import dataclasses
import inspect
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from dynroute.arguments import check_interval
from dynroute.files import writing_file
from dynroute.networks import PRESETS as NETWORKS
from dynroute_command.choices import benchmark_name, split_benchmark, task_names
from dynroute_command.options import IMITATION, KEYWORDS, Options, check_option, kinds_of
from dynroute_sb3 import DamagedError

from ..envs.descriptions import read_metadata
from ..imitation.cloning import ROUTE_LOSSES, CloningOptions

__all__ = ["MOVABLE", "OPTIMIZERS", "Configuration", "check_needs", "with_lists"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""The optimizers of actor and critics, by the value of `optimizer`."""


STATED = ("method", "benchmark", "goals", "seed", "steps")
"""The options that a stored configuration must have: with a default it would be of another run."""

NETWORK_FLAGS = ("gate", "protect", "num_modules", "width", "state_free", "metadata")
"""The keywords of networks that are options of their own."""


@dataclass(frozen=True, kw_only=True)
class Configuration(Options):
    """How a method is trained on a benchmark; ``dynroute train --help`` explains each field.

    The defaults come from the D2R paper where it gives them, and otherwise are those of SB3 or our own; the limits of
    the entropy coefficient and of the gradient norm, and the paths of the critics, come from its released code. Steps,
    transitions of a batch and episodes are counted for each task, as in the paper; all tasks step together. None is a
    default that depends on the benchmark or the method, see :meth:`resolve`.

    Example:
        >>> configuration = Configuration(method="sm", benchmark="MT50", width=64).resolve()
        >>> configuration.steps, configuration.buffer_size, configuration.task_weights
        (1000000, 10000000, 'alpha-sum')
    """

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            kinds, value = kinds_of(option.type), getattr(self, option.name)
            if type(value) is int and float in kinds:
                object.__setattr__(self, option.name, _as_float(value))
            check_option(option, getattr(self, option.name))
            if isinstance(value, dict):
                object.__setattr__(self, option.name, with_lists(value))
        if self.workers > len(self.tasks):
            raise ValueError(f"`workers` must be at most the {len(self.tasks)} tasks, got {self.workers}.")
        for name in ("value", "log_std"):
            check_interval(f"{name}_low, {name}_high", (getattr(self, f"{name}_low"), getattr(self, f"{name}_high")))
        if self.weight_decay is not None and self.optimizer != "adamw":
            raise ValueError(
                f"`weight_decay` needs --optimizer adamw, got {self.weight_decay} with {self.optimizer}; "
                "--weight-decay none leaves out that of a preset."
            )
        if self.grow_every is not None and self.grow_to is None:
            raise ValueError(f"`grow_every` needs --grow-to, the modules to grow to, got {self.grow_every} without it.")
        for name in ("cloning_steps", "demonstration_weight"):
            if getattr(self, name) and not self.demonstrations:
                raise ValueError(f"`{name}` needs demonstrations, for instance --demonstrations 20, got 0.")
        if self.dagger_rounds and self.dagger_rounds >= self.cloning_steps:
            raise ValueError(
                f"`dagger_rounds` must be less than the {self.cloning_steps} `cloning_steps`, which the rounds share, "
                f"got {self.dagger_rounds}."
            )
        if self.cloning_steps and self.held_out >= self.demonstrations:
            raise ValueError(
                f"`held_out` must be less than the {self.demonstrations} demonstrations, got {self.held_out}; "
                f"--held-out N holds out N demonstrations of each task, {type(self).held_out} by default."
            )
        _ = self.noise_levels
        if self.metadata is not None:  # it is to be found from another directory too
            object.__setattr__(self, "metadata", str(Path(self.metadata).resolve()))
        for part in KEYWORDS:  # all networks have the same vectors, which JSON does not hold
            if "metadata" in getattr(self, part):
                raise ValueError(f"`{part}` must not set `metadata`; --metadata FILE gives it to all networks.")
        for name in (*self.network_kwargs, *self.critic_network):
            if name not in (keywords := _keywords(self.method)):
                fit = [method for method in NETWORKS if name in _keywords(method)]
                hint = f"methods that have it: {', '.join(fit)}" if fit else f"it has {', '.join(keywords)}"
                raise ValueError(f"`{name}` is not an option of the method {self.method}; {hint}.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order of the one-hot."""
        return task_names(self.benchmark_or_tasks)

    @property
    def benchmark_or_tasks(self) -> str | list[str]:
        """The benchmark, or the list of its tasks, as :func:`make_envs` takes it."""
        return split_benchmark(self.benchmark)

    @property
    def problem(self) -> dict[str, Any]:
        """The keywords of goals, episodes and workers for :func:`make_envs`, :func:`collect` and :func:`evaluate`."""
        return {name: getattr(self, name) for name in ("goals", "horizon", "reward_version", "workers")}

    @property
    def learns_ent_coef(self) -> bool:
        """Whether the coefficient of entropy is learned."""
        return self.ent_coef.startswith("auto")

    @property
    def batch_rows(self) -> int:
        """The transitions of all tasks in an update."""
        return self.mixed_batch_size or self.batch_size * len(self.tasks)

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """The keywords of :class:`dynroute_sb3.MultiTaskPolicy`."""
        kwargs: dict[str, Any] = {
            "network": self.method,
            "network_kwargs": self.given_kwargs,
            "critic_kwargs": self.critic_network,
            "log_std": self.log_std,
            "log_std_range": (self.log_std_low, self.log_std_high),
            "optimizer_class": OPTIMIZERS[self.optimizer],
        }
        if self.weight_decay is not None:
            kwargs["optimizer_kwargs"] = {"fused": True, "weight_decay": self.weight_decay}
        return kwargs

    @property
    def noise_levels(self) -> list[float]:
        """The standard deviations of the noise on actions, for :func:`collect`."""
        try:
            levels = [float(level) for level in self.noise.split(",")]
        except ValueError:
            levels = [math.nan]
        if not all(0 <= level < math.inf for level in levels):
            raise ValueError(f"`noise` must be numbers of at least 0 with commas between them, got {self.noise!r}.")
        return levels

    @property
    def cloning(self) -> CloningOptions:
        """The options of :class:`~dynroute_metaworld.imitation.cloning.Cloning`."""
        return CloningOptions(
            held_out=self.held_out,
            batch_size=self.cloning_batch_size,
            rate=self.cloning_rate,
            sample=self.cloning_sample,
            std=self.cloning_std,
            patience=self.patience,
            seed=self.seed,
            route_losses={name: weight for name in ROUTE_LOSSES if (weight := getattr(self, name))},
            grow_to=self.grow_to,
        )

    @property
    def network_kwargs(self) -> dict[str, Any]:
        """The keywords of the network; `critic_network` changes them for the critics."""
        named = {name: getattr(self, name) for name in NETWORK_FLAGS}
        return {**self.network, **{name: value for name, value in named.items() if value is not None}}

    @property
    def given_kwargs(self) -> dict[str, Any]:
        """The keywords of the network, with the vectors of tasks in place of the name of their file."""
        kwargs = self.network_kwargs
        if "metadata" in kwargs:
            kwargs["metadata"] = read_metadata(kwargs["metadata"], self.benchmark_or_tasks)
        return kwargs

    @property
    def result_options(self) -> dict[str, Any]:
        """The options that change the result, except the seed, the hours and the run to start from.

        Runs of one row or curve differ in their seeds; :func:`~dynroute_metaworld.runs.seeds.origin` compares the runs
        that they start from. The hours are a limit of the machine: a run that they end early is shorter, not another.
        """
        names = [option.name for option in dataclasses.fields(self) if option.metadata["changes_result"]]
        options = {name: getattr(self, name) for name in names if name not in ("seed", "hours", "warm_start")}
        grows_by = {} if self.grow_to is None else {"window": self.window}
        return {**options, "benchmark": benchmark_name(self.benchmark_or_tasks), **grows_by}

    def resolve(self) -> Self:
        """The same configuration, with values for the defaults that depend on the tasks and the method."""
        few = len(self.tasks) <= 10
        usual: dict[str, Any] = {
            "steps": 1_500_000 if few else 1_000_000,
            "buffer_size": 1_000_000 if few else 10_000_000,
            "task_weights": "alpha-sum",
        }
        chosen = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return dataclasses.replace(self, benchmark=benchmark_name(self.benchmark_or_tasks), **chosen)

    def write(self, path: Path) -> None:
        """Writes the configuration as JSON, whole or not at all."""
        with writing_file(path) as part:
            part.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file that :meth:`write` wrote."""
        try:
            stored = {**json.loads(path.read_text())}
            if missing := [name for name in STATED if name not in stored]:
                raise ValueError(f"it has no {', '.join(missing)}.")
            return cls(**stored)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DamagedError(f"{path} is not the configuration of a run: {error}") from error


def check_needs(configurations: Sequence[Configuration], given: Collection[str] = ()) -> None:
    """Raises an error if an option has no effect in any of several runs, for want or because of another one.

    An error is also raised if demonstrations are to be cloned in any run whose batches have none.

    It is for new runs, and is not asked when one goes on.

    Args:
        configurations: The configurations of the runs.
        given: The options that were given; others are only looked at if they differ from their defaults.
    """
    mixed = [each.mixed_batch_size for each in configurations]
    if "batch_size" in given and None not in mixed:
        source = "" if "mixed_batch_size" in given else " by the preset"
        raise ValueError(
            f"`batch_size` must be left out beside `mixed_batch_size`, which is {mixed[0]}{source} and counts "
            "transitions of all tasks together."
        )
    for each in configurations:
        for name in NETWORK_FLAGS:
            if {"network", name} <= set(given) and name in each.network and getattr(each, name) is not None:
                raise ValueError(
                    f"`network` must not set `{name}` beside --{name.replace('_', '-')}, which takes its place, got "
                    f"{each.network[name]!r} and {getattr(each, name)!r}."
                )
        if each.demonstration_weight and not each.demonstration_share:
            raise ValueError(
                "`demonstration_share` must be above 0 beside a `demonstration_weight`, which clones demonstrations in "
                f"batches, got {each.demonstration_share:g} with {each.demonstration_weight:g}; "
                "--demonstration-weight 0 leaves out that of a preset."
            )
    of_learning = [] if any(each.learns_ent_coef for each in configurations) else ["ent_coef_lr", "max_ent_coef"]
    if of_learning and not any(each.normalize_returns for each in configurations):  # these have a share of it
        of_learning.append("target_entropy")
    for name in of_learning:
        values = [value for each in configurations if (value := getattr(each, name)) is not None]
        if name in given and values:
            raise ValueError(
                f"`{name}` needs a coefficient of entropy that is learned, such as --ent-coef auto, got {values[0]!r} "
                f"with {configurations[0].ent_coef}."
            )
    for option in dataclasses.fields(Configuration):
        needed, values = option.metadata["needs"], [getattr(each, option.name) for each in configurations]
        if not needed or any(getattr(each, needed) for each in configurations):
            continue
        wanted = [v for v in values if v != option.default or (option.name in given and v is not False)]
        if not wanted:
            continue
        names = dict.fromkeys(["demonstrations", needed] if option.metadata["group"] == IMITATION else [needed])
        lacking = [name for name in names if not any(getattr(each, name) for each in configurations)]
        flags = [f"--{name.replace('_', '-')}" for name in lacking]
        raise ValueError(
            f"`{option.name}` needs {flags[-1]}, got {wanted[0]!r} without it; give "
            f"{' and '.join(f'{flag} N' for flag in flags)}, or leave `{option.name}` out."
        )


MOVABLE = tuple(option.name for option in dataclasses.fields(Configuration) if option.metadata["movable"])
"""The options that may change when a run is resumed, since nothing computed before depends on them."""


def with_lists(value: Any) -> Any:
    """A value of a configuration as it is read back from JSON, with lists in place of tuples."""
    if isinstance(value, dict):
        return {name: with_lists(each) for name, each in value.items()}
    return [with_lists(each) for each in value] if isinstance(value, list | tuple) else value


def _as_float(value: int) -> float:
    """An integer as a float, so that 1 and 1.0 are the same setting."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _keywords(method: str) -> list[str]:
    """The keywords of a method's network that a configuration can hold."""
    names = list(inspect.signature(NETWORKS[method].network).parameters)[3:]
    return [name for name in names if name not in ("composition", "embedding", "device", "dtype")]
