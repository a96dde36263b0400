"""A text that comes with every Python: the docstrings of its standard library."""

import ast
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))
"""The characters with distinct numbers; all others share the next number."""

SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}


def docstrings() -> dict[str, str]:
    """Collects the docstrings of each module of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED.isdisjoint(name.parts) and (text := _docstrings_of(path)):
            texts[name.as_posix()] = text
    return texts


def _docstrings_of(path: Path) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some files of a distribution are templates
        return ""
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(filter(None, texts))


def encode(text: str) -> Tensor:
    """Converts characters to numbers."""
    numbers = {symbol: number for number, symbol in enumerate(SYMBOLS)}
    return torch.tensor([numbers.get(symbol, len(SYMBOLS)) for symbol in text])


def split(texts: dict[str, str], every: int = 10) -> tuple[Tensor, Tensor]:
    """Splits the text into training and test text; one of ten modules is held out."""
    held = {name for i, name in enumerate(sorted(texts)) if i % every == 0}
    parts = ("\n\n".join(text for name, text in texts.items() if (name in held) == test) for test in (False, True))
    learned, tested = map(encode, parts)
    return learned, tested
