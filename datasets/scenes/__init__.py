"""Photographs of scenes: VOC, Cityscapes, ADE20K, and phantoms; their augmentation."""
