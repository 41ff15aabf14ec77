"""SEAT: training against attacks whose number of steps follows the gradient."""
