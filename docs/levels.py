"""The figure of the four levels, for the first page and the README: run it to write the files of the latter."""

from pathlib import Path

import torch

from dynroute import Hard, SampleK, Soft, Topology
from dynroute.inspect import draw

PICTURES = Path(__file__).parent / "pictures"

LEVELS = {
    "output": (Hard(), Topology.parallel(4)),
    "model": (Soft(), Topology.parallel(4)),
    "layer": (Soft(), Topology.layered([3, 3, 3])),
    "module": (SampleK(2), Topology.dag(6)),
}


def pictures() -> dict[str, str]:
    """The route of one sample at each level, as SVG text."""
    drawn = {}
    for level, (gate, topology) in LEVELS.items():
        logits = torch.randn(topology.path_shape, generator=torch.Generator().manual_seed(3))
        route = gate.eval()(logits, allowed=topology.allowed)
        drawn[level] = draw(topology, route, title=f"A route at {level} level")
    return drawn


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for level, drawing in pictures().items():
        (PICTURES / f"{level}.svg").write_text(f"{drawing}\n")
