"""The replay buffer holds what a list of transitions would hold, by task, and replays the paths that were taken."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from replay_cases import ACTION, STATE, TASKS, TOPOLOGY, fill, make, observe, transitions
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from dynroute import Topology, networks
from dynroute_sb3 import MultiTaskSAC, RouteReplayBuffer, point_tasks
from dynroute_sb3.device_replay import DeviceReplay


def ids_of_paths(paths: Tensor) -> NDArray[np.int64]:
    low, high = TOPOLOGY.pack(paths).long().unbind(-1)
    return (low + 256 * high).numpy()


def snapshot(buffer: RouteReplayBuffer) -> list[bytes]:
    """Everything that a buffer holds, bit for bit."""
    arrays = [buffer.rows, buffer.positions, buffer.counts, np.array(buffer.vector_steps)]
    return [np.asarray(array).tobytes() for array in (*arrays, *([] if buffer.paths is None else [buffer.paths]))]


# What is stored -------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, bool, list[dict[str, Any]]]:
    """A capacity, whether time limits are told from ends, and vector steps of environments in any order."""
    envs = [task for task in range(TASKS) for _ in range(draw(st.integers(1, 3)))]
    numbers = st.floats(-1e6, 1e6, width=32)
    steps = []
    for _ in range(draw(st.integers(0, 8))):
        tasks = draw(st.permutations(envs))
        row = st.tuples(*[numbers] * (2 * STATE + ACTION + 1))
        ends = st.tuples(st.booleans(), st.sampled_from([None, False, True]), st.integers(0, 2**15 - 1))
        values = np.array([draw(row) for _ in tasks], dtype=np.float32)
        done, limits, paths = zip(*[draw(ends) for _ in tasks], strict=True)
        steps.append({"tasks": tasks, "values": values, "done": done, "limits": limits, "paths": paths})
    return draw(st.integers(1, 6)), draw(st.booleans()), steps


@given(histories())
def test_contents_are_those_of_a_list(history: tuple[int, bool, list[dict[str, Any]]]) -> None:
    capacity, tells_limits, steps = history
    buffer = make(capacity, handle_timeout_termination=tells_limits)
    oracle: list[list[dict[str, Any]]] = [[] for _ in range(TASKS)]
    for step in steps:
        values, n = step["values"], len(step["tasks"])
        obs, next_obs = observe(values[:, :2], step["tasks"]), observe(values[:, 2:4], step["tasks"])
        infos = [{} if limit is None else {"TimeLimit.truncated": limit} for limit in step["limits"]]
        bits = np.array([[path % 256, path // 256] for path in step["paths"]], dtype=np.uint8)
        buffer.add(obs, next_obs, values[:, 4:6], values[:, 6], np.array(step["done"]), infos, paths=bits)
        for i, task in enumerate(step["tasks"]):
            ended = step["done"][i] and not (tells_limits and bool(step["limits"][i]))
            oracle[task].append({"values": values[i], "ended": float(ended), "path": step["paths"][i]})
        assert buffer.size() == sum(min(len(rows), capacity) for rows in oracle)
        assert buffer.full == all(len(rows) >= capacity for rows in oracle)
        assert n == len(infos)
    assert buffer.vector_steps == len(steps)
    assert buffer.counts.tolist() == [min(len(rows), capacity) for rows in oracle]
    assert buffer.positions.tolist() == [len(rows) % capacity for rows in oracle]

    for task, rows in enumerate(oracle):
        kept = list(enumerate(rows))[-capacity:]
        places = np.array([i % capacity for i, _ in kept], dtype=np.int64)
        batch = buffer.gather(np.full(len(kept), task), places)
        one_hots = np.eye(TASKS, dtype=np.float32)[np.full(len(kept), task)]
        values = np.array([row["values"] for _, row in kept], dtype=np.float32).reshape(-1, 7)
        assert batch.observations.numpy().tobytes() == np.hstack([values[:, :2], one_hots]).tobytes()
        assert batch.next_observations.numpy().tobytes() == np.hstack([values[:, 2:4], one_hots]).tobytes()
        assert batch.actions.numpy().tobytes() == values[:, 4:6].tobytes()
        assert batch.rewards.numpy().tobytes() == values[:, 6:].tobytes()
        assert batch.dones.flatten().tolist() == [row["ended"] for _, row in kept]
        assert batch.discounts is None
        assert batch.tasks.tolist() == [task] * len(kept)
        assert batch.paths is not None
        assert batch.paths.shape[1:] == TOPOLOGY.path_shape
        assert ids_of_paths(batch.paths).tolist() == [row["path"] for _, row in kept]

    newest = buffer.latest_paths(2)
    assert [ids_of_paths(paths).tolist() for paths in newest] == [
        [row["path"] for row in rows[::-1]][: min(2, capacity)] for rows in oracle
    ]


def test_reset_forgets() -> None:
    buffer = fill(make(), 5)
    buffer.reset()
    assert (buffer.size(), buffer.full, buffer.vector_steps, buffer.positions.tolist()) == (0, False, 0, [0] * TASKS)
    assert ids_of_paths(fill(buffer, 1, first=77).latest_paths(9)[0]).tolist() == [77]


def test_more_environments_of_a_task_than_places() -> None:
    buffer = fill(make(2), 1, tasks=[0, 0, 1, 0, 2])
    batch = buffer.gather(np.zeros(2, dtype=int), np.arange(2))
    assert batch.rewards.flatten().tolist() == [4, 2]  # 1 was overwritten by the third of its task
    assert buffer.positions.tolist() == [1, 1, 1]


# What is drawn --------------------------------------------------------------------------------------------------------


def critical(degrees: int) -> float:
    """The 99.9 % quantile of chi-square (Wilson and Hilferty)."""
    return float(degrees * (1 - 2 / (9 * degrees) + 3.0902 * (2 / (9 * degrees)) ** 0.5) ** 3)


def test_batches_are_balanced_uniform_and_hold_together() -> None:
    # Task 0 is not full, task 1 has wrapped, task 2 has one transition.
    buffer = make(8)
    fill(buffer, 5, tasks=[0, 1, 1])
    fill(buffer, 1, tasks=[2], first=1000)
    assert buffer.counts.tolist() == [5, 8, 1]
    np.random.seed(0)
    each = 20_000
    batch = buffer.sample(TASKS * each)

    assert batch.tasks.tolist() == np.repeat(np.arange(TASKS), each).tolist()
    assert torch.equal(batch.observations[:, STATE:].argmax(1), batch.tasks)
    ids = batch.rewards.flatten()
    for task, stored in enumerate([[1, 4, 7, 10, 13], [5, 6, 8, 9, 11, 12, 14, 15], [1000]]):
        observed = torch.bincount(ids[batch.tasks == task].long(), minlength=1001)
        assert observed.nonzero().flatten().tolist() == stored
        expected = each / len(stored)
        if len(stored) > 1:
            statistic = float(((observed[stored] - expected).square() / expected).sum())
            assert statistic < critical(len(stored) - 1)

    # Whatever order they come in, the parts of a transition stay together.
    for part in (batch, buffer.gather(*_shuffled(buffer))):
        ids = part.rewards.flatten()
        rows = transitions(ids.long().numpy(), part.tasks.numpy())
        assert np.array_equal(part.observations, rows["obs"])
        assert np.array_equal(part.next_observations, rows["next_obs"])
        assert np.array_equal(part.actions, rows["action"])
        assert np.array_equal(part.dones.flatten(), rows["done"])
        assert part.paths is not None
        assert np.array_equal(ids_of_paths(part.paths), ids.long())


def _shuffled(buffer: RouteReplayBuffer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    everything = [(task, place) for task in range(TASKS) for place in range(buffer.counts[task])]
    tasks, places = np.random.permutation(everything).T
    return tasks, places


def test_draws_come_from_the_generator_of_numpy() -> None:
    buffer = fill(make(), 3)
    np.random.seed(3)
    first, second = buffer.sample(30), buffer.sample(30)
    np.random.seed(3)
    assert torch.equal(buffer.sample(30).rewards, first.rewards)
    assert not torch.equal(first.rewards, second.rewards)


@pytest.mark.parametrize("paths", [True, False])
def test_a_batch_is_a_copy(paths: bool) -> None:
    buffer = fill(make(paths=paths), 3)
    before = snapshot(buffer)
    batch = buffer.sample(30)
    assert (batch.paths is not None) == paths
    for tensor in batch:
        if tensor is not None:
            tensor.fill_(True)
    assert snapshot(buffer) == before


def test_rewards_are_normalized_as_they_are_learned_from() -> None:
    env = VecNormalize(DummyVecEnv(point_tasks(2)), norm_obs=False, clip_reward=3.0)
    env.ret_rms.var = np.array(4.0)
    buffer = fill(make(tasks=2), 4, tasks=range(2))
    before = snapshot(buffer)
    np.random.seed(0)
    raw = buffer.sample(40).rewards
    np.random.seed(0)
    batch = buffer.sample(40, env=env)
    torch.testing.assert_close(batch.rewards, (raw / (4 + env.epsilon) ** 0.5).clamp(-3, 3))
    assert batch.rewards.dtype == torch.float32
    assert (raw > 6).any()  # some were clipped
    assert snapshot(buffer) == before


def test_a_model_stores_the_rewards_of_the_environment() -> None:
    env = VecNormalize(DummyVecEnv(point_tasks(2)), norm_obs=False)
    model = small_model(env, num_modules=2)
    model.learn(60)
    buffer = model.replay_buffer
    assert buffer is not None
    for task, goal in enumerate(([0.7, 0.0], [-0.7, 0.0])):
        batch = buffer.gather(np.full(30, task), np.arange(30))
        distance = (batch.next_observations[:, :2] - torch.tensor(goal)).norm(dim=1)
        torch.testing.assert_close(batch.rewards[:, 0], -distance)


# How much room it takes -----------------------------------------------------------------------------------------------


def test_a_path_of_d2r_takes_17_bytes() -> None:
    topology = networks.build("d2r", 39, 50, 8).topology
    buffer = make(paths=False)
    buffer.keep_paths(topology)
    assert buffer.paths is not None
    assert topology.num_nodes == 17
    assert (buffer.paths.dtype, buffer.paths.shape) == (np.uint8, (TASKS, 4, 17))


ROOM = """
import os, sys
import numpy as np
import torch
from dynroute_sb3 import RouteReplayBuffer
from gymnasium import spaces
from dynroute import Topology

