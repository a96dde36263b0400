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


def cells(lines: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("   * - "):
            rows.append([])
        if line.startswith(("   * - ", "     - ")):
            rows[-1].append(line[7:])
    return rows


def test_tasks_of_many_networks_make_several_tables() -> None:
    from result_tables import SweepTasks

    rows = [
        {"method": f"net{i}", "variant": "", "seeds": [1], "mean": -i, "success": {"push": 0.5}, "modules_used": None}
        for i in range(8)
    ]
    rows[0]["modules_used"] = {"push": 3.0}
    lines = SweepTasks.__new__(SweepTasks).lines({"rows": rows})
    assert cells(lines) == [
        ["task", "net0", "net1", "net2", "net3"],
        ["push", "0.50\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}3.0", "0.50", "0.50", "0.50"],
        ["task", "net4", "net5", "net6", "net7"],
        ["push", "0.50", "0.50", "0.50", "0.50"],
    ]
    assert lines[-1] == "Success / modules on the routes of a task, the output among them; means over seeds."


def test_one_thread_is_singular() -> None:
    from result_tables import machine

    noted = {"processor": "a processor", "gpu": None}
    assert machine({**noted, "cores": 2, "threads": 1}) == "2 cores of a processor, 1 thread a run, no GPU"
    assert machine({**noted, "cores": 1, "threads": 2}) == "1 core of a processor, 2 threads a run, no GPU"


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
