"""Saves extracted policies in several formats, and loads them to test them."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynroute import Program, trace_program
from dynroute.files import writing_file

__all__ = ["check_exporter", "load_policy", "save_policy"]

EXPORTERS = {"onnx": ("onnx", "onnxscript"), "executorch": ("executorch",)}
"""The packages that a format needs besides torch."""

Act = Callable[[Tensor], Tensor]


def check_exporter(form: str) -> None:
    """Raises an error that says what to install if the exporter of a format is missing."""
    missing = [name for name in EXPORTERS.get(form, ()) if importlib.util.find_spec(name) is None]
    if missing:
        runs = " (and onnxruntime, to run the file)" if form == "onnx" else ""
        raise ImportError(
            f"`format` {form} needs {' and '.join(missing)}; type: pip install {' '.join(EXPORTERS[form])}{runs}."
        )


def save_policy(policy: nn.Module, path: Path, form: str, example: Tensor, notes: Mapping[str, Any]) -> None:
    """Saves a policy in one of :data:`~dynroute_command.choices.FORMATS`; the file appears whole or not at all.

    Args:
        policy: The policy, from states to actions.
        path: The file.
        form: The format.
        example: At least two states; "executorch" is compiled for one.
        notes: Facts about the policy; only "torch" stores them.
    """
    check_exporter(form)
    if form == "torch":
        trace_program(policy, example, notes=notes).save(path)
        return
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with writing_file(path) as part:
        if form == "export":
            torch.export.save(torch.export.export(policy, (example,), dynamic_shapes=shapes), part)
        elif form == "onnx":
            names: dict[str, Any] = {"input_names": ["state"], "output_names": ["action"], "external_data": False}
            with _silenced():
                torch.onnx.export(policy, (example,), part, dynamic_shapes=shapes, dynamo=True, **names)
        else:
            with _silenced():
                part.write_bytes(_executorch(policy, example[:1]))


def load_policy(path: Path, form: str) -> Act | None:
    """Loads a saved policy; returns None if the package that runs its format is not installed.

    A file of "export" must come from a trusted source. Files of "onnx" and "executorch" run on one thread; loading a
    file of "executorch" sets this for ExecuTorch in the whole process. It runs the states of a batch one after the
    other.
    """
    if form == "torch":
        return Program.load(path)
    if form == "export":
        module: Act = torch.export.load(path).module()
        return module
    package = "onnxruntime" if form == "onnx" else "executorch"
    if importlib.util.find_spec(package) is None:
        return None
    if form == "executorch":
        with _silenced():
            from executorch.extension.pybindings.portable_lib import (  # type: ignore[import-not-found,unused-ignore]
                _unsafe_reset_threadpool,
            )
            from executorch.runtime import Runtime  # type: ignore[import-not-found,unused-ignore]

        _unsafe_reset_threadpool(1)
        # The returned function holds the program, which owns the method and the bytes that the method reads.
        program = Runtime.get().load_program(path.read_bytes())
        return lambda states: torch.cat(
            [program.load_method("forward").execute([state])[0] for state in torch.split(states, 1)]
        )
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda state: torch.from_numpy(session.run(None, {"state": state.numpy()})[0])


def _executorch(policy: nn.Module, example: Tensor) -> bytes:
    """Compiles a policy for one state, with XNNPACK for the operations that it supports."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # type: ignore[import-not-found,unused-ignore]
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower  # type: ignore[import-not-found,unused-ignore]

    exported = torch.export.export(policy, (example,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silences warnings, logs and printed output of other packages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
