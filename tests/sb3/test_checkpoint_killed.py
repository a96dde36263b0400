"""A run that is killed at any moment, again and again, comes to what it comes to by itself."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import ENVIRONMENTS, make_model

from dynroute_sb3 import (
    CheckpointDirectory,
    MultiTaskSAC,
    latest_checkpoint,
    storage,
)

STEPS, EVERY = 200, 20


TRACED = ("dynroute/files.py", "storage.py", "callbacks.py", "shutil.py")


def train(folder: Path) -> None:
    """Trains in a folder, from its last checkpoint if there is one, as a user does again and again."""
    env, last = ENVIRONMENTS["dummy"](), latest_checkpoint(folder)
    one = {"n_critics": 1}  # is stored as two are, and learns faster
    model = make_model(env, policy_kwargs=one) if last is None else MultiTaskSAC.load_checkpoint(last, env, "cpu")
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
        digest = storage.digest
        storage.digest = lambda path: (time.sleep(0.05), digest(path))[1]
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


@pytest.mark.slow
def test_sigkill(tmp_path: Path) -> None:
    command = f"import test_checkpoint_killed as t; t.kill_often(t.Path({str(tmp_path)!r}))"
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
