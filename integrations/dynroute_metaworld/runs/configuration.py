"""A run: every hyper-parameter and every ablation, with the settings of the D2R paper as defaults."""

import dataclasses
import inspect
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from dynroute.arguments import check_choice, check_interval
from dynroute.networks import PRESETS as NETWORKS
from dynroute_sb3 import DamagedError
from dynroute_sb3.gaussian import LOG_STD_LIMITS, LOG_STD_RANGE
from dynroute_sb3.losses import MASK_RULES, Q_TARGETS, TASK_WEIGHTS, TEMPERATURES
from dynroute_sb3.options import BINS, CRITIC_LOSSES, PATHS, PRECISIONS, VALUE_RANGE, WARMUP_ACTIONS
from dynroute_sb3.storage import writing_file

from ..envs.environment import GOALS, MAX_HORIZON
from ..envs.tasks import split_benchmark, task_names
from ..imitation.cloning import ROUTE_LOSSES, CloningOptions

__all__ = ["KEYWORDS", "MOVABLE", "OPTIMIZERS", "Configuration", "kinds_of"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""The optimizers of actor and critics, by the option."""

KEYWORDS = ("network", "critic_network")
"""The options that hold keywords of networks, each with its value."""


def _rules(
    about: str,
    group: str,
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    most: float = math.inf,
    words: tuple[str, ...] = (),
    changes_result: bool = True,
    movable: bool = False,
) -> dict[str, Any]:
    """The metadata of an option: its help text, the rules for its value, and its part in a result.

    Args:
        about: The help text of the command line.
        group: The group of the help in which it stands.
        choices: The values that it takes.
        least: The smallest number.
        most: The largest number.
        words: It is one of them or a number as text; a word that ends with "_" stands before a number.
        changes_result: Whether what is learned depends on it, but for the last bits of floating-point numbers.
        movable: Whether another value may be given when a run goes on, as nothing that was computed depends on it.
    """
    return dict(locals())


def _option(default: Any, *about: Any, **rules: Any) -> Any:
    """A field with a default and the metadata of :func:`_rules`."""
    return field(default=default, metadata=_rules(*about, **rules))


def _aside(default: Any, *about: Any, **rules: Any) -> Any:
    """A field on which no result depends."""
    return _option(default, *about, changes_result=False, **rules)


RUN, SCHEDULE, LEARNING, NETWORK = "the run", "schedule, in steps of each task", "learning", "network and ablations"
IMITATION = "demonstrations of scripted policies"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How a method is trained on a benchmark; ``dynroute train --help`` tells of each field.

    The defaults are those of the D2R paper; where it does not tell, the limit of the coefficient of entropy and the
    norm of gradients are those of its released code. Steps, transitions of a batch and episodes are counted for each
    task, as in the paper; all tasks step together. None stands for what depends on the benchmark or on the method, see
    :meth:`resolve`.

    Example:
        >>> configuration = Configuration(method="sm", benchmark="MT50", width=64).resolve()
        >>> configuration.steps, configuration.buffer_size, configuration.task_weights
        (1000000, 10000000, 'alpha-sum')
    """

    method: str = _option("d2r", "the network; `dynroute methods` lists them", RUN, tuple(NETWORKS))
    benchmark: str = _option("MT10", "MT10, MT25, MT50, or tasks with commas between them", RUN)
    goals: str = _option("random", "new in each episode, one for all of them, or the benchmark's 50", RUN, GOALS)
    seed: int = _option(1, "decides all that is drawn", RUN, least=0)
    device: str = _aside("auto", "cpu, cuda, or auto for cuda where there is one", RUN, movable=True)
    workers: int = _aside(
        0, "processes that run the environments; 0 for none beside this one", RUN, least=0, movable=True
    )
    threads: int | None = _aside(None, "cores that torch uses; one for small networks, else all", RUN, least=1)
    restart: bool = _aside(
        False, "replace a worker that dies, its episodes cut short, instead of stopping", RUN, movable=True
    )
    overlap: bool = _option(False, "learn while the environments step, which act on networks one update older", RUN)
    compile: bool = _aside(False, "compile the networks by torch.compile", RUN)

    steps: int | None = _option(
        None, "how long; 1,500,000 for at most ten tasks, 1,000,000 for more", SCHEDULE, least=0, movable=True
    )
    hours: float | None = _option(
        None,
        "stop after so long, all sessions together, with the evaluation at the end; no limit",
        SCHEDULE,
        least=0,
        movable=True,
    )
    horizon: int = _option(200, f"steps of an episode, at most {MAX_HORIZON}", SCHEDULE, least=1, most=MAX_HORIZON)
    learning_starts: int = _option(2000, "steps before learning starts", SCHEDULE, least=0)
    warmup_actions: str = _option("random", "what acts in these steps", SCHEDULE, WARMUP_ACTIONS)
    update_every: int = _option(1, "steps from one time of learning to the next", SCHEDULE, least=1)
    updates: int = _option(1, "updates each time", SCHEDULE, least=1)
    lag_rollouts: bool = _option(False, "act on the policy as it was one time of learning before", SCHEDULE)
    log_every: int = _aside(1000, "steps from one line of metrics to the next", SCHEDULE, least=1)
    window: int = _aside(20, "newest episodes of which success is logged and shown", SCHEDULE, least=1)
    checkpoint_every: int = _aside(10_000, "steps from one checkpoint to the next", SCHEDULE, least=1, movable=True)
    evaluate_every: int = _aside(10_000, "steps from one evaluation to the next", SCHEDULE, least=1)
    evaluation_episodes: int = _aside(32, "episodes of an evaluation", SCHEDULE, least=1)
    final_episodes: int = _aside(100, "episodes of the evaluation at the end", SCHEDULE, least=1, movable=True)

    learning_rate: float = _option(3e-4, "of actor and critics", LEARNING, least=0)
    optimizer: str = _option("adam", "of actor and critics", LEARNING, tuple(OPTIMIZERS))
    weight_decay: float | None = _option(None, "of adamw; torch's, which is 0.01", LEARNING, least=0)
    gamma: float = _option(0.99, "the discount", LEARNING, least=0, most=1)
    tau: float = _option(0.005, "how far the targets move towards the critics", LEARNING, least=0, most=1)
    target_update_every: int = _option(1, "updates from one such move to the next", LEARNING, least=1)
    batch_size: int = _option(128, "transitions of each task in an update", LEARNING, least=1)
    mixed_batch_size: int | None = _option(
        None, "in its place, transitions in an update that are drawn over all tasks", LEARNING, least=1
    )
    buffer_size: int | None = _option(
        None, "transitions of all tasks that are kept; 1M for at most ten tasks, else 10M", LEARNING, least=1
    )
    memory_map: str | None = _aside(None, "a directory for them, where memory is short", LEARNING)
    critic_loss: str = _option("mse", "critics learn values, or distributions of them", LEARNING, CRITIC_LOSSES)
    bins: int = _option(BINS, "of these distributions", LEARNING, least=2)
    value_low: float = _option(VALUE_RANGE[0], "value of the first bin", LEARNING)
    value_high: float = _option(VALUE_RANGE[1], "value of the last bin", LEARNING)
    q_target: str = _option("min", "of the critics' values, for what they learn and for the actor", LEARNING, Q_TARGETS)
    normalize_returns: bool = _option(
        False, "divide the rewards of each task by what leads its returns into the range of values", LEARNING
    )
    log_std: str = _option("clamp", "how the actor's log-deviation is kept in its range", LEARNING, LOG_STD_LIMITS)
    log_std_low: float = _option(LOG_STD_RANGE[0], "the lower end of that", LEARNING)
    log_std_high: float = _option(LOG_STD_RANGE[1], "the upper end", LEARNING)
    target_entropy: str = _option(
        "auto",
        "what the coefficient aims at: a number, auto for -4, or auto_0.5 for half of it",
        LEARNING,
        words=("auto", "auto_"),
    )
    ent_coef: str = _option(
        "auto", "coefficient of entropy: a number, auto, or auto_0.1 to start there", LEARNING, words=("auto", "auto_")
    )
    ent_coef_lr: float | None = _option(None, "its learning rate; that of the networks", LEARNING, least=0)
    ent_coef_beta1: float = _option(0.9, "decay of the first moment in its optimizer", LEARNING, least=0, most=0.999)
    shared_ent_coef: bool = _option(False, "one coefficient of entropy for all tasks", LEARNING)
    ent_coef_after_step: bool = _option(False, "critics and actor take it as it is after its step", LEARNING)
    max_ent_coef_grad_norm: float | None = _option(
        None, "the norm the gradient of its logarithm is clipped to; not clipped", LEARNING, least=0
    )
    max_ent_coef: float | None = _option(1.0, "the largest coefficient of entropy", LEARNING, least=0)
    task_weights: str | None = _option(
        None, "weights of the losses of tasks; alpha-sum (Eq. 15) for sm and d2r, else none", LEARNING, TASK_WEIGHTS
    )
    max_task_loss: float | None = _option(3e3, "a task with a larger loss is left out of an update", LEARNING, least=0)
    mask_rule: str = _option("each", "which losses of a task that compares: each, or their total", LEARNING, MASK_RULES)
    joint_update: bool = _option(False, "all losses come from the networks before, and then all step", LEARNING)
    shared_lr: float | None = _option(
        None, "learning rate of what actor and critics share; that of the networks", LEARNING, least=0
    )
    log_prob_epsilon: float = _option(0.0, "added inside log(1 - a²) of the policy", LEARNING, least=0)
    max_grad_norm: float | None = _option(1.0, "the norm gradients are clipped to", LEARNING, least=0)
    reward_scale: float = _option(0.1, "multiplies the rewards that are learned from", LEARNING, least=0)
    precision: str = _option("float32", "of the networks' products while they learn", LEARNING, PRECISIONS)
    reward_version: str = _option("v2", "of Meta-World's rewards", LEARNING, ("v1", "v2"))
    bootstrap_timeouts: bool = _option(True, "take running out of time for an interruption, not an end", LEARNING)
    actor_paths: str | None = _option(
        None, "paths of the actor's loss; replayed (Eq. 8) where paths are chosen", LEARNING, PATHS
    )
    critic_paths: str = _option("sampled", "paths of the critics' loss", LEARNING, PATHS)
    route_temperature: str = _option(
        TEMPERATURES[0],
        f"of path sampling: {', '.join(TEMPERATURES)} (Eq. 14), or a number",
        LEARNING,
        words=TEMPERATURES,
    )

    demonstrations: int = _option(0, "episodes of each task", IMITATION, least=0)
    noise: str = _option("0,0.3", "deviations of the noise on what is done, one for each episode, in turn", IMITATION)
    held_out: int = _option(2, "of these, episodes that tell when to stop cloning", IMITATION, least=1)
    cloning_steps: int = _option(0, "updates of the actor by cloning, before anything else", IMITATION, least=0)
    cloning_batch_size: int = _option(64, "samples of each task in an update", IMITATION, least=1)
    cloning_rate: float = _option(1e-3, "the highest learning rate; it rises and falls", IMITATION, least=0)
    cloning_sample: bool = _option(True, "sample routes, as SAC does", IMITATION)
    cloning_balance: float = _option(0.0, "weight of the loss by which sources come equally often", IMITATION, least=0)
    cloning_importance: float = _option(0.0, "weight of the loss by which sources get equal weight", IMITATION, least=0)
    cloning_z_loss: float = _option(0.0, "weight of the loss that keeps logits of routers small", IMITATION, least=0)
    cloning_entropy: float = _option(0.0, "weight of the entropy of routers, which is subtracted", IMITATION, least=0)
    cloning_std: float = _option(0.2, "how much the policy explores afterwards, before tanh", IMITATION, least=0)
    patience: int = _option(10, "hundreds of updates without a gain before cloning stops", IMITATION, least=1)
    dagger_rounds: int = _option(
        0, "times the policy acts and scripts correct it, sharing the updates", IMITATION, least=0
    )
    warm_start: str | None = _option(None, "the directory of a run to take the actor from", IMITATION)
    actor_starts: int = _option(0, "updates of the critics before SAC moves the actor", IMITATION, least=0)
    demonstration_share: float = _option(0.5, "part of SAC's batches that they are", IMITATION, least=0, most=0.99)
    demonstration_weight: float = _option(0.0, "weight of cloning in SAC's loss of the actor", IMITATION, least=0)
    demonstration_decay: int | None = _option(None, "updates until it is 0; it stays", IMITATION, least=1)

    gate: str | None = _option(None, "how sources are chosen: top-2, sample-2, hard, soft ...", NETWORK)
    protect: str | None = _option(None, "what unsuitable sources are spared: rsg, input, sg, none", NETWORK)
    num_modules: int | None = _option(None, "modules of d2r", NETWORK, least=1)
    width: int | None = _option(None, "features of a module", NETWORK, least=1)
    state_free: bool | None = _option(None, "d2r routes by the task alone", NETWORK)
    network: dict[str, Any] = field(
        default_factory=dict, metadata=_rules("any other keyword of the network, as name=value", NETWORK)
    )
    critic_network: dict[str, Any] = field(
        default_factory=dict, metadata=_rules("keywords of the critics' networks where they differ", NETWORK)
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for option in dataclasses.fields(self):
            _check(option, hints[option.name], getattr(self, option.name))
        if self.workers > len(self.tasks):
            raise ValueError(f"`workers` must be at most the {len(self.tasks)} tasks, got {self.workers}.")
        for name in ("value", "log_std"):
            check_interval(f"{name}_low, {name}_high", (getattr(self, f"{name}_low"), getattr(self, f"{name}_high")))
        if self.weight_decay is not None and self.optimizer != "adamw":
            raise ValueError(
                f"`weight_decay` needs --optimizer adamw, got {self.weight_decay} with {self.optimizer} without one."
            )
        for name in ("cloning_steps", "demonstration_weight"):
            if getattr(self, name) and not self.demonstrations:
                raise ValueError(f"`{name}` needs demonstrations, for instance --demonstrations 20, got 0 of them.")
        if self.dagger_rounds and self.dagger_rounds >= self.cloning_steps:
            raise ValueError(
                f"`dagger_rounds` must be less than the {self.cloning_steps} `cloning_steps`, which the rounds share, "
                f"got {self.dagger_rounds}."
            )
        if self.cloning_steps and self.held_out >= self.demonstrations:
            raise ValueError(
                f"`held_out` must be less than the {self.demonstrations} demonstrations, got {self.held_out}."
            )
        _ = self.noise_levels
        for name in (*self.network_kwargs, *self.critic_network):
            if name not in (known := _keywords(self.method)):
                fit = [method for method in NETWORKS if name in _keywords(method)]
                hint = f"methods that have it: {', '.join(fit)}" if fit else f"it has {', '.join(known)}"
                raise ValueError(f"`{name}` is no option of the method {self.method}; {hint}.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order of the one-hot."""
        return task_names(self.benchmark_or_tasks)

    @property
    def benchmark_or_tasks(self) -> str | list[str]:
        """The keywords of :func:`make_envs`."""
        return split_benchmark(self.benchmark)

    @property
    def problem(self) -> dict[str, Any]:
        """The keywords that :func:`make_envs`, :func:`collect` and :func:`evaluate` share, of episodes and workers."""
        return {name: getattr(self, name) for name in ("goals", "horizon", "reward_version", "workers")}

    @property
    def batch_rows(self) -> int:
        """The transitions of all tasks in an update."""
        return self.mixed_batch_size or self.batch_size * len(self.tasks)

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """The keywords of :class:`dynroute_sb3.MultiTaskPolicy`."""
        kwargs: dict[str, Any] = {
            "network": self.method,
            "network_kwargs": self.network_kwargs,
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
        """The keywords of :func:`collect`."""
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
        )

    @property
    def network_kwargs(self) -> dict[str, Any]:
        """The keywords of the network; those of the critics may differ by `critic_network`."""
        named = {name: getattr(self, name) for name in ("gate", "protect", "num_modules", "width", "state_free")}
        return {**self.network, **{name: value for name, value in named.items() if value is not None}}

    @property
    def result_options(self) -> dict[str, Any]:
        """The options that change the result, without those in which the runs of one row or curve differ.

        These are the seed and the run to start from, which :func:`~dynroute_metaworld.runs.seeds.origin` compares.
        """
        names = [option.name for option in dataclasses.fields(self) if option.metadata["changes_result"]]
        return {name: getattr(self, name) for name in names if name not in ("seed", "warm_start")}

    def resolve(self) -> Self:
        """The same with what depends on the number of tasks and on the method filled in."""
        few = len(self.tasks) <= 10
        usual: dict[str, Any] = {
            "steps": 1_500_000 if few else 1_000_000,
            "buffer_size": 1_000_000 if few else 10_000_000,
            "task_weights": "alpha-sum" if self.method.startswith(("d2r", "sm")) else "none",
        }
        return dataclasses.replace(
            self, **{name: value for name, value in usual.items() if getattr(self, name) is None}
        )

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        with writing_file(path) as part:
            part.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what :meth:`write` wrote."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DamagedError(f"{path} is no configuration of a run: {error}") from error


MOVABLE = tuple(option.name for option in dataclasses.fields(Configuration) if option.metadata["movable"])
"""The options that may change when a run goes on, as nothing that was computed depends on them."""


def kinds_of(hint: Any) -> tuple[type, ...]:
    """The types of the values that a field takes, None last.

    Example:
        >>> from dynroute_metaworld.runs.configuration import kinds_of
        >>> kinds_of(float | None), kinds_of(dict[str, int])
        ((<class 'float'>, <class 'NoneType'>), (<class 'dict'>,))
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(kind) or kind for kind in kinds)


def _keywords(method: str) -> list[str]:
    """The keywords of a method's network that a configuration can hold."""
    names = list(inspect.signature(NETWORKS[method].network).parameters)[3:]
    return [name for name in names if name not in ("metadata", "composition", "embedding", "device", "dtype")]


def _check(option: dataclasses.Field[Any], kind: Any, value: Any) -> None:
    """Raises an error that names the option unless a value fits what was declared."""
    kinds = kinds_of(kind)
    fits = isinstance(value, (*kinds, *((int,) if float in kinds else ())))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("none" if one is types.NoneType else one.__name__ for one in kinds)
        raise ValueError(f"`{option.name}` must be of type {names}, got {value!r}.")
    choices, least = option.metadata["choices"], option.metadata["least"]
    if choices and value is not None:
        check_choice(option.name, value, choices)
    if (words := option.metadata["words"]) and not _is_number_or(words, value):
        told = ", ".join(f"{word}NUMBER" if word.endswith("_") else word for word in words)
        raise ValueError(f"`{option.name}` must be a number or one of {told}, got {value!r}.")
    most = option.metadata["most"]
    if least is not None and value is not None and not (least <= value <= most and value < math.inf):
        rule = f"in {least}..{most}" if most < math.inf else f"at least {least} and finite"
        raise ValueError(f"`{option.name}` must be {rule}, got {value!r}.")


def _is_number_or(words: tuple[str, ...], text: str) -> bool:
    if text in words and not text.endswith("_"):
        return True
    for word in words:
        text = text.removeprefix(word) if word.endswith("_") else text
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
