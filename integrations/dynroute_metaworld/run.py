"""A run: a directory that holds all there is to know of one training."""

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import filelock
import torch

import dynroute
from dynroute_sb3 import latest_checkpoint
from dynroute_sb3.checkpoint import checkpoint_steps

from .configuration import Configuration
from .methods import check_network
from .metrics import forget_after, read_metrics
from .result import EvaluationResult

__all__ = ["MOVABLE", "Run", "RunError", "typed", "versions"]

MOVABLE = ("steps", "workers", "restart", "device", "checkpoint_every", "final_episodes")
"""What may change when a run goes on, since it changes nothing of what is computed until then."""


class RunError(RuntimeError):
    """A run cannot be started or cannot go on.

    Example:
        >>> import tempfile
        >>> run = Run.create(tempfile.mkdtemp(), Configuration(seed=1))
        >>> run.agree({"seed": 2})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        dynroute_metaworld.run.RunError: ... holds a run with seed=1, got 2; leave it out to go on, or ...
    """


class Run:
    """A directory with the configuration of a training, where it was run, what came of it, and its checkpoints.

    ==================  ====================================================================================
    ``config.json``     the :class:`Configuration`, complete
    ``sessions.jsonl``  a line for each time it was started: command, commit, versions, machine, minutes
    ``metrics.jsonl``   what was logged, see :func:`~dynroute_metaworld.read_metrics`
    ``tensorboard/``    the same for TensorBoard
    ``evaluations/``    an :class:`EvaluationResult` for each evaluation, by steps, and ``final.json``
    ``checkpoints/``    the last two checkpoints
    ``cloning/``        how far cloning came, if there was any
    ==================  ====================================================================================

    Args:
        folder: The directory.
        configuration: The configuration.

    Example:
        >>> import tempfile
        >>> run = Run.create(tempfile.mkdtemp(), Configuration(method="sm", benchmark="reach"))
        >>> Run.open(run.folder).configuration.tasks
        ('reach',)
    """

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        self.folder, self.configuration = folder, configuration
        self.metrics, self.tensorboard = folder / "metrics.jsonl", folder / "tensorboard"
        self.evaluations, self.checkpoints = folder / "evaluations", folder / "checkpoints"
        self._began: float | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """A run that is there."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no directory of a run: {_lack(folder)}.")
        return cls(folder, Configuration.read(folder / "config.json"))

    @classmethod
    def create(cls, folder: str | Path, configuration: Configuration) -> Self:
        """A new run, in a directory that is empty or not there."""
        folder = Path(folder)
        if (folder / "config.json").exists():
            raise FileExistsError(f"{folder} holds a run already; --resume goes on with it, --run names another one.")
        if folder.exists() and any(path.name not in ("lock", "config.json.part") for path in folder.iterdir()):
            raise FileExistsError(f"{folder} holds other files; --run names another directory.")
        configuration = configuration.resolve()
        check_network(configuration)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, configuration)
        run._write_configuration()
        return run

    def agree(self, options: Mapping[str, Any]) -> None:
        """Takes over options that may change when a run goes on, and refuses others that differ."""
        mine = dataclasses.asdict(self.configuration)
        for name, value in options.items():
            same = value.items() <= mine[name].items() if name == "network" else value == mine[name]
            if name not in MOVABLE and not same:
                raise RunError(
                    f"{self.folder} holds a run with {name}={mine[name]!r}, got {value!r}; leave it out to go on, or "
                    f"name another directory by --run. What may change: {', '.join(MOVABLE)}."
                )
        self.configuration = dataclasses.replace(
            self.configuration, **{name: value for name, value in options.items() if name in MOVABLE}
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for one process; a process that dies lets it go."""
        lock = filelock.FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(f"{self.folder} is in use by another process, which must end first.") from error
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            last = latest_checkpoint(self.checkpoints)
            raise RunError(
                f"there is no space left for {self.folder}; make some, and --resume goes on from "
                f"{last.name if last else 'the start'}, which is whole."
            ) from error
        finally:
            lock.release()

    def last_checkpoint(self) -> Path | None:
        """The last checkpoint; None before the first one, and an error where there must have been one."""
        last, total = latest_checkpoint(self.checkpoints), len(self.configuration.tasks)
        logged = read_metrics(self.metrics)[-1:] if self.metrics.exists() else []
        done = int(logged[0]["step"] or 0) if logged else 0
        if last is None and (done > self.configuration.checkpoint_every * total or self._final.exists()):
            raise RunError(
                f"{self.checkpoints} holds no checkpoint, though the run came to {done:,} steps; bring them back, or "
                "start another run: what is left here would be lost."
            )
        wanted = (self.configuration.steps or 0) * total
        if last is not None and checkpoint_steps(last) > wanted:
            raise RunError(
                f"`steps` must be at least the {checkpoint_steps(last) // total:,} of each task that {self.folder} has "
                f"done, got {self.configuration.steps:,}."
            )
        return last

    def forget(self) -> None:
        """Removes a run that was created and never came to start, so that it does not stand in the way of another."""
        if not (self.folder / "sessions.jsonl").exists():
            (self.folder / "config.json").unlink(missing_ok=True)

    def read_sessions(self) -> tuple[list[dict[str, Any]], list[int]]:
        """What was noted each time the run was started, and the numbers of lines that are damaged and left out."""
        path, sessions, damaged = self.folder / "sessions.jsonl", [], []
        for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
            try:
                sessions.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                damaged.append(number)
        return sessions, damaged

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """What was noted each time the run was started, as far as it is whole."""
        return self.read_sessions()[0]

    @property
    def minutes(self) -> float | None:
        """How long it took, all times together; None where it was killed, or goes on now, so that it is not known."""
        sessions = self.sessions
        known = [session["minutes"] for session in sessions if "minutes" in session]
        return float(sum(known)) if known and len(known) == len(sessions) else None

    def is_at_end(self, checkpoint: Path) -> bool:
        """Whether a checkpoint has all steps of the configuration."""
        return checkpoint_steps(checkpoint) == (self.configuration.steps or 0) * len(self.configuration.tasks)

    def finished(self) -> EvaluationResult | None:
        """The evaluation at the end, if there is one and it is what the configuration asks for."""
        if not self._final.exists():
            return None
        result, wanted = EvaluationResult.load(self._final), self.configuration
        episodes = 1 if wanted.goals == "fixed" else wanted.final_episodes
        same = Run.open(self.folder).configuration.steps == wanted.steps and result.episodes == episodes
        return result if same else None

    def start_session(self) -> None:
        """Notes where and how the run is started, and forgets what it did after its last checkpoint.

        What is forgotten is done again in the same way. Call it once the checkpoint is known to be whole.
        """
        session: dict[str, Any] = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": typed(),
            "commit": _commit(),
            "versions": versions(),
            "machine": {
                "system": platform.system(),
                "processor": _processor(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
        }
        last = self.last_checkpoint()
        session["steps"] = steps = checkpoint_steps(last) if last else 0
        forget_after(self.metrics, steps)
        self.evaluations.mkdir(exist_ok=True)
        for path in self.evaluations.glob("step_*.json"):
            number = path.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > steps:
                path.unlink()
        if steps < (self.configuration.steps or 0) * len(self.configuration.tasks):
            self._final.unlink(missing_ok=True)  # it is of fewer steps
        self._write_configuration()
        self._write_sessions([*self.sessions, session])
        self._began = time.monotonic()

    def end_session(self) -> None:
        """Notes how long it was, if one was started; one that is killed is not ended."""
        if self._began is not None:
            *before, session = self.sessions
            self._write_sessions([*before, {**session, "minutes": (time.monotonic() - self._began) / 60}])
            self._began = None

    def _write_sessions(self, sessions: Sequence[Mapping[str, Any]]) -> None:
        part = self.folder / "sessions.jsonl.part"
        part.write_text("".join(f"{json.dumps(session)}\n" for session in sessions))
        part.replace(self.folder / "sessions.jsonl")

    @property
    def _final(self) -> Path:
        return self.evaluations / "final.json"

    def _write_configuration(self) -> None:
        part = self.folder / "config.json.part"  # there is no run with half a configuration
        self.configuration.write(part)
        part.replace(self.folder / "config.json")


def versions() -> dict[str, str]:
    """The versions of what results depend on."""
    names = ("torch", "stable_baselines3", "gymnasium", "metaworld", "mujoco", "numpy")
    others = {name: importlib.metadata.version(name) for name in names}
    return {"dynroute": dynroute.__version__, "python": platform.python_version(), **others}


def typed() -> str:
    """The command that runs, without where its program is."""
    program = Path(sys.argv[0])
    # So it stands there after `python -m dynroute.command`.
    name = "dynroute" if program.parts[-2:] == ("dynroute", "command.py") else program.name
    return shlex.join([name, *sys.argv[1:]])


def _processor() -> str:
    """The model of the processor, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the code, where it runs from a clone."""
    where = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run([*where, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10)
        if tracked.returncode:
            return None
        commit = subprocess.run([*where, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            [*where, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def _lack(folder: Path) -> str:
    """Why a path is no directory of a run, and which ones are inside of it."""
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "there is nothing of that name"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    few = ", ".join(inside[:5]) + ", ..." * (len(inside) > 5)
    return "it has no config.json" + (f"; the runs inside of it are {few}" if inside else "")
