"""The runs that several files of tests read, and that none changes."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from small_runs import CLONED, PLAIN, SMALL

from dynroute_metaworld import Configuration, Run, load_model, train
from dynroute_metaworld.report import scene as scenes
from dynroute_metaworld.report.routes import Routes, collect_routes
from dynroute_metaworld.runs.presets import preset


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def kept_demonstrations(common: Path) -> Path:
    """Where demonstrations are kept, which is not where those of a user are."""
    return common / "cache"


def copy_of(folder: Path, make: Callable[[Path], None], to: Path) -> Path:
    """Copies a folder, which the first process that asks for it makes: runs are locked while they are used."""
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(folder)
    return shutil.copytree(folder, to)


@pytest.fixture(scope="session")
def cloned(common: Path, kept_demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of imitation alone, whose policy solves its tasks."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(kept_demonstrations))
            result = train(Run.create(folder, preset("quick", CLONED).resolve()))
        assert result is not None
        # At goals that it has not seen; without learning it solves neither.
        assert result.success_rates.min() >= 0.6
        assert result.success_rates.max() >= 0.8

    return Run.open(copy_of(common / "of-imitation", make, tmp_path_factory.mktemp("runs") / "cloned"))


@pytest.fixture(scope="session")
def runs(common: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with routes, the same with another seed, and one without routes."""

    def make(folder: Path) -> None:
        for name, options in (("d2r-1", SMALL), ("d2r-2", {**SMALL, "seed": 2}), ("mt-sac", PLAIN)):
            assert train(Run.create(folder / name, Configuration(**options).resolve())) is not None

    folder = copy_of(common / "of-sac", make, tmp_path_factory.mktemp("runs") / "of-sac")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def routes(runs: dict[str, Path]) -> Routes:
    """The routes of a policy of D2R."""
    run = Run.open(runs["d2r-1"])
    return collect_routes(run, load_model(run, "cpu"), episodes=3, samples=30, moments=4)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which OpenGL does not work; what works on this one is not forgotten."""
    monkeypatch.setattr(scenes, "_works", functools.cache(scenes._works.__wrapped__))
    monkeypatch.setattr(scenes, "PROBE", "raise SystemExit(1)")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
