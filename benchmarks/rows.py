"""Files of measured rows: each row is kept when it is there, so that an experiment goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

from .outputs import session

__all__ = ["Rows"]


class Rows:
    """The rows of one experiment, and how they were measured.

    Args:
        path: The JSON file; one of the same settings is gone on with.
        form: Its format.
        settings: What results depend on.
        program: The module that measures.
        key: The columns that tell rows apart.
    """

    def __init__(self, path: Path, form: str, settings: dict[str, Any], *, program: str, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.stored: dict[str, Any] = {"format": form, "settings": settings, "sessions": [], "runs": {}, "rows": []}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored.get("format") != form or stored["settings"] != settings:
                raise SystemExit(f"{path} has other settings, {stored.get('settings')}; name another file")
            self.stored = stored
        self.session = session(program)

    def __contains__(self, columns: dict[str, Any]) -> bool:
        return any(all(row[name] == columns[name] for name in self.key) for row in self.stored["rows"])

    def keep(self, row: dict[str, Any], shown: str | None = None) -> None:
        """Adds a row to the file, whole or not at all, and shows it."""
        self.stored["rows"].append(row)
        if self.session not in self.stored["sessions"]:
            self.stored["sessions"].append(self.session)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(self.stored, indent=1, allow_nan=False) + "\n")
        part.replace(self.path)
        print(shown or ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
