"""Programs: modules as lists of basic torch operations, stored in one file that cannot run code.

It is a safetensors file with the parameters as tensors and the operations as JSON in the metadata. Loading looks them
up by name among torch's core ATen operations and the few of :data:`EXTRA`, which only compute tensors from tensors. It
needs neither the classes of the module nor its source. A .pt2 file of ``torch.export`` holds as much, but loading one
may unpickle and evaluates text of the file, so it is only for files that one trusts.
"""

import json
import math
import operator
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from .arguments import check_tensor, shown
from .checks import full_precision, is_autocast
from .files import writing_file
from .saving import import_safetensors

__all__ = ["EXTRA", "FORMAT", "Program", "trace_program"]

FORMAT = "dynroute program 2"
"""The name of the format, in the metadata of a file."""

EXTRA = ("linear.default", "linalg_vector_norm.default", "sort.stable")
"""The operations allowed in a program beside torch's core ones."""

_TEXTS = ("none", "tanh", "floor", "trunc")  # of gelu and div: the only text that arguments may be

Operation = tuple[str, str, list[Any], dict[str, Any]]
"""The name of a value, the operation that computes it, and its arguments as plain data."""


class Program(nn.Module):
    """A traced module as operations and tensors; :func:`trace_program` makes it.

    It computes in the types that were traced: autocast does not change them, nor does ``program.half()``. For
    other types, convert the module and trace it again.

    Args:
        operations: The operations in order, as plain data.
        output: The name of the value that is returned.
        tensors: The parameters, buffers and constants by name.
        features: The width of the input.
        dtype: The type of the input.
        notes: Further plain data to store.

    Example:
        >>> import tempfile
        >>> net = ModuleRouting.mlp(5, 8, 6, 2).eval()
        >>> x = torch.randn(16, 5)
        >>> program = dynroute.trace_program(net, x, notes={"task": "an example"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     program.save(f"{folder}/net.safetensors")
        ...     loaded = dynroute.Program.load(f"{folder}/net.safetensors")
        >>> torch.allclose(loaded(x[:3]), net(x[:3]), atol=1e-6), loaded.notes
        (True, {'task': 'an example'})
    """

    def __init__(
        self,
        operations: list[Operation],
        output: str,
        tensors: Mapping[str, Tensor],
        features: int,
        dtype: torch.dtype,
        notes: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.operations, self.output, self.notes = operations, output, dict(notes)
        self.features, self.dtype = features, dtype
        self.tensors = list(tensors)
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(f"tensor_{i}", tensor)
        self._run = {torch.device("cpu"): _compile(operations, output, self.tensors, torch.device("cpu"))}

    def forward(self, x: Tensor) -> Tensor:
        """Computes the output for inputs with shape ``[batch, features]``."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(f"`x` must have shape (batch, {self.features}), got {tuple(x.shape)}.")
        if is_autocast(x.device.type) and x.dtype in (torch.bfloat16, torch.float16) and self.dtype.is_floating_point:
            x = x.to(self.dtype)  # a layer before may have computed in 16 bits
        if x.dtype != self.dtype:
            raise TypeError(
                f"`x` must be {self.dtype} like the input that was traced, got {x.dtype}; convert it with "
                f"`x.to({self.dtype})`, or trace a module of that type."
            )
        if x.device not in self._run:  # some operations name a device
            self._run[x.device] = _compile(self.operations, self.output, self.tensors, x.device)
        with full_precision(x):
            return self._run[x.device](x, *self.buffers())

    @property
    def parameter_count(self) -> int:
        """The number of parameters, including constants."""
        return sum(tensor.numel() for tensor in self.buffers())

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, which appears only when it is complete.

        Needs safetensors: ``pip install 'dynroute[safetensors]'``.

        Args:
            path: The file.
        """
        path, save_file = Path(path), import_safetensors("Program.save").save_file
        description = {
            "operations": self.operations,
            "output": self.output,
            "tensors": self.tensors,
            "features": self.features,
            "dtype": _plain(self.dtype, {}),
            "notes": self.notes,
        }
        metadata = {"format": "pt", "dynroute": FORMAT, "program": json.dumps(description, allow_nan=False)}
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in zip(self.tensors, self.buffers(), strict=True)
        }
        with writing_file(path) as part:
            save_file(tensors, part, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Loads a program from a file of :meth:`save`; no code in the file can run.

        Args:
            path: The file.
            device: The device of the tensors.
        """
        import_safetensors("Program.load")
        path, safe_open = Path(path), sys.modules["safetensors"].safe_open
        if not path.is_file():
            raise FileNotFoundError(f"{path} must be a file that Program.save wrote, there is none.")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # damaged files raise many kinds of errors
            raise ValueError(f"`path` must be a whole safetensors file, {path} is not: {error}") from error
        if metadata.get("dynroute") != FORMAT:
            raise ValueError(f"`path` must be a file that Program.save wrote, {path} is another one.")
        try:
            stored = json.loads(metadata["program"])
            ordered = {name: tensors[name] for name in stored["tensors"]}
            features, dtype = int(stored["features"]), _of_torch(stored["dtype"])
            program = cls(stored["operations"], stored["output"], ordered, features, dtype, stored["notes"])
        except (LookupError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"`path` must hold operations that this torch has, {path} does not: {error}") from error
        return program.to(device).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def convert(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)  # operations name their types

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"{self.features} features, {len(self.operations)} operations, {self.parameter_count:,} numbers"


def trace_program(module: nn.Module, x: Tensor, *, notes: Mapping[str, Any] | None = None) -> Program:
    """Traces a module in evaluation mode to a program for batches of any size.

    Args:
        module: A module with one input and one output that ``torch.export`` can export. Samples need not take the
            routes of the example.
        x: An example of the input, with shape ``[batch, features]`` and at least two rows.
        notes: Further plain data to store.

    Returns:
        The program, which shares no memory with the module.

    Example:
        >>> dynroute.trace_program(nn.Sequential(nn.Linear(5, 8), nn.Tanh()), torch.randn(4, 5))
        Program(5 features, 2 operations, 48 numbers)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a module, got {shown(module)}.")
    check_tensor("x", x)
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"`x` must have shape (batch, features) with at least two rows, got {tuple(x.shape)}.")
    notes = {} if notes is None else notes
    try:
        plain = json.loads(json.dumps(dict(notes), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`notes` must be plain data with finite numbers, got {shown(notes)}.") from error

    training = {part: part.training for part in module.modules()}
    module.eval()
    example = x.detach().clone()  # a normal tensor outside of inference mode: an inference tensor cannot be saved there
    try:
        exported = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    finally:
        for part, mode in training.items():
            part.training = mode
    table = getattr(torch.export, "default_decompositions", lambda: None)()
    if table is not None:
        table.pop(torch.ops.aten.linear.default, None)  # decomposed, it takes two more operations without a gain
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec", FutureWarning)  # torch 2.13 warns about its own use
        exported = exported.run_decompositions(table)
    return _of_export(exported, x, plain)


def _of_export(exported: Any, x: Tensor, notes: Mapping[str, Any]) -> Program:
    """Converts an exported program."""
    signature = exported.graph_signature
    kind = exported.call_spec.out_spec.type or type(signature.user_outputs[0])  # a tensor is given by its name
    if kind is not str:
        raise TypeError(f"`module` must return a tensor, got {kind.__name__}.")
    (input_name,), (result,) = signature.user_inputs, signature.user_outputs
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**dict(exported.state_dict), **dict(exported.constants)}
    nodes = {node.name: node for node in exported.graph.nodes}
    needed, queue = set(), [nodes[result]]
    while queue:  # no node needs assertions, so they are dropped
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += node.all_input_nodes
    changed = {*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()}
    for node in needed:
        if stored.get(node.name) in changed:
            raise ValueError(
                f"`module` must compute the same at each call, but it changes {stored[node.name]}, which its output "
                "depends on."
            )
    names: dict[fx.Node, str] = {}
    tensors: dict[str, Tensor] = {}
    operations: list[Operation] = []
    for node in exported.graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            names[node] = "x" if node.name == input_name else f"tensor:{stored[node.name]}"
            if node.name != input_name:
                with torch.inference_mode(False):  # a program may be differentiated
                    tensors[stored[node.name]] = values[stored[node.name]].detach().clone()
            continue
        args, kwargs = (_plain(part, names) for part in (list(node.args), dict(node.kwargs)))
        names[node] = f"v{len(operations)}"
        operations.append((names[node], _name(node.target), args, kwargs))
    return Program(operations, names[nodes[result]], tensors, x.shape[1], x.dtype, notes).eval()


def _name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if getattr(target, "__module__", None) in ("_operator", "math", "builtins"):
        raise ValueError(
            f"`module` must compute with tensors alone, but {target.__name__} is applied to the size of the batch; "
            "write x.flatten(1) in place of x.view(x.shape[0], -1), or keep the module by torch.export.export."
        )
    name = str(target).removeprefix("aten.")
    if _operation(name) is not target:
        raise ValueError(f"`module` must be made of basic operations of torch, got {target}.")
    return name


def _operation(name: str) -> Callable[..., Any]:
    """Looks up an operation by name; refuses everything but pure computation."""
    if name == "getitem":
        return operator.getitem
    packet, _, overload = name.partition(".")
    valid = packet.isidentifier() and overload.isidentifier() and not name.startswith("__")
    operation = getattr(getattr(torch.ops.aten, packet, None), overload, None) if valid else None
    if not isinstance(operation, torch._ops.OpOverload) or not (torch.Tag.core in operation.tags or name in EXTRA):
        raise ValueError(f"{name!r} is not an operation that a program may have.")
    if torch.Tag.nondeterministic_seeded in operation.tags:
        raise ValueError(f"{name!r} draws random numbers and is not an operation that a program may have.")
    return operation


def _plain(value: Any, names: Mapping[fx.Node, str]) -> Any:
    """Converts an argument of an operation to plain data: tensors and sizes become the names of their values."""
    if isinstance(value, fx.Node):
        return {"value": names[value]}
    if isinstance(value, (list, tuple)):
        return [_plain(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, names) for key, item in value.items()}
    if isinstance(value, torch.device):
        return {"device": True}
    for kind, what in ((torch.dtype, "dtype"), (torch.layout, "layout"), (torch.memory_format, "memory_format")):
        if isinstance(value, kind):
            return {what: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, str) and value in _TEXTS:
        return {"text": value}
    raise TypeError(f"`module` must have operations with numbers as arguments, got {shown(value)}.")


def _of_torch(tree: Mapping[str, str]) -> Any:
    """Looks up a type, a layout or a memory format by name."""
    ((kind, name),) = tree.items()
    value = getattr(torch, name, None)
    if not isinstance(value, getattr(torch, kind)):
        raise ValueError(f"{name!r} is not a {kind} of torch.")
    return value


def _compile(
    operations: list[Operation], output: str, tensors: list[str], device: torch.device
) -> Callable[..., Tensor]:
    """Compiles a function of the input and the tensors; torch.fx writes its source without any text of the file."""
    graph = fx.Graph()
    values: dict[str, fx.Node] = {"x": graph.placeholder("x")}
    for i, name in enumerate(tensors):
        values[f"tensor:{name}"] = graph.placeholder(f"tensor_{i}")

    def read(tree: Any) -> Any:
        match tree:
            case {"value": str(name)}:
                return values[name]
            case {"dtype": str()} | {"layout": str()} | {"memory_format": str()}:
                return _of_torch(tree)
            case {"float": "inf" | "-inf" | "nan" as text}:
                return float(text)
            case {"text": str(text)} if text in _TEXTS:
                return _TEXTS[_TEXTS.index(text)]
            case {"device": True}:
                return device
            case list():
                return [read(item) for item in tree]
            case None | bool() | int() | float():
                return tree
        raise ValueError(f"an argument must be a number, a value or a list, got {shown(tree)}.")

    for name, operation, args, kwargs in operations:
        if not all(isinstance(key, str) and key.isidentifier() for key in kwargs):
            raise ValueError(f"keywords must be names, got {shown(list(kwargs))}.")
        keywords = {key: read(value) for key, value in kwargs.items()}
        values[str(name)] = graph.call_function(_operation(operation), tuple(map(read, args)), keywords)
    graph.output(values[output])
    graph.lint()
    return fx.GraphModule({}, graph).forward
