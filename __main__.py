"""`python -m segarena`: the RL driver as a module."""

import sys

try:
    from .agents.command_line import main
except KeyboardInterrupt:  # stopped while it started
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
