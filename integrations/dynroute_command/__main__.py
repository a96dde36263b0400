"""``python -m dynroute_command`` is the ``dynroute`` command."""

import sys

from dynroute_command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
