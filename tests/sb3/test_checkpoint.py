"""A run that is stopped or moved goes on as if nothing had happened."""

import contextlib
import copy
import os
import random
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from checkpoint_cases import (
    ENVIRONMENTS,
    FACTORY,
    NETWORKS,
    OPTIMIZER,
    OwnPolicy,
    WithoutState,
    assert_same,
    decay,
    everything,
    load,
    make_model,
    makers,
    steps_in,
    tiny_network,
    wrapped,
)
from sac_models import Changing, assert_physical
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from dynroute_sb3 import (
    CheckpointDirectory,
    DemonstrationBuffer,
    GrowOnDemand,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    OverlappedSAC,
    PointTask,
    RouteReplayBuffer,
    latest_checkpoint,
)
from dynroute_sb3.points import GOALS


def scramble() -> None:
    """Leaves the generators as another process would find them."""
    random.seed(99)
    np.random.seed(98)
    torch.manual_seed(97)


RELEASED = {
    "train_freq": (5, "step"),
    "gradient_steps": 5,
    "ent_coef_lr": 1e-4,
    "max_ent_coef": 1.0,
    "max_task_loss": 3e3,
    "max_grad_norm": 1.0,
    "joint_update": True,
    "max_ent_coef_grad_norm": 1.0,
    "mask_rule": "total",
    "log_prob_epsilon": 1e-6,
    "warmup_actions": "policy",
    "lag_rollouts": True,
}


ADAMW = {"optimizer_class": torch.optim.AdamW}


BRC = {
    "critic_loss": "categorical",
    "bins": 11,
    "value_range": (-5.0, 5.0),
    "q_target": "mean",
    "normalize_returns": True,
    "shared_ent_coef": True,
    "ent_coef": "auto_0.1",
    "ent_coef_beta1": 0.5,
    "target_entropy": "auto_0.5",
    "gradient_steps": 2,
    "policy_kwargs": {**ADAMW, "log_std": "tanh", "log_std_range": (-10, 2)},
}


RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # environments, options, what is given to load_checkpoint because it cannot be stored
    **{name: (name, {}, {}) for name in ENVIRONMENTS},
    "paco": ("dummy", {"policy": "PaCoPolicy"}, {}),
    "mt-sac": ("dummy", {"policy": "MlpPolicy"}, {}),
    "brc": ("dummy", {"policy": "BRCPolicy", "policy_kwargs": {"critic_kwargs": {"width": 16, "blocks": 2}}}, {}),
    "scalemoe": ("dummy", {"policy": "ScaleMoEPolicy"}, {}),
    "gates with a bias": (
        "dummy",
        {"policy": "ScaleMoEPolicy", "policy_kwargs": {"critic_kwargs": {"gate": "balanced-2"}}},
        {},
    ),
    "brc jointly in 16 bits": ("dummy", {"policy": "BRCPolicy", "joint_update": True, "precision": "bf16"}, {}),
    "several updates": ("dummy", {"train_freq": (5, "step"), "gradient_steps": 3, "max_grad_norm": 1.0}, {}),
    "fixed coefficient": ("dummy", {"ent_coef": 0.1, "task_weights": "alpha-sum"}, {}),
    "coefficient with a rate": ("dummy", {"ent_coef_lr": 1e-2, "max_ent_coef": 0.9, "max_task_loss": 1e3}, {}),
    "no seed": ("dummy", {"seed": None}, {}),
    "schedule": ("dummy", {"learning_rate": decay}, {"learning_rate": decay}),
    "factory": ("dummy", {"policy": "MultiTaskPolicy", "policy_kwargs": FACTORY}, {"network": tiny_network}),
    "optimizer": ("dummy", {"policy_kwargs": OPTIMIZER}, {"optimizer_class": torch.optim.RMSprop}),
    "policy": ("dummy", {"policy": OwnPolicy}, {"policy": OwnPolicy}),
    "products in 16 bits": ("dummy", {"precision": "bf16"}, {}),
    "as released": ("dummy", RELEASED, {}),
    "as released for PaCo": ("dummy", {**RELEASED, "policy": "PaCoPolicy", "shared_lr": 1e-4}, {}),
    "as in BRC": ("dummy", BRC, {}),
    "as in BRC, over all tasks": (
        "subprocesses",
        {**BRC, "batch_size": 7, "replay_buffer_kwargs": {"balanced": False}},
        {},
    ),
    "AdamW, handed in": ("dummy", {"policy_kwargs": ADAMW}, ADAMW),
    "coefficient first": ("dummy", {"joint_update": True, "ent_coef_after_step": True}, {}),
    "slow routers": ("dummy", {"router_lr": 1e-5, "learning_rate": 1e-2}, {}),
    "several steps": ("dummy", {"n_steps": 3}, {}),
    "still warming up": ("dummy", {"learning_starts": 78}, {}),
}


