"""Correctness and speed on one GPU within a few minutes: `python -m benchmarks.gpu`.

It needs torch and this tree, and for its last section Stable-Baselines3. An error ends only its step, and the JSON file
is written after each section, so no measurement is lost. `--device cpu --quick` tests the program without a GPU.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import torch

from .gpu_sections import Row, Setup, Steps, actors, attempt, capture, correctness, d2r, moe, sac
from .outputs import file, new_file, session, write

SECTIONS: dict[str, Callable[[Setup], Steps]] = {
    "correctness": correctness,
    "d2r": d2r,
    "moe": moe,
    "actors": actors,
    "capture": capture,
    "sac": sac,
}


def run_section(name: str, setup: Setup, deadline: float) -> Row:
    """Runs the steps of a section until the deadline."""
    section: Row = {"rows": [], "skipped": []}
    if time.monotonic() >= deadline:
        return {**section, "skipped": ["all"]}
    for title, step in (attempt(section, "setting up", SECTIONS[name], setup) or {}).items():
        begin = time.monotonic()
        if begin >= deadline:
            section["skipped"].append(title)
            continue
        row: Row = {"step": title}
        row |= attempt(row, "step", step) or {}
        section["rows"].append(row | {"seconds": round(time.monotonic() - begin, 1)})
        print(f"  {title}: " + ", ".join(f"{column} {cell}" for column, cell in cells(row).items()), flush=True)
        setup.release()
    return section


def cells(row: Row) -> dict[str, str]:
    """The cells of a row by contender: a deviation, or milliseconds (ratio to the base) and memory."""
    texts = dict.fromkeys(row.get("cannot", {}), "cannot")
    texts |= {name: f"{gap:.1e}" for name, gap in row.get("deviation", {}).items()}
    for name, ms in row.get("ms", {}).items():
        rate = row.get("updates a second", {}).get(name)
        beside = f"{row['to base'].get(name, float('nan')):.2f}" if rate is None else f"{rate:.0f}/s"
        texts[name] = f"{ms:.3f} ({beside})" + (f" {row['MiB'][name]:.0f}M" if row["MiB"][name] else "")
    return texts | dict.fromkeys(row.get("failed", {}), "FAILED")


def table(name: str, section: Row) -> str:
    """Formats the rows of a section in columns, followed by the reasons why something did not run."""
    lines = [(row["step"], cells(row)) for row in section["rows"]]
    columns = list(dict.fromkeys(name for _, line in lines for name in line))
    widths = [max([len(name), *[len(line.get(name, "")) for _, line in lines]]) + 2 for name in columns]
    margin = max([len(name), *[len(step) + 2 for step, _ in lines]])
    text = [name.ljust(margin) + "".join(name.rjust(width) for name, width in zip(columns, widths, strict=True))]
    for step, line in lines:
        parts = [line.get(name, "").rjust(width) for name, width in zip(columns, widths, strict=True)]
        text.append(f"  {step}".ljust(margin) + "".join(parts))
    kinds = ("cannot", "failed")
    parts = (section, *section["rows"])
    notes = [f"{n} {kind}: {why}" for part in parts for kind in kinds for n, why in part.get(kind, {}).items()]
    text += [f"  {note} ({notes.count(note)} times)" for note in dict.fromkeys(notes)]
    return "\n".join([*text, *[f"  skipped at the time limit: {title}" for title in section["skipped"]], ""])


def main(arguments: list[str] | None = None) -> int:
    """Runs the sections, and returns 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds; times mean nothing then")
    parser.add_argument("--minutes", type=float, default=7.0, help="no step begins after this time")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each comparison is timed")
    parser.add_argument("--commit", help="the commit of this tree, where git cannot tell")
    parser.add_argument("--output", type=file, help="default: a new file benchmarks/results/gpu-<card>-<options>.json")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    setup = Setup(torch.device(options.device), options.quick, options.seconds)
    if setup.cuda and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; `--device cpu --quick` tries the program without one")
    if not setup.cuda and not setup.quick:
        parser.error("the sizes are those of a GPU: add `--quick` to run on another device")
    if setup.cuda and setup.device.index is not None:
        torch.cuda.set_device(setup.device)

    torch.manual_seed(0)
    card = torch.cuda.get_device_name() if setup.cuda else setup.device.type
    output = options.output or new_file(f"gpu-{card}", parser, options, "device", "commit")
    about = {"card": card, "torch": torch.__version__, "cuda": torch.version.cuda, "quick": setup.quick}
    started: dict[str, Any] = {}
    with suppress(ImportError):  # it needs Meta-World, and the sections do not
        started = session("benchmarks.gpu")
    commit, date = options.commit or started.get("commit"), datetime.now(UTC).isoformat(timespec="seconds")
    about |= {"commit": commit, "date": date}
    sections: dict[str, Row] = {}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    about["session"] = started
    for name in SECTIONS:
        print(name, flush=True)
        sections[name] = run_section(name, setup, deadline)
        write(output, {"about": about, "sections": sections})
    print("\n" + "\n".join(table(name, section) for name, section in sections.items()))
    failed = sum(len(part.get("failed", {})) for section in sections.values() for part in (section, *section["rows"]))
    print(f"{failed} failures; written to {output}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
