"""A film of a policy at work in a task, with the route that it takes at each step beside it."""

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dynroute import Route
from dynroute.arguments import check_choice, check_count
from dynroute.files import check_file_place, writing_file
from dynroute_sb3 import MultiTaskSAC

from ..runs.run import Run
from ..runs.threads import one_thread
from ..runs.training import load_model
from .routes import Rollout
from .scene import find_opengl

__all__ = ["render"]

EVERY = 2
"""Steps from one picture of the film to the next."""

PAUSE = 50
"""Milliseconds that a picture stays."""

GRAPH, LINE = 560, 28


def render(
    folder: str | Path,
    task: str,
    output: str | Path | None = None,
    *,
    episodes: int = 1,
    seed: int | None = None,
    size: int = 320,
    device: str = "auto",
    tell: Callable[[str], object] = print,
) -> Path:
    """Films the policy of a run's last checkpoint in one of its tasks.

    The film shows the route graph of each step beside the scene, or the scene alone if the network has no learned
    routes. It needs OpenGL; without a display, MuJoCo's egl or osmesa will do.

    Args:
        folder: The directory of the run.
        task: The task, without "-v3".
        output: The file, a GIF, or an MP4 if imageio-ffmpeg is installed; ``TASK.gif`` in the run if None.
        episodes: The number of episodes.
        seed: The seed of the goals; None for the goals of an evaluation of the run.
        size: The width and the height of the scene.
        device: Where the networks are.
        tell: Called with a sentence before each step that takes long.

    Returns:
        The file.
    """
    run = Run.open(folder)
    name = task.removesuffix("-v3")
    check_choice("task", name, run.configuration.tasks)
    check_count("episodes", episodes, at_least=1)
    if not 64 <= size <= 1024 or size % 2:
        raise ValueError(f"`size` must be an even number of pixels in 64..1024, got {size}.")
    path = run.folder / f"{name}.gif" if output is None else Path(output)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"`output` must end with .gif or .mp4, got {path.name!r}.")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("an MP4 needs imageio-ffmpeg; type: pip install imageio-ffmpeg, or name a file .gif")
    check_file_place("output", path)
    model = load_model(run, device)
    find_opengl()
    tell(f"filming {name} ...")
    with one_thread(), writing_file(path) as part:
        if path.suffix.lower() == ".gif":
            frames: list[Image.Image] = []
            palette: Image.Image | None = None

            def keep(picture: Image.Image) -> None:
                nonlocal palette
                # Colours flicker if pictures have palettes of their own, or if the first keeps the pixels of the median
                # cut, which are not always of the nearest colour.
                if palette is None:
                    palette = picture.quantize(colors=128)
                frames.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))

            _film(run, model, name, episodes, seed, size, keep)
            first, *others = frames
            first.save(part, save_all=True, append_images=others, duration=PAUSE, loop=0, optimize=False)
        else:
            from imageio.v2 import get_writer

            film: Any
            with get_writer(part, fps=1000 / PAUSE, macro_block_size=2) as film:
                _film(run, model, name, episodes, seed, size, lambda picture: film.append_data(np.asarray(picture)))
    return path


def _film(
    run: Run,
    model: MultiTaskSAC,
    task: str,
    episodes: int,
    seed: int | None,
    size: int,
    keep: Callable[[Image.Image], object],
) -> None:
    """Calls `keep` with each picture of a film, with the route of its step."""
    try:
        from .canvas import draw_graph
    except ImportError as error:
        raise ImportError("a film needs matplotlib; type: pip install 'dynroute[report]'") from error
    font = ImageFont.load_default(size=15)
    topology, horizon = model.policy.topology, run.configuration.horizon

    def before(episode: int, number: int, route: Route | None) -> None:
        if (number - 1) % EVERY and number < horizon:
            return
        scene = Image.fromarray(rollout.frame(0, size))
        words = [task, f"step {number} of {horizon}"]
        words += [f"episode {episode + 1} of {episodes}"] if episodes > 1 else []
        graph = None
        if topology is not None and route is not None:
            graph = draw_graph(topology, route.sample(0), GRAPH)
            words.append(f"{int(topology.used(route.path).sum())} of {topology.num_nodes} nodes run")
        if (first := rollout.first_success[0, episode]) > 0:
            words.append(f"solved at step {first}")
        picture = _beside(scene, graph)
        ImageDraw.Draw(picture).text((8, picture.height - LINE + 5), ", ".join(words), fill="#1f2328", font=font)
        keep(picture)

    with contextlib.closing(Rollout(run, model, [task], seed)) as rollout:
        rollout.run(episodes, before)


def _beside(scene: Image.Image, graph: Image.Image | None) -> Image.Image:
    """A scene with its graph beside it, and room for a line of text below."""
    height = scene.height if graph is None else max(scene.height, graph.height)
    height += height % 2  # an MP4 has an even number of pixels
    picture = Image.new("RGB", (scene.width + GRAPH * (graph is not None), height + LINE), "white")
    picture.paste(scene, (0, (height - scene.height) // 2))
    if graph is not None:
        picture.paste(graph, (scene.width + (GRAPH - graph.width) // 2, (height - graph.height) // 2))
    return picture
