"""A directive that makes the gallery from the programs in examples/, as many as there are."""

import ast
import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective as Directive

EXAMPLES = Path(__file__).parent.parent / "examples"

STEPS = 30
"""How long a program trains for its picture: the page is built often."""


def pictures(name: str, steps: int = STEPS) -> str:
    """The SVG files that an example writes to its `folder`, side by side."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    silence = io.StringIO()
    try:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
                program.main(steps=steps, folder=folder)
            drawn = [path.read_text() for path in sorted(Path(folder).glob("*.svg"))]
        assert drawn, f"examples/{name}.py must write a picture to the `folder` of its main"
    finally:
        torch.set_num_threads(threads)
    return side_by_side(drawn)


def side_by_side(drawn: Iterable[str], *, fit: bool = False) -> str:
    """SVG pictures in a row, or below each other where there is no room; with `fit` they shrink to one row."""
    frames = "".join(f"<div>{picture}</div>" for picture in drawn)
    return f'<div class="pictures{" fit" if fit else ""}">{frames}</div>'


class Gallery(Directive):
    """Shows each program: the title and the description of its docstring, its pictures, and its text."""

    def run(self) -> list[nodes.Node]:
        groups: dict[str, list[str]] = {"In torch networks": [], "In multi-task RL": []}
        for path in sorted(EXAMPLES.glob("*.py")):
            self.env.note_dependency(str(path))
            tree = ast.parse(path.read_text())
            groups["In multi-task RL" if _learns_control(tree) else "In torch networks"] += self._section(path, tree)
        lines = [line for title, sections in groups.items() for line in [title, "-" * len(title), "", *sections]]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def _section(self, path: Path, tree: ast.Module) -> list[str]:
        title, _, text = (ast.get_docstring(tree) or "").partition(".\n\n")
        assert text, f"the docstring of {path} must have a title, a blank line and a description"
        lines = [title, "~" * len(title), "", *text.splitlines(), ""]
        if self.env.app.builder.format == "html" and _draws(tree):
            lines += [f".. picture:: The program draws this after {STEPS} steps of training.", ""]
            lines += ["   from gallery_page import pictures", "", f"   picture = pictures({path.stem!r})", ""]
        return [
            *lines,
            f".. dropdown:: examples/{path.name}",
            "",
            f"   .. literalinclude:: ../examples/{path.name}",
            "",
        ]


def _learns_control(tree: ast.Module) -> bool:
    """Whether a program takes networks or environments of reinforcement learning."""
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    return bool({"dynroute_metaworld", "dynroute_sb3", "dynroute.networks"}.intersection(modules))


def _draws(tree: ast.Module) -> bool:
    """Whether a program writes pictures to the `folder` of its `main`."""
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    return any(argument.arg == "folder" for main in mains for argument in main.args.args)


def setup(app: Sphinx) -> None:
    """Registers the directive with Sphinx."""
    app.add_directive("gallery", Gallery)
