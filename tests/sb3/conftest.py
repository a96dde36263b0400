"""The checkpoint that tests read, or damage a copy of."""

import shutil
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
from checkpoint_cases import ENVIRONMENTS, make_model


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    """Imports torch once in the server that forks the processes of environments, not in each of them."""
    get_context("forkserver").set_forkserver_preload(["dynroute_sb3", "pytest", "hypothesis"])


@pytest.fixture
def compiling() -> Iterator[None]:
    """Compiles as a fresh process does; past its limit of recompilations, torch would run eagerly without a word."""
    import torch._dynamo  # it takes a second, which the other tests need not wait for

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model, which tests copy before they change it."""
    folder = tmp_path_factory.mktemp("stored") / "there"
    make_model(ENVIRONMENTS["dummy"]()).learn(54).save_checkpoint(folder)
    return folder


@pytest.fixture
def changed(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "changed"))
