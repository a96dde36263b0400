"""Options and settings that all tests share; what needs torch is in tests/shared/common_fixtures.py."""

import gc
import importlib.util

import pytest
from hypothesis import settings

# Millions of objects stay, those of torch and its compiler; looking through all of them took a twentieth of the time.
gc.set_threshold(20_000, 20, 100)

# Triton is there for Linux alone.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["dynroute/*_kernels.py"]

# The examples are the same every time; a test that needs more of them says so.
settings.register_profile("dynroute", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dynroute")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="the device of the contract tests")
    parser.addoption("--dtype", default="float32", help="the type of the contract tests")


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures, but not in a process that only hands out tests to others, which would wait for torch."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("common_fixtures")
