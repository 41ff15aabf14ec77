"""Radiographs: MURA, tables of one's own (hips) and phantoms of limbs, as one pool of images with a class each."""
