"""Rewards, and the networks and rules that they come from."""
