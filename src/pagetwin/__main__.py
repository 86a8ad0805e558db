"""`python -m pagetwin` is the command `pagetwin`."""

import sys

from pagetwin.cli import main

if __name__ == "__main__":
    sys.exit(main())
