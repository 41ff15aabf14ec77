"""A tiny experiment on phantoms, and a sweep file of it."""

TINY = {
    "name": "Tiny",
    "device": "cpu",
    "env": {"score_source": "oracle_fraction", "cases": ["phantom_02000"], "grid_shape": [32, 32, 24]},
    "validation.cases": ["phantom_01000"],
    "test.cases": ["phantom_03000", "phantom_03001"],
    "policy": "flatten_mlp",
    "ppo": {"total_timesteps": 64, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"rollouts": 1, "pictures": 1},
}
GRID = {"paper": "spars", "base": [TINY], "grid": {"env.threshold": [0.25, 0.5]}, "seeds": [0, 3]}
