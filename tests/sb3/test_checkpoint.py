"""A run that is stopped, killed or moved goes on as if nothing had happened, and no file of it can run code."""

import contextlib
import copy
import errno
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)
from torch import Tensor, nn

from dynroute import networks
from dynroute_sb3 import (
    CheckpointDirectory,
    DamagedError,
    MultiTaskSAC,
    OneHotTask,
    PointTask,
    latest_checkpoint,
    point_tasks,
    replay,
    storage,
    tree,
)
from dynroute_sb3.points import GOALS
from dynroute_sb3.policies import D2RPolicy
from dynroute_sb3.randomness import random_state

NETWORKS: dict[str, dict[str, Any]] = {
    "D2RPolicy": {"num_modules": 3, "width": 8, "trunk_sizes": (16, 16), "router_sizes": (16,)},
    "PaCoPolicy": {"num_sets": 3, "hidden_sizes": (16, 16)},
    "MlpPolicy": {"hidden_sizes": (16, 16)},
    "BRCPolicy": {"width": 8, "blocks": 1, "embedding_features": 3},
    "ScaleMoEPolicy": {"num_experts": 3, "width": 8, "embedding_features": 3, "level": "output"},
}


def make_model(env: VecEnv, policy: Any = "D2RPolicy", **options: Any) -> MultiTaskSAC:
    network = {"network_kwargs": NETWORKS.get(policy, NETWORKS["D2RPolicy"]), **options.pop("policy_kwargs", {})}
    defaults = {"learning_rate": 3e-3, "batch_size": 8, "learning_starts": 20, "buffer_size": 100, "seed": 0}
    return MultiTaskSAC(policy, env, policy_kwargs=network, device="cpu", **{**defaults, **options})


class WithoutState(PointTask):
    """An environment that cannot tell its state."""

    @property
    def get_state(self) -> Any:
        raise AttributeError("get_state")


def wrapped(wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]) -> list[Any]:
    return [lambda make=make: wrap(make()) for make in point_tasks(2)]


def makers(cls: Callable[..., gym.Env[Any, Any]]) -> list[Any]:
    return [lambda task=task: OneHotTask(cls(GOALS[task]), task, 2) for task in range(2)]


ENVIRONMENTS: dict[str, Callable[[], VecEnv]] = {
    "dummy": lambda: DummyVecEnv(point_tasks(2)),
    "several of a task": lambda: DummyVecEnv([point_tasks(2)[task] for task in (0, 1, 0)]),
    "VecMonitor": lambda: VecMonitor(DummyVecEnv(point_tasks(2))),
    "Monitor": lambda: DummyVecEnv(wrapped(Monitor)),
    "Monitor inside": lambda: DummyVecEnv(makers(lambda goal: Monitor(PointTask(goal)))),
    "subprocesses": lambda: SubprocVecEnv(wrapped(Monitor), start_method="forkserver"),
    "VecNormalize": lambda: VecNormalize(DummyVecEnv(point_tasks(2)), norm_obs=False),
}


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    """What starts the processes of environments imports torch once, and not in each of them."""
    get_context("forkserver").set_forkserver_preload(["dynroute_sb3", "pytest", "hypothesis"])


def everything(model: MultiTaskSAC) -> dict[str, Any]:
    """All that a run depends on and tells, the clock left out."""
    assert model.env is not None
    assert model.replay_buffer is not None
    buffer, env, wrappers = model.replay_buffer, model.env, {}
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecMonitor):
            wrappers["monitor"] = [env.episode_returns, env.episode_lengths]
        if isinstance(env, VecNormalize):
            wrappers["normalize"] = [env.returns, env.ret_rms.mean, env.ret_rms.var, env.ret_rms.count]
        env = env.venv
    return copy.deepcopy(
        {
            "parameters": model.get_parameters(),
            "log_ent_coef": model.log_ent_coef,
            "rows": buffer.rows,
            "paths": buffer.paths,
            "positions": [buffer.positions, buffer.counts, buffer.vector_steps],
            "random": random_state(),
            "actions": model.action_space.np_random.bit_generator.state,
            "environments": model.env.env_method("get_state"),
            "monitors": model.env.get_attr("rewards") if all(model.env.env_is_wrapped(Monitor)) else None,
            "wrappers": wrappers,
            "episodes": [{**info, "t": None} for info in model.ep_info_buffer or ()],
            "report": vars(model.report),
            "progress": [
                getattr(model, name)
                for name in ("num_timesteps", "_n_updates", "_episode_num", "_last_obs", "ep_success_buffer")
            ],
        }
    )


def assert_same(a: Any, b: Any, place: str = "") -> None:
    """Asserts that two trees are equal bit for bit."""
    if isinstance(a, (Tensor, np.ndarray)):
        assert type(a) is type(b), place
        assert (a.dtype, a.shape) == (b.dtype, b.shape), place
        if isinstance(a, Tensor):
            a, b = (x.detach().contiguous().flatten().view(torch.uint8).numpy() for x in (a, b))
        assert a.tobytes() == b.tobytes(), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, (list, tuple, deque)):
        assert (type(a), len(a)) == (type(b), len(b)), place
        assert not isinstance(a, deque) or a.maxlen == b.maxlen, place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}.{i}")
    else:
        assert a == b or (a != a and b != b), f"{place}: {a!r} and {b!r}"


