"""Settings that belong together, by name."""

from collections.abc import Mapping
from typing import Any

from dynroute.arguments import check_choice
from dynroute_command.options import IMITATION_ALONE

from .configuration import Configuration

__all__ = [
    "AFTER_IMITATION",
    "BRC_SIZES",
    "IMITATION_ALONE",
    "NIGHT_SIZES",
    "PRESETS",
    "QUICK_SIZES",
    "RELEASED",
    "RELEASED_NETWORKS",
    "preset",
    "preset_options",
    "usual_benchmarks",
]

_BRC: Mapping[str, Any] = {
    "method": "brc",
    "learning_starts": 5000,
    "updates": 2,
    "mixed_batch_size": 1024,
    "learning_rate": 3e-4,
    "optimizer": "adamw",
    "weight_decay": 1e-4,  # as in the release, whose library has another default than torch
    "gamma": 0.99,
    "tau": 0.005,
    "critic_loss": "categorical",
    "bins": 101,
    "value_low": -10.0,
    "value_high": 10.0,
    "q_target": "mean",
    "normalize_returns": True,
    "reward_scale": 1.0,
    "log_std": "tanh",
    "log_std_low": -10.0,
    "log_std_high": 2.0,
    "target_entropy": "auto_0.5",
    "ent_coef": "auto_0.1",
    "shared_ent_coef": True,
    "ent_coef_beta1": 0.5,
    "max_ent_coef": None,
    "max_task_loss": None,
    "max_grad_norm": None,
    "task_weights": "none",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "released": {
        "learning_starts": 4000,
        "warmup_actions": "policy",
        "update_every": 200,
        "updates": 200,
        "lag_rollouts": True,
        "ent_coef_lr": 1e-4,
        "max_ent_coef_grad_norm": 1.0,
        "task_weights": "inverse-alpha-mean",
        "mask_rule": "total",
        "joint_update": True,
        "log_prob_epsilon": 1e-6,
        "route_temperature": "inverse-alpha-mean",
        "bootstrap_timeouts": False,
    },
    "quick": {
        "threads": 1,  # a second thread makes small networks slower
        "steps": 12_000,
        "horizon": 150,
        "learning_starts": 500,
        "update_every": 2,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "n_steps": 3,
        "normalize_returns": True,
        "target_entropy": "auto_0.5",
        "ent_coef": "auto_0.01",
        "ent_coef_lr": 3e-4,
        "task_weights": "none",
        "route_temperature": "inverse-alpha-mean",
        "log_every": 300,
        "checkpoint_every": 3000,
        "evaluate_every": 3000,
        "evaluation_episodes": 5,
        "final_episodes": 20,
    },
    "night": {
        "threads": 1,
        "hours": 8.0,
        "learning_starts": 1000,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "n_steps": 3,
        "normalize_returns": True,
        "target_entropy": "auto_0.5",
        "ent_coef": "auto_0.01",
        "ent_coef_lr": 3e-4,
        "task_weights": "none",
        "route_temperature": "inverse-alpha-mean",
        "checkpoint_every": 5000,
        "evaluate_every": 20_000,
        "evaluation_episodes": 10,
        "final_episodes": 50,
    },
    "refine": {
        "steps": 6000,
        "demonstrations": 20,
        "demonstration_weight": 1.0,
        "update_every": 4,
        "batch_size": 16,
        "learning_rate": 1e-4,
        "gamma": 0.95,
        "log_every": 200,
        "checkpoint_every": 1000,
        "evaluate_every": 2000,
        "evaluation_episodes": 10,
        "final_episodes": 20,
    },
    "brc": {**_BRC, "benchmark": "MT50"},
    "brc-small": {
        **_BRC,
        "updates": 1,
        "mixed_batch_size": 512,
        "n_steps": 3,
        "learning_starts": 1000,
        "learning_rate": 1e-3,
        "ent_coef": "auto_0.01",
    },
}
"""Settings by name.

"paper" is the D2R paper. "released" changes what differs in its released code, whose network is the method
d2r-released; :data:`RELEASED` has the changes for other methods. "quick" is for a first look on two CPU cores, "night"
for a night on a CPU core, and "refine" for some minutes of SAC after imitation. "brc" is BRC, and "brc-small" is BRC
for MT10 on a CPU core, where the published settings are slow to start."""

