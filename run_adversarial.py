#!/usr/bin/env python
"""Adversarial training, evaluation and attacks of segmenters: the same commands as run_rl.py, for paper rp_pgd.

python run_adversarial.py train --config rp_pgd/phantom --out runs/robust
python run_adversarial.py evaluate --run runs/robust
python run_adversarial.py attack --input photos --model runs/robust --attack pgd_20 --eps 8/255 --out attacked
"""

import sys

try:
    from segarena.agents.command_line import main
except KeyboardInterrupt:  # stopped while it started
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
