"""The routers compute the logits of the papers, slot by slot."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from dynroute import CascadeRouter, LinearRouter, MLPRouter, Router, TableRouter, TaskRouter, Topology, set_checks

DAG = Topology.dag(5)
LAYERED = Topology.layered([2, 3, 3])
ROUTERS: dict[str, tuple[Router, Tensor]] = {
    "linear": (LinearRouter(4, DAG), torch.randn(6, 4)),
    "mlp": (MLPRouter(4, DAG, (8, 7)), torch.randn(6, 4)),
    "cascade": (CascadeRouter(4, LAYERED, (9,)), torch.randn(6, 4)),
    "cascade on a dag": (CascadeRouter(4, DAG, cascade="logits"), torch.randn(6, 4)),
    "table by id": (TableRouter(3, DAG), torch.tensor([0, 1, 2, 2, 1, 0])),
    "table by one-hot": (TableRouter(3, DAG), torch.eye(3).repeat(2, 1)),
    "task": (TaskRouter(3), torch.tensor([0, 1, 2, 2, 1, 0])),
}


@pytest.mark.parametrize(("router", "context"), ROUTERS.values(), ids=ROUTERS)
def test_contract(router: Router, context: Tensor) -> None:
    logits = router(context)
    assert logits.shape == (6, *router.topology.path_shape)
    assert (logits[:, ~router.topology.allowed] == -torch.inf).all()
    assert not logits.isnan().any()

    wide = context.reshape(2, 3, *context.shape[1:])
    torch.testing.assert_close(router(wide), logits.reshape(2, 3, *logits.shape[1:]))
    torch.testing.assert_close(router(context[0]), logits[0])
    assert router(context[:0]).shape == (0, *router.topology.path_shape)


@pytest.mark.parametrize(("router", "context"), ROUTERS.values(), ids=ROUTERS)
def test_routing_is_at_least_float32(router: Router, context: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = router(context)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, router(context))

    narrow = copy.deepcopy(router).bfloat16()
    assert narrow(context.bfloat16() if context.is_floating_point() else context).dtype == torch.float32


class LowRank(nn.Linear):
    """Adds a product of two thin matrices, as adapters do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x) + self.up(self.down(x))
        return output


