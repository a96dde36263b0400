"""Directives that show stored measurements of time, and how often scripted policies succeed."""

from collections.abc import Mapping
from typing import Any

from result_tables import MEASURED, Stored, table
from sphinx.application import Sphinx


class NetworkSpeed(Stored):
    """Shows the stored results of `make bench` for whole networks."""

    path = MEASURED / "speed.json"

    def lines(self, stored: dict[str, Any]) -> list[str]:
        header = ["network", "parameters", "ms", "to an equal MLP", "to mt-sac"]
        return table([header, *map(self._cells, stored["networks"])])

    def _cells(self, row: dict[str, Any]) -> list[str]:
        ratios = [f"{row['to'][other]:.2f}" for other in ("equal MLP", "mt-sac")]
        return [row["network"], f"{row['parameters']:,}", f"{row['ms']['network']:.1f}", *ratios]


class EnvironmentSpeed(Stored):
    """Shows the stored results of `benchmarks.environments`."""

    path = MEASURED / "environments.json"

    def lines(self, stored: dict[str, Any]) -> list[str]:
        others = list(stored["rows"][0]["faster than"])
        rows = [["environments", "steps/s", "µs of CPU a step", *(f"to {other}" for other in others)]]
        for row in stored["rows"]:
            ratios = [f"{row['faster than'][other]:.2f}" for other in others]
            cpu = f"{row['microseconds of CPU']:,.0f}"
            rows.append([row["name"], f"{row['steps per second']:,.0f}", cpu, *ratios])
        versions = ", ".join(f"{name} {number}" for name, number in stored["versions"].items())
        text = f"""
The tasks of {stored["benchmark"]} with random actions and a horizon of {stored["horizon"]} on {stored["cores"]} cores,
resets included; SB3's SubprocVecEnv and gymnasium's AsyncVectorEnv run a process for each task. All take turns, and a
ratio is the median over {stored["rounds"]} rounds. Other programs kept {stored["load at the start"]:.1f} cores busy
when it began: they disturb least the processor time of a step, summed over all processes. {versions}.
"""
        return [*table(rows), *text.splitlines()]


class ScriptedSuccess(Stored):
    """Shows the stored results of `benchmarks.scripted`: how often scripted policies solve each task."""

    path = MEASURED / "scripted.json"

    def lines(self, stored: dict[str, Any]) -> list[str]:
        horizons = list(stored["mean"])
        rows = [["task", *(f"{horizon} steps" for horizon in horizons)]]
        for row in stored["rows"]:
            ends = {horizon: "{:.2f} to {:.2f}".format(*row["interval"][horizon]) for horizon in horizons}
            rows.append([row["task"], *(f"{row['success'][horizon]:.2f} ({ends[horizon]})" for horizon in horizons)])
        rows.append(["mean", *(f"{stored['mean'][horizon]:.3f}" for horizon in horizons)])
        rows.append(["tasks at .9 or more", *(str(stored["tasks at .9 or more"][horizon]) for horizon in horizons)])
        versions = ", ".join(f"{name} {number}" for name, number in stored["versions"].items())
        return [*table(rows), "", f"{stored['episodes']} episodes of each task, seed {stored['seed']}; {versions}."]


class Speed(Stored):
    """Shows the stored results of `make bench` for one mode, as ratios to the textbook form."""

    path = MEASURED / "speed.json"
    required_arguments = 1
    final_argument_whitespace = True

    def lines(self, stored: dict[str, Any]) -> list[str]:
        mode = self.arguments[0]
        rows = [row for row in stored["rows"] if row["mode"] == mode]
        names = ["reference", "fused" if mode == "training step" else "skip", "auto", "equal MLP", "chained modules"]
        return table([["case", "batch", "textbook ms", *names], *(self._cells(row, names) for row in rows)])

    @staticmethod
    def _cells(row: dict[str, Any], names: list[str]) -> list[str]:
        ratios = [f"{row['to textbook'][name]:.2f}" if name in row["ms"] else "" for name in names]
        return [row["case"], str(row["batch"]), f"{row['ms']['textbook']:.2f}", *ratios]


