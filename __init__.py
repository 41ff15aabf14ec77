"""SegArena: Gymnasium environments in which medical images are segmented. Importing it registers them."""

from . import envs as envs

__version__ = "0.1.0"
