"""Waits for what another process does."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE = 900
"""Seconds after which something must have happened, also on a machine that does much else."""


def wait_until(process: subprocess.Popen[str], happened: Callable[[], Any], every: float = 0.01) -> Any:
    """Returns what `happened` returns, once it is true; fails if the process ends before."""
    end = time.monotonic() + PATIENCE
    while not (what := happened()):
        if process.poll() is not None:
            assert process.stdout is not None
            pytest.fail(f"ended with {process.returncode}: {process.stdout.read()}")
        if time.monotonic() > end:
            process.kill()
            pytest.fail(f"{PATIENCE} seconds passed, and what was to happen did not")
        time.sleep(every)
    return what