@pytest.mark.parametrize(("environments", "options", "replace"), RUNS.values(), ids=RUNS)
def test_going_on_is_exact(environments: str, options: dict[str, Any], replace: dict[str, Any], tmp_path: Path) -> None:
    with contextlib.closing(ENVIRONMENTS[environments]()) as env:
        # The checkpoint falls into an episode of 20 steps; what follows is an end of it, and the buffer wraps around.
        before_end, after = 36 * env.num_envs, 6 * env.num_envs
        sizes = {"learning_starts": before_end - 6, "buffer_size": before_end + 4 * env.num_envs}
        model = make_model(env, **{**sizes, **options}).learn(before_end)
        before = everything(model)
        model.save_checkpoint(tmp_path / "there")
        assert_same(everything(model), before)  # writing changes nothing
        expected = everything(model.learn(after, reset_num_timesteps=False))
    assert model._n_updates > 0
    scramble()
    with contextlib.closing(ENVIRONMENTS[environments]()) as env:
        resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", env, "cpu", replace)
        assert_same(everything(resumed), before)
        assert_same(everything(resumed.learn(after, reset_num_timesteps=False)), expected)


@pytest.mark.parametrize("seed", [0, None])
def test_a_model_that_has_not_learned_yet(seed: int | None, tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"](), seed=seed)
    model.save_checkpoint(tmp_path / "there")
    expected = everything(model.learn(40))
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", ENVIRONMENTS["dummy"](), "cpu")
    assert resumed.num_timesteps == 0
    assert_same(everything(resumed.learn(40)), expected)
    assert resumed._n_updates > 0


def test_environments_that_cannot_tell_their_state_start_anew(tmp_path: Path) -> None:
    model = make_model(DummyVecEnv(makers(WithoutState))).learn(54)
    first = model.replay_buffer.gather(np.arange(2), np.zeros(2, dtype=int)).observations
    with pytest.warns(UserWarning, match="a checkpoint cannot hold the states of environments without `get_state`"):
        model.save_checkpoint(tmp_path / "there")
    parameters = copy.deepcopy(model.get_parameters())
    env = DummyVecEnv(makers(WithoutState))
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", env, "cpu")
    assert resumed._last_obs is None
    assert_same(resumed.get_parameters(), parameters)
    resumed.learn(2, reset_num_timesteps=False)
    assert resumed.num_timesteps == 56
    buffer = resumed.replay_buffer
    assert buffer is not None
    again = buffer.gather(np.arange(2), buffer.positions - 1).observations
    # A run that is stopped often must not see the episodes of its first seed again and again.
    assert not torch.equal(again, first)


def test_statistics_of_environments_that_cannot_tell_their_state(tmp_path: Path) -> None:
    def make() -> MultiTaskVecNormalize:
        return MultiTaskVecNormalize(DummyVecEnv(makers(WithoutState)))

    env, fresh = make(), make()
    with pytest.warns(UserWarning, match="a checkpoint cannot hold the states of environments without `get_state`"):
        make_model(env).learn(54).save_checkpoint(tmp_path / "there")
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", fresh, "cpu")
    assert resumed._last_obs is None
    for name in ("obs_rms", "ret_rms"):
        assert_same(vars(getattr(fresh, name)), vars(getattr(env, name)))
    more = VecMonitor(make())  # which wrappers there are beside it does not matter
    assert MultiTaskSAC.load_checkpoint(tmp_path / "there", more, "cpu")._last_obs is None
    assert_same(vars(more.venv.obs_rms), vars(env.obs_rms))
    with pytest.raises(ValueError, match=r"`env` must normalize as it did .*, by 1 VecNormalize, got 0\."):
        MultiTaskSAC.load_checkpoint(tmp_path / "there", DummyVecEnv(makers(WithoutState)), "cpu")


def test_numbers_that_are_floats_or_without_a_limit(tmp_path: Path) -> None:
    limits = ("max_grad_norm", "max_task_loss", "max_ent_coef", "max_ent_coef_grad_norm")
    options = {**dict.fromkeys(limits, float("inf")), "learning_starts": 20.0}
    model = make_model(ENVIRONMENTS["dummy"](), **options).learn(54.0)
    plain = make_model(ENVIRONMENTS["dummy"]()).learn(54)
    assert_same(model.get_parameters()["policy"], plain.get_parameters()["policy"])
    model.save_checkpoint(tmp_path / "there")
    resumed = load(tmp_path / "there")
    assert {name: getattr(resumed, name) for name in options} == options
    assert_same(everything(resumed), everything(model))


def test_wrappers_that_count_steps(tmp_path: Path) -> None:
    # gymnasium.make puts such a wrapper around most environments; it wants to be reset before the first step.
    def make() -> VecEnv:
        return DummyVecEnv(wrapped(lambda env: gym.wrappers.TimeLimit(env, 15)))

    make_model(make()).learn(54).save_checkpoint(tmp_path / "there")
    model = MultiTaskSAC.load_checkpoint(tmp_path / "there", make(), "cpu").learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 94


class Tired(gym.Wrapper[Any, Any, Any, Any]):
    """Remembers how often it was called."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.calls, self.name = 0, "tired"


class Awake(Tired):
    """Tells what it remembers."""

    def get_state(self) -> Any:
        return {"calls": self.calls, "inside": self.unwrapped.get_state()}

    def set_state(self, state: Any) -> None:
        self.calls = state["calls"]
        self.unwrapped.set_state(state["inside"])


class Counting(VecEnvWrapper):
    """Remembers how often it was called."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.calls, self.random = 0, np.random.default_rng(0)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class Patient(gym.wrappers.TimeLimit):
    """Remembers more than the wrapper it is derived from."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env, 15)
        self.calls = 0


class Watching(VecMonitor):
    """Remembers more than the wrapper it is derived from."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.calls = 0


@pytest.mark.parametrize("environments", [DummyVecEnv, SubprocVecEnv])
def test_a_wrapper_that_cannot_tell_what_it_remembers_is_named(environments: Any, tmp_path: Path) -> None:
    cases = (
        ("Tired", Tired, lambda env: env),
        ("Counting", Monitor, Counting),
        ("Patient", Patient, lambda env: env),
        ("Watching", gym.wrappers.OrderEnforcing, Watching),
    )
    for name, kind, wrap in cases:
        attributes = "calls, random" if name == "Counting" else "calls"
        told = f"a checkpoint does not hold {attributes} of the wrapper {name}: if they change while it runs, give"
        with contextlib.closing(wrap(environments(wrapped(kind)))) as env, pytest.warns(UserWarning, match=told):
            make_model(env).save_checkpoint(tmp_path / name)
    for i, kind in enumerate((Awake, lambda env: Awake(Tired(env)))):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            make_model(DummyVecEnv(wrapped(kind))).save_checkpoint(tmp_path / f"{i}")
        assert warned == []


class Bonus(MultiTaskSAC):
    """Has an attribute that MultiTaskSAC does not have."""

    def __init__(self, *arguments: Any, bonus: float = 0.0, **keywords: Any) -> None:
        self.bonus = bonus
        super().__init__(*arguments, **keywords)


class Unneeded(Bonus):
    """Says that it is not needed."""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "bonus"]


