"""Starts commands in other processes, and waits for what these do."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import dynroute_command

PATIENCE = 900
"""Seconds after which something must have happened, also on a machine that does much else."""


def fork_command(arguments: Sequence[str], output: Path) -> BaseProcess:
    """Starts a command of dynroute in a process that need not import what it runs, which would take seconds."""
    context = multiprocessing.get_context("forkserver")
    # With what torch and a run import late: else each process would.
    context.set_forkserver_preload(["dynroute_metaworld.cli", "torch._dynamo", "torch.utils.tensorboard"])
    process = context.Process(target=_run, args=(list(arguments), output, dict(os.environ)))
    process.start()
    return process


def _run(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.clear()  # it is that of the server, which may have started before a test changed its own
    os.environ.update(environment)
    # What a shell starts behind itself ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["dynroute", *arguments]
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(dynroute_command.main())


def wait_until(process: subprocess.Popen[str] | BaseProcess, happened: Callable[[], Any], every: float = 0.01) -> Any:
    """Returns what `happened` returns, once it is true; fails if the process ends before."""
    end = time.monotonic() + PATIENCE
    while not (what := happened()):
        if isinstance(process, BaseProcess):
            if process.exitcode is not None:
                pytest.fail(f"ended with {process.exitcode}")
            time.sleep(every)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                printed, _ = process.communicate(timeout=every)  # reads what is printed: a full pipe would stop it
                pytest.fail(f"ended with {process.returncode}: {printed}")
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f"{PATIENCE} seconds passed, and what was to happen did not")
    return what
