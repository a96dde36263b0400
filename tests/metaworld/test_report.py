"""The page about runs: its data, its text, and how it behaves in a browser."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import PATIENCE
from small_runs import draws, there_is, write_metrics

from dynroute_metaworld import EvaluationResult
from dynroute_metaworld.cli import main
from dynroute_metaworld.report import page as page_module
from dynroute_metaworld.report import scene as scenes
from dynroute_metaworld.report.analysis import inspect_runs
from dynroute_metaworld.report.comparison import Group
from dynroute_metaworld.report.data import read_run
from dynroute_metaworld.report.page import curve_controls, details, entries_of, number, span, table, write_report
from dynroute_metaworld.runs.seeds import over_seeds

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VOID = {"meta", "link", "input", "img", "br", "hr"}
EVIL = "</script><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">{{data}}"


class Page(HTMLParser):
    """The parts of a page that tests ask for; tags that do not match are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def data_of(text: str) -> dict[str, Any]:
    """The data of a page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return dict(json.loads(found))


@pytest.fixture(scope="module")
def reported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run with routes, one whose files hold what must not run in a page, and one without routes."""
    folder = tmp_path_factory.mktemp("runs")
    for name, run in (("d2r", "d2r-1"), ("mt-sac", "mt-sac")):
        shutil.copytree(runs[run], folder / name)
    evil = shutil.copytree(folder / "d2r", folder / "<b id='x'>&")
    configuration = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(json.dumps({**configuration, "seed": 2, "memory_map": EVIL}))
    session = json.loads((evil / "sessions.jsonl").read_text())
    (evil / "sessions.jsonl").write_text(json.dumps({**session, "command": EVIL}) + "\n")
    return [folder / "d2r", evil, folder / "mt-sac"]


@pytest.fixture(scope="module")
def page(reported: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(reported, path, episodes=1, device="cpu", tell=lambda _: None)


def check_form(text: str) -> Page:
    """Asserts that a page is whole, that everybody can use it, and that it needs nothing from elsewhere."""
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert any(tag.get("name") == "viewport" for tag in page.all("meta"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {label["for"] for label in page.all("label")}
    assert labelled == {control["id"] for control in page.all("select", "input")}
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "for"):
            assert set(attributes.get(name, "").split()) <= set(ids)
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes  # the script of the page sets that of the frame
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"(https?|ftp|wss?)://", text.replace("http://www.w3.org/2000/svg", ""))
    assert len(page.all("table")) == len(page.all("caption"))
    assert {cell["scope"] for cell in page.all("th")} <= {"col", "row"}
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in page.all("div") if box.get("class") == "box")
    heads = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert heads[0] == "h1"
    assert heads.count("h1") == 1
    return page


def test_the_form_of_the_page(page: Path) -> None:
    text = page.read_text()
    form = check_form(text)
    labels = re.findall(r'<label for="(\w+)">([^<]+)', text)
    named = {"view": "Curve", "line": "Stand out", "step": "Steps", "task": "Task", "moment": "Step of the episode"}
    assert dict(labels) == named
    live = {output["id"] for output in form.all("output") if output["aria-live"] == "polite"}
    assert live == {"at", "state"}
    for rule in ("prefers-color-scheme: dark", "prefers-reduced-motion", ":focus-visible", "overflow-x: auto"):
        assert rule in text
    assert "default-src 'none'" in text
    assert len(text) < 2_000_000


def test_text_of_others_is_shown_and_never_run(page: Path) -> None:
    text = page.read_text()
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert "<b id='x'>" not in text
    shown = "".join(Page(text).text)
    assert EVIL in shown  # the command, as it was
    assert "<b id='x'>&" in shown
    assert data_of(text)["entries"]


