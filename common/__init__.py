"""Files, runs, checkpoints, networks on disk, training loop and checks, for all papers; imports nothing of ours."""
