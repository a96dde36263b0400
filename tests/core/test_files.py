"""Files are written whole or not at all."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dynroute.files import is_leftover, writing_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    path.write_text("old")
    return path


def test_the_new_file_takes_the_place_of_the_old_one(path: Path) -> None:
    with writing_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.suffix == path.suffix
        assert is_leftover(part, path.name)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), writing_file(path) as part:  # noqa: PT012
            part.write_text("ne")
            raise error
        assert path.read_text() == "old"
        assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)  # some systems tell only then
    with pytest.raises(OSError, match=r"No space left on device: '.*/a.json'"), writing_file(path) as part:
        part.write_text("new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_names_the_file_or_an_inner_one_that_is_named(path: Path) -> None:
    def fail(name: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    for spelled in (str, os.fsencode, Path, lambda part: 7, lambda part: None):
        with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'$"), writing_file(path) as part:
            fail(spelled(part))
    for spelled in (str, os.fsencode, Path):
        with pytest.raises(OSError, match=r"No space left on device: .*inner"), writing_file(path) as part:
            fail(spelled(part.with_name("inner")))


@pytest.mark.parametrize("write", [Path.write_bytes, lambda part, data: save_file({"x": torch.ones(999)}, part)])
def test_a_file_that_may_not_grow_is_named(path: Path, write: Callable[[Path, bytes], object]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/a.json'"), writing_file(path) as part:
            write(part, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(path.parent.iterdir()) == [path]


def test_two_that_write_one_file_do_not_mix(path: Path) -> None:
    with writing_file(path) as first:
        first.write_text("first")
        with writing_file(path) as second:
            second.write_text("second")
        assert (path.read_text(), first.read_text()) == ("second", "first")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_process_that_is_killed_leaves_the_old_file(path: Path) -> None:
    program = f"""if True:
        import os, pathlib, signal
        from dynroute.files import writing_file
        with writing_file(pathlib.Path({str(path)!r})) as part:
            part.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = set(path.parent.iterdir()) - {path}
    assert is_leftover(left, path.name)


@pytest.mark.parametrize("name", [".part-12-a.json", ".part-0af3-a.json"])
def test_leftovers_have_the_names_of_temporary_files(name: str) -> None:
    assert is_leftover(Path("folder", name), "a.json")
    assert not is_leftover(Path("folder", name), "b.json")
    assert not is_leftover(Path("folder", name.replace("json", "json5")), "a.json")
    assert not is_leftover(Path("folder", name.replace(".json", "-json")), "a.json")


def test_a_writer_that_writes_nothing_fails_and_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"\.part-.*a\.json"), writing_file(path):
        pass
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_permissions_of_the_umask(path: Path, umask: int) -> None:
    def save(part: Path) -> None:
        save_file({"x": torch.ones(1)}, part)

    before = os.umask(umask)
    try:
        for write in (save, lambda part: part.write_text("new")):
            with writing_file(path) as part:
                write(part)
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)
