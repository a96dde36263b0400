"""The textbook forms that times are compared with compute what the networks do."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cases, textbook


def reorder(tensors: Sequence[Tensor], form: nn.Module) -> list[Tensor]:
    """The tensors of a network in the order of its textbook form's parameters; those of one shape keep their order."""
    if isinstance(form, textbook.TextbookLayer):  # its layers have a router each
        edges = [router.out_features for router in form.routers]
        split = [tensor.split(edges) if len(tensor) == sum(edges) else [tensor] for tensor in tensors]
        tensors = [part for parts in split for part in parts]
    left, found = list(tensors), []
    for parameter in form.parameters():
        place = next(i for i, tensor in enumerate(left) if tensor.shape == parameter.shape)
        found.append(left.pop(place))
    assert not left
    return found


@pytest.mark.parametrize("number", range(len(cases.CASES)))
def test_a_network_and_its_textbook_form_are_one_function(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(
        cases, "make", lambda _, net, form, inputs, mode, **__: made.update(net=net, form=form, x=inputs)
    )
    torch.manual_seed(0)
    cases.CASES[number](12, "training step")
    net, form = made["net"].double(), made["form"].double()
    inputs = [part.double() if part.is_floating_point() else part for part in made["x"]]
    with torch.no_grad():
        for parameter, value in zip(form.parameters(), reorder(list(net.parameters()), form), strict=True):
            parameter.copy_(value)

    outputs, gradients = [], []
    for part in (net, form):
        outputs.append(part(*inputs))
        loss = outputs[-1].square().sum()
        gradients.append(torch.autograd.grad(loss, list(part.parameters()), materialize_grads=True))
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, plain in zip(reorder(gradients[0], form), gradients[1], strict=True):
        torch.testing.assert_close(ours, plain)
    assert any(gradient.any() for gradient in gradients[0])
