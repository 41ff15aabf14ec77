"""What a move is worth."""
