"""SegArena: medical images are segmented in Gymnasium environments. Importing it registers every environment with Gymnasium."""

from . import envs as envs

__version__ = "0.1.0"
