"""``python -m dynroute`` is the ``dynroute`` command."""

import sys

from .command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
