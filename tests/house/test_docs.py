"""The directives of the documentation show stored results in tables that fit a page, and in drawings."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def _modules_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    for name in ("gallery_page", "learning_curves", "mathml", "result_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_formulas_are_mathml_without_a_network() -> None:
    from docutils import nodes
    from mathml import visit_formula

    class Translator:
        def __init__(self) -> None:
            self.body: list[str] = []

        def starttag(self, node: nodes.Node, tag: str, suffix: str, CLASS: str) -> str:  # noqa: N803
            return f'<{tag} class="{CLASS}">'

        def encode(self, text: str) -> str:
            return text

    translator = Translator()
    for node in (nodes.math("", r"\bigl(x\bigr)"), nodes.math_block("", "y")):
        with pytest.raises(nodes.SkipNode):
            visit_formula(translator, node)
    assert translator.body[0].startswith('<span class="math"><math xmlns="http://www.w3.org/1998/Math/MathML">')
    assert translator.body[1].startswith('<div class="math"><math')