_SOFT_MODULARIZATION: Mapping[str, Any] = {
    "ent_coef_lr": None,
    "max_ent_coef": None,
    "max_ent_coef_grad_norm": None,
    "ent_coef_after_step": True,
    "max_task_loss": None,
    "mask_rule": "each",
    "reward_scale": 1.0,
    "bootstrap_timeouts": True,
}

RELEASED: Mapping[str, Mapping[str, Any]] = {
    "sm": _SOFT_MODULARIZATION,
    "sm-shallow": _SOFT_MODULARIZATION,
    "paco": {"shared_lr": 1e-4},
}
"""The settings that the preset released changes for a method. Soft Modularization has its own released code; PaCo is
part of D2R's."""

RELEASED_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    **{
        method: {"hidden_init": "released"}
        for method in ("d2r", "d2r-released", "d2r-layer", "d2r-model", "sm", "sm-shallow")
    },
    **{method: {"hidden_init": "released", "output_init": 3e-3} for method in ("mt-sac", "mh-sac", "paco")},
}
"""Keywords of networks under the preset released, which draws these baselines as it draws D2R.

The methods of D2R and Soft Modularization have this range of the output layer in every preset, and so has PaCo. Other
networks have code of their own, or none was released."""

AFTER_IMITATION: Mapping[str, Any] = {"learning_starts": 0, "ent_coef": "auto_0.001", "actor_starts": 1000}
"""The defaults where SAC goes on from a trained actor. There are no random actions, the entropy coefficient starts
small, and the critics learn before the actor changes."""

QUICK_SIZES: Mapping[str, Mapping[str, Any]] = {
    "mt-sac": {"hidden_sizes": [256, 256, 256]},
    "mh-sac": {"hidden_sizes": [256, 256, 256]},
    "moe": {"width": 128, "depth": 3, "router_sizes": [64]},
    "hard": {"trunk_sizes": [128, 128], "layer_sizes": [3, 3], "width": 64},
    "sm": {"trunk_sizes": [128, 128], "layer_sizes": [3, 3], "width": 64, "router_sizes": [64]},
    "sm-shallow": {"trunk_sizes": [128, 128], "layer_sizes": [2, 2], "width": 64, "router_sizes": [64]},
    "care": {"encoder_sizes": [64], "context_sizes": [64], "gate_sizes": [64], "hidden_sizes": [256, 256]},
    "paco": {"num_sets": 3, "hidden_sizes": [256, 256]},
    "d2r": {"num_modules": 6, "width": 64, "trunk_sizes": [128, 128], "router_sizes": [64]},
    "d2r-released": {"num_modules": 6, "width": 64, "trunk_sizes": [128, 128], "router_sizes": [64]},
    "d2r-layer": {"layer_sizes": [3, 3], "width": 64, "trunk_sizes": [128, 128], "router_sizes": [64]},
    "d2r-model": {"num_models": 3, "model_depth": 2, "width": 64, "trunk_sizes": [128, 128], "router_sizes": [64]},
    "brc": {"width": 128, "blocks": 1},
    "scalemoe-feature": {"num_experts": 4, "width": 64},
    "scalemoe-output": {"num_experts": 4, "width": 64},
}
"""The sizes of networks under the preset quick."""

