"""SegArena: Gymnasium environments for medical image segmentation; importing it registers every environment."""

import sys

try:
    from . import envs as envs
except KeyboardInterrupt:
    if sys.argv[:1] != ["-m"] and not sys.argv[0].endswith("segarena-rl"):
        raise
    sys.exit(130)  # the program, which was stopped while it started

__version__ = "0.1.0"
