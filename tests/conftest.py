"""Options and settings that all tests share."""

import pytest
import torch
from hypothesis import settings

# The test processes share the cores; idle threads of one would spin on those of the other.
torch.set_num_threads(1)

settings.register_profile("dynroute", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dynroute")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="the device of the contract tests")
    parser.addoption("--dtype", default="float32", help="the type of the contract tests")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype = getattr(torch, request.config.getoption("--dtype"))
    assert isinstance(dtype, torch.dtype)
    return dtype


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
