"""The RL4Seg experiment (docs/rl4seg.md)."""
