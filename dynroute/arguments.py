"""Shared argument checks."""

import difflib
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from .checks import is_autocast, refuse_where

__all__ = [
    "Factory",
    "Makes",
    "check_boolean",
    "check_choice",
    "check_count",
    "check_counts",
    "check_dtype",
    "check_flag",
    "check_floating",
    "check_generator",
    "check_input",
    "check_interval",
    "check_logits",
    "check_mask",
    "check_modules",
    "check_noise",
    "check_number",
    "check_sizes",
    "check_task",
    "check_temperature",
    "check_tensor",
    "expand_allowed",
    "make_activation",
    "shown",
]


class Factory(TypedDict, total=False):
    """The `device` and `dtype` of new parameters."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class Makes(NamedTuple):
    """An argument that makes a module, such as the `activation` of a builder; it is saved as that module.

    Example:
        >>> dynroute.arguments.Makes(nn.SiLU())
        Makes(module=SiLU())
    """

    module: nn.Module
    """The module that it made."""


def shown(value: object) -> str:
    """Formats a value for an error message; a tensor by its type and shape, a long value by its class."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} with shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 120 and "\n" not in text else f"an object of class {type(value).__name__}"


def check_choice(name: str, value: object, choices: Collection[str | None]) -> None:
    """Raises an error unless a value is one of the choices; it suggests the closest one with the same first letter."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        text = str(value).lower()
        alike = {choice.lower(): choice for choice in choices if choice and choice[0].lower() == text[:1]}
        near = difflib.get_close_matches(text, alike, n=1)  # bfloat16 is not float32
        hint = f"; did you mean {alike[near[0]]!r}?" if near else "."
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {shown(value)}{hint}")


def check_count(name: str, count: int, *, at_least: int) -> None:
    """Raises an error unless a value is an integer of at least some size."""
    # Tensors and arrays have `__index__` too, and `__len__`.
    if isinstance(count, bool) or not hasattr(type(count), "__index__") or hasattr(count, "__len__"):
        raise TypeError(f"`{name}` must be an integer, got {shown(count)}.")
    if count < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {count}.")


def check_counts(**counts: int) -> None:
    """Raises an error unless all values are positive integers."""
    for name, count in counts.items():
        check_count(name, count, at_least=1)


def check_sizes(name: str, sizes: Sequence[int], *, at_least: int = 1) -> None:
    """Raises an error unless sizes are a sequence of at least `at_least` positive integers."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, (str, bytes)):
        alone = f"; one size is ({sizes},)" if isinstance(sizes, int) and not isinstance(sizes, bool) else ""
        raise TypeError(f"`{name}` must list sizes, got {shown(sizes)}{alone}.")
    if len(sizes) < at_least:
        wanted = "one size" if at_least == 1 else f"{at_least} sizes"
        raise ValueError(f"`{name}` must list at least {wanted}, got {list(sizes)}.")
    for i, size in enumerate(sizes):
        check_count(f"{name}[{i}]", size, at_least=1)


def check_number(
    name: str,
    value: float | None,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """Raises an error unless a value is a finite number between bounds, or None if it is optional."""
    if optional and value is None:
        return
    other = " or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number{other}, got {shown(value)}.")
    rules = [
        (f"above {above}", above is None or value > above),
        (f"at least {at_least}", at_least is None or value >= at_least),
        (f"at most {at_most}", at_most is None or value <= at_most),
        (f"below {below}", below is None or value < below),
        ("finite", abs(value) <= sys.float_info.max),  # an integer may be too large for a float
    ]
    for rule, holds in rules:
        if not holds:
            raise ValueError(f"`{name}` must be {rule}{other}, got {value}.")


def check_flag(name: str, value: object) -> None:
    """Raises an error unless a value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}.")


def check_tensor(name: str, value: object) -> None:
    """Raises an error unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}; torch.as_tensor makes one.")


def check_boolean(name: str, tensor: Tensor) -> None:
    """Raises an error unless a value is a boolean tensor."""
    check_tensor(name, tensor)
    if tensor.dtype != torch.bool:
        raise TypeError(f"`{name}` must be a boolean tensor, got {tensor.dtype}; compare it with 0 to make one.")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises an error unless a value is a floating tensor."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"`{name}` must be a floating tensor, got {tensor.dtype}; convert it with `.float()`.")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises an error unless a type is a floating one or None, torch's default."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"`dtype` must be a floating type such as torch.float32, got {shown(dtype)}.")


def check_generator(generator: torch.Generator | None) -> None:
    """Raises an error unless a value is a random generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"`generator` must be a torch.Generator or None, got {shown(generator)}; "
            "for instance torch.Generator().manual_seed(0)."
        )


def check_input(name: str, x: Tensor, parameter: Tensor) -> None:
    """Raises an error unless a tensor has the type of the parameters, or autocast converts it."""
    check_tensor(name, x)
    if x.dtype == parameter.dtype:
        return
    if not x.is_floating_point() or not is_autocast(x.device.type):
        raise TypeError(
            f"`{name}` must have the type of the parameters {parameter.dtype}, got {x.dtype}; "
            f"convert it with `.to({parameter.dtype})`."
        )


def check_interval(name: str, ends: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an interval; raises an error unless they are two finite numbers, the lower one first."""
    pair = tuple(ends) if isinstance(ends, (tuple, list)) else ()
    if len(pair) != 2 or any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in pair):
        raise TypeError(f"`{name}` must be a pair of numbers (low, high), got {shown(ends)}.")
    low, high = pair
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"`{name}` must be finite, got {shown(ends)}.")
    if not low < high:
        raise ValueError(f"`{name}` must be (low, high) with low below high, got {shown(ends)}; are they exchanged?")
    return low, high


