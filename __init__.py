"""SegArena: medical-image segmentation as a game. Importing it registers every environment with Gymnasium."""

__version__ = "0.1.0"
