"""The options of MultiTaskSAC and their checks."""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from dynroute import SampleK, Soft, TopK
from dynroute.arguments import check_choice, check_count, check_flag, check_interval, check_number, shown

from .attributes import MultiTaskAttributes, MultiTaskOptions
from .categorical import VALUE_RANGE
from .demonstrations import DemonstrationBuffer, check_share
from .losses import MASK_RULES, Q_TARGETS, TASK_WEIGHTS, TEMPERATURES
from .policies import NO_SDE, POLICIES, MultiTaskPolicy
from .replay import RouteReplayBuffer
from .router_rates import router_parameters
from .vec_normalize import MultiTaskVecNormalize

__all__ = [
    "BINS",
    "CRITIC_LOSSES",
    "LIMITS",
    "OPTIONS",
    "PATHS",
    "PRECISIONS",
    "WARMUP_ACTIONS",
    "check_buffer_is_there",
    "check_fixed",
    "check_keywords",
    "check_network_options",
    "check_normalization",
    "check_options",
    "check_parts",
    "check_policy_name",
    "check_precision",
    "check_replaced",
    "fixed_options",
    "keywords_of",
    "n_step_keywords",
    "read_numbers",
    "read_steps",
    "read_target_entropy",
]

PATHS = ("sampled", "replayed", "topk")
"""The paths that a loss can use, which are newly sampled, stored with the transitions, or the best."""

PRECISIONS = ("float32", "bf16")
"""The precisions of matrix products in updates."""

CRITIC_LOSSES = ("mse", "categorical")
"""The losses of critics, squared errors of values or cross-entropy of distributions of values."""

BINS = 101
"""The usual number of bins of a distribution of values."""

INTEGERS: Mapping[str, int] = {
    "buffer_size": 1,
    "learning_starts": 0,
    "batch_size": 1,
    "n_steps": 1,
    "gradient_steps": -1,
    "target_update_interval": 1,
    "_stats_window_size": 1,
    "bins": 2,
    "actor_starts": 0,
}
"""The smallest value of each option that is an integer."""

NUMBERS: Mapping[str, Mapping[str, float]] = {
    "learning_rate": {"at_least": 0},
    "tau": {"at_least": 0, "at_most": 1},
    "gamma": {"at_least": 0, "at_most": 1},
    "reward_scale": {"above": 0},
    "ent_coef_beta1": {"at_least": 0, "below": 1},
    "log_prob_epsilon": {"at_least": 0, "below": 1},
    "demonstration_weight": {"at_least": 0},
    "route_balance": {"at_least": 0},
    "ent_coef_lr": {"above": 0},
    "shared_lr": {"above": 0},
    "router_lr": {"above": 0},
    "demonstration_decay": {"at_least": 1},
}
"""The bounds of each option that is a finite number, whole or not."""

OPTIONAL = ("ent_coef_lr", "shared_lr", "router_lr", "demonstration_decay")
"""The options among them that may also be None."""

STEPS = ("buffer_size", "learning_starts")
"""The numbers of steps, which may be written as 1e6."""

LIMITS = ("max_task_loss", "max_grad_norm", "max_ent_coef", "max_ent_coef_grad_norm")
"""The options that are positive numbers or None; infinity is no limit, as None."""

WARMUP_ACTIONS = ("random", "policy")
"""The actions before learning starts are uniform noise or those of the initial policy."""

OPTIONS = (
    "learning_rate",
    "buffer_size",
    "learning_starts",
    "batch_size",
    "tau",
    "gamma",
    "n_steps",
    "train_freq",
    "gradient_steps",
    "action_noise",
    "replay_buffer_kwargs",
    "ent_coef",
    "target_update_interval",
    "target_entropy",
    "_stats_window_size",
    "tensorboard_log",
    "policy_kwargs",
    "verbose",
    "seed",
    "n_envs",
    *MultiTaskOptions.__annotations__,
)
"""The options of a model, by the names of its attributes."""


