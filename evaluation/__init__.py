"""Metrics, intervals, result files, tables and pictures."""
