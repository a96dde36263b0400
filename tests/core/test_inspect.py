"""The figures of routes equal loops over their samples, and drawn routes are well-formed pictures."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynroute import ModuleRouting, Route, Soft, TopK, Topology, inspect
from dynroute.inspect import draw, draw_grid

DAG = Topology.dag(3)
PATH = torch.tensor([[True, False], [True, True]])
ROUTE = Soft()(torch.zeros(2, 2), allowed=DAG.allowed)
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


def test_heavier_edges_are_wider_darker_and_on_top() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.25, 0.0, 0.75]])  # node 1 is unused
    root = ElementTree.fromstring(draw(Topology.dag(4), weights))
    edges = root.findall(f".//{SVG}path")
    titles = [edge.findtext(f"{SVG}title") for edge in edges]
    assert titles == [None, None, "0 to 3: 0.250", "2 to 3: 0.750", "0 to 1: 1.000", "0 to 2: 1.000"]
    light, heavy, unused, heaviest = edges[2:]
    for what in ("stroke-width", "stroke-opacity"):
        assert float(light.get(what, "")) < float(heavy.get(what, "")) < float(heaviest.get(what, ""))
    assert [edge for edge in edges if edge.get("stroke-dasharray")] == [unused]
    colors = [edge.get("stroke") for edge in edges]
    assert colors[2] == colors[3] == colors[5]
    assert len({*colors}) == 3


def test_a_mean_of_routes_and_a_title() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    _, route = net(torch.randn(20, 5), return_route=True)
    text = draw(net.topology, route.weights.mean(0), title="mean of <20> & more")
    assert ElementTree.fromstring(text).findtext(f"{SVG}title") == "mean of <20> & more"


def test_logits_are_not_taken_for_weights() -> None:
    with pytest.raises(ValueError, match=r"`route` must hold weights, got -1 at \(0, 0\); did you pass the logits"):
        draw(Topology.dag(3), torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`path` must have shape \(2, 2\), for one sample"):
        draw(Topology.dag(3), Soft()(torch.zeros(5, 2, 2), allowed=Topology.dag(3).allowed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inspect.summarize(DAG, PATH), "`route` must be a Route, got a tensor of torch.bool with shape (2, 2)"),
        (lambda: inspect.summarize(DAG, PATH), "; `net.route(context, path=path)` makes one of a stored path."),
        (lambda: inspect.summarize(ROUTE, DAG), "`topology` must be a Topology, got an object of class Route"),
        (lambda: inspect.live_path(ROUTE, DAG), "`topology` must be a Topology, got an object of class Route"),
        (lambda: inspect.flow(ROUTE, DAG), "`topology` must be a Topology, got an object of class Route"),
        (lambda: draw(ROUTE, DAG), "`topology` must be a Topology, got an object of class Route"),
        (lambda: draw(DAG, 3), "`route` must be a tensor, got int"),
        (lambda: draw_grid(3, PATH, titles=[], title=""), "`topology` must be a Topology, got 3; `net.topology` is"),
        (lambda: draw_grid(DAG, ROUTE, titles=[], title=""), "`weights` must be a tensor, got Route"),
        (lambda: inspect.flow(DAG, PATH), "`weights` must be a floating tensor or a Route, got a tensor of torch.bool"),
        (lambda: inspect.flow(DAG, DAG), "`weights` must be a tensor, got Topology"),
        (lambda: inspect.entropy(PATH), "`weights` must be a floating tensor or a Route, got a tensor of torch.bool"),
        (lambda: inspect.entropy([0.5]), "`weights` must be a tensor, got list"),
        (lambda: inspect.entropy(torch.tensor(0.5)), "`weights` must have shape (*, T, S), got a tensor without dim"),
    ],
)
def test_arguments_of_other_kinds_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_a_stored_path_becomes_a_route_that_every_function_takes() -> None:
    net, context = ModuleRouting.mlp(5, 8, 4, 2).eval(), torch.randn(6, 5)
    first = net.route(context)
    route = net.route(context, path=net.topology.unpack(net.topology.pack(first.path)))
    assert all(map(torch.equal, route, first))
    assert torch.equal(inspect.flow(net.topology, route), inspect.flow(net.topology, first.weights))


def random_route(topology: Topology, *batch: int) -> Route:
    logits = torch.randn(*batch, *topology.path_shape)
    return TopK(2)(logits, allowed=topology.allowed)


GRAPHS = [Topology.dag(6), Topology.layered([3, 2]), Topology.parallel(4), Topology([[], [], [0], [0, 1, 2], [1, 3]])]
graphs = pytest.mark.parametrize("topology", GRAPHS, ids=repr)


def edges_of(topology: Topology, route: Route, index: tuple[int, ...]) -> dict[tuple[int, int], float]:
    """The edges of one sample that the output can be reached by, found by walking back from it."""
    sample = route.sample(*index)
    into: dict[int, dict[int, float]] = {}
    for source, node, weight in topology.edges(sample.path, sample.weights):
        into.setdefault(node, {})[source] = weight
    found: dict[tuple[int, int], float] = {}
    todo = [topology.num_nodes - 1]
    while todo:
        node = todo.pop()
        for source, weight in into.get(node, {}).items():
            found[source, node] = weight
            todo.append(source)
    return found


def flow_of(topology: Topology, edges: dict[tuple[int, int], float], node: int) -> float:
    """The weights of all chains from a node to the output, multiplied along each and added up."""
    if node == topology.num_nodes - 1:
        return 1.0
    return sum(weight * flow_of(topology, edges, b) for (a, b), weight in edges.items() if a == node)


@graphs
def test_figures_equal_a_loop_over_the_samples(topology: Topology) -> None:
    route = random_route(topology, 5, 3)
    task = torch.tensor([[0, 0, 2], [2, 2, 0], [0, 2, 2], [0, 0, 0], [2, 0, 2]])
    summary = inspect.summarize(topology, route, task, num_tasks=4)

    assert summary.samples.tolist() == [8, 0, 7, 0]
    for name, figure in summary._asdict().items():
        assert len(figure) == 4, name
        assert name == "samples" or bool(figure[[1, 3]].isnan().all()), name
    everything = [(j, node) for node in topology.destinations for j in topology.parents[node]]
    for i in (0, 2):
        samples = [edges_of(topology, route, (a, b)) for a, b in (task == i).nonzero().tolist()]
        n = len(samples)
        nodes = [{topology.num_nodes - 1} | {a for a, _ in edges} for edges in samples]
        expected = {
            "used": [sum(node in of for of in nodes) / n for node in range(topology.num_nodes)],
            "num_used": sum(map(len, nodes)) / n,
            "flow": [sum(flow_of(topology, e, node) for e in samples) / n for node in range(topology.num_nodes)],
            "edges": [sum(edge in edges for edges in samples) / n for edge in everything],
            "weights": [sum(edges.get(edge, 0.0) for edges in samples) / n for edge in everything],
            "entropy": sum(
                sum(-w * math.log(w) for w in edges.values()) / len({b for _, b in edges}) for edges in samples
            )
            / n,
        }
        for name, value in expected.items():
            figure = getattr(summary, name)[i]
            figure = topology.to_edges(figure) if name in ("edges", "weights") else figure
            torch.testing.assert_close(figure, torch.tensor(value), rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(summary.depth[0], topology.depth(route.path)[task == 0].float().mean())


def test_without_tasks_all_samples_are_one() -> None:
    topology = Topology.dag(5)
    route = random_route(topology, 6)
    summary = inspect.summarize(topology, route)
    assert summary.samples.tolist() == [6]
    torch.testing.assert_close(summary.used[0], topology.used(route.path).float().mean(dim=0))
    single = inspect.summarize(topology, route.sample(2))
    torch.testing.assert_close(single.weights[0], route.weights[2] * inspect.live_path(topology, route.sample(2)))


@graphs
def test_flow_of_soft_routes_sums_to_one_over_each_cut(topology: Topology) -> None:
    route = Soft()(torch.randn(7, *topology.path_shape, dtype=torch.float64), allowed=topology.allowed)
    flow = inspect.flow(topology, route)
    roots = [node for node, parents in enumerate(topology.parents) if not parents]
    torch.testing.assert_close(flow[:, roots].sum(dim=-1), torch.ones(7, dtype=torch.float64))
    assert torch.equal(flow, inspect.flow(topology, route.weights))


def test_entropy_of_a_mix() -> None:
    weights = torch.tensor([[0.2, 0.2, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    entropy = inspect.entropy(weights)  # hard weights do not sum to 1
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.0, 0.0]))
    assert not entropy.requires_grad
    assert not entropy.signbit().any()


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=4))
def test_similarity_of_sets_is_the_jaccard_index(sets: list[set[int]]) -> None:
    rows = torch.tensor([[float(i in of) for i in range(6)] for of in sets])
    expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    torch.testing.assert_close(inspect.similarity(rows), torch.tensor(expected))


def test_similarity_of_frequencies() -> None:
    f = torch.rand(3, 4, 5)
    found = inspect.similarity(f)
    for a in range(3):
        for b in range(3):
            pairs = list(zip(f[a].flatten().tolist(), f[b].flatten().tolist(), strict=True))
            assert found[a, b].item() == pytest.approx(sum(map(min, pairs)) / sum(map(max, pairs)))
    f[1] = torch.nan
    assert inspect.similarity(f).isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]


def test_similarity_refuses_what_is_no_figure() -> None:
    with pytest.raises(ValueError, match=r"`figures` must have shape \(N, \.\.\.\), a row for each task, got \(3,\)"):
        inspect.similarity(torch.ones(3))
    with pytest.raises(ValueError, match=r"`figures` must not be negative, got -2 at \(0, 1\); are these logits"):
        inspect.similarity(torch.tensor([[1.0, -2.0]]))
    with pytest.raises(TypeError, match=r"`figures` must be a tensor, a row for each task, got Route; for"):
        inspect.similarity(random_route(Topology.dag(3), 2))  # type: ignore[arg-type]


def test_by_task_refuses_what_names_no_tasks() -> None:
    values = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"`task` must hold integer task ids, got torch\.bool"):
        inspect.by_task(values, torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"with the batch shape of the values \(2, 3\), got \(3,\)"):
        inspect.by_task(values, torch.arange(3))
    with pytest.raises(ValueError, match=r"`task` must hold the task id of at least one sample"):
        inspect.by_task(values[:0], torch.arange(0))
    with pytest.raises(ValueError, match=r"`task` must hold ids from 0 to 0, got 1 at \(1,\)"):
        inspect.by_task(values, torch.arange(2), num_tasks=1)
    with pytest.raises(ValueError, match=r"`task` must hold ids from 0 to 1, got -1 at \(0,\)"):
        inspect.by_task(values, torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        inspect.by_task(values, torch.arange(2), num_tasks=0)


def test_routes_of_another_topology_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`weights` must have shape \(\*, 2, 2\), got \(5, 3, 3\); was it made by an"):
        inspect.flow(Topology.dag(3), torch.ones(5, 3, 3))
    with pytest.raises(ValueError, match=r"`path` must have shape \(\*, 2, 2\), got \(5, 3, 3\)"):
        inspect.live_path(Topology.dag(3), random_route(Topology.dag(4), 5))


def test_nodes_are_paler_the_rarer_they_run() -> None:
    topology = Topology.parallel(3)
    weights, used = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([1.0, 0.25, 0.0, 1.0])
    root = ElementTree.fromstring(draw(topology, weights, used=used))
    circles = root.findall(f".//{SVG}circle")
    greens = [int(circle.get("fill", "")[1:3], 16) for circle in circles]
    assert greens[0] == greens[3] < greens[1] < greens[2] == 255
    assert circles[1].findtext(f"{SVG}title") == "node 1 runs for 25% of the samples"
    with pytest.raises(ValueError, match=r"`used` must have shape \(4,\), a share for each node, got \(2, 4\)"):
        draw(topology, weights, used=used.expand(2, -1))
    with pytest.raises(ValueError, match=r"`used` must hold shares from 0 to 1, got 7 for node 1"):
        draw(topology, weights, used=torch.tensor([1.0, 7.0, 0.0, 1.0]))


def test_pictures_side_by_side() -> None:
    topology = Topology.dag(4)
    route = random_route(topology, 5)
    titles = [f"task <{i}>" for i in range(5)]
    alone = ElementTree.fromstring(draw(topology, route.sample(0)))
    root = ElementTree.fromstring(draw_grid(topology, route.weights, titles=titles, title="all", columns=2))
    panels = [panel for panel in root.iter(f"{SVG}g") if panel.get("role") == "img"]
    assert [panel.findtext(f"{SVG}title") for panel in panels] == titles
    assert root.findtext(f"{SVG}title") == "all"
    assert [panel.get("transform") for panel in panels][:3:2] == [
        "translate(0 28)",
        f"translate(0 {28 + int(alone.get('height', ''))})",
    ]
    assert root.findtext(f"{SVG}text") == "all"  # it can be seen, not heard alone
    assert int(root.get("width", "")) == 2 * int(alone.get("width", ""))
    assert int(root.get("height", "")) == 28 + 3 * int(alone.get("height", ""))
    for panel in panels:
        assert len(panel.findall(f".//{SVG}circle")) == topology.num_nodes
        assert len(panel.findall(f".//{SVG}path")) == topology.num_edges


def test_a_grid_needs_a_title_for_each_picture() -> None:
    weights = random_route(Topology.dag(3), 2).weights
    with pytest.raises(
        ValueError, match=r"`weights` must have shape \(N, T, S\) with one of 1 titles .* got \(2, 2, 2\)"
    ):
        draw_grid(Topology.dag(3), weights, titles=["one"], title="all")
    with pytest.raises(ValueError, match=r"use draw\(\) for one picture"):
        draw_grid(Topology.dag(3), weights[0], titles=["one", "two"], title="all")
    with pytest.raises(
        ValueError, match=r"`used` must have shape \(2, 3\), a share for each picture and node, got \(3,\)"
    ):
        draw_grid(Topology.dag(3), weights, used=torch.ones(3), titles=["one", "two"], title="all")
    with pytest.raises(ValueError, match="`columns` must be at least 1, got 0"):
        draw_grid(Topology.dag(3), weights, titles=["one", "two"], title="all", columns=0)


def test_rows_of_a_tall_column_are_denser() -> None:
    heights = []
    for count in (2, 3, 10, 50):
        root = ElementTree.fromstring(draw(Topology.parallel(count), torch.eye(1, count)))
        places = [float(circle.get("cy", "")) for circle in root.findall(f".//{SVG}circle")]
        heights.append(int(root.get("height", "")))
        assert places[1] - places[0] == (30 if count == 50 else 64)  # the circles, of radius 13, stay apart
    assert heights[1] - heights[0] == 64
    assert heights[-1] < 1600


def test_a_title_may_be_a_number() -> None:
    route = random_route(DAG, 2)
    for number in (0, 3):
        assert draw(DAG, route.sample(0), title=number) == draw(DAG, route.sample(0), title=str(number))
    grid = draw_grid(DAG, route.weights, titles=[1, 2], title=3)
    assert grid == draw_grid(DAG, route.weights, titles=["1", "2"], title="3")
    load = torch.ones(2, 3)
    assert inspect.draw_load(load, title=3) == inspect.draw_load(load, title="3")


def test_a_long_title_widens_the_picture() -> None:
    topology, title = Topology.parallel(2), "a title of more letters than fit"
    route = random_route(topology, 2)
    plain, wide = (ElementTree.fromstring(draw(topology, route.sample(0), title=name)) for name in ("a", title))
    assert int(plain.get("width", "")) == 120
    assert int(wide.get("width", "")) > 6 * len(title)
    both = ElementTree.fromstring(draw_grid(topology, route.weights, titles=["a", title], title="all"))
    assert int(both.get("width", "")) == 2 * int(wide.get("width", ""))
    over = ElementTree.fromstring(draw_grid(topology, route.weights, titles=["a", "b"], title=2 * title))
    assert int(over.get("width", "")) > 12 * len(title)
