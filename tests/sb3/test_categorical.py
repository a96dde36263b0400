"""Distributions of values over bins: what is moved to bins keeps its mass and, within the range, its mean."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("stable_baselines3")

import oracle_sac

from dynroute_sb3 import categorical
from dynroute_sb3.categorical import (
    combine_distributions,
    cross_entropy,
    expectation,
    outside_share,
    project,
    support,
)

NUMBERS = st.floats(-30, 30, allow_nan=False)


@st.composite
def moved(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[float, float], int]:
    """Probabilities, the values that have them, a range and a number of bins."""
    batch, n, bins = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 9))
    low = draw(st.floats(-20, 10))
    ends = (low, low + draw(st.floats(0.01, 20)))
    weights = draw(st.lists(st.floats(0.01, 1), min_size=batch * n, max_size=batch * n))
    values = draw(st.lists(st.one_of(NUMBERS, st.sampled_from(ends)), min_size=batch * n, max_size=batch * n))
    probabilities = torch.tensor(weights, dtype=torch.float64).view(batch, n)
    return (
        probabilities / probabilities.sum(dim=1, keepdim=True),
        torch.tensor(values, dtype=torch.float64).view(batch, n),
        ends,
        bins,
    )


@given(moved())
def test_mass_and_mean_stay(case: tuple[Tensor, Tensor, tuple[float, float], int]) -> None:
    probabilities, values, ends, bins = case
    projected = project(probabilities, values, ends, bins)
    assert (projected >= -1e-15).all()
    torch.testing.assert_close(projected.sum(dim=1), torch.ones(len(values), dtype=torch.float64), rtol=0, atol=1e-12)
    mean = (projected * support(bins, ends, like=projected)).sum(dim=1)
    torch.testing.assert_close(mean, (probabilities * values.clamp(*ends)).sum(dim=1), rtol=0, atol=1e-10)


@given(moved())
def test_it_is_what_loops_over_the_bins_say(case: tuple[Tensor, Tensor, tuple[float, float], int]) -> None:
    probabilities, values, ends, bins = case
    pairs = list(zip(probabilities.tolist(), values.tolist(), strict=True))
    expected = torch.tensor([oracle_sac.to_bins(p, y, ends, bins) for p, y in pairs], dtype=torch.float64)
    torch.testing.assert_close(project(probabilities, values, ends, bins), expected, rtol=0, atol=1e-10)
    outside = [sum(p for p, y in zip(*row, strict=True) if not ends[0] <= y <= ends[1]) for row in pairs]
    got = outside_share(probabilities, values, ends)
    torch.testing.assert_close(got, torch.tensor(outside, dtype=torch.float64), rtol=0, atol=1e-12)


@given(moved())
def test_both_ways_to_add_up_agree(case: tuple[Tensor, Tensor, tuple[float, float], int]) -> None:
    probabilities, values, ends, bins = case
    places = (values.clamp(*ends) - ends[0]) / (ends[1] - ends[0]) * (bins - 1)
    scattered = categorical._scatter(probabilities, places, bins)
    torch.testing.assert_close(scattered, categorical._multiply(probabilities, places, bins), rtol=0, atol=1e-12)


def test_other_devices_add_up_in_one_order() -> None:
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            assert "scatter" not in str(func)
            return func(*args, **(kwargs or {}))  # type: ignore[operator]

    probabilities = torch.ones(3, 5, device="meta")
    with Watch():
        assert project(probabilities, probabilities, (0, 1), 7).shape == (3, 7)


@pytest.mark.parametrize("spread", [categorical._scatter, categorical._multiply], ids=["scatter", "multiply"])
@pytest.mark.parametrize("row", [0, 1])
def test_a_row_of_nan_stays_alone(spread: object, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categorical, "_scatter", spread)
    values = torch.tensor([[0.2, 0.7], [0.4, 0.9]])
    values[row] = math.nan
    projected = project(torch.full((2, 2), 0.5), values, (0, 1), 3)
    assert projected[row].isnan().any()
    assert projected[1 - row].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_range_are_places(dtype: torch.dtype) -> None:
    ends = (-0.1, 0.7)  # not exact in binary
    values = torch.tensor([[-0.1, 0.7]], dtype=dtype)
    projected = project(torch.full((1, 2), 0.5, dtype=dtype), values, ends, 101)
    assert (projected >= 0).all()
    torch.testing.assert_close(projected[0, [0, -1]], torch.tensor([0.5, 0.5], dtype=dtype))


def test_cross_entropy_is_least_at_the_target() -> None:
    target = torch.rand(4, 7, dtype=torch.float64).softmax(dim=-1)
    logits = target.log()[None].repeat(2, 1, 1).requires_grad_()
    loss = cross_entropy(logits, target)
    torch.testing.assert_close(loss, -2 * (target * target.log()).sum(dim=-1))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    other = torch.randn(2, 4, 7, dtype=torch.float64)
    assert (cross_entropy(other, target) > loss).all()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, target), other.requires_grad_())


def test_expectations() -> None:
    logits = torch.randn(3, 5, 11, dtype=torch.float64, requires_grad=True)
    values = expectation(logits, (-2.0, 6.0))
    assert ((values > -2) & (values < 6)).all()
    even = expectation(torch.zeros(2, 11), (-2.0, 6.0))
    torch.testing.assert_close(even, torch.full((2,), 2.0))
    assert torch.autograd.gradcheck(lambda x: expectation(x, (-2.0, 6.0)), logits)


def test_the_critic_with_the_smallest_expectation_is_taken_row_by_row() -> None:
    logits = torch.randn(3, 50, 11, dtype=torch.float64)
    probabilities, values = logits.softmax(dim=-1), expectation(logits, (-1, 1))
    smallest = combine_distributions(logits, (-1, 1), "min")
    for i in range(50):
        assert torch.equal(smallest[i], probabilities[int(values[:, i].argmin()), i])
    torch.testing.assert_close(combine_distributions(logits, (-1, 1), "mean"), probabilities.mean(dim=0))
