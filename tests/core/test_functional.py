"""Properties of the equations, over logits of every scale."""

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynroute import BalancedTopK, ExpertChoice, Gate, Hard, SampleK, Soft, TopK, TopP, set_checks
from dynroute.functional import (
    expert_choice_path,
    gumbel_noise,
    mask_softmax,
    route_temperature,
    samplek_path,
    suitable,
    task_weights,
    topk_path,
    topp_path,
)


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """A few rows of logits between 1e-6 and 1e4 in size, with ties."""
    scale = 10.0 ** draw(st.integers(-6, 4))
    width = draw(st.integers(1, 7))
    grid = st.integers(-4, 4).map(lambda i: i / 4)  # a coarse grid, so that ties are common
    values = draw(st.lists(st.lists(grid, min_size=width, max_size=width), min_size=1, max_size=4))
    return torch.tensor(values, dtype=torch.float64) * scale


@st.composite
def masked_rows(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of logits and a mask that leaves at least one source of each."""
    logits = draw(rows())
    bits = draw(st.lists(st.booleans(), min_size=logits.numel(), max_size=logits.numel()))
    allowed = torch.tensor(bits).reshape(logits.shape)
    allowed[:, draw(st.integers(0, logits.shape[1] - 1))] = True
    return logits, allowed


@given(masked_rows())
def test_weights_sum_to_one_and_are_zero_off_the_path(case: tuple[Tensor, Tensor]) -> None:
    logits, path = case
    weights = mask_softmax(logits, path)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(logits), dtype=logits.dtype))
    assert (weights[~path] == 0).all()
    assert (weights >= 0).all()


@given(masked_rows())
def test_masking_is_deleting(case: tuple[Tensor, Tensor]) -> None:
    logits, path = case
    weights = mask_softmax(logits, path)
    for row, kept, weight in zip(logits, path, weights, strict=True):
        torch.testing.assert_close(weight[kept], torch.softmax(row[kept], -1), rtol=1e-12, atol=1e-15)


@given(masked_rows(), st.sampled_from([-1024.0, 0.5, 4096.0]))
def test_a_shift_of_the_logits_changes_nothing(case: tuple[Tensor, Tensor], shift: float) -> None:
    logits, path = case
    scale = max(1.0, float(logits.abs().max()))
    torch.testing.assert_close(
        mask_softmax(logits + shift, path), mask_softmax(logits, path), rtol=0, atol=1e-12 * scale
    )
    rounded = (logits * 4).round() / 4  # exact sums, so that no tie is made or broken
    assert torch.equal(topk_path(rounded + shift, 2), topk_path(rounded, 2))
    assert torch.equal(suitable(rounded + shift), suitable(rounded))


@given(masked_rows(), st.randoms(use_true_random=False))
def test_permuted_sources_give_permuted_weights(case: tuple[Tensor, Tensor], random: object) -> None:
    logits, path = case
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(mask_softmax(logits, path)[:, order], mask_softmax(logits[:, order], path[:, order]))
    distinct = logits + torch.arange(logits.shape[1]) * 1e-9 * max(1.0, float(logits.abs().max()))
    assert torch.equal(topk_path(distinct, 2)[:, order], topk_path(distinct[:, order], 2))


@pytest.mark.parametrize(
    "choose",
    [
        lambda logits, **mask: topk_path(logits, 2, **mask),
        lambda logits, **mask: samplek_path(logits, 2, **mask),
        lambda logits, **mask: topp_path(logits, 0.5, **mask),
        lambda logits, **mask: expert_choice_path(logits.unsqueeze(1), 1.0, **mask),
        suitable,
    ],
)
def test_logits_that_are_nan_are_refused_where_they_count(choose: Callable[..., Tensor]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, torch.nan, 3.0]])
    with pytest.raises(ValueError, match=r"^`logits` must not be NaN, but one of row \(1,( 0)?\) is; did the router's"):
        choose(logits)
    if choose is suitable:
        with pytest.raises(ValueError, match=r"^`logits` must not be NaN, but one is; did"):
            choose(logits[1])
    assert choose(logits, allowed=torch.tensor([True, False, True])).any()


@given(masked_rows(), st.integers(1, 9))
def test_topk_chooses_exactly_k_allowed_sources_and_breaks_ties_low(case: tuple[Tensor, Tensor], k: int) -> None:
    logits, allowed = case
    path = topk_path(logits, k, allowed=allowed)
    assert torch.equal(path.sum(-1), allowed.sum(-1).clamp(max=k))
    assert not (path & ~allowed).any()
    for row, mask, chosen in zip(logits, allowed, path, strict=True):
        assert chosen[mask].tolist() == oracle.top_k(row[mask].tolist(), k)


@given(masked_rows(), st.integers(1, 9), st.sampled_from([1e-3, 1.0, 50.0]), st.integers(0, 1000))
def test_samplek_chooses_exactly_k_allowed_sources(
    case: tuple[Tensor, Tensor], k: int, temperature: float, seed: int
) -> None:
    logits, allowed = case
    generator = torch.Generator().manual_seed(seed)
    path = samplek_path(logits, k, temperature=temperature, allowed=allowed, generator=generator)
    assert torch.equal(path.sum(-1), allowed.sum(-1).clamp(max=k))
    assert not (path & ~allowed).any()


@given(masked_rows())
def test_suitable_is_the_rule_of_the_paper(case: tuple[Tensor, Tensor]) -> None:
    logits, allowed = case
    actual = suitable(logits, allowed=allowed)
    assert not actual[~allowed].any()
    for row, mask, mine in zip(logits / max(1.0, float(logits.abs().max()) / 50), allowed, actual, strict=True):
        if float(logits.abs().max()) <= 50:  # the literal equation overflows beyond
            assert mine[mask].tolist() == oracle.is_suitable(list(row[mask]))
    assert actual.any(-1).all()  # the best of n sources has at least 1/n


def test_suitable_reads_the_number_of_sources_of_each_row() -> None:
    logits = torch.tensor([[0.0, -0.5, 0.0], [0.0, -0.5, 0.0]])
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    # softmax .62 .38 against 1/3; softmax .38 .23 .38 against 1/4
    assert suitable(logits, allowed=allowed).tolist() == [[True, True, False], [True, False, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_source_on_the_threshold_is_suitable(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([0.25, 0.25, 0.5], dtype=dtype)  # exact in binary, and so is 1 / 4
    assert suitable(probabilities.log()).all()
    exact = torch.tensor([0.0, math.log(2.0)], dtype=torch.float64)
    assert suitable(exact).all()  # 1/3 of two sources: the threshold is 1/3 in float64, not in float32


def test_suitable_is_decided_in_float32() -> None:
    logits = torch.tensor([1.0, 0.213, 0.0]).bfloat16()
    assert logits.softmax(dim=-1)[1] == 1 / 4  # which it is only by the rounding of 16 bits
    assert suitable(logits).tolist() == suitable(logits.float()).tolist() == [True, False, False]


@pytest.mark.parametrize("k", [1, 2, 5, 6, 7])
def test_ties_go_to_the_lowest_index_for_every_k(k: int) -> None:
    assert topk_path(torch.zeros(8), k).tolist() == [True] * k + [False] * (8 - k)
    logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    assert topk_path(logits, k).tolist() == oracle.top_k(logits.tolist(), k)


def test_sampling_stays_exact_beside_large_scores() -> None:
    logits = torch.tensor([1e9, 1e9 + 64.0, 1e12])
    allowed = torch.tensor([True, True, False])
    noise = torch.tensor([0.5, 0.0, 0.0])
    assert samplek_path(logits, 1, temperature=256.0, allowed=allowed, noise=noise).tolist() == [True, False, False]
    assert samplek_path(logits, 1, temperature=64.0, allowed=allowed, noise=noise).tolist() == [False, True, False]


@pytest.mark.parametrize("temperature", [1.0, 1e38, math.inf])
def test_a_source_of_probability_zero_stays_so_at_any_temperature(temperature: float) -> None:
    logits = torch.tensor([0.0, -math.inf, 0.0]).expand(500, 3)
    generator = torch.Generator().manual_seed(0)
    assert not samplek_path(logits, 2, temperature=temperature, generator=generator)[:, 1].any()


def test_bad_arguments_are_refused() -> None:
    logits = torch.zeros(2, 3)
    for function in (topk_path, samplek_path):
        with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
            function(logits, 0)
        with pytest.raises(TypeError, match=r"`k` must be an integer, got 1\.5"):
            function(logits, 1.5)
        with pytest.raises(TypeError, match=r"`logits` must be a floating tensor, got torch\.int64; convert it"):
            function(logits.long(), 1)
    with pytest.raises(TypeError, match=r"`path` must be a boolean tensor, got torch\.float32"):
        mask_softmax(logits, logits)
    with pytest.raises(ValueError, match=r"`path` must have shape \(2, 3\) like the logits, got \(3,\); was it"):
        mask_softmax(logits, logits[0] == 0)
    with pytest.raises(ValueError, match=r"`alpha` must be positive, got 0 at \(1,\); did you pass log alpha"):
        route_temperature(torch.tensor([1.0, 0.0]))
    for rule in (route_temperature, task_weights):
        with pytest.raises(ValueError, match="`normalize` must be one of 'sum', 'mean', got 'max'"):
            rule(torch.ones(3), normalize="max")
        for normalize in ("sum", "mean"):
            with pytest.raises(
                ValueError, match=r"`alpha` must have shape \(\*, N\), one coefficient for each task, got"
            ):
                rule(torch.tensor(0.2), normalize=normalize)
    with pytest.raises(TypeError, match="`temperature` must be a number or a tensor, got list"):
        samplek_path(logits, 1, temperature=[1.0, 2.0])


def test_tasks_are_counted_in_the_last_dimension() -> None:
    alpha = torch.rand(2, 5) + 0.1
    torch.testing.assert_close(route_temperature(alpha, normalize="mean").mean(-1), torch.ones(2))


def test_noise_of_a_rounded_zero_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert gumbel_noise((3,)).isfinite().all()


def test_an_empty_row_gives_zeros_and_zero_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    weights = mask_softmax(logits, torch.tensor([[True, True, False], [False, False, False]]))
    assert weights[1].tolist() == [0, 0, 0]
    (weights * torch.randn(2, 3)).sum().backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0, 0, 0]
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(
    "gate", [Soft(), Hard(), TopK(2), SampleK(2), TopP(0.6), BalancedTopK(2), ExpertChoice(1.0)], ids=str
)
def test_nan_is_not_hidden_where_values_are_not_checked(gate: Gate, noisy: bool) -> None:
    set_checks(False)
    try:
        for place in ([0], [1], [2], [0, 1, 2]):
            logits = torch.tensor([1.0, 2.0, 3.0]).repeat(4, 1, 1)
            logits[1, 0, place] = torch.nan
            weights = gate(logits, scores=logits + torch.randn(4, 1, 3) if noisy else None).weights
            assert weights[1].isnan().all()
            assert weights[[0, 2, 3]].isfinite().all()
    finally:
        set_checks(None)


@pytest.mark.parametrize("gate", [Soft(), Hard(), TopK(2)], ids=str)
def test_nan_off_a_replayed_path_is_not_hidden(gate: Gate) -> None:
    logits = torch.tensor([1.0, 2.0, 3.0]).repeat(4, 1, 1)
    path = gate(logits).path
    logits[1, 0, 0] = torch.nan

    def weigh(logits: Tensor, path: Tensor) -> Tensor:
        return gate(logits, path=path).weights

    torch.compiler.reset()
    for form in (torch.func.vmap(weigh), torch.compile(weigh, fullgraph=True, backend="aot_eager")):
        weights = form(logits, path)
        assert weights[1].isnan().all()
        assert weights[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("gap", [1e4, 3e38])
def test_gradients_are_finite_when_the_path_leaves_out_the_best_source_by_far(gap: float) -> None:
    logits = torch.tensor([gap, 0.0, 1.0], requires_grad=True)
    weights = mask_softmax(logits, torch.tensor([False, True, True]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.2689414, 0.7310586]))
    weights[1].backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, 0.1966119, -0.1966119]))


def test_mask_softmax_passes_gradcheck() -> None:
    path = torch.tensor([[True, False, True], [False, True, False]])
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: mask_softmax(z, path), logits)
    assert torch.autograd.gradgradcheck(lambda z: mask_softmax(z, path), logits)


def test_sources_of_probability_zero_come_last_but_are_counted() -> None:
    logits = torch.tensor([-math.inf, -math.inf, 1.0, 0.0])
    assert topk_path(logits, 3).tolist() == [True, False, True, True]
    allowed = torch.tensor([False, True, True, False])
    assert topk_path(logits, 2, allowed=allowed).tolist() == [False, True, True, False]
    for seed in range(200):
        path = samplek_path(logits, 2, generator=torch.Generator().manual_seed(seed))
        assert path.tolist() == [False, False, True, True]


def test_noise_decides_the_draw() -> None:
    logits = torch.zeros(2, 4)
    noise = torch.tensor([[0.0, 3.0, 2.0, 1.0], [5.0, 0.0, 0.0, 6.0]])
    expected = [[False, True, True, False], [True, False, False, True]]
    assert samplek_path(logits, 2, noise=noise).tolist() == expected


def test_equal_generators_draw_equal_paths_whatever_the_type_of_the_logits() -> None:
    logits = torch.randn(64, 5).bfloat16()
    paths = [
        samplek_path(logits.to(dtype), 2, generator=torch.Generator().manual_seed(3))
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
    ]
    assert torch.equal(paths[0], paths[1])
    assert torch.equal(paths[1], paths[2])


def test_gumbel_noise_is_drawn_under_vmap_without_a_warning() -> None:
    draw = torch.func.vmap(lambda _: gumbel_noise((3,)), randomness="different")
    assert len(draw(torch.arange(2)).unique()) == 6


def test_gumbel_noise_is_finite_float32_with_the_right_moments() -> None:
    noise = gumbel_noise((200_000,), generator=torch.Generator().manual_seed(0))
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.5772157, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_a_temperature_for_each_sample() -> None:
    logits = torch.tensor([1.0, 0.0]).expand(2, 3, 2)
    noise = torch.tensor([0.0, 5.0]).expand(2, 3, 2)
    path = samplek_path(logits, 1, temperature=torch.tensor([0.1, 10.0]), noise=noise)
    assert path[0].tolist() == [[True, False]] * 3  # 1 / 0.1 beats the noise
    assert path[1].tolist() == [[False, True]] * 3  # 1 / 10 does not


def test_route_temperature_and_task_weights() -> None:
    alpha = torch.tensor([0.5, 0.25, 0.1])
    torch.testing.assert_close(route_temperature(alpha), torch.tensor([2.0, 4.0, 10.0]) / 16)
    torch.testing.assert_close(route_temperature(alpha, normalize="mean"), 3 * torch.tensor([2.0, 4.0, 10.0]) / 16)
    torch.testing.assert_close(task_weights(alpha), torch.softmax(-alpha, -1))
    torch.testing.assert_close(task_weights(alpha, normalize="mean").mean(), torch.tensor(1.0))


def test_sums_of_temperature_are_one_for_many_tasks() -> None:
    alpha = torch.rand(50, dtype=torch.float64) + 1e-4
    assert float(route_temperature(alpha).sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(route_temperature(alpha, normalize="mean").mean()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("case", ["distinct", "ties", "never", "nan"])
def test_many_rows_choose_as_one_row_does(case: str, k: int, request: pytest.FixtureRequest) -> None:
    generator = torch.Generator().manual_seed(k)
    logits = torch.randn(1500, 6, generator=generator)
    allowed = torch.rand(1500, 6, generator=generator) < 0.7
    allowed[:, 2] = True
    if case == "ties":
        logits = (2 * logits).round()
    elif case == "never":
        logits = logits.masked_fill(torch.rand(1500, 6, generator=generator) < 0.3, -math.inf)
    elif case == "nan":
        logits[7, 2] = math.nan
        request.addfinalizer(lambda: set_checks(None))
        set_checks(False)
    together = topk_path(logits, k, allowed=allowed)
    for i in (0, 3, 7, 11, 1499):
        assert torch.equal(together[i], topk_path(logits[i], k, allowed=allowed[i]))
    one_by_one = torch.stack([topk_path(row, k, allowed=mask) for row, mask in zip(logits, allowed, strict=True)])
    assert torch.equal(together, one_by_one)
    noise = gumbel_noise(logits.shape, generator=generator)
    drawn = samplek_path(logits, k, allowed=allowed, noise=noise, temperature=0.5)
    for i in (0, 3, 7, 11, 1499):
        assert torch.equal(drawn[i], samplek_path(logits[i], k, allowed=allowed[i], noise=noise[i], temperature=0.5))
