"""Liver CT: Decathlon, LiTS and phantoms on one grid, lesions, and the lattice of windows."""
