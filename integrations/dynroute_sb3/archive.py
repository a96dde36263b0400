"""Archives: uncompressed zip files that are written and read in pieces and cannot run code."""

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import open_path

from dynroute.files import writing_file

from .storage import DamagedError, Member

__all__ = ["reading_archive", "saved_attributes", "writing_archive"]


@contextlib.contextmanager
def writing_archive(target: Path | io.BufferedIOBase, *, marker: str) -> Iterator[Member]:
    """Opens an archive for writing; its file appears under its name once everything is on the disk.

    Args:
        target: The name of the file, or a file object to write to.
        marker: The file inside that identifies an archive of this kind; only such a file is replaced.
    """
    if not isinstance(target, Path):
        with zipfile.ZipFile(target, "w") as archive:
            yield Member(archive)
        return
    if target.exists() and not _holds(target, marker):
        raise FileExistsError(
            f"{target} must not exist yet, or be a file of the same kind: what is stored is never overwritten."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing_file(target) as part, zipfile.ZipFile(part, "w") as archive:
        yield Member(archive)


@contextlib.contextmanager
def reading_archive(source: Path | io.BufferedIOBase, *, what: str, marker: str) -> Iterator[Member]:
    """Opens an archive for reading after checking all its files; refuses a pickle without reading it.

    Args:
        source: The name of the file, or a file object.
        what: The expected content, for error messages.
        marker: The file inside that identifies an archive of this kind.
    """
    if isinstance(source, Path) and not source.is_file():
        found = "got a folder" if source.is_dir() else "there is none"
        raise FileNotFoundError(f"{source} must be a file that holds {what}, {found}.")
    name = source if isinstance(source, Path) else "the file object"
    if _is_pickle(source):
        raise ValueError(
            f"{name} must hold {what} as MultiTaskSAC stores it, got a pickle: reading one runs its code. What SB3 "
            "pickled, SB3 can read; hand it on with RouteReplayBuffer.extend()."
        )
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(source))  # wrong bytes raise any of these errors
            damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
            raise DamagedError(
                f"{name} must be a whole file that holds {what}; it is damaged, or another one."
            ) from error
        if damaged is not None:
            raise DamagedError(f"{name} is damaged: {damaged} inside was altered; take another file.")
        if marker not in archive.namelist():
            raise ValueError(f"{name} must hold {what}, got a zip file of something else, without {marker} inside.")
        yield Member(archive)


def _holds(path: Path, marker: str) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return marker in archive.namelist()


def _is_pickle(source: Path | io.BufferedIOBase) -> bool:
    """Whether a file begins like a pickle of protocol 2 or later."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(2)
    else:
        start = source.read(2)
        source.seek(-len(start), io.SEEK_CUR)
    return start in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")


def saved_attributes(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """Reads the attributes in a file of SB3's `save`, those that are plain data; none if it is not such a file."""
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return dict(json.loads(archive.read("data")))
    except (zipfile.BadZipFile, KeyError):
        return {}
    finally:
        if isinstance(path, str | Path):
            file.close()