def check_options(model: MultiTaskAttributes) -> None:
    """Raises an error that names the first invalid option of a model."""
    assert model.num_tasks is not None
    assert model.task_names is not None
    _check_numbers(model)
    choices: dict[str, tuple[str | None, ...]] = {
        "task_weights": TASK_WEIGHTS,
        "actor_paths": (*PATHS, None),
        "critic_paths": PATHS,
        "critic_loss": CRITIC_LOSSES,
        "q_target": Q_TARGETS,
        "mask_rule": MASK_RULES,
        "warmup_actions": WARMUP_ACTIONS,
    }
    for name, values in choices.items():
        check_choice(name, getattr(model, name), values)
    tau = model.route_temperature
    if not (tau in TEMPERATURES if isinstance(tau, str) else isinstance(tau, (int, float)) and 0 < tau < math.inf):
        raise ValueError(
            f"`route_temperature` must be a positive number or one of {', '.join(map(repr, TEMPERATURES))}, "
            f"got {tau!r}."
        )
    for name in ("joint_update", "ent_coef_after_step", "lag_rollouts", "normalize_returns", "shared_ent_coef"):
        check_flag(name, getattr(model, name))
    _check_order(model)
    _check_distributions(model)
    _check_ent_coef(model)
    _check_demonstrations(model)
    balanced = model.replay_buffer_kwargs.get("balanced", True)
    if balanced and model.batch_size % model.num_tasks:
        raise ValueError(
            f"`batch_size` must be a multiple of the {model.num_tasks} tasks, got {model.batch_size}; for instance "
            f"{-(-model.batch_size // model.num_tasks) * model.num_tasks}. It may be any number with "
            'replay_buffer_kwargs={"balanced": False}.'
        )
    if isinstance(model.task_names, str):
        raise TypeError(
            f"`task_names` must list names, got {model.task_names!r}; one name is {[str(model.task_names)]}."
        )
    if len(model.task_names) != model.num_tasks:
        raise ValueError(f"`task_names` must name {model.num_tasks} tasks, got {len(model.task_names)} names.")
    if len(set(model.task_names)) < model.num_tasks:
        raise ValueError(f"`task_names` must differ, since values are logged by them, got {model.task_names}.")
    policy_class: object = model.policy_class
    if not (isinstance(policy_class, type) and issubclass(policy_class, MultiTaskPolicy)):
        raise ValueError(
            f"`policy` must be one of {', '.join(map(repr, POLICIES))}, or a class that inherits from MultiTaskPolicy, "
            f"got {shown(policy_class)}; a network of your own is `network` in `policy_kwargs`."
        )
    buffer_class = model.replay_buffer_class
    if buffer_class is not None and not issubclass(buffer_class, RouteReplayBuffer):
        why = "batches are balanced by task, and paths are stored beside transitions"
        if issubclass(buffer_class, HerReplayBuffer):
            why = "goals that are put in afterwards need observations that are dictionaries, and here they are vectors"
        raise ValueError(
            f"`replay_buffer_class` must be a RouteReplayBuffer, got {buffer_class.__name__}: {why}. Inherit from "
            "RouteReplayBuffer for a buffer of your own."
        )
    normalizer = model._vec_normalize_env
    if normalizer is not None and normalizer.norm_obs and not isinstance(normalizer, MultiTaskVecNormalize):
        raise ValueError(
            "`env` must leave the one-hot of the task as it is, and VecNormalize would normalize it with the state; "
            "use MultiTaskVecNormalize, or VecNormalize(norm_obs=False)."
        )
    if normalizer is not None and normalizer.observation_space.shape != model.observation_space.shape:
        raise ValueError(
            f"`env` must have its {type(normalizer).__name__} around wrappers that change the shape of observations, "
            f"such as VecFrameStack, got one inside, with shape {normalizer.observation_space.shape} before "
            f"{model.observation_space.shape}; make {type(normalizer).__name__}(VecFrameStack(...))."
        )


def check_keywords(names: Iterable[str], known: Collection[str], *, of: str) -> None:
    """Raises an error for the first name that is not known; it suggests the closest one."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "."
            raise TypeError(f"`{name}` is not a keyword of {of}{hint}")


def keywords_of(*functions: Callable[..., Any]) -> set[str]:
    """The names of the arguments of functions, except `self` and ``**kwargs``.

    Example:
        >>> from dynroute_sb3.options import keywords_of
        >>> keywords_of(OneHotTask.__init__) == {"env", "task", "num_tasks"}
        True
    """
    parameters = [one for function in functions for one in inspect.signature(function).parameters.values()]
    return {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} - {"self"}


def check_replaced(given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises an error for options that cannot be replaced when a model is loaded.

    Args:
        given: The keywords of `load`.
        saved: The attributes in the file.
    """
    if given.get("use_sde"):
        raise ValueError(NO_SDE)
    for name, why in (("policy", "the file tells the policy"), ("n_envs", "`env` tells their number")):
        if name in given:
            raise TypeError(f"`{name}` must not be given to load, got {shown(given[name])}: {why}.")
    fixed = ("critic_loss", "bins", "value_range") if saved.get("critic_loss") == "categorical" else ("critic_loss",)
    for name in fixed:
        kept = saved.get(name, given.get(name))
        if name in given and not np.array_equal(given[name], kept):
            kept = tuple(kept) if isinstance(kept, list) else kept  # JSON has no tuples
            raise ValueError(
                f"`{name}` must stay {kept!r}, with which the model was saved, got {shown(given[name])}; make another "
                "model."
            )


