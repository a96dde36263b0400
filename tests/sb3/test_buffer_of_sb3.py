"""A replay buffer has the attributes of SB3's, and is saved to one file or file object that cannot run code."""

import contextlib
import copy
import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import Planted
from gymnasium import spaces
from sac_models import TASKS, make_plain, observations, points

from dynroute import Topology
from dynroute_sb3 import (
    DamagedError,
    DemonstrationBuffer,
    MultiTaskSAC,
    RouteReplayBuffer,
    add_demonstrations,
)


def test_a_buffer_is_one_file(tmp_path: Path) -> None:
    model = make_plain("D2RPolicy").learn(60)
    path = tmp_path / "folder" / "buffer.pkl"
    model.save_replay_buffer(path)
    model.save_replay_buffer(str(path))  # takes the place of the first
    assert [file.name for file in path.parent.iterdir()] == ["buffer.pkl"]
    old = copy.deepcopy(model.replay_buffer)
    model.replay_buffer = None
    model.load_replay_buffer(path, truncate_last_traj=False)
    for name in (*PARTS, "timeouts", "paths", "rows"):
        assert np.array_equal(getattr(model.replay_buffer, name), getattr(old, name))
    model.learn(40, reset_num_timesteps=False)


def test_a_buffer_that_is_not_there() -> None:
    model = make_plain("D2RPolicy")
    model.replay_buffer = None
    with pytest.raises(ValueError, match="`replay_buffer` must be there to be saved, got None"):
        model.save_replay_buffer(io.BytesIO())
    with pytest.raises(FileNotFoundError, match="nowhere must be a file that holds a replay buffer, there is none"):
        model.load_replay_buffer("nowhere")
    assert model.replay_buffer is None


@pytest.mark.parametrize("where", ["memory", "file", "behind other bytes"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "D2RPolicy"])
def test_models_and_buffers_go_to_file_objects(policy: str, where: str, tmp_path: Path) -> None:
    model = make_plain(policy).learn(60)
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
    models = [make_plain(**options) for _ in range(2)]
    obs = observations(each=2).reshape(TASKS, 2, -1)
    zeros = np.zeros((TASKS, 2), np.float32)
    add_demonstrations(models[0], obs, np.full((TASKS, 2, 2), 0.5, np.float32), obs, zeros, zeros.astype(bool))
    file = io.BytesIO()
    models[0].save_replay_buffer(file)
    models[1].load_replay_buffer(file)
    assert np.array_equal(models[1].replay_buffer.shown.rows, models[0].replay_buffer.shown.rows)
    assert (models[1].replay_buffer.wanted == 0.5).all()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    model = make_plain()
    data = pickle.dumps(Planted(), protocol=protocol)
    (tmp_path / "buffer.pkl").write_bytes(data)
    for source in (tmp_path / "buffer.pkl", io.BytesIO(data)):
        with pytest.raises(
            ValueError, match=r"must hold a replay buffer as MultiTaskSAC stores it, got a pickle:.*exten"
        ):
            model.load_replay_buffer(source)


def test_files_of_something_else(tmp_path: Path) -> None:
    model = make_plain()
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
    model = make_plain("D2RPolicy", buffer_size=16).learn(20)
    file = io.BytesIO()
    model.save_replay_buffer(file)
    rows, data = model.replay_buffer.rows.copy(), file.getvalue()
    for length in range(0, len(data), 499):
        with pytest.raises(DamagedError):
            model.load_replay_buffer(io.BytesIO(data[:length]))
    noticed = 0
    places = range(0, len(data), 23)
    for place in places:
        damaged = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        try:
            model.load_replay_buffer(io.BytesIO(damaged))
        except ValueError:  # a DamagedError, or one that finds no buffer under its name
            noticed += 1
        assert np.array_equal(model.replay_buffer.rows, rows)  # the time of writing may change, and nothing else
    assert noticed > 0.8 * len(places)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_plain().learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    before = (tmp_path / "buffer").read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        model.save_replay_buffer(tmp_path / "buffer")
    assert [path.name for path in tmp_path.iterdir()] == ["buffer"]
    assert (tmp_path / "buffer").read_bytes() == before


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


PARTS = ("observations", "next_observations", "actions", "rewards", "dones")


@pytest.mark.parametrize(("steps", "capacity"), [(0, 5), (3, 5), (5, 5), (7, 5)])
def test_a_buffer_has_the_attributes_of_sb3(steps: int, capacity: int) -> None:
    buffer = filled(steps, capacity)
    assert (buffer.pos, buffer.full, buffer.buffer_size) == (steps % capacity, steps >= capacity, capacity)
    parts = history(steps)
    newest = np.arange(max(steps - capacity, 0), steps)
    for name, expected in zip(PARTS, parts, strict=False):
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
    parts = [getattr(buffer, name)[:4] for name in PARTS]
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

    model = make_plain(replay_buffer_class=Relabelled).learn(60)
    assert (model.replay_buffer.sample(16).rewards == 7).all()


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
