"""Runs of a second, and the tools that tests of films and reports use."""

import math
import os
from pathlib import Path
from typing import Any

from dynroute_metaworld.report.scene import OpenGLError, find_opengl
from dynroute_metaworld.runs.presets import IMITATION_ALONE

SMALL: dict[str, Any] = {
    "benchmark": "drawer-close,reach",
    "horizon": 20,
    "steps": 60,
    "learning_starts": 20,
    "batch_size": 4,
    "log_every": 10,
    "checkpoint_every": 100,
    "evaluate_every": 30,
    "evaluation_episodes": 1,
    "final_episodes": 3,
    "num_modules": 4,
    "width": 8,
    "network": {"trunk_sizes": [8, 8], "router_sizes": [8]},
    "device": "cpu",
}


PLAIN = {**SMALL, "method": "mt-sac", "num_modules": None, "width": None, "network": {"hidden_sizes": [8]}}


CLOSING = "drawer-close,window-close"

CLONED: dict[str, Any] = {
    **IMITATION_ALONE,
    "benchmark": CLOSING,
    "demonstrations": 8,
    "horizon": 100,
    "cloning_steps": 500,
    "cloning_batch_size": 32,
    "final_episodes": 5,
    "device": "cpu",
}
"""Imitation of two tasks that are solved within 90 steps."""


def write_metrics(path: Path, count: int, *names: str) -> None:
    with path.open("w") as file:
        for step in range(1, count + 1):
            values = ", ".join(f'"{name}": {math.sin(step / 3000) + step % 7 / 10:.4f}' for name in names)
            file.write(f'{{"step": {step}, {values}}}\n')


def there_is(tool: str, found: bool) -> bool:
    """Whether a tool that tests use is there; where DYNROUTE_REQUIRE_TOOLS is set, as in `.ci/run`, it must be."""
    assert found or not os.environ.get("DYNROUTE_REQUIRE_TOOLS"), (
        f"DYNROUTE_REQUIRE_TOOLS is set, and {tool} is missing"
    )
    return found


def draws() -> bool:
    """Whether this machine can draw; the automated tests are given libosmesa6, which others may lack."""
    try:
        find_opengl()
    except OpenGLError:
        return there_is("OpenGL", False)
    return True
