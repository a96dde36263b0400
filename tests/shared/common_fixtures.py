"""Fixtures that all tests share, and the names that the examples of the docstrings use."""

import copy
import functools
from collections.abc import Iterator

import gymnasium
import mujoco
import pytest
import stable_baselines3.common.env_util
import stable_baselines3.common.vec_env
import torch

import dynroute
import dynroute.functional
import dynroute.losses
import dynroute.networks
import dynroute_metaworld
import dynroute_sb3
import dynroute_sb3.losses
from dynroute.inspect import draw
from dynroute.testing import assert_routed

# The test processes share the cores; idle threads of one would spin on those of the other.
torch.set_num_threads(1)


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
    # Without a device, torch.manual_seed formats the stack three times to seed later the devices that are not there.
    if torch.cuda.is_available() or not hasattr(torch, "accelerator") or torch.accelerator.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def models_of_mujoco() -> Iterator[None]:
    """Compiles each file of MuJoCo once, which takes a tenth of a second; environments change copies of the model."""
    compiled = functools.lru_cache(maxsize=16)(mujoco.MjModel.from_xml_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco.MjModel, "from_xml_path", lambda path: copy.copy(compiled(path)))
        yield


@pytest.fixture(scope="session", autouse=True)
def doctest_names(doctest_namespace: dict[str, object]) -> None:
    for module in (
        dynroute,
        dynroute.functional,
        dynroute.losses,
        dynroute.networks,
        dynroute_metaworld,
        dynroute_sb3,
        dynroute_sb3.losses,
    ):
        doctest_namespace.update({name: getattr(module, name) for name in module.__all__})
    doctest_namespace.update(torch=torch, nn=torch.nn, dynroute=dynroute, inspect=dynroute.inspect)
    doctest_namespace.update(draw=draw, assert_routed=assert_routed)
    doctest_namespace.update(gym=gymnasium, spaces=gymnasium.spaces)
    doctest_namespace.update(
        vars(stable_baselines3.common.vec_env), make_vec_env=stable_baselines3.common.env_util.make_vec_env
    )
