"""Checkpoints are written whole or not at all, the replay buffer alone too."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_cases import ENVIRONMENTS, assert_same, everything, load, make_model, steps_in

from dynroute_sb3 import (
    CheckpointDirectory,
    latest_checkpoint,
    replay,
    storage,
    tree,
)


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


def test_all_is_on_the_disk_before_the_rename_and_the_rename_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, rename = storage.flush, Path.rename
    monkeypatch.setattr(storage, "flush", lambda path: (done.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(f"rename {path.name}"), rename(path, to)))
    with storage.writing_folder(tmp_path / "there") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "rows.npy").touch()
    files = ["rows.npy", "manifest.json"]
    assert sorted(done[:2]) == sorted(files)
    assert done[2:] == ["inner", folder.name, f"rename {folder.name}", tmp_path.name]


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
    with pytest.raises(FileNotFoundError, match="must be a file that holds a replay buffer, got a folder"):
        other.load_replay_buffer(stored)  # a checkpoint is no buffer
    assert_same(everything(other), before)


def test_numbered_files_are_in_order_and_copies_are_left_out(tmp_path: Path) -> None:
    for name in ("step_10", "step_9", "step_9.bak", "step_", "step_x", ".step_8", "other_7"):
        (tmp_path / name).mkdir()
    assert list(storage.numbered(tmp_path, "step").items()) == [(9, tmp_path / "step_9"), (10, tmp_path / "step_10")]
    (tmp_path / "step_3.json").touch()
    (tmp_path / "step_3.json.bak").touch()
    assert storage.numbered(tmp_path, "step", ".json") == {3: tmp_path / "step_3.json"}
    assert storage.numbered(tmp_path / "missing", "step") == {}