class Plain(OverlappedSAC):
    """Has no attribute of its own."""


def test_attributes_of_a_subclass_are_named(tmp_path: Path) -> None:
    options = {"policy_kwargs": {"network_kwargs": NETWORKS["MlpPolicy"]}, "device": "cpu"}
    model = Bonus("MlpPolicy", ENVIRONMENTS["dummy"](), bonus=5.0, **options)
    told = r"a checkpoint does not hold bonus of the class Bonus: set them after load_checkpoint\(\), or name them in"
    with pytest.warns(UserWarning, match=told):
        model.save_checkpoint(tmp_path / "there")
    assert Bonus.load_checkpoint(tmp_path / "there", ENVIRONMENTS["dummy"](), "cpu").bonus == 0.0
    networks = {"policy_kwargs": {"network_kwargs": NETWORKS["D2RPolicy"]}, "device": "cpu"}
    more = {"learning_starts": 8, "batch_size": 8, "normalize_returns": True, **networks}
    growing = GrowOnDemand(16, 4, measure=lambda model: [0.0, 0.0])
    for kind, callback in ((Unneeded, growing), (Plain, None)):
        model = kind("D2RPolicy", ENVIRONMENTS["dummy"](), lag_rollouts=callback is None, **more).learn(40, callback)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model.save_checkpoint(tmp_path / kind.__name__)
        assert warned == []


