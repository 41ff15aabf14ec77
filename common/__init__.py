"""The ground floor: files, runs, checkpoints, training loop and checks; knows no paper."""
