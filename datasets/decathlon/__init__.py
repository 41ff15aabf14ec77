"""Patches of volumes of the ten tasks of the Medical Segmentation Decathlon, and of phantoms of them."""
