"""The checkpoint that tests read, or damage a copy of."""

import shutil
from multiprocessing import get_context
from pathlib import Path

import pytest
from checkpoint_cases import ENVIRONMENTS, make_model


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    """Imports torch once in the server that forks the processes of environments, not in each of them."""
    get_context("forkserver").set_forkserver_preload(["dynroute_sb3", "pytest", "hypothesis"])


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small model, which tests copy before they change it."""
    folder = tmp_path_factory.mktemp("stored") / "there"
    make_model(ENVIRONMENTS["dummy"]()).learn(54).save_checkpoint(folder)
    return folder


@pytest.fixture
def changed(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "changed"))