torch.set_num_threads(1)
observations = np.concatenate([np.random.rand(50, 39), np.eye(50)], axis=1).astype(np.float32)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def make(size, memory_map=None):
    space = spaces.Box(-np.inf, np.inf, (39 + 50,))
    buffer = RouteReplayBuffer(
        size, space, spaces.Box(-1, 1, (4,)), "cpu", 50, num_tasks=50, memory_map=memory_map)
    buffer.keep_paths(Topology.dag(17))
    return buffer

def use(buffer):
    for _ in range(40):
        buffer.add(observations, observations, np.ones((50, 4)), np.ones(50), np.zeros(50), [{}] * 50,
                   np.ones((50, 17), dtype=np.uint8))
    assert buffer.sample(6400).rewards.eq(1).all()
    assert buffer.size() == 2000

use(make(5000))  # what is loaded on the first use is not counted
for size, memory_map in ((10**7, None), (10**6, sys.argv[1])):  # a file takes its room at once
    before = resident()
    buffer = make(size, memory_map)
    assert buffer.rows.nbytes + buffer.paths.nbytes > 350 * size
    assert buffer.paths.nbytes == 17 * size
    use(buffer)
    print((resident() - before) / 1e6)
    del buffer
"""


def test_ten_million_transitions_of_mt50_take_memory_as_they_come(tmp_path: Path) -> None:
    # The system may hand out huge pages of 2 MB, which makes 100 MB for the rings of 50 tasks in each of two arrays:
    # they are switched off here, where it is counted what the buffer itself touches.
    environ = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    command = [sys.executable, "-W", "error", "-c", ROOM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    in_memory, in_file = map(float, done.stdout.split())
    assert max(in_memory, in_file) < 50
    assert list(tmp_path.iterdir()) == []


def test_a_memory_map_has_no_name_and_leaves_nothing_open(tmp_path: Path) -> None:
    # A file that the garbage collector has to close is a ResourceWarning, which is an error here.
    buffer = fill(make(4, memory_map=tmp_path), 9)
    in_memory = fill(make(4), 9)
    assert isinstance(buffer.rows, np.memmap)
    assert list(tmp_path.iterdir()) == []
    assert snapshot(buffer) == snapshot(in_memory)
    np.random.seed(0)
    batch = buffer.sample(12)
    np.random.seed(0)
    for mapped, plain in zip(batch, in_memory.sample(12), strict=True):
        assert mapped is plain is None or torch.equal(mapped, plain)


def test_a_memory_map_takes_its_room_on_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A page of a sparse file for which there is no room would kill the process when it is written.
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def not_offered(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path}'")) as caught:
        make(4, memory_map=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "posix_fallocate", not_offered)
    assert snapshot(fill(make(4, memory_map=tmp_path), 9)) == snapshot(fill(make(4), 9))


def test_the_folder_of_a_memory_map_must_be_there(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match=r"`memory_map` must be an existing directory, got .*none; make it"):
            make(4, memory_map=folder)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"`memory_map` must be an existing directory, got .*file; make it"):
        make(4, memory_map=tmp_path / "file")


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize(
    "history", [[], [(2, [0, 1, 2])], [(9, [0, 1, 2])], [(3, [1, 1])]], ids=["empty", "half", "wrapped", "one-task"]
)
def test_save_and_load(history: list[tuple[int, list[int]]], paths: bool, mapped: bool, tmp_path: Path) -> None:
    buffer = make(paths=paths)
    for steps, tasks in history:
        fill(buffer, steps, tasks)
    buffer.rows[buffer.rows == 1] = -0.0  # bits that a comparison of numbers does not see
    buffer.rows[buffer.rows == 2] = 1e-42

    state = buffer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npy", *(["paths.npy"] if paths else [])}
    assert len(np.load(tmp_path / "rows.npy", allow_pickle=False)) == buffer.size()  # and not the empty places
    other = make(paths=paths, memory_map=tmp_path if mapped else None)
    other.load(tmp_path, state)
    assert snapshot(other) == snapshot(buffer)

    # Neither holds on to the other, nor to the files, and both go on alike.
    for path in tmp_path.iterdir():
        path.unlink()
    for one in (buffer, other):
        fill(one, 3, first=500)
    assert snapshot(other) == snapshot(buffer)


def with_paths(topology: Topology) -> RouteReplayBuffer:
    buffer = make(paths=False)
    buffer.keep_paths(topology)
    return buffer


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (lambda: make(4, tasks=2), "num_tasks 2, got 3"),
        (lambda: make(5), "capacity 5, got 4"),
        (
            lambda: RouteReplayBuffer(12, spaces.Box(-1, 1, (9,)), spaces.Box(-1, 1, (2,)), "cpu", num_tasks=3),
            "state_features 6, got 2",
        ),
        (  # rows of the same width
            lambda: RouteReplayBuffer(12, spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (4,)), "cpu", num_tasks=3),
            "state_features 1, got 2",
        ),
        (
            lambda: RouteReplayBuffer(12, spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (3,)), "cpu", num_tasks=3),
            "action_dim 3, got 2",
        ),
        (lambda: make(paths=False), "graph None, got Topology(num_nodes=6, num_edges=15, path_shape=(5, 5))"),
        (  # paths of the same number of bytes
            lambda: with_paths(Topology.layered([2, 3])),
            "graph Topology(num_nodes=6, num_edges=9, path_shape=(4, 3)), got Topology(num_nodes=6, num_edges=15, "
            "path_shape=(5, 5))",
        ),
    ],
    ids=["tasks", "capacity", "states", "states and actions", "actions", "paths", "graph"],
)
def test_another_shape_is_refused_by_name(ours: Any, message: str, tmp_path: Path) -> None:
    buffer = ours()
    state = fill(make(), 3).save(tmp_path)
    before = snapshot(buffer)
    with pytest.raises(ValueError, match=re.escape(f"the stored buffer must have {message}; is it from another run")):
        buffer.load(tmp_path, state)
    assert snapshot(buffer) == before


def test_another_graph_of_the_same_size_is_refused(tmp_path: Path) -> None:
    one, other = (Topology([[], [], [0], [i], [2, 3]]) for i in (0, 1))
    state = with_paths(one).save(tmp_path)
    told = "the stored buffer must have parents [[], [], [0], [1], [2, 3]], got [[], [], [0], [0], [2, 3]]"
    with pytest.raises(ValueError, match=re.escape(told)):
        with_paths(other).load(tmp_path, state)


# What is refused ------------------------------------------------------------------------------------------------------


def assert_refused(buffer: RouteReplayBuffer, message: str, **changed: Any) -> None:
    """Asserts that a step is refused with a message, and that nothing of it was written."""
    rows = {**transitions([90, 91, 92, 93], [2, 0, 1, 1]), **changed}
    before = snapshot(buffer)
    with pytest.raises(ValueError, match=re.escape(message)):
        buffer.add(**rows)
    assert snapshot(buffer) == before


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "what"),
    [("obs", "observation"), ("next_obs", "next observation"), ("reward", "reward"), ("action", "action")],
)
def test_what_is_not_finite(name: str, what: str, value: float, steps: int) -> None:
    buffer = fill(make(), steps)
    values = transitions([90, 91, 92, 93], [2, 0, 1, 1])[name].copy()
    values[(2,) if values.ndim == 1 else (2, 1)] = value
    told = f"every {what} must be finite, got {values[2].tolist()} of task 1 (environment 2) at vector step {steps}; "
    assert_refused(buffer, told + "nothing was stored of that step.", **{name: values})


@pytest.mark.parametrize("name", ["obs", "next_obs", "reward", "action"])
def test_what_is_not_finite_once_it_is_stored(name: str) -> None:
    # Rows are float32: a larger number of float64 would be an infinity there.
    values = transitions([90, 91, 92, 93], [2, 0, 1, 1])[name].astype(np.float64)
    values[(2,) if values.ndim == 1 else (2, 1)] = 1e39
    assert_refused(fill(make(), 7), "must be finite, got", **{name: values})


def one_hot(end: list[float]) -> NDArray[np.float32]:
    obs = transitions([90, 91, 92, 93], [2, 0, 1, 1])["obs"].copy()
    obs[2, STATE:] = end
    return obs


@pytest.mark.parametrize("name", ["obs", "next_obs"])
@pytest.mark.parametrize(
    "end", [[0, 0, 0], [1, 1, 0], [0, 0.5, 0.5], [0, 1, 1e-9], [np.nan, 1, 0], [0, 1, -1]], ids=str
)
def test_wrong_one_hot(name: str, end: list[float]) -> None:
    what = {"obs": "an observation", "next_obs": "a next observation"}[name]
    told = f"{what} must end with the one-hot of one of 3 tasks, row 2 ends with {np.float32(end).tolist()};"
    assert_refused(fill(make(), 7), told, **{name: one_hot(end)})


@pytest.mark.parametrize("name", ["obs", "next_obs"])
def test_observations_without_one_hot(name: str) -> None:
    assert_refused(
        fill(make(), 7), "must hold 2 numbers of state and the one-hot of one of 3", **{name: np.zeros((4, STATE))}
    )


def test_task_that_changes_within_an_episode() -> None:
    told = (
        "an environment must keep its task within an episode, environment 2 went from task 1 to 0 at vector step 7; "
        "nothing was stored of that step."
    )
    assert_refused(fill(make(), 7), told, next_obs=one_hot([1, 0, 0]))


def test_paths_belong_to_a_buffer_that_keeps_them() -> None:
    told = "`paths` must be given where the buffer keeps paths, and only there; it keeps "
    assert_refused(fill(make(), 7), f"{told}them.", paths=None)
    assert_refused(fill(make(paths=False), 7), f"{told}none.")


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (1, 2), (2,), (3, 2)], ids=str)
def test_paths_of_another_shape(shape: tuple[int, ...]) -> None:
    assert_refused(fill(make(), 7), "paths", paths=np.zeros(shape, dtype=np.uint8))


def test_keep_paths_comes_before_the_first_transition() -> None:
    buffer = fill(make(paths=False), 1)
    with pytest.raises(ValueError, match="`keep_paths` must be called before the first transition is added"):
        buffer.keep_paths(TOPOLOGY)
    assert buffer.paths is buffer.topology is None
    buffer.reset()
    buffer.keep_paths(TOPOLOGY)


@pytest.mark.parametrize(("batch", "instead"), [(0, 3), (1, 3), (2, 3), (4, 3), (8, 6)])
def test_batch_size_that_is_no_multiple(batch: int, instead: int) -> None:
    told = f"`batch_size` must be a multiple of the 3 tasks, got {batch}; for instance {instead}."
    with pytest.raises(ValueError, match=re.escape(told)):
        fill(make(), 1).sample(batch)


@pytest.mark.parametrize(("tasks", "missing"), [([], [0, 1, 2]), ([1], [0, 2]), ([0, 1], [2])], ids=str)
def test_task_without_transitions(tasks: list[int], missing: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"tasks {missing} have none; raise `learning_starts`, or give")):
        fill(make(), bool(tasks), tasks).sample(6)


def test_optimize_memory_usage() -> None:
    with pytest.raises(ValueError, match="`optimize_memory_usage` must be False: rows of one task do not follow one"):
        make(optimize_memory_usage=True)


# Replaying ------------------------------------------------------------------------------------------------------------


def small_model(env: Any, **network: Any) -> MultiTaskSAC:
    sizes = {"num_modules": 4, "width": 8, "trunk_sizes": (16, 16), "router_sizes": (16,), **network}
    return MultiTaskSAC(
        "D2RPolicy",
        env,
        3e-3,
        actor_paths="replayed",
        batch_size=16,
        buffer_size=2000,
        learning_starts=40,
        policy_kwargs={"network_kwargs": sizes},
        seed=0,
        device="cpu",
    )


@pytest.mark.parametrize("gate", ["sample-2", "top-2", "hard"])
def test_a_replayed_path_has_the_weights_it_was_taken_with(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two environments of task 0 and one of task 1, so that rows of the buffer and of the environments differ.
    makers = point_tasks(2)
    model = small_model(DummyVecEnv([makers[0], makers[1], makers[0]]), gate=gate)
    acted: list[tuple[Tensor, Any, Any]] = []
    act = model.actor.act

    def recorded(observations: Tensor, *, deterministic: bool) -> Any:
        actions, route = act(observations, deterministic=deterministic)
        acted.append((observations.clone(), actions, route))
        return actions, route

    monkeypatch.setattr(model.actor, "act", recorded)

    def check(number: int, *, warming_up: bool) -> None:
        assert len(acted) == number
        buffer = model.replay_buffer
        assert buffer is not None
        observations = torch.stack([seen for seen, _, _ in acted]).flatten(0, 1)
        path, weights = (torch.stack([route[i] for _, _, route in acted]).flatten(0, 1) for i in (1, 2))
        actions = torch.stack([drawn for _, drawn, _ in acted]).flatten(0, 1)
        for task in range(2):
            mine = observations[:, 4 + task] == 1
            places = (buffer.positions[task] - int(mine.sum()) + np.arange(int(mine.sum()))) % buffer.capacity
            batch = buffer.gather(np.full(len(places), task), places)
            assert torch.equal(batch.observations, observations[mine])
            assert batch.paths is not None
            assert torch.equal(batch.paths, path[mine])
            assert torch.equal(batch.actions, actions[mine]) != warming_up  # random while warming up
            for training in (False, True):
                model.policy.set_training_mode(training)
                with torch.no_grad():
                    _, _, route = model.actor.distribution(batch.observations, path=batch.paths)
                assert route is not None
                assert torch.equal(route.path, batch.paths)
                torch.testing.assert_close(route.weights, weights[mine], rtol=1e-5, atol=1e-6)
        # Or nothing would have been tested: sampled paths differ from one another, and weights from state to state.
        assert gate != "sample-2" or len(path.flatten(1).unique(dim=0)) > 4
        assert gate == "hard" or len(weights.flatten(1).unique(dim=0)) > 4
        acted.clear()

    model.learn(39)  # the warm-up ends at 40
    check(13, warming_up=True)
    model.learn(60, reset_num_timesteps=False)
    assert model._n_updates > 15
    acted.clear()
    model.gradient_steps = 0
    model.learn(60, reset_num_timesteps=False)
    check(20, warming_up=False)


# Batches over all tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [False, True], ids=["buffer", "copy on a device"])
def test_batches_over_all_tasks_draw_every_transition_alike(device: bool) -> None:
    buffer = fill(make(8, balanced=False), 2)
    fill(buffer, 5, tasks=[0, 0, 2], first=100)  # the ring of task 0 is full, that of task 1 holds two
    assert buffer.counts.tolist() == [8, 2, 7]
    np.random.seed(0)
    if device:
        replay = DeviceReplay(buffer, "cpu", torch.Generator().manual_seed(0))
        replay.update()
        batch = replay.sample(*buffer.parts(17_000))
    else:
        batch = buffer.sample(17_000)
    ids, counts = batch.observations[:, 0].unique(return_counts=True)
    assert len(ids) == 17
    assert ((counts - 1000).abs() < 140).all()  # 4.5 standard deviations
    # All parts of a row are of one transition.
    torch.testing.assert_close(batch.actions[:, 0] * 2**14, batch.observations[:, 0])
    assert torch.equal(batch.observations[:, STATE:].argmax(dim=1), batch.tasks)
    assert batch.paths is not None
    assert (ids_of_paths(batch.paths) == batch.observations[:, 0].numpy()).all()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_batches_over_all_tasks_have_any_size(size: int) -> None:
    buffer = fill(make(balanced=False), 1, tasks=[1])
    assert buffer.sample(size).tasks.tolist() == [1] * size
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        buffer.sample(0)
    with pytest.raises(ValueError, match="there must be transitions before learning starts, got none"):
        make(balanced=False).sample(size)
