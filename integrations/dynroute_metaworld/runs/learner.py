"""The learner of a configuration: its class and its keywords."""

import dataclasses
from typing import Any

from gymnasium import spaces
from stable_baselines3 import SAC

from dynroute_sb3 import DemonstrationBuffer, MultiTaskSAC, OverlappedSAC, RouteReplayBuffer
from dynroute_sb3.options import check_normalization, check_options, keywords_of, read_numbers, read_target_entropy

from .configuration import Configuration
from .methods import ACTIONS

__all__ = ["algorithm", "check_learner", "model_options"]

SAME = {option.name for option in dataclasses.fields(Configuration)} & keywords_of(SAC.__init__, MultiTaskSAC.__init__)
SAME -= {"batch_size", "learning_starts"}  # options count for each task, and keywords for all together
"""The options that are keywords of MultiTaskSAC as they are."""

RENAMED = {
    "window": "stats_window_size",
    "update_every": "train_freq",
    "updates": "gradient_steps",
    "target_update_every": "target_update_interval",
    "compile": "compile_networks",
}
"""The keywords of MultiTaskSAC for options of another name."""


def algorithm(configuration: Configuration) -> type[MultiTaskSAC]:
    """The class of a configuration's model."""
    return OverlappedSAC if configuration.overlap else MultiTaskSAC


def model_options(configuration: Configuration) -> dict[str, Any]:
    """The keywords of a configuration's model."""
    buffer = _buffer_kwargs(configuration)
    options: dict[str, Any] = {name: getattr(configuration, name) for name in SAME}
    options |= {keyword: getattr(configuration, name) for name, keyword in RENAMED.items()}
    options |= {name: _number_or_word(options[name]) for name in ("ent_coef", "target_entropy", "route_temperature")}
    return options | {
        "task_names": configuration.tasks,
        "learning_starts": configuration.learning_starts * len(configuration.tasks),
        "batch_size": configuration.batch_rows,
        "value_range": (configuration.value_low, configuration.value_high),
        "policy_kwargs": configuration.policy_kwargs,
        "replay_buffer_class": DemonstrationBuffer if "demonstrations" in buffer else RouteReplayBuffer,
        "replay_buffer_kwargs": buffer,
    }


def check_learner(configuration: Configuration) -> None:
    """Raises the error of a model with the options of a configuration, unless only its networks could tell."""
    tasks = len(configuration.tasks)
    options = {**model_options(configuration), "device": "cpu"}  # the run itself checks its device
    model = algorithm(configuration)("MultiTaskPolicy", None, num_tasks=tasks, _init_setup_model=False, **options)  # type: ignore[arg-type]
    model.n_envs = tasks
    read_numbers(model)
    check_options(model)
    model.target_entropy = read_target_entropy(options["target_entropy"], spaces.Box(-1, 1, (ACTIONS,)))
    check_normalization(model)


def _buffer_kwargs(configuration: Configuration) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"handle_timeout_termination": configuration.bootstrap_timeouts}
    if configuration.mixed_batch_size is not None:
        kwargs["balanced"] = False
    if configuration.demonstrations and configuration.demonstration_share:
        kwargs["demonstrations"] = configuration.demonstrations * configuration.horizon
        kwargs["demonstration_share"] = configuration.demonstration_share
    if configuration.memory_map is not None:
        kwargs["memory_map"] = configuration.memory_map
    return kwargs


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
