"""The options of a run: their types, defaults, rules and lines of help.

Each is declared once, here, without heavy imports. Flags, help and completion come from this declaration, and
:class:`dynroute_metaworld.Configuration` inherits it.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .choices import GOALS, MAX_HORIZON, METHODS, REWARD_VERSIONS, check_choice

__all__ = [
    "AXES",
    "GROUPS",
    "IMITATION_ALONE",
    "KEYWORDS",
    "PATHS",
    "Options",
    "check_option",
    "check_range",
    "kinds_of",
]

KEYWORDS = ("network", "critic_network")
"""The options that hold keywords of networks, each with its value."""

PATHS = ("warm_start", "memory_map", "metadata")
"""The options that hold paths."""

AXES = ("benchmark", "method", "seed")
"""The options of a run that every sweep varies."""

IMITATION_ALONE: Mapping[str, Any] = {
    "steps": 0,
    "demonstrations": 20,
    "cloning_steps": 2000,
    "demonstration_share": 0.0,
    "demonstration_weight": 0.0,
    "final_episodes": 20,
}
"""The options of a run that only imitates."""

WHAT, LENGTH, PLACE = "what to run", "how long; steps are counted for each task", "where it goes, and what is written"
NETWORK, IMITATION = "the network", "demonstrations of scripted policies"
SCHEDULE, OPTIMIZER, CRITICS = "learner: experience and updates", "learner: optimizers", "learner: critics"
ENTROPY, TASKS = "learner: entropy", "learner: tasks and routes"
EVALUATION, MACHINE = "evaluation", "the machine"

LEARNER = (SCHEDULE, OPTIMIZER, CRITICS, ENTROPY, TASKS)
GROUPS = (WHAT, LENGTH, PLACE, NETWORK, IMITATION, *LEARNER, EVALUATION, MACHINE)
"""The groups of options in the help, in order."""

_PATHS = ("sampled", "replayed", "topk")
_BALANCING = ("none", "alpha-sum", "alpha-mean", "inverse-alpha-sum", "inverse-alpha-mean")


def _about(
    about: str,
    group: str,
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    most: float = math.inf,
    words: tuple[str, ...] = (),
    sac: bool = False,
    changes_result: bool = True,
    movable: bool = False,
    none: bool = False,
    needs: str = "",
) -> dict[str, Any]:
    """The metadata of a field: the line in the help and the rules for its value.

    In a choice, a "-K" at the end stands for any number. With `words`, the value is one of them or a number as text; a
    word that ends with "_" is followed by a number. `sac` marks options that runs without SAC do not use; all options
    of the learner are among them. `changes_result` marks options that the results depend on, and `movable` options that
    may change when a run is resumed. `none` is for a value that "none" removes, for instance that of a preset. `needs`
    names the option without which this one has no effect.
    """
    rules = {"choices": choices, "least": least, "most": most, "words": words}
    parts = {"changes_result": changes_result, "movable": movable, "none": none, "needs": needs}
    return {"about": about, "group": group, "sac": sac or group in LEARNER, **rules, **parts}


def _option(default: Any, *about: Any, **rules: Any) -> Any:
    return field(default=default, metadata=_about(*about, **rules))


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run, unchecked; :class:`dynroute_metaworld.Configuration` adds the checks."""

    method: str = _option("d2r", "the network; `dynroute methods` lists them", WHAT, METHODS)
    benchmark: str = _option("MT10", "MT10, MT25, MT50, or tasks with commas between them", WHAT)
    goals: str = _option(
        "random", "one goal for all episodes, a new one in each, or the benchmark's 50 in turn", WHAT, GOALS
    )
    seed: int = _option(1, "seed of all random numbers", WHAT, least=0)
    device: str = _option(
        "auto", "cpu, cuda, or auto for cuda where there is one", MACHINE, changes_result=False, movable=True
    )
    workers: int = _option(
        0,
        "processes that run the environments; 0 runs them in this one",
        MACHINE,
        least=0,
        changes_result=False,
        movable=True,
    )
    threads: int | None = _option(
        None, "cores that torch uses; default: one for small networks, else all", MACHINE, least=1, changes_result=False
    )
    restart: bool = _option(
        False,
        "go on if a worker dies, instead of stopping: its episodes are cut short, or an evaluation starts again",
        MACHINE,
        changes_result=False,
        movable=True,
        needs="workers",
    )
    overlap: bool = _option(
        False, "learn while the environments step; actions are from networks one update older", MACHINE, sac=True
    )
    compile: bool = _option(False, "compile the networks by torch.compile", MACHINE, sac=True, changes_result=False)

    steps: int | None = _option(
        None, "steps; default: 1,500,000 for up to ten tasks, else 1,000,000", LENGTH, least=0, sac=True, movable=True
    )
    hours: float | None = _option(
        None,
        "hours of all sessions, after which to stop and evaluate; default: no limit",
        LENGTH,
        least=0,
        sac=True,
        movable=True,
        none=True,
    )
    horizon: int = _option(200, f"steps of an episode, at most {MAX_HORIZON}", LENGTH, least=1, most=MAX_HORIZON)
    learning_starts: int = _option(2000, "steps before learning starts", SCHEDULE, least=0)
    warmup_actions: str = _option("random", "what acts in these steps", SCHEDULE, ("random", "policy"))
    update_every: int = _option(1, "steps from one time of learning to the next", SCHEDULE, least=1)
    updates: int = _option(1, "updates each time", SCHEDULE, least=1)
    lag_rollouts: bool = _option(False, "act with the policy from before the last update", SCHEDULE)
    log_every: int = _option(
        1000, "steps from one line of metrics to the next", PLACE, least=1, sac=True, changes_result=False
    )
    plasticity_every: int | None = _option(
        None,
        "steps from one measurement of the critics' plasticity to the next; default: none",
        PLACE,
        least=1,
        sac=True,
        changes_result=False,
    )
    window: int = _option(
        20, "number of newest episodes in the logged success", PLACE, least=1, sac=True, changes_result=False
    )
    checkpoint_every: int = _option(
        10_000, "steps from one checkpoint to the next", PLACE, least=1, sac=True, changes_result=False, movable=True
    )
    evaluate_every: int = _option(
        10_000, "steps from one evaluation to the next", EVALUATION, least=1, sac=True, changes_result=False
    )
    evaluation_episodes: int = _option(
        32, "episodes of an evaluation", EVALUATION, least=1, sac=True, changes_result=False
    )
    final_episodes: int = _option(100, "episodes of the evaluation at the end", EVALUATION, least=1, movable=True)

    learning_rate: float = _option(3e-4, "of actor and critics", OPTIMIZER, least=0)
    optimizer: str = _option("adam", "of actor and critics", OPTIMIZER, ("adam", "adamw"))
    weight_decay: float | None = _option(None, "of adamw; default: torch's, 0.01", OPTIMIZER, least=0, none=True)
    gamma: float = _option(0.99, "the discount", CRITICS, least=0, most=1)
    n_steps: int = _option(1, "steps of n-step returns, from which critics bootstrap", CRITICS, least=1)
    tau: float = _option(0.005, "how far the targets move towards the critics", CRITICS, least=0, most=1)
    target_update_every: int = _option(1, "updates from one such move to the next", CRITICS, least=1)
    batch_size: int = _option(128, "transitions of each task in an update", SCHEDULE, least=1)
    mixed_batch_size: int | None = _option(
        None,
        "transitions in an update, drawn over all tasks; takes the place of --batch-size",
        SCHEDULE,
        least=1,
        none=True,
    )
    buffer_size: int | None = _option(
        None, "transitions of all tasks that are kept; default: 1M for up to ten tasks, else 10M", SCHEDULE, least=1
    )
    memory_map: str | None = _option(
        None, "a directory for the transitions, where memory is short", MACHINE, sac=True, changes_result=False
    )
    critic_loss: str = _option(
        "mse", "whether critics learn values or distributions of them", CRITICS, ("mse", "categorical")
    )
    bins: int = _option(101, "of these distributions", CRITICS, least=2)
    value_low: float = _option(-10.0, "value of the first bin", CRITICS)
    value_high: float = _option(10.0, "value of the last bin", CRITICS)
    q_target: str = _option(
        "min", "of the critics' values, in their targets and in the actor's loss", CRITICS, ("min", "mean")
    )
    normalize_returns: bool = _option(
        False, "scale the rewards of each task so that its returns fit the range of values", CRITICS
    )
    log_std: str = _option("clamp", "how the actor's log-deviation is kept in its range", NETWORK, ("clamp", "tanh"))
    log_std_low: float = _option(-20.0, "lower end of the range of the log-deviation", NETWORK)
    log_std_high: float = _option(2.0, "upper end of the range of the log-deviation", NETWORK)
    target_entropy: str = _option(
        "auto",
        "the entropy to reach: a number, auto for -4, or auto_0.5 for half of it",
        ENTROPY,
        words=("auto", "auto_"),
    )
    ent_coef: str = _option(
        "auto", "coefficient of entropy: a number, auto, or auto_0.1 to start at 0.1", ENTROPY, words=("auto", "auto_")
    )
    ent_coef_lr: float | None = _option(
        None, "learning rate of the coefficient of entropy; default: the networks'", ENTROPY, least=0, none=True
    )
    ent_coef_beta1: float = _option(
        0.9, "decay of the first moment in the optimizer of the coefficient of entropy", ENTROPY, least=0, most=0.999
    )
    shared_ent_coef: bool = _option(False, "one coefficient of entropy for all tasks", ENTROPY)
    ent_coef_after_step: bool = _option(
        False, "critics and actor use the coefficient of entropy after its update", ENTROPY
    )
    max_ent_coef_grad_norm: float | None = _option(
        None, "limit of the gradient norm of its logarithm; default: no limit", ENTROPY, least=0, none=True
    )
    max_ent_coef: float | None = _option(1.0, "the largest coefficient of entropy", ENTROPY, least=0)
    task_weights: str | None = _option(
        None,
        "weights of the losses of tasks; default: alpha-sum (Eq. 15), unless a preset has another",
        TASKS,
        _BALANCING,
    )
    max_task_loss: float | None = _option(3e3, "a task with a larger loss is left out of an update", TASKS, least=0)
    mask_rule: str = _option("each", "compare each loss of a task with it, or their sum", TASKS, ("each", "total"))
    joint_update: bool = _option(False, "compute all losses first, and then update all networks", OPTIMIZER)
    shared_lr: float | None = _option(
        None,
        "learning rate of parameters of both actor and critics; default: the networks'",
        OPTIMIZER,
        least=0,
        none=True,
    )
    router_lr: float | None = _option(None, "learning rate of routers; default: the networks'", OPTIMIZER, least=0)
    log_prob_epsilon: float = _option(0.0, "added inside log(1 - a²) of the policy", OPTIMIZER, least=0)
    max_grad_norm: float | None = _option(1.0, "limit of the norm of gradients", OPTIMIZER, least=0)
    reward_scale: float = _option(0.1, "multiplies the rewards in training", CRITICS, least=0)
    precision: str = _option(
        "float32", "of the networks' products while they learn", MACHINE, ("float32", "bf16"), sac=True
    )
    reward_version: str = _option("v2", "of Meta-World's rewards", WHAT, REWARD_VERSIONS)
    bootstrap_timeouts: bool = _option(True, "treat the horizon as a truncation: values go on beyond it", CRITICS)
    actor_paths: str | None = _option(
        None, "paths of the actor's loss; default: replayed (Eq. 8) where paths are chosen", TASKS, _PATHS
    )
    critic_paths: str = _option("sampled", "paths of the critics' loss", CRITICS, _PATHS)
    route_balance: float = _option(0.0, "weight of the loss that makes sources equally frequent", TASKS, least=0)
    route_temperature: str = _option(
        "inverse-alpha-sum",
        "of path sampling: a rule (Eq. 14) or a number",
        TASKS,
        words=("inverse-alpha-sum", "inverse-alpha-mean"),
    )

    demonstrations: int = _option(0, "episodes of each task", IMITATION, least=0)
    noise: str = _option(
        "0,0.3",
        "standard deviations of the noise on the scripts' actions, one for each episode, in turn",
        IMITATION,
        needs="demonstrations",
    )
    held_out: int = _option(
        2, "demonstrations of each task that decide when to stop cloning", IMITATION, least=1, needs="cloning_steps"
    )
    cloning_steps: int = _option(0, "updates of the actor by cloning, which come first", IMITATION, least=0)
    cloning_batch_size: int = _option(
        64, "samples of each task in an update", IMITATION, least=1, needs="cloning_steps"
    )
    cloning_rate: float = _option(
        1e-3, "the highest learning rate; it rises and falls", IMITATION, least=0, needs="cloning_steps"
    )
    cloning_sample: bool = _option(True, "sample routes, as SAC does", IMITATION, needs="cloning_steps")
    cloning_balance: float = _option(0.0, "weight of the loss that makes sources equally frequent", IMITATION, least=0)
    cloning_importance: float = _option(0.0, "weight of the loss that gives sources equal weight", IMITATION, least=0)
    cloning_z_loss: float = _option(0.0, "weight of the loss that keeps logits of routers small", IMITATION, least=0)
    cloning_entropy: float = _option(0.0, "weight of the entropy of routers, which is subtracted", IMITATION, least=0)
    cloning_std: float = _option(
        0.2, "standard deviation of the policy afterwards, before tanh", IMITATION, least=0, needs="cloning_steps"
    )
    patience: int = _option(
        10, "hundreds of updates without a gain before cloning stops", IMITATION, least=1, needs="cloning_steps"
    )
    dagger_rounds: int = _option(0, "rounds of DAgger: the policy acts, and scripts correct it", IMITATION, least=0)
    warm_start: str | None = _option(None, "the directory of a run to take the actor from", IMITATION)
    actor_starts: int = _option(0, "updates of the critics before SAC moves the actor", IMITATION, least=0, sac=True)
    demonstration_share: float = _option(
        0.5, "share of demonstrations in SAC's batches", IMITATION, least=0, most=0.99, sac=True, needs="demonstrations"
    )
    demonstration_weight: float = _option(
        0.0, "weight of cloning in SAC's loss of the actor", IMITATION, least=0, sac=True
    )
    demonstration_decay: int | None = _option(
        None,
        "updates until the weight of cloning is 0; default: constant",
        IMITATION,
        least=1,
        sac=True,
        needs="demonstration_weight",
    )

    gate: str | None = _option(
        None, "how sources are chosen, K of them", NETWORK, ("soft", "hard", "top-K", "sample-K", "balanced-K")
    )
    protect: str | None = _option(
        None, "what stops the gradient to unsuitable sources", NETWORK, ("rsg", "input", "sg", "none")
    )
    num_modules: int | None = _option(None, "modules of d2r", NETWORK, least=1)
    grow_to: int | None = _option(
        None,
        "add modules up to this number if a task stalls while others learn; default: none",
        NETWORK,
        least=1,
    )
    grow_every: int | None = _option(
        None,
        "steps between checks for stalled tasks; default: 10,000 (cloning: 100 updates)",
        NETWORK,
        least=1,
        sac=True,
    )
    width: int | None = _option(None, "features of a module", NETWORK, least=1)
    state_free: bool | None = _option(None, "d2r and sm route by the task alone", NETWORK)
    metadata: str | None = _option(
        None, "a safetensors file with a vector for each task, which care reads", NETWORK, none=True
    )
    network: dict[str, Any] = field(
        default_factory=dict, metadata=_about("any other keyword of the network: layer_norm=true", NETWORK)
    )
    critic_network: dict[str, Any] = field(
        default_factory=dict, metadata=_about("keywords of the critics' networks where they differ", NETWORK, sac=True)
    )


