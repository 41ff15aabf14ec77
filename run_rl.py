#!/usr/bin/env python
"""The RL driver: train, evaluate, render, play, list, ...

python run_rl.py train --config spars/demo --out runs/demo
python run_rl.py evaluate --run runs/demo
"""

import sys

from segarena.agents.command_line import main

if __name__ == "__main__":
    sys.exit(main())