class Ranked(RouteReplayBuffer):
    """Has attributes that RouteReplayBuffer does not have."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.ranks = np.zeros((self.num_tasks, self.capacity))

    def add(self, *arguments: Any, **keywords: Any) -> None:
        self.ranks += 1
        super().add(*arguments, **keywords)


class Keeping(Ranked):
    """Stores them."""

    def save(self, folder: Any) -> dict[str, Any]:
        return {**super().save(folder), "ranks": self.ranks}

    def load(self, folder: Any, state: dict[str, Any]) -> None:
        super().load(folder, state)
        self.ranks = state["ranks"]


def test_attributes_of_a_buffer_of_ones_own_are_named(tmp_path: Path) -> None:
    def make(kind: type[RouteReplayBuffer]) -> MultiTaskSAC:
        return make_model(ENVIRONMENTS["dummy"](), replay_buffer_class=kind).learn(20)

    told = "^ranks of the replay buffer Ranked will not be stored: if they change while it is used, write and read"
    model = make(Ranked)
    with pytest.warns(UserWarning, match=told):
        model.save_checkpoint(tmp_path / "Ranked")
    with pytest.warns(UserWarning, match=told):
        model.save_replay_buffer(tmp_path / "buffer")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        make(Keeping).save_checkpoint(tmp_path / "Keeping")
        make(type("Same", (RouteReplayBuffer,), {})).save_checkpoint(tmp_path / "Same")
    assert warned == []
    assert (load(tmp_path / "Keeping", replay_buffer_class=Keeping).replay_buffer.ranks == 10).all()


def test_predicting_without_environments(tmp_path: Path) -> None:
    env = ENVIRONMENTS["dummy"]()
    model = make_model(env).learn(54)
    model.save_checkpoint(tmp_path / "there")
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", device="cpu")
    assert resumed.get_env() is None
    observations = env.reset()
    expected = model.predict(observations, deterministic=True)[0]
    assert expected.shape == (2, 2)
    assert_same(resumed.predict(observations, deterministic=True)[0], expected)
    told = r"`replay_buffer` must be there to learn or .*, got None, since the model was loaded from a checkpoint with"
    with pytest.raises(ValueError, match=told):
        resumed.train(1)
    resumed.set_env(env)
    with pytest.raises(ValueError, match=told):
        resumed.learn(20)
    with pytest.raises(ValueError, match=told):
        resumed.save_checkpoint(tmp_path / "again")
    model.save_replay_buffer(tmp_path / "buffer")
    resumed.load_replay_buffer(tmp_path / "buffer")
    resumed.learn(20, reset_num_timesteps=False)
    assert resumed.replay_buffer.size() == 74


@pytest.mark.parametrize("kind", [str, Path])
def test_memory_map(kind: type, tmp_path: Path) -> None:
    # The folder is an option like others, in both of the types that it may have.
    model = make_model(ENVIRONMENTS["dummy"](), replay_buffer_kwargs={"memory_map": kind(tmp_path)}).learn(54)
    model.save_checkpoint(tmp_path / "there")
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", ENVIRONMENTS["dummy"](), "cpu")
    assert isinstance(resumed.replay_buffer.rows, np.memmap)
    assert_same(everything(resumed), everything(model))


class Stop(BaseCallback):
    """Stops after some steps, in the middle of one."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.model.num_timesteps < self.steps


