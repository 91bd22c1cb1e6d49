"""Images with labels: sources, preparation, loading."""
