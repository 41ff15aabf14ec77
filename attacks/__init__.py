"""Adversarial attacks on segmentation networks: pure functions that know no environment and no learner."""
