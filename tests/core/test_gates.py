"""Every gate keeps one contract, and each its own rule."""

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynroute import BalancedTopK, ExpertChoice, Gate, Hard, Route, SampleK, Soft, TopK, Topology, TopP
from dynroute.functional import mask_softmax, topk_path

GATES = {"soft": Soft(), "hard": Hard(), "topk2": TopK(2), "topk3": TopK(3), "samplek2": SampleK(2), "topp": TopP(0.6)}
TOPOLOGIES = {
    "dag": Topology.dag(6),
    "layered": Topology.layered([2, 3]),
    "parallel": Topology.parallel(4),
    "single": Topology.dag(2),
}


@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_contract(gate: Gate, topology: Topology, batch: tuple[int, ...], device: torch.device) -> None:
    allowed = topology.allowed.to(device)
    logits = 3 * torch.randn(*batch, *topology.path_shape, device=device)
    route = gate(logits, allowed=allowed)

    assert isinstance(route, Route)
    assert route.path.shape == route.weights.shape == route.logits.shape == logits.shape
    assert (route.logits[..., ~allowed] == -torch.inf).all()
    assert torch.equal(route.logits[..., allowed], logits[..., allowed])
    assert not (route.path & ~allowed).any()
    assert route.path.any(-1).all()
    assert (route.weights[~route.path] == 0).all()
    assert (route.weights.sum(-1) <= 1 + 1e-6).all()

    again = gate(logits, allowed=allowed, path=route)
    assert torch.equal(again.weights, route.weights)
    assert torch.equal(gate(logits, allowed=allowed, path=route.path).weights, route.weights)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_evaluation_is_deterministic_and_sampling_follows_the_generator(gate: Gate) -> None:
    logits = torch.randn(50, 2, 5)
    gate.eval()
    assert torch.equal(gate(logits).path, gate(logits).path)
    draws = [gate(logits, sample=True, generator=torch.Generator().manual_seed(seed)).path for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2]) != isinstance(gate, SampleK)
    gate.train()
    assert torch.equal(gate(logits, sample=False).path, gate.eval()(logits).path)


@given(st.integers(2, 6), st.integers(0, 100))
def test_topk_of_all_sources_is_soft(width: int, seed: int) -> None:
    logits = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
    for gate in (TopK(max(width, 2)), TopK(9), SampleK(9)):
        assert torch.equal(gate(logits).path, Soft()(logits).path)
        assert torch.equal(gate(logits).weights, Soft()(logits).weights)


def test_hard_keeps_the_probability_of_the_full_softmax() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    route = Hard()(logits, allowed=torch.tensor([True, True, False]))
    assert route.path.tolist() == [[False, True, False]]
    torch.testing.assert_close(route.weights, torch.tensor([[0.0, torch.sigmoid(torch.tensor(2.0)), 0.0]]))
    replayed = Hard()(logits, path=torch.tensor([[True, False, False]]))
    torch.testing.assert_close(replayed.weights[0, 0], torch.softmax(logits, -1)[0, 0])


def test_samplek_is_topk_when_it_does_not_sample() -> None:
    logits = torch.randn(9, 4, 5)
    assert torch.equal(SampleK(2).eval()(logits).path, TopK(2)(logits).path)
    assert torch.equal(SampleK(2)(logits, sample=False).weights, TopK(2)(logits).weights)


