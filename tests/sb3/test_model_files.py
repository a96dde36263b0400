"""Models, policies, actors and critics are saved, loaded and copied as those of SB3."""

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sac_models import (
    TINY,
    assert_physical,
    like_sac,
    make_model,
    make_plain,
    observations,
    parameters,
    pendulum,
    points,
    same,
)
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from dynroute_sb3 import (
    MultiTaskActorCriticPolicy,
    MultiTaskSAC,
    OverlappedSAC,
    point_tasks,
)
from dynroute_sb3.policies import POLICIES
from dynroute_sb3.router_rates import router_parameters

SHARING = {"PaCoPolicy", "BRCPolicy", "ScaleMoEPolicy"}


@pytest.mark.parametrize(
    ("policy", "options"),
    [*((policy, {}) for policy in POLICIES), ("D2RPolicy", {"router_lr": 1e-5})],
    ids=[*POLICIES, "slow routers"],
)
def test_save_and_load(policy: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(policy, task_names=["a", "b", "c", "d"], task_weights="alpha-mean", **options)
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")

    for device in ("cpu", torch.device("cpu"), "auto"):
        alone = MultiTaskSAC.load(tmp_path / "model.zip", device=device)
        assert alone.device.type == ("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
        assert alone.get_env() is None
        assert alone.task_names == ["a", "b", "c", "d"]
        assert same([p.cpu() for p in parameters(alone)], parameters(model))

    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    assert same(loaded.get_parameters(), model.get_parameters())  # those of the optimizers included
    assert any(name.endswith("optimizer") and len(p["state"]) for name, p in loaded.get_parameters().items())
    for name in ("task_weights", "actor_paths", "critic_paths", "num_timesteps", "_n_updates", "batch_size", "gamma"):
        assert getattr(loaded, name) == getattr(model, name)
    best, again = (m.predict(observations(), deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(best, again)
    torch.manual_seed(3)
    drawn = model.predict(observations())[0]
    torch.manual_seed(3)
    assert np.array_equal(loaded.predict(observations())[0], drawn)  # at the temperature of each task

    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    for one in (model, loaded):  # both go on alike
        torch.manual_seed(4)
        np.random.seed(4)
        one.train(2, batch_size=16)
    assert same(loaded.get_parameters(), model.get_parameters())
    assert same(parameters(loaded), parameters(model))
    loaded.learn(12, reset_num_timesteps=False)
    assert loaded.num_timesteps == 72
    assert_physical(loaded)


def test_load_with_another_number_of_environments(tmp_path: Path) -> None:
    make_model().learn(60).save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=DummyVecEnv(point_tasks() * 2), device="cpu", gamma=0.5)
    assert loaded.learn(160).num_timesteps == 160
    assert loaded.gamma == 0.5
    assert_physical(loaded)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        MultiTaskSAC.load(tmp_path / "model", env=points(3), device="cpu")


@pytest.mark.parametrize("policy", ["D2RPolicy", "PaCoPolicy", "BRCPolicy"])
def test_get_and_set_parameters(policy: str, tmp_path: Path) -> None:
    model, other = make_model(policy), make_model(policy, seed=1)
    model.learn(60)
    stored = copy.deepcopy(model.get_parameters())
    optimizers = {"actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
    assert stored.keys() == {"policy", *optimizers} | ({"policy.shared_optimizer"} if policy in SHARING else set())
    assert not same(stored["policy"], other.get_parameters()["policy"])
    other.set_parameters(copy.deepcopy(stored), exact_match=True)  # torch takes the moments of Adam as they are
    assert same(stored, other.get_parameters())
    other.learn(60)
    assert same(stored, model.get_parameters())  # nothing is shared

    with pytest.raises(ValueError, match="Names of parameters do not match"):
        other.set_parameters({"policy": stored["policy"]}, exact_match=True)
    first = next(iter(stored["policy"]))
    other.set_parameters({"policy": {first: torch.full_like(stored["policy"][first], 7.0)}}, exact_match=False)
    assert (other.policy.state_dict()[first] == 7).all()
    model.save(tmp_path / "model")
    other.set_parameters(str(tmp_path / "model.zip"), exact_match=True, device="cpu")
    assert same(other.get_parameters(), model.get_parameters())


def test_parameters_of_a_model_with_other_parts_are_refused(tmp_path: Path) -> None:
    model, other = make_model(), make_model(router_lr=1e-4, normalize_returns=True, ent_coef=0.1)
    model.save(tmp_path / "model")
    other.save(tmp_path / "other")
    given = model.get_parameters()
    for exact in (True, False):
        told = "`normalize_returns` must stay False, " if exact else "`ent_coef` must stay learned, "
        for source in (str(tmp_path / "model"), given):
            with pytest.raises(RuntimeError, match=told):
                other.set_parameters(source, exact_match=exact)
        with pytest.raises(RuntimeError, match="`normalize_returns` must stay True, "):
            model.set_parameters(str(tmp_path / "other"), exact_match=exact)
    for name in ("actor.optimizer", "critic.optimizer"):
        with pytest.raises(RuntimeError, match="`router_lr` must stay None, "):
            other.set_parameters({name: given[name]}, exact_match=False)
    other.set_parameters({"policy": given["policy"]}, exact_match=False)  # the parts that are not given stay
    assert same(other.get_parameters()["policy"], given["policy"])


@pytest.mark.parametrize("policy", ["D2RPolicy", "PaCoPolicy", "BRCPolicy"])
def test_deepcopy(policy: str) -> None:
    model = make_model(policy)
    model.learn(60)
    copied = copy.deepcopy(model.policy)
    before = copy.deepcopy(copied.state_dict())
    assert same(before, model.policy.state_dict())
    model.learn(20, reset_num_timesteps=False)
    assert same(before, copied.state_dict())  # neither weights nor optimizers are shared
    mine = {id(p) for p in copied.parameters()}
    for optimizer in (copied.actor.optimizer, copied.critic.optimizer, copied.shared_optimizer):
        assert optimizer is None or {id(p) for group in optimizer.param_groups for p in group["params"]} <= mine
    assert copied.predict(observations())[0].shape == (20, 2)


def test_an_on_policy_policy_is_saved_with_its_optimizer(tmp_path: Path) -> None:
    kwargs = {"num_tasks": 4, "network_kwargs": TINY, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    PPO(MultiTaskActorCriticPolicy, points(), policy_kwargs=kwargs, device="cpu").policy.save(str(tmp_path / "policy"))
    loaded = MultiTaskActorCriticPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert type(loaded.optimizer) is torch.optim.SGD


@pytest.mark.parametrize("policy", ["MlpPolicy", "PaCoPolicy", "D2RPolicy"])
def test_actor_and_critic_are_saved_alone(policy: str, tmp_path: Path) -> None:
    model = make_plain(policy).learn(60)
    actor, critic = model.actor, model.critic
    actor.save(tmp_path / "actor.pth")
    critic.save(tmp_path / "critic.pth")
    best, _ = actor.predict(observations(), deterministic=True)
    seen = torch.as_tensor(observations())
    values = critic(seen, torch.zeros(len(seen), 2))
    expected = copy.deepcopy(critic.state_dict())
    del model

    loaded = type(actor).load(tmp_path / "actor.pth", device="cpu")
    assert np.array_equal(loaded.predict(observations(), deterministic=True)[0], best)
    with pytest.raises(ValueError, match="the observation must end with the one-hot of one of 4 tasks"):
        loaded.predict(np.zeros(8, np.float32))
    judge = type(critic).load(tmp_path / "critic.pth", device="cpu")
    assert torch.equal(judge(seen, torch.zeros(len(seen), 2)), values)
    assert all(torch.equal(value, expected[name]) for name, value in judge.state_dict().items())
    shared = [id(part) for net in judge.nets for part in getattr(net, "shared", {}).values()]
    assert len(set(shared)) <= 1  # PaCo's critics still share their table


def test_parameters_of_a_policy_are_replaced_and_saved(tmp_path: Path) -> None:
    model = make_plain("D2RPolicy")
    params: dict[str, Tensor] = {name: torch.rand_like(value) for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(params)
    model.policy.save(tmp_path / "policy.pkl")
    again = type(model.policy).load(tmp_path / "policy.pkl")
    for name, value in again.state_dict().items():
        assert torch.equal(value, params[name])


def test_loading_with_other_options() -> None:
    model, file = like_sac(learning_starts=5).learn(30), io.BytesIO()
    model.save(file, exclude=["learning_starts"])
    file.seek(0)
    loaded = MultiTaskSAC.load(file, pendulum(), "cpu", custom_objects={"learning_rate": 1e-2}, gradient_steps=2)
    assert (loaded.learning_rate, loaded.gradient_steps) == (1e-2, 2)
    assert loaded.learning_starts == 100  # SB3's default again
    loaded.learn(110)
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 1e-2
    file.seek(0)
    with pytest.raises(ValueError, match="specified policy kwargs do not equal"):
        MultiTaskSAC.load(file, pendulum(), "cpu", policy_kwargs={"net_arch": [32]})


def saved(model: MultiTaskSAC) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


def test_loading_with_other_rates() -> None:
    file = saved(make_model("PaCoPolicy", ent_coef_lr=1e-2, shared_lr=1e-2, learning_rate=1e-4).learn(60))
    rates = {"ent_coef_lr": 1e-5, "shared_lr": 2e-5, "ent_coef_beta1": 0.5}
    loaded = MultiTaskSAC.load(file, points(), "cpu", **rates).learn(60)
    assert loaded.ent_coef_optimizer is not None
    assert loaded.policy.shared_optimizer is not None
    (coefficients,), (shared,) = loaded.ent_coef_optimizer.param_groups, loaded.policy.shared_optimizer.param_groups
    assert (coefficients["lr"], coefficients["betas"], shared["lr"]) == (1e-5, (0.5, 0.999), 2e-5)
    file.seek(0)
    loaded = MultiTaskSAC.load(file, points(), "cpu", ent_coef_lr=None, shared_lr=None).learn(60)
    assert loaded.ent_coef_optimizer.param_groups[0]["lr"] == 1e-4
    assert loaded.policy.shared_optimizer.param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize("options", [{"ent_coef": 0.5}, {"custom_objects": {"ent_coef": 0.5}}], ids=str)
def test_loading_with_another_coefficient(options: dict[str, Any]) -> None:
    file = saved(make_plain(ent_coef=0.1))
    assert MultiTaskSAC.load(file, points(), "cpu").entropy_coefficients.tolist() == pytest.approx([0.1] * 4)
    file.seek(0)
    assert MultiTaskSAC.load(file, points(), "cpu", **options).entropy_coefficients.tolist() == [0.5] * 4


def test_a_coefficient_that_a_callback_changed_is_saved(tmp_path: Path) -> None:
    model = make_plain(ent_coef=0.1)
    model.ent_coef_tensor.fill_(0.25)
    model.save_checkpoint(tmp_path / "there")
    for loaded in (
        MultiTaskSAC.load(saved(model), points(), "cpu"),
        MultiTaskSAC.load_checkpoint(tmp_path / "there", points(), "cpu"),
    ):
        assert loaded.entropy_coefficients.tolist() == [0.25] * 4


@pytest.mark.parametrize("as_object", [False, True])
def test_options_that_are_given_to_load_count_though_the_file_has_the_same(as_object: bool) -> None:
    options = {"ent_coef": 0.1, "route_temperature": 3.0}
    model = make_model(**options)
    model.ent_coef_tensor.fill_(0.25)
    model.actor.temperature.fill_(5.0)
    loaded = MultiTaskSAC.load(saved(model), points(), "cpu", **({"custom_objects": options} if as_object else options))
    assert loaded.entropy_coefficients.tolist() == pytest.approx([0.1] * 4)
    assert loaded.actor.temperature.tolist() == [3.0] * 4


@pytest.mark.parametrize("lag", [False, True])
def test_loading_with_another_temperature(lag: bool) -> None:
    model = make_model(lag_rollouts=lag).learn(60)
    file = saved(model)
    assert same(MultiTaskSAC.load(file, points(), "cpu").get_parameters(), model.get_parameters())
    changed = {"route_temperature": 7.0}
    for places, options in (((), changed), ((), {"custom_objects": changed}), ((changed,), {})):
        file.seek(0)
        loaded = MultiTaskSAC.load(file, points(), "cpu", *places, **options)
        for actor in [loaded.actor, *([loaded.rollout_actor] if lag else [])]:
            assert actor.temperature.tolist() == [7.0] * 4


DISTRIBUTIONS = {"critic_loss": "categorical"}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"normalize_returns": True}, "`normalize_returns` must stay False, as .*, got True; make another"),
        ({"normalize_returns": True}, {"normalize_returns": False}, "`normalize_returns` must stay True, .* got False"),
        ({}, {"lag_rollouts": True}, "`lag_rollouts` must stay False, .* got True"),
        ({"lag_rollouts": True}, {"lag_rollouts": False}, "`lag_rollouts` must stay True, .* got False"),
        ({}, {"router_lr": 1e-4}, "`router_lr` must stay None, .* got 0.0001"),
        ({"router_lr": 1e-4}, {"router_lr": None}, "`router_lr` must stay a rate, .* got None"),
        ({}, {"ent_coef": 0.1}, "`ent_coef` must stay learned, .* got 0.1"),
        ({"ent_coef": 0.1}, {"ent_coef": "auto"}, "`ent_coef` must stay a number, .* got 'auto'"),
        ({}, {"shared_ent_coef": True}, "`shared_ent_coef` must stay False, .* got True"),
        ({"shared_ent_coef": True}, {"shared_ent_coef": False}, "`shared_ent_coef` must stay True, .* got False"),
        (DISTRIBUTIONS, {"bins": 51}, "`bins` must stay 101, with which the model was saved, got 51; make another"),
        (DISTRIBUTIONS, {"value_range": (-20, 20)}, r"`value_range` must stay \(-10.0, 10.0\), .* got \(-20, 20\)"),
        (DISTRIBUTIONS, {"critic_loss": "mse"}, "`critic_loss` must stay 'categorical', .* got 'mse'"),
        ({}, DISTRIBUTIONS, "`critic_loss` must stay 'mse', .* got 'categorical'"),
        ({}, {"bins": 51}, "`bins` needs critics that predict distributions"),
        ({}, {"use_sde": True}, "`use_sde` must be False: state-dependent exploration"),
    ],
    ids=str,
)
def test_loading_with_options_that_must_stay(before: dict[str, Any], after: dict[str, Any], told: str) -> None:
    file = saved(make_model(**before))
    with pytest.raises((ValueError, RuntimeError), match=f"^{told}"):
        MultiTaskSAC.load(file, points(), "cpu", **after)


def test_a_model_that_was_saved_in_a_step_can_be_checkpointed(tmp_path: Path) -> None:
    model, files = make_plain(), []
    model.learn(20, callback=lambda *_: not files.append(saved(model)))
    loaded = MultiTaskSAC.load(files[-1], points(), "cpu")
    loaded.save_checkpoint(tmp_path / "there")
    again = MultiTaskSAC.load_checkpoint(tmp_path / "there", points(), "cpu")
    assert all(map(torch.equal, again.policy.state_dict().values(), loaded.policy.state_dict().values()))


def test_what_waits_in_an_overlapped_model_is_not_lost(tmp_path: Path) -> None:
    model = OverlappedSAC("MlpPolicy", points(), learning_starts=8, device="cpu").learn(40)
    model.save_checkpoint(tmp_path / "there")
    with pytest.raises(ValueError, match="is of an OverlappedSAC; load it by"):
        MultiTaskSAC.load_checkpoint(tmp_path / "there", points())
    assert OverlappedSAC.load_checkpoint(tmp_path / "there", points()).updates_due == model.updates_due


def test_an_overlapped_model_learns_again_from_an_empty_buffer() -> None:
    model = OverlappedSAC("MlpPolicy", points(), learning_starts=8, batch_size=16, device="cpu").learn(40)
    loaded = OverlappedSAC.load(saved(model), points(), "cpu")  # without the transitions
    model.replay_buffer.reset()
    for one in (model, loaded):
        assert one.updates_due == 1
        one.learn(20, reset_num_timesteps=False)
        assert (one._n_updates, one.updates_due) == (7 + 4, 1)  # the update that was due had nothing to learn from


def test_an_overlapped_model_can_go_on_without_overlap(tmp_path: Path) -> None:
    file = saved(model := OverlappedSAC("MlpPolicy", points(), learning_starts=8, device="cpu").learn(40))
    assert OverlappedSAC.load(file, points(), "cpu").updates_due == model.updates_due == 1
    file.seek(0)
    with pytest.warns(UserWarning, match=r"the updates that were due \(1\) are dropped, .* OverlappedSAC.load keeps"):
        loaded = MultiTaskSAC.load(file, points(), "cpu")
    loaded.learn(20).save_checkpoint(tmp_path / "there")
    assert not hasattr(MultiTaskSAC.load_checkpoint(tmp_path / "there", points(), "cpu"), "updates_due")


@pytest.mark.parametrize(
    ("made", "change", "told"),
    [
        ({}, {"lag_rollouts": True}, "`lag_rollouts` must stay False, with which the model was made, got True; make a"),
        ({}, {"normalize_returns": True}, "`normalize_returns` must stay False, .* got True; make another model"),
        ({"normalize_returns": True}, {"normalize_returns": False}, "`normalize_returns` must stay True, .* got False"),
        ({"normalize_returns": True}, {"gamma": 0.5}, "`gamma` must stay 0.99, .* or load this one with another `ga"),
        ({}, {"router_lr": 1e-6}, "`router_lr` must stay None, .* got 1e-06; make another model"),
        ({"router_lr": 1e-6}, {"router_lr": None}, "`router_lr` must stay a rate, .* got None; make another model"),
        ({}, {"ent_coef": 0.1}, "`ent_coef` must stay learned, .* got 0.1; make another model"),
        (
            {"ent_coef": 0.1},
            {"ent_coef": 0.2},
            "`ent_coef` must stay 0.1, .* got 0.2; .* or fill `model.ent_coef_tensor`, or load a file of `save` with",
        ),
        ({}, {"ent_coef_beta1": 0.5}, "`ent_coef_beta1` must stay 0.9, .* got 0.5; make another model"),
        ({}, {"replay_buffer_kwargs": {}}, "`replay_buffer_kwargs` must stay {'num_tasks': 4}, .* got {}; make"),
        ({}, {"compile_networks": True}, "`compile_networks` must stay False, .* got True; make another model"),
        ({}, {"shared_ent_coef": True}, "`shared_ent_coef` must stay False, .* got True; make another model"),
        ({}, DISTRIBUTIONS, "`critic_loss` must stay 'mse', .* got 'categorical'; make another model"),
        (DISTRIBUTIONS, {"bins": 51}, "`bins` must stay 101, .* got 51; make another model"),
        (DISTRIBUTIONS, {"value_range": (-9, 9)}, r"`value_range` must stay \(-10.0, 10.0\), .* got \(-9, 9\); make"),
    ],
    ids=str,
)
def test_options_by_which_parts_were_made_stay(made: Any, change: Any, told: str, tmp_path: Path) -> None:
    model = make_model(**made).learn(44)
    vars(model).update(change)
    before = copy.deepcopy(model.get_parameters())
    with pytest.raises(ValueError, match=f"^{told}"):
        model.train(1)
    assert same(model.get_parameters(), before)
    with pytest.raises(ValueError, match=f"^{told}"):
        model.save_checkpoint(tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_options_that_change_in_a_run_take_effect() -> None:
    model = make_model(router_lr=1e-6).learn(44)
    model.router_lr = 1e-5
    model.learn(4, reset_num_timesteps=False)
    assert [group["lr"] for group in model.actor.optimizer.param_groups] == [1e-3, 1e-5]


@pytest.mark.parametrize(("target", "expected"), [("auto", -2.0), ("auto_0.5", -1.0)])
def test_a_target_entropy_that_is_set_later_is_read(target: str, expected: float) -> None:
    model = make_model().learn(44)
    model.target_entropy = target
    assert model._coefficients().target_entropy == expected
    model.train(1)


@pytest.mark.parametrize("all_routers", [False, True])
def test_optimizers_with_groups_of_their_own_are_no_routers(all_routers: bool, tmp_path: Path) -> None:
    model = make_model().learn(40)
    (group,) = model.actor.optimizer.param_groups
    routers = {*router_parameters(model.actor.net)}
    rest = [one for one in group["params"][1:] if one in routers or not all_routers]
    group["params"] = [one for one in group["params"] if all(one is not other for other in rest)]
    model.actor.optimizer.add_param_group({**group, "params": rest, "weight_decay": 0.1})
    model.learn(4, reset_num_timesteps=False)
    model.set_parameters(model.get_parameters())
    model.save_checkpoint(tmp_path / "there")
    assert (tmp_path / "there").is_dir()


def test_the_rate_of_routers_is_that_of_their_group_when_more_were_added() -> None:
    model = make_model(router_lr=1e-5).learn(40)
    optimizer = model.actor.optimizer
    rest = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [rest]})
    model.learn(4, reset_num_timesteps=False)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-5, 1e-3]


