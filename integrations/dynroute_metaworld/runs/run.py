"""A run: a directory with everything about one training."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import filelock

from dynroute.files import FULL, is_leftover, writing_file
from dynroute_command.choices import benchmark_name, split_benchmark
from dynroute_sb3 import DamagedError, latest_checkpoint
from dynroute_sb3.checkpoint import checkpoint_steps
from dynroute_sb3.storage import digest, numbered

from .configuration import MOVABLE, Configuration, check_needs, with_lists
from .learner import check_learner
from .methods import check_network, check_routes
from .metrics import forget_after, read_lines, read_metrics
from .provenance import commit, machine, typed, versions
from .result import EvaluationResult
from .seals import Seal, advising
from .threads import choose_threads, waiting

__all__ = ["Run", "RunError"]

LONGEST = 3900
"""The longest path of a run, in bytes. Linux allows 4095, and the files inside of it need some of them."""


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
    """A directory with the configuration, the sessions, the results and the checkpoints of a training.

    ==================  ====================================================================================
    ``config.json``     the :class:`Configuration`, complete
    ``sessions.jsonl``  a line for each start: command, commit, versions, machine, minutes
    ``metrics.jsonl``   the logged metrics, see :func:`~dynroute_metaworld.read_metrics`
    ``tensorboard/``    the same for TensorBoard
    ``evaluations/``    an :class:`EvaluationResult` for each evaluation, by steps, and ``final.json``
    ``checkpoints/``    the last two checkpoints
    ``cloning/``        the state of cloning, if the run clones
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
        """Opens an existing run."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is not the directory of a run: {_why_no_run(folder)}.")
        return cls(folder, Configuration.read(folder / "config.json"))

    @classmethod
    def create(cls, folder: str | Path, configuration: Configuration, given: Collection[str] = ()) -> Self:
        """Creates a run, in a directory that is empty or does not exist.

        Args:
            folder: The directory.
            configuration: The configuration.
            given: The options that were given: they must have an effect although they have their default.
        """
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
                f"`folder` must be a path of at most {LONGEST} bytes, so that the paths of its files fit, got "
                f"{len(os.fsencode(folder.absolute()))}; --run names a shorter one."
            )
        configuration = configuration.resolve()
        check_needs([configuration], given)
        check_routes([configuration], given)
        check_network(configuration)
        check_learner(configuration)
        start = _as_stored("warm_start", configuration.warm_start)  # it is to be found from another directory too
        configuration = dataclasses.replace(configuration, threads=choose_threads(configuration), warm_start=start)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise RunError(f"{folder} cannot be made: {why}; name another directory (--run).") from error
        run = cls(folder, configuration)
        configuration.write(folder / "config.json")
        run._is_new = True
        return run

    def agree(self, options: Mapping[str, Any], *, complete: bool = False, source: str = "") -> None:
        """Takes over the options that may change when a run is resumed; raises an error if another option differs.

        Args:
            options: The options.
            complete: Whether `options` has all keywords of the networks; otherwise missing ones are as in the run.
            source: The flag that the options come from, if they were not given by name.
        """
        own = dataclasses.asdict(self.configuration)
        options = {name: _as_stored(name, value) for name, value in options.items()}
        for name, value in options.items():
            part = isinstance(value, dict) and not complete
            same = value.items() <= own[name].items() if part else value == own[name]
            if name not in MOVABLE and not same:
                where, flag = (f" from {source}", source.split()[0]) if source else ("", "it")
                raise RunError(
                    f"{self.folder} holds a run with {name}={own[name]!r}, got {value!r}{where}; leave {flag} out to "
                    "go on, or name another directory by --run. "
                    f"Options that may change: {', '.join(MOVABLE)}."
                )
        self.configuration = dataclasses.replace(
            self.configuration, **{name: value for name, value in options.items() if name in MOVABLE}
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for this process; the lock ends with the process."""
        lock = filelock.FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(f"{self.folder} is in use by another process, which must end first.") from error
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            last = latest_checkpoint(self.checkpoints)
            raise RunError(
                f"there is no space left for {error.filename or self.folder}; free some, and --resume goes on from "
                f"{f'{last.name}, which is intact' if last else 'the start'}."
            ) from error
        finally:
            lock.release()

    def last_checkpoint(self) -> Path | None:
        """The last checkpoint; None before the first one. Raises an error if checkpoints were removed."""
        last, total = latest_checkpoint(self.checkpoints), len(self.configuration.tasks)
        logged = read_metrics(self.metrics)[-1:] if last is None and self.metrics.exists() else []
        done = int(logged[0]["step"] or 0) if logged else 0
        if last is None and (done > self.configuration.checkpoint_every * total or self._final.exists()):
            raise RunError(
                f"{self.checkpoints} holds no checkpoint, but the run came to {done:,} steps; restore them, or "
                "start another run: starting again here would delete what is left."
            )
        rounds = -(-(self.configuration.steps or 0) // self.configuration.update_every)  # the last one is whole
        if last is not None and checkpoint_steps(last) > rounds * self.configuration.update_every * total:
            raise RunError(
                f"`steps` must be at least the {checkpoint_steps(last) // total:,} of each task that {self.folder} has "
                f"done, got {self.configuration.steps:,}."
            )
        return last

    def seal(self) -> dict[str, Any]:
        """The notes for a checkpoint: the configuration of the run, and the checksums of its other files."""
        evaluations = sorted(f"evaluations/{path.name}" for path in self.evaluations.glob("step_*.json"))
        return Seal.of(self.folder, self._plain(), self.logged, [self.metrics.name, *evaluations]).notes()

    def check_files(self, checkpoint: Path) -> tuple[Seal, list[str]]:
        """Raises an error if the configuration, metrics or evaluations were altered since a checkpoint.

        What was written after the checkpoint is not checked, and a removed file is not an error.

        Returns:
            The seal in the checkpoint, and the names of removed files.
        """
        with advising(checkpoint, "--resume goes on from the one before"):
            seal = Seal.read(checkpoint)
        seal.check_configuration(self.folder / "config.json", self._plain(), MOVABLE)
        last = self.sessions[-1:]
        again = last and last[0].get("steps") == checkpoint_steps(checkpoint)
        return seal, seal.missing(self.folder, done_without=last[0].get("without", ()) if again else ())

    def forget(self) -> None:
        """Removes the configuration of a new run that never started, so that its directory can be used again."""
        if self._is_new and not (self.folder / "sessions.jsonl").exists():
            (self.folder / "config.json").unlink(missing_ok=True)

    def read_sessions(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The sessions of the run, and the numbers of damaged lines, which are left out."""
        whole, damaged = [], []
        for line in read_lines(self.folder / "sessions.jsonl"):
            times = [] if line.value is None else [line.value.get(name, 0.0) for name in ("minutes", "minutes_kept")]
            if line.value is None or not all(isinstance(minutes, int | float) for minutes in times):
                damaged.append(line.number)
            else:
                whole.append(line.value)
        return whole, damaged

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions of the run, one for each time it was started; damaged lines are left out."""
        return self.read_sessions()[0]

    @property
    def minutes(self) -> float | None:
        """The minutes of all sessions together; None if one was killed or still runs, since its length is unknown."""
        sessions = self.sessions
        counted = [session["minutes"] for session in sessions if "minutes" in session]
        return float(sum(counted)) if counted and len(counted) == len(sessions) else None

    def is_at_end(self, checkpoint: Path) -> bool:
        """Whether a checkpoint has all steps of the configuration, or the time for more is up."""
        steps = (self.configuration.steps or 0) * len(self.configuration.tasks)
        return checkpoint_steps(checkpoint) >= steps or self.seconds_left() <= 0

    def minutes_used(self) -> float:
        """The minutes of all sessions up to now; a killed session counts up to its last checkpoint."""
        now, sessions = self._minutes_now(), self.sessions
        ended = sessions if now is None else sessions[:-1]
        return float(sum(session.get("minutes", session.get("minutes_kept", 0)) for session in ended) + (now or 0))

    def seconds_left(self) -> float:
        """The seconds that the run may still learn, of its `hours`."""
        hours = self.configuration.hours
        return math.inf if hours is None else 60 * (60 * hours - self.minutes_used())

    def finished(self) -> EvaluationResult | None:
        """The final evaluation; None if there is none, or one with other steps or episodes than configured."""
        if not self._final.exists():
            return None
        if any(session.get("final", now) != now for now in [digest(self._final)[1]] for session in self.sessions[-1:]):
            raise DamagedError(
                f"{self._final} was altered: its SHA-256 is not the stored one; restore the file, or "
                "remove it and --resume evaluates again."
            )
        result, wanted = EvaluationResult.load(self._final), self.configuration
        episodes = 1 if wanted.goals == "fixed" else wanted.final_episodes
        same = Run.open(self.folder).configuration.steps == wanted.steps and result.episodes == episodes
        return result if same else None

    def done(self) -> EvaluationResult | None:
        """The final evaluation if nothing is left to do, or None, for instance after more --hours were given."""
        last = latest_checkpoint(self.checkpoints)
        return self.finished() if last is None or self.is_at_end(last) else None

    def start_session(self, checkpoint: Path | None, seal: Seal | None, missing: Sequence[str]) -> None:
        """Writes the command and the machine of a session, and removes what came after the last checkpoint.

        The run repeats the removed steps with the same results, and evaluates again at its end. Call it if the run is
        not :meth:`done`, after loading the checkpoint.

        Args:
            checkpoint: The last checkpoint; None before the first one.
            seal: Its seal, see :meth:`check_files`.
            missing: The files that were removed.
        """
        session: dict[str, Any] = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": typed(),
            "commit": commit(),
            "versions": versions(),
            "machine": {**machine(), "waiting": waiting()},
        }
        session["steps"] = steps = checkpoint_steps(checkpoint) if checkpoint else 0
        if missing:
            session["without"] = [*missing]
        if seal is None:
            forget_after(self.metrics, steps)
        else:
            self.logged = seal.logged
            seal.cut_back(self.metrics, missing)
        self.evaluations.mkdir(exist_ok=True)
        for number, path in numbered(self.evaluations, "step", ".json").items():
            if number > steps:
                path.unlink()
        self._final.unlink(missing_ok=True)  # it was made after fewer steps, or has other episodes than configured now
        self.configuration.write(self.folder / "config.json")
        self._write_sessions([*self.sessions, session])
        (self.folder / "curves.png").unlink(missing_ok=True)  # it is drawn at the end, and would be old until then
        self._began = time.monotonic()

    def keep_minutes(self) -> None:
        """Writes the minutes of the session up to a checkpoint, which count for `hours` if it is killed later."""
        if sessions := self.sessions:
            self._write_sessions([*sessions[:-1], {**sessions[-1], "minutes_kept": self._minutes_now()}])

    def end_session(self) -> None:
        """Writes the minutes of a session, if one was started; a killed session has none."""
        if (now := self._minutes_now()) is not None:
            *before, session = self.sessions
            session.pop("minutes_kept", None)
            session["minutes"] = now
            if self._final.exists():
                session["final"] = digest(self._final)[1]
            self._write_sessions([*before, session])
            self._began = None

    def _minutes_now(self) -> float | None:
        """The minutes of the session of this process; None if it has not started one."""
        return None if self._began is None else (time.monotonic() - self._began) / 60

    def _write_sessions(self, sessions: Sequence[Mapping[str, Any]]) -> None:
        with writing_file(self.folder / "sessions.jsonl") as part:
            part.write_text("".join(f"{json.dumps(session)}\n" for session in sessions))

    @property
    def _final(self) -> Path:
        return self.evaluations / "final.json"

    def _plain(self) -> dict[str, Any]:
        """The configuration as read back from JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.configuration)))
        return plain


def _why_no_run(folder: Path) -> str:
    """Says why a path is not the directory of a run, and which runs are inside of it."""
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "it does not exist"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    few = ", ".join(inside[:5]) + ", ..." * (len(inside) > 5)
    return "it has no config.json" + (f"; the runs inside of it are {few}" if inside else "")


def _as_stored(name: str, value: Any) -> Any:
    """An option as a run stores it: usual names of tasks, whole paths, lists in place of tuples."""
    if name == "benchmark" and isinstance(value, str):
        return benchmark_name(split_benchmark(value))
    if name in ("warm_start", "metadata") and value is not None:
        return str(Path(value).resolve())
    return with_lists(value)
