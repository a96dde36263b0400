"""Every option of MultiTaskSAC runs, and what is not fit is told."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sac_models import (
    TASKS,
    TINY,
    like_sac,
    make_model,
    make_plain,
    observations,
    parameters,
    points,
    same,
    wrapped,
    wrong_size,
)
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from dynroute import Soft
from dynroute.losses import load_balance
from dynroute_sb3 import (
    MultiTaskSAC,
    OneHotTask,
    OverlappedSAC,
    PointTask,
    TaskSpace,
    point_tasks,
)
from dynroute_sb3.attributes import MultiTaskOptions
from dynroute_sb3.points import GOALS


def assert_learns(model: MultiTaskSAC) -> None:
    """The actor and the critic change by learning, and all numbers stay finite."""
    nets = (model.actor.net, model.critic)
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    model.learn(60)
    assert model._n_updates > 0
    for net, old in zip(nets, before, strict=True):
        assert not same(old, net.state_dict())
    assert all(p.isfinite().all() for p in parameters(model))


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "D2R without SampleK": ({"gate": "top-2"}, {}),
    "hard gate": ({"gate": "hard"}, {}),
    "soft gate": ({"gate": "soft"}, {}),
    "three sources": ({"gate": "sample-3"}, {}),
    "D2R without ResRouting": ({"protect": "none"}, {}),
    "protect input": ({"protect": "input"}, {}),
    "protect sg": ({"protect": "sg"}, {}),
    "D2R without RouteBalancing": ({}, {"route_temperature": 1.0}),
    "temperatures that average 1": ({}, {"route_temperature": "inverse-alpha-mean"}),
    "sampled paths": ({}, {"actor_paths": "sampled"}),
    "best paths": ({}, {"actor_paths": "topk", "critic_paths": "topk"}),
    "replayed paths": ({}, {"actor_paths": "replayed", "critic_paths": "replayed"}),
    "soft gate, replayed": ({"gate": "soft"}, {"actor_paths": "replayed"}),
    "layer level": ({"level": "layer", "layer_sizes": (2, 2), "num_modules": None}, {}),
    "model level": ({"level": "model", "num_models": 2, "model_depth": 1, "num_modules": None}, {}),
    "five modules": ({"num_modules": 5}, {}),
    "state-free": ({"state_free": True}, {}),
    "no shortcut": ({"shortcut": False}, {}),
    "fixed ent_coef": ({}, {"ent_coef": 0.2}),
    "limited ent_coef": ({}, {"max_ent_coef": 0.5}),
    "own rate of ent_coef": ({}, {"ent_coef_lr": 1e-2}),
    "weights": ({}, {"task_weights": "alpha-sum"}),
    "weights that average 1": ({}, {"task_weights": "alpha-mean"}),
    "released weights": ({}, {"task_weights": "inverse-alpha-mean"}),
    "balanced routes": ({}, {"route_balance": 0.1}),
    "slow routers": ({}, {"router_lr": 1e-5}),
    "balanced routes in 16 bits": ({}, {"route_balance": 0.1, "precision": "bf16"}),
    "limited loss": ({}, {"max_task_loss": 1e3}),
    "clipped gradients": ({}, {"max_grad_norm": 1.0}),
    "scaled rewards": ({}, {"reward_scale": 10.0}),
    "no timeouts": ({}, {"replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    "learning rate that changes": ({}, {"learning_rate": lambda left: 1e-3 * left}),
    "rare targets": ({}, {"target_update_interval": 4, "gradient_steps": 2, "train_freq": 2}),
    "as many updates as steps": ({}, {"gradient_steps": -1}),
    "target entropy": ({}, {"target_entropy": -1.0}),
}


def test_routers_keep_their_rate_while_that_of_the_rest_falls() -> None:
    model = make_model(router_lr=1e-5, learning_rate=lambda left: 5e-4 * (1 + left)).learn(56)
    for optimizer, module in ((model.actor.optimizer, model.actor), (model.critic.optimizer, model.critic)):
        rest, routers = optimizer.param_groups
        assert routers["lr"] == 1e-5
        assert rest["lr"] == 5e-4
        named = {
            name for name, parameter in module.named_parameters() if any(parameter is p for p in routers["params"])
        }
        assert named == {name for name, _ in module.named_parameters() if ".router." in name}
        assert len(rest["params"]) + len(named) == len(list(module.parameters()))


def test_balance_is_for_networks_whose_gate_chooses() -> None:
    def router(weight: float) -> Tensor:
        kwargs = {"network_kwargs": {"width": 8, "gate": "soft"}, "critic_kwargs": {"gate": "top-2"}}
        model = make_model("ScaleMoEPolicy", policy_kwargs=kwargs, learning_starts=16, route_balance=weight)
        learned: Tensor = model.learn(20).critic.nets[0].routed.router.layers[0].weight  # by one update
        return learned

    assert not torch.equal(router(10.0), router(0.0))
    logits = torch.randn(16, 1, 4, requires_grad=True)
    load_balance(Soft()(logits)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7  # an actor that mixes all learns nothing from it


def test_a_checkpoint_stores_each_option() -> None:
    own = {*inspect.signature(MultiTaskSAC.__init__).parameters} - {*inspect.signature(SAC.__init__).parameters}
    assert {*MultiTaskOptions.__annotations__} == {*own - {"sac"}, "capture"}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_runs(name: str) -> None:
    sizes, options = OPTIONS[name]
    sizes = {key: value for key, value in {**TINY, **sizes}.items() if value is not None}
    model = make_model(policy_kwargs={"network_kwargs": sizes}, learning_starts=16, **options)
    before = [p.clone() for p in parameters(model)]
    model.learn(24)
    assert model._n_updates > 0
    assert all(p.isfinite().all() for p in parameters(model))
    assert not same(before, parameters(model))
    # Replay is what the paths of gates that select are for.
    gate = sizes.get("gate", "sample-2")
    assert model.actor_paths == options.get("actor_paths", "topk" if gate in ("hard", "soft") else "replayed")
    assert model.replay_buffer is not None
    assert (model.replay_buffer.paths is None) == ("replayed" not in (model.actor_paths, model.critic_paths))


RUNS: dict[str, dict[str, Any]] = {
    "ent_coef that is learned from": {"ent_coef": "auto_0.01"},
    "steps": {"train_freq": (4, "step"), "gradient_steps": -1},
    "episodes": {"train_freq": (1, "episode"), "gradient_steps": 2},
    "as many updates as steps of an episode": {"train_freq": (1, "episode"), "gradient_steps": -1},
    "normal noise": {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))},
    "noise that lasts": {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))},
    "schedule": {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5)},
    "RMSprop of SB2": {"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-3}}},
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    model = like_sac(OneHotTask(PointTask(GOALS[0]), 0, 1), **RUNS[name])  # whose episodes have 20 steps
    model.learn(42)
    assert model._n_updates > 0
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    assert isinstance(model.lr_schedule(1.0), float)


@pytest.mark.parametrize("algorithm", [MultiTaskSAC, OverlappedSAC])
def test_train_takes_batches_of_the_size_that_the_model_has(algorithm: type[MultiTaskSAC]) -> None:
    model = algorithm("MlpPolicy", points(), learning_starts=8, batch_size=2 * TASKS, device="cpu")
    model.learn(40)
    before = model._n_updates
    model.train(gradient_steps=2)
    assert model._n_updates == before + 2


def test_products_in_16_bits_are_for_float32_alone() -> None:
    model = make_plain(precision="bf16").learn(40)
    model.policy.double()
    with pytest.raises(ValueError, match='`precision` must be "float32" for parameters'):
        model.train(1)
    with pytest.raises(ValueError, match="`precision` must be one of 'float32', 'bf16'"):
        make_plain(precision="half")


def box_env(*shape: int) -> VecEnv:
    """An environment whose observations have a shape, and no attribute of tasks."""

    class Shaped(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, shape)
        action_space = spaces.Box(-1, 1, (2,))

    return DummyVecEnv([Shaped])


class Says(gym.Wrapper):
    """Says that there are another number of tasks."""

    num_tasks = 3


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "task_weights": (
        {"task_weights": "alpha"},
        r"`task_weights` must be one of 'none', 'alpha-sum', .*, got 'alpha'; did you mean 'alpha-sum'",
    ),
    "actor_paths": (
        {"actor_paths": "best"},
        "`actor_paths` must be one of 'sampled', 'replayed', 'topk', None, got 'best'",
    ),
    "critic_paths": ({"critic_paths": None}, "`critic_paths` must be one of 'sampled', 'replayed', 'topk', got None"),
    "temperature by name": (
        {"route_temperature": "alpha"},
        "`route_temperature` must be a positive number or one of .*, got 'alpha'",
    ),
    "temperature of 0": ({"route_temperature": 0.0}, "`route_temperature` must be a positive number.*got 0.0"),
    "negative temperature": ({"route_temperature": -1}, "`route_temperature` must be a positive number.*got -1"),
    "no temperature": ({"route_temperature": None}, "`route_temperature` must be a positive number.*got None"),
    "infinite temperature": ({"route_temperature": float("inf")}, "`route_temperature` must be a positive.*got inf"),
    "temperature of nan": ({"route_temperature": float("nan")}, "`route_temperature` must be a positive.*got nan"),
    **{
        f"{name} of {wrong}": ({name: wrong}, rf"`{name}` must be above 0 or None, got {wrong}\.")
        for name in ("max_task_loss", "max_grad_norm", "max_ent_coef", "ent_coef_lr", "max_ent_coef_grad_norm")
        for wrong in (0.0, -1.0, float("nan"))
    },
    **{
        f"{name} of inf": ({name: float("inf")}, rf"`{name}` must be finite or None, got inf\.")
        for name in ("ent_coef_lr", "router_lr", "demonstration_decay")
    },
    **{
        f"ent_coef of {wrong}": ({"ent_coef": wrong}, rf"`ent_coef` must be a finite number of .*, got {wrong!r}\.")
        for wrong in (-0.1, float("nan"), float("inf"), True, None, "auto_inf", "auto_nan", "auto_0", "auto_x", "much")
    },
    **{
        f"{name} of {wrong}": ({name: wrong}, rf"`{name}` must be at least {least}, got {wrong}\.")
        for name, wrong, least in (
            ("learning_starts", -1, 0),
            ("stats_window_size", 0, 1),
            ("target_update_interval", 0, 1),
            ("gradient_steps", -2, -1),
            ("buffer_size", 0, 1),
        )
    },
    "an infinite rate": ({"learning_rate": float("inf")}, "`learning_rate` must be finite, got inf"),
    "no critics": ({"policy_kwargs": {"n_critics": 0}}, r"`n_critics` must be at least 1, got 0\."),
    "batch_size": (
        {"batch_size": 15},
        r"`batch_size` must be a multiple of the 4 tasks, got 15; for instance 16\.",
    ),
    "batch_size of 1": (
        {"batch_size": 1},
        r"`batch_size` must be a multiple of the 4 tasks, got 1; for instance 4\.",
    ),
    "batch_size of 0": ({"batch_size": 0}, r"`batch_size` must be at least 1, got 0\."),
    "batch_size of -4": ({"batch_size": -4}, r"`batch_size` must be at least 1, got -4\."),
    **{
        f"reward_scale of {scale}": (
            {"reward_scale": scale},
            rf"`reward_scale` must be {rule}, got {scale}\.",
        )
        for scale, rule in ((0.0, "above 0"), (-1.0, "above 0"), (float("nan"), "above 0"), (float("inf"), "finite"))
    },
    "names that are the same": ({"task_names": list("abca")}, "`task_names` must differ, since values are logged by"),
    "too few names": ({"task_names": ["a"]}, r"`task_names` must name 4 tasks, got 1 names\."),
    "too many names": ({"task_names": list("abcde")}, r"`task_names` must name 4 tasks, got 5 names\."),
    "no steps": ({"n_steps": 0}, "`n_steps` must be at least 1, got 0"),
    "steps of the buffer": (
        {"replay_buffer_kwargs": {"n_steps": 3}},
        "`replay_buffer_kwargs` must leave `n_steps` to the model, which has 1, got 3; give `n_steps` to the model",
    ),
    "replay_buffer_class": (
        {"replay_buffer_class": ReplayBuffer},
        r"`replay_buffer_class` must be a RouteReplayBuffer, got ReplayBuffer: batches are balanced by task",
    ),
    "optimize_memory_usage": ({"optimize_memory_usage": True}, "`optimize_memory_usage` must be False"),
    "use_sde": ({"use_sde": True}, "`use_sde` must be False"),
    "num_tasks against the environments": (
        {"num_tasks": 3},
        r"the number of tasks must be the same everywhere, but `num_tasks` says 3, `num_tasks` of the environments "
        r"says 4\.",
    ),
    "num_tasks against that of the policy": (
        {"num_tasks": 4, "policy_kwargs": {"num_tasks": 5}},
        "the number of tasks must be the same everywhere, but `num_tasks` says 4, `num_tasks` of `policy_kwargs` says 5"
        ", .*environments says 4",
    ),
    "num_tasks of the policy": (
        {"policy_kwargs": {"num_tasks": 2}},
        "but `num_tasks` of `policy_kwargs` says 2, `num_tasks` of the environments says 4",
    ),
    "environments against each other": (
        {"env": lambda: DummyVecEnv([point_tasks()[0], wrapped(Says)[1]])},
        "but `num_tasks` of the environments says 3 and 4",
    ),
    "nobody tells num_tasks": (
        {"env": lambda: box_env(8)},
        r"`num_tasks` must say how many tasks there are: pass `num_tasks=` to MultiTaskSAC, .*OneHotTask",
    ),
    "no room for the one-hot": (
        {"env": lambda: box_env(4), "num_tasks": 4},
        "an observation must hold a state and the one-hot of one of 4 tasks, got vectors of 4 numbers.*OneHotTask",
    ),
    "observations that are no vectors": (
        {"env": lambda: box_env(3, 4), "num_tasks": 2},
        "the observation space must be a Box of vectors that end with the one-hot of the task",
    ),
    "replayed without routes": (
        {"policy": "MlpPolicy", "actor_paths": "replayed"},
        "`actor_paths` and `critic_paths` can be 'replayed' where the network has routes, got a MultiTaskMLP without",
    ),
    "critics replayed without routes": (
        {"policy": "MultiHeadPolicy", "critic_paths": "replayed"},
        "can be 'replayed' where the network has routes, got a MultiHead without",
    ),
    "a rate without routers": (
        {"policy": "MlpPolicy", "router_lr": 1e-4},
        "`router_lr` must be None for networks without a router that learns, got 0.0001 for a MultiTaskMLP",
    ),
    "routers without a rate": ({"router_lr": 0}, "`router_lr` must be above 0 or None, got 0"),
    "replayed in critics with another graph": (
        {"critic_paths": "replayed", "policy_kwargs": {"critic_kwargs": {"num_modules": 5}}},
        "`critic_paths` can be 'replayed' where critics have the graph of their actor, .*; leave its size out of "
        "`critic_kwargs`",
    ),
    "balance without routes": (
        {"policy": "MlpPolicy", "route_balance": 0.1},
        "`route_balance` must be 0 for networks without routes, got 0.1 for a MultiTaskMLP\\.",
    ),
    "balance of a soft gate": (
        {"policy_kwargs": {"network_kwargs": {**TINY, "gate": "soft"}}, "route_balance": 0.1},
        "`route_balance` must be 0 for the gate Soft, which uses all sources alike, got 0.1",
    ),
    "name of a network": ({"policy_kwargs": {"network": "d2", "network_kwargs": {}}}, "did you mean 'd2r'"),
    **{
        f"factory with its own {name}": (
            {"policy_kwargs": {"network": lambda *sizes, i=i, **_: wrong_size(sizes, i), "network_kwargs": {}}},
            rf"`network` must make networks with {name}={size}, as the observations and actions have it, got one with "
            rf"{name}={size + 1}; pass the arguments of the factory on\.",
        )
        for i, (name, size) in enumerate((("state_features", 4), ("num_tasks", 4), ("out_features", 4)))
    },
    "alias": ({"policy": "D2R"}, "`policy` must be one of 'MultiTaskPolicy', .*, got 'D2R'; did you mean 'D2RPolicy'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_told(name: str) -> None:
    options, told = WRONG[name]
    options = {**options, "env": options.get("env", points)()}
    with pytest.raises(ValueError, match=told):
        make_model(**options)


def test_batch_size_is_that_of_the_paper_unless_given() -> None:
    assert make_model(batch_size=None).batch_size == 128 * TASKS


@pytest.mark.parametrize("num_tasks", [0, -1, 2.0, "4", True, None])
def test_number_of_tasks_of_a_space(num_tasks: Any) -> None:
    with pytest.raises(ValueError, match="`num_tasks` must be a positive integer, got"):
        TaskSpace(spaces.Box(-1, 1, (8,)), num_tasks)


@pytest.mark.parametrize("num_tasks", [2.5, "four", True, 0, -1])
def test_number_of_tasks_of_a_model(num_tasks: Any) -> None:
    try:
        make_model("MlpPolicy", "Pendulum-v1", num_tasks=num_tasks, batch_size=None)
    except Exception as error:
        assert "`num_tasks` must be a positive integer" in str(error)  # noqa: PT017 - of whatever type
    else:
        pytest.fail("it was taken")


@pytest.mark.parametrize("policy", ["D2RPolicy", "MlpPolicy"])
def test_no_bonus_for_entropy(policy: str) -> None:
    model = make_model(policy, ent_coef=0.0)
    assert_learns(model)
    assert all(total.isfinite().all() for total in model.report.totals.values())
    assert model.entropy_coefficients.tolist() == [0] * TASKS


def test_networks_of_doubles() -> None:
    model = make_model(policy_kwargs={"network_kwargs": {**TINY, "dtype": torch.float64}})
    assert_learns(model)
    assert {value.dtype for value in model.policy.state_dict().values()} == {torch.float64}
    actions = model.predict(observations(), deterministic=True)[0]
    assert actions.shape == (20, 2)
    assert (abs(actions) <= 1).all()
    assert np.array_equal(model.predict(observations().astype(np.float64), deterministic=True)[0], actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": float("nan")}, "`gamma` must be at least 0, got nan"),
        ({"gamma": "x"}, "`gamma` must be a number, got 'x'"),
        ({"tau": 7}, "`tau` must be at most 1, got 7"),
        ({"max_grad_norm": np.ones(2)}, r"`max_grad_norm` must be a number or None, got array\(\[1., 1.\]\)"),
        ({"gamma": 10**400}, "`gamma` must be at most 1, got 1000"),
        ({"reward_scale": 10**400}, "`reward_scale` must be finite, got 1000"),
        ({"max_grad_norm": "1"}, "`max_grad_norm` must be a number or None, got '1'"),
        ({"max_ent_coef_grad_norm": "1"}, "`max_ent_coef_grad_norm` must be a number or None, got '1'"),
        ({"demonstration_decay": "1"}, "`demonstration_decay` must be a number or None, got '1'"),
        ({"learning_starts": 2.5}, "`learning_starts` must be an integer, got 2.5"),
        ({"reward_scale": "x"}, "`reward_scale` must be a number, got 'x'"),
        ({"actor_starts": 2.5}, "`actor_starts` must be an integer, got 2.5"),
        ({"batch_size": 64.0}, "`batch_size` must be an integer, got 64.0"),
    ],
    ids=str,
)
def test_numbers_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_plain(**options)


def test_numbers_of_numpy_and_numbers_of_steps() -> None:
    given = {
        "batch_size": np.int64(16),
        "buffer_size": 2e3,
        "learning_starts": np.float64(40),
        "reward_scale": np.float32(0.5),
        "max_grad_norm": np.float32(2),
        "max_ent_coef": np.float64(4),
        "route_temperature": np.float32(1),
        "value_range": (np.float32(-5), 5),
        "normalize_returns": np.True_,
        "ent_coef": np.float32(0.5),
        "learning_rate": np.float64(0.25),
    }
    model = make_plain(**given)
    for name, value in given.items():
        assert getattr(model, name) == value
    kinds = {name: type(getattr(model, name)) for name in given}
    assert kinds == {
        **dict.fromkeys(("batch_size", "buffer_size", "learning_starts"), int),
        **dict.fromkeys(("reward_scale", "max_grad_norm", "max_ent_coef", "route_temperature", "ent_coef"), float),
        "value_range": tuple,
        "normalize_returns": bool,
        "learning_rate": float,
    }


def test_steps_to_learn() -> None:
    for steps in (40.0, np.int64(40)):
        assert make_plain().learn(steps).num_timesteps == 40
    for wrong in (2.5, float("inf"), "40", True, None):
        with pytest.raises(TypeError, match=re.escape(f"`total_timesteps` must be an integer, got {wrong!r}.")):
            make_plain().learn(wrong)
    with pytest.raises(ValueError, match=r"`total_timesteps` must be at least 0, got -1\."):
        make_plain().learn(-1)


def test_a_string_is_no_list_of_names(tmp_path: Path) -> None:
    message = r"^`task_names` must list names, got 'abcd'; one name is \['abcd'\]\.$"
    with pytest.raises(TypeError, match=message):
        make_plain(task_names="abcd")
    make_plain().save(tmp_path / "model")
    with pytest.raises(TypeError, match=message):
        MultiTaskSAC.load(tmp_path / "model", task_names="abcd", device="cpu")


def test_names_are_any_sequence(tmp_path: Path) -> None:
    make_plain(task_names=np.array(list("abcd"))).save(tmp_path / "model")
    for names in (np.array(list("efgh")), tuple("efgh"), list("efgh")):
        assert MultiTaskSAC.load(tmp_path / "model", task_names=names, device="cpu").task_names == list("efgh")
    with pytest.raises(ValueError, match="`task_names` must name 4 tasks, got 0 names"):
        make_plain(task_names=[])


def test_hindsight() -> None:
    with pytest.raises(
        ValueError, match=r"`replay_buffer_class` must be a RouteReplayBuffer, got HerReplayBuffer: goals"
    ):
        make_plain(replay_buffer_class=HerReplayBuffer)