def test_the_data_of_the_page(page: Path, reported: list[Path]) -> None:
    text = page.read_text()
    shown, data = "".join(Page(text).text), data_of(text)
    final = EvaluationResult.load(reported[0] / "evaluations" / "final.json")
    assert "0.00 to 1.00" not in shown
    for rate in final.success_rates:
        assert number(rate) in shown
    assert "mt-sac: one seed does not show how much seeds differ, so there is no interval." in shown
    assert "The method mt-sac has no learned routes: none are shown." in shown
    session = json.loads((reported[0] / "sessions.jsonl").read_text())
    for part in (
        session["command"],
        session["versions"]["torch"],
        session["machine"]["system"],
        '"drawer-close,reach"',
    ):
        assert part in shown
    groups = [view["group"] for view in data["views"]]
    assert groups[0] == "methods, mean over tasks and seeds"
    assert set(groups[1:]) == {groups[0], *(folder.name for folder in reported)}
    bands = [line for view in data["views"][:1] for line in view["lines"]]
    assert [("low" in line) for line in bands] == [True, False]  # one seed has no interval
    entries = data["entries"]
    assert [(entry["run"], entry["task"]) for entry in entries[:2]] == [("d2r", "drawer-close"), ("d2r", "reach")]
    frames = [moment["frame"] for entry in entries for moment in entry["moments"]]
    if draws():
        assert entries[-1]["graph"] is None  # mt-sac has frames alone
        assert all(frame.startswith("data:image/jpeg;base64,") for frame in frames)
    else:
        assert {entry["run"] for entry in entries} == {"d2r"}
        assert frames == [None] * len(frames)
    first = int(final.first_success[0, 0])
    assert entries[0]["solved"] == (first if first > 0 else None)
    weights = entries[0]["moments"][0]["route"][1::2]
    assert all(0 < weight <= 1 for weight in weights)
    assert data["graphs"] == [{"nodes": 5, "edges": [[j, i] for i in range(1, 5) for j in range(i)]}]


def test_the_figures_of_the_page(reported: list[Path], tmp_path: Path) -> None:
    results = []
    for i, solved in enumerate(([[4, 6, -1], [-1, -1, -1]], [[8, -1, -1], [-1, 9, 10]], [[2, 3, -1], [7, -1, -1]])):
        folder = shutil.copytree(reported[i], tmp_path / str(i))
        shutil.rmtree(folder / "checkpoints")
        session = json.loads((folder / "sessions.jsonl").read_text())
        (folder / "sessions.jsonl").write_text(json.dumps({**session, "minutes": 1.5 + i}) + "\n")
        stored = EvaluationResult.load(folder / "evaluations" / "final.json")
        changes: dict[str, Any] = {"first_success": np.array(solved), "returns": np.arange(6.0).reshape(2, 3) * (i + 1)}
        if i < 2:
            changes["modules_used"] = np.full((2, 3), 2.0 + i)
        results.append(dataclasses.replace(stored, **changes))
        results[-1].save(folder / "evaluations" / "final.json")
    path = write_report([tmp_path / str(i) for i in range(3)], tmp_path / "page.html", tell=lambda _: None)
    lines = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", path.read_text())
    rows = [re.sub(r"<[^>]*>", "|", line).strip("|") for line in lines]
    figures = [re.split(r"\|+", row) for row in rows[:6]]
    scores = np.array([result.success_rates for result in results])
    several = over_seeds(scores[:2])
    low, high = several["iqm_interval"]
    assert figures[:2] == [
        ["d2r", "2 tasks", "random", "1, 2", "0.42", f"{several['iqm']:.2f}", f"{low:.2f} to {high:.2f}", "2.5", "2.0"],
        ["mt-sac", "2 tasks", "random", "1", "0.50", "0.50", "one seed", "-", "3.5"],
    ]
    for row, task, rates, returns, first in (
        (2, "drawer-close", scores[:2, 0], 1.5, 6),
        (3, "reach", scores[:2, 1], 6.0, 10),
    ):
        low, high = over_seeds(rates[:, None])["mean_interval"]
        expected = [task, f"{rates.mean():.2f}", f"{low:.2f} to {high:.2f}", f"{returns:.1f}", str(first), "2.5", "6"]
        assert figures[row] == expected
    low, high = results[2].intervals()
    assert figures[4:] == [
        ["drawer-close", "0.67", f"{low[0]:.2f} to {high[0]:.2f}", "3.0", "2", "-", "3"],
        ["reach", "0.33", f"{low[1]:.2f} to {high[1]:.2f}", "12.0", "7", "-", "3"],
    ]
    assert "width:67%" in lines[4]


