#!/usr/bin/env python
"""The RL driver: train, evaluate, render, play, list, ...

python run_rl.py train --config spars/search --config spars/demo --out runs/demo
python run_rl.py evaluate --run runs/demo
"""

import sys

try:
    from segarena.agents.command_line import main
except KeyboardInterrupt:  # stopped while it started
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
