"""The ``dynroute`` command, which belongs to dynroute_metaworld; where that is missing, one is told what to install."""

import importlib
import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command and returns its exit status."""
    try:
        command = importlib.import_module("dynroute_metaworld.cli")
        return int(command.main())
    except ImportError as error:
        print(f"dynroute: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndynroute: stopped at once", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
