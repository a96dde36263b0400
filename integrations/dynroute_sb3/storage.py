"""Atomic folders with checksums, and files that are read without running code."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dynroute.files import flush

__all__ = [
    "DamagedError",
    "Member",
    "check_folder",
    "digest",
    "numbered",
    "read_rows",
    "read_sealed",
    "remove_leftovers",
    "write_rows",
    "writing_folder",
]

MANIFEST = "manifest.json"
ADVICE = "take another checkpoint"
READ = (
    "model.json",
    "model.safetensors",
    "rows.npy",
    "paths.npy",
    "wanted.npy",
    "back.npy",
    "notes.json",
)
"""The names of files that are read from a checkpoint, which its manifest must list."""

CHUNK, BLOCK = 1 << 24, 1 << 18


@dataclass(frozen=True)
class Member:
    """A file or a folder inside an archive, with the methods of a path that buffers need.

    Attributes:
        archive: The archive.
        name: The name inside; empty for the archive itself.
    """

    archive: zipfile.ZipFile
    name: str = ""

    def __truediv__(self, name: str) -> "Member":
        return Member(self.archive, f"{self.name}/{name}" if self.name else name)

    def __str__(self) -> str:
        return f"{self.name} in {self.archive.filename or 'the file object'}"

    def mkdir(self) -> None:
        """Does nothing, since archives have no folders."""

    def open(self, mode: str) -> IO[bytes]:
        """Opens a file with mode "rb" or "wb"; only one can be open for writing."""
        if mode == "wb":
            return self.archive.open(self.name, "w", force_zip64=True)
        return self.archive.open(self.name)

    @property
    def size(self) -> int:
        """The number of bytes of a file."""
        return self.archive.getinfo(self.name).file_size


class DamagedError(ValueError):
    """A stored file is missing, cut short or altered.

    Example:
        >>> import tempfile
        >>> MultiTaskSAC.load_checkpoint(tempfile.mkdtemp())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        dynroute_sb3.storage.DamagedError: ... is missing or damaged; take another checkpoint.
    """


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Opens a temporary folder for writing and renames it once everything is on the disk.

    A killed process leaves the temporary folder behind, but never an incomplete final one.

    Args:
        folder: The final folder.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} must not exist yet: what is stored is never overwritten.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        files = {str(path.relative_to(temporary)): digest(path) for path in _files(temporary)}
        (temporary / MANIFEST).write_text(json.dumps(files, indent=1))
        for path in [*_files(temporary), *[path for path in temporary.rglob("*") if path.is_dir()], temporary]:
            flush(path)
        temporary.rename(folder)
        flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def numbered(folder: Path, prefix: str, suffix: str = "") -> dict[int, Path]:
    """Lists the files or folders ``<prefix>_<number><suffix>`` of a folder by their numbers, in order.

    Others, such as a copy that somebody made by hand, are left out.
    """
    found = {
        path.name.removeprefix(f"{prefix}_").removesuffix(suffix): path for path in folder.glob(f"{prefix}_*{suffix}")
    }
    return dict(sorted((int(number), path) for number, path in found.items() if number.isdecimal()))


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes temporary folders of processes that no longer run.

    Args:
        folder: The folder that contains them.
        pattern: The pattern of the names of the final folders.
    """
    for leftover in folder.glob(f".{pattern}.part"):
        pid = leftover.name.split(".")[-2]
        if pid.isdecimal() and not _lives(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def check_folder(folder: Path, advice: str = ADVICE) -> None:
    """Raises a :class:`DamagedError` that names the file, unless a folder is as :func:`writing_folder` left it.

    Files that were added later are ignored, unless they have the name of a file that is read.

    Args:
        folder: The folder.
        advice: The advice in the error.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder that was stored before, there is none.")
    sealed = _read_manifest(folder, advice)
    for name, seal in sealed.items():
        _check_file(folder / name, *seal, advice)
    for path in _files(folder):
        if path.name in READ and str(path.relative_to(folder)) not in sealed:
            raise DamagedError(
                f"{path} is not listed in {folder / MANIFEST}, which is another one or damaged; {advice}."
            )


def read_sealed(folder: Path, name: str) -> bytes | None:
    """Reads one file of such a folder after checking it; None if the manifest does not list it."""
    sealed = _read_manifest(folder, ADVICE)
    if name not in sealed:
        return None
    _check_file(folder / name, *sealed[name], ADVICE)
    return (folder / name).read_bytes()


def _read_manifest(folder: Path, advice: str) -> dict[str, tuple[int, str]]:
    try:
        files = json.loads((folder / MANIFEST).read_text())
        sealed = {str(name): (int(size), str(sha)) for name, (size, sha) in files.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{folder / MANIFEST} is missing or damaged; {advice}.") from error
    if not sealed:
        raise DamagedError(f"{folder / MANIFEST} must list the files of {folder}, got none; {advice}.")
    if outside := [name for name in sealed if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise DamagedError(f"{folder / MANIFEST} must list files of its folder, got {outside[0]!r}; {advice}.")
    return sealed


def _check_file(path: Path, size: int, sha: str, advice: str) -> None:
    if not path.is_file():
        raise DamagedError(f"{path} is missing; {advice}.")
    if path.stat().st_size != size:
        raise DamagedError(f"{path} must have {size} bytes, got {path.stat().st_size}; {advice}.")
    if digest(path)[1] != sha:
        raise DamagedError(f"{path} was altered: its SHA-256 is not the stored one; {advice}.")


def digest(path: Path, size: int | None = None) -> tuple[int, str]:
    """The number of bytes of a file and their SHA-256; those of its first `size` bytes if that is given."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(BLOCK if size is None else min(BLOCK, size - file.tell())):
            sha.update(data)
        return file.tell(), sha.hexdigest()


def write_rows(path: Path | Member, array: NDArray[Any], counts: NDArray[np.int64]) -> None:
    """Writes the first `counts[i]` rows of each ``array[i]`` to a .npy file in chunks."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (int(counts.sum()), array.shape[-1])})
        for ring, count in zip(array, counts, strict=True):
            for start in range(0, count, step := _rows_in_chunk(array)):
                file.write(np.ascontiguousarray(ring[start : min(start + step, count)]).data)


def read_rows(path: Path | Member, array: NDArray[Any], counts: NDArray[np.int64]) -> None:
    """Reads a file of :func:`write_rows` into an array of the same shape."""
    size = path.stat().st_size if isinstance(path, Path) else path.size
    with path.open("rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or dtype.hasobject or size - file.tell() != math.prod(shape) * dtype.itemsize:
                raise ValueError("another size or order")
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(f"{path} is not a whole .npy file; take another checkpoint.") from error
        if dtype != array.dtype or shape != (int(counts.sum()), array.shape[-1]):
            raise DamagedError(
                f"{path} must hold {int(counts.sum())} rows of {array.shape[-1]} numbers of type {array.dtype}, "
                f"got {shape} of {dtype}."
            )
        for ring, count in zip(array, counts, strict=True):
            for start in range(0, count, step := _rows_in_chunk(array)):
                rows = min(start + step, count) - start
                data = file.read(rows * ring[0].nbytes)
                ring[start : start + rows] = np.frombuffer(data, dtype).reshape(rows, -1)


def _rows_in_chunk(array: NDArray[Any]) -> int:
    return max(1, CHUNK // int(array[0, :1].nbytes))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only checks the process
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