def scramble() -> None:
    """Leaves the generators as another process would find them."""
    random.seed(99)
    np.random.seed(98)
    torch.manual_seed(97)


# Going on -------------------------------------------------------------------------------------------------------------


def decay(progress: float) -> float:
    return 1e-3 + 4e-3 * progress**2


def tiny_network(state_features: int, num_tasks: int, out_features: int, **kwargs: Any) -> nn.Module:
    return networks.build("d2r", state_features, num_tasks, out_features, num_modules=2, width=4, **kwargs)


class OwnPolicy(D2RPolicy):
    """A policy that the package does not know."""


FACTORY = {"network": tiny_network, "network_kwargs": {"trunk_sizes": (8,), "router_sizes": ()}}
OPTIMIZER = {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}}

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

MIXED = {"replay_buffer_kwargs": {"balanced": False}}

RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # environments, options, what is given to load_checkpoint because it cannot be stored
    **{name: (name, {}, {}) for name in ENVIRONMENTS},
    "paco": ("dummy", {"policy": "PaCoPolicy"}, {}),
    "mt-sac": ("dummy", {"policy": "MlpPolicy"}, {}),
    "brc": ("dummy", {"policy": "BRCPolicy", "policy_kwargs": {"critic_kwargs": {"width": 16, "blocks": 2}}}, {}),
    "scalemoe": ("dummy", {"policy": "ScaleMoEPolicy"}, {}),
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
    "still warming up": ("dummy", {"learning_starts": 100}, {}),
}


@pytest.mark.parametrize(("environments", "options", "replace"), RUNS.values(), ids=RUNS)
def test_going_on_is_exact(environments: str, options: dict[str, Any], replace: dict[str, Any], tmp_path: Path) -> None:
    with contextlib.closing(ENVIRONMENTS[environments]()) as env:
        # The checkpoint falls into an episode of 20 steps; the buffer has wrapped around in what follows.
        model = make_model(env, **options).learn(54)
        before = everything(model)
        model.save_checkpoint(tmp_path / "there")
        assert_same(everything(model), before)  # writing changes nothing
        expected = everything(model.learn(66, reset_num_timesteps=False))
    assert model._n_updates > 0
    scramble()
    with contextlib.closing(ENVIRONMENTS[environments]()) as env:
        resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", env, "cpu", replace)
        assert_same(everything(resumed), before)
        assert_same(everything(resumed.learn(66, reset_num_timesteps=False)), expected)


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


def test_wrappers_that_count_steps(tmp_path: Path) -> None:
    # gymnasium.make puts such a wrapper around most environments; it wants to be reset before the first step.
    def make() -> VecEnv:
        return DummyVecEnv(wrapped(lambda env: gym.wrappers.TimeLimit(env, 15)))

    make_model(make()).learn(54).save_checkpoint(tmp_path / "there")
    model = MultiTaskSAC.load_checkpoint(tmp_path / "there", make(), "cpu").learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 94


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


@pytest.mark.parametrize("kind", [str, Path])
def test_memory_map(kind: type, tmp_path: Path) -> None:
    # The folder is an option like others, in both of the types that it may have.
    model = make_model(ENVIRONMENTS["dummy"](), replay_buffer_kwargs={"memory_map": kind(tmp_path)}).learn(54)
    model.save_checkpoint(tmp_path / "there")
    resumed = MultiTaskSAC.load_checkpoint(tmp_path / "there", ENVIRONMENTS["dummy"](), "cpu")
    assert isinstance(resumed.replay_buffer.rows, np.memmap)
    assert_same(everything(resumed), everything(model))


# Being killed ---------------------------------------------------------------------------------------------------------

STEPS, EVERY = 300, 20
TRACED = ("storage.py", "callbacks.py", "shutil.py")


def train(folder: Path) -> None:
    """What a user runs again and again until it is through."""
    env, last = ENVIRONMENTS["dummy"](), latest_checkpoint(folder)
    model = make_model(env) if last is None else MultiTaskSAC.load_checkpoint(last, env, "cpu")
    left = STEPS - model.num_timesteps
    model.learn(left, callback=CheckpointDirectory(EVERY, folder), reset_num_timesteps=last is None)


def count_events(count: Callable[[], None]) -> None:
    """Calls a function at every line that runs while checkpoints are written and old ones removed."""
    write = CheckpointDirectory.write

    def traced(self: CheckpointDirectory) -> None:
        def trace(frame: Any, event: str, arg: Any) -> Any:
            if not (frame.f_code.co_filename.endswith(TRACED) or frame.f_code.co_name == "write_tree"):
                return None  # its lines are not asked for
            count()
            return trace

        sys.settrace(trace)
        try:
            write(self)
        finally:
            sys.settrace(None)

    CheckpointDirectory.write = traced