class ShortSpeed(Speed):
    """Shows how long the default backend takes beside an MLP with as many parameters; the content names the cases."""

    required_arguments = 0
    has_content = True

    def lines(self, stored: dict[str, Any]) -> list[str]:
        columns = [(mode, batch) for batch in (1280, 1) for mode in ("training step", "inference")]
        rows = [row for row in stored["rows"] if "to textbook" in row]
        found = {(row["case"], row["mode"], row["batch"]): row["to textbook"] for row in rows}
        rows = [["graph", *(f"{mode}, {f'batch {batch:,}' if batch > 1 else 'one sample'}" for mode, batch in columns)]]
        for case in self.content:
            ratios = [found[case, *column] for column in columns]
            rows.append([case, *(f"{ratio['auto'] / ratio['equal MLP']:.1f}" for ratio in ratios)])
        return table(rows)


class MixtureSpeed(Stored):
    """Shows the stored results of `benchmarks.moe`, as ratios to the loop over experts."""

    path = MEASURED / "moe.json"

    def lines(self, stored: dict[str, Any]) -> list[str]:
        kinds, names = ("training step", "inference"), ("dynroute", "dense, active size")
        found: dict[tuple[int, int, int], dict[str, dict[str, float]]] = {}
        for row in stored["rows"]:
            found.setdefault((row["experts"], row["k"], row["threads"]), {})[row["mode"]] = row["to loop"]
        rows = [["experts", "threads", *(f"{kind}: {name}" for kind in kinds for name in names)]]
        for (experts, k, threads), modes in sorted(found.items()):
            ratios = [f"{modes[kind][name]:.2f}" for kind in kinds for name in names]
            rows.append([f"{experts}, top-{k}", str(threads), *ratios])
        return table(rows)


class UpdateSpeed(Stored):
    """Shows the stored results of `make bench` for updates of multi-task SAC."""

    path = MEASURED / "sac.json"

    def lines(self, stored: dict[str, Any]) -> list[str]:
        ratios = ("to mt-sac", "bf16 to mt-sac", "bf16 to float32")
        rows = [
            [row["network"], f"{row['ms']['float32']:.0f}", *(f"{row[ratio]:.2f}" for ratio in ratios)]
            for row in stored["rows"]
        ]
        bare, steps = stored["bare"]["to bare loop"], stored["step"]
        ours = " and ".join(f"{steps[network]:.2f} ms with {network}" for network in steps)
        text = f"""
The update of mt-sac takes {bare:.2f} of the time of a bare torch loop of the same networks, which neither weighs, masks
nor clips, but whose actor's step also computes gradients of the critics' weights that nothing uses. A step of
``collect_rollouts`` of ten environments takes {ours}, environments and network left out.
"""
        return [*table([["network", "ms", *ratios], *rows]), *text.splitlines()]


class LearnerSpeed(Stored):
    """Shows the stored results of `benchmarks.learner`: updates of BRC's learner beside one of mt-sac."""

    path = MEASURED / "learner.json"

    def lines(self, stored: dict[str, Any]) -> list[str]:
        rows = [["network", "threads", "float32 ms", "float32 to mt-sac", "bf16 to mt-sac"]]
        for row in stored["rows"]:
            ratios = [f"{row['to mt-sac'][precision]:.2f}" for precision in ("float32", "bf16")]
            rows.append([row["network"], str(row["threads"]), f"{row['ms']['float32']:.0f}", *ratios])
        return table(rows)


class PageSpeed(Stored):
    """Shows the stored results of `benchmarks.page`: how long a page about many points takes."""

    path = MEASURED / "page.json"

    def lines(self, stored: Mapping[str, Any]) -> list[str]:
        report, opened = stored["report"], stored["milliseconds"]["load"]
        text = f"""
A run with {stored["points"]:,} logged points makes a page of {report["page MB"]:.1f} MB in {report["seconds"]:.0f}
seconds and {report["peak MB"]:,.0f} MB of memory, the policy at work included. It opens in {opened["median"]:.0f}
milliseconds, at most {max(opened["all"]):.0f} in {len(opened["all"])} times ({stored["browser"]}, {stored["cores"]}
cores; ``python -m benchmarks.page``).
"""
        return [" ".join(text.split())]


def setup(app: Sphinx) -> None:
    """Registers the above with Sphinx, which calls this function."""
    app.add_directive("environment-speed", EnvironmentSpeed)
    app.add_directive("learner-speed", LearnerSpeed)
    app.add_directive("mixture-speed", MixtureSpeed)
    app.add_directive("network-speed", NetworkSpeed)
    app.add_directive("page-speed", PageSpeed)
    app.add_directive("scripted-success", ScriptedSuccess)
    app.add_directive("short-speed", ShortSpeed)
    app.add_directive("speed", Speed)
    app.add_directive("update-speed", UpdateSpeed)