@pytest.mark.parametrize("name", ["linear", "mlp", "cascade"])
def test_layers_that_are_replaced_or_hooked_are_called(name: str) -> None:
    router, context = copy.deepcopy(ROUTERS[name][0]), ROUTERS[name][1]
    before = router(context)
    calls: list[nn.Module] = []
    for layer in router.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    assert torch.equal(router(context), before)
    assert set(calls) == {layer for layer in router.modules() if isinstance(layer, nn.Linear)}
    narrow, plain = copy.deepcopy(router).bfloat16(), copy.deepcopy(ROUTERS[name][0]).bfloat16()
    assert torch.equal(narrow(context.bfloat16()), plain(context.bfloat16()))  # in float32, hooked or not

    for layers in [part for part in router.modules() if isinstance(part, nn.ModuleList)]:
        for i, layer in enumerate(layers):
            layers[i] = LowRank(layer) if i % 2 else nn.Sequential(LowRank(layer))
    after = router(context)
    assert not torch.equal(after, before)
    assert (after == -torch.inf).equal(before == -torch.inf)
    assert router.bfloat16()(context.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", ["linear", "mlp", "cascade"])
def test_hooks_of_all_modules_see_the_layers_of_routers(name: str) -> None:
    router, context = ROUTERS[name]
    before = router(context)
    calls: list[nn.Module] = []
    hook = register_module_forward_hook(lambda layer, *_: calls.append(layer))
    try:
        assert torch.equal(router(context), before)
    finally:
        hook.remove()
    assert {layer for layer in router.modules() if isinstance(layer, nn.Linear)} <= set(calls)


@pytest.mark.filterwarnings("ignore")  # torch deprecates its quantization
def test_a_router_can_be_quantized() -> None:
    router = MLPRouter(4, DAG, (8, 7))
    context = torch.randn(6, 4)
    quantized = torch.ao.quantization.quantize_dynamic(router, {nn.Linear})
    torch.testing.assert_close(quantized(context), router(context), atol=0.1, rtol=0.1)


def test_a_layer_without_a_bias_is_a_layer() -> None:
    router = MLPRouter(4, DAG, (8,))
    router.layers[1] = nn.Linear(8, 10, bias=False)
    assert [place.name for place in router.edge_parameters()] == ["weight"]
    assert router(torch.randn(3, 4)).shape == router.bfloat16()(torch.randn(3, 4)).shape == (3, 4, 4)


def test_an_mlp_has_one_output_for_each_edge_in_slot_order() -> None:
    router = MLPRouter(4, DAG, (8,))
    context = torch.randn(4)
    scores = router.layers[1](router.layers[0](context).relu())
    assert scores.shape == (10,)
    logits = router(context)
    assert torch.equal(logits[DAG.allowed], scores)
    assert logits[2, :3].tolist() == scores[3:6].tolist()


def test_size_of_the_router_of_d2r() -> None:
    router = MLPRouter(400, Topology.dag(17), (256, 256))
    sizes = [(layer.in_features, layer.out_features) for layer in router.layers if isinstance(layer, nn.Linear)]
    assert sizes == [(400, 256), (256, 256), (256, 136)]


def released_cascade(router: CascadeRouter, context: Tensor) -> Tensor:
    """The router of the released Soft Modularization for layers of 2, 3 and 3, one sample, written out."""
    embedding = router.embed[0](context)
    first = router.down[0](embedding.relu())
    p1 = torch.softmax(first.reshape(3, 2), -1).flatten()
    second = router.down[1]((router.up[0](p1) * embedding).relu())
    p2 = torch.softmax(second.reshape(3, 3), -1).flatten()
    third = router.down[2]((router.up[1](torch.cat([p1, p2])) * embedding).relu())
    return torch.cat([first, second, third])


def paper_cascade(router: CascadeRouter, context: Tensor) -> Tensor:
    """Eq. 5 and 6 of Soft Modularization for layers of 2, 3 and 3, one sample, written out."""
    first = router.down[0](context.relu())
    second = router.down[1]((router.up[0](first) * context).relu())
    third = router.down[2]((router.up[1](second) * context).relu())
    return torch.cat([first, second, third])


def test_cascade_of_the_release() -> None:
    router = CascadeRouter(4, LAYERED, (9,))
    contexts = torch.randn(6, 4)
    for context, logits in zip(contexts, router(contexts), strict=True):
        torch.testing.assert_close(logits[LAYERED.allowed], released_cascade(router, context))
    assert [layer.in_features for layer in router.up] == [6, 15]


def test_cascade_of_the_paper() -> None:
    router = CascadeRouter(4, LAYERED, cascade="logits")
    contexts = torch.randn(6, 4)
    for context, logits in zip(contexts, router(contexts), strict=True):
        torch.testing.assert_close(logits[LAYERED.allowed], paper_cascade(router, context))
    assert [layer.in_features for layer in router.up] == [6, 9]


def test_size_of_the_cascade_of_soft_modularization() -> None:
    router = CascadeRouter(400, Topology.layered([4, 4, 4, 4]), (256, 256))
    assert [layer.in_features for layer in router.up] == [16, 32, 48]
    assert [layer.out_features for layer in router.down] == [16, 16, 16, 4]
    assert sum(p.numel() for p in router.parameters()) == 207_156


def test_a_table_holds_one_row_for_each_task() -> None:
    router = TableRouter(3, DAG)
    logits = router(torch.tensor([2, 0]))
    assert torch.equal(logits[0][DAG.allowed], router.table[2])
    one_hots = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.equal(router(one_hots), logits)
    assert torch.equal(router(one_hots.bool()), logits)

    logits[0][DAG.allowed].sum().backward()
    assert router.table.grad is not None
    assert router.table.grad.abs().sum(-1).tolist() == [0, 0, 10]


@pytest.mark.parametrize(
    "task", [torch.tensor([0, 3]), torch.tensor([-1]), torch.zeros(2, 3), torch.tensor([[1.0, 1, 0]])], ids=str
)
def test_a_table_has_no_row_for_other_tasks_where_values_are_not_checked(task: Tensor) -> None:
    set_checks(False)
    try:
        with pytest.raises(IndexError, match="out of range"):
            TableRouter(3, DAG)(task)
    finally:
        set_checks(None)


def test_a_task_does_not_see_the_rows_of_others() -> None:
    router = TableRouter(3, DAG)
    with torch.no_grad():
        router.table[1] = torch.nan
    assert router(torch.tensor([0, 2]))[:, DAG.allowed].isfinite().all()


def test_a_task_reads_its_own_node() -> None:
    assert TaskRouter(3)(torch.tensor([2, 0])).tolist() == [
        [[-torch.inf, -torch.inf, 0]],
        [[0, -torch.inf, -torch.inf]],
    ]


@pytest.mark.parametrize("router", [TableRouter(3, DAG), TaskRouter(3)], ids=["table", "task"])
def test_bad_tasks_are_refused(router: Router) -> None:
    with pytest.raises(ValueError, match=r"`task` must be in 0\.\.2, got 3 at index \(1,\)"):
        router(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"`task` must be in 0\.\.2, got -1 at index \(\)"):
        router(torch.tensor(-1))
    with pytest.raises(ValueError, match=r"`task` must have shape \(\*, 3\) as a one-hot, got \(2, 4\); task ids"):
        router(torch.eye(4)[:2])
    with pytest.raises(ValueError, match=r"exactly one 1 in every row .*, row \(1,\) is \[0\.0, 0\.5, 0\.5\]"):
        router(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]))