def kill_often(root: Path) -> None:
    """Runs in a process of its own, which imports everything once and forks: kills one run after the other."""
    torch.set_num_threads(1)
    make_model(ENVIRONMENTS["dummy"]())  # imports what torch imports late
    rng, killed = random.Random(0), root / "killed"

    def child(work: Callable[[], None], *, after: float | None = None) -> int:
        """Runs something in a process, which is killed some time after it has started if that is asked for."""
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def undisturbed() -> None:
        events = [0]

        def count() -> None:
            events[-1] += 1

        write = CheckpointDirectory.write
        count_events(count)
        traced = CheckpointDirectory.write

        def counted(self: CheckpointDirectory) -> None:
            events.append(0)
            traced(self)

        CheckpointDirectory.write = counted
        train(root / "undisturbed")
        assert write is not traced
        (root / "events").write_text(str(events[-1]))

    def dies_at(event: int) -> None:
        left = event

        def count() -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        count_events(count)
        train(killed)

    def writes_slowly() -> None:
        digest = storage._digest
        storage._digest = lambda path: (time.sleep(0.05), digest(path))[1]
        train(killed)

    assert child(undisturbed) == 0
    events = int((root / "events").read_text())
    # Twelve times at a line of writing, one in each twelfth of it; eight times at any moment, half of them with files
    # that take long. A process that is through before its moment has come ends well.
    places = [rng.randrange(i * events // 12, (i + 1) * events // 12) for i in range(12)]
    rng.shuffle(places)
    history, leftovers = [], 0
    for kill in range(20):
        if kill < 12:
            history.append(child(lambda kill=kill: dies_at(places[kill])))
            assert history[-1] == -signal.SIGKILL, history
        else:
            work = writes_slowly if kill % 2 else lambda: train(killed)
            history.append(child(work, after=rng.uniform(0.0, 0.6)))
            assert history[-1] in (0, -signal.SIGKILL), history
        last = latest_checkpoint(killed)
        if last is not None:
            storage.check_folder(last)
        leftovers += any(killed.glob(".*"))
    assert leftovers > 4, "hardly any writing was cut short"
    assert child(lambda: train(killed)) == 0
    print(json.dumps({"leftovers": leftovers, "events": events, "history": history}))


def test_sigkill(tmp_path: Path) -> None:
    command = f"import test_checkpoint as t; t.kill_often(t.Path({str(tmp_path)!r}))"
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, [tests / "sb3", tests / "shared", *filter(None, [os.environ.get("PYTHONPATH")])]))
    environ = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command], env=environ, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    names = [f"step_{STEPS - EVERY}", f"step_{STEPS}"]
    assert sorted(path.name for path in undisturbed.iterdir()) == names
    assert sorted(path.name for path in killed.iterdir()) == names  # nor any leftovers
    files = sorted(path.name for path in (undisturbed / names[-1]).iterdir())
    assert files == ["manifest.json", "model.json", "model.safetensors", "paths.npy", "rows.npy"]
    for name in files:  # parameters, optimizers, transitions, generators: every bit
        assert (killed / names[-1] / name).read_bytes() == (undisturbed / names[-1] / name).read_bytes(), name


# The callback ---------------------------------------------------------------------------------------------------------


class Stop(BaseCallback):
    """Stops after some steps, in the middle of one."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.model.num_timesteps < self.steps


def steps_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model, which tests copy before they change it."""
    folder = tmp_path_factory.mktemp("stored") / "there"
    make_model(ENVIRONMENTS["dummy"]()).learn(54).save_checkpoint(folder)
    return folder


@pytest.fixture
def changed(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "changed"))


def load(folder: Path, environments: str = "dummy", **replace: Any) -> MultiTaskSAC:
    return MultiTaskSAC.load_checkpoint(folder, ENVIRONMENTS[environments](), "cpu", replace)


