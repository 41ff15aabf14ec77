"""SegArena: Gymnasium environments for medical image segmentation; importing it registers every environment."""

from . import envs as envs

__version__ = "0.1.0"