NOT_OFFERED = {
    "MultiInputPolicy": "it is for observations that are dictionaries, and these networks read vectors; flatten them "
    "with gymnasium.wrappers.FlattenObservation, and wrap that in OneHotTask",
    "CnnPolicy": "it is for images, and these networks read vectors; put features of the images into the observation",
}
"""SB3's policy names without a counterpart here, with the reason."""


def check_policy_name(name: str, policies: Collection[str]) -> None:
    """Raises an error unless a name names a policy; it suggests the closest one."""
    if name in policies:
        return
    why = f": {NOT_OFFERED[name]}" if name in NOT_OFFERED else ""
    near = [policy for policy in policies if name and policy.lower().startswith(name.lower())]
    near = near or difflib.get_close_matches(name, policies, n=1)
    hint = f"; did you mean {near[0]!r}?" if near and not why else "."
    raise ValueError(f"`policy` must be one of {', '.join(map(repr, policies))}, got {name!r}{why}{hint}")


def _check_order(model: MultiTaskAttributes) -> None:
    """Raises an error unless the options allow to compare losses before the first step."""
    if model.mask_rule == "total" and not model.joint_update:
        raise ValueError(
            '`mask_rule` can be "total" with joint_update=True, got False: the sum of all losses is to decide before '
            "anything steps."
        )
    if model.mask_rule == "total" and model.ent_coef_after_step:
        raise ValueError(
            '`mask_rule` can be "total" with ent_coef_after_step=False, got True: a coefficient that has stepped '
            "can no longer be left out."
        )
    learned = str(model.ent_coef).startswith("auto")
    for name, is_set in (
        ("ent_coef_after_step", model.ent_coef_after_step),
        ("max_ent_coef_grad_norm", model.max_ent_coef_grad_norm),
        ("shared_ent_coef", model.shared_ent_coef),
        ("ent_coef_beta1", model.ent_coef_beta1 != 0.9),
    ):
        if is_set and not learned:
            raise ValueError(
                f'`{name}` needs coefficients that are learned, ent_coef="auto", got ent_coef={model.ent_coef!r}.'
            )


def _check_distributions(model: MultiTaskAttributes) -> None:
    """Raises an error unless the options for distributions of values are consistent."""
    value_range = check_interval("value_range", model.value_range)
    categorical = model.critic_loss == "categorical"
    if not categorical and model.bins != BINS:
        raise ValueError(
            f'`bins` needs critics that predict distributions, critic_loss="categorical", got bins={model.bins} with '
            f"critic_loss={model.critic_loss!r}."
        )
    if not categorical and not model.normalize_returns and value_range != VALUE_RANGE:
        raise ValueError(
            '`value_range` needs critic_loss="categorical", whose bins lie in it, or normalize_returns=True, which '
            f"leads returns into it, got value_range={value_range} with neither."
        )
    for name, option in (("bins", model.bins), ("value_range", value_range)):
        given = model.policy_kwargs.get(name)
        given = tuple(given) if isinstance(given, list) else given  # SB3's JSON stores lists
        if given is not None and not (categorical and given == option):  # MultiTaskSAC fills in the same value
            raise ValueError(
                f"`{name}` must not be given in `policy_kwargs`, got {given!r}: it is an option of MultiTaskSAC, which "
                f'learns by it: MultiTaskSAC(..., critic_loss="categorical", {name}=...).'
            )