def flip(data: bytes, place: int, mask: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


FILES = ["manifest.json", "model.json", "model.safetensors", "paths.npy", "rows.npy"]


def test_every_file_is_tested(stored: Path) -> None:
    assert sorted(path.name for path in stored.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "must have [0-9]+ bytes, got [0-9]+; take another checkpoint"),
        (lambda data: data + b"\0", "must have [0-9]+ bytes, got [0-9]+; take another checkpoint"),
        (lambda data: b"", "must have [0-9]+ bytes, got 0; take another checkpoint"),
        (lambda data: flip(data, 0), "was altered: its SHA-256 is not the stored one; take another checkpoint"),
        (lambda data: flip(data, len(data) // 2), "was altered: its SHA-256"),
        (lambda data: flip(data, len(data) - 1), "was altered: its SHA-256"),
        (None, "is missing; take another checkpoint"),
    ],
    ids=["cut", "longer", "empty", "first byte", "middle byte", "last byte", "removed"],
)
def test_damage_is_told_by_file(name: str, damage: Any, told: str, changed: Path) -> None:
    path = changed / name
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    if name == "manifest.json":
        # A bit of a digest that changed cannot be told from one of the file; test_manifest looks at every byte.
        told = ".*" if damage and len(damage(data)) == len(data) else "is missing or damaged; take another checkpoint"
        path = changed if told == ".*" else path
    with pytest.raises(DamagedError, match=f"^{re.escape(str(path))}.*{told}"):
        load(changed)


def test_manifest(changed: Path) -> None:
    # Whatever byte of it changes, nothing is loaded. Some bytes are enough for a bit that makes another digit.
    manifest = changed / "manifest.json"
    data = manifest.read_bytes()
    for place in range(len(data)):
        for mask in (0x01, 0x80):
            manifest.write_bytes(flip(data, place, mask))
            with pytest.raises(DamagedError, match=f"^{re.escape(str(changed))}"):
                storage.check_folder(changed)
    for text in (
        "[]",
        "{",
        "[" * 99_999,
        '{"rows.npy": 3}',
        '{"rows.npy": [1]}',
        '{"rows.npy": ["x", "y"]}',
        "null",
        "\xff",
    ):
        manifest.write_text(text, encoding="latin-1")
        with pytest.raises(DamagedError, match=r"manifest.json is missing or damaged; take another checkpoint"):
            storage.check_folder(changed)
    whole = json.loads(data)
    for files, told in (
        ({}, r"manifest.json lists no files, and must list those of .*changed; take another checkpoint"),
        ({**whole, "../there/rows.npy": [1, ""]}, r"must list files of its folder, got '../there/rows.npy'"),
        *(
            ({name: seal for name, seal in whole.items() if name != missing}, f"{missing} is not listed in .*manifest")
            for missing in whole
        ),
    ):
        manifest.write_text(json.dumps(files))
        with pytest.raises(DamagedError, match=told):
            storage.check_folder(changed)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a folder that was stored before, there is none"):
        load(tmp_path / "none")
    with pytest.raises(DamagedError, match=r"manifest.json is missing"):
        load(tmp_path)


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


def test_nothing_is_unpickled(changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.pkl", "policy.pth", "data.pkl", "buffer.pkl", "evil.npy", "__init__.py"):
        (changed / name).write_bytes(pickle.dumps(Planted()))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        pytest.fail("pickle was used")

    for module, name in [
        *((pickle, name) for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler", "_Unpickler")),
        (torch, "load"),
        (torch, "save"),
    ]:
        monkeypatch.setattr(module, name, refuse)
    model = load(changed).learn(20, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "again")
    written = everything(model)
    model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer.reset()
    model.load_replay_buffer(tmp_path / "buffer")
    assert_same(everything(model), written)
    assert_same(everything(load(tmp_path / "again")), written)


# What does not fit ----------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes what is stored, and the manifest with it."""
    path = folder / "model.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model.json"] = storage._digest(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put(*place: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Puts a value in a place of what is stored."""

    def change(state: Any) -> None:
        for key in place[:-1]:
            state = state[key]
        state[place[-1]] = value

    return change


WIDE = ("options", "policy_kwargs", "network_kwargs", "width")
MADE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "NaN": (put("options", "gamma", value=math.nan), r"as `gamma` a number in 0..1, got nan"),
    "infinite": (put("options", "learning_rate", value=math.inf), "as `learning_rate` a finite number of at least 0"),
    "NaN inside": (put("options", "replay_buffer_kwargs", "x", value=math.nan), "replay_buffer_kwargs.x=nan is not"),
    "NaN limit": (put("options", "max_grad_norm", value=math.nan), "max_grad_norm=nan is not"),
    "a method": (put("options", "learn", value=3), "holds 'learn', which is none of the options"),
    "a method in progress": (put("progress", "train", value=3), "holds 'train', which is none of the progress"),
    "no option": (lambda state: state["options"].pop("gamma"), "must hold the option 'gamma', and has none"),
    "no part": (lambda state: state.pop("report"), "must hold the part 'report', and has none"),
    "a list": (put("options", value=[]), "must hold 'options' as it was written, got \\[\\]"),
    "width": (put(*WIDE, value=10**12), "policy_kwargs.network_kwargs.width=1000000000000 is more"),
    "another width": (put(*WIDE, value=1000), "holds another network"),
    "a wide network": (
        lambda state: (put(*WIDE, value=9)(state), state.update(network=state["network"].replace("8", "9"))),
        "holds another network|must hold .* with the shape",
    ),
    "buffer": (put("options", "buffer_size", value=10**18), "needs more memory than there is|array is too big"),
    "batch": (put("options", "batch_size", value=-4), "as `batch_size` a finite integer of at least 1, got -4"),
    "steps": (put("progress", "num_timesteps", value="many"), "as `num_timesteps` a finite integer of at least 0"),
    "unit": (put("options", "train_freq", value=[1, "year"]), "changed cannot be restored: The frequency of `train_f"),
    "paths": (put("options", "actor_paths", value="best"), "changed cannot be restored: `actor_paths` must be one of"),
    "policy": (put("policy", value=["MlpPolicy"]), "must hold 'policy' as it was written"),
    "spaces": (put("spaces", value={}), "cannot be restored, since what it holds does not fit together"),
    "random": (put("random", "torch", value=3), "cannot be restored, since what it holds does not fit together"),
    "parameters": (
        lambda state: state["parameters"]["policy"].pop("actor.temperature"),
        r"model.safetensors must hold actor.temperature with the shape",
    ),
    "optimizer": (put("parameters", "actor.optimizer", value=[]), "cannot be restored"),
    "report": (put("report", value={}), "cannot be restored, since what it holds does not fit together"),
    "environments": (put("environments", "seeds", value=None), "cannot be restored, since what it holds does not"),
    "counts": (put("buffer", "counts", value=[60, -6]), r"'counts' of a buffer, 2 integers in 0..50, got \[60, -6\]"),
    "positions": (put("buffer", "positions", value=[50, 0]), r"'positions' of a buffer, 2 integers in 0..49, got \[50"),
    "numbers of rows": (put("buffer", "counts", value=[1, 1]), r"rows.npy must hold 2 rows"),
}


@pytest.mark.parametrize("name", MADE)
def test_what_was_made_with_a_manifest_that_fits(name: str, changed: Path) -> None:
    change, told = MADE[name]
    rewrite(changed, change)
    with pytest.raises(ValueError, match=f"^{re.escape(str(changed))}.*") as caught:
        load(changed)
    assert re.search(told, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_wrappers_whose_methods_would_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    make_model(ENVIRONMENTS["VecNormalize"]()).learn(8).save_checkpoint(folder)
    whole = (folder / "model.json").read_text()
    for place in (("step",), ("ret_rms", "update")):
        (folder / "model.json").write_text(whole)
        rewrite(folder, put("environments", "vector_wrappers", 0, *place, value=3))
        with pytest.raises(ValueError, match=r"there cannot be restored: the state of VecNormalize must hold .*, got "):
            load(folder, "VecNormalize")


def test_a_state_that_is_deep_or_none(changed: Path) -> None:
    for text, told in (
        ("[" * 99_999, r"model.json or .safetensors is missing or damaged"),
        ("[]", "must have format 2"),
    ):
        (changed / "model.json").write_text(text)
        manifest = json.loads((changed / "manifest.json").read_text())
        manifest["model.json"] = storage._digest(changed / "model.json")
        (changed / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=told):
            load(changed)


def places(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*before, key)
        yield from places(value, (*before, key))


def test_whatever_is_changed_is_a_sentence(changed: Path) -> None:
    whole = (changed / "model.json").read_text()
    draw = random.Random(0)
    junk = [
        None,
        True,
        -1,
        0,
        2.5,
        10**30,
        "auto",
        "",
        [],
        [[1]],
        {},
        {"$tensor": "0"},
        {"$array": "4"},
        {"$missing": ""},
    ]
    everywhere = list(places(json.loads(whole)))
    chosen = draw.sample([place for place in everywhere if place[0] in ("parameters", "random")], 40)
    chosen += [place for place in everywhere if place[0] not in ("parameters", "random")]
    for place in chosen:
        value = draw.choice(junk)
        (changed / "model.json").write_text(whole)
        rewrite(changed, put(*place, value=value))
        told: list[str] = []
        try:
            load(changed)
        except ValueError as error:
            told.append(str(error))
        assert all(str(changed) in sentence for sentence in told), (place, value, told)


@pytest.mark.parametrize("number", [0, 1, 3, None, "2"])
def test_another_format(number: Any, changed: Path) -> None:
    rewrite(changed, lambda state: state.update(format=number))
    with pytest.raises(ValueError, match=f"changed must have format 2, got {number}; it was written by another vers"):
        load(changed)


def test_another_number_of_environments(stored: Path) -> None:
    with pytest.raises(
        ValueError, match=r"needs 2 environments to go on as before, got 3; save\(\) and load\(\) allow"
    ):
        load(stored, "several of a task")


class Wide(PointTask):
    """A point with other spaces."""

    def __init__(self, goal: tuple[float, float], observation: float = 2, action: float = 1) -> None:
        super().__init__(goal)
        self.observation_space = gym.spaces.Box(-observation, observation, (4,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-action, action, (2,), dtype=np.float32)


@pytest.mark.parametrize(
    ("sizes", "told"), [({"observation": 3}, "observation space Box"), ({"action": 2}, "action space Box")], ids=str
)
def test_other_spaces(sizes: dict[str, float], told: str, stored: Path) -> None:
    env = DummyVecEnv(makers(lambda goal: Wide(goal, **sizes)))
    with pytest.raises(ValueError, match=rf"needs environments with the {told}.*, got Box"):
        MultiTaskSAC.load_checkpoint(stored, env, "cpu")


def other(*args: Any, **kwargs: Any) -> nn.Module:
    return networks.build("mt-sac", *args, hidden_sizes=(8,))


def wider(*args: Any, **kwargs: Any) -> nn.Module:
    return networks.build("d2r", *args, num_modules=2, width=5, **kwargs)


@pytest.mark.parametrize("network", [other, wider])
def test_another_network(network: Any, tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["dummy"](), "MultiTaskPolicy", policy_kwargs=FACTORY).learn(54)
    model.save_checkpoint(tmp_path / "there")
    env = ENVIRONMENTS["dummy"]()
    env.reset()
    before = copy.deepcopy(env.env_method("get_state"))
    with pytest.raises(ValueError, match=r"holds another network: DynamicDepthRouting .*, and not "):
        MultiTaskSAC.load_checkpoint(tmp_path / "there", env, "cpu", {"network": network})
    assert_same(env.env_method("get_state"), before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": decay}, "learning_rate {module}.decay"),
        ({"policy": "MultiTaskPolicy", "policy_kwargs": FACTORY}, "network {module}.tiny_network"),
        ({"policy_kwargs": OPTIMIZER}, "optimizer_class torch.optim.rmsprop.RMSprop"),
        ({"policy": OwnPolicy}, "policy {module}.OwnPolicy"),
    ],
    ids=["learning_rate", "network", "optimizer_class", "policy"],
)
def test_what_is_no_part_of_a_checkpoint_is_asked_for(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    make_model(ENVIRONMENTS["dummy"](), **options).save_checkpoint(tmp_path / "there")
    told = told.format(module=__name__)
    name = told.split()[0]
    asked = re.escape(f"needs the {told}, which it does not hold: pass replace={{{name!r}: ...}}.")
    with pytest.raises(ValueError, match=asked):
        load(tmp_path / "there")


class Telling(gym.Wrapper[Any, Any, Any, Any]):
    """Tells something at the end of an episode."""

    thing: Any = None

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return (*rest, {**info, "thing": self.thing})


def test_what_cannot_be_stored_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = DummyVecEnv(wrapped(lambda env: Monitor(Telling(env), info_keywords=("thing",))))
    model = make_model(env, learning_starts=100)
    monkeypatch.setattr(Telling, "thing", object())
    model.learn(50)

    def assert_refused(place: str, kind: str) -> None:
        told = f"`{place}` must be plain data, a tensor or an array to be stored without code, got {kind}."
        with pytest.raises(TypeError, match=f"^{re.escape(told)}"):
            model.save_checkpoint(tmp_path / "there")
        assert list(tmp_path.iterdir()) == []

    assert_refused("model.progress.ep_info_buffer.0.thing", "object")
    model.ep_info_buffer.clear()
    monkeypatch.setattr(PointTask, "get_state", lambda self: {"generators": [self.np_random]})
    assert_refused("model.environments.states.0.generators.0", "Generator")
    monkeypatch.undo()
    model.policy_kwargs["network_kwargs"] = {"sizes": [3, {4}]}
    assert_refused("model.options.policy_kwargs.network_kwargs.sizes.1", "set")
    del model.policy_kwargs["network_kwargs"]
    model.action_noise = NormalActionNoise(np.zeros(2), np.ones(2))
    assert_refused("model.options.action_noise", "NormalActionNoise")


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


# Writing --------------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_not_overwritten(stored: Path, changed: Path, tmp_path: Path) -> None:
    model = load(stored)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("changed", "empty", "file"):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        for save in (model.save_checkpoint, model.save_replay_buffer):
            with pytest.raises(FileExistsError, match=f"{name} must not exist yet.*: what is stored is never overwrit"):
                save(tmp_path / name)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_replay_buffer_takes_the_place_of_another(stored: Path, tmp_path: Path) -> None:
    # SB3's CheckpointCallback writes to the same names when a run is repeated.
    model = load(stored)
    for rows in (0, 2):
        model.replay_buffer.rows[:, 0] += rows
        model.save_replay_buffer(tmp_path / "buffer")
    other = load(stored)
    other.load_replay_buffer(tmp_path / "buffer")
    assert np.array_equal(other.replay_buffer.rows, model.replay_buffer.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["buffer"]


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of two processes that write the same folder, one is told that it came late, and the other's files stay whole.
    folder = tmp_path / "there"
    with pytest.raises(OSError, match=r"not empty|exists"), storage.writing_folder(folder) as late:  # noqa: PT012
        (late / "rows.npy").write_bytes(b"late")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with storage.writing_folder(folder) as first:
                (first / "rows.npy").write_bytes(b"first")
    storage.check_folder(folder)
    assert (folder / "rows.npy").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [folder]


@contextlib.contextmanager
def full_disk(patch: pytest.MonkeyPatch, where: str) -> Iterator[None]:
    """A disk that is full in the middle of writing."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def after_some(path: Path) -> Any:
        path.write_bytes(b"some")
        return fail()

    text, rename = Path.write_text, Path.rename
    places: dict[str, tuple[Any, str, Any]] = {
        "rows.npy": (replay, "write_rows", lambda path, *args: after_some(path)),
        "safetensors": (tree, "save_file", lambda tensors, path: after_some(path)),
        "model.json": (
            Path,
            "write_text",
            lambda path, *args: after_some(path) if path.name == "model.json" else text(path, *args),
        ),
        "manifest": (
            Path,
            "write_text",
            lambda path, *args: after_some(path) if path.name == "manifest.json" else text(path, *args),
        ),
        "fsync": (os, "fsync", fail),
        "mkdir": (Path, "mkdir", lambda path, *args, **kwargs: path.exists() or fail()),
        "rename": (Path, "rename", lambda path, to: fail() if path.suffix == ".part" else rename(path, to)),
    }
    with patch.context() as active:
        active.setattr(*places[where])
        yield


@pytest.mark.parametrize("where", ["rows.npy", "safetensors", "model.json", "manifest", "fsync", "mkdir", "rename"])
def test_full_disk(where: str, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(stored)
    callback = CheckpointDirectory(20, tmp_path)
    model.learn(2, callback=callback, reset_num_timesteps=False)
    assert steps_in(tmp_path) == {"step_54", "step_56"}
    with full_disk(monkeypatch, where), pytest.raises(OSError, match="No space left on device"):
        model.learn(40, callback=callback, reset_num_timesteps=False)
    assert steps_in(tmp_path) == {"step_54", "step_56"}
    assert load(tmp_path / "step_56").num_timesteps == 56
    # Once there is room, the same model goes on.
    model.learn(2, callback=callback, reset_num_timesteps=False)
    assert latest_checkpoint(tmp_path) == tmp_path / f"step_{model.num_timesteps}"
    load(tmp_path / f"step_{model.num_timesteps}")


@pytest.mark.parametrize("limit", [100, 2000, 10_000])
def test_files_that_may_not_grow(limit: int, stored: Path, tmp_path: Path) -> None:
    # The system itself refuses to write more, wherever that is: nothing here knows in which file.
    model = load(stored)
    largest = max(path.stat().st_size for path in stored.iterdir())
    assert limit < largest
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(Exception, match=r"(?i)file too large"):
            model.save_checkpoint(tmp_path / "there")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    model.save_checkpoint(tmp_path / "there")


# The buffer alone -----------------------------------------------------------------------------------------------------


def test_replay_buffer(stored: Path, tmp_path: Path) -> None:
    model = load(stored)
    model.save_replay_buffer(str(tmp_path / "buffer"))
    expected = everything(model)
    fresh = make_model(ENVIRONMENTS["dummy"]())
    fresh.load_replay_buffer(tmp_path / "buffer")
    for name in ("rows", "paths", "positions"):
        assert_same(everything(fresh)[name], expected[name])

    other = make_model(ENVIRONMENTS["dummy"](), buffer_size=60).learn(20)
    before = everything(other)
    with pytest.raises(ValueError, match="the stored buffer must have capacity 30, got 50"):
        other.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(DamagedError, match=r"buffer.json or .safetensors is missing or damaged"):
        other.load_replay_buffer(stored)  # a checkpoint is no buffer
    assert_same(everything(other), before)


def test_a_folder_that_earlier_versions_wrote(stored: Path, tmp_path: Path) -> None:
    model = load(stored)
    with storage.writing_folder(tmp_path / "buffer") as folder:
        tree.write_tree(folder, "buffer", model.replay_buffer.save(folder))
    fresh = make_model(ENVIRONMENTS["dummy"]())
    fresh.load_replay_buffer(tmp_path / "buffer")
    assert_same(everything(fresh)["rows"], everything(model)["rows"])
    (tmp_path / "buffer" / "rows.npy").unlink()
    with pytest.raises(DamagedError, match=r"rows.npy is missing"):
        fresh.load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize("counts", [[0, 0, 0], [7, 7, 7], [0, 3, 7], [1, 0, 0]], ids=str)
@pytest.mark.parametrize("chunk", [1, 40, 41, 79, 1 << 24])
def test_rows_in_pieces(chunk: int, counts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHUNK", chunk)  # a row takes 20 bytes
    array = np.random.default_rng(0).random((3, 7, 5), dtype=np.float32)
    numbers = np.array(counts)
    storage.write_rows(tmp_path / "rows.npy", array, numbers)
    written = np.load(tmp_path / "rows.npy", allow_pickle=False)
    assert_same(written, np.concatenate([ring[:count] for ring, count in zip(array, counts, strict=True)]))
    read = np.full_like(array, -1)
    storage.read_rows(tmp_path / "rows.npy", read, numbers)
    for ring, original, count in zip(read, array, counts, strict=True):
        assert_same(ring[:count], original[:count])
        assert (ring[count:] == -1).all()


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    path, counts = tmp_path / "rows.npy", np.array([2, 1])
    array = np.zeros((2, 4, 5), dtype=np.float32)
    storage.write_rows(path, array, counts)
    with pytest.raises(DamagedError, match=r"must hold 4 rows of 5 numbers of type float32, got \(3, 5\) of float32"):
        storage.read_rows(path, array, np.array([2, 2]))
    with pytest.raises(DamagedError, match=r"must hold 3 rows of 5 numbers of type uint8, got \(3, 5\) of float32"):
        storage.read_rows(path, array.astype(np.uint8), counts)
    for data in (path.read_bytes()[:-1], b"", b"no array", pickle.dumps(Planted())):
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=r"rows.npy is not a whole .npy file; take another checkpoint"):
            storage.read_rows(path, array, counts)
    np.save(path, np.array([Planted()]), allow_pickle=True)
    with pytest.raises(DamagedError, match=r"rows.npy is not a whole .npy file; take another checkpoint"):
        storage.read_rows(path, array, counts)


# Trees ----------------------------------------------------------------------------------------------------------------

TENSOR_TYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
ARRAY_TYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
SHAPES = [(), (0,), (1,), (3,), (2, 0, 3), (2, 3)]


def bits(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bits at all, NaNs with a payload among them."""
    size = int(np.prod(shape))
    data = torch.tensor(list(bits(seed, size * dtype.itemsize)), dtype=torch.uint8)
    return (data > 127 if dtype == torch.bool else data.view(dtype)).reshape(shape)


def array(dtype: str, shape: tuple[int, ...], seed: int) -> Any:
    data = np.frombuffer(bits(seed, int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype="u1")
    return (data > 127 if dtype == "?" else data.view(dtype)).reshape(shape).copy()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**300), 2**300),
    st.floats(),
    st.text(),
    st.builds(tensor, st.sampled_from(TENSOR_TYPES), st.sampled_from(SHAPES), st.integers(0, 99)),
    st.builds(array, st.sampled_from(ARRAY_TYPES), st.sampled_from(SHAPES), st.integers(0, 99)),
)
KEYS = st.one_of(st.text(max_size=3), st.integers(-3, 3), st.sampled_from(["$tensor", "$items", "a.b", "a", "b", "$"]))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.builds(deque, st.lists(inner, max_size=4), st.sampled_from([None, 4, 100])),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def round_trip(folder: Path, value: Any) -> Any:
    tree.write_tree(folder, "tree", value)
    return tree.read_tree(folder, "tree")


@given(value=TREES)
def test_tree(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "tree"
    folder.mkdir(exist_ok=True)
    assert_same(round_trip(folder, value), value)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    # Parts of one tensor, views of it and parameters come back one by one, with memory of their own.
    whole = torch.arange(6.0)
    parameter = nn.Parameter(whole.view(2, 3))
    value = [whole, whole[2:4], whole[::2], parameter.T, whole, whole.expand(2, 6), whole.numpy()[1:]]
    read = round_trip(tmp_path, value)
    assert_same(read, [x.detach() if isinstance(x, Tensor) else x for x in value])
    read[0].zero_()
    assert torch.equal(read[4], whole)
    assert not any(x.requires_grad for x in read if isinstance(x, Tensor))


@pytest.mark.parametrize(
    "value",
    [
        {1: torch.ones(1), "1": torch.zeros(1)},
        {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        [[torch.ones(1)], {"0.0": torch.zeros(1)}],
        {"a": [torch.ones(1)], "a.0": torch.zeros(1)},
        {(1, 2): torch.ones(1), "(1, 2)": torch.zeros(1)},
        {None: torch.ones(1), "None": torch.zeros(1), 1.5: torch.ones(2), "1.5": torch.zeros(2)},
    ],
    ids=str,
)
def test_places_that_read_alike(value: Any, tmp_path: Path) -> None:
    assert_same(round_trip(tmp_path, value), value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float32(0.1), float(np.float32(0.1))), (np.int64(2**62), 2**62), (np.bool_(True), True), (np.str_("x"), "x")],
    ids=str,
)
def test_scalars_of_numpy_come_back_as_numbers(value: Any, expected: Any, tmp_path: Path) -> None:
    read = round_trip(tmp_path, [value])[0]
    assert (type(read), read) == (type(expected), expected)


@pytest.mark.parametrize(
    "value", [np.arange(4)[::-1], np.arange(4).astype(">i4"), np.broadcast_to(np.float64(3), (2, 2))], ids=str
)
def test_arrays_that_torch_does_not_take_as_they_are(value: Any, tmp_path: Path) -> None:
    # Such arrays come from environments: views that run backwards or cannot be written, files of another machine.
    assert np.array_equal(round_trip(tmp_path, value), value)


@pytest.mark.parametrize(
    "value",
    [
        {1},
        b"bytes",
        object(),
        len,
        1j,
        np.complex64(1),
        np.datetime64("2020-01-01"),
        np.array([None]),
        np.array(["text"]),
        np.zeros(2, dtype=[("field", "f4")]),
        torch.eye(2).to_sparse(),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_what_is_no_plain_data_is_named_by_its_place(value: Any, tmp_path: Path) -> None:
    for nested, place in (
        (value, "tree"),
        ({"a": [0, value]}, "tree.a.1"),
        ({"a": deque([value])}, "tree.a.0"),
        ({7: (value,)}, "tree.7.0"),
    ):
        with pytest.raises(TypeError, match=f"^`{re.escape(place)}` must be plain data, a tensor or an array to be"):
            tree.write_tree(tmp_path, "tree", nested)


def test_trees_that_are_damaged(tmp_path: Path) -> None:
    def assert_refused() -> None:
        with pytest.raises(DamagedError, match=r"tree.json or .safetensors is missing or damaged: "):
            tree.read_tree(tmp_path, "tree")

    assert_refused()  # there is none
    for text in ("{", '{"$tensor": "none"}', '{"$array": ["a"]}', '{"$deque": 3}', '{"$items": [3]}', '{"$tuple": 1}'):
        tree.write_tree(tmp_path, "tree", {"a": torch.ones(3)})
        (tmp_path / "tree.json").write_text(text)
        assert_refused()
    for data in (b"", b"short", bytes(100), pickle.dumps(Planted())):
        tree.write_tree(tmp_path, "tree", {"a": torch.ones(3)})
        (tmp_path / "tree.safetensors").write_bytes(data)
        assert_refused()


def test_environments_wrapped_in_another_way(tmp_path: Path) -> None:
    model = make_model(ENVIRONMENTS["VecMonitor"]()).learn(40)
    model.save_checkpoint(tmp_path / "there")
    for other in ("dummy", "Monitor"):
        with pytest.raises(ValueError, match=r"`env` must be wrapped as it was .*, in \['VecMonitor'\]"):
            load(tmp_path / "there", other)


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
