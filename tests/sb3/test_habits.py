"""What users of Stable-Baselines3's SAC do out of habit works with MultiTaskSAC, or is answered by a sentence."""

import contextlib
import copy
import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from dynroute import Topology
from dynroute_sb3 import (
    DamagedError,
    DemonstrationBuffer,
    MultiTaskActorCriticPolicy,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    OneHotTask,
    OverlappedSAC,
    PointTask,
    RouteReplayBuffer,
    add_demonstrations,
    point_tasks,
)
from dynroute_sb3.points import GOALS

TASKS = 4
SIZES: dict[str, dict[str, Any]] = {
    "MlpPolicy": {"hidden_sizes": (8,)},
    "PaCoPolicy": {"num_sets": 2, "hidden_sizes": (8,)},
    "D2RPolicy": {"num_modules": 3, "width": 8, "trunk_sizes": (8,), "router_sizes": (8,)},
}
SMALL = {"network_kwargs": SIZES["MlpPolicy"]}


def points(num_tasks: int = TASKS) -> VecEnv:
    return DummyVecEnv(point_tasks(num_tasks))


def make_model(policy: Any = "MlpPolicy", env: Any = None, **options: Any) -> MultiTaskSAC:
    kwargs = options.pop("policy_kwargs", {"network_kwargs": SIZES.get(policy, {})})
    defaults = {"batch_size": 16, "learning_starts": 40, "buffer_size": 2000, "seed": 0}
    env = points() if env is None else env
    return MultiTaskSAC(policy, env, policy_kwargs=kwargs, device="cpu", **{**defaults, **options})


def observations(num_tasks: int = TASKS, each: int = 5) -> np.ndarray:
    states = np.random.default_rng(0).uniform(-1, 1, (num_tasks * each, 4))
    return np.concatenate([states, np.eye(num_tasks).repeat(each, axis=0)], axis=1).astype(np.float32)


# What is logged -------------------------------------------------------------------------------------------------------


