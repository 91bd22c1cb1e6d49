"""A worker process: it measures one cell at a time. The only part of the core that imports torch."""
