"""Draw what a token attends to."""
