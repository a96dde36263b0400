"""What is asked of arguments that several functions take, each rule and its sentence once."""

import difflib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .checks import refuse_where

__all__ = [
    "check_choice",
    "check_count",
    "check_logits",
    "check_mask",
    "check_sizes",
    "check_task",
    "expand_allowed",
    "temperature_like",
]


def check_choice(name: str, value: object, choices: Collection[str | None]) -> None:
    """Raises an error unless a value is one of some words, which names the one that was likely meant."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), filter(None, choices), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")


def check_count(name: str, count: int, *, at_least: int) -> None:
    """Raises an error unless a number of things is an integer and large enough."""
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"`{name}` must be an integer, got {count!r}.")
    if count < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {count}.")


def check_sizes(name: str, sizes: Sequence[int], *, at_least: int = 1) -> None:
    """Raises an error unless sizes are a sequence of positive integers, at least so many of them."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"`{name}` must list sizes, got {sizes!r}; for instance (400, 400).")
    if len(sizes) < at_least:
        raise ValueError(f"`{name}` must list at least {at_least} sizes, got {list(sizes)}.")
    for i, size in enumerate(sizes):
        check_count(f"{name}[{i}]", size, at_least=1)


def check_mask(name: str, mask: Tensor, logits: Tensor) -> None:
    """Raises an error unless a mask is boolean and shaped like the logits."""
    check_logits(logits)
    if mask.dtype != torch.bool:
        raise TypeError(f"`{name}` must be a boolean tensor, got {mask.dtype}; compare it with 0 to make one.")
    if mask.shape != logits.shape:
        raise ValueError(
            f"`{name}` must have shape {tuple(logits.shape)} like the logits, got {tuple(mask.shape)}; "
            "was it made for another topology or batch?"
        )


def check_logits(logits: Tensor) -> None:
    """Raises an error unless logits are floating and have a dimension of sources."""
    if not logits.is_floating_point():
        raise TypeError(f"`logits` must be a floating tensor, got {logits.dtype}; convert it with `.float()`.")
    if logits.dim() == 0:
        raise ValueError("`logits` must have shape (*, n), got a tensor without dimensions.")


def expand_allowed(allowed: Tensor | None, logits: Tensor) -> Tensor:
    """The mask of the slots that exist, in the shape of the logits; all of them if None."""
    check_logits(logits)
    if allowed is None:
        return torch.ones_like(logits, dtype=torch.bool)
    if allowed.dtype != torch.bool:
        raise TypeError(f"`allowed` must be a boolean tensor, got {allowed.dtype}; compare it with 0 to make one.")
    if allowed.dim() > logits.dim() or allowed.shape != logits.shape[logits.dim() - allowed.dim() :]:
        raise ValueError(
            f"`allowed` must have the shape of the last dimensions of the logits {tuple(logits.shape)}, "
            f"got {tuple(allowed.shape)}."
        )
    return allowed.expand(logits.shape)


def temperature_like(temperature: float | Tensor, logits: Tensor) -> float | Tensor:
    """A temperature that divides logits: a number, or a tensor with a dimension for each of theirs."""
    if not isinstance(temperature, Tensor):
        if not isinstance(temperature, (int, float)):
            raise TypeError(f"`temperature` must be a number or a tensor, got {type(temperature).__name__}.")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}; a tiny value approaches Top-K.")
        return temperature
    if temperature.shape != logits.shape[: temperature.dim()] or temperature.dim() >= logits.dim() > 0:
        raise ValueError(
            f"`temperature` must be a number or have the batch shape of the logits {tuple(logits.shape)}, "
            f"got {tuple(temperature.shape)}; give one value per sample."
        )
    refuse_where(
        temperature,
        lambda tau: ~(tau > 0),
        lambda index: f"`temperature` must be positive, got {temperature[index].item():g} at index {index}.",
    )
    return temperature.detach().reshape(temperature.shape + (1,) * (logits.dim() - temperature.dim()))


def check_task(task: Tensor) -> None:
    """Raises an error unless tasks are named by integers."""
    if task.is_floating_point() or task.dtype == torch.bool:
        raise TypeError(f"`task` must hold integer task ids, got {task.dtype}; use `one_hot.argmax(-1)`.")
