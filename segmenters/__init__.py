"""Segmentation networks, their supervised training and their adaptation to another domain."""