def check_normalization(model: MultiTaskAttributes) -> None:
    """Raises an error unless returns can be normalized; call it once the target entropy is a number."""
    if not model.normalize_returns:
        return
    if model.gamma == 1:
        raise ValueError(
            "`normalize_returns` needs a `gamma` below 1, got 1: a return without discount has no bound that later "
            "steps respect."
        )
    low, high = model.value_range
    if not low < 0 < high:
        raise ValueError(
            f"`normalize_returns` needs a `value_range` with 0 inside, got {model.value_range}: rewards are "
            "divided and not shifted, so that returns keep their sign."
        )
    if float(model.target_entropy) > 0:
        raise ValueError(
            f"`normalize_returns` needs a `target_entropy` of at most 0, got {model.target_entropy}: its share of the "
            'values is reckoned from below; "auto" is minus the number of actions.'
        )
    normalizer = model._vec_normalize_env
    if normalizer is not None and normalizer.norm_reward:
        raise ValueError(
            "`normalize_returns` and VecNormalize would both normalize rewards; give one of them up, for instance by "
            "MultiTaskVecNormalize(env, norm_reward=False)."
        )


def read_target_entropy(target: float | str, action_space: spaces.Space[Any]) -> float:
    """Converts the option `target_entropy` to a number; "auto" is minus that of actions, "auto_0.5" half of it.

    Example:
        >>> from dynroute_sb3.options import read_target_entropy
        >>> read_target_entropy("auto_0.5", spaces.Box(-1, 1, (4,)))
        -2.0
    """
    relative = isinstance(target, str) and (target == "auto" or target.startswith("auto_"))
    try:
        number = 1.0 if target == "auto" else float(target.removeprefix("auto_") if isinstance(target, str) else target)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(target, bool) or not math.isfinite(number) or (relative and number <= 0):
        raise ValueError(
            '`target_entropy` must be a finite number, "auto", or "auto_" before a positive factor such as "auto_0.5", '
            f"got {shown(target)}."
        )
    assert action_space.shape is not None
    return -number * math.prod(action_space.shape) if relative else number


def read_numbers(model: MultiTaskAttributes) -> None:
    """Converts numpy's numbers among the options to Python's, and numbers of steps such as 1e6 to integers."""
    for name in OPTIONS:
        value = getattr(model, name)
        if isinstance(value, np.generic):
            setattr(model, name, value.item())
    for name in STEPS:
        setattr(model, name, read_steps(name, getattr(model, name), at_least=INTEGERS[name]))
    if isinstance(model.value_range, (tuple, list)):  # SB3's JSON stores lists
        low_high = (end.item() if isinstance(end, np.generic) else end for end in model.value_range)
        model.value_range = tuple(low_high)  # type: ignore[assignment]


def read_steps(name: str, steps: float, *, at_least: int = 0) -> int:
    """Converts a number of steps, such as 1e6, to an integer; raises an error unless it is one of at least some size.

    Example:
        >>> from dynroute_sb3.options import read_steps
        >>> read_steps("total_timesteps", 1e6)
        1000000
    """
    if isinstance(steps, (float, np.floating)) and float(steps).is_integer():
        steps = int(steps)
    check_count(name, steps, at_least=at_least)  # type: ignore[arg-type]
    return int(steps)


def _check_numbers(model: MultiTaskAttributes) -> None:
    """Raises an error unless all numeric options are numbers in their ranges, before other checks compare them."""
    for name, at_least in INTEGERS.items():
        check_count(name.lstrip("_"), getattr(model, name), at_least=at_least)
    for name, bounds in NUMBERS.items():
        value = getattr(model, name)
        if not (callable(value) and name == "learning_rate"):
            check_number(name, value, **bounds, optional=name in OPTIONAL)
    for name in LIMITS:
        value = getattr(model, name)
        if not (isinstance(value, float) and value == math.inf):
            check_number(name, value, above=0, optional=True)


def _check_ent_coef(model: MultiTaskAttributes) -> None:
    """Raises an error unless the entropy coefficient is a number, or "auto" with a start that SB3 can read."""
    given = model.ent_coef
    learned = isinstance(given, str) and given.startswith("auto_")
    try:
        number = 1.0 if given == "auto" else float(given.removeprefix("auto_") if isinstance(given, str) else given)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(given, bool) or not 0 <= number < math.inf or (learned and not number):
        raise ValueError(
            '`ent_coef` must be a finite number of at least 0, "auto", or "auto_" before a positive start such as '
            f'"auto_0.1", got {shown(given)}.'
        )


