"""`python -m evenly.cli` is `evenly`."""

import sys

from evenly.cli import main

if __name__ == "__main__":
    sys.exit(main())
