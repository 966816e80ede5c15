"""python -m tritonbn: the same as the command `tritonbn`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
