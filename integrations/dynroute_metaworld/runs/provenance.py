"""The provenance of a run: its command, commit, versions and machine."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import dynroute

__all__ = ["commit", "machine", "typed", "versions"]


def versions() -> dict[str, str]:
    """The versions of the packages that results depend on."""
    names = ("torch", "stable_baselines3", "gymnasium", "metaworld", "mujoco", "numpy")
    others = {name: importlib.metadata.version(name) for name in names}
    return {"dynroute": dynroute.__version__, "python": platform.python_version(), **others}


def typed() -> str:
    """The command as it was typed, without the path of the program."""
    program = Path(sys.argv[0])
    # `python -m dynroute` and similar commands have these paths.
    modules = (("dynroute", "__main__.py"), ("dynroute", "command.py"), ("dynroute_command", "__main__.py"))
    name = "dynroute" if program.parts[-2:] in modules else program.name
    return shlex.join([name, *sys.argv[1:]])


def commit() -> str | None:
    """The commit of the code; None unless it runs from a clone."""
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


def machine() -> dict[str, Any]:
    """The machine, and how many of its cores torch uses."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """The model of the processor, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