def test_a_checkpoint_restores_a_buffer_of_another_size_than_the_option(tmp_path: Path) -> None:
    model = make_model().learn(40)
    other = make_model(buffer_size=400).learn(40)
    model.replay_buffer = other.replay_buffer
    model.learn(4, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "there")
    again = MultiTaskSAC.load_checkpoint(tmp_path / "there", model.get_env(), device="cpu")
    assert again.replay_buffer is not None
    assert again.replay_buffer.capacity == 100
    again.learn(4, reset_num_timesteps=False)


def test_a_target_entropy_that_a_callback_computes_may_be_a_tensor() -> None:
    model = make_model().learn(44)
    model.target_entropy = torch.tensor(-1.5)
    assert model._coefficients().target_entropy == -1.5


def test_graphs_that_are_turned_off_stay_off(tmp_path: Path) -> None:
    model = make_plain().learn(40)
    model.capture = False
    model.save_checkpoint(tmp_path / "there")
    assert not MultiTaskSAC.load_checkpoint(tmp_path / "there", points()).capture


@pytest.mark.parametrize("as_file", [False, True])
def test_load_refuses_keywords_that_have_no_effect(as_file: bool, tmp_path: Path) -> None:
    make_plain().save(tmp_path / "model")
    file: Any = io.BytesIO((tmp_path / "model.zip").read_bytes()) if as_file else str(tmp_path / "model")
    for wrong, hint in (("gama", "; did you mean `gamma`?"), ("quux_zyx", ".")):
        message = f"`{wrong}` is not a keyword of MultiTaskSAC and not an attribute of the model{hint}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            MultiTaskSAC.load(file, env=points(), device="cpu", gamma=0.5, **{wrong: 5.0})
    with pytest.raises(TypeError, match="`train` is not a keyword of MultiTaskSAC"):
        MultiTaskSAC.load(file, env=points(), device="cpu", train=3)
    for given in ({"policy": "D2RPolicy"}, {"n_envs": 3}):
        with pytest.raises(TypeError, match=f"^`{next(iter(given))}` must not be given to load, got "):
            MultiTaskSAC.load(file, env=points(), device="cpu", **given)
    right: dict[str, Any] = {"custom_objects": None, "verbose": 0, "tensorboard_log": None, "capture": False}
    right["replay_buffer"] = make_plain().replay_buffer
    loaded = MultiTaskSAC.load(
        file, env=points(), device="cpu", tau=0.5, _stats_window_size=3, num_timesteps=7, **right
    )
    assert (loaded.tau, loaded._stats_window_size, loaded.num_timesteps, loaded.capture) == (0.5, 3, 7, False)
    loaded = MultiTaskSAC.load(file, env=points(), device="cpu", stats_window_size=5)
    assert loaded._stats_window_size == loaded.report.returns[0].maxlen == 5


def test_load_takes_the_distributions_of_the_file() -> None:
    file = saved(make_model(**DISTRIBUTIONS))
    same_again = {"critic_loss": "categorical", "bins": 101, "value_range": (-10, 10)}
    assert MultiTaskSAC.load(file, points(), "cpu", **same_again).value_range == (-10, 10)


def test_the_constructor_names_a_misspelt_keyword() -> None:
    with pytest.raises(TypeError, match=r"^`gama` is not a keyword of MultiTaskSAC; did you mean `gamma`\?$"):
        make_plain(gama=5.0)
    with pytest.raises(
        TypeError, match=r"^`task_weight` is not a keyword of MultiTaskSAC; did you mean `task_weights`"
    ):
        make_plain(task_weight="none")
