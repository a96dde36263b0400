"""The losses of a route, against their definitions on small cases."""

import math

import pytest
import torch

from dynroute import Gate, Hard, Soft, TopK, Topology
from dynroute.losses import importance, load_balance, route_entropy, router_z_loss

LOSSES = [importance, load_balance, route_entropy, router_z_loss]
DAG = Topology.dag(4)


def test_load_balance_of_one_source_for_all() -> None:
    logits = torch.tensor([50.0, 0.0, 0.0, 0.0]).expand(8, 1, 4)
    assert float(load_balance(Hard()(logits))) == pytest.approx(4.0)  # n * 1 * 1


def test_load_balance_by_hand() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]], [[2.0, 0.0]]])
    share = torch.tensor([2 / 3, 1 / 3])
    probability = torch.softmax(logits, -1).mean(0)[0]
    assert float(load_balance(Hard()(logits))) == pytest.approx(float(2 * (share * probability).sum()), rel=1e-6)


def test_importance_by_hand() -> None:
    weights = torch.softmax(torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 1.0]]), -1)
    total = weights.sum(0)
    expected = float(total.var(correction=0) / total.mean() ** 2)
    assert float(importance(Soft()(weights.log()[:, None]))) == pytest.approx(expected, rel=1e-5)


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[[1.0, -1.0]], [[0.5, 0.0]]])
    expected = (math.log(math.e + 1 / math.e) ** 2 + math.log(math.e**0.5 + 1) ** 2) / 2
    assert float(router_z_loss(Soft()(logits))) == pytest.approx(expected, rel=1e-6)


def test_entropy_by_hand() -> None:
    p = torch.tensor([0.2, 0.3, 0.5])
    route = TopK(2)(p.log().expand(3, 1, 3))
    assert float(route_entropy(route)) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_does_not_count(loss: object) -> None:
    """A destination with padding counts like the same destination alone."""
    logits = torch.randn(16, 3, 3)
    whole = float(loss(Soft()(logits, allowed=DAG.allowed)))
    alone = [float(loss(Soft()(logits[:, t : t + 1, : t + 1]))) for t in range(3)]
    assert whole == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)], ids=str)
def test_any_batch_gives_a_finite_number_with_finite_gradients(loss: object, batch: tuple[int, ...]) -> None:
    logits = torch.randn(*batch, 3, 3, requires_grad=True)
    value = loss(TopK(2)(logits, allowed=DAG.allowed))
    assert value.shape == ()
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[..., ~DAG.allowed].any()
    assert logits.grad.any() or loss is importance


@pytest.mark.parametrize("loss", [route_entropy, router_z_loss])
def test_a_row_without_an_open_source_counts_as_zero(loss: object) -> None:
    logits = torch.randn(4, 1, 3, requires_grad=True)
    closed = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])[:, None, None]
    gate = TopK(2, capacity=9.0)
    value = loss(gate(logits + closed))
    torch.testing.assert_close(value, loss(gate(logits[::2])) / 2)
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad.any(-1), closed[..., 0] == 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_empty_batch_gives_zero(loss: object) -> None:
    assert float(loss(Soft()(torch.zeros(0, 3, 3), allowed=DAG.allowed))) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_leading_dimensions_do_not_matter(loss: object) -> None:
    logits = torch.randn(6, 3, 3)
    flat = loss(TopK(2)(logits, allowed=DAG.allowed))
    torch.testing.assert_close(loss(TopK(2)(logits.reshape(2, 3, 3, 3), allowed=DAG.allowed)), flat)


@pytest.mark.parametrize(("loss", "gate"), [(importance, Soft()), (load_balance, Hard())])
def test_descent_balances_the_sources(loss: object, gate: Gate) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0]).repeat(4, 1, 1).requires_grad_()
    before = float(route_entropy(Soft()(logits.detach())))
    for _ in range(50):
        (gradient,) = torch.autograd.grad(loss(gate(logits)), logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert float(route_entropy(Soft()(logits.detach()))) > before