def _check_demonstrations(model: MultiTaskAttributes) -> None:
    """Raises an error unless the options for demonstrations are consistent."""
    has_them = issubclass(model.replay_buffer_class or RouteReplayBuffer, DemonstrationBuffer)
    share = model.replay_buffer_kwargs.get("demonstration_share", 0.5)
    balanced = model.replay_buffer_kwargs.get("balanced", True)
    each = model.batch_size // (model.num_tasks or 1) if balanced else model.batch_size
    if model.demonstration_weight and not (has_them and share):
        raise ValueError(
            "`demonstration_weight` needs demonstrations to clone: replay_buffer_class=DemonstrationBuffer with a "
            f"`demonstration_share` above 0, got {model.demonstration_weight!r}."
        )
    if has_them and share:
        check_share(share, each, balanced=balanced)


def check_network_options(model: MultiTaskAttributes) -> None:
    """Sets the default paths of the actor's loss, and raises an error for options that the networks do not support."""
    if model.actor_paths is None:
        gate = getattr(getattr(model.actor.net, "routed", None), "gate", None)
        model.actor_paths = "replayed" if isinstance(gate, (TopK, SampleK)) else "topk"
    if model.replays_paths and model.policy.topology is None:
        raise ValueError(
            "`actor_paths` and `critic_paths` can be 'replayed' where the network has routes, "
            f"got a {type(model.actor.net).__name__} without."
        )
    topology = model.policy.topology
    others = {getattr(net, "topology", None) for net in model.critic.nets} - {topology, None}
    if model.critic_paths == "replayed" and others:
        raise ValueError(
            "`critic_paths` can be 'replayed' where critics have the graph of their actor, whose paths are stored, got "
            f"{others.pop()}, and not {topology}; leave its size out of `critic_kwargs`, or take 'sampled' or 'topk'."
        )
    if model.route_balance:
        check_balance(model.route_balance, [model.actor.net, *model.critic.nets])
    if model.router_lr is not None:
        check_router_rate(model.router_lr, [model.actor.net, *model.critic.nets])
    if model.shared_lr is not None and model.policy.shared_optimizer is None:
        raise ValueError(
            f"`shared_lr` must be None where actor and critics share nothing, got {model.shared_lr!r} for a "
            f"{type(model.actor.net).__name__}."
        )


def check_router_rate(rate: float, nets: Iterable[nn.Module]) -> None:
    """Raises an error unless networks have routers that learn."""
    for net in nets:
        if not router_parameters(net):
            raise ValueError(
                f"`router_lr` must be None for networks without a router that learns, got {rate!r} for a "
                f"{type(net).__name__}."
            )


def check_balance(weight: float, nets: Sequence[nn.Module]) -> None:
    """Raises an error unless the load-balancing loss can change the routes of one of the networks."""
    gates = [routed.gate for net in nets if (routed := getattr(net, "routed", None)) is not None]
    if any(not isinstance(gate, Soft) for gate in gates):
        return
    if gates:
        raise ValueError(f"`route_balance` must be 0 for the gate Soft, which uses all sources alike, got {weight!r}.")
    kinds = " and a ".join(dict.fromkeys(type(net).__name__ for net in nets))
    raise ValueError(f"`route_balance` must be 0 for networks without routes, got {weight!r} for a {kinds}.")


def check_precision(model: MultiTaskAttributes) -> None:
    """Raises an error unless the networks support the option `precision`."""
    check_choice("precision", model.precision, PRECISIONS)
    dtype = model.actor.temperature.dtype
    if model.precision == "bf16" and dtype != torch.float32:
        raise ValueError(
            f'`precision` must be "float32" for parameters of {dtype}, got "bf16"; it is for float32 alone.'
        )


def n_step_keywords(model: MultiTaskAttributes) -> dict[str, Any]:
    """The keywords of a replay buffer for n-step returns; raises an error if `replay_buffer_kwargs` has others."""
    for name, value in (keywords := {"n_steps": model.n_steps, "gamma": model.gamma}).items():
        if (given := model.replay_buffer_kwargs.get(name, value)) != value:
            raise ValueError(
                f"`replay_buffer_kwargs` must leave `{name}` to the model, which has {value}, got {given!r}; give "
                f"`{name}` to the model itself."
            )
    return keywords if model.n_steps > 1 else {}


