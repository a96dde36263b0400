"""Routes as pixels: the few shapes of :func:`dynroute.inspect.draw`, drawn by Pillow."""

import re
from xml.etree import ElementTree

from PIL import Image, ImageColor, ImageDraw, ImageFont

from dynroute import Route, Topology
from dynroute.inspect import draw

__all__ = ["rasterize"]

SMOOTH = 2
"""How many times larger it is drawn before it is made smaller, for smooth edges."""

SEGMENTS = 24


def rasterize(topology: Topology, route: Route, width: int) -> Image.Image:
    """Draws the route of one sample as :func:`dynroute.inspect.draw` does, in a picture of a width.

    Args:
        topology: The graph.
        route: The route of one sample.
        width: The width of the picture, in pixels; one of a small graph may be narrower.
    """
    # The text was made here a moment ago, and is no file of others.
    svg = ElementTree.fromstring(draw(topology, route))
    own_width, own_height = (float(number) for number in svg.attrib["viewBox"].split()[2:])
    scale = SMOOTH * min(1.0, width / own_width)
    picture = Image.new("RGB", (round(own_width * scale), round(own_height * scale)), "white")
    canvas = ImageDraw.Draw(picture)
    group = next(child for child in svg if _name(child) == "g")
    right, down = map(float, re.findall(r"[\d.]+", group.attrib["transform"]))
    font = ImageFont.load_default(size=12 * scale)
    for shape in group:
        told = shape.attrib
        if _name(shape) == "path":
            x0, y0, xc, yc, x1, y1 = map(float, re.findall(r"-?[\d.]+", told["d"]))
            points = [
                (
                    scale * (right + (1 - t) ** 2 * x0 + 2 * t * (1 - t) * xc + t**2 * x1),
                    scale * (down + (1 - t) ** 2 * y0 + 2 * t * (1 - t) * yc + t**2 * y1),
                )
                for t in (k / SEGMENTS for k in range(SEGMENTS + 1))
            ]
            ink = _on_white(told["stroke"], float(told["stroke-opacity"]))
            thick = max(1, round(scale * float(told["stroke-width"])))
            dashes = 2 if "stroke-dasharray" in told else 1  # every other segment
            for start in range(0, SEGMENTS, dashes):
                canvas.line(points[start : start + 2], fill=ink, width=thick)
        elif _name(shape) == "circle":
            x, y, r = (scale * float(told[name]) for name in ("cx", "cy", "r"))
            box = (x - r + scale * right, y - r + scale * down, x + r + scale * right, y + r + scale * down)
            canvas.ellipse(box, fill=told["fill"], outline=told["stroke"], width=max(1, round(scale)))
        elif _name(shape) == "text":
            place = scale * (right + float(told["x"])), scale * (down + float(told["y"]))
            canvas.text(place, shape.text or "", fill=told["fill"], font=font, anchor="ms")
    size = (max(1, picture.width // SMOOTH), max(1, picture.height // SMOOTH))
    return picture.resize(size, Image.Resampling.BOX)


def _name(shape: ElementTree.Element) -> str:
    return shape.tag.rpartition("}")[2]


def _on_white(color: str, shade: float) -> tuple[int, ...]:
    """What a colour that is not opaque looks like on white ground."""
    return tuple(round(255 + (part - 255) * shade) for part in ImageColor.getrgb(color))
