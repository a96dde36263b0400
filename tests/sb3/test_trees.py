"""Rows and trees of a checkpoint come back bit by bit, and an error names a value that cannot be stored."""

import os
import pickle
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import Planted, assert_same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynroute_sb3 import (
    DamagedError,
    storage,
    tree,
)


@pytest.mark.parametrize("counts", [[0, 0, 0], [7, 7, 7], [0, 3, 7], [1, 0, 0]], ids=str)
@pytest.mark.parametrize("chunk", [1, 40, 41, 79, 1 << 24])
def test_rows_in_pieces(chunk: int, counts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHUNK", chunk)  # a row takes 20 bytes
    array = np.random.default_rng(0).random((3, 7, 5), dtype=np.float32)
    numbers = np.array(counts)
    storage.write_rows(tmp_path / "rows.npy", array, numbers)
    written = np.load(tmp_path / "rows.npy", allow_pickle=False)
    assert_same(written, np.concatenate([ring[:count] for ring, count in zip(array, counts, strict=True)]))
    read = np.full_like(array, -1)
    storage.read_rows(tmp_path / "rows.npy", read, numbers)
    for ring, original, count in zip(read, array, counts, strict=True):
        assert_same(ring[:count], original[:count])
        assert (ring[count:] == -1).all()


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    path, counts = tmp_path / "rows.npy", np.array([2, 1])
    array = np.zeros((2, 4, 5), dtype=np.float32)
    storage.write_rows(path, array, counts)
    with pytest.raises(DamagedError, match=r"must hold 4 rows of 5 numbers of type float32, got \(3, 5\) of float32"):
        storage.read_rows(path, array, np.array([2, 2]))
    with pytest.raises(DamagedError, match=r"must hold 3 rows of 5 numbers of type uint8, got \(3, 5\) of float32"):
        storage.read_rows(path, array.astype(np.uint8), counts)
    for data in (path.read_bytes()[:-1], b"", b"no array", pickle.dumps(Planted())):
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=r"rows.npy is not a whole .npy file; take another checkpoint"):
            storage.read_rows(path, array, counts)
    np.save(path, np.array([Planted()]), allow_pickle=True)
    with pytest.raises(DamagedError, match=r"rows.npy is not a whole .npy file; take another checkpoint"):
        storage.read_rows(path, array, counts)


TENSOR_TYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]


ARRAY_TYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


SHAPES = [(), (0,), (1,), (3,), (2, 0, 3), (2, 3)]


