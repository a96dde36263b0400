"""A route is three tensors that travel together."""

import torch

from dynroute import Route, TopK


def test_one_sample_of_a_batch() -> None:
    route = TopK(2)(torch.randn(2, 3, 4, 5))
    one = route.sample(1, 2)
    assert isinstance(one, Route)
    for whole, part in zip(route, one, strict=True):
        assert torch.equal(part, whole[1, 2])
