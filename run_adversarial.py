#!/usr/bin/env python
"""Adversarial training and evaluation of segmenters: the same commands as run_rl.py, for paper rp_pgd.

python run_adversarial.py train --config rp_pgd/phantom --out runs/robust
python run_adversarial.py evaluate --run runs/robust
"""

import sys

try:
    from segarena.agents.command_line import main
except KeyboardInterrupt:  # stopped while it started
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
