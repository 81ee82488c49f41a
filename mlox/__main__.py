"""The command line: `python -m mlox`."""

import sys

from mlox._command.main import main

if __name__ == "__main__":
    sys.exit(main())
