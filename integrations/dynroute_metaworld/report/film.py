"""A film of a policy at work in a task, with the route that it takes at each step beside it."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dynroute.arguments import check_choice, check_count

from ..runs.run import Run
from ..runs.training import load_model
from .raster import rasterize
from .scene import find_opengl
from .stage import Stage

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

    The live route graph stands beside each frame; a network without learned routes is filmed alone. It needs OpenGL,
    which may be MuJoCo's egl or osmesa without a display.

    Args:
        folder: The directory of the run.
        task: The task, without "-v3".
        output: The file, a GIF, or an MP4 where imageio-ffmpeg is installed; ``TASK.gif`` in the run if None.
        episodes: The number of episodes.
        seed: What the goals depend on; those of an evaluation of the run if None.
        size: The width and the height of the scene.
        device: Where the networks are.
        tell: Called with a sentence for each thing that takes long.

    Returns:
        The file.
    """
    run = Run.open(folder)
    tasks, name = run.configuration.tasks, task.removesuffix("-v3")
    check_choice("task", name, tasks)
    check_count("episodes", episodes, at_least=1)
    if not 64 <= size <= 1024 or size % 2:
        raise ValueError(f"`size` must be an even number of pixels in 64..1024, got {size}.")
    path = run.folder / f"{name}.gif" if output is None else Path(output)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"`output` must end with .gif or .mp4, got {path.name!r}.")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("an MP4 needs imageio-ffmpeg; type: pip install imageio-ffmpeg, or name a file .gif")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`output` must be in a directory that is there, got {path}.")
    find_opengl()
    tell(f"filming {name} ...")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pictures = list(_pictures(run, tasks.index(name), episodes, seed, size, device))
    finally:
        torch.set_num_threads(threads)
    part = path.with_name(f".part-{path.name}")  # the end of the name says what is written
    if path.suffix.lower() == ".gif":
        # One palette for all, or colours flicker.
        palette = pictures[len(pictures) // 2].quantize(128)
        first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
        first.save(part, save_all=True, append_images=others, duration=PAUSE, loop=0, optimize=False)
    else:
        from imageio.v2 import get_writer

        film: Any
        with get_writer(part, fps=1000 / PAUSE, macro_block_size=2) as film:
            for picture in pictures:
                film.append_data(np.asarray(picture))
    part.replace(path)
    return path


def _pictures(run: Run, row: int, episodes: int, seed: int | None, size: int, device: str) -> Iterator[Image.Image]:
    """The pictures of a film, each with what was chosen there."""
    model, font = load_model(run, device), ImageFont.load_default(size=15)
    topology = model.policy.topology
    with Stage(run, model, [row], seed) as stage:
        for episode in range(1, episodes + 1):
            for step in stage.episode():
                if (step.number - 1) % EVERY and step.number < stage.horizon:
                    continue
                scene = Image.fromarray(stage.frame(0, size))
                words = [stage.tasks[0], f"step {step.number} of {stage.horizon}"]
                words += [f"episode {episode} of {episodes}"] if episodes > 1 else []
                graph = None
                if topology is not None and step.route is not None and step.modules_used is not None:
                    graph = rasterize(topology, step.route.sample(0), GRAPH)
                    words.append(f"{step.modules_used[0]} of {topology.num_nodes} nodes run")
                if stage.first_success[0] > 0:
                    words.append(f"solved at step {stage.first_success[0]}")
                picture = _beside(scene, graph)
                place = (8, picture.height - LINE + 5)
                ImageDraw.Draw(picture).text(place, ", ".join(words), fill="#1f2328", font=font)
                yield picture


def _beside(scene: Image.Image, graph: Image.Image | None) -> Image.Image:
    """A scene with its graph beside it, whichever is taller, and room for a line of words below."""
    height = scene.height if graph is None else max(scene.height, graph.height)
    height += height % 2  # an MP4 has an even number of pixels
    picture = Image.new("RGB", (scene.width + GRAPH * (graph is not None), height + LINE), "white")
    picture.paste(scene, (0, (height - scene.height) // 2))
    if graph is not None:
        picture.paste(graph, (scene.width + (GRAPH - graph.width) // 2, (height - graph.height) // 2))
    return picture
