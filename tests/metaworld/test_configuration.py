"""The options of a run: presets, sizes of networks, options of the learner, and what is refused."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from dynroute.networks import available, build
from dynroute_metaworld import PRESETS, Configuration, Run, RunError, preset
from dynroute_metaworld.runs import training
from dynroute_metaworld.runs.learner import check_learner
from dynroute_metaworld.runs.methods import build_actor, build_critic, check_network
from dynroute_metaworld.runs.presets import NIGHT_SIZES, QUICK_SIZES
from dynroute_metaworld.runs.threads import pass_size
from dynroute_metaworld.runs.training import make_model
from dynroute_sb3 import DamagedError, MultiTaskSAC, OneHotTask
from dynroute_sb3.options import keywords_of

PAPER: dict[str, Any] = {
    # Table 1
    "batch_size": 128,
    "update_every": 1,
    "updates": 1,
    "learning_rate": 3e-4,
    "optimizer": "adam",
    "gamma": 0.99,
    "horizon": 200,
    "learning_starts": 2000,
    "reward_scale": 0.1,
    "buffer_size": 10**6,
    # Section 5, Eq. 14 and 15, Appendix A.2
    "steps": 1_500_000,
    "evaluate_every": 10_000,
    "evaluation_episodes": 32,
    "final_episodes": 100,
    "route_temperature": "inverse-alpha-sum",
    "task_weights": "alpha-sum",
    "max_task_loss": 3e3,
    # The released code
    "max_ent_coef": 1.0,
    "max_grad_norm": 1.0,
    "critic_paths": "sampled",
    # SB3
    "tau": 0.005,
    "ent_coef": "auto",
    "target_entropy": "auto",
    "ent_coef_lr": None,
    "bootstrap_timeouts": True,
    "joint_update": False,
    "log_prob_epsilon": 0.0,
    "warmup_actions": "random",
    "n_steps": 1,
}
"""The settings of D2R, and of what it does not state."""


def test_presets() -> None:
    paper = preset("paper", {}).resolve()
    assert {name: getattr(paper, name) for name in PAPER} == PAPER
    fifty = preset("paper", {"benchmark": "MT50", "method": "paco"}).resolve()
    assert (fifty.steps, fifty.buffer_size, fifty.task_weights) == (1_000_000, 10**7, "alpha-sum")
    weights = {name: preset(name, {"method": "mt-sac"}).resolve().task_weights for name in PRESETS}
    assert {name for name, rule in weights.items() if rule != "none"} == {"paper", "released"}
    released = preset("released", {"method": "d2r-released", "tau": 0.01}).resolve()
    assert (released.task_weights, released.learning_starts, released.tau) == ("inverse-alpha-mean", 4000, 0.01)
    assert (released.update_every, released.updates, released.lag_rollouts) == (200, 200, True)
    assert released.joint_update
    assert (released.mask_rule, released.max_task_loss, released.reward_scale) == ("total", 3e3, 0.1)
    assert (released.warmup_actions, released.log_prob_epsilon) == ("policy", 1e-6)
    assert (released.ent_coef_lr, released.max_ent_coef, released.max_ent_coef_grad_norm) == (1e-4, 1.0, 1.0)
    assert released.network_kwargs == {"hidden_init": "released"}
    sm = preset("released", {"method": "sm", "network": {"hidden_init": "torch"}, "gamma": 0.9}).resolve()
    assert (sm.ent_coef_lr, sm.max_ent_coef, sm.max_ent_coef_grad_norm, sm.max_task_loss) == (None,) * 4
    assert sm.joint_update
    assert sm.ent_coef_after_step
    assert sm.bootstrap_timeouts
    assert (sm.mask_rule, sm.reward_scale, sm.gamma, sm.updates) == ("each", 1.0, 0.9, 200)
    assert sm.network_kwargs == {"hidden_init": "torch"}
    assert preset("released", {"method": "paco"}).shared_lr == 1e-4
    for method in ("mt-sac", "mh-sac", "paco"):
        both = {"hidden_init": "released", "output_init": 3e-3}
        assert preset("released", {"method": method}).network_kwargs == both
        assert preset("paper", {"method": method}).network_kwargs == {}
    assert preset("released", {"method": "care"}).network_kwargs == {}
    quick = preset("quick", {"num_modules": 4, "network": {"router_sizes": [16]}})
    assert quick.network_kwargs == {**QUICK_SIZES["d2r"], "num_modules": 4, "router_sizes": [16]}
    assert set(QUICK_SIZES) == set(available())
    told = "`preset` must be one of 'paper', 'released', 'quick', 'night', 'refine', 'brc', 'brc-small', got 'fast'"
    with pytest.raises(ValueError, match=told):
        preset("fast", {})


def test_the_networks_of_a_night_have_equal_sizes() -> None:
    assert set(NIGHT_SIZES) == set(available())
    for state, out in ((39, 8), (43, 1)):
        sizes = {}
        for method, keywords in NIGHT_SIZES.items():
            assert preset("night", {"method": method}).network_kwargs == keywords
            sizes[method] = sum(p.numel() for p in build(method, state, 10, out, **keywords).parameters())
        assert all(0.9 < size / sizes["mt-sac"] < 1.1 for size in sizes.values()), sizes
    night = preset("night", {"method": "d2r", "benchmark": "MT10"}).resolve()
    assert (night.hours, night.steps, night.task_weights) == (8.0, 1_500_000, "none")
    assert (night.normalize_returns, night.ent_coef, night.target_entropy) == (True, "auto_0.01", "auto_0.5")
    assert night.n_steps == 3


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", available())
def test_every_method_with_every_preset(name: str, method: str, two_tasks: Any) -> None:
    options = {"method": method, "benchmark": "reach,push", "buffer_size": 10, "device": "cpu"}
    sizes = {"network": QUICK_SIZES[method], "critic_network": QUICK_SIZES[method]}  # those of BRC take seconds
    configuration = preset(name, {**options, **sizes})
    model = make_model(configuration, two_tasks)
    assert model.task_names == ["reach", "push"]
    assert model.batch_size == (configuration.mixed_batch_size or 2 * configuration.batch_size)
    assert model.replay_buffer is not None
    assert model.replay_buffer.balanced == (configuration.mixed_batch_size is None)
    for option in ("critic_loss", "bins", "q_target", "normalize_returns", "shared_ent_coef", "ent_coef_beta1"):
        assert getattr(model, option) == getattr(configuration, option)
    assert model.value_range == (configuration.value_low, configuration.value_high)
    assert (model.actor.log_std, *model.actor.log_std_range) == (
        configuration.log_std,
        configuration.log_std_low,
        configuration.log_std_high,
    )
    assert model.target_entropy == (-2.0 if name.startswith(("brc", "night", "quick")) else -4.0)
    adamw = name.startswith("brc")
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        assert type(optimizer) is (torch.optim.AdamW if adamw else torch.optim.Adam)
        assert optimizer.param_groups[0]["weight_decay"] == (1e-4 if adamw else 0)
    assert model.learning_starts == 2 * configuration.learning_starts
    assert model.replay_buffer is not None
    assert model.replay_buffer.handle_timeout_termination == configuration.bootstrap_timeouts
    for option in ("joint_update", "ent_coef_after_step", "max_ent_coef_grad_norm", "mask_rule", "shared_lr"):
        assert getattr(model, option) == getattr(configuration, option)
    for option in ("log_prob_epsilon", "warmup_actions", "lag_rollouts", "reward_scale", "max_task_loss"):
        assert getattr(model, option) == getattr(configuration, option)
    assert (model.train_freq.frequency, model.gradient_steps) == (configuration.update_every, configuration.updates)  # type: ignore[union-attr]


RENAMED: dict[str, tuple[Any, Callable[[Any], Any], Any]] = {
    # Options with a value, and what it is in the learner of two tasks.
    "window": (7, lambda model: model.report.successes[0].maxlen, 7),
    "update_every": (3, lambda model: model.train_freq.frequency, 3),
    "updates": (3, lambda model: model.gradient_steps, 3),
    "learning_starts": (7, lambda model: model.learning_starts, 14),
    "batch_size": (7, lambda model: model.batch_size, 14),
    "mixed_batch_size": (7, lambda model: (model.batch_size, model.replay_buffer.balanced), (7, False)),
    "target_update_every": (3, lambda model: model.target_update_interval, 3),
    "value_low": (-3.0, lambda model: model.value_range, (-3.0, 10.0)),
    "value_high": (3.0, lambda model: model.value_range, (-10.0, 3.0)),
    "compile": (True, lambda model: model.compile_networks, True),
    "memory_map": ("FOLDER", lambda model: model.replay_buffer_kwargs.get("memory_map"), "FOLDER"),
    "bootstrap_timeouts": (False, lambda model: model.replay_buffer.handle_timeout_termination, False),
    "weight_decay": (0.3, lambda model: model.actor.optimizer.param_groups[0]["weight_decay"], 0.3),
    "log_std_low": (-3.0, lambda model: model.actor.log_std_range, (-3.0, 2.0)),
    "log_std_high": (1.0, lambda model: model.actor.log_std_range, (-20.0, 1.0)),
    "ent_coef": ("0.3", lambda model: model.ent_coef, 0.3),
    "target_entropy": ("-1.5", lambda model: model.target_entropy, -1.5),
    "route_temperature": ("0.7", lambda model: model.route_temperature, 0.7),
}


@pytest.mark.parametrize("name", RENAMED)
def test_options_of_another_name_in_the_learner_reach_it(
    name: str, two_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynroute_sb3.MultiTaskPolicy.compile_networks", lambda *_: None)  # it takes seconds
    value, read, expected = (str(tmp_path) if each == "FOLDER" else each for each in RENAMED[name])
    usual: dict[str, Any] = {"benchmark": "reach,push", "buffer_size": 10, "device": "cpu", "optimizer": "adamw"}
    usual |= {"network": QUICK_SIZES["d2r"], "critic_loss": "categorical"}
    one, other = (make_model(Configuration(**{**usual, **more}), two_tasks) for more in ({}, {name: value}))
    assert read(one) != read(other) == expected


def test_options_of_the_same_name_in_the_learner_reach_it(two_tasks: Any) -> None:
    options: dict[str, Any] = {"learning_rate": 2e-3, "gamma": 0.9, "tau": 0.02, "buffer_size": 12, "seed": 5}
    options |= {"ent_coef_lr": 2e-3, "ent_coef_beta1": 0.4, "max_ent_coef": 0.7, "max_grad_norm": 0.3, "n_steps": 2}
    options |= {"max_task_loss": 9.0, "reward_scale": 0.3, "actor_starts": 3, "route_balance": 0.3, "q_target": "mean"}
    options |= {"actor_paths": "sampled", "critic_paths": "topk", "task_weights": "alpha-mean", "router_lr": 1e-5}
    options |= {"demonstration_weight": 0.3, "demonstration_decay": 9, "precision": "bf16"}
    usual: dict[str, Any] = {"benchmark": "reach,push", "device": "cpu", "network": QUICK_SIZES["d2r"]}
    model = make_model(Configuration(**usual, demonstrations=3, **options), two_tasks)
    assert {name: getattr(model, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, "`normalize_returns` needs a `gamma` below 1, got 1"),
        ({"value_low": 1.0}, "`normalize_returns` needs a `value_range` with 0 inside"),
        ({"target_entropy": "3"}, "`normalize_returns` needs a `target_entropy` of at most 0, got 3"),
        ({"target_entropy": "auto_0.5"}, None),
        ({}, None),
    ],
)
def test_what_normalized_returns_need_is_asked_before_there_are_environments(
    options: dict[str, Any], message: str | None
) -> None:
    configuration = Configuration(benchmark="reach", normalize_returns=True, **options).resolve()
    with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=re.escape(message)):
        check_learner(configuration)


def test_every_option_that_is_a_keyword_of_the_learner_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = Configuration(benchmark="reach,push").resolve()
    monkeypatch.setattr(training, "algorithm", lambda _: lambda *_, **given: given)  # instead of a learner
    given: Any = make_model(configuration, None)
    keywords = keywords_of(SAC.__init__, MultiTaskSAC.__init__)
    assert given.keys() <= keywords
    options = {option.name for option in dataclasses.fields(configuration)} & keywords
    assert options <= given.keys()
    changed = {"batch_size", "learning_starts", "ent_coef", "target_entropy", "route_temperature"}
    same = {name: getattr(configuration, name) for name in options - changed}
    assert {name: given[name] for name in same} == same
    assert given["policy_kwargs"] == configuration.policy_kwargs


def test_the_presets_of_brc() -> None:
    published = preset("brc", {"method": "mt-sac"}).resolve()
    assert (published.benchmark, published.steps, published.horizon) == ("MT50", 1_000_000, 200)
    assert (published.batch_rows, published.updates, published.learning_starts) == (1024, 2, 5000)
    assert (published.gamma, published.tau, published.learning_rate, published.reward_scale) == (0.99, 0.005, 3e-4, 1.0)
    assert (published.max_ent_coef, published.max_task_loss, published.max_grad_norm) == (None,) * 3
    assert (published.task_weights, published.ent_coef, published.ent_coef_lr) == ("none", "auto_0.1", None)
    assert published.n_steps == 1
    small = preset("brc-small", {"method": "mt-sac", "gamma": 0.98}).resolve()
    assert (small.benchmark, small.batch_rows, small.updates, small.gamma) == ("MT10", 512, 1, 0.98)
    assert (small.n_steps, small.learning_starts, small.learning_rate, small.ent_coef) == (3, 1000, 1e-3, "auto_0.01")
    assert PRESETS["brc"]["method"] == PRESETS["brc-small"]["method"] == "brc"
    blocks = {name: preset(name, {}).critic_network["blocks"] for name in ("brc", "brc-small")}
    assert blocks == {"brc": 2, "brc-small": 1}


def test_critics_of_another_size(two_tasks: Any) -> None:
    sizes = {"network": {"width": 16, "blocks": 1}, "critic_network": {"width": 32, "blocks": 2}}
    configuration = Configuration(method="brc", benchmark="reach,push", buffer_size=10, device="cpu", **sizes)
    model = make_model(configuration, two_tasks)
    assert [net.head.in_features for net in (model.actor.net, *model.critic.nets)] == [16, 32, 32]
    assert [len(net.blocks) for net in (model.actor.net, *model.critic.nets)] == [1, 2, 2]
    assert pass_size(configuration) > 3 * pass_size(dataclasses.replace(configuration, critic_network={}))
    with pytest.raises(ValueError, match="`width` must be at least 1, got 0"):
        check_network(Configuration(method="brc", critic_network={"width": 0}))


def test_gates_that_read_more_sources_than_there_are() -> None:
    for options in ({"gate": "top-6"}, {"network": {"gate": "top-6"}}):
        configuration = Configuration(method="d2r", num_modules=4, **options)
        with pytest.raises(ValueError, match="`gate` must read at most the 4 sources of a node, got 'top-6'"):
            check_network(configuration)
        check_network(dataclasses.replace(configuration, warm_start="there"))  # it may have grown
        check_network(dataclasses.replace(configuration, num_modules=6))


def test_gates_of_critics_that_read_more_sources_than_there_are() -> None:
    for options in ({"critic_network": {"gate": "top-6"}}, {"gate": "top-4", "critic_network": {"num_modules": 3}}):
        configuration = Configuration(method="d2r", num_modules=4, **options)
        told = "`gate` must read at most the [43] sources of a node of the critics, got 'top-[64]'; soft reads all"
        with pytest.raises(ValueError, match=told):
            check_network(configuration)
        check_network(dataclasses.replace(configuration, critic_network={"num_modules": 6, "gate": "top-6"}))


def test_gates_that_read_more_sources_than_a_network_grows_to() -> None:
    for method, size in (("d2r", "num_modules"), ("d2r-model", "num_models"), ("moe", "num_experts")):
        for part, where in (("network", ""), ("critic_network", " of the critics")):
            network = {size: 3, **({"gate": "top-6"} if part == "network" else {})}
            critic = {"gate": "top-6" if part == "critic_network" else "soft"}
            configuration = Configuration(method=method, grow_to=5, network=network, critic_network=critic)
            for start in (None, "there"):
                with pytest.raises(ValueError, match=f"`gate` must read at most the 5 sources of a node{where}, got"):
                    check_network(dataclasses.replace(configuration, warm_start=start))
            check_network(dataclasses.replace(configuration, grow_to=6))


def test_methods_that_can_route_by_the_task_alone() -> None:
    for method in ("sm", "sm-shallow", "d2r"):
        configuration = Configuration(method=method, state_free=True)
        actor = build_actor(configuration)
        assert all(net.state_free is True for net in (actor, build_critic(configuration, actor)))
    told = "`state_free` is not an option of the method moe; methods that have it: sm, sm-shallow, d2r, "
    with pytest.raises(ValueError, match=told):
        check_network(Configuration(method="moe", state_free=True))


class Still(gym.Env[Any, Any]):
    """An environment with the spaces of Meta-World."""

    observation_space = spaces.Box(-1, 1, (39,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (4,), dtype=np.float32)


@pytest.fixture(scope="module")
def two_tasks() -> DummyVecEnv:
    return DummyVecEnv([lambda task=task: OneHotTask(Still(), task, 2) for task in range(2)])  # type: ignore[misc]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "d2"}, r"`method` must be one of .*, got 'd2'; did you mean 'd2r'\?"),
    "benchmark": ({"benchmark": "MT11"}, r"got 'MT11'; did you mean 'MT10'"),
    "task": ({"benchmark": "reach,windw-open"}, r"got 'windw-open'; did you mean 'window-open'"),
    "goals": ({"goals": "rand"}, r"`goals` must be one of .* did you mean 'random'\?"),
    "horizon": ({"horizon": 501}, r"`horizon` must be in 1..500, got 501"),
    "horizon 0": ({"horizon": 0}, r"`horizon` must be in 1..500, got 0"),
    "gamma": ({"gamma": 1.5}, r"`gamma` must be in 0..1, got 1.5"),
    "MT1": ({"benchmark": "mt1"}, r"got 'mt1'; MT1 is a single task: give the name"),
    "workers": ({"workers": 11}, r"`workers` must be at most the 10 tasks, got 11"),
    "rate": ({"learning_rate": float("nan")}, r"`learning_rate` must be at least 0 and finite, got nan"),
    "bins": ({"critic_loss": "categorical", "bins": 1}, r"`bins` must be at least 2, got 1"),
    "range": ({"value_low": 10.0}, r"`value_low, value_high` must be \(low, high\) .*, got \(10.0, 10.0\)"),
    "range nan": ({"value_high": float("nan")}, r"`value_low, value_high` must be finite, got \(-10.0, nan\)"),
    "deviation": ({"log_std_high": -30.0}, r"`log_std_low, log_std_high` must be \(low, high\)"),
    "optimizer": ({"optimizer": "sgd"}, r"`optimizer` must be one of 'adam', 'adamw', got 'sgd'"),
    "decay": ({"weight_decay": 0.1}, r"`weight_decay` needs --optimizer adamw, got 0.1 with adam"),
    "entropy": (
        {"target_entropy": "half"},
        r"`target_entropy` must be a number or one of auto, auto_NUMBER, got 'half'",
    ),
    "entropy inf": (
        {"target_entropy": "-inf"},
        "`target_entropy` must be a number or one of auto, auto_NUMBER, got '-inf'",
    ),
    "coefficient nan": (
        {"ent_coef": "auto_nan"},
        "`ent_coef` must be a number or one of auto, auto_NUMBER, got 'auto_nan",
    ),
    "rate inf": ({"learning_rate": float("inf")}, r"`learning_rate` must be at least 0 and finite, got inf"),
    "rate of many digits": ({"learning_rate": 10**400}, r"`learning_rate` must be at least 0 and finite, got inf"),
    "value of many digits": ({"value_high": 10**400}, r"`value_low, value_high` must be finite, got \(-10.0, inf\)"),
    "seed": ({"seed": True}, r"`seed` must be of type int, got True"),
    "modules": ({"method": "sm", "num_modules": 3}, r"`num_modules` is not an option of the method sm; .* d2r, d2r-re"),
    "keyword": ({"network": {"zz": 3}}, r"`zz` is not an option of the method d2r; it has level, num_modules"),
    "keyword of critics": ({"critic_network": {"zz": 3}}, r"`zz` is not an option of the method d2r; it has level"),
    "embedding": (
        {"method": "brc", "network": {"embedding": 3}},
        r"`embedding` is not an option of the method brc; it has",
    ),
    "metadata": (
        {"method": "care", "network": {"metadata": "a.safetensors"}},
        "`network` must not set `metadata`; --metadata FILE gives it to all networks",
    ),
    "metadata of critics": (
        {"method": "care", "metadata": "a", "critic_network": {"metadata": "b"}},
        "`critic_network` must not set `metadata`; --metadata FILE",
    ),
    "critics": ({"critic_network": 3}, r"`critic_network` must be of type dict, got 3"),
    "type": ({"steps": "many"}, r"`steps` must be of type int or none, got 'many'"),
    "weights": ({"task_weights": "alpha"}, r"`task_weights` must be one of 'none', 'alpha-sum'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_configurations(name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Configuration(**options)


def test_directories_that_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FileExistsError, match="holds other files; --run names another directory"):
        Run.create(tmp_path, Configuration())
    run = Run.create(tmp_path / "run", Configuration())
    with pytest.raises(FileExistsError, match="holds a run already"):
        Run.create(tmp_path / "run", Configuration())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".part-12-config.json").touch()  # of a process that was killed
    Run.create(tmp_path / "half", Configuration())
    with run.locked(), pytest.raises(RunError, match="in use by another process"), Run.open(run.folder).locked():
        pass
    with run.locked():  # it was let go
        pass


def test_a_damaged_configuration(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Configuration(method="sm"))
    assert Run.open(run.folder).configuration == run.configuration
    assert dataclasses.replace(run.configuration, threads=None) == Configuration(method="sm").resolve()
    rest = '"benchmark": "MT10", "goals": "random", "seed": 1, "steps": 20}'
    for text in ("{", "[]", f'{{"method": "sm", "methd": "sm", {rest}', f'{{"method": "xx", {rest}'):
        (run.folder / "config.json").write_text(text)
        with pytest.raises(DamagedError, match=r"config\.json is not the configuration of a run"):
            Run.open(run.folder)
    stored = dataclasses.asdict(run.configuration)
    for name in ("method", "benchmark", "goals", "seed", "steps"):
        (run.folder / "config.json").write_text(json.dumps({key: stored[key] for key in stored if key != name}))
        with pytest.raises(DamagedError, match=rf"config\.json is not the configuration of a run: it has no {name}\."):
            Run.open(run.folder)
