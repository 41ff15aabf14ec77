"""Networks that say what an image or a window holds, and their training."""
