"""Multiply-adds are those of the products that run."""

import pytest
import torch

from benchmarks.arithmetic import multiply_adds, of_critic
from dynroute import ModelRouting, TopK
from dynroute_metaworld import Configuration


def critic(method: str, **network: object) -> float:
    options = {"method": method, "benchmark": "MT10", "critic_loss": "categorical", "bins": 101, "width": 256}
    return of_critic(Configuration(**{**options, "network": network}))


def test_products_of_all_backends_are_counted() -> None:
    x = torch.randn(300, 5, requires_grad=True)
    net = ModelRouting.ffn(5, 8, num_experts=4, gate=TopK(2))
    for backend, experts in (("reference", 4), ("sparse", 2)):
        net.backend = backend
        assert multiply_adds(net, x) == 300 * (5 * 4 + experts * (5 * 8 + 8 * 5))


def test_a_critic_is_that_of_the_run() -> None:
    blocks = 256 * 256 * 2
    dense = critic("brc", blocks=1)
    assert dense == pytest.approx(critic("brc", blocks=2) - blocks)
    state = torch.get_rng_state()
    assert critic("brc", blocks=1) == dense  # the draws are the same
    assert torch.equal(torch.get_rng_state(), state)  # and no others are lost


def test_a_mixture_counts_the_experts_that_run() -> None:
    two, three = (critic("scalemoe-feature", num_experts=8, gate=f"top-{k}") for k in (2, 3))
    assert three - two == 2 * 256 * 256  # a block of two layers