def test_a_run_of_which_much_is_missing(reported: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(reported[0], tmp_path / "run")
    for name in ("checkpoints", "evaluations"):
        shutil.rmtree(folder / name)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 130, "succ')
    said: list[str] = []
    assert write_report([folder], device="cpu", tell=said.append) == folder / "report.html"
    shown = "".join(check_form((folder / "report.html").read_text()).text)
    for part in (
        "There is no checkpoint, and so there are neither routes nor frames.",
        "There is no evaluation yet: success is unknown.",
        "is cut short and left out",
        "one seed does not show how much seeds differ",
        "There are neither routes nor frames to show",
        "d2r: not evaluated yet.",
    ):
        assert part in shown
    assert any("is cut short" in sentence for sentence in said)

    (folder / "metrics.jsonl").unlink()
    write_report([folder], device="cpu", tell=said.append)
    assert "There are no logged curves." in (folder / "report.html").read_text()

    monkeypatch.setattr(scenes, "_works", lambda backend: False)
    path = write_report([reported[2]], tmp_path / "plain.html", device="cpu", tell=said.append)
    shown = "".join(check_form(path.read_text()).text)
    assert "There are no frames: frames need OpenGL" in shown
    assert "There are neither routes nor frames to show; the reasons stand under Notes." in shown


def test_a_page_about_a_long_run_stays_small(reported: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(reported[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    names = [f"{metric}/{task}" for metric in ("success", "return") for task in ("drawer-close", "reach")]
    write_metrics(folder / "metrics.jsonl", 100_000, *names)
    path = write_report([folder], device="cpu", tell=lambda _: None)
    assert path.stat().st_size < 200_000
    lines = [line for view in data_of(path.read_text())["views"] for line in view["lines"]]
    assert {line["label"] for line in lines} == {"drawer-close", "reach"}
    assert max(len(line["x"]) for line in lines) <= 400
    assert max(line["x"][-1] for line in lines) == 50_000


def test_the_command(reported: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    options = ["--output", str(path), "--no-frames", "--device", "cpu", "--episodes", "1"]
    assert main(["report", str(reported[0]), *options]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    entries = data_of(path.read_text())["entries"]
    assert all(moment["frame"] is None and moment["route"] for entry in entries for moment in entry["moments"])
    check_form(path.read_text())
    assert main(["report", str(reported[0]), "--output", str(tmp_path / "no" / "page.html")]) == 1
    assert "`output` must be in an existing directory" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert "is not the directory of a run" in capsys.readouterr().err


def test_where_a_page_cannot_be_is_said_at_once(
    reported: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "inspect_runs", None)  # nothing is done before
    with pytest.raises(FileNotFoundError, match="`output` must be in an existing directory, got "):
        write_report(reported, tmp_path / "no" / "page.html")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="is not the directory of a run: it does not exist"):
        write_report([tmp_path / "no"])
    monkeypatch.setattr(page_module, "inspect_runs", None)
    with pytest.raises(IsADirectoryError, match=r"`output` must be a file, got the directory .*; name a file in it"):
        write_report(reported, tmp_path)


def test_frames_that_are_left_out(reported: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    analysis = inspect_runs(reported[:1], episodes=1, moments=2, frames=False, device="cpu", tell=lambda _: None)
    routes = analysis.routes["d2r"]
    pictured = [dataclasses.replace(moment, frame=np.zeros((8, 8, 3), np.uint8)) for moment in routes.moments]
    analysis.routes["d2r"] = dataclasses.replace(routes, moments=tuple(pictured))
    notes, sentence = list(analysis.notes), "Some frames are left out, since the page would be too large."
    assert entries_of(analysis)[2] == []
    monkeypatch.setattr("dynroute_metaworld.report.page.ROOM", 1)
    _, entries, left_out = entries_of(analysis)
    assert left_out == [sentence]
    assert [bool(moment["frame"]) for entry in entries for moment in entry["moments"]] == [True, False, False, False]
    text, told = page_module.page(analysis)
    assert sentence in told
    assert sentence in "".join(Page(text).text)
    assert analysis.notes == notes  # asking changes nothing
    said: list[str] = []
    monkeypatch.setattr(page_module, "inspect_runs", lambda *_, **__: analysis)
    write_report(reported[:1], tmp_path / "page.html", tell=said.append)
    assert said.count(sentence) == 1


def test_a_caption_tells_of_an_interval_where_there_is_one(reported: list[Path]) -> None:
    run = read_run(reported[2])
    assert run.result is not None
    assert "; the interval is Wilson" in page_module._tasks(Group("mt-sac", (run,)))
    fixed = dataclasses.replace(run, result=dataclasses.replace(run.result, goals="fixed"))
    assert "interval is" not in page_module._tasks(Group("mt-sac", (fixed,)))


def test_the_first_curve_has_more_than_a_point() -> None:
    point, line = ({"group": "run", "title": "success", "lines": [{"x": steps}]} for steps in ([10.0], [10.0, 20.0]))
    for views, first in (([point, line, line], 1), ([line, point], 0), ([point], 0)):
        assert re.findall(r'value="(\d)" selected', curve_controls(views)) == [str(first)]


def test_the_measures_of_critics_are_among_the_curves_of_their_run(reported: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(reported[0], tmp_path / "run")
    measured = {"plasticity/rank": 5, "plasticity/flow_0_0": 0.25, "plasticity/flow_0_1": 0.75}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps({'step': step, **measured})}\n" for step in (40, 80)))
    analysis = inspect_runs([folder], episodes=1, frames=False, every=False, device="cpu")
    rank, flow = (view for view in page_module.views_of(analysis) if "critic" in view["title"])
    assert (rank["group"], rank["unit"]) == ("run", "steps of each task")
    assert rank["lines"] == [{"label": "mean over critics", "x": [20.0, 40.0], "y": [5.0, 5.0]}]
    assert {line["label"]: line["y"][-1] for line in flow["lines"]} == {"node 0": 0.25, "node 1": 0.75}


def test_pieces_of_a_page() -> None:
    assert (number(None), number(0.123, 1), span(None)) == ("-", "0.1", "-")
    made = table("a <b>", ["<i>", "x"], [["<u>", "<s>"]])
    assert "<b>" not in made
    assert '<th scope="row">&lt;u&gt;</th><td>&lt;s&gt;</td>' in made
    assert details("<p>", "", opened=True).startswith("<details open><summary>&lt;p&gt;")


INTERACTION = """
<script>
const found = {errors: []};
addEventListener("error", (event) => found.errors.push(event.message));
function pick(id, value) {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event(control.type === "range" ? "input" : "change"));
}
function state() {
  const circles = [...document.querySelectorAll("#graph circle")];
  return {
    said: document.getElementById("state").textContent,
    filled: circles.map((one, i) => one.getAttribute("fill") === "#ffffff" ? null : i).filter((i) => i !== null),
    drawn: document.querySelectorAll('#graph path:not([stroke="#dfe3e8"])').length,
    frame: document.getElementById("frame").src, framed: !document.getElementById("frame").hidden,
    graph: !document.getElementById("graph").hidden,
  };
}
function curve() {
  return {
    lines: document.querySelectorAll("#chart path.line").length,
    bands: document.querySelectorAll("#chart .band").length,
    strong: document.querySelectorAll("#chart .strong").length,
    faint: document.querySelectorAll("#chart .faint").length,
    faint_bands: document.querySelectorAll("#chart .band.faint").length,
    order: [...document.querySelectorAll("#chart path")].map((one) => one.classList[0]),
    legend: [...document.querySelectorAll("#legend li")].map((one) => one.textContent),
    said: document.getElementById("at").textContent,
  };
}
const moments = document.getElementById("moment");
found.first = state();
pick("moment", moments.max); found.last = state();
pick("task", 1); found.second = state();
pick("task", document.querySelectorAll("#task option").length - 1); found.plain = state();
found.methods = curve();
pick("line", 1); found.stands_out = curve();
pick("view", VIEW); found.tasks = curve();
pick("line", 1); pick("step", 0); found.one = curve();
found.wide = document.documentElement.scrollWidth - innerWidth;
found.size = innerWidth;
found.title = document.title;
found.ground = getComputedStyle(document.body).backgroundColor;
parent.postMessage(JSON.stringify(found), "*");
</script>
"""


def browse(browser: str, text: str, folder: Path, width: int, color: str) -> tuple[dict[str, Any], list[str]]:
    """The findings of the interaction in a browser, and the lines of its console."""
    (folder / "copy.html").write_text(text)
    # A window of a browser has a least width, which a frame has not.
    (folder / "frame.html").write_text(
        f'<iframe src="copy.html" style="border: 0; width: {width}px; height: 900px"></iframe><pre id="found"></pre>'
        '<script>onmessage = (event) => { document.getElementById("found").textContent = event.data; }</script>'
    )
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,1000", f"--blink-settings=preferredColorScheme={color}", "--hide-scrollbars"]
    command += [
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"file://{folder / 'frame.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def reached(graph: dict[str, Any], weights: list[float]) -> list[int]:
    used = {graph["nodes"] - 1}
    for (source, node), weight in reversed(list(zip(graph["edges"], weights, strict=True))):
        if weight > 0 and node in used:
            used.add(source)
    return sorted(used)


def find_browser() -> str | None:
    """The browser of this machine, if there is one."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    return browser if there_is("a browser", browser is not None) else None


def test_the_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    """In a browser, if there is one; else its script alone in node; else what its text tells. It says which it was."""
    text = page.read_text()
    data = data_of(text)
    browser = find_browser()
    if browser is None:
        print("no browser here: the page was checked by", "node" if check_in_node(data) else "its text alone")
        check_form(text)
        return
    print(f"the page was checked in {browser}")
    view = next(i for i, view in enumerate(data["views"]) if view["group"] == "d2r")
    copy = text.replace("</body>", INTERACTION.replace("VIEW", str(view)) + "</body>")
    for width, color, ground in ((1280, "1", "rgb(255, 255, 255)"), (390, "0", "rgb(13, 17, 23)")):
        folder = tmp_path / str(width)
        folder.mkdir()
        found, console = browse(browser, copy, folder, width, color)
        assert console == []
        assert found["errors"] == []
        assert found["size"] == width
        assert found["wide"] <= 0  # the page itself does not scroll sideways
        assert found["title"] == "Report on 3 runs"
        assert found["ground"] == ground
        check_explorer(found, data)
        check_curves(found, data["views"][view]["lines"])


def check_explorer(found: dict[str, Any], data: dict[str, Any]) -> None:
    """Asserts what is seen of routes and frames."""
    graph, entry = data["graphs"][0], data["entries"][0]
    for name, moment in (("first", entry["moments"][0]), ("last", entry["moments"][-1])):
        weights = [0.0] * len(graph["edges"])
        for edge, weight in zip(moment["route"][::2], moment["route"][1::2], strict=True):
            weights[edge] = weight
        assert found[name]["filled"] == reached(graph, weights)
        assert found[name]["drawn"] == len(moment["route"]) // 2
        said = (
            f"d2r (d2r), {entry['task']}, step {moment['step']} of 20; {len(reached(graph, weights))} of 5 nodes run; "
        )
        assert found[name]["said"].startswith(said)
        assert found[name]["frame"] == (moment["frame"] or "")
        assert found[name]["framed"] == (moment["frame"] is not None)
    second = data["entries"][1]["moments"][0]
    assert found["second"]["frame"] == (second["frame"] or "")  # another task starts at its first step
    last = data["entries"][-1]  # of a method without routes, where there are frames
    assert found["plain"]["framed"] == (last["moments"][0]["frame"] is not None)
    assert bool(found["plain"]["graph"]) == (last["graph"] is not None)


def check_curves(found: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Asserts what is seen of curves."""
    assert (found["methods"]["lines"], found["methods"]["bands"]) == (2, 1)
    assert (found["tasks"]["lines"], found["tasks"]["bands"], found["tasks"]["strong"]) == (2, 0, 0)
    assert (found["one"]["strong"], found["one"]["faint"]) == (1, 1)
    for line, told, at_start in zip(lines, found["tasks"]["legend"], found["one"]["legend"], strict=True):
        assert told.startswith(f"{line['label']} ")
        assert float(told.split()[-1]) == pytest.approx(line["y"][-1], abs=5e-3)
        assert float(at_start.split()[-1]) == pytest.approx(line["y"][0], abs=5e-3)
    assert found["methods"]["said"] == "Means over tasks and seeds, at 60 steps of each task; see the list below."
    assert found["one"]["said"].startswith(f"d2r (d2r), at 30 steps of each task: {lines[1]['label']} ")
    assert found["one"]["faint_bands"] == 0
    order = found["methods"]["order"]
    assert order == sorted(order)  # all bands, then all lines
    assert (found["stands_out"]["faint"], found["stands_out"]["faint_bands"]) == (2, 1)


def test_tools_that_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("DYNROUTE_REQUIRE_TOOLS", raising=False)
    assert find_browser() is None
    assert not check_in_node({})
    monkeypatch.setenv("DYNROUTE_REQUIRE_TOOLS", "1")
    with pytest.raises(AssertionError, match="DYNROUTE_REQUIRE_TOOLS is set, and a browser is missing"):
        find_browser()
    with pytest.raises(AssertionError, match="DYNROUTE_REQUIRE_TOOLS is set, and node is missing"):
        check_in_node({})


def check_in_node(data: dict[str, Any]) -> bool:
    """Compares the pure functions of the page's script with Python; False without node."""
    node = shutil.which("node")
    if not there_is("node", node is not None):
        return False
    assert node is not None
    generator = np.random.default_rng(0)
    graph = {"nodes": 5, "edges": [[j, i] for i in range(1, 5) for j in range(i)]}
    weights = (generator.random((50, 10)) * (generator.random((50, 10)) < 0.4)).tolist()
    script = Path(page_module.__file__).parent / "page.js"
    program = f"""
    const {{ at, extent, reached, ticks, brief }} = require({json.dumps(str(script))});
    const given = JSON.parse(require("fs").readFileSync(0));
    console.log(JSON.stringify({{
      reached: given.weights.map((row) => reached(given.graph.nodes, given.graph.edges, row)),
      at: [at([10, 20, 30], 5), at([10, 20, 30], 20), at([10, 20, 30], 29), at([10, 20, 30], 99)],
      ticks: [ticks(0, 1, 5), ticks(0, 12000, 6), ticks(-3, 7, 5), ticks(0, 2, 6, 1)],
      brief: [brief(null), brief(0), brief(0.12345), brief(12345.6), brief(3), brief(0.00001)],
      extent: [3000, 0].map((x) => extent([{{ x: [x], y: [2] }}])),
      shares: extent([{{ x: [1, 4], y: [0.5, 0.5] }}], [0, 1]),
    }}));
    """
    sent = json.dumps({"graph": graph, "weights": weights})
    done = subprocess.run(
        [node, "-e", program], input=sent, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    found = json.loads(done.stdout)
    for row, used in zip(weights, found["reached"], strict=True):
        assert [i for i, runs in enumerate(used) if runs] == reached(graph, row)
    assert found["at"] == [0, 1, 1, 2]
    assert found["ticks"] == [[0, 0.2, 0.4, 0.6, 0.8, 1], list(range(0, 12001, 2000)), [-2, 0, 2, 4, 6], [0, 1, 2]]
    assert found["brief"] == ["-", "0", "0.123", "12,346", "3", "1.0e-5"]
    assert found["extent"] == [  # the cursor stops at the last point
        {"x0": 0, "x1": 3000, "y0": 1.5, "y1": 2.5, "last": 3000},
        {"x0": 0, "x1": 1, "y0": 1.5, "y1": 2.5, "last": 0},
    ]
    assert found["shares"] == {"x0": 1, "x1": 4, "y0": 0, "y1": 1, "last": 4}
    return True


def test_the_script_of_the_page(page: Path) -> None:
    """Its functions in node, if there is one; the browser runs them in any case."""
    print("the script was checked in", "node" if check_in_node(data_of(page.read_text())) else "no node: there is none")
    script = (Path(page_module.__file__).parent / "page.js").read_text()
    assert "</script" not in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|import\(", script)
