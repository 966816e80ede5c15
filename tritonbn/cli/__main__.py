"""python -m tritonbn.cli: the same as the command `tritonbn`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
