"""The run of imitation that several files of tests read."""

from pathlib import Path

import pytest
from small_runs import CLONED

from dynroute_metaworld import Run, train
from dynroute_metaworld.runs.presets import preset


@pytest.fixture(scope="session")
def kept_demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where demonstrations are kept, which is not where those of a user are."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cloned(kept_demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of imitation alone, whose policy solves its tasks; nothing may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kept_demonstrations))
        run = Run.create(tmp_path_factory.mktemp("runs") / "cloned", preset("quick", CLONED).resolve())
        result = train(run)
    assert result is not None
    # At goals that it has not seen; without learning it solves neither.
    assert result.success_rates.min() >= 0.6
    assert result.success_rates.max() >= 0.8
    return run
