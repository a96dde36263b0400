"""The example programs run, show what they promise, and stay short."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest
import torch
from PIL import Image
from small_runs import draws

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def load(name: str, folder: Path = EXAMPLES) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread_and_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


def test_the_programs_are_there():
    assert [program.stem for program in PROGRAMS] == [
        "compile_and_export",
        "conflicting_tasks",
        "four_levels",
        "grow_network",
        "log_routing",
        "multi_task_sac",
        "published_networks",
        "read_and_draw_route",
        "route_without_rl",
        "run_extracted_policy",
        "single_file_sac",
        "swap_linear",
        "swap_transformer",
        "train_with_fabric",
        "trained_policy",
        "what_rsg_stops",
    ]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_example_is_short_and_has_a_main(program):
    module = load(program.stem)
    assert len(program.read_text().splitlines()) <= 80
    assert module.__doc__
    assert isinstance(module.main.__defaults__[0], int), "`main` must take `steps` with a default"
    assert module.main.__code__.co_varnames[0] == "steps"


def test_swap_linear_learns_and_counts_honestly(capsys):
    errors = load("swap_linear").main(steps=150)

    rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    size = {name: int(parameters.replace(",", "")) for name, parameters, _ in rows}
    assert list(size) == list(errors) == ["plain", "routed", "plain, wider"]
    assert size["plain"] < size["routed"] <= size["plain, wider"] < 1.05 * size["routed"]
    assert errors["routed"] < errors["plain, wider"] < errors["plain"] < 1.5


@pytest.mark.slow
def test_conflicting_tasks_are_learned_apart_and_equal_ones_together(capsys):
    rows = load("conflicting_tasks").main(steps=60, conflicts=(0.0, 1.0))

    printed = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert printed == [
        [row["network"], f"{row['parameters']:,}", str(row["conflict"]), f"{row['error']:.4f}"] for row in rows
    ]
    sizes = {row["network"]: row["parameters"] for row in rows}
    assert list(sizes) == ["single", "soft", "top-2", "separate"]
    assert 0.95 * max(sizes.values()) < min(sizes.values())
    error = {(row["network"], row["conflict"]): row["error"] for row in rows}
    assert all(0 < fraction < 1 for fraction in error.values())
    for shared in ("single", "soft", "top-2"):
        assert error[shared, 0.0] < error["separate", 0.0]
        assert error[shared, 1.0] > error["separate", 1.0]
    assert error["top-2", 1.0] < error["single", 1.0]


def test_four_levels_prints_a_table_and_draws(capsys, tmp_path):
    errors = load("four_levels").main(steps=100, folder="pictures")

    captured = capsys.readouterr()
    assert list(errors) == ["single", "output", "model", "layer", "module"]
    assert all(math.isfinite(error) for error in errors.values())
    mean_of_tasks = 0.319  # what the best network without a task is left with
    assert errors["output"] < 0.5 * mean_of_tasks < 0.9 * mean_of_tasks < errors["single"]

    table = {line.split()[0]: line.split() for line in captured.out.splitlines() if line.split()[-2:-1] == ["of"]}
    assert list(table) == list(errors)
    sizes = [int(row[1].replace(",", "")) for row in table.values()]
    assert max(sizes) < 1.1 * min(sizes), "the levels are compared at similar sizes"
    assert {level: row[3:] for level, row in table.items() if level != "module"} == {
        "single": ["2.0", "of", "2"],
        "output": ["2.0", "of", "7"],
        "model": ["5.0", "of", "5"],
        "layer": ["10.0", "of", "10"],
    }
    assert 2.0 <= float(table["module"][3]) <= 9.0
    assert "training: 100%" in captured.err

    folder = tmp_path / "pictures"
    assert sorted(path.name for path in folder.iterdir()) == [
        "four_levels.png",
        "route_wave_bump.svg",
        "route_wave_vee.svg",
    ]
    picture = (folder / "four_levels.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 20_000
    assert all(path.read_text().startswith("<svg") for path in folder.glob("*.svg"))


def test_four_levels_asks_for_contradicting_answers():
    example = load("four_levels")
    mean = example.ANSWERS.mean(dim=0)
    assert (example.ANSWERS - mean).square().mean() == pytest.approx(0.319, abs=0.01)


@pytest.mark.slow
def test_grow_network_learns_new_tasks_beside_frozen_modules(tmp_path):
    results = load("grow_network").main(steps=400, folder="pictures")

    assert list(results) == ["before", "new routes alone", "new routes and modules"]
    (old, untrained), (_, alone), (still, grown) = results.values()
    assert max(old, still) < 0.1
    assert grown < 0.4 * alone < 0.4 * untrained
    drawn = [path.read_text().count("<circle") for path in sorted((tmp_path / "pictures").iterdir())]
    assert drawn == [5, 9, 9]  # modules and the output


def test_published_networks_learn_and_count_modules(capsys):
    errors = load("published_networks").main(steps=150)

    assert list(errors) == ["mt-sac", "paco", "d2r"]
    variance = 0.55  # of the answers, which a network that knows nothing is left with
    assert all(error < 0.2 * variance for error in errors.values())
    printed = capsys.readouterr().out
    assert "DynamicDepthRouting (module level): " in printed
    used = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("  task")]
    assert len(used) == 7
    assert all(2.0 <= nodes <= 7.0 for nodes in used)


def test_read_and_draw_route_reads_what_it_drew(capsys):
    picture = load("read_and_draw_route").main(steps=5, folder="pictures")

    printed = capsys.readouterr().out
    assert picture == Path("pictures/route.svg")
    assert picture.read_text().startswith("<svg")
    assert "replay is identical: True" in printed
    assert "a new draw is too:   False" in printed
    assert "4 bytes for 28 possible edges" in printed
    assert "  0 -> 1  1.000" in printed
    nodes = next(line for line in printed.splitlines() if line.startswith("nodes of sample 0"))
    assert picture.read_text().count("<circle") == 8
    assert picture.read_text().count('r="13.0" fill="#146e3c"') == nodes.count(",") + 1


def test_route_without_rl_finds_who_shares(capsys, tmp_path):
    results = load("route_without_rl").main(steps=200, folder="pictures")

    assert list(results) == ["model", "module"]
    for accuracy, same, other in results.values():
        assert accuracy > 0.9, "tasks that ignore the image are right for 55 %"
        assert same > 1.3 * other, "tasks about one bar share more of their routes"
    assert "similarity of routes" in capsys.readouterr().out
    for path, nodes in (("model_level.svg", 5), ("module_level.svg", 9)):
        picture = (tmp_path / "pictures" / path).read_text()
        assert picture.count("<circle") == 6 * nodes
        assert ">column &lt; 5</text>" in picture


def test_what_rsg_stops_shows_exact_zeros(capsys):
    norms = load("what_rsg_stops").main(steps=1)

    assert all(norm > 0 for norm in norms["none", True])
    assert norms["sg", True][:2] == norms["sg", False][:2] == [0.0, 0.0]
    assert all(norm > 0 for norm in norms["input", True])
    assert norms["rsg", True][1] == 0.0
    assert norms["rsg", True][0] > 0
    assert norms["rsg", True][2:] == norms["none", True][2:], "what reads the unsuitable module learns as before"
    printed = capsys.readouterr().out
    assert all(f"\n{mode:18}" in printed for mode in ("none", "sg", "sg, no shortcut", "input", "rsg"))


@pytest.mark.slow
def test_multi_task_sac_goes_on_from_its_checkpoints(capsys):
    program = load("multi_task_sac")
    program.main(steps=300)
    results = program.main(steps=400)

    assert sorted(path.name for path in program.FOLDER.iterdir()) == ["step_300", "step_400"]
    assert list(results) == program.NAMES
    assert all(0 <= success <= 1 and 2 <= used <= 5 for success, used in results.values())
    assert capsys.readouterr().out.count("modules used of 5") == 2


def test_swap_transformer_changes_nothing_and_learns_on(capsys):
    before, changed, after, shares = load("swap_transformer").main(steps=150)

    assert changed < 1e-4
    assert fmean(after[-20:]) < fmean(before[-20:]) < fmean(before[:5])
    assert sum(shares) == pytest.approx(2.0)
    assert min(shares) > 0.2, "the bias keeps every expert in use"
    assert "the swap changes outputs by" in capsys.readouterr().out


def test_compile_and_export_agree_with_eager(capsys):
    torch.compiler.reset()
    eager, compiled, gap = load("compile_and_export").main(steps=20)

    assert compiled == pytest.approx(eager, rel=1e-3)
    assert eager[-1] < 0.8 * eager[0]
    assert gap < 1e-5
    assert "the exported program differs by" in capsys.readouterr().out


def test_log_routing_writes_what_it_returns(capsys, tmp_path):
    logged = load("log_routing").main(steps=25, folder="log", every=10)

    rows = [json.loads(line) for line in (tmp_path / "log" / "figures.jsonl").read_text().splitlines()]
    assert [row.pop("step") for row in rows] == [10, 20, 25]
    assert rows == logged
    assert {"loss", "routing/first/load/0", "routing/second/dropped_share", "routing/first/dead"} <= set(logged[0])
    assert all(math.isfinite(value) for figures in logged for value in figures.values())
    assert len(list((tmp_path / "log").glob("events.out.tfevents.*"))) == 1
    assert (tmp_path / "log" / "load.svg").read_text().count('class="load"') == 4
    assert "tensorboard --logdir log" in capsys.readouterr().out


def test_train_with_fabric_learns_and_logs(capsys, tmp_path):
    logged = load("train_with_fabric").main(steps=120)

    assert logged[-1]["loss"] < 0.7 * logged[0]["loss"]
    (csv,) = tmp_path.glob("fabric/routing/version_0/metrics.csv")
    header, *rows = csv.read_text().splitlines()
    assert len(rows) == len(logged) == 6
    names = header.split(",")
    assert {"loss", "routing/experts/load/7", "routing/experts/dead", "step"} <= set(names)
    assert [int(row.split(",")[names.index("step")]) for row in rows] == [20, 40, 60, 80, 100, 120]
    assert (tmp_path / "fabric" / "net.ckpt").exists()
    assert "routing/experts/load_max" in capsys.readouterr().out


@pytest.mark.slow
def test_single_file_sac_learns(capsys):
    before, after = load("single_file_sac").main(steps=400)

    assert before < 0.5 < after
    assert "after 400 updates" in capsys.readouterr().out


def test_trained_policy_solves_what_it_promises(capsys):
    result = load("trained_policy").main()

    assert result.success_rates.sum() == 10
    assert "drawer-close" in capsys.readouterr().out
    assert sum(path.stat().st_size for path in (EXAMPLES / "policy_mt10_fixed").iterdir()) < 2_000_000


def test_trained_policy_is_filmed_where_there_is_opengl(tmp_path):
    example = load("trained_policy")
    if not draws():
        with pytest.raises(RuntimeError, match="needs OpenGL"):
            example.main(steps=4, task="door-open")
        return
    example.main(steps=4, task="door-open")

    with Image.open(tmp_path / "door-open.gif") as film:
        assert film.n_frames == 2


@pytest.mark.slow
def test_run_extracted_policy_needs_nothing_that_trained_it(capsys, monkeypatch, tmp_path):
    module, kept = load("run_extracted_policy"), tmp_path / "made.safetensors"
    make = module.make

    def make_and_keep(path):
        make(path)
        shutil.copy(path, kept)

    monkeypatch.setattr(module, "make", make_and_keep)
    policy = module.main(steps=3)
    assert policy.notes["task"] == "nothing yet"
    printed = capsys.readouterr().out
    assert printed.startswith("policy.safetensors: ")
    assert "\n3 actions of 4 numbers within 0." in printed

    check = "import sys, runpy; runpy.run_path({!r}, run_name='__main__'); print([n for n in sys.modules if {}])"
    trained = "n.startswith(('dynroute_', 'stable_baselines3', 'gymnasium', 'metaworld'))"
    text = check.format(str(EXAMPLES / "run_extracted_policy.py"), trained)
    ended = subprocess.run([sys.executable, "-c", text, str(kept)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines[0].startswith("made.safetensors: ")
    assert lines[-2].startswith("1000 actions of 4 numbers within 0.")


def test_the_pictures_of_the_readme_are_what_is_drawn():
    levels = load("levels", ROOT / "docs")

    drawn = levels.pictures()
    assert list(drawn) == ["output", "model", "layer", "module"]
    shown = re.findall(r"!\[.*\]\((docs/pictures/.*\.svg)\)", (ROOT / "README.md").read_text())
    assert [(ROOT / path).read_text().rstrip() for path in shown] == list(drawn.values()), "run docs/levels.py"
