"""Nested plain data with tensors, stored as JSON and safetensors, which cannot run code."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from dynroute.files import writing_file

from .storage import DamagedError, Member

__all__ = ["read_tree", "write_tree"]

KINDS = ("$tensor", "$array", "$tuple", "$deque", "$items")
"""The keys that mark values unknown to JSON."""


def write_tree(folder: Path | Member, name: str, tree: Any) -> None:
    """Writes a tree of plain data, tensors and arrays to ``name.json`` and ``name.safetensors``.

    Other values raise an error that names their place in the tree.
    """
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, name, tensors)
    text = json.dumps(plain, indent=1)
    if isinstance(folder, Member):
        for ending, data in (("json", text.encode()), ("safetensors", save(tensors))):
            with (folder / f"{name}.{ending}").open("wb") as file:
                file.write(data)
        return
    (folder / f"{name}.json").write_text(text)
    with writing_file(folder / f"{name}.safetensors") as part:
        save_file(tensors, part)


def read_tree(folder: Path | Member, name: str) -> Any:
    """Reads a tree of :func:`write_tree`, with tensors on the CPU."""
    try:
        if isinstance(folder, Member):
            plain, tensors = json.loads(_read(folder / f"{name}.json")), load(_read(folder / f"{name}.safetensors"))
        else:
            plain = json.loads((folder / f"{name}.json").read_text())
            tensors = load_file(folder / f"{name}.safetensors")
        return _unpack(plain, tensors)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError, SafetensorError) as error:
        raise DamagedError(f"{folder / f'{name}.json'} or .safetensors is missing or damaged: {error}") from error


def _read(member: Member) -> bytes:
    with member.open("rb") as file:
        return file.read()


def _pack(tree: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, np.generic) and tree.dtype.kind in "biufU":
        return _pack(tree.item(), place, tensors)
    if isinstance(tree, Path):
        return str(tree)
    if isinstance(tree, (Tensor, np.ndarray)):
        key = str(len(tensors))  # places are not unique: the keys 1 and "1" read alike
        tensors[key] = _tensor(tree, place)
        return {"$tensor" if isinstance(tree, Tensor) else "$array": key}
    if isinstance(tree, deque):
        return {"$deque": [_pack(list(tree), place, tensors), tree.maxlen]}
    if isinstance(tree, (list, tuple)):
        packed = [_pack(value, f"{place}.{i}", tensors) for i, value in enumerate(tree)]
        return {"$tuple": packed} if isinstance(tree, tuple) else packed
    if isinstance(tree, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: _pack(value, f"{place}.{key}", tensors) for key, value in tree.items()}
        return {"$items": [[_key(key, place), _pack(value, f"{place}.{key}", tensors)] for key, value in tree.items()]}
    raise _cannot(tree, place)


def _tensor(tree: Tensor | NDArray[Any], place: str) -> Tensor:
    """Copies a tensor for storage; tensors that share memory, such as in a bank, are stored separately."""
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in "biuf" or tree.dtype.itemsize > 8:
            raise _cannot(tree, place)
        return torch.from_numpy(np.array(tree, dtype=tree.dtype.newbyteorder("="), order="C", copy=True))
    if tree.is_complex() or tree.layout != torch.strided or tree.is_quantized:
        raise _cannot(tree, place)
    return tree.detach().to("cpu", copy=True).contiguous()


def _key(key: Any, place: str) -> Any:
    if key is not None and not isinstance(key, (bool, int, float, str, tuple)):
        raise _cannot(key, f"a key of {place}")
    return _pack(key, place, {})


def _cannot(tree: Any, place: str) -> TypeError:
    kind = f" of {tree.dtype}" if isinstance(tree, (Tensor, np.ndarray)) else ""
    return TypeError(
        f"`{place}` must be plain data, a tensor or an array to be stored without code, "
        f"got {type(tree).__name__}{kind}."
    )


def _unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_unpack(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    kind = next(iter(plain), "")
    if kind not in KINDS:
        return {key: _unpack(value, tensors) for key, value in plain.items()}
    value = plain[kind]
    if kind == "$tensor":
        return tensors[value]
    if kind == "$array":
        return tensors[value].numpy()
    if kind == "$tuple":
        return tuple(_unpack(value, tensors))
    if kind == "$deque":
        return deque(_unpack(value[0], tensors), maxlen=value[1])
    return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value}
