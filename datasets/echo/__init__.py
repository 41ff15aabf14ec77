"""Echocardiography: CAMUS, prepared folders and phantoms, as one pool of images."""
