"""PPO with an action, a reward and a ratio for every pixel."""
