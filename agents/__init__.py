"""Learners, opponents, reference policies, and the drivers of each paper."""