def kinds_of(hint: Any) -> tuple[type, ...]:
    """The types of the values that a field takes, None last.

    Example:
        >>> from dynroute_command.options import kinds_of
        >>> kinds_of(float | None), kinds_of(dict[str, int])
        ((<class 'float'>, <class 'NoneType'>), (<class 'dict'>,))
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(kind) or kind for kind in kinds)


def check_option(option: dataclasses.Field[Any], value: Any) -> None:
    """Raises an error that names the option unless a value has its type and obeys its rules."""
    kinds = kinds_of(option.type)
    fits = isinstance(value, (*kinds, *((int,) if float in kinds else ())))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("none" if kind is types.NoneType else kind.__name__ for kind in kinds)
        raise ValueError(f"`{option.name}` must be of type {names}, got {value!r}.")
    choices, least, most, words = (option.metadata[name] for name in ("choices", "least", "most", "words"))
    if choices and value is not None:
        check_choice(option.name, value, choices)
    if words and not _is_number_or(words, value):
        wanted = ", ".join(f"{word}NUMBER" if word.endswith("_") else word for word in words)
        raise ValueError(f"`{option.name}` must be a number or one of {wanted}, got {value!r}.")
    if least is not None and value is not None:
        check_range(option.name, value, least, most)


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raises an error unless a number is in a range, and finite."""
    if not (least <= value <= most and value < math.inf):
        endless = f"at least {least}" + " and finite" * isinstance(value, float)
        raise ValueError(f"`{name}` must be {f'in {least}..{most}' if most < math.inf else endless}, got {value!r}.")


def _is_number_or(words: tuple[str, ...], text: str) -> bool:
    if text in words and not text.endswith("_"):
        return True
    for word in words:
        text = text.removeprefix(word) if word.endswith("_") else text
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
