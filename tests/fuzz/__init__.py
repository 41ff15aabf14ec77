"""Malformed inputs for every reader: what it refuses it must refuse by name, and nothing may be harmed.

    python tests/fuzz/run.py --seed 0 --report fuzz.json      all groups
    python tests/fuzz/run.py --group nifti --group yaml       some groups
    python tests/fuzz/run.py --only nifti/header.dim0         inputs whose names begin so; their folders are kept

`harness.py` says what a fault is. Same seed, same inputs.
"""
