"""A run: a directory that holds all there is to know of one training."""

import contextlib
import dataclasses
import datetime
import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import filelock

from dynroute.files import is_leftover, writing_file
from dynroute_sb3 import DamagedError, latest_checkpoint
from dynroute_sb3.checkpoint import checkpoint_steps
from dynroute_sb3.storage import digest

from .configuration import MOVABLE, Configuration
from .methods import check_network
from .metrics import forget_after, read_lines, read_metrics
from .provenance import commit, machine, typed, versions
from .result import EvaluationResult
from .seals import Seal
from .threads import choose_threads, waiting

__all__ = ["Run", "RunError"]

LONGEST = 3900
"""The length of the path of a run, in bytes. Linux takes 4095, of which files inside of it need some."""


class RunError(RuntimeError):
    """A run cannot be started or cannot go on.

    Example:
        >>> import tempfile
        >>> run = Run.create(tempfile.mkdtemp(), Configuration(seed=1))
        >>> run.agree({"seed": 2})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        dynroute_metaworld.runs.run.RunError: ... holds a run with seed=1, got 2; leave it out to go on, or ...
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
        self.logged = 0  # the steps at which metrics were logged last
        self._began: float | None = None
        self._is_new = False

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """A run that is there."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is not the directory of a run: {_why_no_run(folder)}.")
        return cls(folder, Configuration.read(folder / "config.json"))

    @classmethod
    def create(cls, folder: str | Path, configuration: Configuration) -> Self:
        """A new run, in a directory that is empty or not there."""
        folder = Path(folder)
        if (folder / "config.json").exists():
            raise FileExistsError(f"{folder} holds a run already; --resume goes on with it, --run names another one.")
        others = [path for path in folder.iterdir() if path.name != "lock"] if folder.exists() else []
        if not all(is_leftover(path, "config.json") for path in others):
            lost = (
                "checkpoints without the config.json of their run; put it back, or" * (folder / "checkpoints").exists()
            )
            raise FileExistsError(f"{folder} holds {lost or 'other files;'} --run names another directory.")
        if len(os.fsencode(folder.absolute())) > LONGEST:
            raise ValueError(
                f"`folder` must be a path of at most {LONGEST} bytes, so that files inside of it can be named, got "
                f"{len(os.fsencode(folder.absolute()))}; --run names a shorter one."
            )
        configuration = configuration.resolve()
        configuration.check_needs()
        check_network(configuration)
        configuration = dataclasses.replace(configuration, threads=choose_threads(configuration))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise RunError(
                f"{folder} cannot be made: {why}; name another directory, by --run for the command."
            ) from error
        run = cls(folder, configuration)
        configuration.write(folder / "config.json")
        run._is_new = True
        return run

    def agree(self, options: Mapping[str, Any], *, complete: bool = False) -> None:
        """Takes over options that may change when a run goes on, and refuses others that differ.

        Args:
            options: The options.
            complete: Whether keywords of networks are all there are; else those that are left out are those of the run.
        """
        own = dataclasses.asdict(self.configuration)
        for name, value in options.items():
            part = isinstance(value, dict) and not complete
            same = value.items() <= own[name].items() if part else value == own[name]
            if name == "warm_start" and None not in (value, own[name]):  # earlier versions noted it as it was typed
                same = Path(value).resolve() == Path(own[name]).resolve()
            if name not in MOVABLE and not same:
                raise RunError(
                    f"{self.folder} holds a run with {name}={own[name]!r}, got {value!r}; leave it out to go on, or "
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
        logged = read_metrics(self.metrics)[-1:] if last is None and self.metrics.exists() else []
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

    def seal(self) -> dict[str, Any]:
        """The notes that a checkpoint keeps of its run: the configuration, and the seal of other files."""
        evaluations = sorted(f"evaluations/{path.name}" for path in self.evaluations.glob("step_*.json"))
        return Seal.of(self.folder, self._plain(), self.logged, [self.metrics.name, *evaluations]).notes()

    def check_files(self, checkpoint: Path) -> list[str] | None:
        """Refuses a configuration, metrics and evaluations that are not those a checkpoint was written with.

        What was written after the checkpoint is not looked at, and a file that was removed is not an error.

        Returns:
            The names of files that are not there any more; None for a checkpoint that does not tell of them.
        """
        if (seal := Seal.read(checkpoint)) is None:
            return None
        seal.check_configuration(self.folder / "config.json", self._plain(), MOVABLE)
        last = self.sessions[-1:]
        again = last and last[0].get("steps") == checkpoint_steps(checkpoint)
        return seal.missing(self.folder, done_without=last[0].get("without", ()) if again else ())

    def forget(self) -> None:
        """Removes a run that was just created and did not come to start, so that it does not stand in the way."""
        if self._is_new and not (self.folder / "sessions.jsonl").exists():
            (self.folder / "config.json").unlink(missing_ok=True)

    def read_sessions(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The sessions of the run, and the numbers of damaged lines, which are left out."""
        lines = list(read_lines(self.folder / "sessions.jsonl"))
        damaged = [line.number for line in lines if line.value is None]
        return [line.value for line in lines if line.value is not None], damaged

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions of the run, one for each time it was started; damaged lines are left out."""
        return self.read_sessions()[0]

    @property
    def minutes(self) -> float | None:
        """How long it took, all times together; None where it was killed, or goes on now, so that it is not known."""
        sessions = self.sessions
        counted = [session["minutes"] for session in sessions if "minutes" in session]
        return float(sum(counted)) if counted and len(counted) == len(sessions) else None

    def is_at_end(self, checkpoint: Path) -> bool:
        """Whether a checkpoint has all steps of the configuration, or the time for more is up."""
        steps = (self.configuration.steps or 0) * len(self.configuration.tasks)
        return checkpoint_steps(checkpoint) == steps or self.seconds_left() <= 0

    def seconds_left(self) -> float:
        """How long the run may still learn; the time of a session that was killed is not known, and not counted."""
        if self.configuration.hours is None:
            return math.inf
        used = 60 * sum(session.get("minutes", 0) for session in self.sessions)
        now = 0 if self._began is None else time.monotonic() - self._began
        return float(3600 * self.configuration.hours - used - now)

    def finished(self) -> EvaluationResult | None:
        """The evaluation at the end, if there is one and it is what the configuration asks for."""
        if not self._final.exists():
            return None
        if any(session.get("final", now) != now for now in [digest(self._final)[1]] for session in self.sessions[-1:]):
            raise DamagedError(
                f"{self._final} was altered: its SHA-256 is not the one that was noted; put back what was there, or "
                "remove it, and --resume evaluates again."
            )
        result, wanted = EvaluationResult.load(self._final), self.configuration
        episodes = 1 if wanted.goals == "fixed" else wanted.final_episodes
        same = Run.open(self.folder).configuration.steps == wanted.steps and result.episodes == episodes
        return result if same else None

    def done(self) -> EvaluationResult | None:
        """The evaluation at the end if nothing is left to do; a run whose time was up goes on if there is more now."""
        last = latest_checkpoint(self.checkpoints)
        return self.finished() if last is None or self.is_at_end(last) else None

    def start_session(self) -> None:
        """Notes where and how the run is started, and forgets what it did after its last checkpoint.

        What is forgotten is done again in the same way. Call it once the checkpoint is known to be whole.
        """
        session: dict[str, Any] = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": typed(),
            "commit": commit(),
            "versions": versions(),
            "machine": {**machine(), "waiting": waiting()},
        }
        last = self.last_checkpoint()
        session["steps"] = steps = checkpoint_steps(last) if last else 0
        seal = None if last is None else Seal.read(last)
        if last is None or seal is None:
            forget_after(self.metrics, steps)
            lines = read_metrics(self.metrics) if self.metrics.exists() else []
            self.logged = int(lines[-1]["step"] or 0) if lines else 0
        else:
            self.logged = seal.logged
            if missing := self.check_files(last):
                session["without"] = missing
            seal.cut_back(self.metrics, missing or ())
        self.evaluations.mkdir(exist_ok=True)
        for path in self.evaluations.glob("step_*.json"):
            number = path.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > steps:
                path.unlink()
        if last is None or not self.is_at_end(last):
            self._final.unlink(missing_ok=True)  # it is of fewer steps
        self.configuration.write(self.folder / "config.json")
        self._write_sessions([*self.sessions, session])
        self._began = time.monotonic()

    def end_session(self) -> None:
        """Notes how long it was, if one was started; one that is killed is not ended."""
        if self._began is not None:
            *before, session = self.sessions
            session["minutes"] = (time.monotonic() - self._began) / 60
            if self._final.exists():
                session["final"] = digest(self._final)[1]
            self._write_sessions([*before, session])
            self._began = None

    def _write_sessions(self, sessions: Sequence[Mapping[str, Any]]) -> None:
        with writing_file(self.folder / "sessions.jsonl") as part:
            part.write_text("".join(f"{json.dumps(session)}\n" for session in sessions))

    @property
    def _final(self) -> Path:
        return self.evaluations / "final.json"

    def _plain(self) -> dict[str, Any]:
        """The configuration as it comes back from JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.configuration)))
        return plain


def _why_no_run(folder: Path) -> str:
    """Says why a path is not the directory of a run, and which runs are inside of it."""
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "there is nothing of that name"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    few = ", ".join(inside[:5]) + ", ..." * (len(inside) > 5)
    return "it has no config.json" + (f"; the runs inside of it are {few}" if inside else "")
