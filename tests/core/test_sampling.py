"""SampleK draws like sampling without replacement: chi-square tests with fixed seeds."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dynroute.functional import samplek_path

DRAWS = 40_000


def chi_square(observed: Tensor, expected: Tensor) -> float:
    return float(((observed - expected).square() / expected).sum())


def critical(degrees: int) -> float:
    """The 99.9 % quantile of chi-square (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.0902 * (2 / (9 * degrees)) ** 0.5) ** 3


def draw(logits: Tensor, k: int, temperature: float | Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return samplek_path(logits.expand(DRAWS, -1), k, temperature=temperature, generator=generator)


def pairs_without_replacement(p: Tensor) -> dict[tuple[int, int], float]:
    """The probability of each ordered pair: first i from p, then j from what remains."""
    return {(i, j): float(p[i] * p[j] / (1 - p[i])) for i, j in itertools.permutations(range(len(p)), 2)}


LOGITS = torch.tensor([1.2, 0.0, -0.7, 0.4, -1.5], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0, "tensor"])
def test_unordered_pairs_and_marginals(temperature: float | str) -> None:
    tau = 2.0 if temperature == "tensor" else float(temperature)
    path = draw(LOGITS, 2, torch.full((DRAWS,), tau) if temperature == "tensor" else tau, seed=11)
    ordered = pairs_without_replacement(torch.softmax(LOGITS / tau, -1))

    pairs = list(itertools.combinations(range(5), 2))
    observed = torch.tensor([float((path[:, i] & path[:, j]).sum()) for i, j in pairs])
    expected = DRAWS * torch.tensor([ordered[i, j] + ordered[j, i] for i, j in pairs])
    assert chi_square(observed, expected) < critical(len(pairs) - 1)

    marginal = torch.tensor([sum(p for pair, p in ordered.items() if i in pair) for i in range(5)])
    deviation = (path.double().mean(0) - marginal).abs() / (marginal * (1 - marginal) / DRAWS).sqrt()
    assert float(deviation.max()) < 4.0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_ordered_pairs(temperature: float) -> None:
    # One draw of noise read with k = 1 and with k = 2 tells the first source from the second.
    first = draw(LOGITS, 1, temperature, seed=5)
    both = draw(LOGITS, 2, temperature, seed=5)
    assert (first & both).sum() == DRAWS
    i = first.int().argmax(-1)
    j = (both & ~first).int().argmax(-1)

    expected = pairs_without_replacement(torch.softmax(LOGITS / temperature, -1))
    observed = torch.tensor([float(((i == a) & (j == b)).sum()) for a, b in expected])
    assert chi_square(observed, DRAWS * torch.tensor(list(expected.values()))) < critical(len(expected) - 1)


def test_the_test_can_fail() -> None:
    """Drawing by Top-K of the probabilities is not sampling, and the statistic sees it."""
    path = draw(LOGITS * 1.2, 2, 1.0, seed=11)
    ordered = pairs_without_replacement(torch.softmax(LOGITS, -1))
    pairs = list(itertools.combinations(range(5), 2))
    observed = torch.tensor([float((path[:, i] & path[:, j]).sum()) for i, j in pairs])
    expected = DRAWS * torch.tensor([ordered[i, j] + ordered[j, i] for i, j in pairs])
    assert chi_square(observed, expected) > critical(len(pairs) - 1)


@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_after_underflow_the_remaining_sources_are_drawn_fairly(dtype: torch.dtype, temperature: float) -> None:
    path = draw(torch.tensor([0.0, 500.0, 0.0], dtype=dtype), 2, temperature, seed=2)
    assert path[:, 1].all()
    share = float(path[:, 0].double().mean())
    assert share == pytest.approx(0.5, abs=4 * (0.25 / DRAWS) ** 0.5)


def test_a_small_temperature_is_topk_and_a_large_one_uniform() -> None:
    assert draw(LOGITS, 2, 1e-6, seed=3).double().mean(0).tolist() == [1, 0, 0, 1, 0]
    share = draw(LOGITS, 2, 1e6, seed=3).double().mean(0)
    assert float((share - 0.4).abs().max()) < 4 * (0.24 / DRAWS) ** 0.5


def test_one_source_of_zero_probability_is_drawn_only_when_nothing_else_is_left() -> None:
    path = draw(torch.tensor([0.0, -1e4, 0.0]), 2, 1.0, seed=4)
    assert not path[:, 1].any()
    assert draw(torch.tensor([0.0, -1e4, 0.0]), 3, 1.0, seed=4).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 1e-30, 1e-290])
def test_a_source_of_probability_0_is_the_last_resort_at_any_temperature(
    dtype: torch.dtype, temperature: float
) -> None:
    for logits in ([-math.inf, 0.0, -1e30], [-math.inf, -math.inf, 0.0], [-math.inf, 3e38, -3e38]):
        z = torch.tensor(logits, dtype=dtype)
        path = samplek_path(z, 2, temperature=temperature, noise=torch.zeros(3))
        finite = sum(score > -math.inf for score in logits)
        assert path.tolist() == ([False, True, True] if finite == 2 else [True, False, True])
        assert z.tolist() == torch.tensor(logits, dtype=dtype).tolist()
    everywhere = samplek_path(torch.full((3,), -math.inf, dtype=dtype), 2, noise=torch.zeros(3))
    assert everywhere.tolist() == [True, True, False]


def test_no_source_at_all() -> None:
    assert samplek_path(torch.zeros(3, 0), 2).shape == (3, 0)
