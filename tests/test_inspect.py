"""The drawn route is a well-formed picture of every node and edge."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from dynroute import ModuleRouting, Soft, TopK, Topology
from dynroute.inspect import draw

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("topology", [Topology.dag(17), Topology.layered([4, 4, 4]), Topology.parallel(1)], ids=repr)
def test_every_node_and_edge_is_drawn_inside_the_picture(topology: Topology) -> None:
    route = TopK(2)(torch.randn(topology.path_shape), allowed=topology.allowed)
    root = ElementTree.fromstring(draw(topology, route))
    assert len(root.findall(f".//{SVG}circle")) == topology.num_nodes
    assert len(root.findall(f".//{SVG}path")) == topology.num_edges
    titles = [title.text for title in root.findall(f".//{SVG}path/{SVG}title")]
    expected = [f"{a} to {b}: {weight:.3f}" for a, b, weight in topology.edges(route.path, route.weights)]
    assert sorted(titles) == sorted(expected)


def test_unused_nodes_are_hollow() -> None:
    topology = Topology.dag(4)
    path = torch.zeros(3, 3, dtype=torch.bool)
    path[:, 0] = True  # everyone reads node 0: nodes 1 and 2 are unused
    root = ElementTree.fromstring(draw(topology, path.float()))
    fills = [circle.get("fill") for circle in root.findall(f".//{SVG}circle")]
    assert fills[1] == fills[2] == "#ffffff"
    assert fills[0] == fills[3] != "#ffffff"


def test_a_mean_of_routes_and_a_title() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    _, route = net(torch.randn(20, 5), return_route=True)
    text = draw(net.topology, route.weights.mean(0), title="mean of <20> & more")
    assert ElementTree.fromstring(text).findtext(f"{SVG}title") == "mean of <20> & more"


def test_logits_are_not_taken_for_weights() -> None:
    with pytest.raises(ValueError, match=r"`route` must hold weights, got -1 at \(0, 0\); did you pass the logits"):
        draw(Topology.dag(3), torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`path` must have shape \(2, 2\), that of one sample"):
        draw(Topology.dag(3), Soft()(torch.zeros(5, 2, 2), allowed=Topology.dag(3).allowed))