def check_parts(model: MultiTaskAttributes, parameters: Mapping[str, Any], *, exact_match: bool) -> None:
    """Raises an error if parameters are of a model with another option that decides which parts there are.

    It is a RuntimeError since SB3's `load` takes a ValueError for a file of an early version.

    Args:
        model: The model that gets the parameters.
        parameters: The parameters of its parts.
        exact_match: Whether every part must be given.
    """
    own = {"actor.optimizer": model.actor.optimizer, "critic.optimizer": model.critic.optimizer}
    optimizers = {name: parameters[name] for name in own if name in parameters}
    if exact_match and len(optimizers) < 2:
        return  # SB3 tells which names are missing
    saved = {
        "normalize_returns": "return_bounds" in parameters,
        "lag_rollouts": "rollout_actor" in parameters,
        "ent_coef": "ent_coef_optimizer" in parameters,
    }
    if not exact_match:
        saved = {name: True for name, given in saved.items() if given}
    for name, state in optimizers.items():
        if len(groups := state.get("param_groups", ())) != len(own[name].param_groups):
            saved["router_lr"] = len(groups) > 1
    for name, there in _parts(model).items():
        if saved.get(name, there) != there:
            raise RuntimeError(
                f"`{name}` must stay {_kept(name, saved[name])}, as in the model whose parameters these are, got "
                f"{getattr(model, name)!r}; make another model."
            )


def _parts(model: MultiTaskAttributes) -> dict[str, bool]:
    """Whether a model has the parts that it has for some values of these options."""
    return {
        "normalize_returns": model.return_bounds is not None,
        "lag_rollouts": model.rollout_actor is not None,
        "ent_coef": model.ent_coef_optimizer is not None,
        "router_lr": model._has_router_group,
    }


def _kept(name: str, there: bool) -> str:
    """The values of an option of a model that has its part, or lacks it."""
    kept = {"ent_coef": ("a number", "learned"), "router_lr": ("None", "a rate")}
    return kept.get(name, ("False", "True"))[there]


def check_buffer_is_there(model: MultiTaskAttributes) -> None:
    """Raises an error unless a model has a replay buffer."""
    if model.replay_buffer is None:
        raise ValueError(
            "`replay_buffer` must be there to learn or to write a checkpoint, got None, since the model was loaded "
            "from a checkpoint without environments; pass `env` to load_checkpoint, or call load_replay_buffer."
        )


def fixed_options(model: MultiTaskAttributes) -> dict[str, Any]:
    """The options that have no effect once a model is made, beside those that its parts tell."""
    options = {name: getattr(model, name) for name in ("ent_coef_beta1", "compile_networks")}
    if model.ent_coef_optimizer is None:
        options["ent_coef"] = float(model.ent_coef)
    return {**options, "replay_buffer_kwargs": dict(model.replay_buffer_kwargs)}


def check_fixed(model: MultiTaskAttributes) -> None:
    """Raises an error if an option changed by which the parts of the model were made."""
    buffer, bounds, bins = model.replay_buffer, model.return_bounds, model.policy.bins
    assert buffer is not None
    options = {"ent_coef": str(model.ent_coef).startswith("auto"), "router_lr": model.router_lr is not None}
    for name, there in _parts(model).items():
        if options.get(name, getattr(model, name)) != there:
            _refuse_change(model, name, _kept(name, there))
    made: dict[str, Any] = {"n_steps": buffer.n_steps, "critic_loss": "mse" if bins is None else "categorical"}
    if bins is not None:
        made |= {"bins": bins, "value_range": model.critic.value_range}
    if model.log_ent_coef is not None and model.num_tasks != 1:
        made["shared_ent_coef"] = model.log_ent_coef.numel() == 1
    if bounds is not None or buffer.n_steps > 1:
        made["gamma"] = buffer.gamma if bounds is None else bounds.gamma
    for name, value in made.items():
        if not np.array_equal(getattr(model, name), value):
            loaded = f", or load this one with another `{name}`" if name in ("n_steps", "gamma") else ""
            _refuse_change(model, name, repr(value), loaded)
    for name, value in fixed_options(model).items():
        if value != (kept := model._made_with[name]):
            filled = ", or fill `model.ent_coef_tensor`" if name == "ent_coef" else ""
            _refuse_change(model, name, repr(kept), f"{filled}, or load a file of `save` with another `{name}`")


def _refuse_change(model: MultiTaskAttributes, name: str, kept: str, or_else: str = "") -> None:
    raise ValueError(
        f"`{name}` must stay {kept}, with which the model was made, got {shown(getattr(model, name))}; make another "
        f"model{or_else}."
    )
