"""pytest benchmarks: what was timed before decides nothing."""

import os

from .gather import AS_CHOSEN

os.environ.update(AS_CHOSEN)
