"""What a token attends to, drawn."""