NIGHT_SIZES: Mapping[str, Mapping[str, Any]] = {
    "mt-sac": {"hidden_sizes": [256, 256, 256]},
    "mh-sac": {"hidden_sizes": [248, 248, 248]},
    "moe": {"num_experts": 4, "width": 120, "depth": 3, "router_sizes": [64]},
    "hard": {"trunk_sizes": [192, 192], "layer_sizes": [4, 4], "width": 96},
    "sm": {"trunk_sizes": [192, 192], "layer_sizes": [3, 3], "width": 96, "router_sizes": [64]},
    "sm-shallow": {"trunk_sizes": [192, 192], "layer_sizes": [2, 2], "width": 120, "router_sizes": [96]},
    "care": {"encoder_sizes": [64], "context_sizes": [64], "gate_sizes": [64], "hidden_sizes": [288, 288]},
    "paco": {"num_sets": 3, "hidden_sizes": [144, 144, 144]},
    "d2r": {"num_modules": 8, "width": 80, "trunk_sizes": [200, 200], "router_sizes": [128]},
    "d2r-released": {"num_modules": 8, "width": 80, "trunk_sizes": [200, 200], "router_sizes": [128]},
    "d2r-layer": {"layer_sizes": [3, 3], "width": 96, "trunk_sizes": [192, 192], "router_sizes": [96]},
    "d2r-model": {"num_models": 3, "model_depth": 2, "width": 96, "trunk_sizes": [192, 192], "router_sizes": [96]},
    "brc": {"width": 248, "blocks": 1},
    "scalemoe-feature": {"num_experts": 4, "width": 128},
    "scalemoe-output": {"num_experts": 4, "width": 128},
}
"""The sizes of networks under the preset night. For MT10 their numbers of parameters are within 10 % of mt-sac's."""


BRC_SIZES: Mapping[str, Mapping[str, Any]] = {
    "brc": {"actor": {"width": 256, "blocks": 1}, "critics": {"width": 4096, "blocks": 2}},
    "brc-small": {"actor": {"width": 256, "blocks": 1}, "critics": {"width": 256, "blocks": 1}},
}
"""The sizes of BRC's networks under its presets; with two blocks in the critics, an update of "brc-small" takes half as
long again. ``--width`` sets the width of all networks, and ``--critic-network width=512`` that of the critics alone."""


def preset_options(name: str, method: str) -> Mapping[str, Any]:
    """The options of a preset for a method, without the sizes of its network."""
    check_choice("preset", name, PRESETS)
    by_method = RELEASED.get(method, {}) if name == "released" else {}
    if name == "refine" and not method.startswith(("d2r", "sm")):
        by_method = {"task_weights": "none"}  # as its settings were chosen, and its stored results made
    return {**PRESETS[name], **by_method}


def usual_benchmarks(name: str) -> list[str]:
    """The benchmark of a preset, in a list; MT10 if it names none."""
    check_choice("preset", name, PRESETS)
    return [PRESETS[name].get("benchmark", "MT10")]


def preset(name: str, options: Mapping[str, Any]) -> Configuration:
    """The configuration of a preset, with `options` in place of its own.

    Args:
        name: A name of :data:`~dynroute_metaworld.runs.presets.PRESETS`.
        options: Arguments of :class:`Configuration`.

    Example:
        >>> from dynroute_metaworld import preset
        >>> preset("quick", {"method": "d2r", "steps": 500}).batch_size
        32
    """
    check_choice("preset", name, PRESETS)
    method = options.get("method", PRESETS[name].get("method", "d2r"))
    usual = preset_options(name, method)
    sizes = BRC_SIZES.get(name, {}) if method == "brc" else {}
    by_method = {"quick": QUICK_SIZES, "night": NIGHT_SIZES, "released": RELEASED_NETWORKS}.get(name, {})
    actor = sizes.get("actor") or by_method.get(method, {})
    # Given options, such as `width`, and given keywords override the keywords of the preset.
    networks = {
        keywords: {
            **{key: value for key, value in usual_sizes.items() if options.get(key) is None},
            **options.get(keywords, {}),
        }
        for keywords, usual_sizes in (("network", actor), ("critic_network", sizes.get("critics", {})))
    }
    has_learned = options.get("warm_start") is not None or options.get("cloning_steps")
    return Configuration(**{**usual, **(AFTER_IMITATION if has_learned else {}), **options, **networks})
