"""A compositional layer is the weighted sum of its sets, for samples and for groups."""

import pytest
import torch

from dynroute import CompositionalLinear


@pytest.mark.parametrize("shape", [(), (4,), (2, 4)], ids=str)
def test_samples_and_groups(shape: tuple[int, ...]) -> None:
    layer = CompositionalLinear(3, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = torch.randn(*shape, 6, 5, dtype=torch.float64)
    w = torch.randn(*shape, 3, dtype=torch.float64)
    expected = sum(w[..., k, None, None] * (x @ layer.weight[k].t() + layer.bias[k]) for k in range(3))
    torch.testing.assert_close(layer(x, w), expected)
    torch.testing.assert_close(layer(x, w.unsqueeze(-2).expand(*shape, 6, 3)), expected)


def test_the_derivatives_are_right() -> None:
    layer = CompositionalLinear(3, 4, 2, dtype=torch.float64)
    for shape in ((5, 3), (3,)):
        inputs = torch.randn(5, 4, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
        assert torch.autograd.gradcheck(layer, tuple(tensor.requires_grad_() for tensor in inputs))


def test_shapes_that_do_not_fit_are_said() -> None:
    layer = CompositionalLinear(3, 4, 2)
    with pytest.raises(ValueError, match=r"`x` must have shape \(\*, 4\), got \(7, 5\)"):
        layer(torch.zeros(7, 5), torch.zeros(7, 3))
    for wrong in ((7, 2), (6, 3), (1, 7, 3)):
        with pytest.raises(
            ValueError, match=r"`composition` must have shape \(7, 3\), .* or \(3,\), one for each group"
        ):
            layer(torch.zeros(7, 4), torch.zeros(*wrong))
    with pytest.raises(ValueError, match="`num_sets` must be at least 1, got 0"):
        CompositionalLinear(0, 4, 2)
