"""Images with labels: where they come from, how they are made ready, and how fast they arrive."""
