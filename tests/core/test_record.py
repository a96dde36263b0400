"""A recording holds the routes by which a model ran, and leaves nothing on the model."""

import copy
import pickle
import re
import threading
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dynroute
from dynroute import (
    LayerRouting,
    LinearRouter,
    ModelRouting,
    ModuleRouting,
    OutputRouting,
    Route,
    Soft,
    TopK,
    Topology,
    inspect,
    networks,
    record,
)
from dynroute.losses import load_balance
from dynroute.route import listeners


class Body(nn.Module):
    """Two routed layers inside containers, one of them called by its keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 8), ModuleRouting.mlp(8, 8, 4, 6, router_sizes=[8]))
        self.parts = nn.ModuleDict({"last": LayerRouting.mlp(6, 8, [2, 2], 3, router_sizes=[8])})

    def forward(self, x: Tensor) -> tuple[Tensor, Route]:
        output: tuple[Tensor, Route] = self.parts["last"](self.first(x), return_route=True)
        return output


def equal(a: Route, b: Route) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_layers_are_recorded_by_their_names(training: bool) -> None:
    model = Body().train(training)
    x = torch.randn(7, 5)
    torch.manual_seed(1)
    with record(model) as routes:
        _, last = model(x)
    torch.manual_seed(1)
    _, first = model.first[1](model.first[0](x), return_route=True)

    assert list(routes) == ["first.1", "parts.last"]
    assert equal(routes["first.1"].route, first)
    assert equal(routes["parts.last"].route, last)
    assert routes["first.1"].topology is model.first[1].topology
    assert not any(tensor.requires_grad for tensor in routes["first.1"].route)
    assert last.weights.requires_grad, "the route that the model returns keeps its gradient"
    assert repr(routes) == "Recording('first.1': 1, 'parts.last': 1)"


@pytest.mark.parametrize("name", networks.available())
def test_networks_of_the_literature(name: str) -> None:
    net = networks.build(name, 4, 3, 2)
    state, task = torch.randn(6, 4), torch.arange(6) % 3
    if name in ("mt-sac", "paco", "brc"):
        with pytest.raises(ValueError, match="nothing in this"), record(net):
            pass
        return
    with torch.no_grad():
        torch.manual_seed(1)
        with record(net) as routes:
            output, route = net(state, task, return_route=True)
        torch.manual_seed(1)
        assert torch.equal(net(state, task), output), "recording changes no value"
    (only,) = routes.values()
    assert route is None or equal(only.route, route)
    assert only.route.path.shape == (6, *only.topology.path_shape)


def test_a_routed_model_has_the_empty_name() -> None:
    net = OutputRouting.mlp(5, 8, 3, 2)
    with record(net) as routes:
        net(torch.randn(4, 5), torch.arange(4) % 3)
    assert routes[""].route.path[:, 0].int().argmax(dim=-1).tolist() == [0, 1, 2, 0]


def test_a_layer_inside_a_node_and_one_that_is_called_twice() -> None:
    inner = ModelRouting.mlp(8, 8, 3, 8, gate=TopK(2))
    model = ModuleRouting([nn.Linear(5, 8), inner, inner, nn.Linear(8, 2)], Soft(), LinearRouter(5, Topology.dag(4)))
    with record(model) as routes:
        model(torch.randn(7, 5))
    assert list(routes) == ["", "nodes.1"]
    assert len(routes["nodes.1"].passes) == 2
    assert routes["nodes.1"].route.path.shape == (14, 1, 3)


def test_nothing_is_left_on_the_modules() -> None:
    model = Body()
    before = [dict(part.__dict__) for part in model.modules()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    keys = list(model.state_dict())
    with record(model) as routes:
        model(torch.randn(3, 5))
        assert list(model.state_dict()) == keys
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            twin(torch.randn(3, 5))
    assert len(routes["first.1"].passes) == 1, "a copy is another model"
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), record(model):
        model(torch.randn(3, 4))
    assert listeners() == []
    assert [dict(part.__dict__) for part in model.modules()] == before
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()] == hooks
    model(torch.randn(3, 5))
    assert len(routes["first.1"].passes) == 1, "the block has ended"
    assert pickle.loads(pickle.dumps(routes))["first.1"].route.path.shape == (3, 4, 4)


def test_blocks_nest_and_belong_to_one_thread() -> None:
    model = Body()
    with record(model) as outer, record(model.first) as inner:
        model(torch.randn(3, 5))
        thread = threading.Thread(target=model, args=(torch.randn(9, 5),))
        thread.start()
        thread.join()
    assert (list(outer), list(inner)) == (["first.1", "parts.last"], ["1"])
    assert equal(outer["first.1"].route, inner["1"].route)
    assert len(inner["1"].passes) == 1, "another thread runs for itself"


def test_a_route_without_a_pass_is_not_recorded() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    with pytest.warns(UserWarning, match="`record` saw no routed layer run"), record(net) as routes:
        net.route(torch.randn(3, 5))
    assert (list(routes), len(routes), routes._repr_html_()) == ([], 0, "<p>No routed layer has run.</p>")
    with pytest.raises(KeyError, match="no route of '' was recorded; did the model run inside the block, in this thr"):
        routes[""]
    with pytest.raises(KeyError, match="'layer' is not a routed layer of the model; those are ''"):
        routes["layer"]


def test_passes_are_joined_along_the_batch() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2).eval()
    batches = [torch.randn(3, 5), torch.randn(4, 5)]
    with record(net) as routes:
        for i, batch in enumerate(batches):
            net(batch)
            routes.label(torch.full((len(batch),), i))
    assert [len(route.path) for route in routes[""].passes] == [3, 4]
    parts = [net.route(batch) for batch in batches]
    assert equal(routes[""].route, Route(*map(torch.cat, zip(*parts, strict=True))))
    task = routes[""].task
    assert task is not None
    assert task.tolist() == [0, 0, 0, 1, 1, 1, 1]

    with record(net) as routes:
        net(batches[0])
        net(batches[0][0])
    with pytest.raises(
        ValueError, match=r"`route` joins passes .* got batch shapes \[\(3,\), \(\)\]; read them one by"
    ):
        _ = routes[""].route


def test_routes_are_kept_where_one_likes() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    with record(net, device="meta") as routes:
        net(torch.randn(3, 5))
    assert {tensor.device.type for tensor in routes[""].route} == {"meta"}


def test_routes_that_are_not_detached_train_the_router() -> None:
    net = nn.Sequential(nn.Linear(5, 8), ModelRouting.ffn(8, 16, 4, TopK(2)))
    x = torch.randn(32, 5)
    _y, route = net[1](net[0](x), return_route=True)
    expected = torch.autograd.grad(load_balance(route), net[1].router.parameters(), retain_graph=True)
    with record(net, detach=False) as routes:
        net(x)
    got = torch.autograd.grad(load_balance(routes["1"].route), net[1].router.parameters())
    assert all(map(torch.equal, got, expected))
    assert any(gradient.any() for gradient in got)
    with record(net) as routes:
        net(x)
    assert not any(tensor.requires_grad for tensor in routes["1"].route)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_inside_of_activation_checkpointing_records_its_recomputation(reentrant: bool) -> None:
    net = ModelRouting.ffn(8, 16, 4, TopK(2))

    def loss(x: Tensor) -> Tensor:
        with record(net, detach=False) as routes:
            y = net(x)
        return 0 * y.sum() + load_balance(routes[""].route)

    x = torch.randn(32, 8, requires_grad=True)
    expected = torch.autograd.grad(loss(x), net.router.parameters())
    checkpoint(loss, x, use_reentrant=reentrant).backward()
    got = [parameter.grad for parameter in net.router.parameters()]
    assert all(map(torch.equal, got, expected))
    assert any(gradient.any() for gradient in expected)


def test_compiled_code_tells_nothing_and_says_so() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2).eval()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    message = "`record` saw no routed layer run: none of this model was called, or compiled code"
    with pytest.warns(UserWarning, match=re.escape(message)) as warned, record(compiled) as routes:
        compiled(torch.randn(3, 5))
    assert warned[0].filename == __file__
    with pytest.raises(KeyError, match="and not as compiled code"):
        routes["_orig_mod"]


def test_an_exception_leaves_the_block_without_a_warning() -> None:
    with pytest.raises(ZeroDivisionError), record(ModuleRouting.mlp(5, 8, 4, 2)):
        _ = 1 / 0
    assert not listeners()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_activation_checkpointing_counts_a_sample_once(use_reentrant: bool, detach: bool) -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    x = torch.randn(6, 5, requires_grad=True)
    with record(net, detach=detach) as routes:
        checkpoint(net, x, use_reentrant=use_reentrant).sum().backward()
        assert [len(route.path) for route in routes[""].passes] == [6]
        checkpoint(net, x, use_reentrant=use_reentrant).sum().backward()
    assert [len(route.path) for route in routes[""].passes] == [6, 6]
    assert net.router.layers[0].weight.grad is not None


def test_functions_under_vmap_are_refused() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2).eval()
    with pytest.raises(RuntimeError, match=r"`record` cannot keep routes of a function under torch\.func"), record(net):
        torch.func.vmap(net)(torch.randn(3, 5))


def test_what_routes_nothing_is_refused() -> None:
    message = "`module` must hold a routed layer such as ModuleRouting, but nothing in this Linear routes; record the"
    with pytest.raises(ValueError, match=message), record(nn.Linear(2, 2)):
        pass
    with pytest.raises(TypeError, match="`module` must be a module, got int"), record(3):  # type: ignore[arg-type]
        pass


def unlabelled() -> dynroute.Recording:
    model = Body()
    with record(model) as routes:
        model(torch.randn(6, 5))
    return routes


def labelled() -> dynroute.Recording:
    routes = unlabelled()
    routes.label(torch.tensor([0, 0, 0, 2, 2, 2]), names=["open <door>", "absent", "close"])
    return routes


def test_the_mean_routes_of_tasks_are_drawn() -> None:
    layer = labelled()["first.1"]
    summary = layer.summary()
    weights, used = summary.weights.nan_to_num(), summary.used.nan_to_num()
    picture = inspect.draw_grid(
        layer.topology, weights, used=used, titles=["open <door>", "absent", "close"], title="all", columns=2
    )
    assert layer.draw(title="all", columns=2) == picture


def test_labels_and_their_errors() -> None:
    routes = labelled()
    assert routes["first.1"].summary().samples.tolist() == [3, 0, 3]
    with pytest.raises(TypeError, match=r"`task` must hold integer task ids, got torch\.float32; use `one_hot"):
        routes.label(torch.eye(6))
    with pytest.raises(ValueError, match=r"`names` must name every task by its id, got 2 names and the id 2\."):
        routes.label(torch.tensor([0, 2]), names=["push", "pull"])
    for shape in ((), (5,), (6, 1)):
        with pytest.raises(
            ValueError, match=r"`task` must label every sample of pass 0, with batch shape \(6,\), got \("
        ):
            unlabelled().label(torch.zeros(shape, dtype=torch.long))
    routes.label(torch.zeros(2, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"`task` must label every sample .* shape \(6,\), got \(8,\); label each pass"
    ):
        _ = routes["first.1"].task
    assert "must label every sample" in routes._repr_html_(), "a notebook says what is wrong"


def test_labels_of_layers_that_see_other_samples() -> None:
    inner = ModelRouting.mlp(8, 8, 3, 8, gate=TopK(2))
    model = ModuleRouting([nn.Linear(5, 8), inner, nn.Linear(8, 2)], TopK(2), LinearRouter(5, Topology.dag(3)))
    with record(model) as routes:
        for size in (6, 4):
            model(torch.randn(size, 5))
    routes.label(torch.zeros(6, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"`task` must label every sample of pass 1, with batch shape \(4,\), got \(6,\)"
    ):
        routes.label(torch.zeros(6, dtype=torch.long))
    routes.label(torch.ones(4, dtype=torch.long))
    assert routes[""].summary().samples.tolist() == [6, 4]


@pytest.mark.parametrize("backend", ["reference", "sparse"])
def test_the_backend_decides_which_samples_a_layer_inside_a_node_sees(backend: str) -> None:
    experts = [ModelRouting.ffn(5, 8, 2, Soft()) for _ in range(2)]
    model, path = ModelRouting(experts, Soft(), context_features=5, backend=backend), torch.eye(2, dtype=torch.bool)
    with record(model) as routes:
        model(torch.randn(6, 5), path=path.repeat(3, 1).unsqueeze(1))
    assert len(routes["nodes.0"].route.path) == (6 if backend == "reference" else 3)
    routes.label(torch.zeros(6, dtype=torch.long))
    if backend == "sparse":
        with pytest.raises(ValueError, match='layer inside a node may miss samples under any backend but "reference"'):
            _ = routes["nodes.0"].task


def test_passes_without_samples() -> None:
    net = ModelRouting.mlp(5, 8, 3, 2, gate=TopK(2))
    with record(net) as routes:
        net(torch.randn(4, 5))
        net(torch.randn(0, 5))
    assert routes[""].load_history[1].tolist() == [0, 0, 0]
    assert routes[""].draw_load().startswith("<svg")
    with record(net) as routes:
        net(torch.randn(2, 0, 5))
    with pytest.raises(ValueError, match=r"`route` must hold at least one sample, got batch shape \(2, 0\)"):
        routes[""].summary()
    assert "`route` must hold at least one sample" in routes._repr_html_()


def test_a_notebook_shows_pictures_and_tables() -> None:
    routes = labelled()
    page = ElementTree.fromstring(f"<div>{routes._repr_html_()}</div>")
    assert [heading.text for heading in page.iter("h4")] == ["first.1", "parts.last"]
    assert [cell.text for cell in page.iter("th") if cell.get("scope") == "row"] == 2 * [
        "open <door>",
        "absent",
        "close",
    ]
    assert [cell.text for cell in page.iter("th") if cell.get("scope") == "col"][:3] == ["task", "samples", "nodes run"]
    rows = [[cell.text for cell in row.iter("td")] for row in page.iter("tr") if row.find("td") is not None]
    assert rows[1] == ["0", "nan of 5", "nan", "nan"], "a task without samples has no figures"
    used = routes["first.1"].summary().num_used[0]
    assert rows[0][:2] == ["3", f"{used:.1f} of 5"]
    panels = [panel for panel in page.iter("{http://www.w3.org/2000/svg}g") if panel.get("role") == "img"]
    assert [panel.findtext("{http://www.w3.org/2000/svg}title") for panel in panels][:3] == [
        "open <door>",
        "absent",
        "close",
    ]


def test_without_labels_all_samples_are_one_picture() -> None:
    net = ModuleRouting.mlp(5, 8, 4, 2)
    with record(net) as routes:
        net(torch.randn(20, 5))
    html = routes._repr_html_()
    assert html.count("<svg") == 1
    summary = routes[""].summary()
    picture = inspect.draw(net.topology, summary.weights[0], used=summary.used[0], title="mean")
    assert routes[""].draw(title="mean") == picture
    assert '<th scope="row">all</th><td>20</td>' in html


def test_one_label_for_all_passes() -> None:
    net = ModelRouting.mlp(5, 8, 4, 2)
    with dynroute.record(net) as routes:
        for part in torch.randn(10, 5).split(6):
            net(part)
    with pytest.raises(ValueError, match=r"of pass 0, with batch shape \(6,\) or \(10,\), got \(4,\)"):
        routes.label(torch.zeros(4, dtype=torch.long))
    routes.label(torch.arange(10) % 2)
    assert routes[""].summary().samples.tolist() == [5, 5]
