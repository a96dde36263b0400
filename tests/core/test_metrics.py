"""Figures and pictures of a mixture while it trains, against counts by hand."""

import json
import math
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

import dynroute
from dynroute import BalancedTopK, ExpertChoice, ModelRouting, ModuleRouting, Route, TopK, Topology, inspect


def test_the_figures_are_those_counted_by_hand() -> None:
    topology = Topology.parallel(4)
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0], [1.0, 2.0, 0.0, 0.0]])[:, None]
    path = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])[:, None].bool()
    figures = inspect.metrics(topology, Route(logits, path, path / 2), dropped=torch.tensor(3))
    assert [figures[f"load/{j}"] for j in range(4)] == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert figures["load_max"] == pytest.approx((2 / 3) / (1 / 4))
    assert figures["dead"] == 2
    assert figures["unrouted"] == pytest.approx(1 / 3)
    assert figures["dropped"] == 3
    assert figures["dropped_share"] == pytest.approx(3 / 6)
    rows = [[math.exp(z) for z in row[0]] for row in logits.tolist()]
    entropies = [-sum(p / sum(row) * math.log(p / sum(row)) for p in row) for row in rows]
    assert figures["router_entropy"] == pytest.approx(sum(entropies) / 3)
    assert figures["z_loss"] == pytest.approx(sum(math.log(sum(row)) ** 2 for row in rows) / 3)
    probability = [sum(row[j] / sum(row) for row in rows) / 3 for j in range(4)]
    assert figures["balance_loss"] == pytest.approx(4 * (1 / 3 * probability[0] + 2 / 3 * probability[1]))
    assert {type(value) for value in figures.values()} == {float}


def test_without_choices_nothing_is_divided_by_zero() -> None:
    logits = torch.zeros(3, 1, 4)
    figures = inspect.metrics(
        Topology.parallel(4), Route(logits, torch.zeros(3, 1, 4, dtype=torch.bool), logits), dropped=0
    )
    assert figures["dead"] == 4
    assert figures["unrouted"] == 1
    assert all(math.isfinite(value) for value in figures.values())


def test_a_recording_gives_the_figures_of_all_layers() -> None:
    model = nn.Sequential(
        ModelRouting.ffn(5, 8, 4, TopK(2, capacity=0.6)), nn.ReLU(), ModuleRouting.mlp(5, 8, 3, 5, gate=TopK(2))
    )
    counts = []
    with dynroute.record(model) as routes:
        for size in (8, 20):
            model(torch.randn(size, 3, 5))
            counts.append(int(model[0].gate.dropped))
    figures = routes.metrics()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["0/dropped"] == sum(counts) > 0
    assert figures["0/dropped_share"] == pytest.approx(sum(counts) / (2 * 3 * 28))
    assert "2/dropped" not in figures
    used = torch.cat([route.path.flatten(0, 1) for route in routes["0"].passes])
    assert figures["0/load/1"] == pytest.approx(used[:, 0, 1].double().mean().item())
    assert not any("/load/" in key for key in routes.metrics(nodes=False))
    assert [int(count) for count in routes["0"].dropped] == counts


def test_the_name_of_the_model_itself_is_left_out() -> None:
    net = ModelRouting.ffn(5, 8, 4, ExpertChoice(0.5))
    with dynroute.record(net) as routes:
        net(torch.randn(5))
        net(torch.randn(7, 5))
    figures = routes.metrics(nodes=False)
    assert list(figures)[:4] == ["load_max", "dead", "router_entropy", "unrouted"]
    assert figures["unrouted"] >= 3 / 8
    assert figures["dropped"] == 8 * figures["unrouted"]  # samples that no expert chose


def test_the_load_over_time() -> None:
    net = ModelRouting.ffn(5, 8, 4, BalancedTopK(2, rate=0.05))
    with torch.no_grad():
        net.router.layers[0].bias += torch.tensor([3.0, 2.0, 0.0, -1.0])
    with dynroute.record(net) as routes:
        for _ in range(30):
            net(torch.randn(16, 5))
    history = routes[""].load_history
    assert history.shape == (30, 4)
    torch.testing.assert_close(history[7], routes[""].passes[7].path.double().mean(dim=0)[0])
    torch.testing.assert_close(history.sum(-1), torch.full((30,), 2.0).double())
    assert routes[""].draw_load(title="a < b") == inspect.draw_load(history, title="a < b")


@pytest.mark.parametrize("steps", [1, 30, 500])
def test_the_picture_of_the_load(steps: int) -> None:
    load = torch.rand(steps, 3) / 2
    load[:, 1] = 0
    picture = ET.fromstring(inspect.draw_load(load, title="a < b"))
    rows = [group for group in picture.iter() if group.get("class") == "load"]
    assert len(rows) == 3
    cells = [[each for each in row if each.get("fill-opacity")] for row in rows]
    assert [len(row) for row in cells] == [min(steps, 120), 0, min(steps, 120)]
    spans = (load / load.max()).tensor_split(min(steps, 120))
    for node in (0, 2):
        shades = [float(each.get("fill-opacity", "")) for each in cells[node]]
        assert shades == pytest.approx([float(span[:, node].mean()) for span in spans], abs=0.0051)
    names = [each for row in rows for each in row if each.tag.endswith("text")]
    assert [name.get("fill") for name in names].index("none") == 1
    assert inspect.draw_load(torch.zeros(4, 2)).count("fill-opacity") == 0
