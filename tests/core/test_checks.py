"""Values are checked where they may be read, and nowhere else."""

from collections.abc import Iterator

import pytest
import torch

import dynroute
from dynroute import TopK
from dynroute.checks import refuse_where


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dynroute.set_checks(None)


def test_values_are_checked_on_the_cpu_unless_switched_off() -> None:
    logits = torch.full((2, 3), torch.nan)
    with pytest.raises(ValueError, match="`logits` must be finite"):
        TopK(2)(logits)
    dynroute.set_checks(False)
    assert TopK(2)(logits).path.shape == (2, 3)
    dynroute.set_checks(True)
    with pytest.raises(ValueError, match="`logits` must be finite"):
        TopK(2)(logits)


def test_a_message_is_made_from_the_first_index() -> None:
    with pytest.raises(ValueError, match=r"bad \(0, 2\)"):
        refuse_where(torch.tensor([[0, 0, 1], [1, 0, 0]]), lambda x: x == 1, lambda index: f"bad {index}")
    refuse_where(torch.zeros(2, 0), lambda x: x == 0, lambda index: f"bad {index}")


def test_hidden_values_are_not_checked() -> None:
    calls = torch.func.vmap(lambda z: TopK(2)(z).weights)(torch.full((2, 3), 1.0))
    assert calls.shape == (2, 3)
    assert TopK(2)(torch.empty(2, 3, device="meta")).path.device.type == "meta"
    traced = torch.compile(lambda z: TopK(2)(z).path, fullgraph=True, backend="aot_eager")
    assert traced(torch.full((2, 3), torch.nan)).shape == (2, 3)


def test_other_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="`enabled` must be True, False or None, got 'cuda'"):
        dynroute.set_checks("cuda")  # type: ignore[arg-type]