class Rows(KVWriter):
    """Keeps the steps at which rows are written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.steps.append(step)

    def close(self) -> None: ...


@pytest.mark.parametrize("steps", [80, 160])
def test_a_later_learn_logs_all_its_rows(steps: int) -> None:
    model, rows = make_model(), Rows()
    model.set_logger(Logger(None, [rows]))
    expected = list(range(80, steps + 1, 80))  # all four episodes end at once
    for _ in range(3):
        model.learn(steps, log_interval=1)
        assert rows.steps == expected
        rows.steps.clear()
    model.learn(80, log_interval=1, reset_num_timesteps=False)
    assert rows.steps == [steps + 80]


LOSSES = ("actor_loss", "critic_loss", "ent_coef_loss", "ent_coef")


def test_what_an_update_did_is_in_the_logger() -> None:
    model = make_model()
    model.set_logger(Logger(None, []))
    model.learn(60)
    model.train(gradient_steps=3, batch_size=16)
    logged = model.logger.name_to_value
    assert logged["train/n_updates"] == model._n_updates == 8
    assert "train/learning_rate" in logged
    for name in LOSSES:
        assert isinstance(logged[f"train/{name}"], float)
        assert np.isfinite(logged[f"train/{name}"])


def test_what_learning_did_is_in_the_logger_when_it_ends() -> None:
    model = make_model().learn(60)
    assert model.logger.name_to_value["train/n_updates"] == 5
    assert all(np.isfinite(model.logger.name_to_value[f"train/{name}"]) for name in LOSSES)


def test_what_was_looked_at_counts_for_the_next_row_too() -> None:
    logged = []
    for looks in (0, 2):
        model = make_model()
        model.set_logger(Logger(None, []))
        model.learn(60)
        for _ in range(looks):
            model.report.record_updates(model)
        model.train(2, 16)
        assert model.report.updates == 7
        logged.append({key: value for key, value in model.logger.name_to_value.items() if "time/" not in key})
    assert logged[0] == logged[1]


@pytest.mark.parametrize(("kind", "name"), [(MultiTaskSAC, "MultiTaskSAC_1"), (OverlappedSAC, "OverlappedSAC_1")])
def test_folders_of_tensorboard_have_the_name_of_the_algorithm(kind: type, name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = kind("MlpPolicy", points(), policy_kwargs=SMALL, tensorboard_log=str(tmp_path), device="cpu")
    model.learn(8)
    assert [folder.name for folder in tmp_path.iterdir()] == [name]
    model.learn(8, tb_log_name="mine")
    assert (tmp_path / "mine_1").is_dir()


# Parts of a model that are saved alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", SIZES)
def test_actor_and_critic_are_saved_alone(policy: str, tmp_path: Path) -> None:
    model = make_model(policy).learn(60)
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
    model = make_model("D2RPolicy")
    params: dict[str, Tensor] = {name: torch.rand_like(value) for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(params)
    model.policy.save(tmp_path / "policy.pkl")
    again = type(model.policy).load(tmp_path / "policy.pkl")
    for name, value in again.state_dict().items():
        assert torch.equal(value, params[name])


# Files and file objects ----------------------------------------------------------------------------------------------


def test_a_buffer_is_one_file(tmp_path: Path) -> None:
    model = make_model("D2RPolicy").learn(60)
    path = tmp_path / "folder" / "buffer.pkl"
    model.save_replay_buffer(path)
    model.save_replay_buffer(str(path))  # takes the place of the first
    assert [file.name for file in path.parent.iterdir()] == ["buffer.pkl"]
    old = copy.deepcopy(model.replay_buffer)
    model.replay_buffer = None
    model.load_replay_buffer(path, truncate_last_traj=False)
    for name in (*NAMES, "timeouts", "paths", "rows"):
        assert np.array_equal(getattr(model.replay_buffer, name), getattr(old, name))
    model.learn(40, reset_num_timesteps=False)


def test_a_buffer_that_is_not_there() -> None:
    model = make_model("D2RPolicy")
    model.replay_buffer = None
    with pytest.raises(ValueError, match="`replay_buffer` must be there to be saved, got None"):
        model.save_replay_buffer(io.BytesIO())
    with pytest.raises(FileNotFoundError, match="nowhere must be a file that holds a replay buffer, there is none"):
        model.load_replay_buffer("nowhere")
    assert model.replay_buffer is None


@pytest.mark.parametrize("where", ["memory", "file", "behind other bytes"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "D2RPolicy"])
def test_models_and_buffers_go_to_file_objects(policy: str, where: str, tmp_path: Path) -> None:
    model = make_model(policy).learn(60)
    best, _ = model.predict(observations(), deterministic=True)
    with contextlib.ExitStack() as stack:
        files: list[Any] = [io.BytesIO(), io.BytesIO()]
        if where == "file":
            files = [stack.enter_context((tmp_path / str(i)).open("w+b")) for i in range(2)]
        starts = [file.write(b"other") if where == "behind other bytes" else 0 for file in files]
        model.save(files[0])
        model.save_replay_buffer(files[1])
        for file, start in zip(files, starts, strict=True):
            file.seek(start)
        loaded = MultiTaskSAC.load(files[0], env=points(), device="cpu")
        loaded.load_replay_buffer(files[1])
    assert np.array_equal(loaded.predict(observations(), deterministic=True)[0], best)
    assert np.array_equal(loaded.replay_buffer.rows, model.replay_buffer.rows)
    assert loaded.replay_buffer.positions.tolist() == model.replay_buffer.positions.tolist()
    loaded.learn(40)


def test_demonstrations_are_in_the_file_too() -> None:
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 2}}
    models = [make_model(**options) for _ in range(2)]
    obs = observations(each=2).reshape(TASKS, 2, -1)
    zeros = np.zeros((TASKS, 2), np.float32)
    add_demonstrations(models[0], obs, np.full((TASKS, 2, 2), 0.5, np.float32), obs, zeros, zeros.astype(bool))
    file = io.BytesIO()
    models[0].save_replay_buffer(file)
    models[1].load_replay_buffer(file)
    assert np.array_equal(models[1].replay_buffer.shown.rows, models[0].replay_buffer.shown.rows)
    assert (models[1].replay_buffer.wanted == 0.5).all()


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    model = make_model()
    data = pickle.dumps(Planted(), protocol=protocol)
    (tmp_path / "buffer.pkl").write_bytes(data)
    for source in (tmp_path / "buffer.pkl", io.BytesIO(data)):
        with pytest.raises(
            ValueError, match=r"must hold a replay buffer as MultiTaskSAC stores it, got a pickle:.*exten"
        ):
            model.load_replay_buffer(source)


def test_files_of_something_else(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="must hold a replay buffer, got a zip file of something else, without buffer"):
        model.load_replay_buffer(tmp_path / "model.zip")
    with pytest.raises(FileExistsError, match=r"model.zip must not exist yet, or be a file of the same kind"):
        model.save_replay_buffer(tmp_path / "model.zip")
    for data in (b"", b"text", b"PK\3\4 and so on"):
        with pytest.raises(DamagedError, match="the file object must be a whole file that holds a replay buffer"):
            model.load_replay_buffer(io.BytesIO(data))
    for source in (3, io.StringIO(), [b""]):
        with pytest.raises(TypeError, match="`path` must be the name of a file, or a file object of bytes such as"):
            model.load_replay_buffer(source)


def test_damage_is_noticed() -> None:
    model = make_model("D2RPolicy", buffer_size=16).learn(20)
    file = io.BytesIO()
    model.save_replay_buffer(file)
    rows, data = model.replay_buffer.rows.copy(), file.getvalue()
    for length in range(0, len(data), 97):
        with pytest.raises(DamagedError):
            model.load_replay_buffer(io.BytesIO(data[:length]))
    noticed = 0
    for place in range(0, len(data), 5):
        damaged = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        try:
            model.load_replay_buffer(io.BytesIO(damaged))
        except ValueError:  # a DamagedError, or one that finds no buffer under its name
            noticed += 1
        assert np.array_equal(model.replay_buffer.rows, rows)  # the time of writing may change, and nothing else
    assert noticed > len(data) / 5 * 0.8


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    before = (tmp_path / "buffer").read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_replay_buffer(tmp_path / "buffer")
    assert [path.name for path in tmp_path.iterdir()] == ["buffer"]
    assert (tmp_path / "buffer").read_bytes() == before


# The attributes of a replay buffer -----------------------------------------------------------------------------------


def filled(steps: int = 7, capacity: int = 5, paths: bool = False, **options: Any) -> RouteReplayBuffer:
    """A buffer after some steps of one environment for each task, whose numbers tell where they are from."""
    env = points()
    buffer = RouteReplayBuffer(
        capacity * TASKS, env.observation_space, env.action_space, "cpu", TASKS, num_tasks=TASKS, **options
    )
    if paths:
        buffer.keep_paths(Topology.dag(5))
    buffer.extend(*history(steps), *([np.full((steps, TASKS, 2), 3, np.uint8)] if paths else []))
    return buffer


def history(steps: int) -> tuple[Any, ...]:
    one_hots = np.broadcast_to(np.eye(TASKS), (steps, TASKS, TASKS))
    states = np.arange(steps * TASKS * 4).reshape(steps, TASKS, 4)
    actions, rewards = states[..., :2] / 1000, states[..., 0] + 0.5
    dones = (states[..., 0] // 4) % 2
    infos = [[{"TimeLimit.truncated": bool(task % 2)} for task in range(TASKS)] for _ in range(steps)]
    obs, next_obs = (np.concatenate([part, one_hots], axis=-1).astype(np.float32) for part in (states, states + 1))
    return obs, next_obs, actions.astype(np.float32), rewards.astype(np.float32), dones, infos


NAMES = ("observations", "next_observations", "actions", "rewards", "dones")


@pytest.mark.parametrize(("steps", "capacity"), [(0, 5), (3, 5), (5, 5), (7, 5)])
def test_a_buffer_has_the_attributes_of_sb3(steps: int, capacity: int) -> None:
    buffer = filled(steps, capacity)
    assert (buffer.pos, buffer.full, buffer.buffer_size) == (steps % capacity, steps >= capacity, capacity)
    parts = history(steps)
    newest = np.arange(max(steps - capacity, 0), steps)
    for name, expected in zip(NAMES, parts, strict=False):
        held = getattr(buffer, name)
        assert held.dtype == np.float32
        assert held.shape == (capacity, TASKS, *np.shape(expected)[2:])
        assert np.array_equal(held[newest % capacity], expected[newest])
    truncated = np.broadcast_to(np.arange(TASKS) % 2, (steps, TASKS)) * parts[4]
    assert np.array_equal(buffer.timeouts[newest % capacity], truncated[newest])
    batch = buffer.gather(np.repeat(np.arange(TASKS), min(steps, capacity)), np.tile(newest % capacity, TASKS))
    assert np.array_equal(batch.dones.flatten(), (parts[4] - truncated)[newest].T.flatten())


def test_an_end_of_the_time_that_counts_as_an_end() -> None:
    buffer = filled(4, 5, handle_timeout_termination=False)
    assert np.array_equal(buffer.dones[:4], history(4)[4])
    assert not buffer.timeouts.any()


def test_actions_and_rewards_are_views_and_the_others_refuse_to_be_written_to() -> None:
    buffer = filled()
    buffer.rewards[:] = 3.0
    buffer.actions[0, 1] = 0.25
    assert (buffer.rows[..., -2] == 3.0).all()
    assert (buffer._get_samples(np.array([1 * 5 + 0])).actions == 0.25).all()
    for name in ("observations", "next_observations", "dones", "timeouts"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(buffer, name)[0] = 1.0
    for name in ("pos", "full"):
        with pytest.raises(AttributeError, match=f"`{name}` follows from what is stored and cannot be set, got 3; see"):
            setattr(buffer, name, 3)


def test_the_place_of_tasks_that_are_not_at_the_same() -> None:
    buffer = filled(2)
    obs, next_obs, actions, rewards, dones, infos = history(1)
    buffer.add(obs[0, :1], next_obs[0, :1], actions[0, :1], rewards[0, :1], dones[0, :1], infos[0][:1])
    with pytest.raises(
        AttributeError, match=r"`pos` is one place for all tasks, which are at \[3, 2, 2, 2\]; use `pos"
    ):
        _ = buffer.pos


@pytest.mark.parametrize("paths", [False, True])
def test_a_buffer_is_extended_by_another(paths: bool) -> None:
    buffer = filled(4, 5, paths)
    other = filled(0, 5, paths)
    infos = [[{"TimeLimit.truncated": bool(out)} for out in row] for row in buffer.timeouts[:4]]
    parts = [getattr(buffer, name)[:4] for name in NAMES]
    packed = None if buffer.paths is None else buffer.paths.swapaxes(0, 1)[:4]
    other.extend(*parts, infos, packed)
    assert np.array_equal(other.rows, buffer.rows)
    assert paths == (buffer.paths is not None)
    if buffer.paths is not None:
        assert np.array_equal(other.paths, buffer.paths)
        with pytest.raises(ValueError, match="`paths` must be given where the buffer keeps paths"):
            other.extend(*parts, infos)
    with pytest.raises(ValueError, match=r"`reward` must have as many steps as `obs`, 4, got 3\."):
        other.extend(*parts[:3], parts[3][:3], parts[4], infos, packed)


def test_samples_by_their_indices() -> None:
    buffer = filled(3)
    batch = buffer._get_samples(np.array([0, 2, 5, 15]))
    assert batch.tasks.tolist() == [0, 0, 1, 3]
    assert np.array_equal(batch.observations, history(3)[0][[0, 2, 0, 0], [0, 0, 1, 3]])
    for wrong in (3, -1, 4 * 5):
        with pytest.raises(IndexError, match=rf"`batch_inds` must be task \* 5 \+ place of stored .* got {wrong}\."):
            buffer._get_samples(np.array([0, wrong]))


def test_a_buffer_of_the_user_changes_what_is_sampled() -> None:
    class Relabelled(RouteReplayBuffer):
        def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
            batch = super()._get_samples(batch_inds, env)
            return batch._replace(rewards=torch.full_like(batch.rewards, 7.0))

    model = make_model(replay_buffer_class=Relabelled).learn(60)
    assert (model.replay_buffer.sample(16).rewards == 7).all()


def test_rewards_of_a_sample_are_normalized() -> None:
    buffer, env = filled(), VecNormalize(points(), norm_obs=False)
    env.ret_rms.var = np.array(4.0)
    np.random.seed(0)
    plain = buffer.sample(8).rewards
    np.random.seed(0)
    assert torch.allclose(buffer.sample(8, env=env).rewards, (plain / 2).clamp(max=10))


# Keywords of policies -------------------------------------------------------------------------------------------------


def widths(net: nn.Module) -> list[int]:
    """The widths of the hidden layers of a perceptron."""
    return [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("policy", "net_arch", "pi", "qf"),
    [
        ("MlpPolicy", [12, 8], [12, 8], [12, 8]),
        ("MlpPolicy", (6,), [6], [6]),
        ("MlpPolicy", [], [], []),
        ("MlpPolicy", {"pi": [8], "qf": [10, 9]}, [8], [10, 9]),
        ("MultiHeadPolicy", {"pi": [8, 7], "qf": [10]}, [8, 7], [10]),
    ],
)
def test_net_arch_says_the_widths(policy: str, net_arch: Any, pi: list[int], qf: list[int], tmp_path: Path) -> None:
    model = make_model(policy, policy_kwargs={"net_arch": net_arch, "activation_fn": nn.Tanh, "n_critics": 2})
    heads = TASKS if policy == "MultiHeadPolicy" else 1

    def check(policy: Any) -> None:
        assert widths(policy.actor.net) == [*pi, *[4] * heads]
        for net in (*policy.critic.nets, *policy.critic_target.nets):
            assert widths(net) == [*qf, *[1] * heads]
        activations = [layer for layer in policy.modules() if isinstance(layer, (nn.Tanh, nn.ReLU))]
        assert len(activations) == len(pi) + 4 * len(qf)
        assert all(isinstance(layer, nn.Tanh) for layer in activations)

    check(model.policy)
    model.learn(60)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    check(loaded.policy)
    check(type(model.policy).load(tmp_path / "policy"))
    assert np.array_equal(*(m.predict(observations(), deterministic=True)[0] for m in (model, loaded)))


def test_net_arch_and_network_kwargs_make_the_same_model() -> None:
    one = make_model(policy_kwargs={"net_arch": [8]})
    other = make_model(policy_kwargs=SMALL)
    for name, value in one.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name])


def test_net_arch_belongs_to_a_checkpoint(tmp_path: Path) -> None:
    model = make_model(policy_kwargs={"net_arch": {"pi": [8], "qf": [9]}}).learn(60)
    model.save_checkpoint(tmp_path / "there")
    loaded = MultiTaskSAC.load_checkpoint(tmp_path / "there", points(), "cpu")
    assert widths(loaded.critic.nets[0]) == [9, 1]


ROUTED = r"says what the layers of one perceptron are, as the networks 'mt-sac' and 'mh-sac' have it, got it with "
UNUSED = r"must not be given in `policy_kwargs`, got .*whose keywords are `network_kwargs`\."
KEYWORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "d2r": ("D2RPolicy", {"net_arch": [8]}, f"`net_arch` {ROUTED}'d2r'; give .*`network_kwargs`: .*num_modules"),
    "paco": ("PaCoPolicy", {"activation_fn": nn.Tanh}, f"`activation_fn` {ROUTED}'paco'; .*`network_kwargs`: .*num_se"),
    "own": ("MlpPolicy", {"net_arch": [8], "network": lambda *_: nn.Linear(1, 1)}, f"`net_arch` {ROUTED}<lambda>;"),
    "twice": (
        "MlpPolicy",
        {"net_arch": [8], "network_kwargs": {"hidden_sizes": (9,)}},
        r"`net_arch` and `hidden_sizes` of `network_kwargs` say the same, give one of them; got \[8\] and \(9,\)",
    ),
    "twice for the critics": (
        "MlpPolicy",
        {"net_arch": [8], "critic_kwargs": {"hidden_sizes": (9,)}},
        r"`net_arch` and `hidden_sizes` of `critic_kwargs` say the same, give one of them; got \[8\] and \(9,\)",
    ),
    "keys": (
        "MlpPolicy",
        {"net_arch": {"pi": [8], "vf": [8]}},
        r"`net_arch` must be a list.*got the keys \['pi', 'vf'\]",
    ),
    "no list": ("MlpPolicy", {"net_arch": 8}, "`net_arch` must list widths of layers, integers of at least 1, got 8"),
    "no width": ("MlpPolicy", {"net_arch": [8, 0]}, r"`net_arch` must list widths of layers.*got \[8, 0\]"),
    "old form": (
        "MlpPolicy",
        {"net_arch": [{"pi": [8], "qf": [8]}]},
        "`net_arch` must list widths of layers, integers",
    ),
    "heads": ("MultiHeadPolicy", {"net_arch": []}, "`hidden_sizes` must list at least 1 sizes"),
    "log_std_init": ("MlpPolicy", {"log_std_init": -2}, f"`log_std_init` {UNUSED}"),
    "clip_mean": ("MlpPolicy", {"clip_mean": 2.0}, f"`clip_mean` {UNUSED}"),
    "use_expln": ("MlpPolicy", {"use_expln": True}, f"`use_expln` {UNUSED}"),
    "shared": ("MlpPolicy", {"share_features_extractor": True}, f"`share_features_extractor` {UNUSED}"),
    "extractor": ("MlpPolicy", {"features_extractor_class": NatureCNN}, f"`features_extractor_class` {UNUSED}"),
    "its keywords": ("MlpPolicy", {"features_extractor_kwargs": {"a": 1}}, f"`features_extractor_kwargs` {UNUSED}"),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords_without_a_place(name: str) -> None:
    policy, kwargs, told = KEYWORDS[name]
    with pytest.raises(ValueError, match=told):
        make_model(policy, policy_kwargs=kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"log_std_init": -2, "net_arch": [8]}], ids=["plain", "as in the Zoo"])
def test_state_dependent_exploration(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`use_sde` must be False: state-dependent exploration .* `action_noise`"):
        make_model(use_sde=True, policy_kwargs=kwargs)
    with pytest.raises(ValueError, match="`use_sde` must be False: state-dependent exploration"):
        make_model(policy_kwargs={**kwargs, "use_sde": True})


def test_a_keyword_of_a_network_among_those_of_the_policy() -> None:
    with pytest.raises(
        TypeError, match=r"`policy_kwargs` must be keywords of MultiTaskPolicy, got `num_modules`; those"
    ):
        make_model(policy_kwargs={"num_modules": 4})


def test_keywords_that_ask_for_nothing() -> None:
    kwargs = {
        "normalize_images": False,
        "share_features_extractor": False,
        "features_extractor_class": FlattenExtractor,
        "features_extractor_kwargs": {},
    }
    model = make_model(policy_kwargs={"net_arch": [8], **kwargs})
    assert not model.policy.normalize_images
    one, other = (m.policy.state_dict() for m in (model, make_model(policy_kwargs=SMALL)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# Networks of the user -------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Takes a state and a task, and nothing else."""

    def __init__(self, state_features: int, num_tasks: int, out_features: int, wider: int = 0) -> None:
        super().__init__()
        self.layer = nn.Bilinear(state_features, num_tasks, out_features + wider)
        self.norm = nn.BatchNorm1d(out_features + wider)
        self.drop = nn.Dropout(0.5)

    def forward(self, state: Tensor, task: Tensor) -> Any:
        return self.drop(self.norm(self.layer(state, task)))