@pytest.mark.parametrize(
    ("keep", "every", "expected"),
    [(1, 20, {"step_70"}), (2, 20, {"step_60", "step_70"}), (9, 30, {"step_30", "step_60", "step_70"})],
)
def test_checkpoint_directory(
    keep: int, every: int, expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "not" / "there yet"
    callback = CheckpointDirectory(every, str(folder), keep=keep, verbose=int(keep == 1))
    model = make_model(ENVIRONMENTS["dummy"](), learning_starts=100).learn(70, callback=callback)
    assert steps_in(folder) == expected
    told = [f"checkpoint at {steps} steps in {folder}" for steps in (20, 40, 60, 70)]
    assert capsys.readouterr().out.splitlines() == (told if keep == 1 else [])
    # Learning again goes on counting, and writes nothing where there is nothing new.
    model.learn(0, callback=callback, reset_num_timesteps=False)
    assert steps_in(folder) == expected
    model.learn(every, callback=callback, reset_num_timesteps=False)
    assert f"step_{70 + every}" in steps_in(folder)
    assert latest_checkpoint(folder) == folder / f"step_{70 + every}"


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    alive = f".step_8.{os.getpid()}.part"
    for name in (".step_4.9999999.part", alive):  # no system has so many processes
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.npy").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("the user's")
    model = make_model(ENVIRONMENTS["dummy"](), learning_starts=100)
    model.learn(20, callback=CheckpointDirectory(20, tmp_path))
    assert steps_in(tmp_path) == {"step_20", "notes.txt", alive}


def test_a_callback_that_stops_leaves_a_whole_step(tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"](), learning_starts=100)
    model.learn(100, callback=CallbackList([CheckpointDirectory(20, tmp_path), Stop(50)]))
    assert steps_in(tmp_path) == {"step_40", "step_50"}
    assert model.replay_buffer.size() == 50
    load(tmp_path / "step_50").learn(10, reset_num_timesteps=False)


def test_latest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for name in ("step_20", "step_100", "step_final", ".step_300.7.part"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_100"  # by number, and not by name
    assert latest_checkpoint(str(tmp_path)) == tmp_path / "step_100"  # as the callback


@pytest.mark.parametrize(("every", "keep", "told"), [(0, 2, "`every`"), (-1, 2, "`every`"), (5, 0, "`keep`")])
def test_options_of_the_callback(every: int, keep: int, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{told} must be at least 1, got {min(every, keep)}."):
        CheckpointDirectory(every, tmp_path, keep=keep)


def test_only_what_is_missing_is_replaced(stored: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`replace` must name what .* could not hold, which is nothing, or .*, got \['gamma'\]"
    ):
        load(stored, gamma=0.5)


def test_a_folder_of_a_later_time_is_refused(tmp_path: Path) -> None:
    make_model(ENVIRONMENTS["dummy"](), learning_starts=100).learn(40, callback=CheckpointDirectory(20, tmp_path))
    fresh = make_model(ENVIRONMENTS["dummy"](), learning_starts=100)
    with pytest.raises(ValueError, match=r"`folder` must not hold later checkpoints, got .*step_40 at 0 steps"):
        fresh.learn(40, callback=CheckpointDirectory(20, tmp_path))


class SaveInStep(BaseCallback):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        self.model.save_checkpoint(self.folder)
        return True


def test_in_the_middle_of_a_step(tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"]())
    with pytest.raises(RuntimeError, match="a checkpoint must not be written between a step of the environments and"):
        model.learn(10, callback=SaveInStep(tmp_path / "there"))
    assert list(tmp_path.iterdir()) == []


def test_after_a_step_that_was_broken_off(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> bool:
        if model.num_timesteps >= 54:
            raise KeyboardInterrupt
        return True

    model = make_model(ENVIRONMENTS["dummy"]())
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=interrupt)
    size = model.replay_buffer.size()
    model.save_checkpoint(tmp_path / "there")
    for one in (model, load(tmp_path / "there")):
        one.learn(20, reset_num_timesteps=False)  # it starts new episodes, so each transition is one step
        assert_physical(one)
        assert one.replay_buffer.size() == size + 20


def test_environments_wrapped_in_another_way(tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["VecMonitor"]()).learn(40)
    model.save_checkpoint(tmp_path / "there")
    for other in ("dummy", "Monitor"):
        with pytest.raises(ValueError, match=r"`env` must be wrapped as it was .*, in \['VecMonitor'\]"):
            load(tmp_path / "there", other)


@pytest.mark.parametrize("environments", [DummyVecEnv, SubprocVecEnv])
def test_environments_in_another_order(environments: Any, tmp_path: Path) -> None:
    with contextlib.closing(environments(wrapped(Monitor))) as env:
        make_model(env).learn(30).save_checkpoint(tmp_path / "there")
    told = r"`env` must have its tasks in the order .*: environment 0 was made for task 0, got one for task 1\."
    with contextlib.closing(environments(wrapped(Monitor)[::-1])) as env, pytest.raises(ValueError, match=told):
        MultiTaskSAC.load_checkpoint(tmp_path / "there", env, "cpu")


def test_environments_that_change_their_tasks_with_each_episode(tmp_path: Path) -> None:
    def make() -> VecEnv:
        return DummyVecEnv([lambda task=task: Changing(PointTask(GOALS[0]), task, 2) for task in (0, 1)])

    model = make_model(make()).learn(50)  # the third episode of each, which is of the other task
    model.save_checkpoint(tmp_path / "there")
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", make(), "cpu")
    assert resumed.env.get_attr("task") == model.env.get_attr("task") == [0, 1]
    assert resumed.learn(10, reset_num_timesteps=False).env.get_attr("task") == [0, 1]


def test_checkpoints_and_noise_of_actions(tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"](), action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))
    with pytest.raises(
        ValueError, match="`action_noise` must be None: checkpoints do not store the state of action noise"
    ):
        model.learn(40, callback=CheckpointDirectory(20, tmp_path))


def test_what_does_not_change_results_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    kwargs = {"replay_buffer_kwargs": {"memory_map": tmp_path / "maps"}}
    make_model(ENVIRONMENTS["dummy"](), **kwargs).learn(40).save_checkpoint(tmp_path / "there")
    (tmp_path / "maps").rmdir()  # as on another machine
    model = load(tmp_path / "there", replay_buffer_kwargs={}, verbose=0)
    assert isinstance(model.learn(40, reset_num_timesteps=False), MultiTaskSAC)
    assert model.replay_buffer.size() == 80


def test_a_buffer_is_moved_with_its_other_options(tmp_path: Path) -> None:
    kwargs = {"balanced": False, "handle_timeout_termination": False, "demonstrations": 2, "demonstration_share": 0.2}
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": kwargs, "batch_size": 10}
    make_model(ENVIRONMENTS["dummy"](), **options).save_checkpoint(tmp_path / "there")
    for place in ({"memory_map": tmp_path}, {"memory_map": tmp_path, **kwargs}):
        model = load(tmp_path / "there", replay_buffer_kwargs=place)
        buffer = model.replay_buffer
        assert isinstance(buffer, DemonstrationBuffer)
        assert isinstance(buffer.rows, np.memmap)
        assert (buffer.balanced, buffer.handle_timeout_termination, buffer.demonstration_share) == (False, False, 0.2)
        assert model.replay_buffer_kwargs == {**kwargs, "memory_map": tmp_path, "num_tasks": 2}
    for changed, told in (
        ({"balanced": True}, r"`balanced` of `replay_buffer_kwargs` must stay False as in .*there, got True; of these"),
        (
            {"demonstration_share": 0.5},
            r"`demonstration_share` of .* must stay 0\.2 as in .*, got 0\.5; .* only memory_map",
        ),
        ({"gamma": 0.5}, r"`gamma` of .* must stay 0\.99 as in .*, got 0\.5; .* the others can be left out"),
    ):
        with pytest.raises(ValueError, match=told):
            load(tmp_path / "there", replay_buffer_kwargs=changed)


def test_a_default_of_a_buffer_may_be_given_when_it_is_moved(tmp_path: Path) -> None:
    make_model(ENVIRONMENTS["dummy"]()).save_checkpoint(tmp_path / "there")
    place = {"memory_map": tmp_path, "balanced": True, "handle_timeout_termination": True}
    assert isinstance(load(tmp_path / "there", replay_buffer_kwargs=place).replay_buffer.rows, np.memmap)
    with pytest.raises(ValueError, match=r"`balanced` of .* must stay True as in .*, got False"):
        load(tmp_path / "there", replay_buffer_kwargs={"balanced": False})


def test_keywords_of_a_buffer_are_compared_with_the_options_of_its_model(tmp_path: Path) -> None:
    make_model(ENVIRONMENTS["dummy"](), n_steps=3, gamma=0.9).save_checkpoint(tmp_path / "there")
    place = {"memory_map": tmp_path, "n_steps": 3, "gamma": 0.9}
    buffer = load(tmp_path / "there", replay_buffer_kwargs=place).replay_buffer
    assert (buffer.n_steps, buffer.gamma) == (3, 0.9)
    for name, value in (("n_steps", 3), ("gamma", 0.9), ("buffer_size", r"\d+")):
        with pytest.raises(ValueError, match=rf"`{name}` of .* must stay {value} as in .*, got 1;"):
            load(tmp_path / "there", replay_buffer_kwargs={name: 1})


def test_a_callback_for_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(
        FileExistsError, match=r"^`folder` must be a folder, or a new name, got .*a file, and .* is a file"
    ):
        CheckpointDirectory(20, tmp_path / "a file")