def bits(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bits at all, NaNs with a payload among them."""
    size = int(np.prod(shape))
    data = torch.tensor(list(bits(seed, size * dtype.itemsize)), dtype=torch.uint8)
    return (data > 127 if dtype == torch.bool else data.view(dtype)).reshape(shape)


def array(dtype: str, shape: tuple[int, ...], seed: int) -> Any:
    data = np.frombuffer(bits(seed, int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype="u1")
    return (data > 127 if dtype == "?" else data.view(dtype)).reshape(shape).copy()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**300), 2**300),
    st.floats(),
    st.text(),
    st.builds(tensor, st.sampled_from(TENSOR_TYPES), st.sampled_from(SHAPES), st.integers(0, 99)),
    st.builds(array, st.sampled_from(ARRAY_TYPES), st.sampled_from(SHAPES), st.integers(0, 99)),
)


KEYS = st.one_of(st.text(max_size=3), st.integers(-3, 3), st.sampled_from(["$tensor", "$items", "a.b", "a", "b", "$"]))


TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.builds(deque, st.lists(inner, max_size=4), st.sampled_from([None, 4, 100])),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def round_trip(folder: Path, value: Any) -> Any:
    tree.write_tree(folder, "tree", value)
    return tree.read_tree(folder, "tree")


@given(value=TREES)
def test_tree(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "tree"
    folder.mkdir(exist_ok=True)
    assert_same(round_trip(folder, value), value)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    # Parts of one tensor, views of it and parameters come back one by one, with memory of their own.
    whole = torch.arange(6.0)
    parameter = nn.Parameter(whole.view(2, 3))
    value = [whole, whole[2:4], whole[::2], parameter.T, whole, whole.expand(2, 6), whole.numpy()[1:]]
    read = round_trip(tmp_path, value)
    assert_same(read, [x.detach() if isinstance(x, Tensor) else x for x in value])
    read[0].zero_()
    assert torch.equal(read[4], whole)
    assert not any(x.requires_grad for x in read if isinstance(x, Tensor))


@pytest.mark.parametrize(
    "value",
    [
        {1: torch.ones(1), "1": torch.zeros(1)},
        {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        [[torch.ones(1)], {"0.0": torch.zeros(1)}],
        {"a": [torch.ones(1)], "a.0": torch.zeros(1)},
        {(1, 2): torch.ones(1), "(1, 2)": torch.zeros(1)},
        {None: torch.ones(1), "None": torch.zeros(1), 1.5: torch.ones(2), "1.5": torch.zeros(2)},
    ],
    ids=str,
)
def test_places_that_read_alike(value: Any, tmp_path: Path) -> None:
    assert_same(round_trip(tmp_path, value), value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float32(0.1), float(np.float32(0.1))), (np.int64(2**62), 2**62), (np.bool_(True), True), (np.str_("x"), "x")],
    ids=str,
)
def test_scalars_of_numpy_come_back_as_numbers(value: Any, expected: Any, tmp_path: Path) -> None:
    read = round_trip(tmp_path, [value])[0]
    assert (type(read), read) == (type(expected), expected)


@pytest.mark.parametrize(
    "value", [np.arange(4)[::-1], np.arange(4).astype(">i4"), np.broadcast_to(np.float64(3), (2, 2))], ids=str
)
def test_arrays_that_torch_does_not_take_as_they_are(value: Any, tmp_path: Path) -> None:
    # Such arrays come from environments: views that run backwards or cannot be written, files of another machine.
    assert np.array_equal(round_trip(tmp_path, value), value)


@pytest.mark.parametrize(
    "value",
    [
        {1},
        b"bytes",
        object(),
        len,
        1j,
        np.complex64(1),
        np.datetime64("2020-01-01"),
        np.array([None]),
        np.array(["text"]),
        np.zeros(2, dtype=[("field", "f4")]),
        torch.eye(2).to_sparse(),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_what_is_no_plain_data_is_named_by_its_place(value: Any, tmp_path: Path) -> None:
    for nested, place in (
        (value, "tree"),
        ({"a": [0, value]}, "tree.a.1"),
        ({"a": deque([value])}, "tree.a.0"),
        ({7: (value,)}, "tree.7.0"),
    ):
        with pytest.raises(TypeError, match=f"^`{re.escape(place)}` must be plain data, a tensor or an array to be"):
            tree.write_tree(tmp_path, "tree", nested)


def test_trees_that_are_damaged(tmp_path: Path) -> None:
    def assert_refused() -> None:
        with pytest.raises(DamagedError, match=r"tree.json or .safetensors is missing or damaged: "):
            tree.read_tree(tmp_path, "tree")

    assert_refused()  # there is none
    for text in ("{", '{"$tensor": "none"}', '{"$array": ["a"]}', '{"$deque": 3}', '{"$items": [3]}', '{"$tuple": 1}'):
        tree.write_tree(tmp_path, "tree", {"a": torch.ones(3)})
        (tmp_path / "tree.json").write_text(text)
        assert_refused()
    for data in (b"", b"short", bytes(100), pickle.dumps(Planted())):
        tree.write_tree(tmp_path, "tree", {"a": torch.ones(3)})
        (tmp_path / "tree.safetensors").write_bytes(data)
        assert_refused()


def test_both_files_of_a_tree_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tree.write_tree(tmp_path, "model", {"x": torch.ones(1)})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"model.json": 0o640, "model.safetensors": 0o640}