def test_a_network_needs_a_state_and_a_task_alone(tmp_path: Path) -> None:
    model = make_model(policy_kwargs={"network": Plain})
    assert all(net.norm.num_batches_tracked == 0 and net.training for net in [model.actor.net, *model.critic.nets])
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=points(), device="cpu")
    assert np.array_equal(*(m.predict(observations(), deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(60)
    assert loaded._n_updates > model._n_updates


def test_on_policy_a_network_needs_a_state_and_a_task_alone() -> None:
    kwargs = {"num_tasks": TASKS, "network": Plain}
    model = PPO(
        MultiTaskActorCriticPolicy, points(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs, seed=0
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(32)
    after = list(model.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_network_that_is_tried_draws_nothing() -> None:
    class Drawing(Plain):
        def forward(self, state: Tensor, task: Tensor) -> Any:
            return super().forward(state, task) + torch.rand(())

    draws = []
    for network in (Plain, Drawing):
        make_model(policy_kwargs={"network": network})
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


class Half(Plain):
    def forward(self, state: Tensor, task: Tensor, path: Any = None, sample: bool = False) -> Any:  # type: ignore[override]
        return super().forward(state, task)


class Pair(Plain):
    def forward(self, state: Tensor, task: Tensor) -> Any:
        return [super().forward(state, task)]


class Nothing(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()

    def forward(self, state: Tensor, task: Tensor) -> Tensor:
        return state


OWN: dict[str, tuple[Any, type[Exception], str]] = {
    "instance": (Plain(4, 4, 4), TypeError, "`network` must make networks, got a Plain that is made: .*pass the class"),
    "no callable": (3, TypeError, r"`network` must be a name of dynroute.networks.available\(\), or a class.*got 3\."),
    "no module": (lambda *_: torch.relu, TypeError, "`network` must make modules of torch, it made <built-in"),
    "nothing to learn": (Nothing, ValueError, "`network` must make networks with parameters to learn, got a Nothing"),
    "width": (
        lambda *sizes: Plain(*sizes, wider=1),
        ValueError,
        r"`network` must make networks whose forward\(state, task\) returns a tensor with shape \(batch, 4\), as "
        r"out_features=4 asks for, got a tensor of torch.float32 with shape \(2, 5\) of a Plain for a batch of 2\.",
    ),
    "no tensor": (Pair, ValueError, r"returns a tensor with shape \(batch, 4\).*got .*of a Pair for a batch of 2"),
    "some keywords": (
        Half,
        TypeError,
        r"`forward` of a Half must take \(state, task\) alone, or all keywords of routing, got path, sample without "
        r"temperature, generator, return_route; add these, or \*\*kwargs\.",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_networks_that_do_not_fit(name: str) -> None:
    network, kind, told = OWN[name]
    with pytest.raises(kind, match=told):
        make_model(policy_kwargs={"network": network})


def test_a_network_that_fails_is_told_with_the_shapes_it_was_tried_on() -> None:
    class Swapped(Plain):
        def forward(self, task: Tensor, state: Tensor) -> Any:
            return super().forward(state[:, :3], task)

    with pytest.raises(RuntimeError) as failed:
        make_model(policy_kwargs={"network": Swapped})
    assert failed.value.__notes__ == [
        "`network` made a Swapped, which was tried on a state with shape (2, 4) and a task with shape (2, 4)."
    ]


def test_a_network_that_is_made_once() -> None:
    nets: dict[int, nn.Module] = {}
    with pytest.raises(
        ValueError, match="`network` must make a new network at each call, it made the same Plain again"
    ):
        make_model(policy_kwargs={"network": lambda *sizes: nets.setdefault(sizes[-1], Plain(*sizes))})


# What is not offered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("MultiInputPolicy", "got 'MultiInputPolicy': it is for observations that are dictionaries, .*OneHotTask"),
        ("CnnPolicy", "got 'CnnPolicy': it is for images, and these networks read vectors"),
        ("Mlp", "got 'Mlp'; did you mean 'MlpPolicy'"),
        (
            SACPolicy,
            "or a class that inherits from MultiTaskPolicy, got <class .*SACPolicy'>; a network of your own",
        ),
        (nn.Linear, "or a class that inherits from MultiTaskPolicy, got <class .*Linear'>"),
    ],
)
def test_policies_that_are_not_there(policy: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"`policy` must be one of 'MultiTaskPolicy', 'MlpPolicy', .*{told}"):
        make_model(policy)


class Dictionary(gym.Env[Any, Any]):
    observation_space = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), goal=spaces.Box(-1, 1, (3,)))
    action_space = spaces.Box(-1, 1, (2,))
    num_tasks = 2


@pytest.mark.parametrize("how", ["env", "VecEnv", "set_env", "her"])
def test_observations_that_are_dictionaries(how: str) -> None:
    calls: dict[str, Any] = {
        "env": lambda: make_model(env=Dictionary()),
        "VecEnv": lambda: make_model(env=DummyVecEnv([Dictionary])),
        "set_env": lambda: make_model().set_env(DummyVecEnv([Dictionary])),
        "her": lambda: make_model(env=Dictionary(), replay_buffer_class=HerReplayBuffer),
    }
    with pytest.raises(ValueError, match=r"the observation space must be a Box .*, got Dict.*FlattenObservation"):
        calls[how]()


def test_environments_that_are_vectorized_by_gymnasium() -> None:
    with pytest.raises(
        ValueError,
        match=r"`env` must be an environment or a VecEnv of SB3, got a SyncVectorEnv of gymnasium; make a Dum",
    ):
        make_model(env=gym.vector.SyncVectorEnv(point_tasks()))


def test_hindsight() -> None:
    with pytest.raises(
        ValueError, match=r"`replay_buffer_class` must be a RouteReplayBuffer, got HerReplayBuffer: goals"
    ):
        make_model(replay_buffer_class=HerReplayBuffer)


# Environments ---------------------------------------------------------------------------------------------------------


class NewTask(OneHotTask):
    """Takes the next task at every reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.task = (self.task + 1) % self.num_tasks
        return super().reset(**kwargs)


def new_tasks() -> gym.Env[Any, Any]:
    return NewTask(PointTask(GOALS[0]), 0, TASKS)


@pytest.mark.parametrize("kind", [MultiTaskSAC, OverlappedSAC])
def test_learning_waits_until_every_task_has_transitions(kind: type[MultiTaskSAC]) -> None:
    model = kind("MlpPolicy", new_tasks(), policy_kwargs=SMALL, batch_size=16, learning_starts=5, device="cpu")
    with pytest.warns(
        UserWarning, match=r"learning waits until .* at step 6 the tasks \['0', '2', '3'\] have none; up"
    ) as w:
        model.learn(70)
    assert len(w) == 1
    assert model.replay_buffer.counts.tolist() == [10, 20, 20, 20]  # episodes of 20 steps
    overlapped = kind is OverlappedSAC
    assert model._n_updates == 10 - overlapped  # from the first step of the last task on
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates == 30 - overlapped


def test_nothing_at_all_to_learn_from() -> None:
    model = make_model()
    model.set_logger(Logger(None, []))
    with pytest.raises(ValueError, match="every task must have transitions before learning starts"):
        model.train(1, 16)


class Shaped(gym.Wrapper[Any, Any, Any, Any]):
    """Takes actions as an array of two rows, of which the point takes the diagonal."""

    action_space = spaces.Box(np.array([[-1, -2], [0, -1]], np.float32), np.array([[1, 2], [4, 5]], np.float32))

    def step(self, action: Any) -> Any:
        assert np.shape(action) == (2, 2)
        assert self.action_space.contains(action)
        return super().step(np.diag(action))


def shaped(**options: Any) -> MultiTaskSAC:
    env = DummyVecEnv([lambda make=make: Shaped(make()) for make in point_tasks()])
    return make_model(options.pop("policy", "D2RPolicy"), env=env, **options)


@pytest.mark.parametrize("policy", ["MlpPolicy", "D2RPolicy"])
def test_actions_that_are_arrays(policy: str, tmp_path: Path) -> None:
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros((2, 2)), np.full((2, 2), 0.1)), TASKS)
    model = shaped(policy=policy, action_noise=noise)
    assert model.target_entropy == -4
    model.learn(80)
    assert model._n_updates == 10
    buffer = model.replay_buffer
    assert buffer.actions.shape == (500, TASKS, 4)
    assert (abs(buffer.actions) <= 1).all()
    for batch in (observations(), observations()[0]):
        for deterministic in (True, False):
            actions, _ = model.predict(batch, deterministic=deterministic)
            assert actions.shape == (*batch.shape[:-1], 2, 2)
            assert all(model.action_space.contains(action) for action in actions.reshape(-1, 2, 2))
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=model.env, device="cpu")
    assert np.array_equal(*(m.predict(observations(), deterministic=True)[0] for m in (model, loaded)))


def test_arrays_of_actions_in_a_checkpoint(tmp_path: Path) -> None:
    model = shaped().learn(60)
    model.save_checkpoint(tmp_path / "there")
    loaded = MultiTaskSAC.load_checkpoint(tmp_path / "there", shaped().env, "cpu")
    loaded.learn(20, reset_num_timesteps=False)
    assert np.array_equal(loaded.replay_buffer.rows[:, :15], model.replay_buffer.rows[:, :15])
    assert loaded.replay_buffer.counts.tolist() == [20] * TASKS


def test_arrays_of_actions_are_those_of_the_vectors() -> None:
    buffers = [
        filled(0, 5),
        RouteReplayBuffer(20, points().observation_space, spaces.Box(-1, 1, (2, 1)), num_tasks=TASKS),
    ]
    obs, next_obs, actions, rewards, dones, infos = history(3)
    buffers[0].extend(obs, next_obs, actions, rewards, dones, infos)
    buffers[1].extend(obs, next_obs, actions[..., None], rewards, dones, infos)
    assert np.array_equal(buffers[0].rows, buffers[1].rows)
    with pytest.raises(ValueError, match=r"`action` must have shape \(4, 2\) for 4 environments, got \(4, 1, 2\)"):
        buffers[1].extend(obs, next_obs, actions[:, :, None], rewards, dones, infos)


def test_demonstrations_whose_actions_are_arrays() -> None:
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 2}}
    model = shaped(**options)
    obs, zeros = observations(each=2).reshape(TASKS, 2, -1), np.zeros((TASKS, 2), np.float32)
    actions = np.random.default_rng(0).uniform(-1, 1, (TASKS, 2, 2, 2)).astype(np.float32)
    add_demonstrations(model, obs, actions, obs, zeros, zeros.astype(bool), wanted=actions / 2)
    assert np.array_equal(model.replay_buffer.shown.actions[:2].swapaxes(0, 1), actions.reshape(TASKS, 2, 4))
    assert np.array_equal(model.replay_buffer.wanted, actions.reshape(TASKS, 2, 4) / 2)


def normalized(**options: Any) -> MultiTaskVecNormalize:
    return MultiTaskVecNormalize(points(), **options)


def test_states_are_normalized_and_one_hots_are_not() -> None:
    env = normalized(clip_obs=1.5)
    reference = VecNormalize(points(), clip_obs=1.5)
    for vec_env in (env, reference):
        vec_env.seed(0)
    seen, expected = env.reset(), reference.reset()
    for step in range(30):
        assert np.array_equal(seen[:, 4:], np.eye(TASKS))
        assert np.array_equal(seen[:, :4], expected[:, :4])
        assert np.allclose(env.normalize_obs(env.unnormalize_obs(seen)), seen, atol=1e-5)
        (seen, *_, infos), (expected, *_) = (vec_env.step(np.ones((TASKS, 2))) for vec_env in (env, reference))
        if step == 19:
            last = [info["terminal_observation"][4:] for info in infos]
            assert np.array_equal(last, np.eye(TASKS))
    assert abs(seen[:, :4]).max() <= 1.5


def test_a_model_stores_what_is_not_normalized_and_learns_what_is() -> None:
    env = normalized()
    model = make_model("D2RPolicy", env=env)
    seen: list[np.ndarray] = []
    env.venv.step_wait_plain = env.venv.step_wait  # type: ignore[attr-defined]

    def watched() -> Any:
        result = env.venv.step_wait_plain()
        ended = [info.get("terminal_observation", row) for row, info in zip(result[0], result[3], strict=True)]
        seen.append(np.array(ended))
        return result

    env.venv.step_wait = watched  # type: ignore[method-assign]
    model.learn(100)
    assert model.get_vec_normalize_env() is env
    assert model._n_updates == 15
    buffer = model.replay_buffer
    assert np.allclose(buffer.next_observations[:25], np.array(seen), atol=1e-5)
    going_on = buffer.dones[:24] == 0
    assert np.array_equal(buffer.observations[1:25][going_on], buffer.next_observations[:24][going_on])
    np.random.seed(0)
    plain = buffer.sample(16)
    np.random.seed(0)
    batch = buffer.sample(16, env=env)
    for name in ("observations", "next_observations"):
        expected = env.normalize_obs(getattr(plain, name).numpy())
        assert np.allclose(getattr(batch, name), expected, atol=1e-6)
        assert torch.equal(getattr(batch, name)[:, 4:], torch.eye(TASKS)[batch.tasks])
        assert not torch.equal(getattr(batch, name), getattr(plain, name))
    assert np.allclose(batch.rewards, env.normalize_reward(plain.rewards.numpy()))


def test_normalizing_environments_as_users_of_sb3_take_them(tmp_path: Path) -> None:
    env, other = MultiTaskVecNormalize(VecMonitor(points())), normalized(training=False, norm_reward=False)
    watched = MultiTaskVecNormalize(VecMonitor(points()), training=False)
    model = make_model(env=env)
    model.set_env(other)
    assert model.get_vec_normalize_env() is other
    model.learn(40)
    model.set_env(env)
    callbacks = [
        CheckpointCallback(10, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True),
        EvalCallback(watched, eval_freq=10, n_eval_episodes=1, verbose=0),
    ]
    model.learn(80, callback=callbacks)
    assert np.array_equal(watched.obs_rms.mean, env.obs_rms.mean)
    path = str(tmp_path / "rl_model_vecnormalize_80_steps.pkl")
    restored = MultiTaskVecNormalize.load(path, points())
    assert isinstance(restored, MultiTaskVecNormalize)
    assert np.array_equal(restored.obs_rms.mean, env.obs_rms.mean)
    assert np.array_equal(restored.normalize_obs(observations())[:, 4:], observations()[:, 4:])
    loaded = MultiTaskSAC.load(tmp_path / "rl_model_80_steps.zip", env=restored, device="cpu")
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_80_steps.pkl")
    loaded.learn(60)


def test_normalized_states_belong_to_a_checkpoint(tmp_path: Path) -> None:
    one = make_model("D2RPolicy", env=normalized()).learn(60)
    one.save_checkpoint(tmp_path / "there")
    one.learn(60, reset_num_timesteps=False)
    other = MultiTaskSAC.load_checkpoint(tmp_path / "there", normalized(), "cpu")
    other.learn(60, reset_num_timesteps=False)
    assert np.array_equal(one.replay_buffer.rows, other.replay_buffer.rows)
    for name, value in one.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name])
    envs = [model.get_vec_normalize_env() for model in (one, other)]
    assert np.array_equal(envs[0].obs_rms.mean, envs[1].obs_rms.mean)


def test_paths_of_demonstrations_are_those_of_normalized_states() -> None:
    options = {"replay_buffer_class": DemonstrationBuffer, "replay_buffer_kwargs": {"demonstrations": 2}}
    kwargs = {"network_kwargs": {**SIZES["D2RPolicy"], "gate": "top-2"}}
    env = normalized()
    env.obs_rms.mean, env.obs_rms.var = np.full(8, 3.0), np.full(8, 0.01)
    model = make_model("D2RPolicy", env=env, policy_kwargs=kwargs, actor_paths="replayed", **options)
    obs, zeros = observations(each=2).reshape(TASKS, 2, -1), np.zeros((TASKS, 2), np.float32)
    add_demonstrations(model, obs, np.zeros((TASKS, 2, 2), np.float32), obs, zeros, zeros.astype(bool))
    shown = model.replay_buffer.shown
    assert np.array_equal(shown.observations[:2].swapaxes(0, 1), obs)
    seen = torch.as_tensor(env.normalize_obs(obs.reshape(-1, 8)))
    route = model.actor.distribution(seen)[2]
    paths = model.policy.topology.pack(route.path).numpy().reshape(TASKS, 2, -1)
    assert np.array_equal(shown.paths, paths)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (4,)), spaces.Dict(a=spaces.Box(-1, 1, (3,)))])
def test_what_cannot_be_normalized(space: spaces.Space[Any]) -> None:
    class Other(gym.Env[Any, Any]):
        observation_space = space
        action_space = spaces.Box(-1, 1, (2,))

    with pytest.raises(ValueError, match="observation"):
        MultiTaskVecNormalize(DummyVecEnv([Other]), num_tasks=4)


# What SB3's own tests of SAC do ---------------------------------------------------------------------------------------


def pendulum(num_tasks: int = 1) -> gym.Env[Any, Any]:
    return OneHotTask(gym.make("Pendulum-v1"), 0, num_tasks)


def like_sac(env: Any = None, **options: Any) -> MultiTaskSAC:
    defaults = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 20, "batch_size": 16, "buffer_size": 250}
    return MultiTaskSAC("MlpPolicy", env or pendulum(), device="cpu", seed=0, **{**defaults, **options})


RUNS: dict[str, dict[str, Any]] = {
    "ent_coef that is learned": {"ent_coef": "auto"},
    "ent_coef that is learned from": {"ent_coef": "auto_0.01"},
    "fixed ent_coef": {"ent_coef": 0.01},
    "one critic": {"policy_kwargs": {"net_arch": [16], "n_critics": 1}},
    "three critics": {"policy_kwargs": {"net_arch": [16], "n_critics": 3}},
    "steps": {"train_freq": (4, "step"), "gradient_steps": -1},
    "episodes": {"train_freq": (1, "episode"), "gradient_steps": 2},
    "as many updates as steps of an episode": {"train_freq": (1, "episode"), "gradient_steps": -1},
    "normal noise": {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
    "noise that lasts": {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))},
    "schedule": {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5)},
    "RMSprop of SB2": {"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-3}}},
    "weight decay": {
        "policy_kwargs": {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    model = like_sac(**RUNS[name])
    model.learn(210)
    assert model._n_updates > 0
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    assert isinstance(model.lr_schedule(1.0), float)


def test_several_environments_of_one_task() -> None:
    model = like_sac(make_vec_env(pendulum, n_envs=2), train_freq=5, gradient_steps=-1).learn(100)
    assert (model.num_timesteps, model._n_updates) == (100, 80)


def test_spaces_of_doubles() -> None:
    class Doubles(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1, 1, (3,), np.float64)
        action_space = spaces.Box(-1, 1, (2, 1), np.float64)
        num_tasks = 1

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return np.array([0.1, 0.2, 1.0]), {}

        def step(self, action: Any) -> Any:
            assert action.dtype == np.float64
            assert action.shape == (2, 1)
            return np.array([0.1, 0.2, 1.0]), 0.0, False, False, {}

    model = like_sac(Doubles()).learn(40)
    for deterministic in (True, False):
        assert model.predict(np.array([0.1, 0.2, 1.0]), deterministic=deterministic)[0].dtype == np.float64


@pytest.mark.parametrize("make", [lambda: OneHotTask(PointTask(GOALS[0]), 1, 4), new_tasks])
def test_the_environments_pass_the_checker_of_sb3(make: Any) -> None:
    check_env(make(), skip_render_check=True)


def test_callbacks_of_sb3(tmp_path: Path) -> None:
    model = like_sac(stats_window_size=5)
    better = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1)
    evaluation = EvalCallback(
        Monitor(pendulum()),
        callback_on_new_best=StopTrainingOnRewardThreshold(0),
        callback_after_eval=better,
        eval_freq=100,
        n_eval_episodes=1,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    counted: list[int] = []
    events: list[BaseCallback] = [
        evaluation,
        EveryNTimesteps(50, CheckpointCallback(1, str(tmp_path), save_replay_buffer=True)),
        LogEveryNTimesteps(50),
        StopTrainingOnMaxEpisodes(3),
    ]
    model.learn(200, callback=CallbackList(events))
    model.learn(20, callback=lambda *_: not counted.append(model.num_timesteps))
    assert counted == list(range(1, 21))
    model.learn(20, callback=[])
    best = MultiTaskSAC.load(tmp_path / "best_model", env=pendulum(), device="cpu")
    best.load_replay_buffer(tmp_path / "rl_model_replay_buffer_100_steps.pkl")
    assert best.replay_buffer.size() == 99  # as in SB3, callbacks come before the step is stored
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == 2


def test_the_rate_of_success_is_logged() -> None:
    model = make_model(env=VecMonitor(points(), info_keywords=("is_success",)))
    rows: list[dict[str, Any]] = []

    class Values(Rows):
        def write(self, key_values: dict[str, Any], *_: Any, **__: Any) -> None:
            rows.append(dict(key_values))

    model.set_logger(Logger(None, [Values()]))
    model.learn(160, log_interval=4)
    assert len(rows) == 2
    for row in rows:
        assert 0 <= row["rollout/success_rate"] <= 1
        assert {"time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/total_timesteps"} <= row.keys()


def test_modes_of_training() -> None:
    model = make_model(policy_kwargs={"network": Plain}).learn(60)
    nets = [model.actor.net, *model.critic.nets]
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        assert all(part.training == mode for net in nets for part in net.modules())
        assert not any(net.training for net in model.critic_target.nets)
    before = copy.deepcopy(model.actor.net.norm.running_mean)
    one, other = (model.predict(observations(), deterministic=True)[0] for _ in range(2))
    assert np.array_equal(one, other)
    assert torch.equal(model.actor.net.norm.running_mean, before)


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


@pytest.mark.parametrize("algorithm", [MultiTaskSAC, OverlappedSAC])
def test_train_takes_batches_of_the_size_that_the_model_has(algorithm: type[MultiTaskSAC]) -> None:
    model = algorithm("MlpPolicy", points(), learning_starts=8, batch_size=2 * TASKS, device="cpu")
    model.learn(40)
    before = model._n_updates
    model.train(gradient_steps=2)
    assert model._n_updates == before + 2


def test_what_waits_in_an_overlapped_model_is_not_lost(tmp_path: Path) -> None:
    model = OverlappedSAC("MlpPolicy", points(), learning_starts=8, device="cpu").learn(40)
    model.save_checkpoint(tmp_path / "there")
    with pytest.raises(ValueError, match="is of an OverlappedSAC; load it by"):
        MultiTaskSAC.load_checkpoint(tmp_path / "there", points())
    assert OverlappedSAC.load_checkpoint(tmp_path / "there", points()).updates_due == model.updates_due


def test_products_in_16_bits_are_for_float32_alone() -> None:
    model = make_model(precision="bf16").learn(40)
    model.policy.double()
    with pytest.raises(ValueError, match='`precision` must be "float32" for parameters'):
        model.train(1)
    with pytest.raises(ValueError, match="`precision` must be one of 'float32', 'bf16'"):
        make_model(precision="half")


def test_an_option_that_a_checkpoint_hangs_on_stays(tmp_path: Path) -> None:
    model = make_model().learn(40)
    model.lag_rollouts = True
    with pytest.raises(RuntimeError, match="`lag_rollouts` must stay as it was when the model was made, got True"):
        model.save_checkpoint(tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": float("nan")}, "`gamma` must be a number, at least 0 and at most 1, got nan"),
        ({"tau": 7}, "`tau` must be a number, at least 0 and at most 1, got 7"),
        ({"max_grad_norm": "1"}, "`max_grad_norm` must be a number or None, got '1'"),
        ({"reward_scale": "x"}, "`reward_scale` must be a number, got 'x'"),
        ({"actor_starts": 2.5}, "`actor_starts` must be an integer, got 2.5"),
        ({"batch_size": 64.0}, "`batch_size` must be an integer, got 64.0"),
    ],
    ids=str,
)
def test_numbers_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_model(**options)


def test_graphs_that_are_turned_off_stay_off(tmp_path: Path) -> None:
    model = make_model().learn(40)
    model.capture = False
    model.save_checkpoint(tmp_path / "there")
    assert not MultiTaskSAC.load_checkpoint(tmp_path / "there", points()).capture
