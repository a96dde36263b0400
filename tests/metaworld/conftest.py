"""The runs that several files of tests read, and that none changes."""

import functools
from pathlib import Path

import pytest
from small_runs import CLONED, PLAIN, SMALL

from dynroute_metaworld import Configuration, Run, load_model, train
from dynroute_metaworld.report import scene as scenes
from dynroute_metaworld.report.routes import Routes, collect_routes
from dynroute_metaworld.runs.presets import preset


@pytest.fixture(scope="session")
def kept_demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where demonstrations are kept, which is not where those of a user are."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cloned(kept_demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of imitation alone, whose policy solves its tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kept_demonstrations))
        run = Run.create(tmp_path_factory.mktemp("runs") / "cloned", preset("quick", CLONED).resolve())
        result = train(run)
    assert result is not None
    # At goals that it has not seen; without learning it solves neither.
    assert result.success_rates.min() >= 0.6
    assert result.success_rates.max() >= 0.8
    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with routes, the same with another seed, and one without routes."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in (("d2r-1", SMALL), ("d2r-2", {**SMALL, "seed": 2}), ("mt-sac", PLAIN)):
        assert train(Run.create(folder / name, Configuration(**options).resolve())) is not None
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