def check_modules(name: str, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Returns the modules as a list; raises an error unless all are modules."""
    if not isinstance(modules, Iterable) or hasattr(modules, "shape"):  # arrays without dimensions cannot be iterated
        raise TypeError(f"`{name}` must list modules, got {shown(modules)}; for instance [nn.Linear(8, 8)].")
    if isinstance(modules, nn.Sequential):
        raise TypeError(
            f"`{name}` must list modules, got an nn.Sequential, which is one module; wrap it: [...], or pass list(...) "
            "for its parts."
        )
    if isinstance(modules, nn.ModuleDict | Mapping):
        raise TypeError(
            f"`{name}` must list modules, got {type(modules).__name__}, which lists names; pass its `.values()`."
        )
    modules = list(modules)
    for i, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(f"`{name}[{i}]` must be a module, got {shown(module)}.")
    return modules


def make_activation(activation: Callable[[], nn.Module]) -> nn.Module:
    """Makes an activation; raises an error if `activation` does not return a module."""
    hint = "pass a class such as nn.ReLU, or a function without arguments that returns a module"
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(f"`activation` must make a module, got {shown(activation)}; {hint}.")
    try:
        made = activation()
    except TypeError as error:
        raise TypeError(f"`activation` must make a module, but calling it failed: {error}; {hint}.") from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"`activation` must make a module, but it returned {shown(made)}; {hint}.")
    return made


def check_mask(name: str, mask: Tensor, logits: Tensor) -> None:
    """Raises an error unless a mask is boolean and shaped like the logits."""
    check_logits(logits)
    check_boolean(name, mask)
    if mask.shape != logits.shape:
        raise ValueError(
            f"`{name}` must have shape {tuple(logits.shape)} like the logits, got {tuple(mask.shape)}; "
            "was it made for another topology or batch?"
        )


def check_logits(logits: Tensor) -> None:
    """Raises an error unless logits are floating and have a dimension of sources."""
    check_floating("logits", logits)
    if logits.dim() == 0:
        raise ValueError("`logits` must have shape (*, n), got a tensor without dimensions.")


def expand_allowed(allowed: Tensor | None, logits: Tensor) -> Tensor:
    """Expands the mask of the slots that exist to the shape of the logits; all True if None."""
    check_logits(logits)
    if allowed is None:
        return torch.ones_like(logits, dtype=torch.bool)
    check_boolean("allowed", allowed)
    if allowed.dim() > logits.dim() or allowed.shape != logits.shape[logits.dim() - allowed.dim() :]:
        raise ValueError(
            f"`allowed` must have the shape of the last dimensions of the logits {tuple(logits.shape)}, "
            f"got {tuple(allowed.shape)}."
        )
    return allowed.expand(logits.shape)


def check_noise(noise: Tensor, logits: Tensor) -> None:
    """Raises an error unless noise is floating, shaped like the logits and not NaN."""
    check_tensor("noise", noise)
    if not noise.is_floating_point():
        raise TypeError(f"`noise` must be a floating tensor, got {noise.dtype}; `gumbel_noise` draws it.")
    if noise.shape != logits.shape:
        raise ValueError(f"`noise` must have the shape of the logits {tuple(logits.shape)}, got {tuple(noise.shape)}.")
    refuse_where(noise, torch.isnan, lambda index: f"`noise` must not be NaN, but it is at index {index}.")


def check_temperature(temperature: float | Tensor, logits: Tensor) -> None:
    """Raises an error unless a temperature is a positive number, or one for each sample."""
    if not isinstance(temperature, Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise TypeError(f"`temperature` must be a number or a tensor, got {type(temperature).__name__}.")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}; a tiny value approaches Top-K.")
        return
    if temperature.shape != logits.shape[: temperature.dim()] or temperature.dim() >= logits.dim() > 0:
        raise ValueError(
            f"`temperature` must be a number or have the batch shape of the logits {tuple(logits.shape)}, "
            f"got {tuple(temperature.shape)}; give one value per sample."
        )
    if temperature.is_complex():
        raise TypeError(f"`temperature` must be a number or a real tensor, got {temperature.dtype}.")
    refuse_where(
        temperature,
        lambda tau: ~(tau > 0),
        lambda index: f"`temperature` must be positive, got {temperature[index].item():g} at index {index}.",
    )


def check_task(task: Tensor) -> None:
    """Raises an error unless tasks are integer ids."""
    check_tensor("task", task)
    if task.is_floating_point() or task.is_complex() or task.dtype == torch.bool:
        raise TypeError(f"`task` must hold integer task ids, got {task.dtype}; use `one_hot.argmax(-1)`.")