def test_weights_of_a_sampled_path_come_from_clean_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    route = SampleK(2)(logits, temperature=0.01, noise=torch.tensor([[500.0, 500.0, 0.0]]))
    assert route.path.tolist() == [[True, True, False]]
    torch.testing.assert_close(route.weights[0, :2], torch.softmax(logits[0, :2], -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_widened(dtype: torch.dtype) -> None:
    route = TopK(2)(torch.randn(3, 4).to(dtype))
    assert route.logits.dtype == route.weights.dtype == torch.float32


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_the_router_gets_a_gradient(gate: Gate) -> None:
    logits = torch.randn(8, 3, 4, requires_grad=True)
    (gate(logits).weights * torch.randn(8, 3, 4)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(-1).min() > 0


@pytest.mark.parametrize("gate", [TopK, SampleK])
def test_bad_k_is_refused(gate: type[Gate]) -> None:
    name = gate.__name__
    with pytest.raises(ValueError, match=f"at least 2 for {name}, got 1: .* gives the router no gradient; use Hard"):
        gate(1)
    with pytest.raises(ValueError, match="`k` must be at least 2, got 0"):
        gate(0)
    with pytest.raises(TypeError, match=r"`k` must be an integer, got 2\.0"):
        gate(2.0)
    with pytest.raises(TypeError, match="`k` must be an integer, got True"):
        gate(True)


@pytest.mark.parametrize("make", [TopK, SampleK, BalancedTopK])
def test_k_is_checked_where_it_is_set(make: type[TopK]) -> None:
    gate = make(2)
    with pytest.raises(ValueError, match=f"at least 2 for {make.__name__}, got 1: .* gives the router no gradient"):
        gate.k = 1
    with pytest.raises(TypeError, match="`k` must be an integer, got None"):
        gate.k = None
    assert gate.k == 2
    gate.k = 3
    for same in (gate, copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert (same.k, same.max_sources) == (3, 3)
        assert (same(torch.randn(7, 1, 5)).path.sum(-1) == 3).all()


def test_compiled_code_follows_k() -> None:
    gate, logits = TopK(2), torch.randn(7, 5)
    compiled = torch.compile(lambda z: gate(z).path, backend="eager", fullgraph=True)
    assert (compiled(logits).sum(-1) == 2).all()
    gate.k = 3
    assert (compiled(logits).sum(-1) == 3).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 3, 3)
    logits[1, 0, 2] = bad
    with pytest.raises(ValueError, match=r"`logits` must be finite, got (nan|inf) at index \(1, 0, 2\); did"):
        TopK(2)(logits)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_row_without_any_score_is_refused(gate: Gate) -> None:
    allowed = Topology.dag(3).allowed
    logits = torch.zeros(4, 2, 2)
    logits[2, 1, 0] = logits[3, 1, 1] = -torch.inf
    weights = gate(logits, allowed=allowed).weights
    assert (weights[2, 1, 0], weights[3, 1, 1]) == (0, 0), "single sources may be closed"
    assert (weights[2, 1, 1], weights[3, 1, 0]) == (1, 1)

    logits[3, 1] = -torch.inf
    message = r"`logits` must be above -inf for a source of every row, got -inf for all sources of row \(3, 1\)"
    for path in (None, allowed.expand(4, 2, 2)):
        with pytest.raises(ValueError, match=message):
            gate(logits, allowed=allowed, path=path)


def test_gates_that_may_be_empty_take_rows_without_any_score() -> None:
    logits = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, -torch.inf]]])
    for gate in (TopK(2, capacity=9.0), Hard(capacity=9.0), ExpertChoice(1.0)):
        weights = gate(logits).weights
        assert (weights[1] == 0).all()
        assert weights[0, 0, 0] == 1