@pytest.mark.parametrize("name", ["linear", "mlp", "cascade", "cascade on a dag"])
def test_a_context_of_the_wrong_width_is_refused(name: str) -> None:
    message = r"`context` must have shape \(\*, 4\) for this router, got \(2, 5\); where no context was given"
    with pytest.raises(ValueError, match=message):
        ROUTERS[name][0](torch.zeros(2, 5))


def test_bad_constructions_are_refused() -> None:
    with pytest.raises(TypeError, match=r"`topology` must be a Topology, got int; for instance Topology\.dag\(8\)"):
        LinearRouter(4, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`cascade` must be one of 'probabilities', 'logits', got 'both'"):
        CascadeRouter(4, LAYERED, cascade="both")
    for make in (MLPRouter, CascadeRouter):
        with pytest.raises(TypeError, match="`hidden_sizes` must list sizes, got 256"):
            make(4, LAYERED, 256)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        TableRouter(0, DAG)
    with pytest.raises(ValueError, match="`num_tasks` must be at least 1, got 0"):
        TaskRouter(0)


def test_a_router_of_ones_own() -> None:
    class Constant(Router):
        def score(self, context: Tensor) -> Tensor:
            return torch.arange(self.topology.num_edges, dtype=torch.float32).expand(*context.shape[:-1], -1)

    logits = Constant(Topology.dag(3))(torch.zeros(2, 1))
    assert logits.tolist() == [[[0, -torch.inf], [1, 2]]] * 2


class Returns(Router):
    """A router whose scores are a function of the context."""

    def __init__(self, returned: Callable[[Tensor], object]) -> None:
        super().__init__(Topology.dag(3))
        self.returned = returned

    def score(self, context: Tensor) -> Tensor:
        return self.returned(context)


BAD_SCORES = {
    "integers": (
        lambda c: torch.zeros(12, 3, dtype=torch.int64),
        TypeError,
        "got a tensor of torch.int64 with shape (12, 3); convert them with `.float()`.",
    ),
    "nothing": (lambda c: None, TypeError, "got None."),
    "several": (lambda c: (c[:, :3], c), TypeError, "got an object of class tuple."),
    "edges": (lambda c: c[:, :4], ValueError, "got (12, 4)."),
    "one for all": (
        lambda c: c.mean(0)[:3],
        ValueError,
        "got (3,); `.expand(12, -1)` repeats one route for all samples.",
    ),
    "half": (lambda c: c[:6, :3], ValueError, "got (6, 3)."),
}


@pytest.mark.parametrize("case", BAD_SCORES)
def test_bad_scores_of_ones_own_router_name_it(case: str) -> None:
    returned, error, message = BAD_SCORES[case]
    rule = "`Returns.score` must return floating-point logits of shape (12, 3), one for each edge, "
    with pytest.raises(error, match=re.escape(rule + message)):
        Returns(returned)(torch.randn(12, 5))


def test_scores_of_contexts_of_all_kinds() -> None:
    features = Returns(lambda c: c[..., :3].float())
    assert features(torch.randn(5)).shape == (2, 2)
    assert features(torch.randn(2, 0, 5)).shape == (2, 0, 2, 2)
    assert features(torch.ones(7, 5, dtype=torch.bool)).shape == (7, 2, 2)
    assert features(torch.ones(7, 5, dtype=torch.int64)).shape == (7, 2, 2), "integers may be features"
    pooled = Returns(lambda c: c.mean(dim=-2)[..., :3])
    assert pooled(torch.randn(4, 9, 5)).shape == (4, 2, 2), "one route for each sequence"
    ids = Returns(lambda c: torch.eye(3)[c])
    assert ids(torch.tensor(2)).shape == (2, 2)
    assert ids(torch.arange(3)).shape == (3, 2, 2)
    assert torch.func.vmap(features)(torch.randn(7, 5)).shape == (7, 2, 2)
