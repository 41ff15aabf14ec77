"""`python -m segarena`: the RL driver as a module."""

import sys

from .agents.command_line import main

if __name__ == "__main__":
    sys.exit(main())
