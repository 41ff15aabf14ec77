"""Real layouts and phantoms; one sample type for all."""
