"""Files of measured rows: each row is kept when it is there, so that an experiment goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import filelock

from .outputs import session, write

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
        self.path, self.form, self.settings, self.key = path, form, settings, key
        self.stored = self._read()
        self.session = session(program)

    def __contains__(self, columns: dict[str, Any]) -> bool:
        return any(all(row[name] == columns[name] for name in self.key) for row in self.stored["rows"])

    def keep(self, row: dict[str, Any], shown: str | None = None) -> None:
        """Adds a row to the file, whole or not at all, and shows it, unless one of its key is there.

        Several processes may measure rows of one file.
        """
        with filelock.FileLock(self.path.with_name(f".{self.path.name}.lock")):
            stored = self._read()
            self.stored = {**stored, "runs": {**stored["runs"], **self.stored["runs"]}}
            if row in self:
                return
            self.stored["rows"].append(row)
            if self.session not in self.stored["sessions"]:
                self.stored["sessions"].append(self.session)
            write(self.path, self.stored, allow_nan=False)
        print(shown or ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def _read(self) -> dict[str, Any]:
        """Reads the file; without one there are no rows yet."""
        if not self.path.exists():
            return {"format": self.form, "settings": self.settings, "sessions": [], "runs": {}, "rows": []}
        stored: dict[str, Any] = json.loads(self.path.read_text())
        if (form := stored.get("format")) != self.form:
            raise SystemExit(f"{self.path} has the format {form!r}, not {self.form!r}; name another file")
        if stored["settings"] != self.settings:
            raise SystemExit(f"{self.path} has other settings, {stored.get('settings')}; name another file")
        return stored