@pytest.mark.parametrize(
    "gate", [*GATES.values(), BalancedTopK(2), TopK(5), TopP(1.0), TopK(2, capacity=9.0), ExpertChoice(4.0)], ids=str
)
@pytest.mark.parametrize("samples", [2, 3000])
def test_closed_sources_are_not_on_the_path(gate: Gate, samples: int) -> None:
    logits = torch.tensor([[[-torch.inf, 0.0, -torch.inf, -torch.inf]], [[0.0, 1.0, -torch.inf, 2.0]]])
    logits = logits.repeat(samples // 2, 1, 1)
    gate.train()
    for scores in (None, torch.where(torch.rand(samples, 1, 4) < 0.5, -torch.inf, 1.0)):
        route = gate(logits, scores=scores)
        assert not (route.path & (logits == -torch.inf)).any()
        assert (route.path.sum(-1) <= (gate.max_sources or 4)).all()
        assert torch.equal(gate(logits, path=route).weights, route.weights)
    if isinstance(gate, BalancedTopK):
        assert gate.load[0, 2] == 0
    if gate.may_be_empty:
        logits[0] = -torch.inf
        route = gate(logits)
        assert not route.path[0].any()
        assert torch.equal(gate(logits, path=route).weights, route.weights)


def test_a_row_without_slots_is_no_error() -> None:
    allowed = torch.tensor([[True, True], [False, False]])
    assert Soft()(torch.zeros(2, 2), allowed=allowed).weights.tolist() == [[0.5, 0.5], [0, 0]]


def test_values_in_padding_do_not_matter() -> None:
    logits = torch.tensor([[0.0, torch.nan], [1.0, 2.0]])
    route = Soft()(logits, allowed=Topology.dag(3).allowed)
    assert route.logits.tolist() == [[0.0, -torch.inf], [1.0, 2.0]]


def bad_paths() -> dict[str, tuple[Tensor | str, type[Exception], str]]:
    good = torch.tensor([[[True, False], [True, True]]] * 2)
    empty, forbidden = good.clone(), good.clone()
    empty[1, 1] = False
    forbidden[1, 0, 1] = True
    return {
        "float": (good.float(), TypeError, r"`path` must be a boolean tensor, got torch\.float32; compare it"),
        "list": ("path", TypeError, "`path` must be a boolean tensor or a Route, got str"),
        "shape": (good[:1], ValueError, r"`path` must have shape \(2, 2, 2\) like the logits, got \(1, 2, 2\); was it"),
        "empty": (empty, ValueError, r"row \(1, 1\) has none; was an empty record replayed"),
        "forbidden": (forbidden, ValueError, r"row \(1, 0\) uses the missing slot 1; was it recorded by another"),
    }


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("case", bad_paths())
def test_bad_replays_are_refused(gate: Gate, case: str) -> None:
    path, error, message = bad_paths()[case]
    with pytest.raises(error, match=message):
        gate(torch.zeros(2, 2, 2), allowed=Topology.dag(3).allowed, path=path)


def test_bad_allowed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`allowed` must be a boolean tensor, got torch\.float32"):
        Soft()(torch.zeros(2, 3), allowed=torch.ones(3))
    with pytest.raises(ValueError, match=r"`allowed` must have the shape of the last dim.*\(2, 3\), got \(2,\)"):
        Soft()(torch.zeros(2, 3), allowed=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`logits` must have shape"):
        Soft()(torch.zeros(()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, torch.nan])
def test_bad_temperatures_are_refused(temperature: float) -> None:
    for gate in GATES.values():
        with pytest.raises(ValueError, match="`temperature` must be positive"):
            gate(torch.zeros(2, 3, 3), temperature=temperature)
        with pytest.raises(ValueError, match=r"`temperature` must be positive, got .* at index \(1,\)"):
            gate(torch.zeros(2, 3, 3), temperature=torch.tensor([1.0, temperature]))


def test_misshaped_sampling_arguments_are_refused() -> None:
    logits = torch.zeros(2, 3, 3)
    with pytest.raises(ValueError, match=r"`temperature` must be a number or have the batch shape .* got \(3,\)"):
        SampleK(2)(logits, temperature=torch.ones(3))
    with pytest.raises(ValueError, match=r"`noise` must have the shape of the logits \(2, 3, 3\), got \(3, 3\)"):
        SampleK(2)(logits, noise=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="`generator` and `noise` exclude each other"):
        SampleK(2)(logits, noise=torch.zeros(2, 3, 3), generator=torch.Generator())


def test_a_gate_of_ones_own() -> None:
    class Last(Gate):
        def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
            last = allowed.cumsum(-1) == allowed.sum(-1, keepdim=True)
            return last & allowed

    route = Last()(torch.randn(5, 5), allowed=Topology.dag(6).allowed)
    assert torch.equal(route.path, torch.eye(5, dtype=torch.bool))
    assert torch.equal(route.weights, torch.eye(5))


class Own(Gate):
    """A gate that chooses what it is given, and weighs by a function."""

    def __init__(self, choice: object, weight: Callable[[Tensor, Tensor], object] = mask_softmax) -> None:
        super().__init__()
        self.choice, self.weight = choice, weight

    def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
        return self.choice(logits, allowed) if callable(self.choice) else self.choice

    def weigh(self, logits: Tensor, path: Tensor) -> Tensor:
        return self.weight(logits, path)


BAD_CHOICES = {
    "empty": (
        lambda z, _: z > 0,
        ValueError,
        "`Own.choose` must choose a source of non-zero probability in every row, row (0, 0) has none; add "
        "`| topk_path(logits, 1, allowed=allowed)`, or return True from `may_be_empty`.",
    ),
    "missing": (
        lambda _, allowed: torch.ones_like(allowed),
        ValueError,
        "`Own.choose` must only choose slots in `allowed`, but row (0, 0) uses slot 1; add `& allowed`.",
    ),
    "one for all": (
        lambda _, allowed: allowed[0],
        ValueError,
        "`Own.choose` must return a boolean path of shape (4, 2, 2), like the logits, got (2, 2); `.expand(logits.shap",
    ),
    "numbers": (
        lambda _, allowed: allowed.long(),
        TypeError,
        "`Own.choose` must return a boolean path of shape (4, 2, 2), like the logits, got a tensor of torch.int64 with",
    ),
    "nothing": (None, TypeError, "`Own.choose` must return a boolean path of shape (4, 2, 2), like the logits, got No"),
}


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_bad_choices_of_ones_own_gate_are_refused(case: str) -> None:
    choice, error, message = BAD_CHOICES[case]
    with pytest.raises(error, match=re.escape(message)):
        Own(choice)(torch.zeros(4, 2, 2), allowed=Topology.dag(3).allowed)


BAD_WEIGHTS = {
    "off the path": (
        lambda z, _: torch.sigmoid(z),
        ValueError,
        "`Own.weigh` must give 0 to sources that are not on the path, got 0.5 at index (0, 0, 1); add "
        "`.masked_fill(~path, 0.0)`.",
    ),
    "not finite": (
        lambda _, path: (0 * path) / 0,
        ValueError,
        "`Own.weigh` must return finite weights, got nan at index (0, 0, 0).",
    ),
    "one for all": (
        lambda _, path: path[0].float(),
        ValueError,
        "`Own.weigh` must return floating-point weights of shape (4, 2, 3), like the path, got (2, 3).",
    ),
    "booleans": (
        lambda _, path: path,
        TypeError,
        "`Own.weigh` must return floating-point weights of shape (4, 2, 3), like the path, got a tensor of torch.bool",
    ),
    "nothing": (
        lambda *_: None,
        TypeError,
        "`Own.weigh` must return floating-point weights of shape (4, 2, 3), like the path, got None.",
    ),
}


@pytest.mark.parametrize("capacity", [None, 1.0])
@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_of_ones_own_gate_are_refused(case: str, replay: bool, capacity: float | None) -> None:
    weight, error, message = BAD_WEIGHTS[case]
    logits = torch.zeros(4, 2, 3)
    first = torch.tensor([True, False, False]).expand(4, 2, 3)
    gate = Own(first, weight)
    gate.capacity = capacity
    with pytest.raises(error, match=re.escape(message)):
        gate(logits, path=first if replay else None)


def test_sigmoid_weights_on_the_path() -> None:
    logits = torch.zeros(4, 2, 3)
    gate = Own(lambda z, allowed: topk_path(z, 2, allowed=allowed), lambda z, p: z.sigmoid().masked_fill(~p, 0.0))
    assert torch.equal(gate(logits).weights, torch.tensor([0.5, 0.5, 0.0]).expand(4, 2, 3))


def test_rows_without_a_source_are_for_gates_that_say_so() -> None:
    class Above(Gate):
        @property
        def may_be_empty(self) -> bool:
            return True

        def choose(self, logits: Tensor, allowed: Tensor, **_: object) -> Tensor:
            return logits > 0

    route = Above()(torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
    assert route.path.tolist() == [[True, False], [False, False]]
    assert route.weights.tolist() == [[1, 0], [0, 0]]


def test_a_subclass_that_chooses_otherwise_is_checked() -> None:
    class Likely(TopK):
        def choose(self, logits: Tensor, allowed: Tensor, **how: object) -> Tensor:
            return super().choose(logits, allowed, **how) & (logits > 0)

    assert Likely(2)(torch.ones(1, 3)).path.sum() == 2
    with pytest.raises(ValueError, match=r"`Likely\.choose` must choose a source .* row \(0,\) has none; add"):
        Likely(2)(torch.zeros(1, 3))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_gate_of_ones_own_under_transforms() -> None:
    logits = torch.randn(5, 2, 3)
    gate = Own(lambda z, allowed: (z >= z.amax(dim=-1, keepdim=True) - 1) & allowed)
    expected = gate(logits)
    assert torch.equal(torch.func.vmap(lambda z: gate(z).weights)(logits), expected.weights)
    compiled = torch.compile(lambda z: gate(z).weights, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logits), expected.weights)
    traced = torch.jit.trace(lambda z: gate(z).weights, (logits,))
    assert torch.equal(traced(logits), expected.weights)
