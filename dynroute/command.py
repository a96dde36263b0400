"""The ``dynroute`` command, which belongs to dynroute_command: the core imports no integration by name."""

import importlib
import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command and returns its exit status."""
    return int(importlib.import_module("dynroute_command").main())


if __name__ == "__main__":
    sys.exit(main())
