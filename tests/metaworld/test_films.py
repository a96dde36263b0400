"""Films of a policy beside its routes: what is drawn, what OpenGL is asked for, and what is refused."""

import contextlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from small_runs import draws, there_is

from dynroute import ModelRouting, ModuleRouting
from dynroute_metaworld import Configuration, Run, load_model, make_envs
from dynroute_metaworld.cli import main
from dynroute_metaworld.report import film as films
from dynroute_metaworld.report import scene as scenes
from dynroute_metaworld.report.canvas import draw_graph
from dynroute_metaworld.report.film import GRAPH, LINE, _beside, _film, render
from dynroute_metaworld.report.routes import Rollout, Routes
from dynroute_metaworld.report.scene import OpenGLError, find_opengl


def test_a_missing_tool_fails_where_it_is_required(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNROUTE_REQUIRE_TOOLS", raising=False)
    assert not draws()
    monkeypatch.setenv("DYNROUTE_REQUIRE_TOOLS", "1")
    assert there_is("a browser", True)
    with pytest.raises(AssertionError, match="DYNROUTE_REQUIRE_TOOLS is set, and OpenGL is missing"):
        draws()


def test_a_film(runs: dict[str, Path], routes: Routes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert routes.topology is not None
    assert routes.route is not None
    graph = draw_graph(routes.topology, routes.route.sample(0), GRAPH).height
    assert graph > 64
    for name, width, height in (("d2r-1", 64 + GRAPH, graph + graph % 2), ("mt-sac", 64, 64)):
        path = tmp_path / f"{name}.gif"
        command = ["render", str(runs[name]), "--task", "reach-v3", "--output", str(path), "--size", "64"]
        status = main([*command, "--device", "cpu"])
        if not draws():
            assert status == 1
            assert "frames need OpenGL that works without a display" in capsys.readouterr().err
            continue
        assert status == 0
        assert capsys.readouterr().out == f"{path}\n"
        with Image.open(path) as film:
            assert film.size == (width, height + LINE)
            assert film.n_frames == 11  # type: ignore[attr-defined]
            first = np.asarray(film.convert("RGB"), dtype=int)
            film.seek(10)
            last = np.asarray(film.convert("RGB"), dtype=int)
        top = (height - 64) // 2
        assert first[top : top + 64, :64].std() > 10  # the scene
        assert np.abs(first - last).max() > 50
    assert not list(tmp_path.glob(".part*"))


def test_what_stands_under_a_film_of_two_episodes(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    goals, words = list[list[float]](), list[str]()

    def frame(rollout: Rollout, index: int, size: int = 240) -> np.ndarray:
        goals.append(rollout.env.environments[index].env._target_pos.tolist())
        rollout.first_success[0, 1] = 3  # as if the second episode had been solved there
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(Rollout, "frame", frame)
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda drawing, place, text, **_: words.append(text))
    run = Run.open(runs["d2r-1"])
    pictures = list[Image.Image]()
    _film(run, load_model(run, "cpu"), "reach", 2, 4, 64, pictures.append)
    assert len(pictures) == len(goals) == 22
    with contextlib.closing(make_envs(run.configuration.tasks, only=["reach"], seed=4, horizon=20)) as env:
        expected = [env.reset()[0, 36:39].tolist() for _ in range(2)]
    assert np.allclose(goals, np.repeat(expected, 11, axis=0))
    told = [re.sub(r"[1-5] of 5 nodes", "some nodes", line) for line in words]
    ends = ("1 of 2, some nodes run", "2 of 2, some nodes run, solved at step 3")
    assert told == [f"reach, step {step} of 20, episode {end}" for end in ends for step in (*range(1, 20, 2), 20)]


@pytest.mark.parametrize("end", ["gif", "mp4"])
def test_pictures_are_kept_small_as_they_are_taken(
    end: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film of 20 episodes would take gigabytes as it is drawn."""
    taken, kept = list[int](), list[int]()
    quantize = Image.Image.quantize

    def frame(rollout: Rollout, index: int, size: int = 240) -> np.ndarray:
        assert len(kept) == len(taken)
        taken.append(index)
        scene = np.full((size, size, 3), 10 * len(taken), np.uint8)
        scene[0] = np.linspace(0, 255, size)[:, None]  # a GIF has the colours of its first picture
        return scene

    def quantized(picture: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        if "palette" in options:
            kept.append(picture.width)
        return quantize(picture, *arguments, **options)

    class Writer:
        def __init__(self, path: Path, **options: Any) -> None:
            path.touch()

        def append_data(self, picture: np.ndarray) -> None:
            kept.append(picture.shape[1])

        def close(self) -> None:
            pass

    monkeypatch.setattr(films, "find_opengl", lambda: "osmesa")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("imageio.v2.get_writer", lambda *path, **options: contextlib.closing(Writer(*path, **options)))
    monkeypatch.setattr(Image.Image, "quantize", quantized)
    monkeypatch.setattr(Rollout, "frame", frame)
    path = render(runs["mt-sac"], "reach", tmp_path / f"film.{end}", size=64, device="cpu")
    assert kept == [64] * 11
    if end == "gif":
        with Image.open(path) as film:
            assert film.n_frames == 11  # type: ignore[attr-defined]
            film.seek(10)
            assert np.asarray(film.convert("RGB"))[20, 20].tolist() == pytest.approx([110] * 3, abs=8)


def test_the_first_frame_has_the_colours_of_the_others(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, blinks = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8), itertools.cycle([0, 255])

    def frame(*_: object) -> np.ndarray:
        scene[0] = next(blinks)  # a GIF merges equal frames
        return scene

    monkeypatch.setattr(films, "find_opengl", lambda: "osmesa")
    monkeypatch.setattr(Rollout, "frame", frame)
    frames = list[np.ndarray]()
    with Image.open(render(runs["mt-sac"], "reach", tmp_path / "film.gif", size=64, device="cpu")) as film:
        for number in range(2):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB"))[1:64])
    assert frames[0].std() > 10
    assert np.array_equal(*frames)


def test_a_graph_that_is_taller_than_the_scene_is_whole() -> None:
    scene, graph = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (200, 301), "green")
    picture = np.asarray(_beside(scene, graph), dtype=int)
    assert picture.shape == (302 + LINE, 64 + GRAPH, 3)
    assert (picture == (0, 128, 0)).all(axis=-1).sum() == 200 * 301
    assert (picture == (255, 0, 0)).all(axis=-1).sum() == 64 * 64
    low = _beside(scene, Image.new("RGB", (200, 20), "green"))
    assert low.size == (64 + GRAPH, 64 + LINE)
    assert _beside(scene, None).size == (64, 64 + LINE)


def test_cameras_of_several_tasks_do_not_mix(runs: dict[str, Path]) -> None:
    if not draws():
        with pytest.raises(OpenGLError, match="install a graphics driver"):
            find_opengl()
        return
    run = Run.open(runs["d2r-1"])
    model = load_model(run, "cpu")
    frames = []
    pictures = []
    for names in (["reach"], ["reach", "drawer-close"]):
        env = make_envs(names, goals="fixed", render_mode="rgb_array")
        env.reset()
        env.get_images()
        pictures.append(env.get_images()[0])
        env.close()
    assert (pictures[0] == pictures[1]).all()
    for tasks in (["drawer-close"], ["drawer-close", "reach"]):
        with contextlib.closing(Rollout(run, model, tasks)) as rollout:
            rollout.env.reset()
            for i in range(len(tasks)):
                rollout.frame(i, 64)
            frames.append(rollout.frame(0, 64))
    assert (frames[0] == frames[1]).all()


def test_films_that_are_refused(runs: dict[str, Path], tmp_path: Path, blind: None) -> None:
    folder = runs["d2r-1"]
    with pytest.raises(ValueError, match="`task` must be one of 'drawer-close', 'reach', got 'push'"):
        render(folder, "push")
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        render(folder, "reach", episodes=0)
    with pytest.raises(ValueError, match=r"`size` must be an even number of pixels in .*, got 65"):
        render(folder, "reach", size=65)
    with pytest.raises(ValueError, match=r"`output` must end with .gif or .mp4, got 'film.avi'"):
        render(folder, "reach", tmp_path / "film.avi")
    with pytest.raises(FileNotFoundError, match="`output` must be in an existing directory"):
        render(folder, "reach", tmp_path / "no" / "film.gif")
    (tmp_path / "taken.gif").mkdir()
    with pytest.raises(IsADirectoryError, match=r"`output` must be a file, got the directory .*taken.gif; name a file"):
        render(folder, "reach", tmp_path / "taken.gif")
    with pytest.raises(OpenGLError, match="neither MUJOCO_GL=egl nor MUJOCO_GL=osmesa does; install a graphics driver"):
        render(folder, "reach", tmp_path / "film.gif")
    untrained = Run.create(tmp_path / "untrained", Configuration(benchmark="reach").resolve())
    with pytest.raises(FileNotFoundError, match="untrained has no checkpoint yet"):
        render(untrained.folder, "reach")


def test_an_mp4_needs_its_encoder(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="an MP4 needs imageio-ffmpeg; type: pip install imageio-ffmpeg, or name a"):
        render(runs["d2r-1"], "reach", tmp_path / "film.mp4")


def test_what_opengl_is_asked_for(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(OpenGLError, match="but MUJOCO_GL=osmesa does not; install"):
        find_opengl()
    monkeypatch.setattr(scenes, "PROBE", "import os; assert os.environ['MUJOCO_GL'] == 'osmesa'")
    scenes._works.cache_clear()
    assert find_opengl() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", " OSMesa")  # as MuJoCo takes it
    assert find_opengl() == os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    assert find_opengl() == "osmesa"  # egl does not work
    monkeypatch.setattr(scenes, "PROBE", "while True: pass")
    monkeypatch.setattr(sys, "executable", "/no/python")
    scenes._works.cache_clear()
    with pytest.raises(OpenGLError, match="install"):
        find_opengl()


def test_what_draws_by_osmesa_also_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)  # MuJoCo set it if this process has drawn
    program = "import dynroute_metaworld, torch; torch.optim.Adam([torch.ones(1)])"
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if there_is("libosmesa6", scenes._works("osmesa")):
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        assert "cannot draw with MUJOCO_GL=osmesa; install the library (libosmesa6" in ended.stderr


def test_large_graphs_fit_and_small_ones_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *file, **how: (drawn.append(figure), save(figure, *file, **how))
    )
    nets = [ModuleRouting.mlp(5, 8, nodes, 2) for nodes in (1, 16, 30)]
    for net in (*nets, ModelRouting.mlp(5, 8, 30, 2), ModuleRouting.mlp(5, 8, 120, 2)):
        _, route = net(torch.zeros(5), return_route=True)
        picture = draw_graph(net.topology, route, 560)
        assert picture.width <= 560
        assert 64 <= picture.height <= 420
        axis = drawn[-1].axes[0]
        circles = [circle.get_window_extent() for circle in axis.patches]
        for text, circle in zip(axis.texts, circles, strict=True):
            assert text.get_window_extent().width < circle.width + 1
        assert not any(a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9)) for a, b in itertools.combinations(circles, 2))
    small, large = drawn[0].axes[0], drawn[2].axes[0]
    assert small.patches[0].get_radius() == 16
    assert large.patches[0].get_linewidth() < small.patches[0].get_linewidth()


def test_routes_as_pixels(routes: Routes) -> None:
    assert routes.topology is not None
    assert routes.route is not None
    route = routes.route.sample(0)
    picture = draw_graph(routes.topology, route, 200)
    assert picture.width == 200
    pixels = np.asarray(picture, dtype=int)
    green = (np.abs(pixels - np.array([0x14, 0x6E, 0x3C])).sum(axis=-1) < 60).sum()
    none = draw_graph(routes.topology, route._replace(path=torch.zeros_like(route.path)), 200)
    less = (np.abs(np.asarray(none, dtype=int) - np.array([0x14, 0x6E, 0x3C])).sum(axis=-1) < 60).sum()
    assert green > less > 0  # the output runs in any case
    assert draw_graph(routes.topology, route, 5000).width < 600  # no larger than it is drawn
