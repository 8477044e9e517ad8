"""``python -m gpuconv``: the command line, see :mod:`gpuconv.cli`."""

import sys

from gpuconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
